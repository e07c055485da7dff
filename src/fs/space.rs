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
    let mut groups = candidates(core, want);
    groups.reverse();
    next(core.clone(), want, groups, then);
}

fn next(core: Arc<Core>, want: Want, mut rest: Vec<AgNo>, then: Then) {
    let Some(ag) = rest.pop() else {
        return then(core.alloc.reserve_anywhere(want).map_err(|_| Error::NoSpace));
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

/// Groups worth asking, best first.
fn candidates(core: &Core, want: Want) -> Vec<AgNo> {
    let members = core.cluster.membership();
    let held = core.alloc.held();
    let mut groups: Vec<(u8, std::cmp::Reverse<u64>, AgNo)> = (0..core.geometry.ag_count)
        .map(AgNo)
        .filter(|ag| !held.contains(ag))
        .map(|ag| {
            let rank = match members.owner_of(ag) {
                Owner::Me => 0,
                Owner::Adoptable => 1,
                Owner::Other(_) => 2,
                Owner::Silent(_) => 3,
            };
            (rank, std::cmp::Reverse(core.statfs.free_hint(core, ag)), ag)
        })
        .collect();
    groups.sort();
    let _ = want;
    groups.into_iter().filter(|(rank, ..)| *rank < 3).map(|(.., ag)| ag).collect()
}
