//! `fsck.shoal`: the command line around the library.

use clap::Parser;
use clap::error::ErrorKind;
use shoal::base::Error;
use shoal::cluster::{Disk, profile, read_status};
use shoal::device::{Access, FileDevice};
use shoal::format::cluster::FenceClass;
use shoal::format::superblock::{self, Superblock};
use shoal::format::volume::{self, Volume};
use shoal_fsck::guard::{self, Guard};
use shoal_fsck::progress::Teller;
use shoal_fsck::recover::recover;
use shoal_fsck::reserved::Reserved;
use shoal_fsck::{Code, Options, Progress, Replayed, Report, Silent, check};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::FromRawFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Exit codes of fsck(8).
const SOUND: u8 = 0;
const LEFT_UNCORRECTED: u8 = 4;
const OPERATIONAL: u8 = 8;
const USAGE: u8 = 16;

/// Findings of one code that are printed without -v.
const PRINTED_PER_CODE: usize = 50;

/// Check a Shoal cluster filesystem that no host has mounted.
///
/// Journals of hosts that died are replayed; nothing else is changed by this release.
#[derive(Parser, Debug)]
#[command(
    name = "fsck.shoal",
    version,
    after_help = "Exit codes: 0 sound, 4 damage was found, 8 the check \
    could not be done, 16 wrong usage."
)]
struct Arguments {
    /// Write nothing: journals are replayed into memory.
    #[arg(short = 'n', conflicts_with_all = ["preen", "yes"])]
    dry_run: bool,
    /// Repair what is safe to repair without asking (as yet: replay the journals). Also -a.
    #[arg(short = 'p', short_alias = 'a')]
    preen: bool,
    /// Answer yes to all questions (as yet there are none).
    #[arg(short = 'y')]
    yes: bool,
    /// Check everything even if all hosts left in order.
    #[arg(short = 'f')]
    force: bool,
    /// Show progress; with a file descriptor, as fsck(8) reads it.
    #[arg(short = 'C', value_name = "FD", num_args = 0..=1, default_missing_value = "0", require_equals = false)]
    progress: Option<i32>,
    /// Print every finding, not just the first 50 of each kind.
    #[arg(short = 'v')]
    verbose: bool,
    /// Explain all codes of findings, check nothing.
    #[arg(long)]
    codes: bool,
    /// Block device or image file.
    #[arg(required_unless_present = "codes")]
    device: Option<PathBuf>,
}

fn run(a: &Arguments, path: &Path) -> Result<Report, Error> {
    guard::check_machine(path)?;
    let access = if a.dry_run { Access::Read } else { Access::Exclusive };
    let device = Arc::new(FileDevice::open(path, access)?);
    let (sb, _) = superblock::load(&*device)?;
    sb.check_features(!a.dry_run)?;
    // Without a volume block nobody can mount it, and there is only its damage to report.
    let mut volume = volume::load(&*device, &sb).ok();
    if let Some(volume) = &mut volume {
        // Damaged ballots are the check's to report.
        let disk = Disk { device: device.clone(), format_id: sb.format_id, geometry: sb.geometry };
        volume.timing = profile(&disk, volume.timing).unwrap_or(volume.timing);
    }
    let mut guard = None;
    let mut reserved = None;
    let mut replayed = Vec::new();
    if let Some(volume) = &volume {
        volume.check_features()?;
        guard = Some(Guard::new(&device, &sb, volume, !a.dry_run)?);
        if !a.dry_run {
            replayed = replay(&device, path, &sb, volume)?;
            reserved = Some(Reserved::enter(&device, sb.format_id));
        }
    }
    guard.as_mut().map_or(Ok(()), Guard::begin)?;
    let mut report = checked(a, path, device)?;
    guard.as_ref().map_or(Ok(()), Guard::end)?;
    replayed.iter().for_each(|journal| report.note_lost(journal));
    // What is still in the journals could not be replayed for good.
    replayed.extend(std::mem::take(&mut report.replayed));
    report.replayed = replayed;
    drop(reserved);
    Ok(report)
}

/// Replay what dead hosts left, if any did.
fn replay(
    device: &Arc<FileDevice>,
    path: &Path,
    sb: &Superblock,
    volume: &Volume,
) -> Result<Vec<Replayed>, Error> {
    let disk = Disk { device: device.clone(), format_id: sb.format_id, geometry: sb.geometry };
    match read_status(&disk, None) {
        // Damaged ballots: nothing is replayed by guess.
        Err(Error::Device(_)) => Ok(Vec::new()),
        Ok(status) if status.is_clean() => Ok(Vec::new()),
        Ok(status) if status.fence == Some(FenceClass::Command) => Err(Error::Device(format!(
            "{}: hosts died that only their command can keep off: mount the volume once with \
             -o fence=command:PATH, unmount it, and check it then (or look at it as it is with -n)",
            path.display()
        ))),
        Ok(_) => match recover(device, path, sb, volume) {
            // The check names what is damaged.
            Err(Error::Corrupt { .. }) => Ok(Vec::new()),
            other => other,
        },
        Err(e) => Err(e),
    }
}

