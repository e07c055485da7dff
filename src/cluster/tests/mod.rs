//! Several mounts in one process on one device in memory, whose writes land sector by sector, so
//! that reads overlap them.

mod anew;
mod churn;
mod command;
mod death;
mod faults;
mod fencer;
mod known;
mod life;
mod mail;
mod proof;
mod starved;
mod takeover;
mod torn;
mod tune;
mod words;

use super::*;
use crate::base::{AgNo, Clock, Error, SystemClock, Token};
use crate::device::BlockDevice;
use crate::format::cluster::heartbeat::DeviceFile;
use crate::format::cluster::{Claim, initial_regions};
use crate::format::layout::{Geometry, LOBBY_CELLS};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

pub const FORMAT: u64 = 0x1234_5678;
pub const SLOTS: u16 = 4;

/// Quick, but obeying the inequalities.
pub const QUICK: Timing = Timing {
    heartbeat: Duration::from_millis(40),
    lease: Duration::from_millis(500),
    guard: Duration::from_millis(120),
    suspicion: Duration::from_millis(550),
    write_life: Duration::from_millis(100),
};

pub fn geometry() -> Geometry {
    Geometry {
        total_blocks: 1 << 16,
        max_slots: SLOTS,
        cell_pitch: 512,
        ledger_pages: 1,
        ag_blocks: 1 << 11,
        ag_count: 12,
    }
}

/// Requests that a look at the row of heartbeats makes when all fail: for all cells, then for each.
pub const ROW_READS: u64 = 1 + SLOTS as u64;

/// Is this where a cell of that row is?
pub fn is_row(at: u64) -> bool {
    let cell = |slot| geometry().heartbeat_cell(crate::base::SlotId(slot));
    (cell(0)..cell(SLOTS)).contains(&at)
}

/// The medium, shared by all mounts.
pub struct Medium {
    sectors: Vec<RwLock<[u8; 512]>>,
    /// Byte ranges held, and by which mount.
    ranges: Mutex<BTreeMap<(u64, u64), u64>>,
    next_mount: AtomicU64,
    /// Sectors that cannot be read until they are written.
    unreadable: Mutex<BTreeSet<u64>>,
    /// Claims are from a release that does not say which mounts are over.
    pub wordless: AtomicBool,
}

impl Medium {
    pub fn formatted() -> Arc<Medium> {
        let bytes = geometry().groups_start().byte();
        let medium = Arc::new(Medium {
            sectors: (0..bytes / 512).map(|_| RwLock::new([0; 512])).collect(),
            ranges: Mutex::default(),
            next_mount: AtomicU64::new(1),
            unreadable: Mutex::default(),
            wordless: AtomicBool::new(false),
        });
        let port = medium.port();
        initial_regions(FORMAT, &geometry(), SLOTS, &mut |at, bytes| port.write(at, bytes)).unwrap();
        medium
    }

    /// As a power cut leaves what was being written.
    pub fn tear(&self, offset: u64, length: u64) {
        self.unreadable.lock().extend(offset / 512..(offset + length) / 512);
    }

    pub fn is_torn(&self, offset: u64) -> bool {
        self.unreadable.lock().contains(&(offset / 512))
    }

    /// A mount's own way to the medium.
    pub fn port(self: &Arc<Medium>) -> Arc<Port> {
        let mount = self.next_mount.fetch_add(1, Ordering::Relaxed);
        Arc::new(Port {
            medium: self.clone(),
            mount,
            gate: RwLock::new(()),
            broken: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            hook: Mutex::default(),
        })
    }

    pub fn disk(self: &Arc<Medium>) -> Disk {
        disk_of(self.port())
    }

    fn wordless(&self, offset: u64, data: &[u8]) -> Option<Vec<u8>> {
        let cells = 0..LOBBY_CELLS;
        let cell = cells.into_iter().find(|cell| geometry().lobby_cell(*cell) == offset)?;
        let claim = Claim::from_cell(data, FORMAT, &geometry(), cell).ok()?;
        let wordless = self.wordless.load(Ordering::Relaxed);
        wordless.then(|| Claim { over: vec![], ..claim }.to_cell(FORMAT, &geometry(), cell))
    }
}

pub fn disk_of(port: Arc<Port>) -> Disk {
    Disk { device: port, format_id: FORMAT, geometry: geometry() }
}

/// One mount's device: can be paused (as by SIGSTOP) and broken.
pub struct Port {
    medium: Arc<Medium>,
    mount: u64,
    /// Held exclusively while the mount is paused.
    pub gate: RwLock<()>,
    pub broken: AtomicBool,
    pub requests: AtomicU64,
    hook: Mutex<Option<Arc<Hook>>>,
}

/// Told of each request and its offset before it is done: may wait; `false` makes it fail.
pub type Hook = dyn Fn(&str, u64) -> bool + Send + Sync;

impl Port {
    pub fn set_hook(&self, hook: impl Fn(&str, u64) -> bool + Send + Sync + 'static) {
        *self.hook.lock() = Some(Arc::new(hook));
    }

    fn enter(&self, op: &'static str, offset: u64) -> Result<()> {
        drop(self.gate.read());
        self.requests.fetch_add(1, Ordering::Relaxed);
        let hook = self.hook.lock().clone();
        if hook.is_some_and(|hook| !hook(op, offset)) {
            return Err(Error::Io { op, offset, length: 0, cause: "hooked by the test".into() });
        }
        match self.broken.load(Ordering::Relaxed) {
            true => Err(Error::Io { op, offset: 0, length: 0, cause: "broken by the test".into() }),
            false => Ok(()),
        }
    }
}

