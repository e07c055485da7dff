//! Becoming a member: from a device path to the operations.

use super::coherence::Hook;
use super::*;
use crate::base::SystemClock;
use crate::cluster::disk::Disk;
use crate::cluster::node::HostReport;
use crate::cluster::{Cluster, JoinOptions, JoinReport, LeaseSink, SlotClaim, Timing, profile};
use crate::device::pr::KernelReservations;
use crate::device::probe::{self, Identity};
use crate::device::{
    Access, BlockDevice, FileDevice, Fitness, Meter, Region, Reservations, Sentinel, fitness,
};
use crate::format::cluster::heartbeat::DeviceFile;
use crate::format::foreign;
use crate::format::layout::Regions;
use crate::format::superblock::{self, LoadedFrom, Superblock};
use crate::format::volume::{self, SlotExtents, Volume};
use crate::journal::{Journal, JournalConfig};
use crate::lock::{Demoter, LockConfig};
use std::sync::mpsc::RecvTimeoutError;

/// How long living members are asked to let us in: longer than they need to take over from one that died,
/// for before that they let nobody in.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often the heartbeat's figures are renewed, and idle locks looked at.
const REPORT: Duration = Duration::from_secs(1);
/// Inodes in memory above which those nobody uses become quiet.
const NODES_MAX: usize = 50_000;
/// Cached locks above which idle ones are given up.
const LOCKS_MAX: usize = 100_000;

/// Byte-range locks on the open device file.
struct Claim(Arc<FileDevice>);

impl SlotClaim for Claim {
    fn try_hold(&self, offset: u64, length: u64) -> Result<bool> {
        self.0.try_lock_range(offset, length)
    }

    fn release(&self, offset: u64, length: u64) -> Result<()> {
        self.0.unlock_range(offset, length)
    }
}

/// What a mount stands on.
pub struct Backing {
    pub device: Arc<dyn BlockDevice>,
    /// Byte-range locks on the file behind it.
    pub claim: Arc<dyn SlotClaim>,
    pub identity: Identity,
    /// Persistent reservations of the device, if it may have any, and whether they may be used.
    pub reservations: Option<Arc<dyn Reservations>>,
    pub fitness: Fitness,
    /// Of a block device: its file could not be locked, so nothing is known of other processes that have it.
    pub unlocked: bool,
}

impl Backing {
    /// A block device, opened exclusively, or an image file.
    pub(super) fn open(path: &std::path::Path) -> Result<Backing> {
        let device = Arc::new(FileDevice::open(path, Access::Mount)?);
        let identity = probe::identity(device.file())?;
        let fitness = fitness(&device);
        let reservations = Some(Arc::new(KernelReservations::new(device.clone())) as Arc<dyn Reservations>);
        let unlocked = identity.rdev != 0 && !device.is_present();
        let claim = Arc::new(Claim(device.clone()));
        Ok(Backing { claim, device, identity, reservations, fitness, unlocked })
    }
}

/// A device with what its superblock and volume block say.
pub(super) struct Opened {
    pub backing: Backing,
    pub superblock: Superblock,
    pub volume: Volume,
}

pub(super) fn load(backing: Backing, options: &MountOptions) -> Result<Opened> {
    let device = &backing.device;
    let (superblock, from) = superblock::load(&**device).map_err(|e| with_foreign(e, &**device))?;
    if let LoadedFrom::Backup(block) = from {
        tracing::warn!(
            "{}: the superblock is damaged; using its backup in block {block}. Run fsck.shoal on the unmounted volume",
            options.device.display()
        );
    }
    superblock.check_features(!options.read_only)?;
    let mut volume = volume::load(&**device, &superblock)?;
    volume.check_features()?;
    let (format_id, geometry) = (superblock.format_id, superblock.geometry);
    let disk = Disk { device: device.clone(), format_id, geometry };
    volume.timing = profile(&disk, volume.timing)?;
    Ok(Opened { backing, superblock, volume })
}

/// Says what else is on a device without a usable superblock.
fn with_foreign(error: Error, device: &dyn BlockDevice) -> Error {
    let found = foreign::signatures(device).unwrap_or_default();
    match (error, &found[..]) {
        (Error::Device(why), [first, ..]) => Error::Device(format!("{why}; it contains {}", first.what)),
        (other, _) => other,
    }
}

