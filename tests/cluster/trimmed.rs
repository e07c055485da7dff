//! fstrim on real mounts: what is free goes back to the device, and nothing else.

use crate::rig::{Cluster, stderr};
use crate::synced::Rig;
use std::fs::{self, File};
use std::io::Error;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// <linux/fs.h>: FITRIM, with `struct fstrim_range`.
const FITRIM: u64 = 0xc018_5879;
const LIMIT: Duration = Duration::from_secs(180);
const MIB: u64 = 1 << 20;

/// Bytes trimmed.
fn trim(file: &File, mut range: [u64; 3]) -> Result<u64, i32> {
    // SAFETY: an open descriptor and a record of the size that the call's number speaks of.
    match unsafe { libc::ioctl(file.as_raw_fd(), FITRIM as _, range.as_mut_ptr()) } {
        0 => Ok(range[1]),
        _ => Err(Error::last_os_error().raw_os_error().unwrap()),
    }
}

fn content(tag: usize, mib: u64) -> Vec<u8> {
    (0..(mib * MIB) as usize).map(|n| (n / 5 + n / 4096 * 7 + tag) as u8 | 1).collect()
}

/// Bytes that the image takes below.
fn taken(image: &Path) -> u64 {
    fs::metadata(image).unwrap().blocks() * 512
}

fn make(path: &Path, content: &[u8]) {
    fs::write(path, content).unwrap();
    File::open(path).unwrap().sync_all().unwrap();
}

/// Both hosts write, both remove; one calls fstrim.
fn space_comes_back(cluster: &Cluster) {
    let (image, at) = (cluster.image(), [cluster.at(0), cluster.at(1)]);
    for (host, at) in at.iter().enumerate() {
        fs::create_dir(at.join(format!("d{host}"))).unwrap();
        make(&at.join(format!("d{host}/kept")), &content(host, 5));
        make(&at.join(format!("d{host}/gone")), &content(9, 30));
    }
    let full = taken(&image);
    assert!(full > 70 * MIB, "{full}");
    for (host, at) in at.iter().enumerate() {
        fs::remove_file(at.join(format!("d{host}/gone"))).unwrap();
        // Other hosts' frees count when they are durable.
        File::open(at.join(format!("d{host}"))).unwrap().sync_all().unwrap();
    }
    let out = Command::new("fstrim").arg("-v").arg(&at[0]).output().unwrap();
    assert!(out.status.success(), "{}", stderr(&out));
    println!("{}", String::from_utf8_lossy(&out.stdout).trim());
    let left = taken(&image);
    assert!(left < full - 58 * MIB, "{full} bytes were taken, {left} are");
    for at in &at {
        for host in 0..2 {
            assert!(fs::read(at.join(format!("d{host}/kept"))).unwrap() == content(host, 5), "{host}");
        }
    }
    // What was given back can be had again, by the other one too.
    for (host, at) in at.iter().enumerate() {
        make(&at.join(format!("d{host}/next")), &content(host + 3, 20));
    }
    assert!(fs::read(at[0].join("d1/next")).unwrap() == content(4, 20));
    (0..2).for_each(|host| cluster.umount(host));
    cluster.check();
}

#[test]
fn space_of_an_image_comes_back() {
    space_comes_back(&Cluster::new("256M", 2, LIMIT));
}

#[test]
fn space_below_a_block_device_comes_back() {
    space_comes_back(&Rig::new(2).cluster);
}

#[test]
fn what_fstrim_is_told() {
    let cluster = Cluster::new("64M", 1, LIMIT);
    let root = File::open(cluster.at(0)).unwrap();
    let all = trim(&root, [0, u64::MAX, 0]).unwrap();
    assert!(all > 4 * MIB && all < 64 * MIB, "{all}");
    let part = trim(&root, [20 * MIB, 2 * MIB, 0]).unwrap();
    assert!(part <= 2 * MIB);
    assert_eq!(trim(&root, [64 * MIB, u64::MAX, 0]), Err(libc::EINVAL), "behind the end");
    assert_eq!(trim(&root, [0, 4095, 0]), Err(libc::EINVAL), "less than a block");
    assert_eq!(trim(&root, [0, u64::MAX, u64::MAX]), Err(libc::EINVAL), "no run is so long");
    // On a file it is the same call.
    let file = File::create(cluster.at(0).join("f")).unwrap();
    assert!(trim(&file, [0, u64::MAX, 0]).is_ok());
    let fd = root.as_raw_fd();
    let mut other = Command::new("true");
    // SAFETY: only system calls are made between fork and exec.
    unsafe {
        other.pre_exec(move || {
            let mut range = [0, u64::MAX, 0];
            if libc::setresuid(65534, 65534, 65534) != 0 || libc::ioctl(fd, FITRIM as _, &mut range) != 0 {
                return Err(Error::last_os_error());
            }
            Ok(())
        });
    }
    assert_eq!(other.status().map_err(|e| e.raw_os_error()).err(), Some(Some(libc::EPERM)));
    drop((root, file));
    cluster.umount(0);
    let out = cluster.try_mount(0, &cluster.image(), "ro");
    assert!(out.status.success(), "{}", stderr(&out));
    assert_eq!(trim(&File::open(cluster.at(0)).unwrap(), [0, u64::MAX, 0]), Err(libc::EROFS));
    cluster.umount(0);
    cluster.check();
}
