//! `shoal fence DEVICE`: who is registered with a device that keeps dead hosts off. With `--clear`, all keys
//! and the reservation are taken away, so that every machine may write to the device again.

use crate::cluster::keys::listed;
use crate::device::pr::KernelReservations;
use crate::device::reservation::{Refused, Report, Reservations};
use crate::device::{Access, FileDevice, Fitness, fitness};
use crate::format::superblock::remains;
use crate::fuse::cli::status::fence as shown;
use crate::fuse::cli::status::volume::VolumeStatus;
use crate::fuse::cli::{USAGE, complain};
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

#[derive(clap::Args)]
pub struct Arguments {
    /// Block device.
    device: PathBuf,
    /// Take all keys and the reservation away, whoever has them.
    #[arg(long)]
    clear: bool,
    /// Do not ask.
    #[arg(long, requires = "clear")]
    yes_really: bool,
    /// Also while hosts have the volume mounted: they halt, or write unprotected.
    #[arg(long, requires = "clear")]
    force: bool,
}

/// Ours for as long as it takes to take all away: no volume's, and not 0.
const KEY: u64 = 0x5368_6f61_6c21;

/// Shows, or clears.
pub fn run(name: &str, arguments: &Arguments) -> ExitCode {
    match work(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => complain(name, format_args!("{}: {what}", arguments.device.display()), USAGE),
    }
}

fn work(arguments: &Arguments) -> Result<(), String> {
    let device = FileDevice::open(&arguments.device, Access::Read).map_err(|e| e.to_string())?;
    if let Fitness::Unfit(why) = fitness(&device) {
        return Err(why);
    }
    let reservations = KernelReservations::new(Arc::new(device));
    let report = reservations.report();
    let volume = VolumeStatus::read(&arguments.device, false);
    show(&report, &volume);
    if !arguments.clear {
        return Ok(());
    }
    may_clear(arguments, &volume)?;
    println!(
        "Whoever was kept off may write again. If one of these hosts is only paused and has writes queued, they \
         will damage the volume when it goes on: make sure that each is switched off, rebooted, or detached."
    );
    if !arguments.yes_really {
        ask("Is no host paused, and is nothing else using the device?", "yes")?;
        ask("Take all keys and the reservation away?", "clear")?;
        // Somebody may have come while that was thought about.
        may_clear(arguments, &VolumeStatus::read(&arguments.device, false))?;
    }
    // Opened for writing but not exclusively: a mount on this very machine is one that beats.
    clear(arguments)
}

/// Nobody must have the volume, as far as it tells.
fn may_clear(arguments: &Arguments, volume: &crate::base::Result<VolumeStatus>) -> Result<(), String> {
    if arguments.force {
        return Ok(());
    }
    match volume {
        Ok(volume) if volume.cluster.is_anybody_alive() => Err(
            "hosts have the volume mounted (see above): unmount it there first; --force clears all the same, and \
             these hosts halt or go on unprotected"
                .into(),
        ),
        Ok(_) => Ok(()),
        Err(e) => match FileDevice::open(&arguments.device, Access::Read).and_then(|d| remains(&d)) {
            Ok(None) => Ok(()),
            _ => Err(format!(
                "there is a volume that cannot be read, so it is not known whether hosts have it mounted ({e}); \
                 --force clears all the same"
            )),
        },
    }
}

fn show(report: &Result<Report, Refused>, volume: &crate::base::Result<VolumeStatus>) {
    match volume {
        Ok(volume) => shown::text(volume).iter().for_each(|line| println!("{line}")),
        Err(e) => {
            println!("no volume can be read there: {e}");
            match report {
                Ok(report) => {
                    println!("reservation: {}; keys: {}", shown::reservation(report), listed(&report.keys))
                }
                Err(why) => println!("the keys cannot be read: {why}"),
            }
        }
    }
    for host in volume.iter().flat_map(|v| v.cluster.occupied()) {
        let name = host.beat.as_ref().map_or("?", |b| &b.name);
        let moves = if host.moving == Some(true) { "has it mounted" } else { "does not answer" };
        println!("host {name} (slot {}) {moves}", host.slot);
    }
}

fn ask(question: &str, answer: &str) -> Result<(), String> {
    print!("{question} Type '{answer}': ");
    std::io::stdout().flush().map_err(|e| e.to_string())?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(|e| e.to_string())?;
    if line.trim() == answer { Ok(()) } else { Err("nothing was changed".into()) }
}

fn clear(arguments: &Arguments) -> Result<(), String> {
    let shared = std::fs::File::options().read(true).write(true).open(&arguments.device);
    let shared = shared.map_err(|e| e.to_string())?;
    let reservations = KernelReservations::on(shared);
    let failed = |what: &str, why: Refused| format!("{what}: {why}");
    reservations.replace(KEY).map_err(|e| failed("registering", e))?;
    if let Err(e) = reservations.clear(KEY) {
        // It is no host's key: nobody would ever take it away.
        let _ = reservations.unregister(KEY);
        return Err(failed("clearing", e));
    }
    match reservations.report() {
        Ok(left) if left.held.is_some() || left.keys.iter().any(|k| *k != 0) => {
            Err(format!("cleared, but keys are there again: {}", listed(&left.keys)))
        }
        _ => {
            println!("cleared: nobody is registered, everybody may write");
            Ok(())
        }
    }
}
