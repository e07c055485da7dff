//! What is on its way to become free space on this host.
//!
//! Whoever finds the volume full waits for what was on its way then, not for what others begin after that: on a full
//! volume that is in use something always is.

use super::*;
use crate::file::FlushMark;
use crate::inode::{ItemKey, ItemKind};
use std::collections::BTreeSet;
use std::ops::ControlFlow;

/// At most so many items are waited for. When they have come there is space, or somebody else has it.
const ITEMS_MAX: usize = 1000;

/// What was on its way at a moment.
pub struct Coming {
    /// Dirty data: it holds more space than it turns out to need.
    dirty: Vec<(InodeNo, FlushMark)>,
    freed: Freed,
    /// Metadata chunks that have emptied.
    draining: BTreeSet<(AgNo, u32)>,
}

/// What has been freed, and cannot be used yet.
#[derive(Default)]
struct Freed {
    /// Unlinked files that are not open here (freed already or not: the kernel may be about to forget them) and other
    /// frees to come, in the slot inode.
    items: BTreeSet<ItemKey>,
    /// Blocks of inodes that the kernel knows still.
    withheld: BTreeSet<BlockNo>,
}

/// What has been waited for in vain, an unlinked file that is open on another host for one. It may take as long as it
/// likes, and is not waited for again.
#[derive(Default)]
pub struct InVain(Mutex<Freed>);

impl Coming {
    /// What is on its way now.
    pub fn now(core: &Core) -> Coming {
        let dirty = core.writeback.dirty().into_iter().filter_map(|ino| {
            let node = core.nodes.find(ino)?;
            let state = node.state.lock();
            let file = state.file.as_ref().filter(|file| file.is_dirty())?;
            Some((ino, file.flush_mark()))
        });
        let dirty = dirty.collect();
        let mut in_vain = core.in_vain.0.lock();
        let items = core.freed_items(&mut in_vain.items);
        let withheld = core.alloc.withheld();
        in_vain.withheld.retain(|block| withheld.contains(block));
        let withheld = withheld.difference(&in_vain.withheld).copied().collect();
        Coming { dirty, freed: Freed { items, withheld }, draining: core.alloc.draining() }
    }

    /// Is some of it still on its way? Draining chunks are another question.
    pub fn remains(&mut self, core: &Core) -> bool {
        self.dirty.retain(|(ino, mark)| {
            let node = core.nodes.find(*ino);
            node.is_some_and(|node| node.state.lock().file.as_ref().is_some_and(|file| file.lacks(*mark)))
        });
        let items = &mut self.freed.items;
        while let Some(first) = items.first()
            && !core.is_to_come(*first)
        {
            items.pop_first();
        }
        if !self.freed.withheld.is_empty() {
            let withheld = core.alloc.withheld();
            self.freed.withheld.retain(|block| withheld.contains(block));
        }
        !(self.dirty.is_empty() && self.freed.items.is_empty() && self.freed.withheld.is_empty())
    }

    /// Are chunks still on their way? The other hosts' journals must let go of them.
    pub fn is_draining(&mut self, core: &Core) -> bool {
        if !self.draining.is_empty() {
            let draining = core.alloc.draining();
            self.draining.retain(|chunk| draining.contains(chunk));
        }
        !self.draining.is_empty()
    }

    /// What remains has been waited for long enough.
    pub fn give_up(&mut self, core: &Core) {
        let Freed { items, withheld } = std::mem::take(&mut self.freed);
        let mut in_vain = core.in_vain.0.lock();
        in_vain.items.extend(items);
        in_vain.withheld.extend(withheld);
        self.dirty.clear();
    }
}

impl Core {
    /// See [`Freed::items`]; but for those `in_vain`, of which only those stay that are there still.
    fn freed_items(&self, in_vain: &mut BTreeSet<ItemKey>) -> BTreeSet<ItemKey> {
        let (mut items, mut there) = (BTreeSet::new(), BTreeSet::new());
        let _slot = self.slot_lock.lock();
        let from = ItemKey::new(ItemKind::Orphan, 0);
        let looked = self.slot_tree.scan(&*self.store, from, None, &mut |key, _| {
            if in_vain.contains(&key) {
                there.insert(key);
            } else if !self.is_open_orphan(key) {
                items.insert(key);
            }
            if items.len() < ITEMS_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        if looked.is_ok() && items.len() < ITEMS_MAX {
            *in_vain = there;
        }
        // What cannot be read does not come.
        if looked.is_ok() { items } else { BTreeSet::new() }
    }

    fn is_to_come(&self, key: ItemKey) -> bool {
        let _slot = self.slot_lock.lock();
        let found = self.slot_tree.get(&*self.store, key);
        found.is_ok_and(|value| value.is_some()) && !self.is_open_orphan(key)
    }

    fn is_open_orphan(&self, key: ItemKey) -> bool {
        key.kind == ItemKind::Orphan && self.nodes.find(InodeNo(key.id)).is_some_and(|n| n.is_open())
    }
}
