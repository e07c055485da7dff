//! Makes a Shoal volume. `make` is the whole of it; `guard` is what must be asked before.
//!
//! Order: everything that could be taken for an earlier volume is wiped and flushed, then all
//! regions, groups and journals are written and flushed, then backups and, last of all, the
//! superblock. A cut at any point leaves either no volume or a complete one.

pub mod guard;
pub mod plan;
mod report;
pub mod reserved;
mod write;

use plan::Layout;
use shoal::base::{Error, Result};
use shoal::device::BlockDevice;
use shoal::format::superblock::TimingProfile;
use shoal::format::volume::LABEL_MAX;
use std::io::Read;
use std::time::SystemTime;

/// What the user may wish for; the default is a good volume of the device's size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes to use; all of the device if `None`.
    pub size: Option<u64>,
    /// At most 64 bytes of UTF-8 without NUL.
    pub label: String,
    /// Made up if `None`.
    pub uuid: Option<[u8; 16]>,
    /// Slots with a journal: how many hosts can mount before any is added.
    pub slots: Option<u16>,
    /// Bytes of each journal.
    pub journal: Option<u64>,
    /// Heartbeat and lease times.
    pub timing: TimingProfile,
    /// Bytes between single-writer cells; the larger of the device's block sizes if `None`. An
    /// image that will be copied to a disk of 4 KiB blocks needs 4096.
    pub cell_pitch: Option<u32>,
    /// Do not tell the device that its old content is unused.
    pub keep_content: bool,
    /// What differs between two volumes made alike; from the machine's randomness and clock if `None`.
    pub identity: Option<Identity>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            size: None,
            label: String::new(),
            uuid: None,
            slots: None,
            journal: None,
            timing: TimingProfile::Default,
            cell_pitch: None,
            keep_content: false,
            identity: None,
        }
    }
}

/// What makes a volume one of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// In every header; never 0.
    pub format_id: u64,
    pub uuid: [u8; 16],
    /// Of the directories' hash.
    pub hash_seed: [u8; 16],
    /// Seconds since 1970.
    pub created: u64,
}

impl Identity {
    /// A new one.
    ///
    /// # Errors
    /// `Device` if the machine has no randomness to give.
    pub fn random() -> Result<Identity> {
        let mut bytes = [0; 24];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut f| f.read_exact(&mut bytes))
            .map_err(|e| Error::Device(format!("/dev/urandom: {e}")))?;
        let id = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Ok(Identity {
            format_id: id.max(1),
            uuid: uuid::Uuid::new_v4().into_bytes(),
            hash_seed: bytes[8..].try_into().expect("16 bytes"),
            created: now.as_secs(),
        })
    }
}

/// What was made, or would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Path as the user gave it.
    pub device: String,
    pub label: String,
    pub timing: TimingProfile,
    pub identity: Identity,
    pub layout: Layout,
}

/// Decide the layout of a volume on `dev` without writing anything.
///
/// # Errors
/// `Device` in words: too small, too large, wishes that do not fit.
pub fn dry_run(dev: &dyn BlockDevice, options: &Options) -> Result<Summary> {
    let pitch = dev.logical_block().max(dev.physical_block()).clamp(512, 4096);
    let asked = options.cell_pitch.unwrap_or(pitch);
    if asked < dev.logical_block() {
        return Err(Error::Device(format!(
            "{}: cells of {asked} bytes cannot be written alone to blocks of {}",
            dev.name(),
            dev.logical_block()
        )));
    }
    let size = options.size.unwrap_or_else(|| dev.size());
    if size > dev.size() {
        return Err(Error::Device(format!("{} has {} bytes, not {size}", dev.name(), dev.size())));
    }
    if options.label.len() > LABEL_MAX || options.label.contains('\0') {
        return Err(Error::Device(format!("a label has at most {LABEL_MAX} bytes and no NUL")));
    }
    let layout = plan::plan(size, asked, options).map_err(|e| {
        if let Error::Device(why) = e { Error::Device(format!("{}: {why}", dev.name())) } else { e }
    })?;
    let mut identity = match options.identity {
        Some(identity) => identity,
        None => Identity::random()?,
    };
    identity.uuid = options.uuid.unwrap_or(identity.uuid);
    Ok(Summary { device: dev.name(), label: options.label.clone(), timing: options.timing, identity, layout })
}

/// Make a volume on `dev`, whatever stands there: ask [`guard::check`] before.
///
/// # Errors
/// Those of [`dry_run`], and `Io`; the device holds no volume then.
pub fn make(dev: &dyn BlockDevice, options: &Options) -> Result<Summary> {
    let summary = dry_run(dev, options)?;
    write::write(dev, &summary, options.keep_content)?;
    Ok(summary)
}
