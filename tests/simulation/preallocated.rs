//! Blocks that a program has preallocated can be written to, however full the volume has become (posix_fallocate(3)).

use crate::common::simdisk::{SimDisk, Unflushed};
use crate::host::{Host, How};
use crate::model::bytes;
use crate::story::volume;
use crate::tree::{self, Image};
use shoal::base::Error;
use shoal::fs::{KernelCache, NodeId};
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 4096;

/// A host with a preallocated file on a volume that has no block left, neither for data nor for metadata.
fn full(disk: &Arc<SimDisk>) -> Host {
    let host = Host::mount(disk, "host").expect("mount");
    fill_up(&host);
    host
}

fn fill_up(host: &Host) {
    // So that there is something to be seen in blocks that were never written.
    let no_space = |done: Result<(), Error>| match done {
        Ok(()) => false,
        Err(Error::NoSpace) => true,
        Err(e) => panic!("{e}"),
    };
    let fill = |name: &str| {
        host.create(name).expect("create");
        let piece = 64 * BLOCK;
        let write = |n: &u64| no_space(host.write(name, n * piece, &vec![9; piece as usize], How::Buffered));
        (0..).find(write).expect("an end of the space for data");
        host.fsync(name).expect("fsync");
    };
    fill("/old");
    host.unlink("/old").expect("unlink");
    host.create("/f").expect("create");
    host.fallocate("/f", (0, BLOCKS * BLOCK), 0).expect("fallocate");
    fill("/rest");
    let create = |n: &u64| no_space(host.create(&format!("/{n}")));
    (0..).find(create).expect("an end of the space for metadata");
}

/// Each second block: so every one of them splits an extent, were it done in the ordinary way.
fn write_some(host: &Host, how: How) -> Vec<u8> {
    let mut expected = vec![0; (BLOCKS * BLOCK) as usize];
    for at in (0..BLOCKS).step_by(2).map(|n| n * BLOCK) {
        let data = bytes(7, at, BLOCK as usize);
        host.write("/f", at, &data, how).unwrap_or_else(|e| panic!("byte {at}: {e}"));
        expected[at as usize..][..data.len()].copy_from_slice(&data);
    }
    expected
}

fn written_on_a_full_volume(how: How) {
    let disk = volume(64, 1);
    let host = full(&disk);
    let expected = write_some(&host, how);
    host.fsync("/f").expect("fsync");
    assert!(host.read("/f").expect("read") == expected);
    host.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
    let host = Host::mount(&disk, "another").expect("mount");
    assert!(host.read("/f").expect("read") == expected);
    host.stop().expect("a clean leave");
}

#[test]
fn preallocated_blocks_can_be_written_to_on_a_full_volume() {
    written_on_a_full_volume(How::Buffered);
}

#[test]
fn preallocated_blocks_can_be_written_to_directly_on_a_full_volume() {
    written_on_a_full_volume(How::Direct);
}

/// Nor is what these blocks bore before ever seen, whenever power is cut.
#[test]
fn a_power_cut_shows_nothing_old_in_preallocated_blocks() {
    let disk = volume(64, 1);
    let host = full(&disk);
    let history = disk.record();
    let expected = write_some(&host, How::Buffered);
    host.fsync("/f").expect("fsync");
    let events = disk.events();
    host.crash();
    let step = (events.len() / 12).max(1);
    let points = (0..events.len()).step_by(step).chain([events.len()]);
    let block = BLOCK as usize;
    for (at, unflushed) in points.flat_map(|at| {
        [Unflushed::Kept, Unflushed::Lost, Unflushed::Subset(at as u64)].map(|unflushed| (at, unflushed))
    }) {
        let cut = history.crash_at(&events, at, unflushed);
        tree::fsck(&cut).unwrap_or_else(|e| panic!("{at} {unflushed:?}: {e}"));
        let found = Image::open(&cut).and_then(|image| image.walk()).expect("a tree");
        let data = &found.data["/f"];
        assert_eq!(data.len(), expected.len());
        for (n, (is, shall)) in data.chunks(block).zip(expected.chunks(block)).enumerate() {
            let nothing = is.iter().all(|byte| *byte == 0);
            assert!(
                nothing || is == shall,
                "{at} {unflushed:?}: block {n} bears what was never written there"
            );
        }
        assert!(at < events.len() || data == &expected, "{unflushed:?}: what was synchronized is gone");
    }
}

