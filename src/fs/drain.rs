//! When the old images of an emptied metadata chunk have left every journal, by the heartbeats.
//!
//! A slot whose journal may hold such images is one that is a member now. It must show a heartbeat
//! *started* after the question; the journal head in it is noted, and when the tail has reached that,
//! nothing of the time before the question is in that journal any more. A row read after the question
//! may show the beat before one that is just being written, so two steps of the counter are needed. A
//! slot that joins later had an empty journal when it did; a dead one is waited for until its
//! journal has been replayed.

use super::*;
use crate::alloc::{DrainOracle, TicketState};
use crate::base::Incarnation;
use crate::cluster::Membership;
use crate::format::cluster::heartbeat::FLAG_RECOVERING;
use crate::format::cluster::{Heartbeat, SlotState};
use std::collections::BTreeMap;

/// Questions kept; older ones are forgotten, and asked anew.
const TICKETS_MAX: usize = 4096;

/// See the head of the file.
pub struct JournalWatch {
    pub cluster: Arc<Cluster>,
    pub journal: Arc<Journal>,
    tickets: Mutex<Tickets>,
}

#[derive(Default)]
struct Tickets {
    last: u64,
    open: BTreeMap<u64, Ticket>,
}

struct Ticket {
    /// The number of the row's last read at the question.
    read: u64,
    own_head: u64,
    /// The other members as the first row showed them that was read after the question.
    others: Option<Vec<Other>>,
    /// Nothing changes that any more: of the time before the question nothing comes back.
    passed: bool,
}

/// Another member's journal.
struct Other {
    slot: SlotId,
    incarnation: Incarnation,
    counter: u64,
    head: Option<u64>,
}

impl JournalWatch {
    pub fn new(cluster: Arc<Cluster>, journal: Arc<Journal>) -> JournalWatch {
        JournalWatch { cluster, journal, tickets: Mutex::default() }
    }
}

impl DrainOracle for JournalWatch {
    fn ask(&self) -> Option<u64> {
        let (read, _) = self.cluster.heartbeats();
        let own_head = self.journal.positions().0;
        Some(self.tickets.lock().ask(read, own_head))
    }

    fn look(&self, number: u64) -> TicketState {
        let members = self.cluster.membership();
        let (read, row) = self.cluster.heartbeats();
        let own_tail = self.journal.positions().1;
        self.tickets.lock().look(number, own_tail, |ticket| ticket.have_others_passed(&members, read, &row))
    }
}

impl Tickets {
    /// Nothing was read and nothing logged here since the last question, and nobody has looked at its ticket
    /// since: then that one does for this question, too. Many chunks empty at a time.
    fn ask(&mut self, read: u64, own_head: u64) -> u64 {
        let same =
            |t: &Ticket| (t.read, t.own_head, t.passed) == (read, own_head, false) && t.others.is_none();
        if let Some((number, _)) = self.open.last_key_value().filter(|(_, last)| same(last)) {
            return *number;
        }
        self.last += 1;
        self.open.insert(self.last, Ticket { read, own_head, others: None, passed: false });
        if self.open.len() > TICKETS_MAX {
            self.open.pop_first();
        }
        self.last
    }

    fn look(&mut self, number: u64, own_tail: u64, others: impl FnOnce(&mut Ticket) -> bool) -> TicketState {
        let Some(ticket) = self.open.get_mut(&number) else { return TicketState::Unknown };
        if !ticket.passed && others(ticket) && own_tail >= ticket.own_head {
            (ticket.passed, ticket.others) = (true, None);
        }
        if ticket.passed { TicketState::Passed } else { TicketState::Waits }
    }
}

impl Ticket {
    fn have_others_passed(&mut self, members: &Membership, read: u64, row: &[Option<Heartbeat>]) -> bool {
        if members.view.slots.iter().any(|s| matches!(s.state, SlotState::Dead { .. })) {
            return false;
        }
        if self.others.is_none() {
            // The read that was under way at the question may be the next; the one after it is later.
            if !members.alone() && read < self.read + 2 {
                return false;
            }
            self.others = members.peers().map(|slot| Other::new(members, slot, row)).collect();
        }
        let Some(others) = &mut self.others else { return false };
        others.iter_mut().all(|other| other.has_passed(members, row))
    }
}

fn cell(row: &[Option<Heartbeat>], slot: SlotId, incarnation: Incarnation) -> Option<&Heartbeat> {
    let cell = row.get(usize::from(slot.0))?.as_ref()?;
    // One that replays its slot's former journal says nothing of that yet.
    (cell.incarnation == incarnation && cell.flags & FLAG_RECOVERING == 0).then_some(cell)
}

impl Other {
    fn new(members: &Membership, slot: SlotId, row: &[Option<Heartbeat>]) -> Option<Other> {
        let incarnation = members.incarnation_of(slot)?;
        let counter = cell(row, slot, incarnation)?.counter;
        Some(Other { slot, incarnation, counter, head: None })
    }

