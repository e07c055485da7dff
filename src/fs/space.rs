//! Getting the right to allocate in one more group, holding nothing meanwhile.
//!
//! Own groups come first (their locks cost nothing), then those of slots without a host, which a later
//! mount would like to find still there, then groups of others; the emptiest first by their headers on
//! the disk, which may be a few seconds old. When every group has been held and had
//! nothing, what this host has unlinked is freed and what it has dirty is written (which holds more
//! space than it turns out to need), and the other hosts get a moment for theirs: only when the groups
//! still have nothing then, and nothing is on its way back, is the volume full.

use super::*;
use crate::alloc::Want;
use crate::cluster::Owner;
use crate::inode::{ItemKey, ItemKind};
use std::ops::ControlFlow;

type Then = Box<dyn FnOnce(Result<Reservation>) + Send>;

/// Pauses before the rounds after the first.
const PAUSES: [Duration; 2] = [Duration::ZERO, Duration::from_millis(200)];
/// More rounds, and the pauses before them, while metadata chunks are on their way to become free:
/// the other hosts' journals must let go of them.
const DRAIN_ROUNDS: usize = 20;
const DRAIN_PAUSE: Duration = Duration::from_millis(500);
/// The same while frees or dirty data of this host are on their way.
const COMING_ROUNDS: usize = 40;
const COMING_PAUSE: Duration = Duration::from_millis(50);

/// Get a reservation from a group that is not held yet.
pub fn acquire(core: &Arc<Core>, want: Want, then: Then) {
    round(core, want, 0, then);
}

/// Ask every group once.
fn round(core: &Arc<Core>, want: Want, number: usize, then: Then) {
    let mut groups = candidates(core);
    groups.reverse();
    next(core.clone(), want, groups, number, then);
}

/// No group had anything in this round.
fn nothing_left(core: &Arc<Core>, want: Want, number: usize, then: Then) {
    if let Err(halted) = core.store.halt().check() {
        return then(Err(halted));
    }
    core.writeback.flush_all_soon();
    // Looked at first: what is free by the time of the second look was coming back at the first.
    let coming = is_coming_back(core);
    let got = core.alloc.reserve_last(want);
    let (Err(Error::NoSpace), Some(pause)) = (&got, pause_after(core, number, coming)) else {
        return then(got);
    };
    let again = core.clone();
    core.reaper.squeeze(pause, Box::new(move || round(&again, want, number + 1, then)));
}

/// How long to wait before another round; `None`: there is no point in one.
fn pause_after(core: &Core, number: usize, coming: bool) -> Option<Duration> {
    let more = number.checked_sub(PAUSES.len());
    match more {
        None => PAUSES.get(number).copied(),
        Some(n) if coming && n < COMING_ROUNDS => Some(COMING_PAUSE),
        Some(n) if n < DRAIN_ROUNDS && core.alloc.is_draining() => Some(DRAIN_PAUSE),
        Some(_) => None,
    }
}

/// Are there unlinked files that are not open here, other frees to come, or dirty data?
fn is_coming_back(core: &Core) -> bool {
    let mut coming = core.pool.dirty_bytes() > 0;
    let _slot = core.slot_lock.lock();
    let looked = core.slot_tree.scan(&*core.store, ItemKey::new(ItemKind::Orphan, 0), None, &mut |key, _| {
        let open = || core.nodes.find(InodeNo(key.id)).is_some_and(|n| n.is_open());
        coming |= key.kind != ItemKind::Orphan || !open();
        if coming { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    looked.is_ok() && coming
}

fn next(core: Arc<Core>, want: Want, mut rest: Vec<(Whose, AgNo)>, number: usize, then: Then) {
    if rest.last().is_none_or(|(whose, _)| *whose == Whose::Others) {
        core.alloc.set_home_full(true);
        // What is held of others' groups comes before asking for more.
        match core.alloc.reserve(want) {
            Err(Error::NeedSpace) => {}
            got => return then(got),
        }
    }
    let Some((_, ag)) = rest.pop() else { return nothing_left(&core, want, number, then) };
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
                    Err(Error::NeedSpace) => next(core, want, rest, number, then),
                    Err(e) => then(Err(e)),
                }
            }
        }),
    );
}

/// Whose a group is; the order of asking.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Whose {
    Ours,
    /// A slot's that has no host now; it is ours to take.
    Nobodys,
    Others,
}

/// Groups worth asking, best first. Those of a host that is silent are left out: it may be dead,
/// and nobody answers for them until the cluster has recovered.
fn candidates(core: &Core) -> Vec<(Whose, AgNo)> {
    let members = core.cluster.membership();
    let held = core.alloc.held();
    let slots = core.slots;
    let rank = |ag: AgNo| match members.owner_of(ag).0 {
        Owner::Master(slot) if slot == members.me => Some(Whose::Ours),
        Owner::Adopter(slot) if slot == members.me && is_dealt_to(ag, slot, slots) => Some(Whose::Ours),
        Owner::Adopter(slot) if slot == members.me => Some(Whose::Nobodys),
        Owner::Master(slot) | Owner::Adopter(slot) if !members.is_silent(slot) => Some(Whose::Others),
        _ => None,
    };
    let mut groups: Vec<(Whose, std::cmp::Reverse<u64>, AgNo)> = (0..core.geometry.ag_count)
        .map(AgNo)
        .filter(|ag| !held.contains(ag))
        .filter_map(|ag| Some((rank(ag)?, std::cmp::Reverse(core.statfs.free_hint(core, ag)), ag)))
        .collect();
    groups.sort();
    groups.into_iter().map(|(whose, _, ag)| (whose, ag)).collect()
}

/// Was the group this slot's when the volume was made?
fn is_dealt_to(ag: AgNo, slot: SlotId, slots: u16) -> bool {
    ag.0 % u32::from(slots.max(1)) == u32::from(slot.0)
}
