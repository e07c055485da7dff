//! What an operation says, as an answer to the kernel: one function for each kind.

use crate::base::Error;
use crate::fs::types::{AttrReply, EntryReply, LockFound, LookupReply, OpenReply, Statfs};
use crate::fuse::convert::{attr_out, entry_out, lock_out, open_out, seconds, statx_out};
use crate::fuse::errno::reported;
use crate::fuse::reply::Reply;
use crate::fuse::wire::{
    Errno, FuseCopyFileRangeOut, FuseCreateOut, FuseEntryOut, FuseGetxattrOut, FuseIoctlOut, FuseLseekOut,
    FuseStatfsOut, FuseWriteOut,
};

/// What an operation answers.
pub type Outcome<T> = crate::base::Result<T>;

/// It went wrong.
pub fn fail(reply: Reply, error: &Error) {
    let number = reported(reply.opcode(), error);
    reply.error(number);
}

/// Answers by `good`, or with what went wrong.
pub fn answer<T: 'static>(
    reply: Reply,
    good: impl FnOnce(Reply, T) + Send + 'static,
) -> impl FnOnce(Outcome<T>) + Send + 'static {
    move |result| match result {
        Ok(value) => good(reply, value),
        Err(e) => fail(reply, &e),
    }
}

/// Done, or not.
pub fn empty(reply: Reply) -> impl FnOnce(Outcome<()>) + Send + 'static {
    answer(reply, |reply, ()| reply.done())
}

/// What is in the way of a lock.
pub fn lock_found(reply: Reply) -> impl FnOnce(Outcome<Option<LockFound>>) + Send + 'static {
    answer(reply, |reply, found| reply.record(&lock_out(found)))
}

/// An inode under a name.
pub fn entry(reply: Reply) -> impl FnOnce(Outcome<EntryReply>) + Send + 'static {
    answer(reply, |reply, e| reply.record(&entry_out(&e)))
}

/// The same, or that there is none.
pub fn found(reply: Reply) -> impl FnOnce(Outcome<LookupReply>) + Send + 'static {
    answer(reply, |reply, found| match found {
        LookupReply::Found(e) => reply.record(&entry_out(&e)),
        LookupReply::Missing { entry_valid } if entry_valid.is_zero() => reply.error(Errno(libc::ENOENT)),
        // Node 0 tells the kernel to remember it.
        LookupReply::Missing { entry_valid } => {
            let (entry_valid, entry_valid_nsec) = seconds(entry_valid);
            reply.record(&FuseEntryOut { entry_valid, entry_valid_nsec, ..FuseEntryOut::default() });
        }
    })
}

/// Attributes; `cached`: the kernel may keep them.
pub fn attributes(reply: Reply, cached: bool) -> impl FnOnce(Outcome<AttrReply>) + Send + 'static {
    answer(reply, move |reply, a: AttrReply| reply.record(&attr_out(&a, cached)))
}

/// Attributes for statx(2).
pub fn statx(reply: Reply) -> impl FnOnce(Outcome<AttrReply>) + Send + 'static {
    answer(reply, |reply, a| reply.record(&statx_out(&a)))
}

/// A handle.
pub fn opened(reply: Reply) -> impl FnOnce(Outcome<OpenReply>) + Send + 'static {
    answer(reply, |reply, o| reply.record(&open_out(&o)))
}

/// A new file and a handle.
pub fn created(reply: Reply) -> impl FnOnce(Outcome<(EntryReply, OpenReply)>) + Send + 'static {
    answer(reply, |reply, (e, o): (EntryReply, OpenReply)| {
        reply.record(&FuseCreateOut { entry: entry_out(&e), open: open_out(&o) });
    })
}

/// Bytes.
pub fn data<B: AsRef<[u8]> + 'static>(reply: Reply) -> impl FnOnce(Outcome<B>) + Send + 'static {
    answer(reply, |reply, bytes: B| reply.data(bytes.as_ref()))
}

/// A count of bytes.
pub fn written(reply: Reply) -> impl FnOnce(Outcome<u32>) + Send + 'static {
    answer(reply, |reply, size| reply.record(&FuseWriteOut { size, padding: 0 }))
}

/// A count of bytes, in 64 bits if `wide`.
pub fn copied(reply: Reply, wide: bool) -> impl FnOnce(Outcome<u32>) + Send + 'static {
    answer(reply, move |reply, size: u32| match wide {
        true => reply.record(&FuseCopyFileRangeOut { bytes_copied: size.into() }),
        false => reply.record(&FuseWriteOut { size, padding: 0 }),
    })
}

/// A value or list of names: its size if the caller offers no room, ERANGE if too little.
pub fn sized(reply: Reply, room: u32) -> impl FnOnce(Outcome<Vec<u8>>) + Send + 'static {
    answer(reply, move |reply, bytes: Vec<u8>| {
        if room == 0 {
            reply.record(&FuseGetxattrOut { size: bytes.len() as u32, padding: 0 });
        } else if bytes.len() > room as usize {
            reply.error(Errno(libc::ERANGE));
        } else {
            reply.data(&bytes);
        }
    })
}

/// A place in a file.
pub fn position(reply: Reply) -> impl FnOnce(Outcome<u64>) + Send + 'static {
    answer(reply, |reply, offset| reply.record(&FuseLseekOut { offset }))
}

/// The end of an ioctl(2) that returns 0 and no data.
pub fn ioctl_done(reply: Reply) -> impl FnOnce(Outcome<()>) + Send + 'static {
    answer(reply, |reply, ()| reply.record(&FuseIoctlOut::default()))
}

/// The volume's size and use.
pub fn statfs(reply: Reply) -> impl FnOnce(Outcome<Statfs>) + Send + 'static {
    answer(reply, |reply, s: Statfs| {
        reply.record(&FuseStatfsOut {
            blocks: s.blocks,
            bfree: s.blocks_free,
            bavail: s.blocks_available,
            files: s.files,
            ffree: s.files_free,
            bsize: s.block_size,
            namelen: s.name_max,
            frsize: s.fragment_size,
            ..FuseStatfsOut::default()
        });
    })
}