/// What this host is called.
pub(super) fn host_name(options: &MountOptions) -> String {
    if let Some(name) = &options.host_name {
        return name.clone();
    }
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// The cluster's part of the disk, and how a mount of `options` joins.
pub(super) fn joining(
    opened: &Opened,
    options: &MountOptions,
    lease: Arc<dyn LeaseSink>,
) -> Result<(Disk, JoinOptions)> {
    let Backing { device, claim, identity: id, .. } = &opened.backing;
    let timing = Timing::of(opened.volume.timing);
    let geometry = opened.superblock.geometry;
    let disk = Disk { device: device.clone(), format_id: opened.superblock.format_id, geometry };
    let slots = opened.volume.slots.len();
    let join = JoinOptions {
        usable: if slots >= 64 { u64::MAX } else { (1 << slots) - 1 },
        timing,
        profile: Some(opened.volume.timing),
        host: id.machine_id.unwrap_or_else(|| uuid::Uuid::new_v4().into_bytes()),
        boot: id.boot_id,
        fence: fencing::options(&opened.backing, options, &timing)?,
        name: host_name(options),
        device: options.device.display().to_string(),
        file: DeviceFile { dev: id.dev, ino: id.ino, rdev: id.rdev },
        local: id.local_filesystem,
        prove: options.prove_gone && !opened.backing.unlocked,
        claim: id.local_filesystem.then(|| claim.clone()),
        clock: Arc::new(SystemClock),
        lease,
        patience: PATIENCE,
    };
    Ok((disk, join))
}

/// The parts of the volume whose requests are counted apart.
fn regions(geometry: &Geometry, volume: &Volume) -> Vec<Region> {
    let Regions { heartbeat, ballots, ledgers, inbox, lobby, end, .. } = geometry.regions();
    let region =
        |name, start: u64, end: u64| Region { name, start: BlockNo(start).byte(), end: BlockNo(end).byte() };
    let mut all = vec![
        region("heartbeat", heartbeat, ballots),
        region("ballot", ballots, ledgers),
        region("ledger", ledgers, inbox),
        region("inbox", inbox, lobby),
        region("lobby", lobby, end),
    ];
    let journal = |slot: &SlotExtents| {
        region("journal", slot.journal_start.0, slot.journal_start.0 + slot.journal_blocks)
    };
    all.extend(volume.slots.iter().map(journal));
    all
}

/// Mount: become a member, recover what dead hosts left if nobody else lives, start the threads.
///
/// # Errors
/// With what is wrong and what to do; then nothing is left behind, unless the device fails so that we
/// cannot leave either: to the others that is a crash.
pub fn start(options: &MountOptions, kernel: Arc<dyn KernelCache>) -> Result<Arc<Fs>> {
    start_on(Backing::open(&options.device)?, options, kernel)
}

/// As [`start`] on a device that is open already; `options.device` is only its name.
///
/// # Errors
/// Those of [`start`].
pub fn start_on(backing: Backing, options: &MountOptions, kernel: Arc<dyn KernelCache>) -> Result<Arc<Fs>> {
    start_wrapped(backing, options, kernel, &|demoter| demoter)
}

/// As [`start_on`]; what the lock room wants emptied goes through what `wrap` makes of the file system's
/// own demoter. Simulations look on there, and bend it.
///
/// # Errors
/// Those of [`start`].
pub fn start_wrapped(
    backing: Backing,
    options: &MountOptions,
    kernel: Arc<dyn KernelCache>,
    wrap: &dyn Fn(Arc<dyn Demoter>) -> Arc<dyn Demoter>,
) -> Result<Arc<Fs>> {
    let mut opened = load(backing, options)?;
    let Superblock { geometry, format_id, .. } = opened.superblock;
    let sentinel = Arc::new(Sentinel::new(opened.backing.device.clone()));
    let metered = Arc::new(Meter::new(sentinel.clone(), regions(&geometry, &opened.volume)));
    opened.backing.device = metered.clone();
    let store = Store::new(metered, format_id, geometry, options.cache_bytes);
    let lease = Arc::new(lease::Lease::new(&store, &kernel));
    let (cluster, report) = tune::join(&mut opened, options, lease)?;
    fencing::halt_when_fenced(&sentinel, &store);
    if let Some(warning) = &report.warning {
        tracing::warn!("{warning}");
    }
    let cluster = Arc::new(cluster);
    let fs = match assemble(&opened, store.clone(), cluster.clone(), &report, options, kernel, wrap) {
        Ok(core) => Fs { core },
        Err(e) => {
            // We hold no lock and have logged nothing yet.
            tell_left(store.halt().check().and_then(|()| cluster.leave()));
            return Err(e);
        }
    };
    match fs.core.begin(&report.replay) {
        Ok(()) => Ok(Arc::new(fs)),
        Err(e) => {
            tell_left(unwanted::in_time(&fs.core, || fs.end_with(Core::withdraw)));
            Err(e)
        }
    }
}

/// What became of leaving after a failed start.
fn tell_left(left: Result<()>) {
    if let Err(e) = left {
        tracing::warn!("cannot leave, to the others this host has crashed: {e}");
    }
}

/// Replay what is ours to replay and put the rooms together; nothing is told to the cluster yet.
fn assemble(
    opened: &Opened,
    store: Arc<Store>,
    cluster: Arc<Cluster>,
    report: &JoinReport,
    options: &MountOptions,
    kernel: Arc<dyn KernelCache>,
    wrap: &dyn Fn(Arc<dyn Demoter>) -> Arc<dyn Demoter>,
) -> Result<Arc<Core>> {
    let geometry = opened.superblock.geometry;
    if !report.replay.is_empty() {
        // Replay writes, also for a read-only mount.
        opened.superblock.check_features(true)?;
    }
    let able = opened.superblock.check_features(true).is_ok();
    let recovery = takeover::Recovery::new(&opened.volume, Timing::of(opened.volume.timing), able);
    // There is no other member, or there would be nothing to replay yet: no torn block is in anybody's hands.
    let wanted = || unwanted::check_wanted(&*kernel);
    recovery.replay_all(&store, &cluster, &report.replay, None, &wanted)?;
    let slot = report.slot;
    let config = JournalConfig { commit_interval: options.commit_interval, ..JournalConfig::default() };
    let journal = Journal::open(store.clone(), recovery.journal(slot)?, slot, config)?;
    let tree = recovery.tree(slot)?;
    let reaper = Arc::<reap::Queue>::default();
    let deferral = Arc::new(reap::SlotDeferral { tree, reaper: reaper.clone() });
    let oracle = Arc::new(drain::JournalWatch::new(cluster.clone(), journal.clone()));
    let alloc = Allocator::with_oracle(store.clone(), journal.clone(), deferral, oracle);
    let hook = Arc::new(Hook::default());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let locks = LockManager::new(LockConfig::new(clock.clone()), geometry, slot, wrap(hook.clone()));
    let core = Arc::new(Core {
        store,
        journal,
        alloc,
        locks,
        cluster,
        clock,
        kernel,
        nodes: NodeTable::new(InodeNo(opened.superblock.root_inode)),
        slot,
        slots: opened.volume.slots.len() as u16,
        root: InodeNo(opened.superblock.root_inode),
        geometry,
        read_only: AtomicBool::new(options.read_only),
        synchronous: options.synchronous,
        pool: PagePool::new(options.dirty_bytes as u64),
        seed: opened.superblock.hash_seed,
        slot_tree: tree,
        slot_lock: Arc::default(),
        handles: handles::Handles::default(),
        reaper,
        in_vain: coming::InVain::default(),
        ahead: ahead::Ahead::default(),
        walks: walk::Queue::default(),
        recovery,
        writeback: writeback::Signal::default(),
        doubts: giving_up::Doubts::default(),
        statfs: statfs::Cache::default(),
        confirmations: filelocks::Confirmations::begin()?,
        looks: Arc::default(),
        next_id: AtomicU64::new(1),
        threads: Mutex::default(),
        stopping: AtomicBool::new(false),
        safe: sync::Safe::default(),
        hook: hook.clone(),
        warning: report.warning.clone(),
    });
    *hook.core.write() = Some(core.clone());
    Ok(core)
}

impl Core {
    /// From being put together to being usable.
    fn begin(self: &Arc<Self>, replay: &[SlotId]) -> Result<()> {
        let recovered = self.connect().and_then(|()| self.recover(replay));
        self.cluster.set_replaying(None);
        recovered.inspect_err(|e| {
            // Half recovered: the journals stay as they are, and ours with them, for the next mount.
            self.store.halt().trip(format!("the mount failed: {e}"));
        })?;
        self.start_threads()?;
        // From here on this host waits for locks, perhaps for those of a host that dies.
        if self.recovery.is_able() {
            let core = Arc::downgrade(self);
            self.cluster.on_fenced(Box::new(move |slots| {
                if let Some(core) = core.upgrade() {
                    core.recovery.fenced(slots);
                }
            }));
        }
        self.look_at_root()
    }

    /// Lock room and cluster room learn of each other.
    fn connect(self: &Arc<Self>) -> Result<()> {
        let journal = Arc::downgrade(&self.journal);
        self.cluster.on_beat(Box::new(move || journal.upgrade().map(|j| j.positions())));
        let cluster = Arc::downgrade(&self.cluster);
        self.locks.on_wake(Box::new(move || {
            if let Some(cluster) = cluster.upgrade() {
                cluster.wake();
            }
        }));
        let cluster = Arc::downgrade(&self.cluster);
        self.locks.on_adopt(Box::new(move |ag| match cluster.upgrade() {
            Some(cluster) => cluster.adopt(ag),
            None => Err(Error::Busy("the mount is ending".into())),
        }));
        let core = Arc::downgrade(self);
        self.store.halt().on_trip(move |reason| {
            if let Some(core) = core.upgrade() {
                core.locks.halt(reason);
                core.cluster.abandon();
                core.empty_kernel_for_good();
            }
        });
        self.cluster.start(self.locks.clone())
    }

    /// After replay: take over the orphans of the dead, then tell the cluster that they are clean. No
    /// group is ours before that, so a move that takes a block must wait.
    fn recover(self: &Arc<Self>, replayed: &[SlotId]) -> Result<()> {
        if replayed.is_empty() {
            return Ok(());
        }
        self.adopt_slots(replayed)?;
        self.cluster.recovered(replayed)
    }

    /// The root must be there before anybody is told that the mount is. While the lease is renewed, others
    /// are waited for; they may be taking over from somebody. Without a device that would be for ever.
    fn look_at_root(self: &Arc<Self>) -> Result<()> {
        unwanted::check_wanted(&*self.kernel)?;
        let (sender, granted) = std::sync::mpsc::channel();
        self.locks.acquire(inode(self.root, Mode::S), Box::new(move |pins| drop(sender.send(pins))));
        let _pins = loop {
            match granted.recv_timeout(REPORT) {
                Ok(pins) => break pins?,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::Halted("the lock manager is gone".into()));
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.is_hopeless()?;
                    unwanted::check_wanted(&*self.kernel)?;
                }
            }
        };
        let node = self.nodes.get(self.root);
        let mut state = node.state.lock();
        self.load_dir(&node, &mut state).map(|_| ())
    }

    /// An error once the lease has been over for too long.
    fn is_hopeless(&self) -> Result<()> {
        let end = self.store.permit().lease_end().unwrap_or(Duration::MAX);
        let over = self.clock.now().saturating_sub(end);
        if over <= self.recovery.patience {
            return Ok(());
        }
        let why = format!("the device does not answer: the lease ended {:.1} s ago", over.as_secs_f32());
        self.store.halt().trip(format!("the mount failed: {why}"));
        Err(Error::Device(why))
    }

    /// Tells the heartbeat what this host has, and keeps the lock cache bounded.
    pub(super) fn run_report(self: &Arc<Self>) {
        while !self.stopping.load(Ordering::Acquire) {
            let held = self.alloc.held();
            let free_data = held.iter().filter_map(|ag| self.alloc.free_blocks(*ag)).sum();
            let groups = held.len() as u64;
            held.iter().for_each(|ag| self.alloc.set_abroad(*ag, !self.locks.masters(LockName::Ag(*ag))));
            self.alloc.set_home_full(false);
            self.cluster.set_report(HostReport { free_data, groups, ..HostReport::default() });
            if let Err(e) = self.alloc.maintain() {
                tracing::warn!("looking after chunks: {e}");
            }
            self.forget_ahead();
            if self.nodes.awake() > NODES_MAX {
                self.nodes.quieten(NODES_MAX);
            }
            if self.locks.cached() > LOCKS_MAX {
                self.locks.shrink(LOCKS_MAX * 3 / 4);
            }
            std::thread::park_timeout(REPORT);
        }
    }
}

impl Fs {
    /// A read-only mount may write from now on.
    ///
    /// # Errors
    /// `ReadOnly` if the volume has features that this version may only read; `Halted`.
    pub fn make_writable(&self) -> Result<()> {
        let core = &self.core;
        core.store.halt().check()?;
        if !core.recovery.is_able() {
            return Err(Error::ReadOnly);
        }
        if core.read_only.swap(false, Ordering::AcqRel) {
            tracing::info!("read-write from now on");
            // What was unlinked and could not be freed.
            core.reaper.look_soon();
        }
        Ok(())
    }

    /// What the administrator must be told at the mount.
    pub fn warning(&self) -> Option<&str> {
        self.core.warning.as_deref()
    }

    /// Call `tell` with the reason once this host halts.
    pub fn on_halt(&self, tell: impl Fn(&str) + Send + Sync + 'static) {
        self.core.store.halt().on_trip(tell);
    }
}
