//! When the old images of an emptied metadata chunk have left every journal, by the heartbeats.
//!
//! A slot whose journal may hold such images is one that is a member now. It must show a heartbeat
//! *started* after the question; the journal head in it is noted, and when the tail has reached that,
//! nothing of the time before the question is in that journal any more. A row read after the question
//! may show the beat before one that is just being written, so two steps of the counter are needed. A
//! slot that joins later had an empty journal when it did; a dead one is waited for until its
//! journal has been replayed.

use super::*;
use crate::alloc::DrainOracle;
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
        let mut tickets = self.tickets.lock();
        tickets.last += 1;
        let number = tickets.last;
        tickets.open.insert(number, Ticket { read, own_head, others: None });
        if tickets.open.len() > TICKETS_MAX {
            tickets.open.pop_first();
        }
        Some(number)
    }

    fn passed(&self, number: u64) -> bool {
        let members = self.cluster.membership();
        let (read, row) = self.cluster.heartbeats();
        let own_tail = self.journal.positions().1;
        let mut tickets = self.tickets.lock();
        let Some(ticket) = tickets.open.get_mut(&number) else { return false };
        let passed = ticket.have_others_passed(&members, read, &row) && own_tail >= ticket.own_head;
        if passed {
            tickets.open.remove(&number);
        }
        passed
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
        Ticket { read: 10, own_head: 0, others: None }
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
}
