//! What syncfs promises: what came before it outlives the power.

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
