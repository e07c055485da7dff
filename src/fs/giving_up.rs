//! What is dirty in an inode and cannot be written, when its lock is wanted elsewhere.
//!
//! As long as nobody wants the lock it stays dirty, and every fsync tries again. A demotion cannot be put off for
//! ever, and to halt the host would take what is dirty in all other inodes along. So this inode loses what the
//! device, or its own damaged tree, does not take: page by page, as on any filesystem that goes on after
//! errors. Every handle hears of it. What fsync has acknowledged is not dirty, and stays.
//!
//! A device that takes nothing at all is another matter: it may come back, and what is dirty may be the only
//! copy. The lease then ends as well. So an I/O error counts only if the lease has been renewed since, over the same
//! device, and it comes again.

use super::*;
use crate::lock::DemoteAnswer;
use std::collections::BTreeMap;

/// After so many flushes that failed, or so long, nothing more is tried: others wait for the lock.
const FLUSHES_MAX: u32 = 64;
const TIME_MAX: Duration = Duration::from_secs(10);

/// Pause between them.
const PAUSE: Duration = Duration::from_millis(10);
/// Changed times are given up after so many.
const TIMES_FLUSHES: u32 = 4;
/// After so many flushes of which it is not known what they could not write, all of it goes.
const BLIND_MAX: u32 = 3;
/// A doubt that is so old is about an earlier demotion.
const DOUBT_AGE_MAX: Duration = Duration::from_secs(120);

/// Inodes of which a flush for a demotion has failed, and may not for ever.
#[derive(Default)]
pub struct Doubts(Mutex<BTreeMap<InodeNo, Doubt>>);

/// When the flush failed, and the end of the lease as it was then; of tools it has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Doubt {
    at: Duration,
    lease_end: Option<Duration>,
}

impl Doubts {
    /// Has the lease not been renewed since it failed?
    fn stand(&self, ino: InodeNo, now: Doubt) -> bool {
        let doubts = self.0.lock();
        let same = |then: &&Doubt| then.lease_end == now.lease_end && now.lease_end.is_some();
        doubts.get(&ino).filter(same).is_some()
    }

    /// It has failed. Is it certain that it will again?
    fn are_over(&self, ino: InodeNo, now: Doubt) -> bool {
        let mut doubts = self.0.lock();
        let recent = |then: &Doubt| now.at.saturating_sub(then.at) < DOUBT_AGE_MAX;
        let then = *doubts
            .entry(ino)
            .and_modify(|then| *then = if recent(then) { *then } else { now })
            .or_insert(now);
        // A lease that is revoked ends at zero.
        now.lease_end.is_none() || then.lease_end < now.lease_end
    }

    fn forget(&self, ino: InodeNo) {
        self.0.lock().remove(&ino);
    }
}

/// Does it say nothing about the host, as long as that has not halted?
fn is_of_one_inode(e: &Error) -> bool {
    use Error::*;
    matches!(e, Io { .. } | Corrupt { .. } | Damaged { .. } | ChangeTooLarge { .. })
}

impl Core {
    /// Nothing of an inode whose lock is being given up is dirty any more: it is written, or given up if it can
    /// not be, unless the lock `may_stay`.
    ///
    /// # Errors
    /// Those after which the host must halt, or has, and `NoSpace`.
    pub(super) fn flush_for_good(self: &Arc<Self>, node: &Arc<Node>, may_stay: bool) -> Result<DemoteAnswer> {
        let now = || Doubt { at: self.clock.now(), lease_end: self.store.permit().lease_end() };
        if self.doubts.stand(node.ino, now()) {
            return self.store.halt().check().map(|()| DemoteAnswer::Busy);
        }
        let flushed = self.flush_whole(node);
        let answer = match flushed {
            Err(e) if may_stay && (is_of_one_inode(&e) || matches!(e, Error::NeedSpace)) => {
                tracing::debug!(inode = node.ino.0, "a lock that nobody waits for is kept: {e}");
                return self.store.halt().check().map(|()| DemoteAnswer::Busy);
            }
            Err(Error::NeedSpace) => {
                self.seek_space(node);
                return Ok(DemoteAnswer::Busy);
            }
            Err(e) if is_of_one_inode(&e) && !self.store.halt().is_tripped() => {
                if matches!(e, Error::Io { .. }) && !self.doubts.are_over(node.ino, now()) {
                    tracing::warn!(inode = node.ino.0, "write-back fails for a lock that is wanted: {e}");
                    return Ok(DemoteAnswer::Busy);
                }
                self.give_up(node, e)?
            }
            other => other.map(|()| DemoteAnswer::Done)?,
        };
        self.doubts.forget(node.ino);
        Ok(answer)
    }

    /// `error` comes again and again: what it concerns is given up, the rest written.
    fn give_up(self: &Arc<Self>, node: &Arc<Node>, error: Error) -> Result<DemoteAnswer> {
        let mut lost = false;
        let answer = self.give_up_until_flushed(node, error, &mut lost);
        if lost {
            // The kernel's pages may go on showing it.
            self.invalidate_later(node.ino, 0, 0);
        }
        answer
    }

    fn give_up_until_flushed(
        self: &Arc<Self>,
        node: &Arc<Node>,
        mut error: Error,
        lost: &mut bool,
    ) -> Result<DemoteAnswer> {
        let until = self.clock.now() + TIME_MAX;
        let mut blind = 0;
        for flushes in 0.. {
            let all = flushes >= FLUSHES_MAX || blind >= BLIND_MAX || self.clock.now() >= until;
            match self.give_up_some(node, &error, flushes, all) {
                None => blind += 1,
                Some(some) => (blind, *lost) = (0, *lost | some),
            }
            std::thread::sleep(PAUSE);
            match self.flush_whole(node) {
                Ok(()) => break,
                Err(Error::NeedSpace) => {
                    self.seek_space(node);
                    return Ok(DemoteAnswer::Busy);
                }
                Err(e) if is_of_one_inode(&e) && !self.store.halt().is_tripped() => error = e,
                Err(e) => return Err(e),
            }
        }
        Ok(DemoteAnswer::Done)
    }

    /// Give up what the last flush could not write. Answers whether that was anything; `None` if it is not
    /// known what it could not.
    fn give_up_some(&self, node: &Node, error: &Error, flushes: u32, all: bool) -> Option<bool> {
        // Alone: no flush is in flight.
        let _alone = node.gate.write();
        let mut state = node.state.lock();
        if let Some(file) = state.file.as_mut().filter(|file| file.is_dirty()) {
            let lost = file.give_up(all)?;
            if lost > 0 {
                let bytes = lost * crate::file::PAGE;
                tracing::error!(inode = node.ino.0, "{bytes} bytes that were not synced are lost: {error}");
            }
            return Some(lost > 0);
        }
        if state.attr_dirty {
            if flushes < TIMES_FLUSHES && !all {
                return Some(false);
            }
            tracing::error!(inode = node.ino.0, "changed times are lost: {error}");
            state.forget();
        }
        state.dirty_since = None;
        Some(true)
    }
}
