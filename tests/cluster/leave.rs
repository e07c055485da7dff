//! Ways of leaving in which the kernel does not tell of every close.

use crate::rig::Cluster;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::time::Duration;

#[test]
fn a_lazy_unmount_ends_with_the_last_close() {
    let cluster = Cluster::new("256M", 2, Duration::from_secs(60));
    let mut file = File::create(cluster.at(0).join("held")).unwrap();
    file.write_all(b"written before").unwrap();
    fs::write(cluster.at(0).join("gone"), vec![1; 100_000]).unwrap();
    let mut gone = File::open(cluster.at(0).join("gone")).unwrap();
    fs::remove_file(cluster.at(1).join("gone")).unwrap();
    cluster.umount_lazily(0);
    file.write_all(b" and after").unwrap();
    let mut content = Vec::new();
    gone.read_to_end(&mut content).unwrap();
    assert_eq!(content.len(), 100_000);
    drop((file, gone));
    assert!(cluster.is_gone(0, Duration::from_secs(20)), "the daemon goes on without a mount");
    assert_eq!(fs::read(cluster.at(1).join("held")).unwrap(), b"written before and after");
    cluster.umount(1);
    cluster.check();
}
