//! Single rules of the two machines that random schedules rarely tell apart from their absence.

use crate::base::{AgNo, InodeNo, LockName, Mode, SlotId, Token};
use crate::format::cluster::{Entry, EntryKind, HANDS_IN};
use crate::lock::holder::{Holder, HolderAction, HolderEvent};
use crate::lock::master::{Master, MasterAction, MasterEvent};
use std::collections::BTreeSet;

const AG: AgNo = AgNo(1);
const LOCK: LockName = LockName::Inode(InodeNo(9000));
const TOKEN: Token = Token(4);

fn entry(kind: EntryKind, mode: Mode, number: u64, seq: u64) -> Entry {
    Entry { lock: LOCK, kind, mode, held: Mode::N, cap: Mode::X, flags: 0, token: TOKEN, number, seq }
}

fn hear(holder: &mut Holder, entry: Entry) -> Vec<HolderAction> {
    holder.step(HolderEvent::Register { from: SlotId(2), entries: vec![(AG, entry)] })
}

fn holder_that_wants(want: Mode) -> Holder {
    let mut holder = Holder::new(10);
    holder.step(HolderEvent::Route { ag: AG, to: Some((SlotId(2), TOKEN)) });
    holder.step(HolderEvent::Want { ag: AG, lock: LOCK, want, first: false });
    holder
}

#[test]
fn a_grant_of_an_earlier_conversation_is_answered_but_not_taken() {
    let mut holder = holder_that_wants(Mode::S);
    let seq = holder.outgoing(SlotId(2))[0].seq;
    let old = hear(&mut holder, entry(EntryKind::Grant, Mode::S, 7, seq - 1));
    assert!(!old.contains(&HolderAction::Granted { lock: LOCK, mode: Mode::S }));
    let said = holder.outgoing(SlotId(2))[0];
    assert_eq!((said.number, said.held, said.mode), (7, Mode::N, Mode::S));
    let new = hear(&mut holder, entry(EntryKind::Grant, Mode::S, 8, said.seq));
    assert!(new.contains(&HolderAction::Granted { lock: LOCK, mode: Mode::S }));
}

#[test]
fn no_grant_is_acted_on_while_the_mode_comes_down() {
    let mut holder = holder_that_wants(Mode::S);
    let seq = holder.outgoing(SlotId(2))[0].seq;
    hear(&mut holder, entry(EntryKind::Grant, Mode::S, 5, seq));
    holder.step(HolderEvent::Want { ag: AG, lock: LOCK, want: Mode::X, first: false });
    holder.step(HolderEvent::Lowering { ag: AG, lock: LOCK });
    let seq = holder.outgoing(SlotId(2))[0].seq;
    let during = hear(&mut holder, entry(EntryKind::Grant, Mode::X, 6, seq));
    assert!(during.iter().all(|a| matches!(a, HolderAction::Publish { .. })), "{during:?}");
    assert_eq!(holder.outgoing(SlotId(2))[0].number, 5);
    let after =
        holder.step(HolderEvent::Lowered { ag: AG, lock: LOCK, held: Mode::N, want: Mode::X, first: false });
    assert!(after.contains(&HolderAction::Granted { lock: LOCK, mode: Mode::X }));
}

#[test]
fn a_request_goes_only_when_all_is_said() {
    let mut holder = holder_that_wants(Mode::X);
    let seq = holder.outgoing(SlotId(2))[0].seq;
    hear(&mut holder, entry(EntryKind::Grant, Mode::X, 5, seq));
    let said = holder.outgoing(SlotId(2))[0];
    assert_eq!((said.number, said.held, said.mode), (5, Mode::X, Mode::N));
    let capped = Entry { cap: Mode::N, ..entry(EntryKind::Grant, Mode::X, 5, said.seq) };
    let actions = hear(&mut holder, capped);
    assert!(actions.contains(&HolderAction::Cap { lock: LOCK, cap: Mode::N }));
    assert_eq!(holder.outgoing(SlotId(2)).len(), 1);
    holder.step(HolderEvent::Lowered { ag: AG, lock: LOCK, held: Mode::N, want: Mode::N, first: false });
    let said = holder.outgoing(SlotId(2))[0];
    hear(&mut holder, entry(EntryKind::Grant, Mode::N, 5, said.seq));
    assert_eq!((holder.outgoing(SlotId(2)).len(), holder.lines()), (0, 0));
}

