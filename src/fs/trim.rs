//! FITRIM (fstrim): the device is told of the blocks that nobody uses, group by group, on whichever host has them.
//!
//! A discard is a write of anything, so all that holds for writes to free blocks holds here (`alloc/trim.rs`: which
//! blocks; docs/PROTOCOL.md, Trim). A group's lock is asked for holding nothing, and given up between two requests
//! if another host wants it; what is out of use at a time is a few MiB. If this host dies meanwhile, nothing has
//! to be cleared up: nothing on the disk says that anybody had those blocks.

use super::operations::Withdraw;
use super::space::is_dealt_to;
use super::*;
use crate::alloc::{Sweep, TrimWish};
use crate::base::BLOCK_SIZE;
use crate::cluster::{Membership, Owner};
use crate::device::Discards;
use std::collections::VecDeque;
use std::time::Instant;

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Bytes that are out of use at a time, unless the device has larger granules, and the largest that are heeded.
const RUN_BYTES: u64 = 16 << 20;
const GRANULE_MAX: u64 = 64 << 20;
/// Bytes of one request: at first, and at least.
const FIRST_BYTES: u64 = 1 << 20;
const LEAST_BYTES: u64 = 256 << 10;
/// How often one and the same group is asked for again after another host has wanted it, and the pauses before that.
const AGAIN_MAX: u32 = 20;
const AGAIN_PAUSE: Duration = Duration::from_millis(100);
const AGAIN_PAUSE_MAX: Duration = Duration::from_secs(2);

/// What is to be discarded, in bytes of the volume: `struct fstrim_range`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrimRange {
    pub start: u64,
    pub length: u64,
    /// Of the shortest run of free blocks.
    pub least: u64,
}

impl TrimRange {
    /// First block, the one behind the last, and blocks of the shortest run. As ext4 and XFS see it.
    fn blocks(&self, geometry: &Geometry) -> Result<(BlockNo, BlockNo, u64)> {
        let bytes = geometry.total_blocks * BLOCK;
        if self.start >= bytes || self.length < BLOCK || self.least > geometry.ag_blocks * BLOCK {
            return Err(Error::Invalid("no such range of the volume"));
        }
        let end = self.start.saturating_add(self.length).min(bytes);
        Ok((BlockNo(self.start.div_ceil(BLOCK)), BlockNo(end / BLOCK), self.least.div_ceil(BLOCK)))
    }
}

/// How much is sent at a time, so that a request ends long before a write may not land any more: a device that takes
/// its time gets less.
struct Pace {
    bytes: u64,
    most: u64,
    /// How long a write may live.
    life: Duration,
}

impl Pace {
    fn new(life: Duration, most: u64) -> Pace {
        Pace { bytes: FIRST_BYTES.min(most), most, life }
    }

    /// A request of so many bytes took so long.
    fn took(&mut self, bytes: u64, time: Duration) {
        if time > self.life / 20 {
            self.bytes = (self.bytes / 2).max(LEAST_BYTES.min(self.most));
        } else if time < self.life / 100 && bytes >= self.bytes {
            self.bytes = (self.bytes * 2).min(self.most);
        }
    }
}

/// A group that is gone through.
struct Visit {
    sweep: Sweep,
    /// This host held it before: then it keeps it.
    held: bool,
    again: u32,
    not_before: Instant,
}

/// One trim.
struct Trim<'a> {
    core: &'a Core,
    is_over: &'a dyn Fn() -> bool,
    wish: TrimWish,
    pace: Pace,
    /// Discarded so far.
    bytes: u64,
}

impl Fs {
    /// Tell the device of what is free in the range; answers with the bytes it was told of.
    ///
    /// # Errors
    /// (given to `reply`) `Unsupported` if the device has no use for it, `Invalid` for a range that is not of the volume,
    /// `ReadOnly`, `Interrupted`.
    pub fn trim(&self, range: TrimRange, reply: impl FnOnce(Result<u64>) + Send + 'static) -> Withdraw {
        let answer = Arc::new(Mutex::new(Some(reply)));
        let (core, waits) = (self.core.clone(), answer.clone());
        let work = move || {
            let done = trim(&core, &range, &|| waits.lock().is_none());
            tell(&waits, done);
        };
        // It may wait for locks for long: not here.
        if spawn::try_spawn("trim", work).is_some() {
            tell(&answer, Err(Error::OutOfMemory));
        }
        Box::new(move || tell(&answer, Err(Error::Interrupted)))
    }
}

