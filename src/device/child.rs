//! A program of the administrator that runs beside a daemon: started with what a shell would give it, and ended
//! with all that it has started.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::Duration;

const PR_SET_IO_FLUSHER: i32 = 57;
/// Looks for what is left of a session, and the pause between two of them.
const LOOKS_MAX: u32 = 300;
const LOOK: Duration = Duration::from_millis(10);

/// Start `command` in a session of its own, of which it is the leader. What daemons do to themselves is undone:
/// blocked signals (a program that ends another by SIGTERM would wait for ever), priority, umask, what the
/// out-of-memory killer thinks of it, place in write-back.
/// It ends with the thread that started it.
///
/// # Errors
/// Those of starting it.
pub fn start(command: &mut Command) -> io::Result<Child> {
    // Who was started with it ignored cannot wait for children.
    // SAFETY: takes numbers only.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    let parent = std::process::id();
    // SAFETY: it makes only calls that are safe between fork and exec.
    unsafe { command.pre_exec(move || plain(parent)) };
    command.spawn()
}

/// In the child.
fn plain(parent: u32) -> io::Result<()> {
    // SAFETY: sigset_t is plain data that sigemptyset initialises; the rest takes numbers.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        for signal in [libc::SIGCHLD, libc::SIGPIPE, libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            libc::signal(signal, libc::SIG_DFL);
        }
        libc::setpriority(libc::PRIO_PROCESS, 0, 0);
        libc::sched_setscheduler(0, libc::SCHED_OTHER, &libc::sched_param { sched_priority: 0 });
        libc::umask(0o022);
        let score = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if score >= 0 {
            libc::write(score, c"0".as_ptr().cast(), 1);
            libc::close(score);
        }
        libc::prctl(PR_SET_IO_FLUSHER, 0, 0, 0, 0);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        // Nobody tells of a parent that ended before.
        let orphaned = libc::getppid() as u32 != parent;
        match libc::setsid() {
            -1 => Err(io::Error::last_os_error()),
            _ if orphaned => Err(io::Error::from_raw_os_error(libc::ESRCH)),
            _ => Ok(()),
        }
    }
}

/// Once it has ended: with success? It is not waited for, so that its number, and its session's, stay its own.
///
/// # Errors
/// It is no child of this process any more.
pub fn has_ended(child: &Child) -> io::Result<Option<bool>> {
    // SAFETY: siginfo_t is plain data, and only written to.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let how = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        match libc::waitid(libc::P_PID, child.id(), &mut info, how) {
            -1 => Err(io::Error::last_os_error()),
            _ if info.si_pid() == 0 => Ok(None),
            _ => Ok(Some(info.si_code == libc::CLD_EXITED && info.si_status() == 0)),
        }
    }
}

/// Kill the session of `child`, which is not waited for yet, until nothing of it runs. `false`: something does not
/// die, or cannot be found.
pub fn kill_session(child: &Child) -> bool {
    for _ in 0..LOOKS_MAX {
        match members(child.id()) {
            Some(left) if left.is_empty() => return true,
            Some(left) => {
                for pid in left {
                    // SAFETY: takes numbers only. The number is that of a process which was in the session a
                    // moment ago.
                    unsafe { libc::kill(pid, libc::SIGKILL) };
                }
            }
            None => {
                // SAFETY: takes numbers only; its own group is all that can be reached without /proc.
                unsafe { libc::kill(-(child.id() as libc::pid_t), libc::SIGKILL) };
                return false;
            }
        }
        std::thread::sleep(LOOK);
    }
    false
}

/// The processes of a session that have not ended.
fn members(session: u32) -> Option<Vec<libc::pid_t>> {
    let names = std::fs::read_dir("/proc").ok()?.flatten();
    let pids = names.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_in = |pid: &libc::pid_t| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name may have anything in it, parentheses too.
        let Some((_, rest)) = stat.rsplit_once(')') else { return false };
        let mut fields = rest.split_whitespace();
        let state = fields.next().unwrap_or("Z");
        fields.nth(2).and_then(|s| s.parse().ok()) == Some(session) && state != "Z" && state != "X"
    };
    Some(pids.filter(is_in).collect())
}
