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
