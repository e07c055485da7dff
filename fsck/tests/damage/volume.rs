//! A volume with something of everything in it, in memory, and ways to damage it.

use shoal::base::{BLOCK_SIZE, BlockNo, Error, InodeNo, LockName, Result, SlotId};
use shoal::device::{Access, BlockDevice, FileDevice};
use shoal::dir::Directory;
use shoal::format::superblock::{self, Superblock, TimingProfile};
use shoal::format::volume::{self, Volume};
use shoal::format::{Block, BlockKind, Geometry};
use shoal::fs::operations::Operations;
use shoal::fs::{mount, types::*};
use shoal::inode::{Attr, FileKind, Tree};
use shoal::journal::{DeviceSink, replay};
use shoal::store::Store;
use shoal::txn::BlockSource;
use shoal::xattr::SetHow;
use shoal_fsck::{Options, Report, Silent};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock, RwLock, mpsc};
use std::time::Duration;

/// Bytes of the volume: the smallest there is.
const SIZE: u64 = 64 << 20;

/// A device in memory, and the bytes of it that cannot be read.
pub struct Memory(RwLock<Vec<u8>>, RwLock<Range<u64>>);

impl BlockDevice for Memory {
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let (bad, length) = (self.1.read().unwrap(), buf.len() as u64);
        if bad.start < offset + length && offset < bad.end {
            return Err(Error::Io { op: "read", offset, length, cause: "simulated".into() });
        }
        let bytes = self.0.read().unwrap();
        let at = offset as usize;
        let from = bytes.get(at..at + buf.len()).ok_or(Error::Invalid("behind the end"))?;
        buf.copy_from_slice(from);
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let at = offset as usize;
        self.0.write().unwrap()[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn discard(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }
    fn size(&self) -> u64 {
        self.0.read().unwrap().len() as u64
    }
    fn logical_block(&self) -> u32 {
        512
    }
    fn physical_block(&self) -> u32 {
        4096
    }
    fn name(&self) -> String {
        "memory".into()
    }
}

/// No kernel above.
struct NoKernel;

impl KernelCache for NoKernel {
    fn inval_inode(&self, _: NodeId, _: i64, _: i64) -> io::Result<()> {
        Ok(())
    }
    fn abort(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Wait for an operation's answer.
fn wait<T: Send + 'static>(start: impl FnOnce(Box<dyn FnOnce(Result<T>) + Send>)) -> T {
    let (tell, told) = mpsc::channel();
    start(Box::new(move |answer| tell.send(answer).expect("somebody waits")));
    told.recv().expect("every operation answers").expect("the operation succeeds")
}

const WHO: Caller = Caller { uid: 0, gid: 0, pid: 1 };

fn node(kind: FileKind) -> NewNode {
    NewNode { kind, perm: 0o644, umask: 0o022, rdev: 0 }
}

/// The filesystem with blocking operations.
struct Content<'a, O: Operations>(&'a O);

impl<O: Operations> Content<'_, O> {
    fn dir(&self, parent: NodeId, name: &str) -> NodeId {
        wait(|r| self.0.mkdir(WHO, parent, name.as_bytes(), node(FileKind::Directory), r)).ino
    }

    /// A file with these pieces, synced; its handle is closed.
    fn file(&self, parent: NodeId, name: &str, pieces: &[(u64, Vec<u8>)]) -> NodeId {
        let (ino, fh) = self.open_file(parent, name);
        for (offset, data) in pieces {
            let flags = WriteFlags { open: libc::O_RDWR, ..WriteFlags::default() };
            wait(|r| self.0.write(ino, fh, *offset, data, flags, WHO, r));
        }
        wait(|r| self.0.fsync(ino, fh, false, r));
        wait(|r| self.0.release(ino, fh, r));
        ino
    }

    fn open_file(&self, parent: NodeId, name: &str) -> (NodeId, u64) {
        let new = node(FileKind::Regular);
        let (entry, open) = wait(|r| self.0.create(WHO, parent, name.as_bytes(), new, libc::O_RDWR, r));
        (entry.ino, open.fh)
    }

    fn make(&self) {
        let root = NodeId::ROOT;
        let sub = self.dir(root, "sub");
        let deep = self.dir(sub, "deep");
        self.file(deep, "small", &[(0, b"in the inode".to_vec())]);
        let big = self.file(root, "big", &[(0, vec![7; 300_000])]);
        let holes: Vec<_> = (0..400).map(|i| (i * 16384, vec![i as u8; 4096])).collect();
        self.file(root, "holes", &holes);
        wait(|r| self.0.link(WHO, big, deep, b"second name", r));
        wait(|r| self.0.symlink(WHO, root, b"short", b"sub/deep", r));
        wait(|r| self.0.symlink(WHO, root, b"long", &[b'x'; 3000], r));
        let value = vec![b'v'; 9000];
        wait(|r| self.0.setxattr(big, b"user.long", &value, SetHow::Either, false, r));
        wait(|r| self.0.setxattr(big, b"user.short", b"value", SetHow::Either, false, r));
        let many = self.dir(root, "many");
        for i in 0..400 {
            let (ino, fh) = self.open_file(many, &format!("a name of some length {i}"));
            wait(|r| self.0.release(ino, fh, r));
        }
        // Unlinked while open: an orphan, once the host dies.
        let (ino, fh) = self.open_file(root, "gone");
        wait(|r| self.0.unlink(WHO, root, b"gone", r));
        wait(|r| self.0.fsync(ino, fh, false, r));
    }
}

