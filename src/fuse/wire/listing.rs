//! Directory entries in a buffer of the size that the kernel asked for.

use super::{FuseDirent, FuseDirentplus, FuseEntryOut};
use zerocopy::IntoBytes;

/// Entries begin at multiples of this.
const ALIGN: usize = 8;

/// What a READDIR or READDIRPLUS is answered with.
pub struct Listing {
    bytes: Vec<u8>,
    room: usize,
}

impl Listing {
    /// An empty one of at most `room` bytes.
    pub fn new(room: usize) -> Listing {
        Listing { bytes: Vec::new(), room }
    }

    /// An entry of a READDIR; false if it does not fit. `kind` is a directory entry's type (`DT_*`).
    pub fn add(&mut self, ino: u64, cookie: u64, kind: u32, name: &[u8]) -> bool {
        self.push(dirent(ino, cookie, kind, name).as_bytes(), name)
    }

    /// An entry of a READDIRPLUS; false if it does not fit.
    pub fn add_plus(&mut self, entry: FuseEntryOut, ino: u64, cookie: u64, kind: u32, name: &[u8]) -> bool {
        self.push(FuseDirentplus { entry, dirent: dirent(ino, cookie, kind, name) }.as_bytes(), name)
    }

    fn push(&mut self, head: &[u8], name: &[u8]) -> bool {
        let length = (head.len() + name.len()).next_multiple_of(ALIGN);
        let end = self.bytes.len() + length;
        if end > self.room {
            return false;
        }
        self.bytes.extend_from_slice(head);
        self.bytes.extend_from_slice(name);
        self.bytes.resize(end, 0);
        true
    }

    /// The answer.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn dirent(ino: u64, cookie: u64, kind: u32, name: &[u8]) -> FuseDirent {
    FuseDirent { ino, off: cookie, namelen: name.len() as u32, kind }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_padded_and_the_room_is_kept() {
        let mut listing = Listing::new(32 + 24);
        assert!(listing.add(5, 1, 4, b"abc"));
        assert!(!listing.add(6, 2, 8, b"d"), "32 bytes more");
        assert_eq!(listing.bytes().len(), 32);
        let expected = [
            &5u64.to_ne_bytes()[..],
            &1u64.to_ne_bytes(),
            &3u32.to_ne_bytes(),
            &4u32.to_ne_bytes(),
            b"abc\0\0\0\0\0",
        ];
        assert_eq!(listing.bytes(), expected.concat());
        let mut plus = Listing::new(160);
        assert!(plus.add_plus(FuseEntryOut::default(), 5, 1, 4, b"12345678"));
        assert_eq!(plus.bytes().len(), 160);
        assert!(!Listing::new(159).add_plus(FuseEntryOut::default(), 5, 1, 4, b"12345678"));
    }
}
