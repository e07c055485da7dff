//! Machines of which something is known while their last mount is dead: it need not be kept off by a command,
//! which would be run against a machine that is well.
//!
//! Claims in the lobby tell. One that is written anew while we look, twice, is from a mount that lives now: a
//! write that was held up on its way shows as one change at most. What counts is what moves after the other
//! mount was known to be silent, for a machine that lived before it proves nothing.
//!
//! And a machine that knows its own last mounts to be over says so, by their incarnations, in each claim, and
//! when it gives up. That needs no second look: it was written when those had lived, by who knew that they do not
//! any more, and stays true however late it lands.

use crate::base::{Incarnation, Result, SlotId};
use crate::cluster::class::Wanted;
use crate::cluster::fencer::Victim;
use crate::cluster::join::Joiner;
use crate::cluster::node::Node;
use crate::cluster::timing::Timing;
use crate::cluster::view::{bit, live, slot_of, slots};
use crate::format::cluster::heartbeat::{DeviceFile, FenceTrouble};
use crate::format::cluster::lobby::{ClaimKind, OVER_MAX};
use crate::format::cluster::{Claim, FenceClass, Heartbeat, SlotView, View};
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
    /// When a claim of its machine first changed: it may ask, and be slow.
    shown: Option<Duration>,
    over: bool,
    /// Who asks with its machine's identity under another name, and when that last moved.
    alias: Option<(String, Duration)>,
}

impl Look {
    /// The first one.
    pub fn begin(now: Duration, lobby: &[Option<Claim>]) -> Look {
        let stamp =
            |c: &Option<Claim>| c.as_ref().map_or((Incarnation(0), 0, 0), |c| (c.incarnation, c.sequence, 0));
        let cells = lobby.iter().map(stamp).collect();
        Look { since: now, cells, again: None, shown: None, over: false, alias: None }
    }

    /// Another one at `now`, for `victim`. A cell that cannot be read tells nothing.
    pub fn see(&mut self, now: Duration, lobby: &[Option<Claim>], victim: &Victim) {
        self.over |= lobby.iter().flatten().any(|claim| claim.over.contains(&victim.incarnation));
        for (cell, claim) in self.cells.iter_mut().zip(lobby) {
            let Some(claim) = claim else { continue };
            let (incarnation, sequence, moves) = *cell;
            *cell = match incarnation == claim.incarnation {
                true if claim.sequence <= sequence => continue,
                true => (incarnation, claim.sequence, moves + 1),
                // Its first write was not seen to be late, nor to be in time.
                false => (claim.incarnation, claim.sequence, 0),
            };
            let asks = claim.kind != ClaimKind::None && claim.incarnation != victim.incarnation;
            let is_its = claim.host == victim.host && ![claim.host, claim.boot].contains(&[0; 16]);
            let named = claim.name == victim.name;
            match cell.2 >= MOVES {
                _ if !asks || !is_its => {}
                true if named => self.again = Some(Again { boot: claim.boot, file: claim.file }),
                true => self.alias = Some((claim.name.clone(), now)),
                false if named => self.shown = self.shown.or(Some(now)),
                false => {}
            }
        }
    }

    /// For long enough to see whoever asks, or to know enough. A store may be so slow that a claim is rarely written.
    pub fn is_done(&self, now: Duration, timing: &Timing) -> bool {
        let may_be_slow = self.again.is_none() && self.shown.is_some_and(|at| now < at + timing.suspicion);
        self.over || now >= self.since + timing.heartbeat * LOOKS && !may_be_slow
    }

    /// The machine of the dead mount, if it mounts again.
    pub fn again(&self) -> Option<Again> {
        self.again
    }

    /// `victim`, with what is known of its machine. Who has not asked for `long` may have given up.
    pub fn tell(&self, now: Duration, long: Duration, victim: Victim) -> Victim {
        let alias =
            self.alias.as_ref().filter(|(_, moved)| now < *moved + long).map(|(name, _)| name.clone());
        Victim { again: self.again, over: self.over, alias, ..victim }
    }
}

