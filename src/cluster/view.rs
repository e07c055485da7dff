//! What may follow a view. Pure: each function makes the next view (epoch + 1) from a decided one.

use crate::base::{Epoch, Incarnation, SlotId};
use crate::format::cluster::heartbeat::Refusal;
use crate::format::cluster::{Adopter, FenceClass, SlotState, SlotView, View};

/// Bit of `slot` in a slot mask.
pub fn bit(slot: SlotId) -> u64 {
    1 << slot.0
}

fn next(view: &View) -> View {
    View { epoch: Epoch(view.epoch.0 + 1), ..view.clone() }
}

/// The slots of `view` with their numbers.
pub fn slots(view: &View) -> impl Iterator<Item = (SlotId, &SlotView)> {
    view.slots.iter().enumerate().map(|(i, s)| (SlotId(i as u16), s))
}

/// Mask of the slots whose state satisfies `test`.
pub fn mask(view: &View, test: impl Fn(&SlotState) -> bool) -> u64 {
    slots(view).filter(|(_, s)| test(&s.state)).fold(0, |m, (slot, _)| m | bit(slot))
}

/// Mask of the members.
pub fn live(view: &View) -> u64 {
    mask(view, |s| matches!(s, SlotState::Live { .. }))
}

/// Mask of the excluded slots whose journals are not replayed.
pub fn dead(view: &View) -> u64 {
    mask(view, |s| matches!(s, SlotState::Dead { .. }))
}

/// Mask of the excluded slots that `me` sees to.
pub fn dead_of(view: &View, me: SlotId) -> u64 {
    mask(view, |s| *s == SlotState::Dead { adopter: me })
}

/// Is this mount a member?
pub fn is_member(view: &View, slot: SlotId, incarnation: Incarnation) -> bool {
    let slot = view.slots.get(usize::from(slot.0));
    slot.is_some_and(|s| matches!(s.state, SlotState::Live { .. }) && s.incarnation == incarnation)
}

/// The slot that this mount has as a member.
pub fn slot_of(view: &View, incarnation: Incarnation) -> Option<SlotId> {
    slots(view).find(|(slot, _)| is_member(view, *slot, incarnation)).map(|(slot, _)| slot)
}

/// The slot a joiner gets beside living members: clean ones whose adopter answers first (their
/// adopter's acknowledgement comes at once), then empty ones, then clean ones of a silent adopter.
fn free_slot(view: &View, usable: u64, silent: u64) -> Option<SlotId> {
    let rank = |(slot, s): (SlotId, &SlotView)| {
        let rank = match s.state {
            _ if usable & bit(slot) == 0 => return None,
            SlotState::Live { .. } | SlotState::Dead { .. } => return None,
            SlotState::Clean { adopter: Adopter::Slot(a) } if silent & bit(a) != 0 => 2,
            SlotState::Clean { .. } => 0,
            SlotState::Empty => 1,
        };
        Some((rank, slot))
    };
    slots(view).filter_map(rank).min().map(|(_, slot)| slot)
}

/// Let `joiners` in, as many as have a slot among `usable`.
///
/// # Errors
/// [`Refusal::NoSlot`] if not even the first gets one; then there is no next view.
pub fn admit(view: &View, joiners: &[Incarnation], usable: u64, silent: u64) -> Result<View, Refusal> {
    let mut to = next(view);
    let mut added = Vec::new();
    for incarnation in joiners {
        let Some(slot) = free_slot(&to, usable, silent) else { break };
        let former = match to.slots[usize::from(slot.0)].state {
            SlotState::Clean { adopter: Adopter::Slot(a) } => Some(a),
            _ => None,
        };
        to.slots[usize::from(slot.0)] =
            SlotView { state: SlotState::Live { former }, incarnation: *incarnation };
        added.push(slot);
    }
    let lowest = added.into_iter().min().ok_or(Refusal::NoSlot)?;
    for s in &mut to.slots {
        if s.state == (SlotState::Clean { adopter: Adopter::NextJoiner }) {
            s.state = SlotState::Clean { adopter: Adopter::Slot(lowest) };
        }
    }
    Ok(to)
}

