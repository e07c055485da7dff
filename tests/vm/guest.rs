//! One User-Mode Linux guest: a Linux kernel of its own as a process of this machine.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

const BOOT_MAX: Duration = Duration::from_secs(90);
const MEMORY: &str = "256M";

/// A running guest; it ends with this value, as by a power cut.
pub struct Guest {
    number: usize,
    run: PathBuf,
    kernel: Child,
    line: ChildStdin,
    news: Receiver<(u32, i32)>,
    ended: BTreeMap<u32, i32>,
    jobs: u32,
}

/// A script that runs in a guest.
#[derive(Clone, Copy, Debug)]
pub struct Job(u32);

/// How a script ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub output: String,
}

impl Guest {
    /// Power on. `run` is the folder it shares with the test, `disk` what it has as /dev/ubda.
    pub fn boot(number: usize, run: &Path, disk: &Path) -> Guest {
        // `c`: shared by several guests, not locked by one.
        Guest::boot_with(number, run, &[format!("ubd0c={}", disk.display())])
    }

    /// With these devices.
    pub fn boot_with(number: usize, run: &Path, devices: &[String]) -> Guest {
        let console = File::options().create(true).append(true).open(run.join(format!("console{number}")));
        // A session of its own: all its processes are found by it.
        let mut kernel = Command::new("setsid")
            .arg("linux")
            .args([&format!("mem={MEMORY}"), "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"])
            // Not out of the test's folder: the guest's own /dev is in place before it looks.
            .arg(concat!("init=", env!("CARGO_MANIFEST_DIR"), "/tests/vm/init.sh"))
            .arg(format!("uml_dir={}", run.join("uml").display()))
            .args(devices)
            .args(["con=null", "con0=null,fd:2", "con1=null", "ssl=null", "ssl0=fd:0,fd:1"])
            .args(["console=tty0", "noreboot", "panic=1"])
            .args([format!("GUEST={number}"), format!("RUN={}", run.display())])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(console.expect("a console file"))
            .current_dir(run)
            .spawn()
            .expect("the programs setsid and linux (Debian: util-linux, user-mode-linux)");
        let line = kernel.stdin.take().expect("piped");
        let answers = BufReader::new(kernel.stdout.take().expect("piped"));
        let (tell, news) = channel();
        std::thread::spawn(move || {
            for answer in answers.lines().map_while(Result::ok) {
                let words: Vec<&str> = answer.split_whitespace().collect();
                let told = match words[..] {
                    ["READY", _] => tell.send((0, 0)),
                    ["DONE", job, code] => match (job.parse(), code.parse()) {
                        (Ok(job), Ok(code)) => tell.send((job, code)),
                        _ => Ok(()),
                    },
                    _ => Ok(()),
                };
                if told.is_err() {
                    return;
                }
            }
        });
        let run = run.to_owned();
        Guest { number, run, kernel, line, news, ended: BTreeMap::new(), jobs: 0 }
    }

    /// Wait until it takes commands.
    pub fn wait_until_up(&mut self) {
        assert!(
            self.answer(0, BOOT_MAX).is_some(),
            "guest {} does not boot:\n{}",
            self.number,
            self.console()
        );
    }

    /// What its kernel said.
    pub fn console(&self) -> String {
        let text = fs::read(self.run.join(format!("console{}", self.number))).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let from = text.char_indices().rev().nth(3000).map_or(0, |(at, _)| at);
        text[from..].to_owned()
    }

    fn answer(&mut self, job: u32, limit: Duration) -> Option<i32> {
        let end = Instant::now() + limit;
        loop {
            if let Some(code) = self.ended.remove(&job) {
                return Some(code);
            }
            match self.news.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok((job, code)) => drop(self.ended.insert(job, code)),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    fn file(&self, job: u32, kind: &str) -> PathBuf {
        self.run.join(format!("guest{}.{job}.{kind}", self.number))
    }

    /// Begin a shell script.
    pub fn start(&mut self, script: &str) -> Job {
        self.jobs += 1;
        fs::write(self.file(self.jobs, "sh"), script).expect("a script");
        writeln!(self.line, "{}", self.jobs).expect("a guest that lives");
        Job(self.jobs)
    }

    /// Wait for its end.
    pub fn wait(&mut self, job: Job, limit: Duration) -> Ended {
        let code = self.answer(job.0, limit);
        let output = fs::read(self.file(job.0, "out")).unwrap_or_default();
        let output = String::from_utf8_lossy(&output).into_owned();
        let Some(code) = code else {
            let script = fs::read_to_string(self.file(job.0, "sh")).unwrap_or_default();
            let console = self.console();
            panic!("guest {} did not end within {limit:?}:\n{script}\n{output}\n{console}", self.number);
        };
        Ended { code, output }
    }

    /// Run a script that must succeed; its output.
    pub fn run(&mut self, script: &str, limit: Duration) -> String {
        let job = self.start(script);
        let ended = self.wait(job, limit);
        assert_eq!(ended.code, 0, "guest {}:\n{script}\n{}\n{}", self.number, ended.output, self.console());
        ended.output
    }

    /// All its processes on this machine.
    fn processes(&self) -> Vec<i32> {
        let session = self.kernel.id().to_string();
        let is_ours = |pid: &i32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let Some((_, rest)) = stat.rsplit_once(')') else { return false };
            let fields: Vec<&str> = rest.split_whitespace().collect();
            fields.get(3) == Some(&session.as_str()) && fields[0] != "Z"
        };
        let names = fs::read_dir("/proc").expect("/proc").flatten();
        let pids = names.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(is_ours).collect()
    }

    /// Pause the whole machine, with whatever its kernel has queued; or let it go on.
    pub fn pause(&self, paused: bool) {
        signal(self.kernel.id() as i32, if paused { libc::SIGSTOP } else { libc::SIGCONT });
    }

    /// Cut its power.
    pub fn kill(&mut self) {
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            let left = self.processes();
            if left.is_empty() || Instant::now() > end {
                break;
            }
            left.into_iter().for_each(|pid| signal(pid, libc::SIGKILL));
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.kernel.wait();
    }
}

fn signal(pid: i32, signal: i32) {
    // SAFETY: no memory is passed; the number is that of a process of a guest of this test.
    unsafe { libc::kill(pid, signal) };
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.kill();
    }
}