/// The image after the death of the host that made the content.
fn after_death(path: &Path) -> Vec<u8> {
    FileDevice::create_image(path, SIZE).unwrap();
    let device = FileDevice::open(path, Access::Exclusive).unwrap();
    // Always the same hashes, so the same order of names.
    let identity =
        Some(shoal_mkfs::Identity { hash_seed: [7; 16], ..shoal_mkfs::Identity::random().unwrap() });
    let (timing, cell_pitch) = (TimingProfile::Test, Some(512));
    let options = shoal_mkfs::Options { timing, cell_pitch, identity, ..shoal_mkfs::Options::default() };
    shoal_mkfs::make(&device, &options).unwrap();
    drop(device);
    let fs = mount::start(&MountOptions::new(path.to_owned()), Arc::new(NoKernel)).unwrap();
    Content(&*fs).make();
    let image = std::fs::read(path).unwrap();
    fs.stop().unwrap();
    image
}

/// The image as the host left it: the journal is not empty.
pub fn crashed() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let directory = tempfile::tempdir_in(place).unwrap();
        after_death(&directory.path().join("image"))
    })
}

/// The same after replay: what is damaged now stays damaged.
pub fn replayed() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let disk = Damaged::of(crashed());
        let store = Store::new(disk.device.clone(), disk.sb.format_id, disk.g, 1 << 20);
        for (i, slot) in disk.volume.slots.iter().enumerate() {
            let extent = (slot.journal_start, slot.journal_blocks);
            let mut sink = DeviceSink::new(&store, Duration::ZERO);
            replay(&store, extent, SlotId(i as u16), &mut sink).unwrap();
        }
        let image = disk.device.0.read().unwrap();
        image.clone()
    })
}

/// A copy of a volume, to be damaged.
pub struct Damaged {
    pub device: Arc<Memory>,
    pub sb: Superblock,
    pub volume: Volume,
    pub g: Geometry,
}

impl Damaged {
    pub fn of(image: &[u8]) -> Damaged {
        let device = Arc::new(Memory(RwLock::new(image.to_vec()), RwLock::default()));
        let (sb, _) = superblock::load(&*device).unwrap();
        let volume = volume::load(&*device, &sb).unwrap();
        let g = volume.geometry(&sb);
        Damaged { device, sb, volume, g }
    }

    pub fn block(&self, at: BlockNo) -> Block {
        let mut b = Block::zeroed();
        self.device.read(at.byte(), &mut b.0).unwrap();
        b
    }

    pub fn put(&self, at: BlockNo, b: &Block) {
        self.device.write(at.byte(), &b.0).unwrap();
    }

    /// Change a block and make its checksum right again.
    pub fn edit(&self, at: BlockNo, change: impl FnOnce(&mut Block)) {
        let mut b = self.block(at);
        change(&mut b);
        b.seal();
        self.put(at, &b);
    }

    /// These blocks cannot be read any more.
    pub fn lose(&self, blocks: Range<BlockNo>) {
        *self.device.1.write().unwrap() = blocks.start.byte()..blocks.end.byte();
    }

    /// Flip a bit.
    pub fn rot(&self, at: BlockNo) {
        let mut b = self.block(at);
        b.0[2000] ^= 4;
        self.put(at, &b);
    }

    /// Flip a bit of a cell.
    pub fn rot_byte(&self, at: u64) {
        let mut sector = [0; 512];
        self.device.read(at, &mut sector).unwrap();
        sector[100] ^= 1;
        self.device.write(at, &sector).unwrap();
    }

    /// The inode at a path.
    pub fn ino(&self, path: &str) -> InodeNo {
        path.split('/').filter(|p| !p.is_empty()).fold(InodeNo(self.sb.root_inode), |dir, name| {
            let directory = Directory { tree: Tree::of(dir), seed: &self.sb.hash_seed };
            directory.lookup(self, name.as_bytes()).unwrap().expect("the name is there").ino
        })
    }

    /// Change the attributes of the inode at a path.
    pub fn attr(&self, path: &str, change: impl FnOnce(&mut Attr)) {
        let ino = self.ino(path);
        let mut attr = Tree::of(ino).read_attr(self).unwrap();
        change(&mut attr);
        let disk = attr.to_disk();
        self.edit(ino.block(), |b| *b.body_as_mut() = disk);
    }

    pub fn slot_inode(&self, slot: SlotId) -> InodeNo {
        self.volume.slots[usize::from(slot.0)].inode
    }

    /// A check; that it writes nothing is looked after.
    pub fn check(&self) -> Report {
        let before = self.device.0.read().unwrap().clone();
        let report = self.quick_check();
        assert!(*self.device.0.read().unwrap() == before, "a check has written");
        report
    }

    pub fn quick_check(&self) -> Report {
        shoal_fsck::check(self.device.clone(), &Options { force: true }, &Silent).unwrap()
    }
}

impl BlockSource for Damaged {
    fn read(&self, block: BlockNo, kind: BlockKind, _: LockName) -> Result<Arc<Block>> {
        let b = self.block(block);
        b.verify(self.sb.format_id, block, kind)?;
        Ok(Arc::new(b))
    }
}

/// Blocks of a device.
pub fn blocks(image: &[u8]) -> u64 {
    (image.len() / BLOCK_SIZE) as u64
}
