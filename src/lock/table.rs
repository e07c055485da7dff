//! The table of locks this host holds, with its pins: the fast path.
//!
//! An entry says what the host holds (`mode`), what new pins may be taken (`limit`, never more
//! than `mode`) and how many pins there are. Pinning and unpinning touch one shard and nothing
//! else. Entries appear, vanish and change their mode and limit only under the desk's mutex; pins
//! come and go without it. So whoever holds the desk's mutex and sees no pin above a limit that
//! is closed knows that none will come.

use crate::base::{LockName, Mode};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::time::Duration;

const SHARDS: usize = 64;

/// One lock this host holds.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// What the host holds.
    pub mode: Mode,
    /// The strongest new pin allowed.
    pub limit: Mode,
    /// The mode that the file system has been told of; between `limit` and `mode`.
    pub told: Mode,
    /// Pins taken by [`PinTable::pin_held`] so far.
    pub late_pins: u32,
    /// In `S`, or in `DW`: a lock is not held in both.
    pins_shared: u32,
    pins_x: u32,
    /// Pinned for changing what it covers since it was last given up entirely.
    pub written: bool,
    /// Somebody at the desk waits for pins to go.
    attention: bool,
    /// Shard time of the last pin, for the least recently used.
    used: u64,
    /// Before this time a demotion leaves running operations alone.
    pub hold_until: Duration,
}

impl Held {
    /// Pins of all modes.
    pub fn pins(&self) -> u32 {
        self.pins_shared + self.pins_x
    }

    /// Pins that forbid lowering the mode to `to`.
    pub fn pins_above(&self, to: Mode) -> u32 {
        match to {
            Mode::X => 0,
            Mode::S => self.pins_x,
            Mode::N | Mode::DW => self.pins(),
        }
    }

    fn add_pin(&mut self, mode: Mode) {
        match mode {
            Mode::X => (self.pins_x, self.written) = (self.pins_x + 1, true),
            Mode::DW => (self.pins_shared, self.written) = (self.pins_shared + 1, true),
            _ => self.pins_shared += 1,
        }
    }
}

#[derive(Clone, Default)]
struct Shard {
    held: HashMap<LockName, Held, BuildHasherDefault<NameHasher>>,
    time: u64,
}

/// See the head of the file.
pub struct PinTable {
    shards: Vec<Mutex<Shard>>,
}

impl Default for PinTable {
    fn default() -> PinTable {
        PinTable { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }
}

/// A table of its own with the same pins in it.
impl Clone for PinTable {
    fn clone(&self) -> PinTable {
        PinTable { shards: self.shards.iter().map(|s| Mutex::new(s.lock().clone())).collect() }
    }
}

/// What is held and pinned, in the lock order. The times of use are left out: they tell which of
/// several idle locks goes first, and no more.
impl Hash for PinTable {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let mut all = self.all();
        all.sort_unstable_by_key(|(name, _)| *name);
        for (name, h) in all {
            (name, h.mode, h.limit, h.told, h.late_pins, h.pins_shared, h.pins_x, h.attention).hash(state);
        }
    }
}

impl PinTable {
    fn shard(&self, name: LockName) -> &Mutex<Shard> {
        let (class, id) = name.to_raw();
        let mixed = (id ^ u64::from(class) << 56).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        &self.shards[(mixed >> 58) as usize % SHARDS]
    }

    /// Take a pin if the limit allows it.
    pub fn pin(&self, name: LockName, mode: Mode) -> bool {
        self.pin_if(name, mode, |held| held.limit.covers(mode))
    }

    /// Take a pin while the lock is held, even if it is about to be given up.
    pub fn pin_held(&self, name: LockName, mode: Mode) -> bool {
        self.pin_if(name, mode, |held| {
            let may = held.told.covers(mode);
            held.late_pins = held.late_pins.wrapping_add(u32::from(may));
            may
        })
    }

    fn pin_if(&self, name: LockName, mode: Mode, may: impl FnOnce(&mut Held) -> bool) -> bool {
        let mut shard = self.shard(name).lock();
        let shard = &mut *shard;
        shard.time += 1;
        match shard.held.get_mut(&name) {
            Some(held) => {
                let may = may(held);
                if may {
                    held.add_pin(mode);
                    held.used = shard.time;
                }
                may
            }
            None => false,
        }
    }

