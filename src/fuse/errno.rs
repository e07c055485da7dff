//! The door: what goes wrong below becomes an errno here and nowhere else.

use crate::base::Error;
use crate::fuse::wire::{Errno, Opcode};

/// The errno that an application sees. Exhaustive on purpose: a new error must be given its number.
pub fn errno(error: &Error) -> Errno {
    Errno(match error {
        // EIO also for damage: it is what POSIX has for it; the log says which block it was.
        Error::Corrupt { .. } | Error::Damaged { .. } | Error::Io { .. } => libc::EIO,
        Error::Device(_) | Error::Fenced { .. } | Error::Halted(_) => libc::EIO,
        Error::ChangeTooLarge { .. } => libc::EIO,
        // Both mean 'run it again' and are met below this door; EAGAIN would be taken for O_NONBLOCK.
        Error::NeedSpace => libc::EIO,
        Error::NotFound => libc::ENOENT,
        Error::Exists => libc::EEXIST,
        Error::NotDirectory => libc::ENOTDIR,
        Error::IsDirectory => libc::EISDIR,
        Error::NotEmpty => libc::ENOTEMPTY,
        Error::NoSpace => libc::ENOSPC,
        Error::FileTooLarge => libc::EFBIG,
        Error::NameTooLong => libc::ENAMETOOLONG,
        Error::TooManyLinks => libc::EMLINK,
        Error::Invalid(_) => libc::EINVAL,
        Error::Stale => libc::ESTALE,
        Error::NoAttribute => libc::ENODATA,
        Error::Range => libc::ERANGE,
        Error::TooBig => libc::E2BIG,
        Error::NotPermitted => libc::EPERM,
        Error::AccessDenied => libc::EACCES,
        Error::ReadOnly => libc::EROFS,
        Error::Unsupported(_) => libc::EOPNOTSUPP,
        Error::Busy(_) => libc::EBUSY,
        Error::NoData => libc::ENXIO,
        Error::OutOfMemory => libc::ENOMEM,
        Error::Locked => libc::EAGAIN,
        Error::Deadlock => libc::EDEADLK,
        Error::NoLocks => libc::ENOLCK,
        Error::Interrupted => libc::EINTR,
        Error::TimedOut(_) => libc::ETIMEDOUT,
    })
}

/// The errno, with a line in the log for what an administrator must hear of: damage, a failing
/// device, and our own mistakes.
pub fn reported(operation: Opcode, error: &Error) -> Errno {
    match error {
        Error::Corrupt { .. } | Error::Damaged { .. } | Error::Io { .. } | Error::Device(_) => {
            tracing::error!(?operation, "{error}");
        }
        Error::NeedSpace | Error::ChangeTooLarge { .. } => {
            tracing::error!(?operation, "this should not have reached an application: {error}");
        }
        Error::Halted(_) => tracing::debug!(?operation, "{error}"),
        _ => tracing::trace!(?operation, "{error}"),
    }
    errno(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_applications_rely_on() {
        for (error, number) in [
            (Error::NotFound, libc::ENOENT),
            (Error::NotEmpty, libc::ENOTEMPTY),
            (Error::NoSpace, libc::ENOSPC),
            (Error::NameTooLong, libc::ENAMETOOLONG),
            (Error::NoAttribute, libc::ENODATA),
            (Error::NoData, libc::ENXIO),
            (Error::Stale, libc::ESTALE),
            (Error::ReadOnly, libc::EROFS),
            (Error::Locked, libc::EAGAIN),
            (Error::Interrupted, libc::EINTR),
            (Error::Halted("x".into()), libc::EIO),
            (Error::Unsupported("x"), libc::EOPNOTSUPP),
            (Error::corrupt(crate::base::BlockNo(1), "x", 1, 2), libc::EIO),
        ] {
            assert_eq!(errno(&error), Errno(number), "{error}");
        }
    }
}
