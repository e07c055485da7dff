//! F1 on a block device: is the process gone that was a mount of this very machine? Pure.
//!
//! It had the boot and the device node of this process, which has had that node's presence lock since before it first
//! looked at the heartbeats: nobody else here has it open. What lives all the same is another machine, which goes on
//! from the same snapshot of memory, and its heartbeat moves. One look, or a few at the wrong moment, do not show
//! that. So nothing is believed before that cell has stood still, under polls without a gap, for so long that a
//! mount which lives would have beaten.
//!
//! An image file needs none of that: the byte range of a slot is held by a mount of that very file, or by none.

use crate::cluster::member::Watch;
use crate::format::cluster::Heartbeat;
use crate::format::cluster::heartbeat::DeviceFile;

/// Heartbeats missed before a proof of death is looked for, or believed.
pub const MISSED: u32 = 3;

/// Is the process of a mount gone?
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proof {
    /// That cannot be known here.
    None,
    /// It may be proven yet: ask again after more polls. Decides nothing.
    Later,
    /// For certain.
    Gone,
}

/// Is the mount gone that wrote `cell`, under the boot of this process? `own` is what this process has opened, and
/// has the presence lock of.
pub fn of_device(cell: &Heartbeat, own: &DeviceFile, watch: &Watch) -> Proof {
    match own.rdev != 0 && cell.file == *own && watch.is_as_found(cell.slot) {
        false => Proof::None,
        true if watch.has_missed(cell.slot, MISSED) => Proof::Gone,
        true => Proof::Later,
    }
}

/// Is the heartbeat one of a machine that only looks like this one, because both go on from the same snapshot of
/// memory? Nobody else here has the device file as long as we have its presence lock: what moves is not from here.
pub fn is_of_a_copy(cell: &Heartbeat, own: &DeviceFile, watch: &Watch) -> bool {
    own.rdev != 0 && cell.file == *own && !watch.is_as_found(cell.slot)
}

/// What is said of it.
pub const COPY: &str = "bears the boot and the device of this machine, which has no other mount of it: another machine \
    was resumed from the same snapshot. Nobody is taken for gone from here any more";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Incarnation, SlotId};
    use crate::cluster::timing::Timing;
    use std::time::Duration;

    const T: Timing = Timing::TEST;
    const OWN: DeviceFile = DeviceFile { dev: 1, ino: 2, rdev: 7 };

    fn beat(counter: u64) -> Heartbeat {
        Heartbeat { slot: SlotId(0), incarnation: Incarnation(7), counter, file: OWN, ..Heartbeat::default() }
    }

    /// Proofs after looks at these times (in quarters of a heartbeat), each of which showed this counter.
    fn proofs(looks: &[(u32, u64)]) -> Vec<Proof> {
        let mut watch = Watch::new(T, 1);
        let look = |(at, counter): &(u32, u64)| {
            watch.observe(T.heartbeat * *at / 4, &[Some(beat(*counter))]);
            of_device(&beat(*counter), &OWN, &watch)
        };
        looks.iter().map(look).collect()
    }

    #[test]
    fn one_look_proves_nothing_three_missed_beats_do() {
        let looks: Vec<_> = (0..20).map(|at| (at, 5)).collect();
        let expected: Vec<_> = (0..20).map(|at| if at < 12 { Proof::Later } else { Proof::Gone }).collect();
        assert_eq!(proofs(&looks), expected);
    }

    #[test]
    fn whoever_moves_is_never_gone() {
        for phase in 0..4 {
            let looks: Vec<_> = (0..200).map(|at| (at, u64::from((at + phase) / 4))).collect();
            let proofs = proofs(&looks);
            assert!(!proofs.contains(&Proof::Gone), "{phase}: {proofs:?}");
            assert_eq!(proofs[4..].iter().max(), Some(&Proof::None), "{phase}: {proofs:?}");
        }
        // Also when it stands still again.
        let looks: Vec<_> = (0..40).map(|at| (at, u64::from(at > 9))).collect();
        assert_eq!(proofs(&looks)[10..].iter().max(), Some(&Proof::None));
    }

    #[test]
    fn a_gap_begins_the_count_anew() {
        let gap = 9;
        let looks: Vec<_> = (0..12).chain(11 + gap..11 + gap + 13).map(|at| (at, 5)).collect();
        let proofs = proofs(&looks);
        assert_eq!(proofs.iter().filter(|proof| **proof == Proof::Gone).count(), 1, "{proofs:?}");
        assert_eq!(proofs.last(), Some(&Proof::Gone));
    }

    #[test]
    fn what_a_slow_look_shows_is_as_old_as_its_beginning() {
        let mut watch = Watch::new(T, 1);
        let row = [Some(beat(5))];
        watch.observe(Duration::ZERO, &row);
        watch.look(T.heartbeat, T.heartbeat * 2, &row);
        watch.look(T.heartbeat * 2, T.heartbeat * 4, &row);
        assert_eq!(of_device(&beat(5), &OWN, &watch), Proof::Later, "it may have beaten since");
        watch.look(T.heartbeat * 4, T.heartbeat * 5, &row);
        assert_eq!(of_device(&beat(5), &OWN, &watch), Proof::Gone);
    }

    #[test]
    fn what_another_device_node_shows_proves_nothing() {
        let mut watch = Watch::new(T, 1);
        (0..40).for_each(|at| watch.observe(T.heartbeat * at / 4, &[Some(beat(5))]));
        for file in
            [DeviceFile { ino: 3, ..OWN }, DeviceFile { rdev: 8, ..OWN }, DeviceFile { rdev: 0, ..OWN }]
        {
            assert_eq!(of_device(&Heartbeat { file, ..beat(5) }, &OWN, &watch), Proof::None);
            assert_eq!(of_device(&beat(5), &file, &watch), Proof::None);
        }
    }
}
