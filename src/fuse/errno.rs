//! The door: what goes wrong below becomes an errno here and nowhere else.

use crate::base::Error;
use fuser::Errno;

/// The errno that an application sees. Exhaustive on purpose: a new error must be given its number.
pub fn errno(error: &Error) -> Errno {
    match error {
        // EIO also for damage: it is what POSIX has for it; the log says which block it was.
        Error::Corrupt { .. } | Error::Damaged { .. } | Error::Io { .. } => Errno::EIO,
        Error::Device(_) | Error::Halted(_) | Error::ChangeTooLarge { .. } => Errno::EIO,
        // Both mean 'run it again' and are met below this door; EAGAIN would be taken for O_NONBLOCK.
        Error::NeedSpace => Errno::EIO,
        Error::NotFound => Errno::ENOENT,
        Error::Exists => Errno::EEXIST,
        Error::NotDirectory => Errno::ENOTDIR,
        Error::IsDirectory => Errno::EISDIR,
        Error::NotEmpty => Errno::ENOTEMPTY,
        Error::NoSpace => Errno::ENOSPC,
        Error::FileTooLarge => Errno::EFBIG,
        Error::NameTooLong => Errno::ENAMETOOLONG,
        Error::TooManyLinks => Errno::EMLINK,
        Error::Invalid(_) => Errno::EINVAL,
        Error::Stale => Errno::ESTALE,
        Error::NoAttribute => Errno::ENODATA,
        Error::Range => Errno::ERANGE,
        Error::TooBig => Errno::E2BIG,
        Error::NotPermitted => Errno::EPERM,
        Error::AccessDenied => Errno::EACCES,
        Error::ReadOnly => Errno::EROFS,
        Error::Unsupported(_) => Errno::EOPNOTSUPP,
        Error::Busy(_) => Errno::EBUSY,
        Error::NoData => Errno::ENXIO,
        Error::OutOfMemory => Errno::ENOMEM,
        Error::TimedOut(_) => Errno::ETIMEDOUT,
    }
}

/// The errno, with a line in the log for what an administrator must hear of: damage, a failing
/// device, and our own mistakes.
pub fn reported(operation: &'static str, error: &Error) -> Errno {
    match error {
        Error::Corrupt { .. } | Error::Damaged { .. } | Error::Io { .. } | Error::Device(_) => {
            tracing::error!(operation, "{error}");
        }
        Error::NeedSpace | Error::ChangeTooLarge { .. } => {
            tracing::error!(operation, "this should not have reached an application: {error}");
        }
        Error::Halted(_) => tracing::debug!(operation, "{error}"),
        _ => tracing::trace!(operation, "{error}"),
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
            (Error::Halted("x".into()), libc::EIO),
            (Error::Unsupported("x"), libc::EOPNOTSUPP),
            (Error::corrupt(crate::base::BlockNo(1), "x", 1, 2), libc::EIO),
        ] {
            assert_eq!(errno(&error), Errno::from_i32(number), "{error}");
        }
    }
}
