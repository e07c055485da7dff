//! Random work against a model, alone and by several threads.

use super::*;
use crate::base::{Error, Generation};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// What is on the volume, and the highest version each number has borne.
#[derive(Default)]
struct Model {
    inodes: Vec<InodeNo>,
    runs: Vec<BlockRun>,
    versions: BTreeMap<InodeNo, u64>,
}

impl Model {
    fn born(&mut self, ino: InodeNo, generation: Generation) {
        let last = self.versions.insert(ino, generation.0);
        assert!(last.is_none_or(|l| l < generation.0), "versions of {ino} fell");
    }
}

fn one_change(rig: &Rig, model: &mut Model, rng: &mut SmallRng) -> Result<()> {
    let (meta, data) = (rng.random_range(0..6), rng.random_range(0..200) * rng.random_range(0..2));
    let near = rng.random_bool(0.5).then(|| AgNo(rng.random_range(0..rig.geometry.ag_count)));
    let mut res = rig.alloc.reserve(Want { data, meta, near })?;
    let used = rng.random_range(0..=data);
    let pending = rig.alloc.take_data(&mut res, used, model.runs.last().map(|r| r.start.plus(r.blocks)))?;
    let runs = pending.runs().to_vec();
    let mut txn = rig.alloc.begin_with(res, 30, pending)?;
    let near = model.inodes.last().map_or(BlockNo(0), |i| i.block());
    let mut born = Vec::new();
    for _ in 0..rng.random_range(0..=meta) {
        born.push(txn.alloc_inode(near)?);
    }
    model.inodes.shuffle(rng);
    model.runs.shuffle(rng);
    let dead = model.inodes.len().min(rng.random_range(0..6));
    let gone = model.runs.len().min(rng.random_range(0..3));
    for ino in &model.inodes[..dead] {
        txn.free_block(ino.block(), BlockKind::Inode, LockName::Inode(*ino))?;
    }
    for run in &model.runs[..gone] {
        txn.free_data(*run)?;
    }
    if rng.random_bool(0.2) {
        // Undone. The versions taken are not taken again.
        return Ok(());
    }
    txn.finish()?;
    model.inodes.drain(..dead);
    model.runs.drain(..gone);
    for (ino, generation) in born {
        model.born(ino, generation);
        model.inodes.push(ino);
    }
    model.runs.extend(runs);
    Ok(())
}

fn compare(rig: &Rig, model: &Model) {
    let mut audit = rig.audit();
    // What is deferred is in use until it is done.
    for d in rig.keeper.0.lock().iter() {
        let set = if d.version.is_some() { &mut audit.meta } else { &mut audit.data };
        (0..d.blocks).for_each(|i| assert!(set.remove(&d.start.plus(i))));
    }
    assert_eq!(audit.meta, model.inodes.iter().map(|i| i.block()).collect());
    assert_eq!(audit.data, blocks(&model.runs).collect());
    assert_eq!(blocks(&model.runs).count(), audit.data.len(), "a data block is used twice");
    assert_eq!(rig.alloc.totals().promised, 0);
}

fn settle_deferred(rig: &Rig) {
    let deferred = std::mem::take(&mut *rig.keeper.0.lock());
    for d in deferred {
        let mut txn = rig.alloc.begin_for_free(2).unwrap();
        match txn.free_deferred(&d) {
            Ok(()) => {
                txn.finish().unwrap();
            }
            Err(Error::NeedSpace) => rig.keeper.0.lock().push(d),
            Err(e) => panic!("{e}"),
        }
    }
}

/// What is taken for a while, to be discarded, is nobody's.
fn trim(rig: &Rig, rng: &mut SmallRng) {
    let used = rig.audit();
    let wish = TrimWish { least: rng.random_range(0..40), most: rng.random_range(1..3000), granule: 4096 };
    for ag in rig.alloc.held() {
        let mut sweep = super::trimming::all_of(rig, ag);
        while !sweep.is_done() {
            let Some(unused) = rig.alloc.next_unused(&mut sweep, &wish).unwrap() else { continue };
            assert!(blocks(&[unused.run()]).all(|b| !used.data.contains(&b) && !used.meta.contains(&b)));
        }
    }
}

