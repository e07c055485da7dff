//! What syncfs promises, and O_SYNC and O_DSYNC of a descriptor: what was done outlives the power.

use crate::common::simdisk::Unflushed;
use crate::host::{Host, How};
use crate::story::volume;
use crate::tree;
use std::time::Duration;

const FILES: usize = 20;
/// Commits come too late to help.
const NEVER: Duration = Duration::from_secs(60);

fn content(n: usize, round: u8) -> Vec<u8> {
    vec![round * 100 + n as u8; 1 + n * 5000]
}

/// New files and overwritten ones, on a host whose locks another host wants meanwhile.
#[test]
fn syncfs_makes_everything_durable() {
    let disk = volume(64, 2);
    let history = disk.record();
    let a = Host::mount_with(&disk, "a", NEVER).expect("mount");
    let b = Host::mount_with(&disk, "b", NEVER).expect("mount");
    for round in [1, 2] {
        for n in 0..FILES {
            let name = format!("/f{n}");
            if round == 1 {
                a.create(&name).expect("create");
            }
            a.write(&name, 0, &content(n, round), How::Buffered).expect("write");
        }
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| b.read("/f7").expect("read elsewhere"));
            a.syncfs().expect("syncfs");
            reader.join().expect("no panic");
        });
        let cut = history.crash_at(&disk.events(), disk.event_count(), Unflushed::Lost);
        tree::fsck(&cut).expect("a sound volume after the cut");
        let survivor = Host::mount(&cut, "survivor").expect("mount after the cut");
        for n in 0..FILES {
            assert!(
                survivor.read(&format!("/f{n}")).expect("read") == content(n, round),
                "f{n} of round {round}"
            );
        }
        survivor.stop().expect("a clean leave");
    }
    a.stop().expect("a clean leave");
    b.stop().expect("a clean leave");
}

/// What is changed through a descriptor that was opened with O_SYNC or O_DSYNC is durable when the call returns, also
/// if it is no write(2).
#[test]
fn copies_and_allocations_by_a_synchronous_descriptor_are_durable() {
    const BYTES: usize = 100_000;
    for how in [How::Sync, How::DataSync] {
        let disk = volume(64, 2);
        let history = disk.record();
        let a = Host::mount_with(&disk, "a", NEVER).expect("mount");
        let b = Host::mount_with(&disk, "b", NEVER).expect("mount");
        for name in ["/source", "/copy", "/allocated", "/zeroed"] {
            a.create(name).expect("create");
        }
        for name in ["/source", "/zeroed"] {
            a.write(name, 0, &[7; BYTES], How::Buffered).expect("write");
        }
        a.syncfs().expect("syncfs");
        let open = |name: &str| {
            let node = a.keep(name).expect("lookup");
            (node, a.open_kept(node, how).expect("open"))
        };
        let (source, copy, allocated, zeroed) =
            (open("/source"), open("/copy"), open("/allocated"), open("/zeroed"));
        let after = |done: &str, name: &str, expected: &[u8]| {
            let cut = history.crash_at(&disk.events(), disk.event_count(), Unflushed::Lost);
            tree::fsck(&cut).expect("a sound volume after the cut");
            let survivor = Host::mount(&cut, "survivor").expect("mount after the cut");
            assert!(survivor.read(name).expect("read") == expected, "{how:?}: {done} is lost");
            survivor.stop().expect("a clean leave");
        };
        let copied = a.copy_kept((source.0, 0), (copy.0, copy.1, 0), BYTES as u32).expect("copy");
        assert_eq!(copied as usize, BYTES);
        after("the copy", "/copy", &[7; BYTES]);
        a.fallocate_kept(allocated, (0, BYTES as u64), 0).expect("fallocate");
        after("the size", "/allocated", &[0; BYTES]);
        let edge = (1000, BYTES as u64 - 2000);
        a.fallocate_kept(zeroed, edge, libc::FALLOC_FL_ZERO_RANGE).expect("zero");
        let mut expected = [7; BYTES];
        expected[1000..BYTES - 1000].fill(0);
        after("the zeroing", "/zeroed", &expected);
        for (node, fh) in [source, copy, allocated, zeroed] {
            a.close_kept(node, fh).expect("close");
            a.forget(node);
        }
        a.stop().expect("a clean leave");
        b.stop().expect("a clean leave");
    }
}
