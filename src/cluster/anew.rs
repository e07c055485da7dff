//! Machines that ask to be let in again while their last mount is dead: it need not be kept off by a command,
//! which would be run against a machine that is well.
//!
//! Claims in the lobby tell. One that is written anew while we look, twice, is from a mount that lives now: a
//! write that was held up on its way shows as one change at most. What counts is what moves after the other
//! mount was known to be silent, for a machine that lived before it proves nothing.

use crate::base::{Incarnation, Result, SlotId};
use crate::cluster::fencer::Victim;
use crate::cluster::join::Joiner;
use crate::cluster::node::Node;
use crate::format::cluster::Claim;
use crate::format::cluster::heartbeat::DeviceFile;
use crate::format::cluster::lobby::ClaimKind;
use std::collections::BTreeMap;
use std::time::Duration;

/// Heartbeats for which the lobby is looked at before a command is run.
const LOOKS: u32 = 4;
/// Changes of a claim after which its mount is known to live.
const MOVES: u32 = 2;

/// A machine that mounts the volume at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Again {
    /// Which boot of it.
    pub boot: [u8; 16],
    /// What it has opened; of a block device, with its presence lock.
    pub file: DeviceFile,
}

/// What the lobby has shown since a mount was first known to be dead.
#[derive(Clone, Debug)]
pub struct Look {
    since: Duration,
    /// Of each cell: who wrote it, how often, and how many times that changed.
    cells: Vec<(Incarnation, u64, u32)>,
    again: Option<Again>,
}

impl Look {
    /// The first one.
    pub fn begin(now: Duration, lobby: &[Option<Claim>]) -> Look {
        let stamp =
            |c: &Option<Claim>| c.as_ref().map_or((Incarnation(0), 0, 0), |c| (c.incarnation, c.sequence, 0));
        Look { since: now, cells: lobby.iter().map(stamp).collect(), again: None }
    }

    /// Another one, for `victim`. A cell that cannot be read tells nothing.
    pub fn see(&mut self, lobby: &[Option<Claim>], victim: &Victim) {
        for (cell, claim) in self.cells.iter_mut().zip(lobby) {
            let Some(claim) = claim else { continue };
            let (incarnation, sequence, moves) = *cell;
            *cell = match incarnation == claim.incarnation {
                true if claim.sequence <= sequence => continue,
                true => (incarnation, claim.sequence, moves + 1),
                // Its first write was not seen to be late, nor to be in time.
                false => (claim.incarnation, claim.sequence, 0),
            };
            let is_again = claim.kind != ClaimKind::None
                && claim.incarnation != victim.incarnation
                && (claim.host, &claim.name) == (victim.host, &victim.name)
                && ![claim.host, claim.boot].contains(&[0; 16]);
            if cell.2 >= MOVES && is_again {
                self.again = Some(Again { boot: claim.boot, file: claim.file });
            }
        }
    }

    /// For long enough to see whoever asks.
    pub fn is_done(&self, now: Duration, heartbeat: Duration) -> bool {
        now >= self.since + heartbeat * LOOKS
    }

    /// The machine of the dead mount, if it mounts again.
    pub fn again(&self) -> Option<Again> {
        self.again
    }
}

/// The looks of a member, by the mounts that they are for.
pub type Looks = BTreeMap<(SlotId, Incarnation), Look>;

impl Node {
    /// Those of `victims` for whom the lobby was looked at, with what it showed.
    pub fn look_for_machines(&mut self, victims: Vec<Victim>) -> Vec<Victim> {
        let now = self.clock.now();
        let looks = &mut self.takeover.looks;
        looks.retain(|(slot, inc), _| victims.iter().any(|v| (v.slot, v.incarnation) == (*slot, *inc)));
        if victims.is_empty() {
            return victims;
        }
        // While it cannot be read nothing begins; what is under way goes on.
        let lobby = self.disk.read_lobby().ok();
        let heartbeat = self.timing.heartbeat;
        let seen = |victim: Victim| {
            let key = (victim.slot, victim.incarnation);
            if let Some(lobby) = &lobby {
                looks.entry(key).or_insert_with(|| Look::begin(now, lobby)).see(lobby, &victim);
            }
            let look = looks.get(&key).filter(|look| look.is_done(now, heartbeat))?;
            Some(Victim { again: look.again(), ..victim })
        };
        victims.into_iter().filter_map(seen).collect()
    }
}

impl Joiner {
    /// Look at the lobby for as long as it takes, with a claim that does not stand still.
    pub fn look_for_machines(
        &mut self,
        claimed: SlotId,
        victims: &[Victim],
    ) -> Result<BTreeMap<SlotId, Again>> {
        let begun = self.options.clock.now();
        let lobby = self.disk.read_lobby()?;
        let mut looks: Vec<_> = victims.iter().map(|v| (v, Look::begin(begun, &lobby))).collect();
        while self.options.clock.now() < begun + self.options.timing.heartbeat * LOOKS {
            self.stand(claimed, self.options.timing.heartbeat / 2)?;
            let lobby = self.disk.read_lobby()?;
            looks.iter_mut().for_each(|(victim, look)| look.see(&lobby, victim));
        }
        Ok(looks.iter().filter_map(|(v, look)| Some((v.slot, look.again()?))).collect())
    }
}