    /// Give a pin back. True: the last one that somebody waited for may be gone; tell the desk.
    #[must_use]
    pub fn unpin(&self, name: LockName, mode: Mode) -> bool {
        let mut shard = self.shard(name).lock();
        let held = shard.held.get_mut(&name).expect("a pinned lock stays in the table");
        let count = if mode == Mode::X { &mut held.pins_x } else { &mut held.pins_shared };
        *count = count.checked_sub(1).expect("pins are given back once");
        held.attention && (*count == 0 || held.pins() == 0)
    }

    /// A copy of the entry.
    pub fn get(&self, name: LockName) -> Option<Held> {
        self.shard(name).lock().held.get(&name).cloned()
    }

    /// What this host holds.
    pub fn mode(&self, name: LockName) -> Mode {
        self.shard(name).lock().held.get(&name).map_or(Mode::N, |held| held.mode)
    }

    /// Change the entry, made if missing; it vanishes if it then holds nothing. Desk only.
    pub fn change<T>(&self, name: LockName, f: impl FnOnce(&mut Held) -> T) -> T {
        let mut shard = self.shard(name).lock();
        let shard = &mut *shard;
        let held = shard.held.entry(name).or_insert_with(|| Held { used: shard.time, ..Held::default() });
        let result = f(held);
        assert!(held.mode.covers(held.told) && held.told.covers(held.limit), "{name:?}: limit above mode");
        if held.mode == Mode::N {
            assert_eq!(held.pins(), 0, "{name:?} lost under a pin");
            shard.held.remove(&name);
        }
        result
    }

    /// Take a lock about which nothing goes on, as `grant`, and a pin of it. Desk only.
    pub fn claim(&self, name: LockName, grant: Mode, mode: Mode) -> bool {
        let mut shard = self.shard(name).lock();
        let shard = &mut *shard;
        shard.time += 1;
        let held = shard.held.entry(name).or_default();
        if !held.mode.covers(grant) {
            (held.mode, held.told, held.limit) = (grant, grant, grant);
        }
        let may = held.limit.covers(mode);
        if may {
            held.add_pin(mode);
            held.used = shard.time;
        }
        may
    }

    /// Open or close the lock for new pins, and ask to be told of the last unpin. Desk only.
    pub fn set_limit(&self, name: LockName, limit: Mode, attention: bool) {
        let mut shard = self.shard(name).lock();
        if let Some(held) = shard.held.get_mut(&name) {
            assert!(held.told.covers(limit), "{name:?}: limit above mode");
            held.limit = limit;
            held.attention = attention;
        }
    }

    /// Lower the mode, unless a pin stands above `to`, or one was taken by [`PinTable::pin_held`]
    /// since their number was `late_pins`: what it changed is not demoted. Desk only.
    pub fn lower(&self, name: LockName, to: Mode, late_pins: u32) -> bool {
        let mut shard = self.shard(name).lock();
        let Some(held) = shard.held.get_mut(&name) else { return true };
        if held.pins_above(to) > 0 || held.late_pins != late_pins {
            held.attention = true;
            return false;
        }
        (held.mode, held.told) = (to, if to.covers(held.told) { held.told } else { to });
        held.limit = if to.covers(held.limit) { held.limit } else { to };
        held.attention = false;
        if to == Mode::N {
            shard.held.remove(&name);
        }
        true
    }

    /// Entries in all.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|s| s.lock().held.len()).sum()
    }

    /// Is nothing held?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All entries, shard by shard, not one moment's picture.
    pub fn all(&self) -> Vec<(LockName, Held)> {
        let of =
            |s: &Mutex<Shard>| -> Vec<_> { s.lock().held.iter().map(|(n, h)| (*n, h.clone())).collect() };
        self.shards.iter().flat_map(of).collect()
    }

    /// The least recently used unpinned entries that `may` go, such that about `target` remain.
    pub fn oldest(&self, target: usize, may: impl Fn(LockName) -> bool) -> Vec<LockName> {
        let mut chosen = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            let excess = shard.held.len().saturating_sub(target / SHARDS);
            if excess == 0 {
                continue;
            }
            let mut idle: Vec<_> = shard.held.iter().filter(|(n, h)| h.pins() == 0 && may(**n)).collect();
            idle.sort_unstable_by_key(|(_, h)| h.used);
            chosen.extend(idle.into_iter().take(excess).map(|(n, _)| *n));
        }
        chosen
    }

    /// A number that differs after each pin of `name`.
    pub fn used(&self, name: LockName) -> u64 {
        self.shard(name).lock().held.get(&name).map_or(0, |h| h.used)
    }
}

