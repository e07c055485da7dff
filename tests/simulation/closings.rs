//! Locks of open file descriptions whose end is on its way: the kernel sends RELEASE without waiting, so that the
//! next program's request may come first.

use crate::host::{Host, How};
use crate::story::volume;
use shoal::base::{Error, Mode};
use shoal::fs::operations::Operations;
use shoal::fs::{LockRequest, NodeId};
use std::sync::mpsc;
use std::time::Duration;

const HANG: Duration = Duration::from_secs(20);
/// How much later the end comes.
const BEHIND: Duration = Duration::from_millis(10);

/// One open of a file, and what by that is locked.
struct Open<'a> {
    host: &'a Host,
    node: NodeId,
    fh: u64,
    lock: LockRequest,
}

fn open(host: &Host, flock: bool, owner: u64) -> Open<'_> {
    let node = host.keep("/f").unwrap();
    let lock = LockRequest { flock, owner, mode: Mode::X, start: 0, end: i64::MAX as u64, pid: 7 };
    Open { host, node, fh: host.open_kept(node, How::Buffered).unwrap(), lock }
}

impl Open<'_> {
    /// As with F_SETLK or LOCK_NB.
    fn try_lock(&self) -> shoal::base::Result<()> {
        let (done, answer) = mpsc::channel();
        let fs = &*self.host.fs;
        drop(Operations::set_lock(fs, self.node, self.fh, self.lock, false, move |r| done.send(r).unwrap()));
        answer.recv_timeout(HANG).expect("set_lock was not answered")
    }

    /// As with F_GETLK: is it free?
    fn is_free(&self) -> bool {
        let (done, answer) = mpsc::channel();
        let fs = &*self.host.fs;
        drop(Operations::get_lock(fs, self.node, self.fh, self.lock, move |r| done.send(r).unwrap()));
        answer.recv_timeout(HANG).expect("get_lock was not answered").unwrap().is_none()
    }

    fn flush(&self) {
        let (done, answer) = mpsc::channel();
        Operations::flush(&*self.host.fs, self.node, self.fh, 1, move |r| done.send(r).unwrap());
        answer.recv_timeout(HANG).expect("flush was not answered").unwrap();
    }

    fn release(&self) {
        let (done, answer) = mpsc::channel();
        Operations::release(&*self.host.fs, self.node, self.fh, move |r| done.send(r).unwrap());
        answer.recv_timeout(HANG).expect("release was not answered").unwrap();
    }
}

/// Close it as the kernel does when the last descriptor is closed, and meanwhile do this.
fn closing(open: &Open<'_>, meanwhile: impl FnOnce()) {
    open.flush();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(BEHIND);
            open.release();
        });
        meanwhile();
    });
}

#[test]
fn who_asks_right_after_a_close_is_not_refused() {
    let disk = volume(64, 2);
    let host = Host::mount(&disk, "a").expect("mount");
    host.create("/f").unwrap();
    for flock in [true, false] {
        let [first, second, third] = [21, 22, 23].map(|owner| open(&host, flock, owner));
        first.try_lock().unwrap();
        assert!(matches!(second.try_lock(), Err(Error::Locked)) && !second.is_free());
        closing(&first, || second.try_lock().expect("it was closed"));
        assert!(matches!(third.try_lock(), Err(Error::Locked)));
        closing(&second, || assert!(third.is_free(), "it was closed"));
        // A descriptor of it was closed, another is open.
        third.try_lock().unwrap();
        third.flush();
        let other = open(&host, flock, 24);
        assert!(matches!(other.try_lock(), Err(Error::Locked)) && !other.is_free());
        [third, other].iter().for_each(|open| open.release());
    }
    host.stop().expect("leave");
}
