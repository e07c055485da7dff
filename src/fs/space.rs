//! Getting the right to allocate in one more group, holding nothing meanwhile.
//!
//! Own groups come first (their locks cost nothing), then groups of others, the emptiest first by
//! their headers on the disk, which may be a few seconds old. Only when every group has been held
//! and had nothing is the volume full.

use super::*;
use crate::alloc::Want;
use crate::cluster::Owner;

type Then = Box<dyn FnOnce(Result<Reservation>) + Send>;

/// Get a reservation from a group that is not held yet.
pub fn acquire(core: &Arc<Core>, want: Want, then: Then) {
    let mut groups = candidates(core);
    groups.reverse();
    next(core.clone(), want, groups, then);
}

fn next(core: Arc<Core>, want: Want, mut rest: Vec<AgNo>, then: Then) {
    let Some(ag) = rest.pop() else {
        // Dirty data may hold more than it needs, and frees may not be final yet.
        core.writeback.flush_all_soon();
        return then(core.alloc.reserve_last(want));
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
