//! Hosts that leave although requests are on their way: their kernel was cut off.

use crate::common::port::Weather;
use crate::host::{Host, How};
use crate::story::volume;
use crate::tree;
use shoal::fs::operations::Operations;
use shoal::fs::{Caller, NodeId};
use std::sync::mpsc;
use std::time::Duration;

const FILES: usize = 6;
/// How long a large write takes.
const LONG: Duration = Duration::from_secs(2);
const TIME: Duration = Duration::from_secs(40);

/// Opens wait for a host with a slow disk when their own host leaves. They may succeed or fail, but what
/// they have opened, and nobody will close, does not keep the host in the cluster.
#[test]
fn opens_on_their_way_do_not_keep_a_host() {
    let disk = volume(64, 2);
    let a = Host::mount(&disk, "a").expect("mount");
    let b = Host::mount(&disk, "b").expect("mount");
    let names: Vec<String> = (0..FILES).map(|n| format!("/f{n}")).collect();
    let kept = |name: &String| {
        a.create(name).expect("create");
        b.keep(name).expect("lookup")
    };
    let nodes: Vec<NodeId> = names.iter().map(kept).collect();
    names.iter().for_each(|name| a.write(name, 0, &[1; 50_000], How::Buffered).expect("write"));
    // What the leaving host has to write takes it longer than the other needs to give up its locks.
    b.create("/own").expect("create");
    b.write("/own", 0, &vec![2; 1 << 20], How::Buffered).expect("write");
    a.port.set_weather(Weather { delay_us_max: 20_000, ..Weather::default() }, 1);
    disk.on_request(|op, _, length| {
        if op == "write" && length >= 1 << 18 {
            std::thread::sleep(LONG);
        }
    });
    let (sender, answers) = mpsc::channel();
    for node in nodes {
        let sender = sender.clone();
        Operations::open(&*b.fs, node, libc::O_RDWR, Caller::default(), move |r| {
            let _ = sender.send(r.is_ok());
        });
    }
    let early = answers.try_iter().count();
    assert!(early < FILES, "every open was answered at once: nothing was tested");
    let (left, is_done) = mpsc::channel();
    std::thread::spawn(move || left.send(b.stop()));
    let stopped = is_done.recv_timeout(TIME).expect("the host cannot leave");
    stopped.expect("a clean leave");
    drop(sender);
    assert_eq!(early + answers.iter().count(), FILES, "each is answered once");
    a.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}

/// Who waits for a host that leaves may go when nothing can be lost any more, whatever becomes of the host then: not
/// while its data is on the way to a store that stands still.
#[test]
fn a_host_that_leaves_is_safe_when_all_it_has_written_is_on_the_disk() {
    let disk = volume(64, 2);
    let a = Host::mount_with(&disk, "a", Duration::from_secs(60)).expect("mount");
    a.create("/f").expect("create");
    a.fsync("/f").expect("fsync");
    let data: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
    a.write("/f", 0, &data, How::Buffered).expect("write");
    let (tell, told) = mpsc::channel();
    let port = a.port.clone();
    a.fs.when_safe(move || {
        // From then on nothing of it gets through.
        port.cut();
        let _ = tell.send(());
    });
    a.port.stall(true);
    let (fs, port) = (a.fs.clone(), a.port.clone());
    let leaving = std::thread::spawn(move || fs.stop());
    let early = told.recv_timeout(Duration::from_millis(800)).is_ok();
    port.stall(false);
    assert!(!early, "it was said to be safe while nothing of it could be written");
    told.recv_timeout(TIME).expect("it is never safe");
    leaving.join().unwrap().expect_err("its device was cut off");
    a.crash();
    let b = Host::mount(&disk, "b").expect("mount");
    assert!(b.read("/f").expect("read") == data, "data is lost that was said to be safe");
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}

/// One file's blocks cannot be written: the others' data is not lost by that, and who waits hears of the end.
#[test]
fn a_file_that_cannot_be_written_costs_no_other_its_data() {
    const BAD: u8 = 0xbd;
    let disk = volume(64, 2);
    let a = Host::mount_with(&disk, "a", Duration::from_secs(60)).expect("mount");
    let names: Vec<String> = (0..2 * FILES).map(|n| format!("/f{n}")).collect();
    let byte = |n: usize| if n == FILES { BAD } else { n as u8 + 1 };
    for (n, name) in names.iter().enumerate() {
        a.create(name).expect("create");
        a.fsync(name).expect("fsync");
        a.write(name, 0, &[byte(n); 50_000], How::Buffered).expect("write");
    }
    a.port.refuse_writes_of(BAD);
    let (tell, told) = mpsc::channel();
    a.fs.when_safe(move || _ = tell.send(()));
    let port = a.port.clone();
    a.stop().expect_err("a file could not be written");
    assert!(port.refused() > 0, "nothing was refused: nothing was tested");
    told.try_recv().expect("nobody was told that there is nothing to wait for any more");
    let b = Host::mount(&disk, "b").expect("mount");
    for (n, name) in names.iter().enumerate().filter(|(n, _)| *n != FILES) {
        assert!(b.read(name).expect("read") == [byte(n); 50_000], "{name} is lost");
    }
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}