fn ask(master: &mut Master, from: u16, entry: Entry) -> Vec<MasterAction> {
    master.step(MasterEvent::Register { from: SlotId(from), entries: vec![(AG, entry)] }, &|_| Mode::N)
}

fn open_master(awaited: BTreeSet<SlotId>) -> Master {
    let mut master = Master::new(10);
    master.step(MasterEvent::Open { ag: AG, token: TOKEN, awaited, own: Vec::new() }, &|_| Mode::N);
    master
}

#[test]
fn what_is_held_is_believed_only_with_the_last_grant_acked() {
    let mut master = open_master(BTreeSet::new());
    ask(&mut master, 2, entry(EntryKind::Request, Mode::X, 0, 1));
    let grant = master.outgoing(SlotId(2))[0];
    assert_eq!((grant.mode, grant.seq), (Mode::X, 1));
    // Still without the grant: it may take it at any moment.
    ask(&mut master, 2, entry(EntryKind::Request, Mode::N, grant.number - 1, 2));
    assert_eq!(master.belief(LOCK, SlotId(2)), Mode::X);
    ask(&mut master, 2, entry(EntryKind::Request, Mode::N, grant.number, 3));
    assert_eq!(master.belief(LOCK, SlotId(2)), Mode::N);
}

#[test]
fn requests_under_another_token_are_not_heard() {
    let mut master = open_master(BTreeSet::new());
    let old = Entry { token: Token(3), ..entry(EntryKind::Request, Mode::X, 99, 1) };
    assert!(ask(&mut master, 2, old).is_empty());
    assert_eq!(master.objects(), 0);
}

#[test]
fn nothing_is_granted_before_all_have_declared() {
    let mut master = open_master([SlotId(2), SlotId(3)].into());
    assert_eq!(master.outgoing(SlotId(3))[0].kind, EntryKind::DeclareAsk);
    ask(&mut master, 2, entry(EntryKind::Request, Mode::X, 0, 1));
    assert_eq!(master.belief(LOCK, SlotId(2)), Mode::N);
    let declared = Entry { lock: LockName::Ag(AG), ..entry(EntryKind::Declared, Mode::N, 0, 0) };
    let held = Entry { held: Mode::S, ..entry(EntryKind::Request, Mode::N, 0, 1) };
    let entries = vec![(AG, declared), (AG, held)];
    master.step(MasterEvent::Register { from: SlotId(3), entries }, &|_| Mode::N);
    assert!(!master.is_free(AG, LOCK));
    master.step(MasterEvent::Gone { peer: SlotId(2) }, &|_| Mode::N);
    ask(&mut master, 2, entry(EntryKind::Request, Mode::X, 0, 1));
    assert_eq!((master.belief(LOCK, SlotId(2)), master.belief(LOCK, SlotId(3))), (Mode::N, Mode::S));
    let capped = master.outgoing(SlotId(3));
    assert_eq!(capped.iter().map(|e| e.cap).collect::<Vec<_>>(), [Mode::N]);
}

