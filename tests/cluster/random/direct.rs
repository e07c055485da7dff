//! Turns of several hosts that read and write one file past the page cache, until they share it.

use super::content::{Aligned, BLOCK};
use super::opens::Open;
use super::{Kind, Tester, Turn};
use crate::model::Place;
use rand::Rng;
use rand::seq::IndexedRandom;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::rc::Rc;

const BLOCKS_MIN: usize = 8;
const REQUESTS: usize = 14;
/// So many of them at the end must cost next to no words, if they are shared.
const COUNTED: usize = 6;
const WORDS_MAX: u64 = 2;

impl Tester {
    pub fn take_direct_turns(&mut self, turn: &Turn) {
        let Some(place) = self.files(turn).choose(&mut self.random).cloned() else { return };
        let at = self.at(turn.host, &place.path);
        let id = place.id;
        if self.model.size(id) >= BLOCK && self.chance(30) {
            // By one host alone.
            let open = self.open_direct(turn.host, &place);
            return self.write_over_cached(&open, &place.path);
        }
        if self.model.size(id) < BLOCKS_MIN * BLOCK || self.chance(30) {
            // Only blocks that are there are shared.
            let data = self.bytes(2 * BLOCKS_MIN * BLOCK);
            let data = [vec![1; BLOCKS_MIN * BLOCK], data].concat();
            let done = fs::write(&at, &data);
            self.expect(id, format!("h{} write all of {}: {}", turn.host, place.path, data.len()), done, 0);
            self.resize(id, 0);
            *self.model.data(id) = data;
        }
        let opens: Vec<Open> = (0..self.hosts.len()).map(|host| self.open_direct(host, &place)).collect();
        let mut before = 0;
        for request in 0..REQUESTS {
            if request == REQUESTS - COUNTED {
                before = self.words();
            }
            self.direct_request(&opens, request);
            if request == 2 && self.chance(30) {
                let host = self.host();
                self.write_over_cached(&opens[host], &place.path);
            }
        }
        self.direct_turns.0 += 1;
        if self.words() - before <= WORDS_MAX {
            self.direct_turns.1 += 1;
        }
        // One of them stays, to be met by others.
        if self.chance(20) {
            let mut open = opens.choose(&mut self.random).expect("one per host").clone();
            self.serial += 1;
            (open.serial, open.passing) = (self.serial, false);
            self.history.push(id, format!("h{} keeps open {}", open.host, open.serial));
            self.opens.push(open);
        }
    }

    fn open_direct(&mut self, host: usize, place: &Place) -> Open {
        let options = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).to_owned();
        let done = options.open(self.at(host, &place.path));
        let what = format!("h{host} open {} for direct turns", place.path);
        let file = Rc::new(self.expect(place.id, what, done, 0).unwrap());
        let id = place.id;
        Open { serial: 0, host, id, file, writes: true, appends: false, direct: true, passing: true }
    }

    /// A host writes through its cache, and at once past it to the same place.
    fn write_over_cached(&mut self, open: &Open, path: &str) {
        let block = self.random.random_range(0..self.model.size(open.id) / BLOCK);
        let data = self.bytes(BLOCK);
        let cached = OpenOptions::new().write(true).open(self.at(open.host, path));
        let done = cached.and_then(|cached| cached.write_all_at(&data, (block * BLOCK) as u64));
        let what = format!("h{} write {} +{} through the cache", open.host, block * BLOCK, data.len());
        self.expect(open.id, what, done, 0);
        self.model.put(open.id, block * BLOCK, &data);
        self.write_direct(open, block * BLOCK, BLOCK);
        if self.chance(50) {
            self.compare_content(open);
        }
    }

    fn write_direct(&mut self, open: &Open, offset: usize, length: usize) {
        let mut data = Aligned::new(length);
        self.random.fill(data.bytes_mut());
        let done = open.file.write_all_at(data.bytes(), offset as u64);
        self.expect(open.id, format!("{} write {offset} +{length}", open.name()), done, 0);
        self.model.put(open.id, offset, data.bytes());
    }

    fn direct_request(&mut self, opens: &[Open], request: usize) {
        // Two of them for sure, so that they share.
        let host = if self.chance(80) { request % 2 } else { self.host() };
        let open = &opens[host];
        let blocks = self.model.size(open.id) / BLOCK;
        let block = self.random.random_range(0..blocks);
        let count = self.random.random_range(1..=(blocks - block).min(3));
        let (offset, length) = (block * BLOCK, count * BLOCK);
        if self.chance(30) {
            return self.read_and_compare(open, offset, length);
        }
        self.write_direct(open, offset, length);
    }

    /// What the hosts have told each other so far.
    fn words(&self) -> u64 {
        if self.kind == Kind::Local {
            return 0;
        }
        let of_host = |host: &std::path::PathBuf| {
            let report = crate::rig_xattr::get(host, "trusted.shoal.io").expect("on the root");
            let report = String::from_utf8(report).expect("text");
            let count = report.split(' ').find_map(|pair| pair.strip_prefix("inbox_writes="));
            count.expect("counted").parse::<u64>().expect("a number")
        };
        self.hosts.iter().map(of_host).sum()
    }
}