    fn has_passed(&mut self, members: &Membership, row: &[Option<Heartbeat>]) -> bool {
        // Who left has emptied its journal, and so has whoever took over from one that died.
        let Some(now) = members.incarnation_of(self.slot) else { return true };
        let Some(cell) = cell(row, self.slot, now) else { return false };
        if now != self.incarnation {
            return true;
        }
        if self.head.is_none() && cell.counter >= self.counter + 2 {
            self.head = Some(cell.journal_head);
        }
        self.head.is_some_and(|head| cell.journal_tail >= head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Epoch;
    use crate::format::cluster::View;

    const ME: SlotId = SlotId(0);
    const PEER: SlotId = SlotId(1);

    fn members(peer: SlotState, incarnation: u64) -> Membership {
        let mut view = View::initial(3, 0);
        view.epoch = Epoch(5);
        view.slots[0].state = SlotState::Live { former: None };
        view.slots[1].state = peer;
        view.slots[1].incarnation = Incarnation(incarnation);
        let view = Arc::new(view);
        Membership { me: ME, incarnation: Incarnation(1), view, silent: 0, owners: Arc::default() }
    }

    fn row(incarnation: u64, counter: u64, head: u64, tail: u64, flags: u16) -> Vec<Option<Heartbeat>> {
        let beat = Heartbeat {
            slot: PEER,
            incarnation: Incarnation(incarnation),
            counter,
            journal_head: head,
            journal_tail: tail,
            flags,
            ..Heartbeat::default()
        };
        vec![None, Some(beat), None]
    }

    fn ticket() -> Ticket {
        Ticket { read: 10, own_head: 0, others: None, passed: false }
    }

    #[test]
    fn a_member_shows_a_beat_begun_later_and_empties_what_it_says() {
        let live = members(SlotState::Live { former: None }, 7);
        let mut t = ticket();
        assert!(!t.have_others_passed(&live, 11, &row(7, 3, 20, 20, 0)), "read before the question");
        assert!(!t.have_others_passed(&live, 12, &row(7, 4, 20, 20, 0)), "written before the question");
        assert!(!t.have_others_passed(&live, 13, &row(7, 5, 20, 20, 0)), "perhaps begun before it");
        assert!(!t.have_others_passed(&live, 14, &row(7, 6, 30, 29, 0)), "the log holds something");
        assert!(!t.have_others_passed(&live, 15, &row(7, 7, 40, 29, 0)));
        assert!(t.have_others_passed(&live, 16, &row(7, 8, 50, 30, 0)), "newer changes do not count");
    }

    #[test]
    fn who_is_alone_who_left_and_who_died() {
        let live = SlotState::Live { former: None };
        assert!(ticket().have_others_passed(&members(SlotState::Empty, 7), 10, &row(7, 3, 9, 0, 0)));
        let dead = members(SlotState::Dead { adopter: ME }, 7);
        assert!(!ticket().have_others_passed(&dead, 99, &row(7, 3, 0, 0, 0)));
        let mut t = ticket();
        assert!(!t.have_others_passed(&members(live, 7), 12, &row(7, 3, 9, 0, 0)));
        assert!(t.have_others_passed(&members(SlotState::Empty, 7), 13, &row(7, 3, 9, 0, 0)), "it left");
        let mut t = ticket();
        assert!(!t.have_others_passed(&members(live, 7), 12, &row(7, 3, 9, 0, 0)));
        assert!(!t.have_others_passed(&members(live, 8), 13, &row(8, 1, 0, 0, FLAG_RECOVERING)));
        assert!(t.have_others_passed(&members(live, 8), 14, &row(8, 2, 0, 0, 0)), "replayed by its heir");
        assert!(!ticket().have_others_passed(&members(live, 8), 12, &row(7, 3, 0, 0, 0)), "an old cell");
    }

    #[test]
    fn a_ticket_says_passed_as_often_as_it_is_asked_and_one_that_is_forgotten_says_so() {
        let mut tickets = Tickets::default();
        let first = tickets.ask(10, 7);
        assert_eq!(tickets.ask(10, 7), first, "nothing has happened in between");
        assert_ne!(tickets.ask(10, 8), first, "something was logged");
        let last = tickets.ask(11, 8);
        assert_eq!(tickets.look(first, 7, |_| false), TicketState::Waits);
        assert_eq!(tickets.look(first, 6, |_| true), TicketState::Waits);
        for _ in 0..3 {
            assert_eq!(tickets.look(first, 7, |t| t.others.is_none()), TicketState::Passed);
        }
        // Looked at: what the others' journals had is noted as of then.
        let noted = |t: &mut Ticket| t.others.insert(Vec::new()).len() > 3;
        assert_eq!(tickets.look(last, 9, noted), TicketState::Waits);
        let later = tickets.ask(11, 8);
        assert_ne!(later, last);
        (0..TICKETS_MAX as u64).for_each(|read| _ = tickets.ask(100 + read, 8));
        assert_eq!(tickets.look(first, 7, |_| true), TicketState::Unknown);
        assert_eq!(tickets.look(later, 9, |_| true), TicketState::Unknown);
    }
}