/// Behind the size on the disk what is written is not to be found after a crash: there no zeros stand in for that.
#[test]
fn nothing_is_written_out_behind_the_size_on_a_full_volume() {
    let disk = volume(64, 1);
    let host = Host::mount(&disk, "host").expect("mount");
    host.create("/kept").expect("create");
    host.fallocate("/kept", (0, BLOCKS * BLOCK), libc::FALLOC_FL_KEEP_SIZE).expect("fallocate");
    fill_up(&host);
    let history = disk.record();
    let write = |n: u64| host.write("/kept", 2 * n * BLOCK, &[3; BLOCK as usize], How::Buffered);
    let wrote = (0..BLOCKS / 2).take_while(|n| write(*n).is_ok()).count();
    // So that all but the data and the size is durable before.
    host.chmod("/rest", 0o600).expect("chmod");
    host.fsync("/rest").expect("fsync");
    host.fsync("/rest").expect("fsync");
    host.fsync("/kept").expect("fsync");
    let events = disk.events();
    host.crash();
    for at in (0..=events.len()).rev().step_by((events.len() / 12).max(1)) {
        let host = Host::mount(&history.crash_at(&events, at, Unflushed::Kept), "another").expect("mount");
        let size = host.stat("/kept").expect("stat").size as usize;
        host.truncate("/kept", BLOCKS * BLOCK).expect("truncate");
        host.fsync("/kept").expect("fsync");
        let found = host.read("/kept").expect("read");
        assert!(
            found[size..].iter().all(|byte| *byte == 0),
            "{wrote} writes, {size} bytes after the crash at {at}"
        );
        host.stop().expect("a clean leave");
    }
}

/// A kernel with a mapping: it has a page written back before it drops pages.
#[derive(Default)]
struct Mapped(Mutex<Option<Sender<Sender<()>>>>);

impl KernelCache for Mapped {
    fn inval_inode(&self, _ino: NodeId, offset: i64, _length: i64) -> io::Result<()> {
        if offset >= 0
            && let Some(ask) = self.0.lock().unwrap().take()
        {
            let (done, written) = channel();
            ask.send(done).expect("somebody who writes it back");
            written.recv_timeout(Duration::from_secs(60)).expect("an end of that");
        }
        Ok(())
    }

    fn abort(&self) -> io::Result<()> {
        Ok(())
    }
}

/// What a mapping of `a` has stored into a preallocated block is read by `b`: it is written back when the lock is on its
/// way to `b` already, which cannot have it before.
fn stored_and_read_elsewhere(kernel: &Mapped, a: &Host, b: &Host) {
    let node = a.keep("/f").expect("lookup");
    let handle = a.open_kept(node, How::Buffered).expect("open");
    a.read_kept(node, handle, 8192).expect("read");
    let (ask, asked): (_, Receiver<Sender<()>>) = channel();
    *kernel.0.lock().unwrap() = Some(ask);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| b.read("/f").expect("read"));
        let done = asked.recv_timeout(Duration::from_secs(60)).expect("pages to be dropped");
        let answer = a.launder_kept(node, handle, 4096, &[7; 4096]).recv_timeout(Duration::from_secs(10));
        done.send(()).expect("the kernel");
        assert_eq!(answer, Ok(Ok(4096)), "not written back under the lock that goes");
        let found = reader.join().expect("the reader");
        assert!(found[..4096] == [0; 4096] && found[4096..8192] == [7; 4096], "what the mapping has stored");
    });
    a.close_kept(node, handle).expect("close");
    a.forget(node);
}

#[test]
fn what_a_mapping_stores_in_preallocated_blocks_is_seen_though_space_is_wanted_for_it() {
    let disk = volume(64, 2);
    let before = Host::mount(&disk, "before").expect("mount");
    before.create("/f").expect("create");
    before.fallocate("/f", (0, BLOCKS * BLOCK), 0).expect("fallocate");
    before.stop().expect("a clean leave");
    let kernel = Arc::new(Mapped::default());
    // It holds no group yet.
    let a = Host::mount_before(&disk, "a", kernel.clone()).expect("mount");
    let b = Host::mount(&disk, "b").expect("mount");
    stored_and_read_elsewhere(&kernel, &a, &b);
    a.stop().expect("a clean leave");
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}

#[test]
fn what_a_mapping_stores_in_preallocated_blocks_is_seen_on_a_full_volume() {
    let disk = volume(64, 2);
    let kernel = Arc::new(Mapped::default());
    let a = Host::mount_before(&disk, "a", kernel.clone()).expect("mount");
    let b = Host::mount(&disk, "b").expect("mount");
    fill_up(&a);
    stored_and_read_elsewhere(&kernel, &a, &b);
    a.stop().expect("a clean leave");
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}