fn run(seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let groups = rng.random_range(1..4);
    let rig = Rig::granted(groups, rng.random_range(7..40));
    let mut model = Model::default();
    for step in 0..300 {
        match rng.random_range(0..20) {
            0 => rig.journal.commit(rig.journal.running()).unwrap(),
            1 => rig.journal.checkpoint_all().unwrap(),
            2 => {
                rig.tickets.passed.store(u64::MAX, Ordering::Relaxed);
                rig.alloc.maintain().unwrap();
                rig.tickets.passed.store(0, Ordering::Relaxed);
            }
            3 => {
                let ag = AgNo(rng.random_range(0..groups));
                if rig.alloc.held().contains(&ag) {
                    rig.give_up(ag);
                } else {
                    rig.alloc.ag_granted(ag);
                }
            }
            4 => settle_deferred(&rig),
            5 => trim(&rig, &mut rng),
            _ => match one_change(&rig, &mut model, &mut rng) {
                Ok(()) | Err(Error::NeedSpace) => {}
                Err(e) => panic!("seed {seed}, step {step}: {e}"),
            },
        }
        if step % 10 == 0 {
            compare(&rig, &model);
        }
    }
    (0..groups).for_each(|ag| rig.alloc.ag_granted(AgNo(ag)));
    settle_deferred(&rig);
    compare(&rig, &model);
    // From the device alone, the same.
    (0..groups).for_each(|ag| rig.give_up(AgNo(ag)));
    compare(&rig, &model);
}

#[test]
fn random_work_agrees_with_the_model() {
    (0..24).for_each(run);
}

#[test]
fn threads_do_not_disturb_each_other() {
    let rig = Arc::new(Rig::granted(3, 20));
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let committer = {
        let (rig, stop) = (rig.clone(), stop.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                rig.journal.checkpoint_all().unwrap();
                rig.alloc.maintain().unwrap();
                std::thread::yield_now();
            }
        })
    };
    let workers: Vec<_> = (0..4)
        .map(|seed| {
            let rig = rig.clone();
            std::thread::spawn(move || {
                let mut rng = SmallRng::seed_from_u64(seed);
                let mut model = Model::default();
                for _ in 0..400 {
                    match one_change(&rig, &mut model, &mut rng) {
                        Ok(()) | Err(Error::NeedSpace) => {}
                        Err(e) => panic!("{e}"),
                    }
                }
                model
            })
        })
        .collect();
    let mut all = Model::default();
    for worker in workers {
        let model = worker.join().unwrap();
        all.inodes.extend(model.inodes);
        all.runs.extend(model.runs);
    }
    stop.store(true, Ordering::Relaxed);
    committer.join().unwrap();
    compare(&rig, &all);
}

/// How long an allocation takes, group commits and new chunks aside; run with
/// `--ignored --nocapture`.
#[test]
#[ignore]
fn cost_of_an_inode() {
    let rig = Rig::granted(1, 512);
    let mut last = BlockNo(0);
    let mut spent: Vec<[std::time::Duration; 4]> = (0..50_000)
        .map(|_| {
            let begin = std::time::Instant::now();
            let res = rig.reserve(0, 1).unwrap();
            let reserved = begin.elapsed();
            let mut txn = rig.alloc.begin(res, 4).unwrap();
            let begun = begin.elapsed();
            last = txn.alloc_inode(last).unwrap().0.block();
            let allocated = begin.elapsed();
            txn.finish().unwrap();
            [reserved, begun, allocated, begin.elapsed()]
        })
        .collect();
    spent.sort_by_key(|s| s[3]);
    for part in [10, 50, 90] {
        println!(
            "{part} %: reserved, begun, allocated, finished after {:?}",
            spent[spent.len() * part / 100]
        );
    }
}