/// The slot a first mount takes: clean, then empty, then one that needs replay itself.
pub fn first_slot(view: &View, usable: u64) -> Option<SlotId> {
    let rank = |s: &SlotView| match s.state {
        SlotState::Clean { .. } => 0,
        SlotState::Empty => 1,
        SlotState::Live { .. } | SlotState::Dead { .. } => 2,
    };
    slots(view)
        .filter(|(slot, _)| usable & bit(*slot) != 0)
        .min_by_key(|(slot, s)| (rank(s), *slot))
        .map(|x| x.0)
}

/// The first mount of a volume without living members: `me` is the only member, every former
/// member is excluded and `me` sees to it, clean slots are `me`'s.
pub fn first(view: &View, me: SlotId, incarnation: Incarnation) -> View {
    let mut to = next(view);
    for (i, s) in to.slots.iter_mut().enumerate() {
        s.state = match s.state {
            _ if i == usize::from(me.0) => SlotState::Live { former: None },
            SlotState::Live { .. } | SlotState::Dead { .. } => SlotState::Dead { adopter: me },
            SlotState::Clean { .. } => SlotState::Clean { adopter: Adopter::Slot(me) },
            SlotState::Empty => SlotState::Empty,
        };
    }
    to.slots[usize::from(me.0)].incarnation = incarnation;
    to
}

/// Who of `members` sees to the dead. All of them are always one's to see to: they may have written the
/// same blocks, and one may have been moving what another had left to free when it died, so their journals
/// are for one host to replay, one after the other.
fn adopter(view: &View, members: u64) -> Option<SlotId> {
    let of = |s: &SlotView| match s.state {
        SlotState::Dead { adopter } if members & bit(adopter) != 0 => Some(adopter),
        _ => None,
    };
    view.slots.iter().find_map(of)
}

/// The mounts of `suspects` are members no more, and their slots are for the member to see to that sees to
/// dead hosts already, else for `me`; likewise those of the dead whose adopter is no member (any more). The
/// clean slots that a suspect looks after stay with it until it is recovered: an adoption of its may be on
/// its way. `None` if nothing changes.
pub fn exclude(view: &View, me: SlotId, suspects: &[(SlotId, Incarnation)]) -> Option<View> {
    if live(view) & bit(me) == 0 {
        return None;
    }
    let suspected =
        |slot| suspects.iter().any(|(s, i)| *s == slot && slot != me && is_member(view, slot, *i));
    let members = slots(view).map(|(slot, _)| slot).filter(|s| live(view) & bit(*s) != 0 && !suspected(*s));
    let members = members.fold(0, |mask, slot| mask | bit(slot));
    let adopter = adopter(view, members).unwrap_or(me);
    let mut to = next(view);
    let mut any = false;
    for (i, s) in to.slots.iter_mut().enumerate() {
        let excluded = match s.state {
            SlotState::Live { .. } => suspected(SlotId(i as u16)),
            SlotState::Dead { adopter: before } => members & bit(before) == 0,
            SlotState::Clean { .. } | SlotState::Empty => false,
        };
        if excluded {
            s.state = SlotState::Dead { adopter };
            any = true;
        }
    }
    any.then_some(to)
}

/// The journals of those of `recovered` that `me` sees to are replayed: they are `me`'s to look after, and
/// so are the clean slots that they looked after. `None` if that is already so.
pub fn recovered(view: &View, me: SlotId, recovered: u64) -> Option<View> {
    let which = dead_of(view, me) & recovered;
    let mut to = next(view);
    for (i, s) in to.slots.iter_mut().enumerate() {
        let theirs = match s.state {
            SlotState::Clean { adopter: Adopter::Slot(a) } => which & bit(a) != 0,
            _ => which >> i & 1 == 1,
        };
        if theirs {
            s.state = SlotState::Clean { adopter: Adopter::Slot(me) };
        }
    }
    to.fenced |= to.fence == FenceClass::Reservation as u8;
    (which != 0).then_some(to)
}

