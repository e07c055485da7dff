//! Leaving when the kernel has not closed what was open.

use crate::rig::Cluster;
use std::fs::{self, File};
use std::time::Duration;

#[test]
fn a_host_leaves_although_files_were_open_when_its_kernel_went_away() {
    let cluster = Cluster::new("128M", 2, Duration::from_secs(60));
    let (a, b) = (cluster.at(0), cluster.at(1));
    fs::write(a.join("kept"), b"kept").unwrap();
    fs::write(a.join("gone"), vec![5; 1 << 20]).unwrap();
    let open = [File::open(a.join("kept")).unwrap(), File::open(a.join("gone")).unwrap()];
    fs::remove_file(a.join("gone")).unwrap();
    let listing = fs::read_dir(&a).unwrap();
    cluster.cut_off(0);
    drop((open, listing));
    assert_eq!(fs::read(b.join("kept")).unwrap(), b"kept");
    fs::remove_file(b.join("kept")).unwrap();
    cluster.mount(0);
    assert_eq!(fs::read_dir(&a).unwrap().count(), 0);
    cluster.umount(0);
    cluster.umount(1);
}