/// The looks at the lobby, by the mounts that they are for.
pub type Looks = BTreeMap<(SlotId, Incarnation), Look>;

impl Node {
    /// Those of `victims` for whom the lobby was looked at, with what it showed.
    pub fn look_for_machines(&mut self, victims: Vec<Victim>) -> Vec<Victim> {
        let now = self.clock.now();
        let looks = &mut self.takeover.looks;
        looks.retain(|(slot, inc), _| victims.iter().any(|v| (v.slot, v.incarnation) == (*slot, *inc)));
        self.takeover.blind = None;
        let Some(first) = victims.first() else { return victims };
        // While it cannot be read nothing begins; what is under way goes on.
        let lobby = self.disk.read_lobby();
        if let Err(e) = &lobby {
            let error = format!("who asks cannot be seen, the lobby is unreadable: {e}");
            self.takeover.blind = Some(FenceTrouble { slot: first.slot, attempts: 1, error });
        }
        let timing = self.timing;
        let seen = |victim: Victim| {
            let key = (victim.slot, victim.incarnation);
            if let Ok(lobby) = &lobby {
                looks.entry(key).or_insert_with(|| Look::begin(now, lobby)).see(now, lobby, &victim);
            }
            let look = looks.get(&key).filter(|look| look.is_done(now, &timing))?;
            Some(look.tell(now, timing.suspicion, victim))
        };
        victims.into_iter().filter_map(seen).collect()
    }
}

/// Members that the lobby says to be over, with the beat that each had written when that was first read. Who said so
/// was mistaken, or is another machine with the identity of theirs; nobody may believe it when they die.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doubts(BTreeMap<Incarnation, u64>);

impl Doubts {
    /// Those of `said` that live: `me`, and who has beaten twice since; a late write shows as one beat at most.
    fn refuted(
        &mut self,
        said: &[Incarnation],
        view: &View,
        me: SlotId,
        row: &[Option<Heartbeat>],
    ) -> Vec<Incarnation> {
        let doubts = &mut self.0;
        doubts.retain(|incarnation, _| said.contains(incarnation));
        let members = live(view);
        let mut lives = |incarnation: &Incarnation| {
            let slot = slot_of(view, *incarnation).filter(|slot| members & bit(*slot) != 0);
            let cell = slot.and_then(|slot| row.get(usize::from(slot.0))?.as_ref());
            let Some(beat) = cell.filter(|beat| beat.incarnation == *incarnation) else { return false };
            slot == Some(me) || beat.counter >= *doubts.entry(*incarnation).or_insert(beat.counter) + 2
        };
        said.iter().copied().filter(|incarnation| lives(incarnation)).collect()
    }

    /// Empty the cells in which something is said that is not so. Whoever asks there writes its claim again.
    pub fn clear_refuted(&mut self, node: &Node, lobby: &[Option<Claim>]) -> Result<()> {
        let said: Vec<_> = lobby.iter().flatten().flat_map(|claim| claim.over.iter().copied()).collect();
        let refuted = self.refuted(&said, &node.view, node.slot, &node.row);
        let is_wrong = |claim: &Claim| claim.over.iter().any(|incarnation| refuted.contains(incarnation));
        for (cell, claim) in (0..).zip(lobby) {
            let Some(claim) = claim.clone().filter(is_wrong) else { continue };
            let name = claim.name.clone();
            let over = claim.over.iter().copied().filter(|incarnation| !refuted.contains(incarnation));
            let (kind, sequence) = (ClaimKind::None, claim.sequence + 1);
            let cleared = Claim { over: over.collect(), kind, sequence, ..claim.clone() };
            // Meanwhile another's claim may stand there, or nobody may have waited for this host.
            if node.disk.read_claim(cell)?.as_ref() != Some(&claim) || !node.groups.is_permitted() {
                continue;
            }
            node.disk.write_claim(cell, &cleared)?;
            tracing::error!(
                "{name} says in the lobby that a mount is over that lives: two machines have its name and one \
                 /etc/machine-id, by which machines are told apart: give each one its own"
            );
        }
        Ok(())
    }
}

