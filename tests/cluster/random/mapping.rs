//! Shared mappings that stay while others write, truncate, rename and unlink the file.

use super::content::BLOCK;
use super::opens::Open;
use super::{Tester, Turn};
use crate::model::Id;
use rand::Rng;
use rand::seq::IndexedRandom;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

const MAPPINGS_MAX: usize = 8;
const ACCESS_MAX: usize = 9000;
const ASKED_MAX: usize = 20;

/// A shared mapping of a file from its begin. Loads and stores are the kernel's on behalf of a pipe: so what would
/// kill this process is an error that can be told.
pub struct Mapping {
    serial: u64,
    /// The open file that it is of, and keeps open.
    pub open: u64,
    pub host: usize,
    pub id: Id,
    at: *mut u8,
    length: usize,
    stores: bool,
    /// The file has had at least so many bytes since this host last asked how many.
    low: usize,
    /// To ask by, without keeping it open.
    asks: File,
    reader: PipeReader,
    writer: PipeWriter,
}

fn check(done: isize) -> io::Result<usize> {
    usize::try_from(done).map_err(|_| io::Error::last_os_error())
}

impl Mapping {
    fn new(serial: u64, open: &Open, length: usize) -> io::Result<Mapping> {
        let access = libc::PROT_READ | if open.writes { libc::PROT_WRITE } else { 0 };
        let fd = open.file.as_raw_fd();
        // SAFETY: a new mapping somewhere; the descriptor is open.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), length, access, libc::MAP_SHARED, fd, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let (reader, writer) = io::pipe()?;
        let asks = File::options().read(true).custom_flags(libc::O_PATH).open(open.again())?;
        let (open, host, id, stores) = (open.serial, open.host, open.id, open.writes);
        Ok(Mapping { serial, open, host, id, at: at.cast(), length, stores, low: 0, asks, reader, writer })
    }

    /// Load from pages of the file. `length` must fit a pipe.
    fn load(&self, offset: usize, length: usize) -> io::Result<Vec<u8>> {
        assert!(offset + length <= self.length.next_multiple_of(BLOCK) && length <= ACCESS_MAX + BLOCK);
        // SAFETY: inside the mapping; a page without a file is the kernel's to refuse.
        let given = unsafe { libc::write(self.writer.as_raw_fd(), self.at.add(offset).cast(), length) };
        let mut found = vec![0; check(given)?];
        io::Read::read_exact(&mut &self.reader, &mut found)?;
        Ok(found)
    }

    fn store(&self, offset: usize, data: &[u8]) -> io::Result<usize> {
        assert!(offset + data.len() <= self.length && data.len() <= ACCESS_MAX);
        io::Write::write_all(&mut &self.writer, data)?;
        // SAFETY: as above.
        let taken = unsafe { libc::read(self.reader.as_raw_fd(), self.at.add(offset).cast(), data.len()) };
        let taken = check(taken);
        // What was refused is still in the pipe.
        let mut rest = vec![0; data.len() - taken.as_ref().map_or(0, |taken| *taken)];
        io::Read::read_exact(&mut &self.reader, &mut rest)?;
        taken
    }

    fn sync(&self) -> io::Result<()> {
        // SAFETY: the whole mapping.
        check(unsafe { libc::msync(self.at.cast(), self.length, libc::MS_SYNC) } as isize).map(|_| ())
    }

    fn name(&self) -> String {
        format!("h{} map {}", self.host, self.serial)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, not used any more.
        unsafe { libc::munmap(self.at.cast(), self.length) };
    }
}

impl Tester {
    pub fn use_mappings(&mut self, turn: &Turn) {
        match self.random.random_range(0..10) {
            0 => self.map(turn),
            1 if self.mappings.len() > 3 => self.unmap(),
            2..6 => self.load(),
            6..9 => self.store(),
            _ => self.sync_mapping(),
        }
    }

    fn map(&mut self, turn: &Turn) {
        if self.mappings.len() >= MAPPINGS_MAX {
            return self.unmap();
        }
        // Of few files, so that several hosts have the same one mapped.
        let mapped: Vec<Id> = self.mappings.iter().map(|map| map.id).collect();
        let of_mapped: Vec<Open> =
            self.opens.iter().filter(|open| mapped.contains(&open.id)).cloned().collect();
        let open = match of_mapped.choose(&mut self.random).cloned() {
            Some(open) if self.chance(60) => Some(open),
            _ => self.some_open(turn),
        };
        let Some(open) = open else { return };
        let size = self.model.size(open.id);
        // What is past the end may be used as soon as the file has grown.
        let length = size.max(1) + self.pick(&[0, 0, 30_000]);
        self.serial += 1;
        let what =
            format!("{} map {length} as {}, stores {}, size {size}", open.name(), self.serial, open.writes);
        let mapping = Mapping::new(self.serial, &open, length);
        let mapping = self.expect(open.id, what, mapping, 0).unwrap();
        self.mappings.push(mapping);
    }

