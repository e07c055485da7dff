//! Mount options: one table, in which an option either stands or is refused by name.
//!
//! mount(8) has taken out `defaults`, `noauto`, `x-*` and what is its own (`loop`), but passes
//! `_netdev`, `nofail`, `user` and the like on to helpers: those are accepted and mean nothing here.

use crate::fs::types::{FenceWish, MountOptions};
use std::path::PathBuf;
use std::time::Duration;

/// All that a mount was asked for: the volume's part and the mount's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub volume: MountOptions,
    /// mount(2) flags (`MS_*`).
    pub flags: u64,
    /// Change the flags of the mount that stands there already.
    pub remount: bool,
    /// Threads that read requests from the kernel: 1 to 64.
    pub threads: usize,
    /// Let the kernel's mount claim a block device (type fuseblk).
    pub claim: bool,
    /// Where the log goes; the system's log if not given.
    pub log: Option<PathBuf>,
}

/// Threads by default: several, so that one that waits for the device does not hold up the rest.
const THREADS: usize = 4;

/// What an option does.
enum Effect {
    /// Sets and clears flags of mount(2).
    Flags(u64, u64),
    /// Something of the request.
    Switch(fn(&mut Request)),
    /// Something of the request, from a value; the error says what the value must be.
    Value(fn(&mut Request, &str) -> Result<(), &'static str>),
    /// Nothing: for mount(8), or always so.
    Nothing,
    /// An error that says why it cannot be.
    Refused(&'static str),
}
use Effect::{Flags, Nothing, Refused, Switch, Value};

const NO_QUOTA: &str = "there are no quotas: the kernel has no quotactl(2) for FUSE";

const NO_DIRSYNC: &str = "changes of directories are not made durable one by one: the kernel does not tell FUSE that \
                          they should be; use fsync(2) of the directory";

/// Every option there is. Later ones on a command line win over earlier ones.
const TABLE: &[(&str, Effect)] = &[
    ("ro", Switch(|r| set_read_only(r, true))),
    ("rw", Switch(|r| set_read_only(r, false))),
    ("nosuid", Flags(libc::MS_NOSUID, 0)),
    ("suid", Flags(0, libc::MS_NOSUID)),
    ("nodev", Flags(libc::MS_NODEV, 0)),
    ("dev", Flags(0, libc::MS_NODEV)),
    ("noexec", Flags(libc::MS_NOEXEC, 0)),
    ("exec", Flags(0, libc::MS_NOEXEC)),
    ("noatime", Switch(|r| set_no_atime(r, true))),
    ("atime", Switch(|r| set_no_atime(r, false))),
    ("relatime", Flags(libc::MS_RELATIME, libc::MS_STRICTATIME)),
    ("norelatime", Flags(0, libc::MS_RELATIME)),
    ("strictatime", Flags(libc::MS_STRICTATIME, libc::MS_RELATIME)),
    ("nostrictatime", Flags(0, libc::MS_STRICTATIME)),
    ("nodiratime", Flags(libc::MS_NODIRATIME, 0)),
    ("diratime", Flags(0, libc::MS_NODIRATIME)),
    // It permits what is done anyway: times become durable with the next commit, or fsync.
    ("lazytime", Flags(0, 0)),
    ("nolazytime", Flags(0, 0)),
    ("sync", Switch(|r| set_synchronous(r, true))),
    ("async", Switch(|r| set_synchronous(r, false))),
    ("dirsync", Refused(NO_DIRSYNC)),
    ("silent", Flags(libc::MS_SILENT, 0)),
    ("loud", Flags(0, libc::MS_SILENT)),
    ("remount", Switch(|r| r.remount = true)),
    ("commit", Value(commit)),
    ("cache", Value(|r, v| bytes(v, 1 << 20).map(|n| r.volume.cache_bytes = n))),
    ("dirty", Value(|r, v| bytes(v, 1 << 20).map(|n| r.volume.dirty_bytes = n))),
    ("name", Value(host)),
    ("host", Value(host)),
    ("threads", Value(threads)),
    ("log", Value(log)),
    ("fence", Value(fence)),
    ("fuseblk", Switch(|r| r.claim = true)),
    ("nofuseblk", Switch(|r| r.claim = false)),
    ("quota", Refused(NO_QUOTA)),
    ("usrquota", Refused(NO_QUOTA)),
    ("grpquota", Refused(NO_QUOTA)),
    ("prjquota", Refused(NO_QUOTA)),
    ("pquota", Refused(NO_QUOTA)),
    ("usrjquota", Refused(NO_QUOTA)),
    ("grpjquota", Refused(NO_QUOTA)),
    ("noquota", Nothing),
    ("discard", Refused("freed blocks are not discarded at once; run fstrim now and then, on one host")),
    ("nodiscard", Nothing),
    ("defaults", Nothing),
    ("auto", Nothing),
    ("noauto", Nothing),
    ("nofail", Nothing),
    ("_netdev", Nothing),
    ("user", Nothing),
    ("nouser", Nothing),
    ("users", Nothing),
    ("owner", Nothing),
    ("group", Nothing),
    ("mand", Nothing),
    ("nomand", Nothing),
    ("iversion", Nothing),
    ("noiversion", Nothing),
    // Shown by the kernel for every such mount, and so given back to us by a remount.
    ("seclabel", Nothing),
    ("allow_other", Nothing),
    ("default_permissions", Nothing),
    ("user_id", Value(|_, v| if v == "0" { Ok(()) } else { Err("0") })),
    ("group_id", Value(|_, v| if v == "0" { Ok(()) } else { Err("0") })),
    ("blksize", Value(|_, v| if v == "4096" { Ok(()) } else { Err("4096") })),
];

impl Request {
    /// A mount of `device` without any option: read-write, set-uid programs and device files work.
    pub fn new(device: PathBuf) -> Request {
        Request {
            volume: MountOptions::new(device),
            flags: 0,
            remount: false,
            threads: THREADS,
            claim: true,
            log: None,
        }
    }

    /// Does it ask for anything that is not a matter of the mount point alone?
    pub fn is_for_volume(&self) -> bool {
        let mut plain = Request::new(self.volume.device.clone());
        (plain.flags, plain.remount) = (self.flags, self.remount);
        (plain.volume.read_only, plain.volume.no_atime) = (self.volume.read_only, self.volume.no_atime);
        plain != *self
    }

    /// Takes a comma-separated list. `sloppy`: unknown options are passed over (`mount -s`).
    ///
    /// # Errors
    /// What is wrong, naming the option.
    pub fn parse(&mut self, list: &str, sloppy: bool) -> Result<(), String> {
        for option in list.split(',').filter(|o| !o.is_empty()) {
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (option, None),
            };
            let for_userspace = name.starts_with("x-") || name.starts_with("X-") || name == "comment";
            if for_userspace {
                continue;
            }
            match TABLE.iter().find(|(known, _)| *known == name) {
                Some((_, Refused(_))) | None if sloppy => {}
                Some((_, effect)) => self.apply(name, effect, value)?,
                None => return Err(format!("unknown mount option '{option}'")),
            }
        }
        Ok(())
    }

    fn apply(&mut self, name: &str, effect: &Effect, value: Option<&str>) -> Result<(), String> {
        match (effect, value) {
            (Flags(set, clear), None) => self.flags = self.flags & !clear | set,
            (Switch(f), None) => f(self),
            (Nothing, _) => {}
            (Refused(why), _) => return Err(format!("mount option '{name}': {why}")),
            (Value(f), Some(value)) => {
                f(self, value).map_err(|what| format!("mount option '{name}={value}': must be {what}"))?;
            }
            (Value(_), None) => return Err(format!("mount option '{name}' needs a value")),
            (Flags(..) | Switch(_), Some(_)) => return Err(format!("mount option '{name}' takes no value")),
        }
        Ok(())
    }
}

fn set_read_only(request: &mut Request, on: bool) {
    request.volume.read_only = on;
    request.flags = request.flags & !libc::MS_RDONLY | if on { libc::MS_RDONLY } else { 0 };
}

fn set_no_atime(request: &mut Request, on: bool) {
    request.volume.no_atime = on;
    request.flags = request.flags & !libc::MS_NOATIME | if on { libc::MS_NOATIME } else { 0 };
}

fn set_synchronous(request: &mut Request, on: bool) {
    request.volume.synchronous = on;
    request.flags = request.flags & !libc::MS_SYNCHRONOUS | if on { libc::MS_SYNCHRONOUS } else { 0 };
}

fn commit(request: &mut Request, value: &str) -> Result<(), &'static str> {
    let seconds: f64 = value.parse().map_err(|_| "seconds, 0.1 to 60")?;
    if !(0.1..=60.0).contains(&seconds) {
        return Err("seconds, 0.1 to 60");
    }
    request.volume.commit_interval = Duration::from_secs_f64(seconds);
    Ok(())
}