impl Joiner {
    /// Look at the lobby for as long as it takes, with a claim that does not stand still; `looks` go on from before.
    pub fn look_for_machines(
        &mut self,
        claimed: SlotId,
        victims: &[Victim],
        looks: &mut Looks,
    ) -> Result<()> {
        let (timing, begun) = (self.options.timing, self.options.clock.now());
        let mut lobby = self.disk.read_lobby()?;
        loop {
            let now = self.options.clock.now();
            for victim in victims {
                let look = looks.entry((victim.slot, victim.incarnation));
                look.or_insert_with(|| Look::begin(now, &lobby)).see(now, &lobby, victim);
            }
            // Also those that were looked at before may have begun to ask since.
            let long = now >= begun + timing.heartbeat * LOOKS;
            let done = |look: &Look| look.over || long && look.is_done(now, &timing);
            if victims.iter().all(|v| looks.get(&(v.slot, v.incarnation)).is_some_and(done)) {
                return Ok(());
            }
            self.stand(claimed, timing.heartbeat / 2)?;
            lobby = self.disk.read_lobby()?;
        }
    }

    /// C2: mounts in the view that were this very machine's, and are over for certain: their heartbeats stand still,
    /// and this is another boot of it, or has the device that they had to itself.
    pub fn over(&self) -> Vec<Incarnation> {
        let (options, others) = (&self.options, self.others());
        let is_over = |(slot, member): &(SlotId, &SlotView)| {
            // To the last poll: a read that hangs shows nobody's silence.
            if others & bit(*slot) == 0 || self.watch.silence(*slot) < options.timing.wait() {
                return false;
            }
            let known = self.known.of(*slot, member.incarnation).filter(|known| !known.lived);
            let Some(beat) = known.map(|known| &known.beat) else { return false };
            let named = (beat.host, &beat.name) == (options.host, &options.name);
            let anew = beat.boot != options.boot && ![beat.boot, options.boot].contains(&[0; 16]);
            let alone = beat.boot == options.boot && beat.file == options.file && options.file.rdev != 0;
            named && (anew || alone && options.prove && self.watch.is_as_found(*slot))
        };
        slots(&self.view).filter(is_over).map(|(_, member)| member.incarnation).take(OVER_MAX).collect()
    }

    /// May this mount write claims that tell of it, where hosts are kept off by a command? On a device that is
    /// reserved nobody writes unregistered.
    pub fn may_tell(&self) -> bool {
        self.options.fence.wanted == Wanted::Class(FenceClass::Command)
            && self.others() != 0
            && (self.view.fence != FenceClass::Reservation as u8 || self.is_device_free())
    }

    /// Say of `over` that they are, now that we ask no more. The next one that mounts need not have them kept off: the
    /// command would hit this machine, which is well.
    pub fn leave_word(&self, mut over: Vec<Incarnation>) -> Result<()> {
        if over.is_empty() || !self.may_tell() {
            return Ok(());
        }
        let lobby = self.disk.read_lobby()?;
        let stands = |incarnation: &Incarnation| {
            let mut cells = lobby.iter().skip(usize::from(Joiner::CELLS.start)).flatten();
            cells.any(|claim| claim.over.contains(incarnation))
        };
        over.retain(|incarnation| !stands(incarnation));
        if over.is_empty() {
            return Ok(());
        }
        let claim = Claim { over, sequence: 1, ..self.new_claim(ClaimKind::None) };
        match self.free_cell(Joiner::CELLS, &lobby) {
            Some(cell) => self.disk.write_claim(cell, &claim),
            None => Ok(()),
        }
    }
}
