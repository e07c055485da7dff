//! Blocks of files: fallocate in all its modes, SEEK_HOLE and SEEK_DATA, statfs.

use super::opens::Open;
use super::{Kind, Tester, Turn};
use rand::Rng;
use std::io;
use std::os::fd::AsRawFd;

const MODES: [i32; 5] = [
    0,
    libc::FALLOC_FL_KEEP_SIZE,
    libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
    libc::FALLOC_FL_ZERO_RANGE,
    libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
];

fn seek(open: &Open, from: usize, whence: i32) -> io::Result<usize> {
    // SAFETY: the descriptor is open; no pointers.
    match unsafe { libc::lseek(open.file.as_raw_fd(), from as i64, whence) } {
        -1 => Err(io::Error::last_os_error()),
        found => Ok(found as usize),
    }
}

impl Tester {
    pub fn change_space(&mut self, turn: &Turn) {
        if self.chance(5) {
            return self.statfs();
        }
        let Some(open) = self.some_open(turn) else { return };
        if open.writes && self.chance(60) { self.fallocate(&open) } else { self.seek_data(&open) }
    }

    fn fallocate(&mut self, open: &Open) {
        let size = self.model.size(open.id);
        let (offset, length) = self.extent(open, size.min(150_000), 100_000);
        let mode = self.pick(&MODES);
        // SAFETY: the descriptor is open; no pointers.
        let done = match unsafe { libc::fallocate(open.file.as_raw_fd(), mode, offset as i64, length as i64) }
        {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        };
        let what = format!("{} fallocate mode {mode:#x} {offset} +{length} size {size}", open.name());
        self.expect(open.id, what, done, 0);
        let (data, end) = (self.model.data(open.id), offset + length);
        if mode & !libc::FALLOC_FL_KEEP_SIZE != 0 && offset < size {
            data[offset..end.min(size)].fill(0);
        }
        if mode & libc::FALLOC_FL_KEEP_SIZE == 0 && end > size {
            data.resize(end, 0);
        }
    }

    /// Walk all data and holes: what is passed over as a hole must be zeros.
    fn seek_data(&mut self, open: &Open) {
        let size = self.model.size(open.id);
        let mut at = if self.chance(50) { 0 } else { self.random.random_range(0..=size) };
        loop {
            let found = seek(open, at, libc::SEEK_DATA);
            let none = found.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::ENXIO));
            let errno = if none { libc::ENXIO } else { 0 };
            let what = format!("{} SEEK_DATA from {at}, size {size}: {found:?}", open.name());
            let data = self.expect(open.id, what, found, errno).unwrap_or(size);
            if data < at || data > size || (data == size && !none) {
                self.fail(open.id, format!("data at {data}"));
            }
            let hole = self.model.get(open.id, at, data - at);
            if let Some(lost) = hole.iter().position(|byte| *byte != 0) {
                self.fail(open.id, format!("a hole until {data}, but there is data at {}", at + lost));
            }
            let found = seek(open, data, libc::SEEK_HOLE);
            let what = format!("{} SEEK_HOLE from {data}, size {size}: {found:?}", open.name());
            if none {
                // At the end there is neither.
                self.expect(open.id, what, found, libc::ENXIO);
                return;
            }
            at = self.expect(open.id, what, found, 0).unwrap();
            if at <= data || at > size {
                self.fail(open.id, format!("data from {data} to {at}"));
            }
        }
    }

    fn statfs(&mut self) {
        let stats = self.hosts.iter().map(|host| crate::rig_xattr::statvfs(host)).collect::<Vec<_>>();
        self.history.push(0, "statfs on all hosts".into());
        for stat in &stats {
            let sane = stat.f_bavail <= stat.f_bfree && stat.f_bfree < stat.f_blocks && stat.f_bavail > 0;
            let same = (stat.f_blocks, stat.f_bsize) == (stats[0].f_blocks, stats[0].f_bsize);
            // Nobody else uses a cluster's volume, and it is never near full.
            let free = self.kind == Kind::Local || stat.f_bfree * 2 > stat.f_blocks;
            if !(sane && same && free) {
                self.fail(0, format!("{} of {} blocks free", stat.f_bfree, stat.f_blocks));
            }
        }
    }
}