/// Answer, unless that has been done.
fn tell(reply: &Mutex<Option<impl FnOnce(Result<u64>)>>, done: Result<u64>) {
    let reply = reply.lock().take();
    if let Some(reply) = reply {
        reply(done);
    }
}

fn trim(core: &Arc<Core>, range: &TrimRange, is_over: &dyn Fn() -> bool) -> Result<u64> {
    core.check_writable()?;
    let Some(Discards { granule, most }) = core.store.device().discards() else {
        return Err(Error::Unsupported("this device cannot discard blocks"));
    };
    let (start, end, least) = range.blocks(&core.geometry)?;
    let granule = if granule > GRANULE_MAX { BLOCK } else { granule };
    let run = RUN_BYTES.max(granule);
    let wish = TrimWish { least: least.max(granule / BLOCK).min(run / BLOCK), most: run / BLOCK, granule };
    let pace = Pace::new(core.recovery.settle, most.min(RUN_BYTES));
    let mut trim = Trim { core, is_over, wish, pace, bytes: 0 };
    // What was unlinked just now is meant, too.
    let (sender, squeezed) = std::sync::mpsc::channel();
    core.reaper.squeeze(Duration::ZERO, Box::new(move || sender.send(()).unwrap_or_default()));
    let _ = squeezed.recv();
    core.alloc.ready_freed()?;
    let began = Instant::now();
    trim.all(start, end)?;
    let (bytes, time) = (trim.bytes, began.elapsed());
    tracing::info!(bytes, ?time, "the device was told of free blocks");
    Ok(bytes)
}

/// Is a group worth asking for? Not if nobody answers for it; and not if it would have to be taken over from a slot without
/// a host for this: the next mount there would rather find it. Nobody has freed anything in it since that host left.
fn is_answered_for(members: &Membership, ag: AgNo, slots: u16) -> bool {
    match members.owner_of(ag).0 {
        Owner::Master(slot) => slot == members.me || !members.is_silent(slot),
        Owner::Adopter(slot) => {
            is_dealt_to(ag, slot, slots) && (slot == members.me || !members.is_silent(slot))
        }
        _ => false,
    }
}

