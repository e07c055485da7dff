//! Threads on several hosts that change one tree at the same time, by random operations on few names.
//! No model can say what each must answer; but none may fail for another reason than the names', all
//! hosts must show the same tree afterwards, and fsck must find nothing, nor after a power cut.

use crate::canary::Canary;
use crate::cluster::Sim;
use crate::common::simdisk::SimDisk;
use crate::draw::{self, Draw};
use crate::host::Host;
use crate::model::{Model, Op};
use crate::runs::{Count, Until};
use crate::story::{execute, volume};
use crate::tree;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shoal::base::Error;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const THREADS: usize = 4;

/// An answer that the state of the names may give.
fn is_lawful(e: &Error) -> bool {
    use Error::*;
    matches!(
        e,
        NotFound
            | NotPermitted
            | Exists
            | NotDirectory
            | IsDirectory
            | NotEmpty
            | Invalid(_)
            | Stale
            | NoAttribute
            | TooManyLinks
    )
}

/// A model of the moment, so that operations hit: what this thread believes, learnt by looking.
fn learn(host: &Host) -> Option<Model> {
    let mut model = Model::new();
    model.apply(0, &Op::Mkdir("/shared".into())).ok()?;
    let (mut todo, mut number) = (vec![draw::home(0)], 1);
    while let Some(path) = todo.pop() {
        let Ok(attr) = host.stat(&path) else { continue };
        number += 1;
        match attr.kind {
            shoal::inode::FileKind::Directory => {
                let _ = model.apply(number, &Op::Mkdir(path.clone()));
                todo.extend(host.list(&path).into_iter().flatten().map(|n| format!("{path}/{n}")));
            }
            _ => drop(model.apply(number, &Op::Create(path))),
        }
    }
    // Not if the host has just died.
    model.find(&draw::home(0)).is_ok().then_some(model)
}

fn work(sim: &Sim, thread: usize, seed: u64, until: Until) -> Result<(), String> {
    let mut random = StdRng::seed_from_u64(seed ^ ((thread as u64 + 1) << 40));
    let (mut number, mut believed) = ((thread + 1) * 1_000_000, None);
    while !until.is_over(sim) && !sim.down.load(Ordering::Acquire) {
        let at = random.random_range(0..sim.hosts.len());
        let Some(place) = sim.hosts[at].try_read() else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        let Some(host) = &*place else { continue };
        if believed.is_none() || random.random_bool(0.05) {
            believed = learn(host);
        }
        let Some(model) = &mut believed else { continue };
        if random.random_range(0..60) == 0 {
            host.trim_beside();
        }
        let op = Draw { worker: 0, random: &mut random, model }.op();
        number += 1;
        let done = execute(host, model, number, &op);
        let _ = model.apply(number, &op);
        sim.done.fetch_add(1, Ordering::Relaxed);
        match done {
            Ok(()) => {}
            Err(e) if is_lawful(&e) => {}
            Err(_) if sim.down.load(Ordering::Acquire) => return Ok(()),
            Err(e) => return Err(format!("thread {thread}, host {at}, {op:?}: {e}")),
        }
    }
    Ok(())
}

fn compare(sim: &Sim) -> Result<(), String> {
    let mut first: Option<tree::Found> = None;
    for host in &sim.hosts {
        let Some(host) = &*host.read() else { continue };
        let found = tree::of_host(host)?;
        let Some(first) = &first else {
            first = Some(found);
            continue;
        };
        let lines = tree::difference(&found.names, &first.names);
        if !lines.is_empty() || found.data != first.data {
            return Err(format!("two hosts show different trees: {:#?}", &lines[..lines.len().min(6)]));
        }
    }
    let first = first.ok_or("no host is left")?;
    (0..sim.hosts.len()).for_each(|at| sim.leave(at));
    tree::fsck(&sim.disk)?;
    let left = tree::Image::open(&sim.disk)?.walk()?;
    match tree::difference(&left.names, &first.names) {
        lines if lines.is_empty() && left.data == first.data => Ok(()),
        lines => Err(format!("the disk holds something else: {:#?}", &lines[..lines.len().min(6)])),
    }
}

/// What a power cut leaves is sound, and so is what recovery makes of it.
fn check_cut(disk: &Arc<SimDisk>) -> Result<(), String> {
    tree::fsck(disk).map_err(|e| format!("after the power cut: {e}"))?;
    let host = Host::mount(disk, "survivor").map_err(|e| format!("mount after the power cut: {e}"))?;
    let found = tree::of_host(&host).map(|_| ());
    host.stop().map_err(|e| format!("leave after the power cut: {e}"))?;
    found.and_then(|()| tree::fsck(disk)).map_err(|e| format!("after recovery: {e}"))
}

fn run(seed: u64) -> Result<Count, String> {
    let disk = volume(512, 5);
    let first = Host::mount(&disk, "first").map_err(|e| e.to_string())?;
    first.mkdir("/shared").and_then(|()| first.mkdir(&draw::home(0))).map_err(|e| e.to_string())?;
    first.stop().map_err(|e| e.to_string())?;
    let sim = Sim::new(disk, 3, seed, Canary::None).map_err(|e| format!("seed {seed}: {e}"))?;
    let history = sim.disk.record();
    // Every other time they all die in the middle of it.
    let dies = seed / 2 % 2 == 1;
    let until = Until::counted(Duration::from_millis(2500));
    let last = if dies { until.later(Duration::from_secs(5)) } else { until };
    let (worked, cut) = std::thread::scope(|scope| {
        let sim = &sim;
        let churn = (seed % 2 == 1).then(|| scope.spawn(move || sim.churn(until)));
        let threads: Vec<_> = (0..THREADS).map(|t| scope.spawn(move || work(sim, t, seed, last))).collect();
        let failed = || Err("an arrival or departure failed".to_owned());
        let churned = churn.map_or(Ok(()), |churn| churn.join().unwrap_or_else(|_| failed()));
        let cut = dies.then(|| {
            until.wait(sim);
            sim.cut(&history)
        });
        let ended = threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err("a thread panicked".into())));
        let ended: Vec<Result<(), String>> = ended.collect();
        (ended.into_iter().chain([churned]).collect::<Result<(), String>>(), cut)
    });
    let end = || cut.map_or_else(|| compare(&sim), |disk| check_cut(&disk));
    let checked = worked.and_then(|()| end()).map_err(|e| format!("seed {seed}: {e}"));
    let done = sim.count();
    sim.bury();
    checked.map(|()| done)
}

#[test]
fn one_tree_for_all() {
    crate::runs::over_seeds("chaos", run);
}
