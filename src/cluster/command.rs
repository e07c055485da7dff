//! Hosts kept off by a program of the administrator: a cloud's "detach", a power switch.
//!
//! It is run as `PATH NAME UUID SLOT INCARNATION DEVICE` (the same in SHOAL_HOST_NAME, SHOAL_HOST_UUID,
//! SHOAL_SLOT, SHOAL_INCARNATION and SHOAL_DEVICE), and must exit with 0 only when that host certainly writes
//! nothing to the device any more. Anything else, or no answer in time, is a failure, and it is run again. A name
//! that begins with '-' is given with '_' there instead: it would be taken for an option.

use crate::base::{Error, Result};
use crate::cluster::fencer::{Cut, Fence, Victim};
use crate::cluster::timing::Timing;
use crate::device::local::kill_group;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// How long it may take.
const TIMEOUT: Duration = Duration::from_secs(180);
/// Where it finds its programs.
const SEARCH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How much of what it says is kept.
const SAID_MAX: u64 = 4096;

/// See the head of the file.
pub struct Command {
    path: PathBuf,
    device: String,
    timeout: Duration,
    /// Identity and boot of this machine.
    host: [u8; 16],
    boot: [u8; 16],
    timing: Timing,
}

/// A program that root runs may be changed by root alone. The answer: where it is, behind all symbolic links, so
/// that what was looked at is what runs.
fn check(path: &Path) -> Result<PathBuf> {
    let refuse = |what: &str| -> Result<PathBuf> {
        Err(Error::Device(format!("fence=command:{}: {what}", path.display())))
    };
    if !path.is_absolute() {
        return refuse("must be an absolute path");
    }
    let real = path.canonicalize().and_then(|real| Ok((std::fs::metadata(&real)?, real)));
    let (meta, real) = match real {
        Ok(found) => found,
        Err(e) => return refuse(&e.to_string()),
    };
    if !meta.is_file() || meta.mode() & 0o111 == 0 {
        return refuse("must be an executable file");
    }
    if meta.uid() != 0 || meta.mode() & 0o022 != 0 {
        return refuse("must belong to root, and nobody else may write to it");
    }
    for folder in real.ancestors().skip(1) {
        let Ok(meta) = std::fs::metadata(folder) else {
            return refuse("is in a folder that cannot be looked at");
        };
        const STICKY: u32 = 0o1000;
        if meta.uid() != 0 || meta.mode() & 0o022 != 0 && meta.mode() & STICKY == 0 {
            return refuse(&format!("others than root may write to {}", folder.display()));
        }
    }
    Ok(real)
}

impl Command {
    /// `host` and `boot` are this machine's.
    ///
    /// # Errors
    /// If it is no program that only root may change.
    pub fn new(
        path: PathBuf,
        device: String,
        host: [u8; 16],
        boot: [u8; 16],
        timing: &Timing,
    ) -> Result<Command> {
        check(&path)?;
        Ok(Command { path, device, timeout: TIMEOUT, host, boot, timing: *timing })
    }

    /// With another limit than the usual one.
    pub fn with_timeout(self, timeout: Duration) -> Command {
        Command { timeout, ..self }
    }

    fn run(&self, victim: &Victim) -> Result<()> {
        // It may have been changed since the mount.
        let real = check(&self.path)?;
        let name = match victim.name.strip_prefix('-') {
            Some(rest) => format!("_{rest}"),
            None => victim.name.clone(),
        };
        let uuid = uuid::Uuid::from_bytes(victim.host).to_string();
        let arguments =
            [&name, &uuid, &victim.slot.to_string(), &victim.incarnation.to_string(), &self.device]
                .map(String::from);
        let names = ["SHOAL_HOST_NAME", "SHOAL_HOST_UUID", "SHOAL_SLOT", "SHOAL_INCARNATION", "SHOAL_DEVICE"];
        let fails = |what: String| Error::Device(format!("{}: {what}", self.path.display()));
        let mut child = std::process::Command::new(real)
            .arg0(&self.path)
            .process_group(0)
            .args(&arguments)
            .env_clear()
            .env("PATH", SEARCH)
            .envs(names.into_iter().zip(&arguments))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| fails(e.to_string()))?;
        let said = listen(&mut child);
        match wait(&mut child, self.timeout) {
            Some(status) if status.success() => Ok(()),
            Some(status) => {
                // It has ended; what it started may still have the other end of the pipe.
                let said = said.recv_timeout(Duration::from_secs(1)).unwrap_or_default();
                Err(fails(format!("{status}: {}", said.lines().last().unwrap_or_default())))
            }
            None => Err(fails(format!("did not end within {:?} and was killed", self.timeout))),
        }
    }
}

/// What it says on stderr, once that is closed.
fn listen(child: &mut Child) -> Receiver<String> {
    let (tell, said) = channel();
    if let Some(pipe) = child.stderr.take() {
        let body = move || {
            let mut text = Vec::new();
            // Bounded; what comes after that is thrown away, or the program would wait for us.
            let mut pipe = pipe;
            let _ = pipe.by_ref().take(SAID_MAX).read_to_end(&mut text);
            let _ = tell.send(String::from_utf8_lossy(&text).into_owned());
            let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        };
        if let Err(e) = std::thread::Builder::new().name("shoal-fence-log".into()).spawn(body) {
            tracing::warn!("what the fence command says is lost: {e}");
        }
    }
    said
}

/// `None`: it took too long, and is dead now, with all that it started.
fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + limit;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(20)),
            Ok(None) | Err(_) => {
                // It leads a group of its own, whose number is its own until it is waited for.
                kill_group(child.id());
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    }
}

impl Fence for Command {
    fn cut(&self, victim: &Victim) -> Result<Cut> {
        let cut = |how: String, settle| Ok(Cut { how, settle });
        const NEVER: [u8; 16] = [0; 16];
        let unknown = victim.host == NEVER || victim.host == self.host && victim.boot == NEVER;
        if unknown && victim.never_beat {
            // It never had a lease: all that can land is its first heartbeat, which renews nothing.
            return cut("it never wrote a heartbeat".into(), self.timing.wait());
        }
        if unknown {
            return Err(Error::Device("its heartbeat cannot be read, so it is not known who it is".into()));
        }
        if victim.host == self.host {
            // Whoever switched that machine off would switch off this one.
            return match victim.boot != self.boot {
                // What that boot sent may be in the device still.
                true => cut(
                    "it was this machine, which has been started anew since".into(),
                    self.timing.claim_wait(),
                ),
                false => Err(Error::Device("it is, or was, a process of this very machine: stop it".into())),
            };
        }
        self.run(victim)?;
        cut(format!("{} says that it is off the disk", self.path.display()), Duration::ZERO)
    }
}
