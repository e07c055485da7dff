//! Read, write, append, truncate and fsync, by open files old and new, through the page cache and past it.

use super::opens::Open;
use super::{Tester, Turn};
use crate::model::Id;
use rand::Rng;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;

pub const BLOCK: usize = 4096;

/// Bytes at an address as direct requests want it.
pub struct Aligned {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    pub fn new(length: usize) -> Aligned {
        let memory = vec![0; length + BLOCK];
        let start = memory.as_ptr().align_offset(BLOCK);
        Aligned { memory, start, length }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

/// Read until `bytes` are full or the file ends.
fn read_at(open: &Open, bytes: &mut [u8], offset: usize) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match open.file.read_at(&mut bytes[done..], (offset + done) as u64)? {
            0 => break,
            n => done += n,
        }
    }
    Ok(done)
}

impl Tester {
    pub fn change_content(&mut self, turn: &Turn) {
        let Some(open) = self.some_open(turn) else { return };
        match self.random.random_range(0..24) {
            0..9 if open.writes => self.write(&open),
            9..12 if open.writes => self.truncate(&open),
            12 => self.sync(&open),
            13 => self.empty(turn, &open),
            _ => self.read(&open),
        }
    }

    /// A place and a length for a read or write of a file of `size` bytes: for a direct one mostly whole blocks.
    pub fn extent(&mut self, open: &Open, size: usize, max: usize) -> (usize, usize) {
        let offset = self.random.random_range(0..200_000);
        let offset = self.pick(&[0, size, offset, offset.min(size)]);
        let length = self.random.random_range(1..=max);
        let unit = match open.direct {
            true if self.wants_blocks(open) => BLOCK,
            true => self.pick(&[BLOCK, BLOCK, BLOCK, 512, 1]),
            false => 1,
        };
        (offset / unit * unit, length.div_ceil(unit) * unit)
    }

    fn write(&mut self, open: &Open) {
        let size = self.model.size(open.id);
        if open.appends && self.wants_blocks(open) && !size.is_multiple_of(BLOCK) {
            return;
        }
        let max = self.pick(&[60_000, 60_000, 5000, 100]);
        let (offset, length) = self.extent(open, size, max);
        let mut data = Aligned::new(length);
        self.random.fill(data.bytes_mut());
        // Where the end is decides, for an appending one.
        let done = open.file.write_all_at(data.bytes(), offset as u64);
        self.expect(open.id, format!("{} write {offset} +{length} size {size}", open.name()), done, 0);
        let offset = if open.appends { size } else { offset };
        self.model.put(open.id, offset, data.bytes());
    }

    fn truncate(&mut self, open: &Open) {
        let size = self.model.size(open.id);
        let to = match self.chance(60) {
            true => self.random.random_range(0..=size),
            false => size + self.random.random_range(0..20_000),
        };
        let done = open.file.set_len(to as u64);
        self.expect(open.id, format!("{} truncate {size} to {to}", open.name()), done, 0);
        self.resize(open.id, to);
    }

    fn sync(&mut self, open: &Open) {
        let data = self.chance(50);
        let done = if data { open.file.sync_data() } else { open.file.sync_all() };
        self.expect(open.id, format!("{} fsync, data only {data}", open.name()), done, 0);
    }

    /// An open that truncates, of what this one has open.
    fn empty(&mut self, turn: &Turn, open: &Open) {
        let Some(place) = turn.places.iter().find(|place| place.id == open.id) else { return };
        let done = OpenOptions::new().write(true).truncate(true).open(self.at(turn.host, &place.path));
        self.expect(open.id, format!("h{} open {} to truncate", turn.host, place.path), done, 0);
        self.resize(open.id, 0);
    }

    /// All of the file, or a part.
    fn read(&mut self, open: &Open) {
        if self.chance(50) {
            return self.compare_content(open);
        }
        let size = self.model.size(open.id);
        let (offset, length) = self.extent(open, size, 30_000);
        self.read_and_compare(open, offset, length);
    }

    /// All of it is as it should be, and ends where it should.
    pub fn compare_content(&mut self, open: &Open) {
        let length = (self.model.size(open.id) / BLOCK + 2) * BLOCK;
        self.read_and_compare(open, 0, length);
    }

    pub fn read_and_compare(&mut self, open: &Open, offset: usize, length: usize) {
        let mut bytes = Aligned::new(length);
        let done = read_at(open, bytes.bytes_mut(), offset);
        let what = format!("{} read {offset} +{length}", open.name());
        let found = self.expect(open.id, what, done, 0).unwrap();
        self.compare_bytes(open.id, offset, length, &bytes.bytes()[..found]);
    }

    /// What was found from `offset` on, where `length` bytes were asked for.
    pub fn compare_bytes(&mut self, id: Id, offset: usize, length: usize, found: &[u8]) {
        let wanted = self.model.get(id, offset, length);
        if found == wanted {
            return;
        }
        let first = found.iter().zip(&wanted).position(|(a, b)| a != b);
        let last = found.iter().zip(&wanted).rposition(|(a, b)| a != b);
        let zeros = first.zip(last).map(|(a, b)| found[a..=b].iter().all(|byte| *byte == 0));
        let size = self.model.size(id);
        self.fail(
            id,
            format!(
                "{} bytes, expected {}, of a file of {size}; different from {:?} to {:?}, all zero there: {zeros:?}",
                found.len(),
                wanted.len(),
                first.map(|i| offset + i),
                last.map(|i| offset + i)
            ),
        );
    }
}