/// `me` cannot read what it has to replay: all the dead that it sees to are for the next of `members` behind
/// it, round and round. `None` if there are none, or nobody else.
pub fn hand_on(view: &View, me: SlotId, members: u64) -> Option<View> {
    let others = members & live(view) & !bit(me);
    let others = || slots(view).map(|(slot, _)| slot).filter(|s| others & bit(*s) != 0);
    let adopter = others().find(|s| *s > me).or_else(|| others().next())?;
    let ours = dead_of(view, me);
    let mut to = next(view);
    for (_, s) in to.slots.iter_mut().enumerate().filter(|(i, _)| ours >> i & 1 == 1) {
        s.state = SlotState::Dead { adopter };
    }
    (ours != 0).then_some(to)
}

/// Slots that wait for the next joiner become those of `me`: the last who left saw nobody answer, but
/// a member that was silent is back. `None` if there are none.
pub fn inherit(view: &View, me: SlotId) -> Option<View> {
    let mut to = next(view);
    let mut any = false;
    for s in &mut to.slots {
        if s.state == (SlotState::Clean { adopter: Adopter::NextJoiner }) {
            s.state = SlotState::Clean { adopter: Adopter::Slot(me) };
            any = true;
        }
    }
    (any && live(view) & bit(me) != 0).then_some(to)
}

