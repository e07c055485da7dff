//! What can be wrong, each kind with a code that scripts and tests may rely on.

use shoal::base::{BlockNo, InodeNo, SlotId};
use std::collections::BTreeMap;
use std::fmt;

/// Declares the codes once: variant, stable name, what it means.
macro_rules! codes {
    ($($variant:ident $name:literal $meaning:literal,)*) => {
        /// The kind of a finding. Names are stable; what a finding says beside it is not.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = $meaning] $variant,)*
        }

        impl Code {
            /// All of them, in the order in which they are reported.
            pub const ALL: &[Code] = &[$(Code::$variant,)*];

            /// The stable name.
            pub fn name(self) -> &'static str {
                match self { $(Code::$variant => $name,)* }
            }

            /// What it means, in one line.
            pub fn meaning(self) -> &'static str {
                match self { $(Code::$variant => $meaning,)* }
            }
        }
    };
}

codes! {
    SuperblockDamaged "superblock-damaged" "The primary superblock is not valid; a backup was used.",
    BackupDamaged "superblock-backup-damaged" "A backup superblock is not valid.",
    BackupDiffers "superblock-backup-differs" "A backup superblock says something else than the one in use.",
    VolumeCopyDamaged "volume-copy-damaged" "A copy of the volume block is not valid, or both are.",
    SlotExtents "slot-extents-wrong" "The journals and inodes of the slot table are in each other's way.",
    JournalHeader "journal-header-damaged" "A header copy of a journal is not valid, or both are.",
    JournalDamaged "journal-damaged" "A committed transaction cannot be replayed, or what may have been one, or be newer, was given up.",
    HeartbeatDamaged "heartbeat-damaged" "A heartbeat cell is not valid.",
    BallotDamaged "ballot-damaged" "Neither copy of a slot's ballot is valid.",
    ViewsDisagree "views-disagree" "Two ballots hold different views of one epoch.",
    LedgerDamaged "ledger-damaged" "Neither copy of a ledger page is valid.",
    OwnerConflict "group-owner-conflict" "A group has no owner, or two under one token.",
    CellDamaged "cell-damaged" "An inbox or lobby cell is not valid.",
    GroupHeader "group-header-damaged" "A group header is not valid.",
    GroupCounts "group-counts-wrong" "The sums in a group header are not those of its chunks.",
    GroupClock "group-clock-behind" "A group's clock is behind a version or generation that it gave out.",
    ChunkPage "chunk-page-damaged" "A chunk page is not valid.",
    ChunkEntry "chunk-entry-wrong" "A chunk entry has impossible content.",
    SystemChunk "system-chunk-wrong" "A chunk of type system holds nothing of the system, or the reverse.",
    BlockDamaged "block-damaged" "A metadata block in use is not valid.",
    BlockLeaked "block-leaked" "Blocks are marked as used that nothing uses.",
    BlockUnmarked "block-unmarked" "Blocks in use are marked as free.",
    BlockShared "block-shared" "Blocks are used twice.",
    BlockMisplaced "block-misplaced" "Blocks in use lie where such blocks cannot be.",
    FreedAlive "freed-block-alive" "A free metadata block is neither blank nor a tombstone.",
    RootDamaged "root-damaged" "The root directory is missing.",
    InodeDamaged "inode-damaged" "An inode has impossible attributes.",
    TreeDamaged "tree-damaged" "A page of an item tree cannot be read, or is not where it belongs.",
    ItemWrong "item-wrong" "An item is malformed, or of a kind that its inode cannot have.",
    ExtentsOverlap "extents-overlap" "Two extents of a file hold the same part of it.",
    BlocksWrong "inode-blocks-wrong" "The count of data blocks of an inode is wrong.",
    InlineWrong "inline-wrong" "The data in an inode does not fit its attributes.",
    SymlinkWrong "symlink-wrong" "A symbolic link has no target, or one of a wrong length.",
    XattrWrong "xattr-wrong" "An extended attribute is filed under a wrong key, or twice.",
    BlobDamaged "long-value-damaged" "A long value cannot be read, or its checksum is wrong.",
    DirentMisfiled "dirent-misfiled" "A directory entry is filed under a wrong key.",
    DirentTwice "dirent-twice" "A directory has a name twice.",
    DirentDangling "dirent-dangling" "A directory entry names no inode of this life.",
    DirentKind "dirent-kind-wrong" "A directory entry is of another type than its inode.",
    DirectoryParent "directory-parent-wrong" "A directory's '..' is not where its name is.",
    DirectoryLinks "directory-linked-twice" "A directory has more than one name.",
    LinkCount "link-count-wrong" "A link count is not the number of names.",
    Unreachable "inode-unreachable" "An inode with links has no name, or none that the root leads to.",
    OrphanUnlisted "orphan-unlisted" "An inode without links is in no slot's list of orphans.",
    SlotInode "slot-inode-damaged" "A slot's system inode is not valid.",
    DeferredWrong "deferred-free-wrong" "A deferred free names blocks that are not used.",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where something is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    Volume,
    Slot(SlotId),
    Group(u32),
    Block(BlockNo),
    Inode(InodeNo),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Volume => f.write_str("volume"),
            Place::Slot(slot) => write!(f, "slot {slot}"),
            Place::Group(ag) => write!(f, "group {ag}"),
            Place::Block(block) => write!(f, "block {block}"),
            Place::Inode(ino) => write!(f, "inode {ino}"),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    pub code: Code,
    pub place: Place,
    /// What was expected and what was found.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}: {}", self.code, self.place, self.what)
    }
}

/// Findings of one kind that are kept; the rest is counted. A disk that is damaged all over must not
/// fill the memory.
const KEPT_PER_CODE: usize = 10_000;

/// Collects findings.
#[derive(Debug, Default)]
pub struct Findings {
    kept: Vec<Finding>,
    counts: BTreeMap<Code, u64>,
}

impl Findings {
    /// Note one.
    pub fn add(&mut self, code: Code, place: Place, what: impl Into<String>) {
        let count = self.counts.entry(code).or_default();
        *count += 1;
        if *count <= KEPT_PER_CODE as u64 {
            self.kept.push(Finding { code, place, what: what.into() });
        }
    }

    /// What another collector found, too.
    pub fn merge(&mut self, other: Findings) {
        self.kept.extend(other.kept);
        for (code, n) in other.counts {
            *self.counts.entry(code).or_default() += n;
        }
    }

    /// Those kept, ordered by code and place, and how many there are of each code.
    pub fn finish(mut self) -> (Vec<Finding>, BTreeMap<Code, u64>) {
        self.kept.sort();
        self.kept.dedup();
        (self.kept, self.counts)
    }
}
