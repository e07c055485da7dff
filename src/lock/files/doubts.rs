//! Requests that are about to be refused by what programs of other hosts have: their hosts are asked first whether
//! that stands, because an unlock is told to its program as soon as it is on its way to the server.
//!
//! Not for ever: who does not answer within [`DOUBT_MAX`] is believed to have what it last said, and so is who is dead.

use super::server::Queued;
use crate::base::SlotId;
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

/// How long a refusal waits for hosts whose locks are in the way.
pub const DOUBT_MAX: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Doubt {
    until: Duration,
    request: Queued,
    /// Who has not answered.
    asked: BTreeSet<SlotId>,
}

/// See the head of the file. Those of one inode, in the order in which they came.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Doubts(VecDeque<Doubt>);

impl Doubts {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `request` waits until all of `asked` have answered.
    pub fn add(&mut self, now: Duration, request: Queued, asked: BTreeSet<SlotId>) {
        self.0.push_back(Doubt { until: now + DOUBT_MAX, request, asked });
    }

    /// `host` has answered about a request of `asker`.
    pub fn checked(&mut self, host: SlotId, asker: SlotId, request: u64) {
        let about = |d: &&mut Doubt| (d.request.from, d.request.number) == (asker, request);
        self.0.iter_mut().filter(about).for_each(|doubt| _ = doubt.asked.remove(&host));
    }

    /// A host waits for nothing of what it asked; what it was asked, it still answers.
    pub fn drop_requests(&mut self, host: SlotId) {
        self.0.retain(|doubt| doubt.request.from != host);
    }

    /// A host answers no more, and waits for nothing.
    pub fn forget(&mut self, host: SlotId) {
        self.drop_requests(host);
        self.0.iter_mut().for_each(|doubt| _ = doubt.asked.remove(&host));
    }

    /// Only these hosts have to do with it.
    pub fn keep(&mut self, hosts: impl Fn(SlotId) -> bool) {
        self.0.retain(|doubt| hosts(doubt.request.from));
        self.0.iter_mut().for_each(|doubt| doubt.asked.retain(|host| hosts(*host)));
    }

    /// A request waits no more. False: it was not here.
    pub fn cancel(&mut self, from: SlotId, number: u64) -> bool {
        let before = self.0.len();
        self.0.retain(|doubt| (doubt.request.from, doubt.request.number) != (from, number));
        self.0.len() < before
    }

    /// When the first is to be met, whoever has answered.
    pub fn deadline(&self) -> Option<Duration> {
        self.0.iter().map(|doubt| if doubt.asked.is_empty() { Duration::ZERO } else { doubt.until }).min()
    }

    /// Those that can be met for good, in order.
    pub fn take_sure(&mut self, now: Duration) -> Vec<Queued> {
        let is_sure = |doubt: &Doubt| doubt.asked.is_empty() || doubt.until <= now;
        let (sure, rest): (Vec<_>, Vec<_>) = self.0.drain(..).partition(is_sure);
        self.0.extend(rest);
        sure.into_iter().map(|doubt| Queued { sure: true, ..doubt.request }).collect()
    }
}
