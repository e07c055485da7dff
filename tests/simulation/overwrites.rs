//! Direct writes of one host under X: several are at the device at once, and what goes through its pages keeps away.

use crate::common::simdisk::{Event, SimDisk};
use crate::host::{Host, How};
use crate::story::volume;
use crate::tree;
use parking_lot::{Condvar, Mutex};
use shoal::fs::NodeId;
use std::sync::Arc;
use std::time::Duration;

const BLOCK: usize = 4096;
const FILE: &str = "/f";
/// For so long a request waits for what would come if it may.
const PATIENCE: Duration = Duration::from_secs(10);

/// A file of blocks, each of one byte's repetition, and where these are on the disk.
struct Rig {
    disk: Arc<SimDisk>,
    host: Arc<Host>,
    node: NodeId,
    direct: u64,
    cached: u64,
    places: Vec<u64>,
}

impl Rig {
    fn new(blocks: usize) -> Rig {
        let disk = volume(64, 2);
        let host = Arc::new(Host::mount(&disk, "a").expect("mount"));
        host.create(FILE).expect("create");
        disk.record();
        for n in 0..blocks {
            let bytes = [n as u8 + 1; BLOCK];
            host.write(FILE, (n * BLOCK) as u64, &bytes, How::Buffered).expect("write");
        }
        host.fsync(FILE).expect("fsync");
        let events = disk.events();
        let place = |n: usize| {
            let holds = |at: &Event| match at {
                Event::Write { offset, data } => data
                    .chunks(BLOCK)
                    .position(|block| block.len() == BLOCK && block.iter().all(|b| *b == n as u8 + 1))
                    .map(|at| offset + (at * BLOCK) as u64),
                _ => None,
            };
            events.iter().find_map(holds).expect("written")
        };
        let places = (0..blocks).map(place).collect();
        let node = host.keep(FILE).expect("lookup");
        let open = |how| host.open_kept(node, how).expect("open");
        let (direct, cached) = (open(How::Direct), open(How::Buffered));
        Rig { disk, host, node, direct, cached, places }
    }

    fn write(&self, n: usize, byte: u8) {
        let at = (n * BLOCK) as u64;
        self.host.write_direct_kept(self.node, self.direct, at, &[byte; BLOCK]).expect("a direct write");
    }

    fn end(self) {
        let Rig { disk, host, node, direct, cached, .. } = self;
        for fh in [direct, cached] {
            host.close_kept(node, fh).expect("close");
        }
        host.forget(node);
        Arc::into_inner(host).expect("all threads have ended").stop().expect("a clean leave");
        tree::fsck(&disk).expect("a sound volume");
    }
}

#[test]
fn direct_writes_are_at_the_device_at_once() {
    const WRITES: usize = 3;
    let rig = Rig::new(WRITES);
    let there = Arc::new((Mutex::new(0), Condvar::new()));
    let (places, met) = (rig.places.clone(), there.clone());
    rig.disk.on_request(move |op, offset, _| {
        if op == "write" && places.contains(&offset) {
            let (count, all) = &*met;
            let mut count = count.lock();
            *count += 1;
            all.notify_all();
            all.wait_while_for(&mut count, |count| *count < WRITES, PATIENCE);
        }
    });
    let begun = std::time::Instant::now();
    std::thread::scope(|scope| {
        (0..WRITES).for_each(|n| {
            _ = scope.spawn({
                let rig = &rig;
                move || rig.write(n, 0x77)
            })
        });
    });
    assert!(begun.elapsed() < PATIENCE, "one waits for the other");
    assert!(rig.host.read(FILE).expect("read") == [0x77; WRITES * BLOCK]);
    rig.end();
}

/// A few bytes written through the pages while a direct write of the same block is on its way: the block that they are
/// put into must not be the one from before.
#[test]
fn bytes_beside_a_direct_write_do_not_undo_it() {
    let rig = Rig::new(2);
    let there = Arc::new((Mutex::new((false, false)), Condvar::new()));
    let (place, met) = (rig.places[0], there.clone());
    rig.disk.on_request(move |op, offset, _| {
        if op == "write" && offset == place {
            let (state, told) = &*met;
            let mut state = state.lock();
            state.0 = true;
            told.notify_all();
            // Long enough for the other to read the block, if nothing stops it.
            told.wait_while_for(&mut state, |state| !state.1, Duration::from_millis(300));
        }
    });
    std::thread::scope(|scope| {
        scope.spawn(|| rig.write(0, 0x77));
        let (state, told) = &*there;
        told.wait_while_for(&mut state.lock(), |state| !state.0, PATIENCE);
        rig.host.write(FILE, 100, &[0x55; 10], How::Buffered).expect("a write through the pages");
        state.lock().1 = true;
        told.notify_all();
    });
    rig.host.fsync_kept(rig.node, rig.cached).expect("fsync");
    let mut expected = vec![0x77; BLOCK];
    expected[100..110].fill(0x55);
    expected.extend([2; BLOCK]);
    assert!(rig.host.read(FILE).expect("read") == expected, "the direct write is lost");
    rig.end();
}
