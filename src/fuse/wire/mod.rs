//! The FUSE protocol as the Linux kernel speaks it on /dev/fuse: the records, numbers and flags of
//! <linux/fuse.h> under the kernel's names, requests parsed, answers laid out. No input or output here.
//!
//! | file | holds |
//! |---|---|
//! | incoming | records of requests |
//! | outgoing | records of answers |
//! | opcode | the operations' numbers |
//! | flags | bits of INIT, open, setattr and the like |
//! | request | from the bytes of a request to [`Request`] |
//! | init | what is agreed on with the kernel at INIT |
//! | listing | directory entries in a bounded buffer |
//!
//! Spoken with kernels of protocol 7.38 (Linux 6.1) and later. An older one is refused. What the kernel
//! added since changed no record's size but in place of spare room: a request may end in what is not
//! known here, and that is passed over.

pub mod flags;
mod incoming;
pub mod init;
mod listing;
pub mod opcode;
mod outgoing;
mod request;

pub use incoming::*;
pub use listing::Listing;
pub use opcode::Opcode;
pub use outgoing::*;
pub use request::{Dialect, Malformed, Parsed, Request, parse};

/// The protocol's major version; there is no other.
pub const MAJOR: u32 = 7;
/// Oldest minor version that is spoken (Linux 6.1).
pub const MINOR_MIN: u32 = 38;
/// Newest minor version that is known.
pub const MINOR_MAX: u32 = 45;

/// Bytes before the payload of a WRITE: its header and its arguments.
pub const WRITE_HEAD: usize = size_of::<FuseInHeader>() + size_of::<FuseWriteIn>();

/// Set in the number of an INTERRUPT, whose other bits are those of the request that it means.
pub const INTERRUPT_BIT: u64 = 1;

/// An error's number as it goes back to the kernel: positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

/// The kernel takes no others in an answer: those from 512 on are its own.
const ERRNO_MAX: i32 = 511;

impl Errno {
    /// The `error` field of an answer; what the kernel would not take becomes EIO.
    pub fn field(self) -> i32 {
        match self.0 {
            1..=ERRNO_MAX => -self.0,
            _ => -libc::EIO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_the_kernel_refuses_are_eio() {
        assert_eq!(Errno(libc::ENOENT).field(), -2);
        for wrong in [0, -5, 512, i32::MIN] {
            assert_eq!(Errno(wrong).field(), -libc::EIO);
        }
    }

    #[test]
    fn the_payload_of_a_write_begins_where_the_buffers_expect_it() {
        assert_eq!(WRITE_HEAD, 80);
    }
}
