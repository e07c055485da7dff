//! Files that are freed together with their last name, while another host's kernel still refers to them.

use crate::rig::Cluster;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

/// Until nothing of a file is in any journal.
const QUIET: Duration = Duration::from_secs(6);

fn refer_to(path: &Path) -> File {
    File::options().read(true).custom_flags(libc::O_PATH).open(path).unwrap()
}

/// Open what is only referred to.
fn reopen(referred: &File) -> io::Result<File> {
    File::options().read(true).write(true).open(format!("/proc/self/fd/{}", referred.as_raw_fd()))
}

fn assert_is_gone(name: &str, opened: io::Result<File>) {
    match opened {
        Ok(file) => {
            let mut data = [0; 16];
            let read = file.read_at(&mut data, 0).map(|n| data[..n].to_vec());
            panic!("{name} was freed, and is open: {read:?}, {:?}", file.write_at(b"late", 0));
        }
        Err(e) => assert!(matches!(e.raw_os_error(), Some(libc::ESTALE | libc::ENOENT)), "{name}: {e}"),
    }
}

#[test]
fn a_freed_file_cannot_be_opened_by_who_still_refers_to_it() {
    let cluster = Cluster::new("256M", 2, Duration::from_secs(90));
    let (a, b) = (cluster.at(0), cluster.at(1));
    let names: Vec<String> = (0..12).map(|n| format!("f{n}")).collect();
    for name in &names {
        fs::write(a.join(name), vec![7; 8192 + 1000]).unwrap();
        File::open(a.join(name)).unwrap().sync_all().unwrap();
    }
    std::thread::sleep(QUIET);
    for n in 0..names.len() {
        // In no order that locks would be asked for ahead in.
        let name = &names[n * 5 % names.len()];
        let referred = refer_to(&b.join(name));
        if n % 2 > 0 {
            fs::metadata(a.join(name)).unwrap();
        }
        fs::remove_file(a.join(name)).unwrap();
        if n % 3 == 2 {
            // Its blocks may be used again at once.
            fs::write(a.join(format!("{name}-new")), vec![9; 9000]).unwrap();
        }
        assert_is_gone(name, reopen(&referred));
        // Not later either, nor where it was removed.
        assert_is_gone(name, reopen(&referred));
    }
    let referred = {
        fs::write(a.join("own"), vec![7; 9000]).unwrap();
        refer_to(&a.join("own"))
    };
    fs::remove_file(a.join("own")).unwrap();
    assert_is_gone("own", reopen(&referred));
    drop(referred);
    for name in names.iter().filter(|name| a.join(format!("{name}-new")).exists()) {
        assert_eq!(fs::read(b.join(format!("{name}-new"))).unwrap(), vec![9; 9000]);
    }
    (0..2).for_each(|host| cluster.umount(host));
    cluster.check();
}

/// A mapping keeps a file open, on whichever host: what was in it stays until the mapping ends.
#[test]
fn a_mapped_file_outlives_its_last_name() {
    let cluster = Cluster::new("256M", 2, Duration::from_secs(60));
    for (maps, removes) in [(0, 0), (0, 1)] {
        let path = cluster.at(maps).join("mapped");
        fs::write(&path, vec![7; 8192]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        file.sync_all().unwrap();
        // SAFETY: a fresh mapping of a file that is long enough; it ends below.
        let at = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), 8192, access, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        assert_ne!(at, libc::MAP_FAILED);
        drop(file);
        fs::remove_file(cluster.at(removes).join("mapped")).unwrap();
        for n in 0..100 {
            fs::write(cluster.at(removes).join(format!("other{n}")), vec![9; 8192]).unwrap();
        }
        // SAFETY: within the mapping, which nobody else in this process uses.
        unsafe {
            let bytes = std::slice::from_raw_parts_mut(at.cast::<u8>(), 8192);
            assert!(bytes.iter().all(|b| *b == 7));
            bytes[4096..].fill(5);
            assert_eq!(libc::msync(at, 8192, libc::MS_SYNC), 0);
            assert!(bytes[4096..].iter().all(|b| *b == 5));
            assert_eq!(libc::munmap(at, 8192), 0);
        }
        for n in 0..100 {
            assert_eq!(fs::read(cluster.at(1).join(format!("other{n}"))).unwrap(), vec![9; 8192]);
        }
    }
    (0..2).for_each(|host| cluster.umount(host));
    cluster.check();
}
