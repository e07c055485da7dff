//! Hosts kept off by a program of the administrator: a cloud's "detach", a power switch.
//!
//! It is run as `PATH NAME UUID SLOT INCARNATION DEVICE` (the same in SHOAL_HOST_NAME, SHOAL_HOST_UUID,
//! SHOAL_SLOT, SHOAL_INCARNATION and SHOAL_DEVICE), and must exit with 0 only when that host certainly writes
//! nothing to the device any more. Anything else, or no answer in time, is a failure, and it is run again.

use crate::base::{Error, Result};
use crate::cluster::fencer::{Cut, Fence, Victim};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
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
    /// Identity, boot and name of this machine.
    host: [u8; 16],
    boot: [u8; 16],
    name: String,
}

/// A program that root runs may be changed by root alone.
fn check(path: &Path) -> Result<()> {
    let refuse = |what: &str| Err(Error::Device(format!("fence=command:{}: {what}", path.display())));
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
    Ok(())
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
    ) -> Result<Command> {
        check(&path)?;
        Ok(Command { path, device, timeout: TIMEOUT, host, boot, name })
    }

    /// With another limit than the usual one.
    pub fn with_timeout(self, timeout: Duration) -> Command {
        Command { timeout, ..self }
    }

    fn run(&self, victim: &Victim) -> Result<()> {
        // It may have been changed since the mount.
        check(&self.path)?;
        let uuid = uuid::Uuid::from_bytes(victim.host).to_string();
        let arguments =
            [&victim.name, &uuid, &victim.slot.to_string(), &victim.incarnation.to_string(), &self.device]
                .map(String::from);
        let names = ["SHOAL_HOST_NAME", "SHOAL_HOST_UUID", "SHOAL_SLOT", "SHOAL_INCARNATION", "SHOAL_DEVICE"];
        let fails = |what: String| Error::Device(format!("{}: {what}", self.path.display()));
        let mut child = std::process::Command::new(&self.path)
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

/// `None`: it took too long, and is dead now.
fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + limit;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(20)),
            Ok(None) | Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    }
}

impl Fence for Command {
    fn cut(&self, victim: &Victim) -> Result<Cut> {
        let settle = Duration::ZERO;
        if victim.host == self.host && victim.name == self.name {
            // Whoever switched that machine off would switch off this one.
            return match victim.boot != self.boot {
                true => {
                    Ok(Cut { how: "it was this machine, which has been started anew since".into(), settle })
                }
                false => Err(Error::Device("it is, or was, a process of this very machine: stop it".into())),
            };
        }
        if victim.host == [0; 16] {
            return Err(Error::Device(
                "it is not known which machine it was: it never wrote a heartbeat".into(),
            ));
        }
        self.run(victim)?;
        Ok(Cut { how: format!("{} says that it is off the disk", self.path.display()), settle })
    }
}
