//! What is on its way to become free space on this host.
//!
//! Whoever finds the volume full waits for what was on its way then, not for what others begin after that: on a full
//! volume that is in use something always is.

use super::*;
use crate::file::FlushMark;
use crate::inode::{ItemKey, ItemKind};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

/// At most so many items are waited for. When they have come there is space, or somebody else has it.
const ITEMS_MAX: usize = 1000;

/// What was on its way at a moment.
pub struct Coming {
    /// Dirty data: it holds more space than it turns out to need.
    dirty: Vec<(InodeNo, FlushMark)>,
    freed: Freed,
    /// Metadata chunks that had emptied when all this had come.
    draining: Option<BTreeSet<(AgNo, u32)>>,
}

/// Items of the slot inode. A number that is used again makes another one.
type Items = BTreeMap<ItemKey, Vec<u8>>;

/// What has been freed, and cannot be used yet.
#[derive(Default)]
struct Freed {
    /// Unlinked files that are not open here (freed already or not: the kernel may be about to forget them) and other
    /// frees to come, in the slot inode.
    items: Items,
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
        Coming { dirty, freed: Freed { items, withheld }, draining: None }
    }

    /// Is some of it still on its way? Draining chunks are another question.
    pub fn remains(&mut self, core: &Core) -> bool {
        self.dirty.retain(|(ino, mark)| {
            let node = core.nodes.find(*ino);
            node.is_some_and(|node| node.state.lock().file.as_ref().is_some_and(|file| file.lacks(*mark)))
        });
        let items = &mut self.freed.items;
        while let Some((key, value)) = items.first_key_value()
            && !core.is_to_come(*key, value)
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
        let draining = core.alloc.draining();
        let awaited = self.draining.get_or_insert_with(|| draining.clone());
        awaited.retain(|chunk| draining.contains(chunk));
        !awaited.is_empty()
    }

    /// What remains has been waited for long enough.
    pub fn give_up(&mut self, core: &Core) {
        let Freed { mut items, withheld } = std::mem::take(&mut self.freed);
        items.retain(|key, value| core.is_to_come(*key, value));
        let mut in_vain = core.in_vain.0.lock();
        in_vain.items.extend(items);
        in_vain.withheld.extend(withheld);
        self.dirty.clear();
    }
}

impl InVain {
    /// Unlinked files among it.
    pub fn inodes(&self) -> BTreeSet<InodeNo> {
        let freed = self.0.lock();
        freed.items.keys().filter(|key| key.kind == ItemKind::Orphan).map(|key| InodeNo(key.id)).collect()
    }
}

impl Core {
    /// See [`Freed::items`]; but for those `in_vain`, of which only those stay that are there still.
    fn freed_items(&self, in_vain: &mut Items) -> Items {
        let (mut items, mut there) = (Items::new(), Items::new());
        let _slot = self.slot_lock.lock();
        let from = ItemKey::new(ItemKind::Orphan, 0);
        let looked = self.slot_tree.scan(&*self.store, from, None, &mut |key, value| {
            if in_vain.get(&key).is_some_and(|known| *known == value) {
                there.insert(key, value.to_vec());
            } else if !self.is_open_orphan(key) {
                items.insert(key, value.to_vec());
            }
            if items.len() < ITEMS_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        if looked.is_ok() && items.len() < ITEMS_MAX {
            *in_vain = there;
        }
        // What cannot be read does not come.
        if looked.is_ok() { items } else { Items::new() }
    }

    fn is_to_come(&self, key: ItemKey, value: &[u8]) -> bool {
        let _slot = self.slot_lock.lock();
        let found = self.slot_tree.get(&*self.store, key);
        found.is_ok_and(|found| found.as_deref() == Some(value)) && !self.is_open_orphan(key)
    }

    fn is_open_orphan(&self, key: ItemKey) -> bool {
        key.kind == ItemKind::Orphan && self.nodes.find(InodeNo(key.id)).is_some_and(|n| n.is_open())
    }
}
