//! Where a daemon's log goes: a file, the system's log, or (in the foreground) stderr.
//!
//! `SHOAL_LOG` sets what is logged (`warn`, `shoal=debug,shoal::lock=trace` ...; default `info`).

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Mutex;
use tracing_subscriber::EnvFilter;

/// The system log's socket (RFC 3164 datagrams).
const SYSLOG: &str = "/dev/log";
/// Facility daemon (3), severity notice (5).
const PRIORITY: u8 = 3 << 3 | 5;

/// Begins logging. Only the first call of a process has an effect.
///
/// # Errors
/// If `file` cannot be opened.
pub fn start(file: Option<&Path>, foreground: bool) -> io::Result<()> {
    let filter = EnvFilter::try_from_env("SHOAL_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_target(true);
    let installed = match file {
        Some(path) => {
            let file = File::options()
                .create(true)
                .append(true)
                .open(path)
                .map_err(|e| io::Error::new(e.kind(), format!("log file {}: {e}", path.display())))?;
            builder.with_writer(Mutex::new(file)).try_init()
        }
        None if foreground => builder.with_writer(io::stderr).try_init(),
        None => builder.without_time().with_writer(|| Syslog::default()).try_init(),
    };
    drop(installed);
    Ok(())
}

/// One message on its way to the system's log. Where there is none, it is lost.
#[derive(Default)]
struct Syslog {
    message: Vec<u8>,
}

impl Write for Syslog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.message.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Syslog {
    fn drop(&mut self) {
        if self.message.is_empty() {
            return;
        }
        let mut datagram = format!("<{PRIORITY}>shoal[{}]: ", std::process::id()).into_bytes();
        datagram.extend_from_slice(self.message.trim_ascii_end());
        if let Ok(socket) = UnixDatagram::unbound() {
            // A full socket must not hold up the filesystem: lose the line instead.
            let _ = socket.set_nonblocking(true);
            let _ = socket.send_to(&datagram, SYSLOG);
        }
    }
}
