//! From the bytes that the kernel gave to a typed request. Every length is checked: nothing that
//! arrives can make this panic or look past the end.

use super::{
    FuseBatchForgetIn, FuseCopyFileRangeIn, FuseCreateIn, FuseFallocateIn, FuseFlushIn, FuseForgetIn,
    FuseForgetOne, FuseFsyncIn, FuseGetattrIn, FuseGetxattrIn, FuseInHeader, FuseInitIn, FuseInterruptIn,
    FuseIoctlIn, FuseLinkIn, FuseLkIn, FuseLseekIn, FuseMkdirIn, FuseMknodIn, FuseOpenIn, FuseReadIn,
    FuseReleaseIn, FuseRename2In, FuseRenameIn, FuseSetattrIn, FuseSetxattrCompatIn, FuseSetxattrIn,
    FuseStatxIn, FuseWriteIn, Opcode,
};
use zerocopy::{FromBytes, IntoBytes};

/// What INIT has settled about the shape of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dialect {
    /// SETXATTR comes in its long form.
    pub setxattr_ext: bool,
}

/// A request and who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed<'a> {
    pub header: FuseInHeader,
    pub request: Request<'a>,
}

/// A request's arguments. Names come without their NUL and are never empty. The inode is the header's;
/// where two are meant, it is the directory or the one copied from.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    Init(FuseInitIn),
    Destroy,
    Interrupt(FuseInterruptIn),
    Lookup {
        name: &'a [u8],
    },
    Forget(FuseForgetIn),
    BatchForget(Forgets<'a>),
    Getattr(FuseGetattrIn),
    Statx(FuseStatxIn),
    Setattr(FuseSetattrIn),
    Readlink,
    Symlink {
        name: &'a [u8],
        target: &'a [u8],
    },
    Mknod {
        arg: FuseMknodIn,
        name: &'a [u8],
    },
    Mkdir {
        arg: FuseMkdirIn,
        name: &'a [u8],
    },
    Unlink {
        name: &'a [u8],
    },
    Rmdir {
        name: &'a [u8],
    },
    /// RENAME and RENAME2.
    Rename {
        arg: FuseRename2In,
        name: &'a [u8],
        new_name: &'a [u8],
    },
    Link {
        arg: FuseLinkIn,
        new_name: &'a [u8],
    },
    Open(FuseOpenIn),
    Create {
        arg: FuseCreateIn,
        name: &'a [u8],
    },
    Tmpfile(FuseCreateIn),
    Read(FuseReadIn),
    Write {
        arg: FuseWriteIn,
        data: &'a [u8],
    },
    Statfs,
    Release(FuseReleaseIn),
    Flush(FuseFlushIn),
    Fsync(FuseFsyncIn),
    Syncfs,
    Opendir(FuseOpenIn),
    Readdir(FuseReadIn),
    Readdirplus(FuseReadIn),
    Releasedir(FuseReleaseIn),
    Fsyncdir(FuseFsyncIn),
    Setxattr {
        arg: FuseSetxattrIn,
        name: &'a [u8],
        value: &'a [u8],
    },
    Getxattr {
        arg: FuseGetxattrIn,
        name: &'a [u8],
    },
    Listxattr(FuseGetxattrIn),
    Removexattr {
        name: &'a [u8],
    },
    Getlk(FuseLkIn),
    /// SETLK, and SETLKW (`wait`).
    Setlk {
        arg: FuseLkIn,
        wait: bool,
    },
    Fallocate(FuseFallocateIn),
    Lseek(FuseLseekIn),
    /// COPY_FILE_RANGE, and COPY_FILE_RANGE_64 (`wide`: the answer counts in 64 bits).
    CopyFileRange {
        arg: FuseCopyFileRangeIn,
        wide: bool,
    },
    Ioctl {
        arg: FuseIoctlIn,
        data: &'a [u8],
    },
    /// Known, and its arguments not looked at.
    Unserved(Opcode),
    /// An operation younger than this code.
    Unknown(u32),
}

/// The inodes of a BATCH_FORGET.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forgets<'a>(&'a [u8]);

impl Forgets<'_> {
    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = FuseForgetOne> + '_ {
        self.0
            .chunks_exact(size_of::<FuseForgetOne>())
            .filter_map(|one| FuseForgetOne::read_from_bytes(one).ok())
    }
}

/// A request that is not as the protocol has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Present if there was one: then somebody may wait for an answer.
    pub header: Option<FuseInHeader>,
    pub what: &'static str,
}

/// What is left of a request's arguments.
struct Arguments<'a>(&'a [u8]);

type Part<T> = Result<T, &'static str>;

impl<'a> Arguments<'a> {
    fn record<T: FromBytes>(&mut self) -> Part<T> {
        let (record, rest) = T::read_from_prefix(self.0).map_err(|_| "arguments cut short")?;
        self.0 = rest;
        Ok(record)
    }