impl BlockDevice for Port {
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.enter("read", offset)?;
        assert_eq!((offset % 512, buf.len() % 512), (0, 0));
        let end = (offset + buf.len() as u64) / 512;
        if self.medium.unreadable.lock().range(offset / 512..end).next().is_some() {
            return Err(Error::Io { op: "read", offset, length: buf.len() as u64, cause: "torn".into() });
        }
        for (i, piece) in buf.chunks_mut(512).enumerate() {
            piece.copy_from_slice(&*self.medium.sectors[offset as usize / 512 + i].read());
        }
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.enter("write", offset)?;
        assert_eq!((offset % 512, data.len() % 512), (0, 0));
        let sectors = offset / 512..(offset + data.len() as u64) / 512;
        self.medium.unreadable.lock().retain(|sector| !sectors.contains(sector));
        let wordless = self.medium.wordless(offset, data);
        for (i, piece) in wordless.as_deref().unwrap_or(data).chunks(512).enumerate() {
            self.medium.sectors[offset as usize / 512 + i].write().copy_from_slice(piece);
            if i % 3 == 1 {
                std::thread::yield_now();
            }
        }
        Ok(())
    }
    fn flush(&self) -> Result<()> {
        self.enter("flush", 0)
    }
    fn discard(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }
    fn size(&self) -> u64 {
        self.medium.sectors.len() as u64 * 512
    }
    fn logical_block(&self) -> u32 {
        512
    }
    fn physical_block(&self) -> u32 {
        512
    }
    fn name(&self) -> String {
        "memory".into()
    }
}

impl SlotClaim for Port {
    fn try_hold(&self, offset: u64, length: u64) -> Result<bool> {
        let mut ranges = self.medium.ranges.lock();
        Ok(*ranges.entry((offset, length)).or_insert(self.mount) == self.mount)
    }
    fn release(&self, offset: u64, length: u64) -> Result<()> {
        let mut ranges = self.medium.ranges.lock();
        if ranges.get(&(offset, length)) == Some(&self.mount) {
            ranges.remove(&(offset, length));
        }
        Ok(())
    }
}

/// The file is closed.
impl Drop for Port {
    fn drop(&mut self) {
        self.medium.ranges.lock().retain(|_, mount| *mount != self.mount);
    }
}

/// Records what the lease sink is told.
#[derive(Default)]
pub struct Lease {
    pub write_until: Mutex<Duration>,
    pub renewals: AtomicU64,
    pub lost: Mutex<Option<String>>,
    /// Another volume was made on the device.
    pub replaced: AtomicBool,
    /// The mount is told to end.
    pub unwanted: AtomicBool,
}

impl LeaseSink for Lease {
    fn renewed(&self, lease_end: Duration, write_until: Duration) {
        assert!(self.lost.lock().is_none(), "renewed after it was lost");
        assert_eq!(lease_end, write_until + QUICK.guard);
        *self.write_until.lock() = write_until;
        self.renewals.fetch_add(1, Ordering::Relaxed);
    }
    fn confirm(&self) -> Result<()> {
        match self.replaced.load(Ordering::Relaxed) {
            false => Ok(()),
            true => Err(Error::Device("another volume".into())),
        }
    }
    fn is_unwanted(&self) -> bool {
        self.unwanted.load(Ordering::Relaxed)
    }
    fn lost(&self, reason: &str) {
        *self.lost.lock() = Some(reason.into());
    }
}

/// A mount under test.
pub struct Host {
    pub cluster: Cluster,
    pub report: JoinReport,
    pub lease: Arc<Lease>,
    pub port: Arc<Port>,
}

/// How a mount stands to the others.
#[derive(Clone, Copy, PartialEq)]
pub enum Where {
    /// On the same machine, image file on a local filesystem.
    Here,
    /// On a machine of its own.
    Elsewhere,
}

pub fn options(name: &str, place: Where, port: &Arc<Port>, lease: &Arc<Lease>) -> JoinOptions {
    let here = place == Where::Here;
    JoinOptions {
        usable: (1 << SLOTS) - 1,
        timing: QUICK,
        profile: None,
        host: [1; 16],
        boot: if here { [2; 16] } else { rand::random() },
        name: name.into(),
        device: "memory".into(),
        file: DeviceFile { dev: 1, ino: 2, rdev: 0 },
        local: here,
        prove: true,
        fence: FenceOptions::leases("memory"),
        claim: here.then(|| port.clone() as Arc<dyn SlotClaim>),
        clock: Arc::new(SystemClock),
        lease: lease.clone(),
        patience: Duration::from_secs(20),
    }
}

pub fn try_join(medium: &Arc<Medium>, name: &str, place: Where) -> Result<Host> {
    join_by(medium.port(), name, place)
}

pub fn join_by(port: Arc<Port>, name: &str, place: Where) -> Result<Host> {
    let lease = Arc::new(Lease::default());
    let (cluster, report) = Cluster::join(disk_of(port.clone()), options(name, place, &port, &lease))?;
    Ok(Host { cluster, report, lease, port })
}

pub fn join(medium: &Arc<Medium>, name: &str, place: Where) -> Host {
    try_join(medium, name, place).unwrap()
}

pub fn now() -> Duration {
    SystemClock.now()
}

/// Wait until `test` holds, at most 20 seconds.
pub fn eventually(what: &str, test: impl Fn() -> bool) {
    let limit = now() + Duration::from_secs(20);
    while !test() {
        assert!(now() < limit, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn adopt(host: &Host, ag: u32) -> Result<Token> {
    let limit = now() + Duration::from_secs(10);
    loop {
        match host.cluster.adopt(AgNo(ag)) {
            // A busy machine may starve the protocol thread beyond our very short lease.
            Err(Error::Busy(why)) if why.contains("lease") && now() < limit => {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}