fn host(request: &mut Request, value: &str) -> Result<(), &'static str> {
    if value.is_empty() || value.len() > 64 || value.chars().any(char::is_control) {
        return Err("a name of 1 to 64 bytes");
    }
    request.volume.host_name = Some(value.to_string());
    Ok(())
}

fn threads(request: &mut Request, value: &str) -> Result<(), &'static str> {
    request.threads =
        value.parse().ok().filter(|n| (1..=64).contains(n)).ok_or("a number of threads, 1 to 64")?;
    Ok(())
}

fn log(request: &mut Request, value: &str) -> Result<(), &'static str> {
    let path = PathBuf::from(value);
    if !path.is_absolute() {
        return Err("an absolute path");
    }
    request.log = Some(path);
    Ok(())
}

fn fence(request: &mut Request, value: &str) -> Result<(), &'static str> {
    const WHAT: &str = "auto, reservation, lease, or command: and the absolute path of a program";
    request.volume.fence = match value {
        "auto" => FenceWish::Auto,
        "lease" => FenceWish::Lease,
        "reservation" => FenceWish::Reservation,
        _ => {
            let path = value.strip_prefix("command:").map(PathBuf::from);
            FenceWish::Command(path.filter(|p| p.is_absolute()).ok_or(WHAT)?)
        }
    };
    // Whoever asks for leases wants them waited for.
    request.volume.prove_gone = request.volume.fence != FenceWish::Lease;
    Ok(())
}

