//! `shoal fence DEVICE`: who is registered with a device that keeps dead hosts off. With `--clear`, all keys
//! and the reservation are taken away, so that every machine may write to the device again.

use crate::cluster::keys::{is_of_volume, listed};
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
    let mut first = Some((report, volume));
    let mut look = || {
        let seen = first
            .take()
            .unwrap_or_else(|| (reservations.report(), VolumeStatus::read(&arguments.device, false)));
        may_clear(arguments, &seen.0, &seen.1)
    };
    match arguments.yes_really {
        true => look()?,
        false => consent(&mut ask, &mut look)?,
    }
    // Opened for writing but not exclusively: a mount on this very machine is one that beats.
    let shared = std::fs::File::options().read(true).write(true).open(&arguments.device);
    clear(&KernelReservations::on(shared.map_err(|e| e.to_string())?))?;
    println!("cleared: nobody is registered, everybody may write");
    Ok(())
}

/// `look` says whether it may be done, before the questions and after them: somebody may have come while they
/// were thought about.
fn consent(
    ask: &mut dyn FnMut(&str, &str) -> Result<(), String>,
    look: &mut dyn FnMut() -> Result<(), String>,
) -> Result<(), String> {
    look()?;
    println!(
        "Whoever was kept off may write again. If one of these hosts is only paused and has writes queued, they \
         will damage the volume when it goes on: make sure that each is switched off, rebooted, or detached."
    );
    ask("Is no host paused, and is nothing else using the device?", "yes")?;
    ask("Take all keys and the reservation away?", "clear")?;
    look()
}

/// Nobody must have the volume, as far as it tells, and the keys must be those of its hosts.
fn may_clear(
    arguments: &Arguments,
    report: &Result<Report, Refused>,
    volume: &crate::base::Result<VolumeStatus>,
) -> Result<(), String> {
    if arguments.force {
        return Ok(());
    }
    let format_id = volume.as_ref().ok().map(|v| v.superblock.format_id);
    if arguments.yes_really {
        are_known(report, format_id)?;
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

/// Nobody is asked: are all keys those of the volume's hosts?
fn are_known(report: &Result<Report, Refused>, format_id: Option<u64>) -> Result<(), String> {
    let Ok(report) = report else {
        return Err(
            "the keys cannot be read, so it is not known whose they are; --force clears all the same".into(),
        );
    };
    let known = |key: &u64| *key == 0 || format_id.is_some_and(|id| is_of_volume(id, *key));
    match report.keys.iter().all(known) {
        true => Ok(()),
        false => Err(format!(
            "keys {} are registered, not all of them by hosts of a volume that is there; --force clears all the same",
            listed(&report.keys)
        )),
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

fn clear(reservations: &dyn Reservations) -> Result<(), String> {
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
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::keys::key_of;
    use crate::device::reservation::{Answer, Kind};
    use parking_lot::Mutex;

    /// A device that says no to all that changes more than this host's key.
    #[derive(Default)]
    struct Stubborn(Mutex<Option<u64>>);

    impl Reservations for Stubborn {
        fn register(&self, _: u64, _: u64) -> Answer<()> {
            Err(Refused::Conflict)
        }
        fn replace(&self, new: u64) -> Answer<()> {
            *self.0.lock() = Some(new);
            Ok(())
        }
        fn unregister(&self, _: u64) -> Answer<()> {
            *self.0.lock() = None;
            Ok(())
        }
        fn reserve(&self, _: u64, _: Kind) -> Answer<()> {
            Err(Refused::Conflict)
        }
        fn preempt(&self, _: u64, _: u64, _: Kind, _: bool) -> Answer<()> {
            Err(Refused::Conflict)
        }
        fn clear(&self, _: u64) -> Answer<()> {
            Err(Refused::Failed("no".into()))
        }
        fn report(&self) -> Answer<Report> {
            Err(Refused::Unsupported("no".into()))
        }
    }

    #[test]
    fn a_device_that_cannot_be_cleared_keeps_no_key_of_ours() {
        let device = Stubborn::default();
        assert!(clear(&device).unwrap_err().contains("clearing"));
        assert_eq!(*device.0.lock(), None);
    }

    #[test]
    fn whoever_comes_during_the_questions_is_seen() {
        let came = std::cell::Cell::new(false);
        let mut ask = |_: &str, answer: &str| {
            came.set(answer == "clear");
            Ok(())
        };
        let mut look = || if came.get() { Err("somebody lives".into()) } else { Ok(()) };
        assert_eq!(consent(&mut ask, &mut look), Err("somebody lives".to_string()));
    }

    #[test]
    fn unknown_keys_are_not_cleared_unasked() {
        let report = |keys: &[u64]| Ok(Report { keys: keys.to_vec(), held: None });
        let key = key_of(5, crate::base::Incarnation(1));
        assert!(are_known(&report(&[key, 0]), Some(5)).is_ok());
        assert!(are_known(&report(&[]), None).is_ok());
        assert!(are_known(&report(&[key, 0xabcd]), Some(5)).unwrap_err().contains("abcd"));
        assert!(are_known(&report(&[key]), None).is_err());
        assert!(are_known(&Err(Refused::Unsupported("no".into())), Some(5)).is_err());
    }
}
