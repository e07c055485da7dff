//! `mkfs.shoal`: the command line around the library.

use clap::Parser;
use shoal::base::Error;
use shoal::device::{Access, FileDevice};
use shoal::format::superblock::TimingProfile;
use shoal_mkfs::{Options, Summary, guard, reserved};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// Make a Shoal cluster filesystem on a block device or in an image file.
#[derive(Parser, Debug)]
#[command(name = "mkfs.shoal", version)]
struct Arguments {
    /// Show what would be made, write nothing.
    #[arg(short = 'n')]
    dry_run: bool,
    /// Overwrite a filesystem or partition table that is found there.
    #[arg(short = 'f')]
    force: bool,
    /// Print nothing but errors.
    #[arg(short = 'q')]
    quiet: bool,
    /// Label of the volume, at most 64 bytes.
    #[arg(short = 'L', value_name = "LABEL", default_value = "")]
    label: String,
    /// UUID of the volume; made up if not given.
    #[arg(short = 'U', value_name = "UUID")]
    uuid: Option<uuid::Uuid>,
    /// How many hosts can mount (more can be added later).
    #[arg(short = 'N', value_name = "SLOTS")]
    slots: Option<u16>,
    /// Size of each host's journal: 4M to 4G.
    #[arg(short = 'J', value_name = "SIZE", value_parser = size)]
    journal: Option<u64>,
    /// Heartbeat and lease times: default, san (slow failover), test (one machine).
    #[arg(long, value_name = "PROFILE", value_parser = TimingProfile::parse, default_value = "default")]
    timing: TimingProfile,
    /// Bytes between single-writer cells, 512 or 4096; 4096 for an image that will be copied to a
    /// disk with 4 KiB blocks.
    #[arg(long, value_name = "BYTES")]
    cell_pitch: Option<u32>,
    /// Do not discard the old content, which is done where the device can.
    #[arg(short = 'K', long = "nodiscard")]
    keep_content: bool,
    /// Block device or image file.
    device: PathBuf,
    /// Size of the volume; creates or extends an image file.
    #[arg(value_parser = size)]
    size: Option<u64>,
}

/// A number with K, M, G, T or P behind it, as the other mkfs programs take them.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().trim_end_matches("ib") {
        "" | "b" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        unit => return Err(format!("unknown unit '{unit}': use K, M, G, T or P")),
    };
    let n: u64 = digits.parse().map_err(|e| format!("{e}"))?;
    n.checked_mul(1 << shift).filter(|b| *b < 1 << 60).ok_or_else(|| "too large".into())
}

/// An image of a size that does not exist yet, for `-n`.
fn plan_only(a: &Arguments, options: &Options) -> Result<Summary, Error> {
    let bytes = a.size.unwrap_or(0);
    let existing = std::fs::metadata(&a.device).ok().filter(|m| !m.is_file() || m.len() >= bytes);
    match existing {
        Some(_) => shoal_mkfs::dry_run(&FileDevice::open(&a.device, Access::Read)?, options),
        None if a.size.is_none() => Err(Error::Device(format!(
            "{}: does not exist; give a size to make an image",
            a.device.display()
        ))),
        None => shoal_mkfs::dry_run(&Imagined { name: a.device.display().to_string(), bytes }, options),
    }
}

/// A device of a size, for planning.
struct Imagined {
    name: String,
    bytes: u64,
}

impl shoal::device::BlockDevice for Imagined {
    fn read(&self, _: u64, _: &mut [u8]) -> shoal::base::Result<()> {
        Err(Error::Device(format!("{}: does not exist", self.name)))
    }
    fn write(&self, _: u64, _: &[u8]) -> shoal::base::Result<()> {
        Err(Error::Device(format!("{}: does not exist", self.name)))
    }
    fn flush(&self) -> shoal::base::Result<()> {
        Ok(())
    }
    fn discard(&self, _: u64, _: u64) -> shoal::base::Result<()> {
        Ok(())
    }
    fn size(&self) -> u64 {
        self.bytes
    }
    fn logical_block(&self) -> u32 {
        512
    }
    fn physical_block(&self) -> u32 {
        4096
    }
    fn name(&self) -> String {
        self.name.clone()
    }
}

/// What was made, and whether the device tells that it has reservations to give.
fn run(a: &Arguments) -> Result<(Summary, bool), Error> {
    let options = Options {
        size: a.size,
        label: a.label.clone(),
        uuid: a.uuid.map(uuid::Uuid::into_bytes),
        slots: a.slots,
        journal: a.journal,
        timing: a.timing,
        cell_pitch: a.cell_pitch,
        keep_content: a.keep_content,
        identity: None,
    };
    if a.dry_run {
        return Ok((plan_only(a, &options)?, false));
    }
    let is_device = std::fs::metadata(&a.device).is_ok_and(|m| !m.is_file());
    if !is_device {
        let Some(bytes) = a.size.or_else(|| std::fs::metadata(&a.device).ok().map(|m| m.len())) else {
            let what = "does not exist; give a size to make an image";
            return Err(Error::Device(format!("{}: {what}", a.device.display())));
        };
        // Before the file is made, so that a wish that cannot be met leaves nothing behind.
        shoal_mkfs::dry_run(&Imagined { name: a.device.display().to_string(), bytes }, &options)?;
        FileDevice::create_image(&a.device, bytes)?;
    }
    guard::check_unused(&a.device)?;
    let dev = Arc::new(FileDevice::open(&a.device, Access::Exclusive)?);
    guard::check(&dev, a.force)?;
    let reservable = reserved::check(&dev)?;
    Ok((shoal_mkfs::make(&*dev, &options)?, reservable))
}

fn main() -> ExitCode {
    let a = Arguments::parse();
    match run(&a) {
        Ok((summary, reservable)) => {
            if !a.quiet {
                print!("{summary}");
            }
            if reservable && !a.quiet {
                println!("fencing     by reservations of the device, if it lets the first mount have them");
            }
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("mkfs.shoal: {e}");
            ExitCode::FAILURE
        }
    }
}
