//! Hosts kept off by a program of the administrator: a cloud's "detach", a power switch.
//!
//! It is run as `PATH NAME UUID SLOT INCARNATION DEVICE` (the same in SHOAL_HOST_NAME, SHOAL_HOST_UUID,
//! SHOAL_SLOT, SHOAL_INCARNATION and SHOAL_DEVICE), DEVICE being the path on the host that runs it; the path on the one
//! that died is in SHOAL_HOST_DEVICE, and the id of its boot in SHOAL_HOST_BOOT, if they are known. It must exit with 0
//! only when that host certainly sends nothing to the device any more. Anything else, or no answer in time, is a
//! failure, and it is run again. A name that begins with '-' is given with '_' there instead: it would be taken for an
//! option. Who cannot be known, its heartbeat being damaged, has a UUID of zeros.

use crate::base::{Error, Result};
use crate::cluster::fencer::{Cancel, Cut, Fence, Victim};
use crate::cluster::timing::Timing;
use crate::device::child;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// How long it may take.
const TIMEOUT: Duration = Duration::from_secs(180);
/// How long looking at it may take, and how many looks may hang.
const LOOK_LIMIT: Duration = Duration::from_secs(10);
const LOOKS_MAX: usize = 64;
/// Where it finds its programs.
const SEARCH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How much of what it says is kept.
const SAID_MAX: usize = 4096;
/// Where it finds its settings.
const HOME: &str = "/root";

/// See the head of the file.
pub struct Command {
    path: PathBuf,
    device: String,
    timeout: Duration,
    /// Identity and boot of this machine, and its name.
    host: [u8; 16],
    boot: [u8; 16],
    name: String,
    timing: Timing,
    /// Held by each look at the program that is under way.
    looks: Arc<()>,
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
    /// `host`, `boot` and `name` are this machine's.
    ///
    /// # Errors
    /// If it is no program that only root may change.
    pub fn new(
        path: PathBuf,
        device: String,
        host: [u8; 16],
        boot: [u8; 16],
        name: String,
        timing: &Timing,
    ) -> Result<Command> {
        check(&path)?;
        Ok(Command {
            path,
            device,
            timeout: TIMEOUT,
            host,
            boot,
            name,
            timing: *timing,
            looks: Arc::default(),
        })
    }

    /// With another limit than the usual one.
    pub fn with_timeout(self, timeout: Duration) -> Command {
        Command { timeout, ..self }
    }

    /// What lies on a filesystem that hangs must not take the thread with it unnoticed.
    fn check_in_time(&self) -> Result<PathBuf> {
        let fails = |what: &str| Error::Device(format!("{}: {what}", self.path.display()));
        if Arc::strong_count(&self.looks) > LOOKS_MAX {
            return Err(fails("it cannot be looked at: too many attempts hang"));
        }
        let (tell, told) = channel();
        let (path, held) = (self.path.clone(), self.looks.clone());
        let body = move || {
            let _ = tell.send(check(&path));
            drop(held);
        };
        let look = std::thread::Builder::new().name("shoal-fence-look".into()).spawn(body);
        look.map_err(|e| fails(&format!("no thread to look at it: {e}")))?;
        let limit = self.timeout.min(LOOK_LIMIT);
        told.recv_timeout(limit).map_err(|_| fails("it cannot be looked at: does its filesystem hang?"))?
    }

    fn run(&self, victim: &Victim) -> Result<()> {
        // It may have been changed since the mount.
        let real = self.check_in_time()?;
        let name = match victim.name.strip_prefix('-') {
            Some(rest) => format!("_{rest}"),
            None => victim.name.clone(),
        };
        let uuid = uuid::Uuid::from_bytes(victim.host).to_string();
        let boot = match victim.boot {
            NEVER => String::new(),
            boot => uuid::Uuid::from_bytes(boot).to_string(),
        };
        let arguments =
            [&name, &uuid, &victim.slot.to_string(), &victim.incarnation.to_string(), &self.device]
                .map(String::from);
        let names = ["SHOAL_HOST_NAME", "SHOAL_HOST_UUID", "SHOAL_SLOT", "SHOAL_INCARNATION", "SHOAL_DEVICE"];
        let fails = |what: String| Error::Device(format!("{}: {what}", self.path.display()));
        let mut program = std::process::Command::new(real);
        program
            .arg0(&self.path)
            .args(&arguments)
            .env_clear()
            .env("PATH", SEARCH)
            .env("HOME", HOME)
            .envs(names.into_iter().zip(&arguments))
            .env("SHOAL_HOST_DEVICE", &victim.device)
            .env("SHOAL_HOST_BOOT", boot)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if victim.cancel.is_cancelled() {
            return Err(fails("not run: it is not this host's to do any more".into()));
        }
        let mut child = child::start(&mut program).map_err(|e| fails(e.to_string()))?;
        let said = Said::listen(&mut child);
        let ended = wait(child, self.timeout, &victim.cancel);
        match ended {
            Ended::By(status) if status.success() => Ok(()),
            Ended::By(status) => Err(fails(format!("{status}{}", said.last()))),
            Ended::Killed if victim.cancel.is_cancelled() => {
                Err(fails("killed: it is not this host's to do any more".into()))
            }
            Ended::Killed => {
                Err(fails(format!("did not end within {:?} and was killed{}", self.timeout, said.last())))
            }
            Ended::Never => Err(fails(format!(
                "did not end within {:?} and cannot be killed: is it waiting for a disk?{}",
                self.timeout,
                said.last()
            ))),
        }
    }
}