/// Who decides a lock may change between the word that something is to be handed in and the grant.
#[test]
fn what_is_handed_in_comes_first_at_a_new_master_too() {
    let mut holder = holder_that_wants(Mode::N);
    holder.step(HolderEvent::Want { ag: AG, lock: LOCK, want: Mode::X, first: true });
    holder.step(HolderEvent::Route { ag: AG, to: Some((SlotId(3), TOKEN)) });
    let said = holder.outgoing(SlotId(3))[0];
    assert_eq!((said.mode, said.flags), (Mode::X, HANDS_IN));
    let mut master = Master::new(10);
    let (awaited, own) = ([SlotId(1), SlotId(2)].into(), vec![(LOCK, Mode::N, Mode::X, false)]);
    master.step(MasterEvent::Open { ag: AG, token: TOKEN, awaited, own }, &|_| Mode::N);
    let declared = Entry { lock: LockName::Ag(AG), ..entry(EntryKind::Declared, Mode::N, 0, 0) };
    for (from, flags) in [(1, 0), (2, HANDS_IN)] {
        let wants = Entry { flags, ..entry(EntryKind::Request, Mode::X, 0, 1) };
        let entries = vec![(AG, wants), (AG, declared)];
        master.step(MasterEvent::Register { from: SlotId(from), entries }, &|_| Mode::N);
    }
    assert_eq!([1, 2].map(|slot| master.belief(LOCK, SlotId(slot))), [Mode::N, Mode::X]);
}

#[test]
fn nobody_passes_a_waiting_head() {
    let mut master = open_master(BTreeSet::new());
    for (from, mode) in [(1, Mode::S), (2, Mode::X), (3, Mode::S)] {
        ask(&mut master, from, entry(EntryKind::Request, mode, 0, 1));
    }
    let beliefs = [1, 2, 3].map(|slot| master.belief(LOCK, SlotId(slot)));
    assert_eq!(beliefs, [Mode::S, Mode::N, Mode::N]);
    assert_eq!(master.outgoing(SlotId(1))[0].cap, Mode::N);
}

#[test]
fn wants_that_stand_for_ever_leave_places_to_others() {
    let mut holder = Holder::new(18);
    holder.step(HolderEvent::Route { ag: AG, to: Some((SlotId(2), TOKEN)) });
    let mut want = |lock| holder.step(HolderEvent::Want { ag: AG, lock, want: Mode::X, first: false });
    (0..40).for_each(|n| _ = want(LockName::IOpen(InodeNo(9000 + n))));
    want(LOCK);
    let said = holder.outgoing(SlotId(2));
    assert_eq!(said.len(), 18);
    assert!(said.iter().any(|e| e.lock == LOCK), "{said:?}");
    assert!(said.iter().any(|e| e.lock == LockName::IOpen(InodeNo(9000))), "the oldest");
    assert!(said.iter().any(|e| e.lock == LockName::IOpen(InodeNo(9039))), "the greatest");
}

#[test]
fn caps_that_stand_for_ever_leave_places_to_others() {
    let mut master = Master::new(4);
    let peer = SlotId(2);
    let mut step = |event| master.step(event, &|_| Mode::N);
    step(MasterEvent::Open { ag: AG, token: TOKEN, awaited: BTreeSet::new(), own: vec![] });
    let locks: Vec<_> = (0..9).map(|n| LockName::IOpen(InodeNo(9000 + n))).chain([LOCK]).collect();
    let ask = |(lock, seq): (&LockName, u64)| {
        (AG, Entry { lock: *lock, ..entry(EntryKind::Request, Mode::S, 0, seq) })
    };
    step(MasterEvent::Register { from: peer, entries: locks.iter().zip(1..).map(ask).collect() });
    let done = |(lock, number): (&LockName, u64)| {
        (AG, Entry { lock: *lock, held: Mode::S, ..entry(EntryKind::Request, Mode::N, number, 100) })
    };
    step(MasterEvent::Register { from: peer, entries: locks.iter().zip(1..).map(done).collect() });
    step(MasterEvent::Register { from: peer, entries: vec![] });
    for lock in &locks {
        step(MasterEvent::Own { ag: AG, lock: *lock, held: Mode::N, want: Mode::X, first: false });
    }
    let said = master.outgoing(peer);
    assert_eq!(said.len(), 4, "{said:?}");
    assert!(said.iter().any(|e| e.lock == LOCK && e.cap == Mode::N), "{said:?}");
    assert!(said.iter().any(|e| e.lock == locks[8]), "the greatest");
}

