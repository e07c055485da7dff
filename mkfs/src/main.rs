//! mkfs.shoal: make a Shoal volume.

use clap::Parser;
use shoal::base::{BLOCK_SIZE, Error, Result};
use shoal::device::{Access, BlockDevice, FileDevice};
use shoal::format::superblock::TimingProfile;
use shoal_mkfs::{Options, Plan, check_overwrite, parse_size, plan, write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Make a Shoal volume on a device that several machines attach, or in an image file.
#[derive(Parser)]
#[command(name = "mkfs.shoal", version)]
struct Args {
    /// Show what would be made and write nothing.
    #[arg(short = 'n')]
    dry_run: bool,
    /// Overwrite another filesystem. A mounted Shoal volume is never overwritten.
    #[arg(short, long)]
    force: bool,
    /// Print nothing but errors.
    #[arg(short, long)]
    quiet: bool,
    /// Name of the volume, at most 64 bytes.
    #[arg(short = 'L', long, default_value = "")]
    label: String,
    /// UUID of the volume (default: random).
    #[arg(short = 'U', long)]
    uuid: Option<uuid::Uuid>,
    /// Hosts that can mount at once, 1 to 64 (default: 64 from 4 GiB, 16 from 512 MiB, else 4; 2 below 128 MiB).
    #[arg(short = 'N', long)]
    slots: Option<u16>,
    /// Size of each host's journal (default: 1/32 of the volume over all, 4 to 128 MiB each).
    #[arg(short = 'J', long, value_parser = parse_size)]
    journal: Option<u64>,
    /// Heartbeat and lease times: default (cloud disks), san (slow failover), test (one machine).
    #[arg(long, default_value = "default", value_parser = timing)]
    timing: TimingProfile,
    /// The device or image file.
    device: PathBuf,
    /// Size of the volume (default: the whole device). An image file is made or grown to it.
    #[arg(value_parser = parse_size)]
    size: Option<u64>,
}

fn timing(text: &str) -> std::result::Result<TimingProfile, String> {
    match text {
        "default" => Ok(TimingProfile::Default),
        "san" => Ok(TimingProfile::San),
        "test" => Ok(TimingProfile::Test),
        _ => Err("default, san or test".into()),
    }
}

/// Make an image file, or grow it to the size asked for.
fn prepare_image(args: &Args) -> Result<()> {
    let Some(size) = args.size else { return Ok(()) };
    let at = |e: std::io::Error| Error::Device(format!("{}: {e}", args.device.display()));
    match std::fs::metadata(&args.device) {
        Ok(meta) if !meta.is_file() || meta.len() >= size => return Ok(()),
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(at(e)),
    }
    if args.dry_run {
        return Err(Error::Device(format!(
            "{}: is smaller than {size} bytes or does not exist",
            args.device.display()
        )));
    }
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&args.device)
        .map_err(at)?;
    file.set_len(size).map_err(at)
}

fn show(plan: &Plan) {
    let (sb, g) = (&plan.superblock, &plan.superblock.geometry);
    let mib = |blocks: u64| blocks * BLOCK_SIZE as u64 >> 20;
    println!("uuid      {}", uuid::Uuid::from_bytes(sb.uuid));
    if !plan.volume.label.is_empty() {
        println!("label     {}", plan.volume.label);
    }
    println!("size      {} MiB", mib(g.total_blocks));
    println!("hosts     {} at once", plan.volume.slots.len());
    println!("groups    {} of {} MiB", g.ag_count, mib(g.ag_blocks));
    println!("journals  {} MiB each", mib(plan.volume.slots[0].journal_blocks));
    println!("timing    {}", format!("{:?}", sb.timing).to_lowercase());
}

fn run(args: &Args) -> Result<()> {
    let options = Options {
        size: args.size,
        label: args.label.clone(),
        uuid: args.uuid.map(|u| *u.as_bytes()),
        slots: args.slots,
        journal: args.journal,
        timing: args.timing,
    };
    prepare_image(args)?;
    let access = if args.dry_run { Access::Read } else { Access::Exclusive };
    let dev = FileDevice::open(&args.device, access)?;
    let plan = plan(&dev, &options)?;
    check_overwrite(&dev, &options, args.force)?;
    if !args.dry_run {
        write(&dev, &plan)?;
    }
    if !args.quiet || args.dry_run {
        show(&plan);
    }
    if !args.quiet && !args.dry_run {
        println!("Mount it on each host: mount -t fuse.shoal {} DIR", dev.name());
    }
    Ok(())
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("mkfs.shoal: {e}");
            ExitCode::FAILURE
        }
    }
}