/// Lock names are made by this volume's allocators, not by an adversary; a multiplicative hash is
/// several times faster than the default one.
#[derive(Default)]
struct NameHasher(u64);

impl Hasher for NameHasher {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 29
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64(u64::from(*b));
        }
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(5) ^ n).wrapping_mul(0xf135_7aea_2e62_a9c5);
    }
    fn write_u32(&mut self, n: u32) {
        self.write_u64(n.into());
    }
    fn write_u16(&mut self, n: u16) {
        self.write_u64(n.into());
    }
    fn write_u8(&mut self, n: u8) {
        self.write_u64(n.into());
    }
    fn write_isize(&mut self, n: isize) {
        self.write_u64(n as u64);
    }
    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::InodeNo;

    #[test]
    fn limit_and_attention() {
        let table = PinTable::default();
        let name = LockName::Inode(InodeNo(5));
        assert!(!table.pin(name, Mode::S));
        table.change(name, |h| (h.mode, h.told, h.limit) = (Mode::X, Mode::X, Mode::X));
        assert!(table.pin(name, Mode::X) && table.pin(name, Mode::S));
        table.set_limit(name, Mode::S, true);
        assert!(!table.pin(name, Mode::X) && table.pin_held(name, Mode::X));
        assert!(!table.lower(name, Mode::S, 1));
        assert!(!table.unpin(name, Mode::X));
        assert!(table.unpin(name, Mode::X));
        assert!(!table.lower(name, Mode::S, 0) && table.lower(name, Mode::S, 1));
        assert!(table.pin(name, Mode::S));
        assert!(!table.unpin(name, Mode::S) && !table.unpin(name, Mode::S));
        assert!(table.lower(name, Mode::N, 1));
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn direct_writes_are_pinned_under_their_own_mode_only() {
        let table = PinTable::default();
        let name = LockName::Inode(InodeNo(5));
        table.change(name, |h| (h.mode, h.told, h.limit) = (Mode::X, Mode::X, Mode::X));
        assert!(!table.pin(name, Mode::DW) && table.lower(name, Mode::N, 0));
        table.change(name, |h| (h.mode, h.told, h.limit) = (Mode::DW, Mode::DW, Mode::DW));
        assert!(table.pin(name, Mode::DW) && table.pin(name, Mode::DW));
        assert!(!table.pin(name, Mode::S) && !table.pin(name, Mode::X) && !table.pin_held(name, Mode::S));
        table.set_limit(name, Mode::N, true);
        assert!(!table.pin(name, Mode::DW) && !table.lower(name, Mode::N, 0));
        assert!(!table.unpin(name, Mode::DW) && table.unpin(name, Mode::DW));
        assert!(table.get(name).unwrap().written && table.lower(name, Mode::N, 0));
        assert!(table.is_empty());
    }

    #[test]
    fn the_oldest_go_first() {
        let table = PinTable::default();
        let names: Vec<_> = (0..1000).map(|i| LockName::Inode(InodeNo(i))).collect();
        for n in &names {
            table.change(*n, |h| (h.mode, h.told, h.limit) = (Mode::S, Mode::S, Mode::S));
        }
        for n in &names[..500] {
            assert!(table.pin(*n, Mode::S));
            let _ = table.unpin(*n, Mode::S);
        }
        let gone = table.oldest(640, |_| true);
        assert!((300..=450).contains(&gone.len()), "{}", gone.len());
        let young = gone.iter().filter(|n| names[..500].contains(n)).count();
        assert!(young < 40, "{young}");
    }
}