#[test]
fn direct_writers_share_and_nobody_passes_who_waits_for_them() {
    let mut master = open_master(BTreeSet::new());
    for (from, mode) in [(1, Mode::DW), (2, Mode::DW), (3, Mode::X), (4, Mode::DW)] {
        ask(&mut master, from, entry(EntryKind::Request, mode, 0, 1));
    }
    let beliefs = |master: &Master| [1, 2, 3, 4].map(|slot| master.belief(LOCK, SlotId(slot)));
    assert_eq!(beliefs(&master), [Mode::DW, Mode::DW, Mode::N, Mode::N]);
    assert_eq!([1, 2].map(|slot| master.outgoing(SlotId(slot))[0].cap), [Mode::N, Mode::N]);
    for (from, number) in [(1, 1), (2, 2)] {
        ask(&mut master, from, entry(EntryKind::Request, Mode::N, number, 2));
    }
    assert_eq!(beliefs(&master), [Mode::N, Mode::N, Mode::X, Mode::N]);
}

/// It may act on what it was granted before at any moment.
#[test]
fn no_grant_takes_anything_away() {
    let mut master = open_master(BTreeSet::new());
    ask(&mut master, 2, entry(EntryKind::Request, Mode::X, 0, 1));
    assert_eq!(master.belief(LOCK, SlotId(2)), Mode::X);
    // It has not heard of that, and wants something else by now; so does another.
    ask(&mut master, 2, entry(EntryKind::Request, Mode::DW, 0, 2));
    ask(&mut master, 3, entry(EntryKind::Request, Mode::DW, 0, 1));
    assert_eq!([2, 3].map(|slot| master.belief(LOCK, SlotId(slot))), [Mode::X, Mode::N]);
    let told = master.outgoing(SlotId(2))[0];
    assert_eq!((told.mode, told.cap), (Mode::X, Mode::N), "it is in its own way");
    ask(&mut master, 2, entry(EntryKind::Request, Mode::DW, told.number, 3));
    assert_eq!([2, 3].map(|slot| master.belief(LOCK, SlotId(slot))), [Mode::DW, Mode::DW]);
}

#[test]
fn who_has_something_to_hand_in_comes_first() {
    for hands_in in [true, false] {
        let mut master = open_master(BTreeSet::new());
        ask(&mut master, 1, entry(EntryKind::Request, Mode::DW, 0, 1));
        ask(&mut master, 2, entry(EntryKind::Request, Mode::S, 0, 1));
        // Without a word of that, X is for something that may wait.
        let flags = if hands_in { HANDS_IN } else { 0 };
        ask(&mut master, 1, Entry { flags, ..entry(EntryKind::Request, Mode::X, 1, 2) });
        let beliefs = [1, 2].map(|slot| master.belief(LOCK, SlotId(slot)));
        assert_eq!(beliefs, if hands_in { [Mode::X, Mode::N] } else { [Mode::N, Mode::S] });
    }
}

#[test]
fn a_request_for_direct_writes_goes_when_all_is_said() {
    let mut holder = holder_that_wants(Mode::DW);
    let seq = holder.outgoing(SlotId(2))[0].seq;
    hear(&mut holder, entry(EntryKind::Grant, Mode::DW, 5, seq));
    let said = holder.outgoing(SlotId(2))[0];
    assert_eq!((said.number, said.held, said.mode), (5, Mode::DW, Mode::N));
    hear(&mut holder, entry(EntryKind::Grant, Mode::DW, 5, said.seq));
    assert_eq!((holder.outgoing(SlotId(2)).len(), holder.held(AG, LOCK)), (0, Mode::DW));
}
