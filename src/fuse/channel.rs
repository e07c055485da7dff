//! The open /dev/fuse: one read gives one request, one writev takes one answer or notification.

use crate::fuse::wire::FuseOutHeader;
use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use zerocopy::IntoBytes;

/// Parts of an answer behind its header, at most.
const PARTS_MAX: usize = 3;

/// One end of a connection; the kernel has the other.
pub struct Channel {
    device: File,
}

impl Channel {
    /// The connection of an open /dev/fuse.
    pub fn new(device: OwnedFd) -> Channel {
        Channel { device: device.into() }
    }

    /// Another descriptor of the same connection.
    ///
    /// # Errors
    /// If the descriptor cannot be duplicated.
    pub fn duplicate_of(device: impl AsFd) -> io::Result<Channel> {
        device.as_fd().try_clone_to_owned().map(Channel::new)
    }

    /// Waits for a request and puts it into `room`; its length. `None`: the filesystem is unmounted, or
    /// the connection was aborted.
    ///
    /// # Errors
    /// Those of the device that mean neither.
    pub fn receive(&self, room: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            let error = match (&self.device).read(room) {
                // Not from the device, whose requests have headers; a socket in its place ends so.
                Ok(0) => return Ok(None),
                Ok(length) => return Ok(Some(length)),
                Err(e) => e,
            };
            match error.raw_os_error() {
                // ENOENT: the request was withdrawn while it was being read.
                Some(libc::EINTR | libc::EAGAIN | libc::ENOENT) => {}
                Some(libc::ENODEV) => return Ok(None),
                _ => return Err(error),
            }
        }
    }

    /// Sends an answer (to request `unique`, `error` 0 or a negative errno) or a notification (`unique`
    /// is 0, `error` its code).
    ///
    /// # Errors
    /// The kernel's: ENOENT if the request is not waiting any more.
    pub fn send(&self, error: i32, unique: u64, body: &[&[u8]]) -> io::Result<()> {
        assert!(body.len() <= PARTS_MAX);
        let length = size_of::<FuseOutHeader>() + body.iter().map(|part| part.len()).sum::<usize>();
        let len = u32::try_from(length).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let header = FuseOutHeader { len, error, unique };
        let mut parts = [IoSlice::new(&[]); PARTS_MAX + 1];
        parts[0] = IoSlice::new(header.as_bytes());
        for (slot, part) in parts[1..].iter_mut().zip(body) {
            *slot = IoSlice::new(part);
        }
        loop {
            match (&self.device).write_vectored(&parts[..=body.len()]) {
                Ok(taken) if taken == length => return Ok(()),
                Ok(taken) => return Err(io::Error::other(format!("{taken} bytes of {length} were taken"))),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}
