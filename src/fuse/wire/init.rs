//! What is agreed on with the kernel at INIT.

use super::flags::{Bits, init};
use super::{Dialect, FuseInitIn, FuseInitOut, MAJOR, MINOR_MAX, MINOR_MIN};

/// Bytes of the pages in which the kernel counts a request's longest data.
const PAGE: u32 = 4096;

/// What the kernel offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Its protocol version's minor number.
    pub minor: u32,
    /// Its flags, both words.
    pub flags: u64,
    /// Bytes that it reads ahead.
    pub max_readahead: u32,
}

impl Offer {
    /// Is this offered?
    pub fn has(&self, flag: Bits) -> bool {
        self.flags & flag.0 != 0
    }
}

/// What is wanted; asked for as far as it is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub flags: &'static [Bits],
    /// Bytes of the largest WRITE.
    pub max_write: u32,
    /// Requests without a waiting process that may be on their way.
    pub max_background: u16,
}

/// How an INIT is to be met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The kernel is of a later major version: name ours, and it asks again.
    Again(FuseInitOut),
    /// It is too old: refuse.
    Refuse { major: u32, minor: u32 },
    /// Agree on something.
    Agree(Offer),
}

/// The first look at an INIT.
pub fn meet(asked: &FuseInitIn) -> Step {
    if asked.major > MAJOR {
        return Step::Again(FuseInitOut { major: MAJOR, minor: MINOR_MAX, ..FuseInitOut::default() });
    }
    if asked.major < MAJOR || asked.minor < MINOR_MIN {
        return Step::Refuse { major: asked.major, minor: asked.minor };
    }
    let low = u64::from(asked.flags);
    let high = if low & init::INIT_EXT.0 != 0 { u64::from(asked.flags2) << 32 } else { 0 };
    Step::Agree(Offer { minor: asked.minor, flags: low | high, max_readahead: asked.max_readahead })
}

/// The answer to `offer`, and what it means for the requests to come.
pub fn agree(offer: &Offer, wanted: &Wanted) -> (FuseInitOut, Dialect) {
    /// Needed for what is in this record itself.
    const ALWAYS: [Bits; 2] = [init::INIT_EXT, init::MAX_PAGES];
    let asked = wanted.flags.iter().chain(&ALWAYS).fold(0, |all, flag| all | flag.0);
    let flags = asked & offer.flags;
    let answer = FuseInitOut {
        major: MAJOR,
        minor: offer.minor.min(MINOR_MAX),
        max_readahead: offer.max_readahead,
        flags: flags as u32,
        flags2: (flags >> 32) as u32,
        max_background: wanted.max_background,
        congestion_threshold: wanted.max_background,
        max_write: wanted.max_write,
        // Nanoseconds.
        time_gran: 1,
        max_pages: u16::try_from(wanted.max_write.div_ceil(PAGE)).unwrap_or(u16::MAX),
        ..FuseInitOut::default()
    };
    (answer, Dialect { setxattr_ext: flags & init::SETXATTR_EXT.0 != 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted = Wanted {
        flags: &[init::ASYNC_READ, init::SETXATTR_EXT, init::DIRECT_IO_ALLOW_MMAP],
        max_write: 1 << 20,
        max_background: 77,
    };

    fn asked(minor: u32, flags: u64) -> FuseInitIn {
        FuseInitIn {
            major: MAJOR,
            minor,
            max_readahead: 4096,
            flags: flags as u32,
            flags2: (flags >> 32) as u32,
            ..FuseInitIn::default()
        }
    }

    fn agreed(minor: u32, flags: u64) -> (FuseInitOut, Dialect) {
        let Step::Agree(offer) = meet(&asked(minor, flags)) else { panic!("7.{minor} is spoken") };
        agree(&offer, &WANTED)
    }

    #[test]
    fn the_smaller_version_is_spoken() {
        assert_eq!(agreed(38, 0).0.minor, 38);
        assert_eq!(agreed(45, 0).0.minor, 45);
        assert_eq!(agreed(99, 0).0.minor, MINOR_MAX);
    }

    #[test]
    fn old_kernels_are_refused_and_later_protocols_asked_again() {
        assert_eq!(meet(&asked(37, u64::MAX)), Step::Refuse { major: 7, minor: 37 });
        assert_eq!(
            meet(&FuseInitIn { major: 6, minor: 99, ..asked(0, 0) }),
            Step::Refuse { major: 6, minor: 99 }
        );
        let Step::Again(answer) = meet(&FuseInitIn { major: 8, ..asked(0, 0) }) else { panic!() };
        assert_eq!((answer.major, answer.minor), (MAJOR, MINOR_MAX));
    }

    #[test]
    fn only_what_is_offered_and_wanted_is_asked_for() {
        let both = init::INIT_EXT.0 | init::DIRECT_IO_ALLOW_MMAP.0;
        let (answer, dialect) = agreed(45, both | init::POSIX_LOCKS.0);
        assert_eq!(u64::from(answer.flags) | u64::from(answer.flags2) << 32, both);
        assert!(!dialect.setxattr_ext);
        assert!(agreed(45, init::SETXATTR_EXT.0).1.setxattr_ext);
        let (answer, _) = agreed(45, u64::MAX);
        assert_eq!((answer.max_write, answer.max_pages, answer.max_background), (1 << 20, 256, 77));
    }

    #[test]
    fn the_second_word_counts_only_where_it_is_said_to() {
        assert_eq!(agreed(45, init::DIRECT_IO_ALLOW_MMAP.0).0.flags2, 0);
    }
}
