//! A member's look at the lobby: letting joiners in.

use crate::base::{Incarnation, Result, SlotId};
use crate::cluster::anew::Doubts;
use crate::cluster::former::victim_of;
use crate::cluster::node::Node;
use crate::cluster::view::{admit, bit, dead, inherit, live, slot_of, slots};
use crate::format::cluster::heartbeat::Refusal;
use crate::format::cluster::lobby::ClaimKind;
use crate::format::cluster::view::PROTOCOL_MIN;
use crate::format::cluster::{Claim, FenceClass, SlotView, View};

/// What the lobby showed last time. Only claims that moved since are from joiners that live.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lobby {
    seen: Option<Vec<(Incarnation, u64)>>,
    doubts: Doubts,
}

impl Lobby {
    /// The claims in `cells` that are new or were renewed since the last look; none at the first one.
    fn fresh(&mut self, cells: Vec<Option<Claim>>) -> Vec<(u16, Claim)> {
        let last = self.seen.take();
        let mut now = Vec::with_capacity(cells.len());
        let mut fresh = Vec::new();
        for (i, cell) in cells.into_iter().enumerate() {
            let before = last.as_ref().map(|l| l[i]);
            let Some(claim) = cell else {
                now.push(before.unwrap_or_default());
                continue;
            };
            let stamp = (claim.incarnation, claim.sequence);
            now.push(stamp);
            if claim.kind != ClaimKind::None && before.is_some_and(|b| b != stamp) {
                fresh.push((i as u16, claim));
            }
        }
        self.seen = Some(now);
        fresh
    }

    /// Look once per beat; the lowest member that answers lets in, the others keep away.
    pub fn attend(&mut self, node: &mut Node) -> Result<()> {
        let answering = live(&node.view) & !node.silent();
        if answering & (bit(node.slot) - 1) != 0 {
            self.seen = None;
            return Ok(());
        }
        let me = node.slot;
        node.propose(&mut |view| inherit(view, me))?;
        let cells = node.disk.read_lobby()?;
        self.doubts.clear_refuted(node, &cells)?;
        let claims = self.fresh(cells);
        // Nobody may read the volume before the dead hosts' journals are replayed.
        if node.is_recovering() || dead(&node.view) != 0 {
            return Ok(());
        }
        let protocol = node.view.protocol.max(PROTOCOL_MIN);
        let speaks = |c: &Claim| (c.protocols.0..=c.protocols.1).contains(&protocol);
        let (able, unable): (Vec<_>, Vec<_>) =
            claims.into_iter().partition(|(_, c)| c.kind == ClaimKind::First || speaks(c));
        if let Some((_, claim)) = unable.first() {
            tracing::warn!(name = %claim.name, "refused: speaks protocols {:?}", claim.protocols);
            node.beat.refused = Some((claim.incarnation, Refusal::Protocol));
            node.ack_due = true;
        }
        // A slot that somebody claims as if there were no member is left alone while he lasts.
        let claimed = able.iter().filter(|(_, c)| c.kind == ClaimKind::First);
        let usable = claimed.fold(node.usable, |mask, (cell, _)| mask & !bit(SlotId(*cell)));
        let joiners: Vec<Claim> =
            able.into_iter().map(|(_, c)| c).filter(|c| c.kind == ClaimKind::Join).collect();
        let joiners = match node.view.fence == FenceClass::Command as u8 {
            true => one_of_each_machine(node, joiners),
            false => joiners,
        };
        let joiners: Vec<Incarnation> = joiners.into_iter().map(|c| c.incarnation).collect();
        if joiners.is_empty() { Ok(()) } else { let_in(node, &joiners, usable) }
    }
}

/// A command tells machines apart by their identity alone. So a machine is let in once its last mount is
/// recovered, or the command would be run against a member; and of two with one identity the later one is to
/// find the other at work, and to go away.
fn one_of_each_machine(node: &Node, joiners: Vec<Claim>) -> Vec<Claim> {
    let members = live(&node.view);
    let host = |(slot, member): (SlotId, &SlotView)| {
        let cell = node.row.get(usize::from(slot.0)).and_then(|cell| cell.as_ref());
        victim_of(&node.disk, slot, member, cell, &node.known).host
    };
    let mut taken: Vec<_> = slots(&node.view).filter(|(s, _)| members & bit(*s) != 0).map(host).collect();
    if taken.contains(&[0; 16]) {
        return vec![]; // who has not said yet which machine it is
    }
    let mut first = |claim: &Claim| {
        let is_new = !taken.contains(&claim.host);
        taken.push(claim.host);
        is_new
    };
    joiners.into_iter().filter(|claim| first(claim)).collect()
}

fn members(view: &View) -> impl Iterator<Item = Incarnation> {
    let live = live(view);
    slots(view).filter(move |(slot, _)| live & bit(*slot) != 0).map(|(_, member)| member.incarnation)
}

fn let_in(node: &mut Node, joiners: &[Incarnation], usable: u64) -> Result<()> {
    let silent = node.silent();
    let mut refused = None;
    // Whom another member has let in meanwhile may be of the same identity: another look, then.
    let known: Vec<Incarnation> = members(&node.view).collect();
    let command = node.view.fence == FenceClass::Command as u8;
    node.propose(&mut |view| {
        if command && members(view).any(|incarnation| !known.contains(&incarnation)) {
            return None;
        }
        let missing: Vec<_> = joiners.iter().copied().filter(|j| slot_of(view, *j).is_none()).collect();
        if missing.is_empty() || dead(view) != 0 {
            return None;
        }
        match admit(view, &missing, usable, silent) {
            Ok(next) => Some(next),
            Err(why) => {
                refused = Some((missing[0], why));
                None
            }
        }
    })?;
    if refused.is_some() {
        node.beat.refused = refused;
        node.ack_due = true;
    }
    Ok(())
}
