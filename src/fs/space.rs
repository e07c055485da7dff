//! Getting the right to allocate in one more group, holding nothing meanwhile.
//!
//! Own groups come first (their locks cost nothing), then groups of others, the emptiest first by
//! their headers on the disk, which may be a few seconds old. Only when every group has been held
//! and had nothing, and nothing is on its way back, is the volume full: unlinked files are freed behind
//! their program's back, and dirty data holds more than it turns out to need.

use super::*;
use crate::alloc::Want;
use crate::cluster::Owner;
use crate::inode::{ItemKey, ItemKind};
use std::ops::ControlFlow;
use std::time::Instant;

type Then = Box<dyn FnOnce(Result<Reservation>) + Send>;

/// Get a reservation from a group that is not held yet.
pub fn acquire(core: &Arc<Core>, want: Want, then: Then) {
    let mut groups = candidates(core);
    groups.reverse();
    next(core.clone(), want, groups, then);
}

fn next(core: Arc<Core>, want: Want, mut rest: Vec<AgNo>, then: Then) {
    let Some(ag) = rest.pop() else {
        core.writeback.flush_all_soon();
        // Looked at first: what is free by the time of the second look was coming back at the first.
        let coming = coming_back(&core);
        return match (core.alloc.reserve_last(want), coming) {
            (Err(Error::NoSpace), Ok(Some(_))) => wait_for_frees(core, want, then),
            (got, _) => then(got),
        };
    };
    let locks = LockSet::one(LockName::Ag(ag), Mode::X);
    core.locks.clone().acquire(
        locks,
        Box::new(move |pins| match pins {
            Err(e) => then(Err(e)),
            Ok(pins) => {
                let got = core.alloc.reserve(want);
                drop(pins);
                match got {
                    Ok(reservation) => then(Ok(reservation)),
                    Err(Error::NeedSpace) => next(core, want, rest, then),
                    Err(e) => then(Err(e)),
                }
            }
        }),
    );
}

/// How often a full volume is looked at while space is coming back, and how long nothing may change.
const LOOK: Duration = Duration::from_millis(50);
const STANDSTILL_MAX: Duration = Duration::from_millis(500);

/// Ask again while space comes back, on a thread of its own: whoever gives it back may need this one.
fn wait_for_frees(core: Arc<Core>, want: Want, then: Then) {
    let wait = move || {
        let mut seen = None;
        let mut changed = Instant::now();
        loop {
            std::thread::sleep(LOOK);
            if let Err(e) = core.reap_now() {
                tracing::warn!("freeing what was unlinked: {e}");
            }
            let coming = coming_back(&core).unwrap_or(None);
            let got = core.alloc.reserve_last(want);
            if !matches!(got, Err(Error::NoSpace)) || coming.is_none() {
                return then(got);
            }
            if coming != seen {
                (seen, changed) = (coming, Instant::now());
            } else if changed.elapsed() > STANDSTILL_MAX {
                return then(got);
            }
        }
    };
    if let Err(e) = std::thread::Builder::new().name("shoal-space".into()).spawn(wait) {
        tracing::error!("cannot start a thread: {e}");
    }
}

/// Unlinked files not open here and other frees to come, dirty bytes, and free blocks; `None` if
/// nothing is coming back.
fn coming_back(core: &Core) -> Result<Option<(u64, u64, u64)>> {
    let mut items = 0;
    {
        let _slot = core.slot_lock.lock();
        core.slot_tree.scan(&*core.store, ItemKey::new(ItemKind::Orphan, 0), None, &mut |key, _| {
            let open = || core.nodes.find(InodeNo(key.id)).is_some_and(|n| n.is_open());
            items += u64::from(key.kind != ItemKind::Orphan || !open());
            ControlFlow::Continue(())
        })?;
    }
    let dirty = core.pool.dirty_bytes();
    let nothing = items == 0 && dirty == 0;
    Ok((!nothing).then(|| (items, dirty, core.alloc.totals().free_blocks())))
}

/// Groups worth asking, best first. Those of a host that is silent are left out: it may be dead,
/// and nobody answers for them until the cluster has recovered.
fn candidates(core: &Core) -> Vec<AgNo> {
    let members = core.cluster.membership();
    let held = core.alloc.held();
    let rank = |ag: AgNo| match members.owner_of(ag).0 {
        Owner::Master(slot) | Owner::Adopter(slot) if slot == members.me => Some(0),
        Owner::Master(slot) | Owner::Adopter(slot) if !members.is_silent(slot) => Some(1),
        _ => None,
    };
    let mut groups: Vec<(u8, std::cmp::Reverse<u64>, AgNo)> = (0..core.geometry.ag_count)
        .map(AgNo)
        .filter(|ag| !held.contains(ag))
        .filter_map(|ag| Some((rank(ag)?, std::cmp::Reverse(core.statfs.free_hint(core, ag)), ag)))
        .collect();
    groups.sort();
    groups.into_iter().map(|(.., ag)| ag).collect()
}