    fn unmap(&mut self) {
        let all: Vec<usize> = (0..self.mappings.len()).collect();
        let index = self.pick(&all);
        self.unmap_this(index);
    }

    fn unmap_this(&mut self, index: usize) {
        let mapping = self.mappings.swap_remove(index);
        self.history.push(mapping.id, format!("{} unmap", mapping.name()));
        let (open, id, host) = (mapping.open, mapping.id, mapping.host);
        drop(mapping);
        self.end_open(open, id, host);
    }

    pub fn unmap_all(&mut self) {
        while !self.mappings.is_empty() {
            self.unmap_this(0);
        }
    }

    /// A file has another size.
    pub fn resize(&mut self, id: Id, size: usize) {
        self.model.data(id).resize(size, 0);
        self.mappings.iter_mut().filter(|map| map.id == id).for_each(|map| map.low = map.low.min(size));
    }

    /// The kernel does not ask for the size before it judges how much of a page is the file's: where the file has grown
    /// on another host since, the program has to (docs/LIMITS.md).
    fn ask_size(&mut self, index: usize, end: usize) {
        let mapping = &self.mappings[index];
        if end <= mapping.low {
            return;
        }
        let (id, what) = (mapping.id, format!("{} asks for the size", mapping.name()));
        let found = mapping.asks.metadata().map(|found| found.len() as usize);
        let found = self.expect(id, what, found, 0).unwrap();
        if found != self.model.size(id) {
            self.fail(id, format!("{found}, expected {}", self.model.size(id)));
        }
        self.mappings[index].low = found;
    }

    /// Touch bytes of a mapping up to `end`, which `is_whole` finds done. What the kernel has just been told of the size it
    /// takes for outdated if the attributes are taken away in the same moment: then the program asks once more.
    fn touch<T>(
        &mut self,
        index: usize,
        end: usize,
        touch: impl Fn(&Mapping) -> io::Result<T>,
        is_whole: impl Fn(&T) -> bool,
    ) -> io::Result<T> {
        for _ in 0..ASKED_MAX {
            self.ask_size(index, end);
            let done = touch(&self.mappings[index]);
            if done.as_ref().is_ok_and(&is_whole) {
                return done;
            }
            self.mappings[index].low = 0;
            std::thread::sleep(Duration::from_millis(5));
        }
        touch(&self.mappings[index])
    }

    /// A mapping, and bytes of it that the file has.
    fn place_in_mapping(&mut self, stores: bool) -> Option<(usize, usize, usize)> {
        let fit: Vec<usize> = (0..self.mappings.len())
            .filter(|i| !stores || self.mappings[*i].stores)
            .filter(|i| self.model.size(self.mappings[*i].id) > 0)
            .collect();
        let index = *fit.choose(&mut self.random)?;
        let mapping = &self.mappings[index];
        let size = self.model.size(mapping.id).min(mapping.length);
        let offset = self.random.random_range(0..size);
        let length = self.random.random_range(1..=(size - offset).min(ACCESS_MAX));
        Some((index, offset, length))
    }

    fn load(&mut self) {
        let Some((index, offset, length)) = self.place_in_mapping(false) else { return };
        let mapping = &self.mappings[index];
        let (id, what) = (mapping.id, format!("{} load {offset} +{length}", mapping.name()));
        let end = offset + length;
        let found = self.touch(index, end, |map| map.load(offset, length), |found| found.len() == length);
        let found = self.expect(id, what, found, 0).unwrap();
        self.compare_bytes(id, offset, length, &found);
    }

    fn store(&mut self) {
        let Some((index, offset, length)) = self.place_in_mapping(true) else { return };
        let mut data = vec![0; length];
        self.random.fill(&mut data[..]);
        let mapping = &self.mappings[index];
        let (id, what) = (mapping.id, format!("{} store {offset} +{length}", mapping.name()));
        let taken =
            self.touch(index, offset + length, |map| map.store(offset, &data), |taken| *taken == length);
        let taken = self.expect(id, what, taken, 0).unwrap();
        if taken != length {
            self.fail(id, format!("{taken} bytes stored"));
        }
        self.model.put(id, offset, &data);
        if self.chance(30) {
            self.sync_this(index);
        }
    }

    fn sync_mapping(&mut self) {
        let all: Vec<usize> = (0..self.mappings.len()).collect();
        if let Some(index) = all.choose(&mut self.random) {
            self.sync_this(*index);
        }
    }

    fn sync_this(&mut self, index: usize) {
        let mapping = &self.mappings[index];
        let (id, what) = (mapping.id, format!("{} msync", mapping.name()));
        let done = mapping.sync();
        self.expect(id, what, done, 0);
    }
}