    fn bytes(&mut self, count: u32) -> Part<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count as usize).ok_or("data cut short")?;
        self.0 = rest;
        Ok(bytes)
    }

    /// A string up to its NUL.
    fn name(&mut self) -> Part<&'a [u8]> {
        let end = self.0.iter().position(|b| *b == 0).ok_or("a name without an end")?;
        let (name, rest) = self.0.split_at(end);
        self.0 = &rest[1..];
        if name.is_empty() { Err("an empty name") } else { Ok(name) }
    }

    /// INIT's record has grown over time: what is missing is zero.
    fn init(&mut self) -> Part<FuseInitIn> {
        /// Both version numbers.
        const LEAST: usize = 8;
        let mut init = FuseInitIn::default();
        let given = self.0.len().min(size_of::<FuseInitIn>());
        if given < LEAST {
            return Err("arguments cut short");
        }
        init.as_mut_bytes()[..given].copy_from_slice(&self.0[..given]);
        Ok(init)
    }

    fn forgets(&mut self) -> Part<Forgets<'a>> {
        let arg: FuseBatchForgetIn = self.record()?;
        let bytes = arg.count.checked_mul(size_of::<FuseForgetOne>() as u32).ok_or("data cut short")?;
        self.bytes(bytes).map(Forgets)
    }

    fn setxattr(&mut self, dialect: Dialect) -> Part<Request<'a>> {
        let arg = if dialect.setxattr_ext {
            self.record()?
        } else {
            let short: FuseSetxattrCompatIn = self.record()?;
            FuseSetxattrIn { size: short.size, flags: short.flags, ..FuseSetxattrIn::default() }
        };
        Ok(Request::Setxattr { arg, name: self.name()?, value: self.bytes(arg.size)? })
    }

    fn request(&mut self, opcode: Opcode, dialect: Dialect) -> Part<Request<'a>> {
        use Opcode as O;
        Ok(match opcode {
            O::Init => Request::Init(self.init()?),
            O::Destroy => Request::Destroy,
            O::Interrupt => Request::Interrupt(self.record()?),
            O::Lookup => Request::Lookup { name: self.name()? },
            O::Forget => Request::Forget(self.record()?),
            O::BatchForget => Request::BatchForget(self.forgets()?),
            O::Getattr => Request::Getattr(self.record()?),
            O::Statx => Request::Statx(self.record()?),
            O::Setattr => Request::Setattr(self.record()?),
            O::Readlink => Request::Readlink,
            O::Symlink => Request::Symlink { name: self.name()?, target: self.name()? },
            O::Mknod => Request::Mknod { arg: self.record()?, name: self.name()? },
            O::Mkdir => Request::Mkdir { arg: self.record()?, name: self.name()? },
            O::Unlink => Request::Unlink { name: self.name()? },
            O::Rmdir => Request::Rmdir { name: self.name()? },
            O::Rename | O::Rename2 => self.rename(opcode)?,
            O::Link => Request::Link { arg: self.record()?, new_name: self.name()? },
            O::Create => Request::Create { arg: self.record()?, name: self.name()? },
            O::Tmpfile => Request::Tmpfile(self.record()?),
            O::Statfs => Request::Statfs,
            O::Setxattr => self.setxattr(dialect)?,
            O::Getxattr => Request::Getxattr { arg: self.record()?, name: self.name()? },
            O::Listxattr => Request::Listxattr(self.record()?),
            O::Removexattr => Request::Removexattr { name: self.name()? },
            O::Getlk => Request::Getlk(self.record()?),
            O::Setlk | O::Setlkw => Request::Setlk { arg: self.record()?, wait: opcode == O::Setlkw },
            _ => self.of_a_handle(opcode)?,
        })
    }

    fn rename(&mut self, opcode: Opcode) -> Part<Request<'a>> {
        let arg = match opcode {
            Opcode::Rename => {
                FuseRename2In { newdir: self.record::<FuseRenameIn>()?.newdir, ..FuseRename2In::default() }
            }
            _ => self.record()?,
        };
        Ok(Request::Rename { arg, name: self.name()?, new_name: self.name()? })
    }

    /// Requests on an open file or directory.
    fn of_a_handle(&mut self, opcode: Opcode) -> Part<Request<'a>> {
        use Opcode as O;
        Ok(match opcode {
            O::Open => Request::Open(self.record()?),
            O::Read => Request::Read(self.record()?),
            O::Write => {
                let arg: FuseWriteIn = self.record()?;
                Request::Write { arg, data: self.bytes(arg.size)? }
            }
            O::Release => Request::Release(self.record()?),
            O::Flush => Request::Flush(self.record()?),
            O::Fsync => Request::Fsync(self.record()?),
            O::Syncfs => Request::Syncfs,
            O::Opendir => Request::Opendir(self.record()?),
            O::Readdir => Request::Readdir(self.record()?),
            O::Readdirplus => Request::Readdirplus(self.record()?),
            O::Releasedir => Request::Releasedir(self.record()?),
            O::Fsyncdir => Request::Fsyncdir(self.record()?),
            O::Fallocate => Request::Fallocate(self.record()?),
            O::Lseek => Request::Lseek(self.record()?),
            O::CopyFileRange | O::CopyFileRange64 => {
                Request::CopyFileRange { arg: self.record()?, wide: opcode == O::CopyFileRange64 }
            }
            O::Ioctl => {
                let arg: FuseIoctlIn = self.record()?;
                Request::Ioctl { arg, data: self.bytes(arg.in_size)? }
            }
            other => Request::Unserved(other),
        })
    }
}

/// The request in `bytes`, which are all that one read of the device gave.
///
/// # Errors
/// What is wrong with it.
pub fn parse(bytes: &[u8], dialect: Dialect) -> Result<Parsed<'_>, Malformed> {
    let Ok((header, rest)) = FuseInHeader::read_from_prefix(bytes) else {
        return Err(Malformed { header: None, what: "a header cut short" });
    };
    let malformed = |what| Malformed { header: Some(header), what };
    if header.len as usize != bytes.len() {
        return Err(malformed("a length that is not its own"));
    }
    // Extensions stand behind the arguments; none was asked for.
    let extensions = usize::from(header.total_extlen) * 8;
    let length = rest.len().checked_sub(extensions).ok_or(malformed("extensions cut short"))?;
    let mut arguments = Arguments(&rest[..length]);
    let request = match Opcode::of(header.opcode) {
        Some(opcode) => arguments.request(opcode, dialect).map_err(malformed)?,
        None => Request::Unknown(header.opcode),
    };
    Ok(Parsed { header, request })
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