fn checked(a: &Arguments, path: &Path, device: Arc<FileDevice>) -> Result<Report, Error> {
    let options = Options { force: a.force };
    let Some(fd) = a.progress else { return check(device, &options, &Silent) };
    let teller = teller(fd, &path.display().to_string())?;
    let report = check(device, &options, &teller as &dyn Progress);
    teller.end();
    report
}

/// 0 is for a person, on standard error; other descriptors are those that fsck(8) hands down.
fn teller(fd: i32, name: &str) -> Result<Teller<Box<dyn Write + Send>>, Error> {
    if fd == 0 {
        return Ok(Teller::new(Box::new(std::io::stderr()), name, true));
    }
    // SAFETY: fcntl with F_GETFD reads nothing but the descriptor table.
    if fd < 0 || unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(Error::Device(format!("-C {fd}: no such file descriptor is open")));
    }
    // SAFETY: it is open; the duplicate is ours alone (1 is still needed for the findings).
    let file = unsafe { File::from_raw_fd(libc::dup(fd)) };
    Ok(Teller::new(Box::new(file), name, false))
}

fn print(a: &Arguments, path: &Path, report: &Report) -> io::Result<()> {
    let (name, mut out) = (path.display(), io::stdout().lock());
    let did = if a.dry_run { "would replay" } else { "replayed" };
    for r in report.replayed.iter().filter(|r| r.txns > 0) {
        writeln!(out, "{name}: {did} {} transactions of slot {}, {} blocks", r.txns, r.slot, r.blocks)?;
    }
    for code in Code::ALL {
        let of_code = report.findings.iter().filter(|f| f.code == *code);
        let shown = if a.verbose { usize::MAX } else { PRINTED_PER_CODE };
        for finding in of_code.take(shown) {
            writeln!(out, "{name}: {finding}")?;
        }
        let count = report.counts.get(code).copied().unwrap_or(0);
        if count > shown as u64 {
            writeln!(out, "{name}: [{code}] {} more of these", count - shown as u64)?;
        }
    }
    if report.torn > 0 {
        let what = "copies of coordination blocks were being written when their host died; the other copies are used";
        writeln!(out, "{name}: {} {what}", report.torn)?;
    }
    if report.orphans > 0 {
        writeln!(out, "{name}: {} unlinked files or frees wait for the next mount", report.orphans)?;
    }
    writeln!(out, "{name}: {}", summary(report))
}

fn summary(report: &Report) -> String {
    let problems: u64 = report.counts.values().sum();
    let t = &report.totals;
    let mib = |blocks: u64| blocks >> 8;
    let content = format!(
        "{} files, {} directories, {} others; {} of {} MiB used",
        t.files,
        t.directories,
        t.others,
        mib(t.blocks_used),
        mib(t.blocks)
    );
    match (&report.stopped, problems) {
        (Some(why), _) => format!("not checked any further: {why}. Nothing was repaired"),
        (None, 0) if report.skipped => "clean; all hosts left in order (-f checks everything)".into(),
        (None, 0) => format!("sound; {content}"),
        (None, n) => format!(
            "{n} problems found; {content}. This release repairs nothing: copy your data off with a \
             read-only mount, or go back to a backup"
        ),
    }
}

fn main() -> ExitCode {
    let a = match Arguments::try_parse() {
        Ok(a) => a,
        Err(e) => {
            let asked = matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            // If even that cannot be printed there is nobody to tell.
            let _ = e.print();
            return ExitCode::from(if asked { SOUND } else { USAGE });
        }
    };
    let Some(path) = a.device.as_deref().filter(|_| !a.codes) else {
        let mut out = io::stdout().lock();
        // As above.
        let _ = Code::ALL.iter().try_for_each(|c| writeln!(out, "{:<26} {}", c.name(), c.meaning()));
        return ExitCode::from(SOUND);
    };
    match run(&a, path) {
        Ok(report) => {
            // Nobody reads on (a pipe into head): the exit code says it all the same.
            let _ = print(&a, path, &report);
            ExitCode::from(if report.is_sound() { SOUND } else { LEFT_UNCORRECTED })
        }
        Err(e) => {
            eprintln!("fsck.shoal: {e}");
            ExitCode::from(OPERATIONAL)
        }
    }
}
