//! All hosts die in the middle of their work: what was fsync'd is there after a remount.

use crate::rig::Cluster;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

const LOAD: &str = "load";

/// Makes files and fsyncs them until the mount is gone; answers with what was promised. `at` is a
/// directory of the volume: below the mount there is none of that name to write on in.
fn work(at: PathBuf, who: usize, round: usize) -> BTreeMap<String, Vec<u8>> {
    let mut promised = BTreeMap::new();
    for i in 0u64.. {
        let name = format!("r{round}-h{who}-{i}");
        let content: Vec<u8> = (0..(i * 7919) % 60_000).map(|n| (n * 31 + i) as u8).collect();
        let written = File::create(at.join(&name)).and_then(|mut f| {
            f.write_all(&content)?;
            f.sync_all()
        });
        match written {
            Ok(()) => drop(promised.insert(name, content)),
            Err(_) => return promised,
        }
    }
    promised
}

#[test]
fn what_was_synced_survives_the_death_of_all_hosts() {
    let rounds = std::env::var("SHOAL_ROUNDS").map_or(3, |n| n.parse().expect("a number of rounds"));
    let cluster = Cluster::new("512M", 2, Duration::from_secs(120 + 30 * rounds as u64));
    fs::create_dir(cluster.at(0).join(LOAD)).unwrap();
    let mut promised = BTreeMap::new();
    for round in 0..rounds {
        let workers: Vec<_> = (0..2)
            .map(|who| {
                let at = cluster.at(who).join(LOAD);
                std::thread::spawn(move || work(at, who, round))
            })
            .collect();
        std::thread::sleep(Duration::from_millis(1500));
        cluster.kill(&[0, 1]);
        for worker in workers {
            promised.extend(worker.join().unwrap());
        }
        cluster.check();
        if round % 2 == 1 {
            // Replayed by fsck instead of by the next mount.
            cluster.fsck(&["-p"]);
            cluster.check();
        }
        cluster.mount(0);
        cluster.mount(1);
        for (name, content) in &promised {
            let host = usize::from(name.ends_with('7'));
            let found =
                fs::read(cluster.at(host).join(LOAD).join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(found == *content, "{name} differs after round {round}");
        }
        assert!(promised.len() > 20, "only {} files: nothing was tested", promised.len());
        for name in std::mem::take(&mut promised).into_keys() {
            fs::remove_file(cluster.at(1).join(LOAD).join(name)).unwrap();
        }
    }
    cluster.umount(0);
    cluster.umount(1);
    cluster.check();
}

#[test]
fn a_file_replaced_by_rename_has_its_old_content_or_its_new() {
    let cluster = Cluster::new("128M", 1, Duration::from_secs(60));
    let at = cluster.at(0);
    let (old, new) = (vec![1; 50_000], vec![2; 70_000]);
    File::create(at.join("f")).and_then(|mut f| f.write_all(&old).and_then(|()| f.sync_all())).unwrap();
    fs::write(at.join("f.tmp"), &new).unwrap();
    fs::rename(at.join("f.tmp"), at.join("f")).unwrap();
    // Longer than the commit interval, shorter than the age at which data is written anyway.
    std::thread::sleep(Duration::from_millis(2500));
    cluster.kill(&[0]);
    cluster.mount(0);
    let found = fs::read(at.join("f")).unwrap();
    assert!(found == old || found == new, "{} bytes, neither the old nor the new", found.len());
    cluster.umount(0);
}