/// A number of bytes, at least `least`: digits, then K, M or G.
fn bytes(value: &str, least: usize) -> Result<usize, &'static str> {
    const WHAT: &str = "a number of bytes, 1M or more (K, M, G after the number)";
    let (digits, unit) = match value.char_indices().last() {
        Some((at, 'k' | 'K')) => (&value[..at], 1 << 10),
        Some((at, 'm' | 'M')) => (&value[..at], 1 << 20),
        Some((at, 'g' | 'G')) => (&value[..at], 1 << 30),
        _ => (value, 1),
    };
    let number: usize = digits.parse().map_err(|_| WHAT)?;
    number.checked_mul(unit).filter(|n| *n >= least).ok_or(WHAT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(list: &str) -> Result<Request, String> {
        let mut request = Request::new("/dev/x".into());
        request.parse(list, false).map(|()| request)
    }

    #[test]
    fn every_row_is_taken_in_its_form_and_refused_in_the_other() {
        for (name, effect) in TABLE {
            let alone = parsed(name);
            let with_value = parsed(&format!("{name}=\u{1}"));
            match effect {
                Flags(set, clear) => {
                    assert_eq!(alone.unwrap().flags & (set | clear), *set, "{name}");
                    assert!(with_value.is_err(), "{name}");
                }
                Switch(_) => assert!(alone.is_ok() && with_value.is_err(), "{name}"),
                Value(_) => assert!(alone.is_err() && with_value.is_err(), "{name}"),
                Refused(why) => {
                    for refused in [alone, with_value] {
                        assert_eq!(refused.unwrap_err(), format!("mount option '{name}': {why}"));
                    }
                }
                Nothing => assert_eq!(alone.unwrap(), Request::new("/dev/x".into()), "{name}"),
            }
        }
    }

    #[test]
    fn no_option_is_there_twice() {
        let mut names: Vec<_> = TABLE.iter().map(|(name, _)| name).collect();
        names.sort();
        assert!(names.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn values() {
        let r = parsed("commit=0.5,cache=128M,dirty=1G,host=alpha,threads=2,log=/var/log/shoal").unwrap();
        assert_eq!(r.volume.commit_interval, Duration::from_millis(500));
        assert_eq!((r.volume.cache_bytes, r.volume.dirty_bytes), (128 << 20, 1 << 30));
        assert_eq!((r.volume.host_name.as_deref(), r.threads), (Some("alpha"), 2));
        assert_eq!(r.log, Some(PathBuf::from("/var/log/shoal")));
        for wrong in [
            "commit=0",
            "commit=NaN",
            "cache=5K",
            "cache=99999999999G",
            "threads=0",
            "log=x",
            "host=",
            "user_id=5",
            "fence=",
            "fence=command",
            "fence=command:",
            "fence=command:off",
        ] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn classes_of_fence() {
        let of = |list: &str| parsed(list).unwrap().volume;
        assert_eq!((of("").fence, of("").prove_gone), (FenceWish::Auto, true));
        assert_eq!((of("fence=lease").fence, of("fence=lease").prove_gone), (FenceWish::Lease, false));
        assert_eq!(of("fence=lease,fence=reservation").fence, FenceWish::Reservation);
        assert!(of("fence=lease,fence=auto").prove_gone);
        assert_eq!(of("fence=command:/sbin/off").fence, FenceWish::Command("/sbin/off".into()));
    }

    #[test]
    fn the_last_one_wins() {
        assert_eq!(parsed("nosuid,ro,suid,rw").unwrap(), Request::new("/dev/x".into()));
        let r = parsed("rw,noatime,ro").unwrap();
        assert!(r.volume.read_only && r.volume.no_atime);
        assert_eq!(r.flags, libc::MS_RDONLY | libc::MS_NOATIME);
        let r = parsed("async,sync").unwrap();
        assert!(r.volume.synchronous && r.flags == libc::MS_SYNCHRONOUS);
        assert_eq!(parsed("sync,async").unwrap(), Request::new("/dev/x".into()));
    }

    #[test]
    fn unknown_ones_are_named() {
        assert_eq!(parsed("ro,data=journal").unwrap_err(), "unknown mount option 'data=journal'");
        let mut sloppy = Request::new("/dev/x".into());
        sloppy.parse("ro,data=journal,usrquota,x-systemd.automount,comment=hi", true).unwrap();
        assert!(sloppy.volume.read_only);
    }
}