/// `me` leaves with an empty journal. Its slot and those it looks after go round the members that
/// answer, or to the next joiner if there are none. `None` if `me` is no member. Excluded slots that
/// `me` has not recovered are given on as they are, all to one.
pub fn leave(view: &View, me: SlotId, incarnation: Incarnation, silent: u64) -> Option<View> {
    if !is_member(view, me, incarnation) {
        return None;
    }
    let heirs = live(view) & !silent & !bit(me);
    let heirs: Vec<SlotId> = slots(view).map(|(slot, _)| slot).filter(|s| heirs & bit(*s) != 0).collect();
    let recoverer = heirs.first().copied();
    let mut turn = heirs.iter().cycle();
    let mut heir = || turn.next().map_or(Adopter::NextJoiner, |s| Adopter::Slot(*s));
    let mut to = next(view);
    for (i, s) in to.slots.iter_mut().enumerate() {
        let ours = s.state == SlotState::Clean { adopter: Adopter::Slot(me) };
        if i == usize::from(me.0) || ours {
            s.state = SlotState::Clean { adopter: heir() };
        } else if s.state == (SlotState::Dead { adopter: me })
            && let Some(adopter) = recoverer
        {
            s.state = SlotState::Dead { adopter };
        }
    }
    Some(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = 0b1111;
    fn inc(n: u64) -> Incarnation {
        Incarnation(n)
    }
    fn clean(s: u16) -> SlotState {
        SlotState::Clean { adopter: Adopter::Slot(SlotId(s)) }
    }
    fn states(view: &View) -> Vec<SlotState> {
        view.slots.iter().map(|s| s.state).collect()
    }

    #[test]
    fn a_life_of_a_volume() {
        let next_joiner = SlotState::Clean { adopter: Adopter::NextJoiner };
        let alive = |former: Option<u16>| SlotState::Live { former: former.map(SlotId) };
        let v = View::initial(5, 4);
        assert_eq!(first_slot(&v, ALL), Some(SlotId(0)));
        let v = first(&v, SlotId(0), inc(10));
        assert_eq!(states(&v), [alive(None), clean(0), clean(0), clean(0), SlotState::Empty]);
        let v = admit(&v, &[inc(11), inc(12)], ALL, 0).unwrap();
        assert_eq!(states(&v), [alive(None), alive(Some(0)), alive(Some(0)), clean(0), SlotState::Empty]);
        assert_eq!(slot_of(&v, inc(12)), Some(SlotId(2)));
        assert_eq!(leave(&v, SlotId(0), inc(9), 0), None, "another mount's slot");
        let v = leave(&v, SlotId(0), inc(10), 0).unwrap();
        assert_eq!(states(&v), [clean(1), alive(Some(0)), alive(Some(0)), clean(2), SlotState::Empty]);
        // Slot 2 is silent: it inherits nothing, and its clean slot is taken last.
        let joined = admit(&v, &[inc(13)], ALL, bit(SlotId(2))).unwrap();
        assert_eq!(slot_of(&joined, inc(13)), Some(SlotId(0)));
        let v = leave(&v, SlotId(1), inc(11), bit(SlotId(2))).unwrap();
        assert_eq!(states(&v), [next_joiner, next_joiner, alive(Some(0)), clean(2), SlotState::Empty]);
        // If slot 2 is only late, it sees to the others.
        let back = inherit(&v, SlotId(2)).unwrap();
        assert_eq!(states(&back), [clean(2), clean(2), alive(Some(0)), clean(2), SlotState::Empty]);
        assert_eq!((inherit(&back, SlotId(2)), inherit(&v, SlotId(0))), (None, None));
        // Everybody is gone: slot 2 needs replay.
        assert_eq!(first_slot(&v, ALL), Some(SlotId(0)));
        let v = first(&v, SlotId(0), inc(20));
        assert_eq!(states(&v)[2], SlotState::Dead { adopter: SlotId(0) });
        assert_eq!(recovered(&v, SlotId(1), ALL), None);
        let v = recovered(&v, SlotId(0), ALL).unwrap();
        assert_eq!(states(&v), [alive(None), clean(0), clean(0), clean(0), SlotState::Empty]);
        assert_eq!(v.epoch, Epoch(7));
    }

    #[test]
    fn who_dies_is_seen_to_whoever_dies_meanwhile() {
        let v = first(&View::initial(5, 4), SlotId(0), inc(10));
        let v = admit(&v, &[inc(11), inc(12)], ALL, 0).unwrap();
        let (zero, one, two) = ((SlotId(0), inc(10)), (SlotId(1), inc(11)), (SlotId(2), inc(12)));
        assert_eq!(exclude(&v, SlotId(1), &[]), None);
        assert_eq!(exclude(&v, SlotId(1), &[(SlotId(0), inc(9)), one]), None, "another mount; oneself");
        assert_eq!(exclude(&v, SlotId(3), &[zero]), None, "no member");
        let dead = |a| SlotState::Dead { adopter: SlotId(a) };
        let v = exclude(&v, SlotId(1), &[zero]).unwrap();
        assert_eq!(states(&v)[..2], [dead(1), SlotState::Live { former: Some(SlotId(0)) }]);
        assert_eq!(states(&v)[3], clean(0), "it may be writing an adoption");
        assert_eq!(exclude(&v, SlotId(2), &[zero]), None, "it is so already");
        // The one who sees to it dies as well.
        let v = exclude(&v, SlotId(2), &[one]).unwrap();
        assert_eq!(states(&v)[..2], [dead(2), dead(2)]);
        assert_eq!(recovered(&v, SlotId(1), ALL), None);
        let half = recovered(&v, SlotId(2), bit(SlotId(1))).unwrap();
        assert_eq!(
            states(&half),
            [dead(2), clean(2), SlotState::Live { former: Some(SlotId(0)) }, clean(0), SlotState::Empty]
        );
        let v = recovered(&half, SlotId(2), ALL).unwrap();
        assert_eq!((states(&v)[0], states(&v)[3]), (clean(2), clean(2)));
        // Nobody was left to see to a dead host when its adopter left.
        let v = exclude(&admit(&v, &[inc(13)], ALL, 0).unwrap(), SlotId(0), &[two]).unwrap();
        let v = leave(&v, SlotId(0), inc(13), 0).unwrap();
        assert_eq!(states(&v)[2], dead(0));
        let v = first(&v, SlotId(1), inc(14));
        assert_eq!(states(&v)[2], dead(1));
    }

    #[test]
    fn all_the_dead_are_one_members_to_see_to() {
        let v = first(&View::initial(5, 5), SlotId(0), inc(10));
        let v = admit(&v, &[inc(11), inc(12), inc(13), inc(14)], !0, 0).unwrap();
        let dead = |a| SlotState::Dead { adopter: SlotId(a) };
        let two = exclude(&v, SlotId(1), &[(SlotId(3), inc(13)), (SlotId(4), inc(14))]).unwrap();
        assert_eq!(states(&two)[3..], [dead(1), dead(1)]);
        // It leaves: not one to each of those who stay.
        let left = leave(&two, SlotId(1), inc(11), 0).unwrap();
        assert_eq!(states(&left)[3..], [dead(0), dead(0)]);
        // Whoever excludes another leaves it to the one who is at work already.
        let third = exclude(&two, SlotId(0), &[(SlotId(2), inc(12))]).unwrap();
        assert_eq!(states(&third)[2..], [dead(1), dead(1), dead(1)]);
        // Unless that is the one.
        let fourth = exclude(&third, SlotId(0), &[(SlotId(1), inc(11))]).unwrap();
        assert_eq!(states(&fourth)[1..], [dead(0); 4]);
    }

    #[test]
    fn who_cannot_recover_hands_on_to_the_next_in_turn() {
        let v = first(&View::initial(5, 5), SlotId(0), inc(10));
        let v = admit(&v, &[inc(11), inc(12), inc(13), inc(14)], !0, 0).unwrap();
        let dead = |a| SlotState::Dead { adopter: SlotId(a) };
        let v = exclude(&v, SlotId(1), &[(SlotId(0), inc(10)), (SlotId(3), inc(13))]).unwrap();
        assert_eq!(hand_on(&v, SlotId(2), !0), None, "it has none");
        assert_eq!(hand_on(&v, SlotId(1), 0b01011), None, "only itself and the dead");
        let next = hand_on(&v, SlotId(1), !0).unwrap();
        assert_eq!((states(&next)[0], states(&next)[3], next.epoch.0), (dead(2), dead(2), v.epoch.0 + 1));
        let last = hand_on(&hand_on(&v, SlotId(1), bit(SlotId(4))).unwrap(), SlotId(4), !0).unwrap();
        assert_eq!(states(&last)[0], dead(1), "round and round");
    }

    /// All views that `view` may be followed by; `inc(1)` is every mount's.
    fn successors(view: &View) -> Vec<View> {
        let members = || slots(view).map(|(s, _)| s).filter(|s| live(view) & bit(*s) != 0);
        let subsets = || (0..=ALL).filter(|mask| mask & !live(view) == 0);
        let mut all = Vec::new();
        if live(view) == 0 {
            all.extend((0..4).map(|me| first(view, SlotId(me), inc(1))));
        } else if dead(view) == 0 {
            all.extend(subsets().filter_map(|silent| admit(view, &[inc(1)], ALL, silent).ok()));
        }
        for me in members() {
            all.extend(inherit(view, me));
            for mask in subsets() {
                let of = |s: &SlotId| mask & bit(*s) != 0;
                let suspects: Vec<_> = members().filter(of).map(|s| (s, inc(1))).collect();
                all.extend(exclude(view, me, &suspects));
                all.extend(leave(view, me, inc(1), mask));
                all.extend(hand_on(view, me, mask));
            }
            all.extend((1..=ALL).filter_map(|mask| recovered(view, me, mask)));
        }
        all.iter_mut().for_each(|v| v.epoch = Epoch(0));
        all
    }

    #[test]
    fn no_story_gives_the_dead_to_two() {
        let mut todo = vec![View { epoch: Epoch(0), ..first(&View::initial(4, 4), SlotId(0), inc(1)) }];
        let mut seen = std::collections::HashSet::new();
        while let Some(view) = todo.pop() {
            let adopter = |s: &SlotView| match s.state {
                SlotState::Dead { adopter } => Some(adopter),
                _ => None,
            };
            let adopters: std::collections::BTreeSet<_> = view.slots.iter().filter_map(adopter).collect();
            assert!(adopters.len() <= 1, "{:?}", states(&view));
            todo.extend(successors(&view).into_iter().filter(|next| seen.insert(next.clone())));
        }
        assert!(seen.len() > 300, "{} views", seen.len());
    }

    #[test]
    fn a_full_volume_refuses() {
        let v = first(&View::initial(4, 2), SlotId(0), inc(1));
        let v = admit(&v, &[inc(2), inc(3)], 0b11, 0).unwrap();
        assert_eq!(slot_of(&v, inc(3)), None, "slots without a journal are not given out");
        assert_eq!(admit(&v, &[inc(3)], 0b11, 0), Err(Refusal::NoSlot));
    }
}