impl Trim<'_> {
    fn all(&mut self, start: BlockNo, end: BlockNo) -> Result<()> {
        let (geometry, members) = (&self.core.geometry, self.core.cluster.membership());
        let held = self.core.alloc.held();
        let groups = (0..geometry.ag_count).map(AgNo);
        let touched = groups.filter(|ag| {
            let first = geometry.ag_start(*ag);
            first < end && first.plus(geometry.ag_len(*ag)) > start
        });
        let (asked, left): (Vec<AgNo>, Vec<AgNo>) =
            touched.partition(|ag| is_answered_for(&members, *ag, self.core.slots));
        if !left.is_empty() {
            tracing::info!(groups = left.len(), "not trimmed: groups of slots without a host that answers");
        }
        let mut visits: VecDeque<Visit> = asked
            .into_iter()
            .map(|ag| Visit {
                sweep: Sweep::new(ag, start.max(geometry.ag_start(ag)), end),
                held: held.contains(&ag),
                again: 0,
                not_before: Instant::now(),
            })
            .collect();
        while let Some(mut visit) = visits.pop_front() {
            self.pause_until(visit.not_before)?;
            let through = self.visit(&mut visit.sweep)?;
            if !visit.held {
                self.core.locks.drop_idle(LockName::Ag(visit.sweep.ag));
            }
            if through {
                continue;
            }
            visit.again += 1;
            if visit.again > AGAIN_MAX {
                tracing::info!(group = %visit.sweep.ag, "not trimmed to its end: other hosts need it");
                continue;
            }
            visit.not_before = Instant::now() + (AGAIN_PAUSE * visit.again).min(AGAIN_PAUSE_MAX);
            visits.push_back(visit);
        }
        Ok(())
    }

    /// Go on?
    fn check(&self) -> Result<()> {
        self.core.store.halt().check()?;
        if (self.is_over)() || self.core.stopping.load(Ordering::Acquire) {
            return Err(Error::Interrupted);
        }
        Ok(())
    }

    fn pause_until(&self, time: Instant) -> Result<()> {
        loop {
            self.check()?;
            let left = time.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(AGAIN_PAUSE));
        }
    }

    /// Go on with a group until its end, or until another host wants it; answers whether it is through.
    fn visit(&mut self, sweep: &mut Sweep) -> Result<bool> {
        let name = LockName::Ag(sweep.ag);
        let _pins = self.core.locks.acquire_wait(LockSet::one(name, Mode::X))?;
        while !sweep.is_done() {
            self.check()?;
            match self.next(sweep) {
                Ok(()) => {}
                Err(Error::NeedSpace) => return Ok(false),
                // Said by then, and fsck's to mend; the others are sound.
                Err(Error::Corrupt { .. }) => return Ok(true),
                Err(e) => return Err(e),
            }
            if !sweep.is_done() && self.core.locks.is_wanted_elsewhere(name) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Discard the next run, or a beginning of it.
    fn next(&mut self, sweep: &mut Sweep) -> Result<()> {
        let name = LockName::Ag(sweep.ag);
        let Some(unused) = self.core.alloc.next_unused(sweep, &self.wish)? else { return Ok(()) };
        let run = unused.run();
        let (mut at, end) = (run.start, run.start.plus(run.blocks));
        while at < end {
            let most = self.pace.bytes.max(self.wish.granule) / BLOCK;
            let next = self.wish.cut(at, most).min(end);
            let (blocks, began) = (next.0 - at.0, Instant::now());
            self.core.store.discard(at, blocks)?;
            self.pace.took(blocks * BLOCK, began.elapsed());
            self.bytes += blocks * BLOCK;
            at = next;
            let wanted = || unused.is_sought() || self.core.locks.is_wanted_elsewhere(name);
            if at < end && (wanted() || self.check().is_err()) {
                sweep.back_to(at);
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_as_other_filesystems_see_them() {
        let geometry = Geometry {
            total_blocks: 100_000,
            max_slots: 2,
            cell_pitch: 512,
            ledger_pages: 1,
            ag_blocks: 2048,
            ag_count: 40,
        };
        let of = |start, length, least| TrimRange { start, length, least }.blocks(&geometry);
        assert_eq!(of(0, u64::MAX, 0), Ok((BlockNo(0), BlockNo(100_000), 0)));
        assert_eq!(of(1, 8192, 4097), Ok((BlockNo(1), BlockNo(2), 2)), "whole blocks of the range");
        assert_eq!(of(u64::MAX / 2, u64::MAX, 0), Err(Error::Invalid("no such range of the volume")));
        assert!(of(100_000 * BLOCK, BLOCK, 0).is_err() && of(100_000 * BLOCK - 1, BLOCK, 0).is_ok());
        assert!(of(0, BLOCK - 1, 0).is_err() && of(0, BLOCK, 2049 * BLOCK).is_err());
    }

    #[test]
    fn a_slow_device_gets_little_at_a_time() {
        let mut pace = Pace::new(Duration::from_secs(10), 8 << 20);
        for expected in [2, 4, 8, 8] {
            pace.took(pace.bytes, Duration::from_millis(50));
            assert_eq!(pace.bytes, expected << 20);
        }
        pace.took(pace.bytes, Duration::from_millis(300));
        assert_eq!(pace.bytes, 8 << 20);
        for _ in 0..10 {
            pace.took(pace.bytes, Duration::from_millis(600));
        }
        assert_eq!(pace.bytes, LEAST_BYTES);
        pace.took(4096, Duration::ZERO);
        assert_eq!(pace.bytes, LEAST_BYTES, "a small one says little of larger ones");
        assert_eq!(Pace::new(Duration::from_secs(10), 65536).bytes, 65536);
    }
}
