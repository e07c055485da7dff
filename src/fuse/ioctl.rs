//! Flags and generations of inodes as programs ask for them: FS_IOC_GETFLAGS and its kin (chattr, lsattr, xfs_io);
//! FITRIM (fstrim); and one of our own, for `mount -o remount,rw`.
//!
//! The kernel takes those of flags apart itself (ioctl_getflags, fileattr_set), checks who may set what, and asks
//! us by a handle of its own: with the record alone, whatever size the number of the call speaks of. FITRIM it passes on
//! as it is, for any open file or directory, and copies as many bytes there and back as its number says.

use crate::base::{Error, Generation};
use crate::format::inode::{FLAG_APPEND, FLAG_IMMUTABLE, FLAG_NOATIME, FLAG_NODUMP};
use crate::fs::TrimRange;
use crate::fs::capabilities;
use crate::fs::operations::Operations;
use crate::fs::types::{Caller, NodeId};
use crate::fuse::answer::{answer, fail, ioctl_done};
use crate::fuse::reply::Reply;
use crate::fuse::wire::{Errno, FuseIoctlOut};
use std::sync::Arc;
use zerocopy::IntoBytes;

/// <linux/fs.h>
const GETFLAGS: u32 = 0x8008_6601;
const SETFLAGS: u32 = 0x4008_6602;
const GETVERSION: u32 = 0x8008_7601;
const FSGETXATTR: u32 = 0x801c_581f;
const FSSETXATTR: u32 = 0x401c_5820;
const FITRIM: u32 = 0xc018_5879;

/// Ours, `_IO('S', 0xc0)`: a read-only mount may write from now on. The kernel tells nobody of a remount.
pub const WRITABLE: u32 = 0x53c0;

/// Ours, `FS_*_FL` and `FS_XFLAG_*` of the same meaning.
const FLAGS: [(u32, u32, u32); 4] = [
    (FLAG_IMMUTABLE, 0x10, 0x08),
    (FLAG_APPEND, 0x20, 0x10),
    (FLAG_NODUMP, 0x40, 0x80),
    (FLAG_NOATIME, 0x80, 0x40),
];

/// `struct fsxattr`: flags, extent size, extents, project, extent size of copies, room.
const FSXATTR: usize = 28;

/// Is it one of these?
pub fn is_known(cmd: u32) -> bool {
    matches!(cmd, GETFLAGS | SETFLAGS | GETVERSION | FSGETXATTR | FSSETXATTR | FITRIM | WRITABLE)
}

/// Answers one.
pub fn serve<O: Operations>(fs: &Arc<O>, node: NodeId, caller: Caller, cmd: u32, data: &[u8], reply: Reply) {
    match cmd {
        GETFLAGS => fs.flags(node, number(reply, |flags, _| outward(flags, |f| f.1))),
        GETVERSION => fs.flags(node, number(reply, |_, generation| generation.0 as u32)),
        FSGETXATTR => fs.flags(
            node,
            answer(reply, |reply, (flags, _)| {
                let mut record = [0; FSXATTR];
                record[..4].copy_from_slice(&outward(flags, |f| f.2).to_ne_bytes());
                tell(reply, &record);
            }),
        ),
        // The kernel does not know that these are the administrator's.
        FITRIM | WRITABLE if !capabilities::has(caller.pid, capabilities::SYS_ADMIN) => {
            fail(reply, &Error::NotPermitted)
        }
        FITRIM => trim(fs, data, reply),
        WRITABLE => fs.make_writable(ioctl_done(reply)),
        _ => match asked(cmd, data) {
            Ok(flags) => fs.set_flags(node, flags, caller, ioctl_done(reply)),
            Err(Error::Invalid(_)) => reply.error(Errno(libc::EINVAL)),
            Err(e) => fail(reply, &e),
        },
    }
}

/// `struct fstrim_range`: start, length, shortest run.
fn trim<O: Operations>(fs: &Arc<O>, data: &[u8], reply: Reply) {
    let mut record: [u64; 3] = [0; 3];
    match data.get(..record.len() * 8) {
        Some(bytes) => record.as_mut_bytes().copy_from_slice(bytes),
        None => return reply.error(Errno(libc::EINVAL)),
    }
    let [start, length, least] = record;
    let interruption = reply.interruption();
    let done = answer(reply, move |reply, bytes| tell(reply, [start, bytes, least].as_bytes()));
    interruption.call(fs.trim(TrimRange { start, length, least }, done));
}

fn tell(reply: Reply, record: &[u8]) {
    reply.data(&[FuseIoctlOut::default().as_bytes(), record].concat());
}

/// Answers with a number made of the flags and the generation.
fn number(
    reply: Reply,
    of: impl FnOnce(u32, Generation) -> u32 + Send + 'static,
) -> impl FnOnce(crate::base::Result<(u32, Generation)>) + Send + 'static {
    answer(reply, move |reply, (flags, generation)| tell(reply, &of(flags, generation).to_ne_bytes()))
}

fn outward(flags: u32, column: impl Fn(&(u32, u32, u32)) -> u32) -> u32 {
    FLAGS.iter().filter(|f| flags & f.0 != 0).fold(0, |all, f| all | column(f))
}

fn inward(flags: u32, column: impl Fn(&(u32, u32, u32)) -> u32) -> crate::base::Result<u32> {
    match flags & !FLAGS.iter().fold(0, |all, f| all | column(f)) {
        0 => Ok(FLAGS.iter().filter(|f| flags & column(f) != 0).fold(0, |all, f| all | f.0)),
        _ => Err(Error::Unsupported("this flag")),
    }
}

/// The flags to be, ours.
fn asked(cmd: u32, data: &[u8]) -> crate::base::Result<u32> {
    let word = |at: usize| -> crate::base::Result<u32> {
        let bytes = data.get(at..at + 4).and_then(|b| b.try_into().ok());
        bytes.map(u32::from_ne_bytes).ok_or(Error::Invalid("a record that is too short"))
    };
    if cmd == SETFLAGS {
        return inward(word(0)?, |f| f.1);
    }
    // Sizes of extents and projects there are none of, so none can be set.
    if [4, 12, 16].iter().try_fold(0, |all, at| word(*at).map(|w| all | w))? != 0 {
        return Err(Error::Unsupported("extent sizes and projects"));
    }
    inward(word(0)?, |f| f.2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_there_and_back() {
        for flags in 0..32u32 {
            let ours = flags & crate::format::inode::FLAGS_OF_PROGRAMS;
            assert_eq!(asked(SETFLAGS, &outward(ours, |f| f.1).to_ne_bytes()), Ok(ours));
            let mut record = [0; FSXATTR];
            record[..4].copy_from_slice(&outward(ours, |f| f.2).to_ne_bytes());
            assert_eq!(asked(FSSETXATTR, &record), Ok(ours));
        }
        assert!(matches!(asked(SETFLAGS, &0x8000_0010u32.to_ne_bytes()), Err(Error::Unsupported(_))));
        assert!(matches!(asked(SETFLAGS, &[1, 0]), Err(Error::Invalid(_))));
        let mut record = [0; FSXATTR];
        record[12] = 1;
        assert!(matches!(asked(FSSETXATTR, &record), Err(Error::Unsupported(_))));
    }
}
