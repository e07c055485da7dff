//! copy_file_range, within a file, between files, and between the mounts of two hosts.

use super::opens::Open;
use super::{Tester, Turn};
use rand::Rng;
use std::io;
use std::os::fd::AsRawFd;

/// Copy `length` bytes, of which `there` are in the source.
fn copy(
    (from, offset): (&Open, usize),
    (to, target): (&Open, usize),
    length: usize,
    there: usize,
) -> io::Result<usize> {
    let (mut offset, mut target, mut done) = (offset as i64, target as i64, 0);
    loop {
        // SAFETY: open descriptors, and offsets that outlive the call, which moves them on.
        let copied = unsafe {
            let (from, to) = (from.file.as_raw_fd(), to.file.as_raw_fd());
            libc::copy_file_range(from, &mut offset, to, &mut target, length - done, 0)
        };
        match copied {
            -1 => return Err(io::Error::last_os_error()),
            0 => return Ok(done),
            n => done += n as usize,
        }
        // Not past the end, which may have moved by the copy itself.
        if done >= there {
            return Ok(done);
        }
    }
}

impl Tester {
    pub fn copy(&mut self, turn: &Turn) {
        let Some(from) = self.some_open(turn) else { return };
        let to = if self.chance(20) { Some(from.clone()) } else { self.some_writable(turn) };
        let Some(to) = to.filter(|to| to.writes && !to.appends) else { return };
        // ext4 copies by way of requests of these descriptors, which must be whole blocks then.
        if self.wants_blocks(&from) || self.wants_blocks(&to) {
            return;
        }
        let (size, there) = (self.model.size(from.id), self.model.size(to.id));
        let offset = self.random.random_range(0..=size);
        let target = self.random.random_range(0..there + 20_000);
        let length = self.random.random_range(1..50_000);
        let found = length.min(size - offset);
        // Judged by what was asked for, up to the end of the source.
        let overlaps = from.id == to.id && offset < target + found && target < offset + found;
        if overlaps && from.host != to.host {
            // Which no kernel can tell; what comes of it is for nobody to say.
            return;
        }
        let errno = if overlaps { libc::EINVAL } else { 0 };
        let what = format!(
            "{} copy {offset} +{length} of #{} size {size} by {} to {target} size {there}",
            to.name(),
            from.id,
            from.name()
        );
        // How much there is the kernel knows of itself, from when this host last asked (docs/LIMITS.md).
        let asked = from.file.metadata().map(|found| found.len());
        if self.expect(from.id, format!("{} fstat", from.name()), asked, 0) != Some(size as u64) {
            self.fail(from.id, format!("expected {size} bytes"));
        }
        let done = copy((&from, offset), (&to, target), length, found);
        let Some(copied) = self.expect(to.id, what, done, errno) else { return };
        if copied != found {
            self.fail(to.id, format!("{copied} bytes copied, expected {found}"));
        }
        if found > 0 {
            let data = self.model.get(from.id, offset, length);
            self.model.put(to.id, target, &data);
        }
    }
}
