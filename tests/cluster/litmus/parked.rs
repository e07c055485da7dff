//! Many requests that wait for a lock, while locks they have nothing to do with are taken away.

use super::Pair;
use super::map::Map;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

const READERS: usize = 24;
const STEP: usize = 128 << 10;
const MAPPED: usize = 256 << 10;

/// A host's two files: one that it writes and the other host reads, one that it has mapped and dirty.
struct Side {
    written: File,
    mapped: File,
    map: Map,
}

impl Side {
    fn new(at: &Path, host: usize) -> Side {
        let open = |name: &str| {
            let mut options = OpenOptions::new();
            options.create(true).truncate(false).read(true).write(true);
            options.open(at.join(format!("{name}{host}"))).unwrap()
        };
        let (written, mapped) = (open("written"), open("mapped"));
        mapped.set_len(MAPPED as u64).unwrap();
        let map = Map::new(&mapped, MAPPED, true);
        Side { written, mapped, map }
    }

    fn dirty(&self, value: u8) {
        (0..READERS).for_each(|i| self.written.write_all_at(&[value; STEP], (i * STEP) as u64).unwrap());
        (0..MAPPED).step_by(4096).for_each(|i| self.map.store(i, value));
    }
}

/// 24 reads of one inode wait on each host for the other's lock, while the other wants what is dirty
/// in a mapping here: the write that launders it must not queue behind those reads.
#[test]
fn parked_reads_do_not_hold_up_the_laundering_of_a_mapping() {
    const BOUND: Duration = Duration::from_secs(60);
    let pair = Pair::new();
    let sides = [Side::new(&pair.a, 0), Side::new(&pair.b, 1)];
    let begun = Instant::now();
    for round in 1..=12_u8 {
        sides.iter().for_each(|side| side.dirty(round));
        std::thread::scope(|scope| {
            for (at, other) in [(&pair.a, 1), (&pair.b, 0)] {
                for i in 0..READERS {
                    scope.spawn(move || {
                        let file = File::open(at.join(format!("written{other}"))).unwrap();
                        let mut seen = vec![0; STEP];
                        file.read_exact_at(&mut seen, (i * STEP) as u64).unwrap();
                        assert!(seen.iter().all(|b| *b == round), "round {round}, part {i}");
                    });
                }
                scope.spawn(move || {
                    let seen = fs::read(at.join(format!("mapped{other}"))).unwrap();
                    assert!(seen.iter().step_by(4096).all(|b| *b == round), "round {round}: the mapping");
                });
            }
        });
        assert!(begun.elapsed() < BOUND, "{round} rounds took {:?}", begun.elapsed());
    }
    for side in sides {
        drop((side.map, side.mapped, side.written));
    }
    pair.finish();
}