/// The end of what a program says on stderr.
struct Said {
    tail: Arc<Mutex<VecDeque<u8>>>,
    over: Receiver<()>,
}

impl Said {
    fn listen(child: &mut Child) -> Said {
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let (tell, over) = channel();
        let kept = tail.clone();
        let mut pipe = child.stderr.take();
        let body = move || {
            let mut part = [0; SAID_MAX];
            while let Some(n) = pipe.as_mut().and_then(|pipe| pipe.read(&mut part).ok()).filter(|n| *n > 0) {
                let mut kept = kept.lock();
                kept.extend(&part[..n]);
                let excess = kept.len().saturating_sub(SAID_MAX);
                kept.drain(..excess);
            }
            let _ = tell.send(());
        };
        if let Err(e) = std::thread::Builder::new().name("shoal-fence-log".into()).spawn(body) {
            tracing::warn!("what the fence command says is lost: {e}");
        }
        Said { tail, over }
    }

    /// The last line. The program has ended; what it started may still have the other end of the pipe.
    fn last(&self) -> String {
        let _ = self.over.recv_timeout(Duration::from_secs(1));
        let text: Vec<u8> = self.tail.lock().iter().copied().collect();
        let text = String::from_utf8_lossy(&text);
        text.trim_end().lines().last().map_or(String::new(), |line| format!(": {line}"))
    }
}

enum Ended {
    By(ExitStatus),
    Killed,
    /// It is in the kernel's hands.
    Never,
}

/// The child's end. Of one that failed or took too long nothing goes on: it is run again, and must not meet what it
/// did before.
fn wait(mut child: Child, limit: Duration, cancel: &Cancel) -> Ended {
    let end = Instant::now() + limit;
    let success = loop {
        match child::has_ended(&child) {
            Ok(None) if Instant::now() < end && !cancel.is_cancelled() => {
                std::thread::sleep(Duration::from_millis(20))
            }
            Ok(success) => break success,
            Err(_) => break None,
        }
    };
    // Its number is its own until it is waited for.
    let killed = success == Some(true) || child::kill_session(&child);
    if success.is_some() {
        return child.wait().map_or(Ended::Killed, Ended::By);
    }
    if killed && child.wait().is_ok() {
        return Ended::Killed;
    }
    // Whatever it is in the middle of may last; somebody has to wait for it.
    let reaper = std::thread::Builder::new().name("shoal-fence-end".into());
    let _ = reaper.spawn(move || drop(child.wait()));
    Ended::Never
}

impl Command {
    /// What is known of a mount of this very machine, or of nobody knows which.
    fn is_over(&self, victim: &Victim) -> Result<Cut> {
        if victim.boot == NEVER {
            return refuse(
                "its heartbeat cannot be read, so it is not known whether this machine has been started anew since: \
                 mount on another one first",
            );
        }
        if victim.boot == self.boot {
            // Whoever switched that machine off would switch off this one.
            return refuse(
                "it is, or was, a process of this very machine: stop it; if there is none any more (see `shoal \
                 nodes`), start this machine anew, or mount on another one first",
            );
        }
        if victim.lived {
            // No earlier boot of this machine lives beside this one.
            return refuse(
                "it lived beside this machine and has the same /etc/machine-id, by which the command tells \
                 machines apart: switch it off, and give each one its own",
            );
        }
        if victim.name != self.name {
            return refuse(&format!(
                "it has the /etc/machine-id of this machine, but was called otherwise: if that was this machine, \
                 mount with -o name={}; if not, switch it off, and give each one its own",
                victim.name
            ));
        }
        self.gone("it was this machine, which has been started anew since")
    }

    /// What it sent may be in the device still.
    fn gone(&self, how: &str) -> Result<Cut> {
        Ok(Cut { how: how.into(), settle: self.timing.claim_wait() })
    }
}

fn refuse<T>(why: &str) -> Result<T> {
    Err(Error::Device(why.into()))
}

/// No identity.
const NEVER: [u8; 16] = [0; 16];

impl Fence for Command {
    fn cut(&self, victim: &Victim) -> Result<Cut> {
        if victim.over {
            return self.gone("its machine has said in the lobby that it is over");
        }
        if victim.never_beat && [NEVER, self.host].contains(&victim.host) {
            // It never had a lease: all that can land is its first heartbeat, which renews nothing. It may be in the
            // way of the next mount of the slot, so whoever can be kept off is.
            return Ok(Cut { how: "it never wrote a heartbeat".into(), settle: self.timing.wait() });
        }
        if victim.host == self.host {
            return self.is_over(victim);
        }
        match victim.again.filter(|_| victim.boot != NEVER) {
            Some(again) if again.boot != victim.boot => {
                return self.gone("its machine has been started anew, and mounts again");
            }
            Some(again) if again.file.rdev != 0 && again.file == victim.file => {
                return self
                    .gone("its process is gone: its machine has the device to itself, and mounts again");
            }
            _ => {}
        }
        if let Some(alias) = &victim.alias {
            return refuse(&format!(
                "{alias} asks with its /etc/machine-id: renamed (mount it with -o name={}), or a clone (give it an \
                 identity of its own)?",
                victim.name
            ));
        }
        self.run(victim)?;
        self.gone(&format!("{} says that it is off the disk", self.path.display()))
    }
}
