//! The slots' system inodes: orphans to be freed, and frees that wait for their group.

use crate::finding::{Code, Findings, Place};
use crate::groups::{Groups, Use, slot_inode_cover};
use crate::image::{Image, words};
use crate::tree::{self, Root, Visitor};
use shoal::base::{BlockNo, Generation, InodeNo, SlotId};
use shoal::format::BlockKind;
use shoal::format::item::{ItemKey, ItemKind, Key};
use shoal::format::value::{DeferredFree, decode_orphan};
use std::collections::BTreeSet;

/// What all slots list.
#[derive(Default)]
pub struct Lists {
    /// Blocks of the slots' inodes.
    pub inodes: BTreeSet<BlockNo>,
    /// With the generation they are listed under.
    pub orphans: BTreeSet<(InodeNo, Generation)>,
    /// Metadata blocks whose free is deferred.
    pub deferred: BTreeSet<BlockNo>,
    /// Runs of blocks that were claimed a second time.
    pub twice: Vec<(BlockNo, u64)>,
}

/// Read all slots' inodes.
pub fn read(image: &Image, groups: &Groups, findings: &mut Findings) -> Lists {
    let mut lists = Lists::default();
    for (i, slot) in image.volume.slots.iter().enumerate() {
        let id = SlotId(i as u16);
        lists.inodes.insert(slot.inode.block());
        let place = (Place::Slot(id), "its system inode");
        lists.twice.extend(groups.claim(slot.inode.block(), 1, Use::Metadata, place, findings).twice);
        let cover = slot_inode_cover(i);
        let block = match image.read_verified(slot.inode.block(), BlockKind::Inode, slot.inode.0, cover) {
            Ok(block) => block,
            Err(e) => {
                findings.add(Code::SlotInode, Place::Slot(id), words(&e));
                continue;
            }
        };
        let mut visitor = SlotVisitor { groups, slot: id, lists: &mut lists, findings };
        tree::walk(image, Root { ino: slot.inode, cover, block: &block }, &mut visitor);
    }
    lists
}

struct SlotVisitor<'a> {
    groups: &'a Groups,
    slot: SlotId,
    lists: &'a mut Lists,
    findings: &'a mut Findings,
}

impl SlotVisitor<'_> {
    fn fault(&mut self, code: Code, what: String) {
        self.findings.add(code, Place::Slot(self.slot), what);
    }

    fn claim(&mut self, start: BlockNo, blocks: u64, of: Use, what: &str) -> bool {
        let place = Place::Slot(self.slot);
        let claimed = self.groups.claim(start, blocks, of, (place, what), self.findings);
        let alone = claimed.twice.is_empty();
        self.lists.twice.extend(claimed.twice);
        alone
    }

    fn deferred(&mut self, value: &[u8]) {
        let Some(frees) = DeferredFree::decode(value) else {
            return self.fault(Code::DeferredWrong, "a malformed deferred free".into());
        };
        for free in frees {
            if !(0..free.blocks).all(|i| self.groups.is_marked(free.start.plus(i))) {
                let what = format!("{} blocks from {} on are free already", free.blocks, free.start);
                self.fault(Code::DeferredWrong, what);
                continue;
            }
            let of = if free.version.is_some() { Use::Metadata } else { Use::Data };
            self.claim(free.start, free.blocks, of, "a deferred free");
            if free.version.is_some() {
                self.lists.deferred.insert(free.start);
            }
        }
    }
}

impl Visitor for SlotVisitor<'_> {
    fn item(&mut self, key: ItemKey, value: &[u8]) {
        match key.kind {
            // Hints: the inode may be gone, or have come back under another generation.
            ItemKind::Orphan => match decode_orphan(value) {
                Some(generation) => drop(self.lists.orphans.insert((InodeNo(key.id), generation))),
                None => self.fault(Code::ItemWrong, format!("a malformed orphan {}", key.id)),
            },
            ItemKind::DeferredFree => self.deferred(value),
            kind => self.fault(Code::ItemWrong, format!("an item of kind {kind:?} in a slot's inode")),
        }
    }

    fn page(&mut self, block: BlockNo) -> bool {
        self.claim(block, 1, Use::Metadata, "a page of its item tree")
    }

    fn broken(&mut self, what: String) {
        self.fault(Code::SlotInode, what);
    }

    fn unknown(&mut self, key: Key) {
        self.fault(Code::ItemWrong, format!("an item of the unknown kind {}", key.kind));
    }
}
