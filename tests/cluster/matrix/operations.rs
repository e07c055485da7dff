//! The operations of the matrix, each with the inodes and other things whose locks it may wait for.

use super::place::{Aligned, PAGE, Pages, Place, SIZE, c_path, check};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::time::SystemTime;

/// Something whose lock an operation may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The file of the operation.
    File,
    /// An empty directory.
    Directory,
    Symlink,
    /// The directory that these are in.
    Parent,
    /// Another directory.
    New,
    /// A file in that one.
    Other,
    /// An empty directory in that one.
    Empty,
    /// The group that the other host has its blocks from.
    Group,
    /// What serialises moves of directories.
    Moves,
}

impl Role {
    /// Its path, if it is an inode.
    pub fn path(self) -> Option<&'static str> {
        Some(match self {
            Role::File => "p/file",
            Role::Directory => "p/directory",
            Role::Symlink => "p/symlink",
            Role::Parent => "p",
            Role::New => "n",
            Role::Other => "n/other",
            Role::Empty => "n/empty",
            Role::Group | Role::Moves => return None,
        })
    }
}

type Run = fn(&Place) -> io::Result<()>;

/// A row of the table.
pub struct Operation {
    pub name: &'static str,
    pub roles: &'static [Role],
    pub run: Run,
    /// It asks for the file by a handle alone: it can be done to an unlinked file as well, and several
    /// times at once.
    pub by_handle: bool,
}

const fn data(name: &'static str, roles: &'static [Role], run: Run) -> Operation {
    Operation { name, roles, run, by_handle: true }
}

const fn named(name: &'static str, roles: &'static [Role], run: Run) -> Operation {
    Operation { name, roles, run, by_handle: false }
}

const FILE: &[Role] = &[Role::File];
const GROWING: &[Role] = &[Role::File, Role::Group];
const PARENT: &[Role] = &[Role::Parent];
const CREATING: &[Role] = &[Role::Parent, Role::Group];
const BOTH: &[Role] = &[Role::Parent, Role::File];

/// All of it.
pub const TABLE: &[Operation] = &[
    data("fstat", FILE, |p| p.file().metadata().map(drop)),
    data("fchmod", FILE, |p| p.file().set_permissions(fs::Permissions::from_mode(0o640))),
    data("futimens", FILE, |p| p.file().set_modified(SystemTime::now())),
    data("shorter", GROWING, |p| p.file().set_len(SIZE / 2 - 7)),
    data("longer", FILE, |p| p.file().set_len(SIZE * 2 + 7)),
    data("read", FILE, |p| p.file().read_at(&mut [0; 100], PAGE - 50).map(drop)),
    data("read all", FILE, |p| p.file().read_at(&mut [0; SIZE as usize], 0).map(drop)),
    data("read directly", FILE, |p| p.direct()?.read_at(Aligned::new(8192).bytes(), PAGE).map(drop)),
    data("load", FILE, |p| Pages::map(p.file())?.load()),
    data("store", GROWING, |p| Pages::map(p.file())?.store()),
    data("store, msync", FILE, |p| {
        let pages = Pages::map(p.file())?;
        pages.store().and_then(|()| pages.sync())
    }),
    data("store, load elsewhere, close", FILE, |p| {
        let pages = Pages::map(p.file())?;
        pages.store().and_then(|()| Pages::map(p.file())?.load())?;
        drop(pages);
        p.file().try_clone().map(drop)
    }),
    data("write of a part", FILE, |p| p.file().write_all_at(&[1; 100], PAGE * 3 - 50)),
    data("write behind the end", GROWING, |p| p.file().write_all_at(&[2; 100], SIZE + PAGE + 50)),
    data("write of pages", FILE, |p| p.file().write_all_at(&[3; 3 * PAGE as usize], PAGE)),
    data("large write", GROWING, |p| p.file().write_all_at(&vec![4; 1 << 19], PAGE / 2)),
    data("append", GROWING, |p| {
        use std::io::Write;
        p.again(OpenOptions::new().append(true))?.write_all(&[5; 5000])
    }),
    data("direct write", FILE, |p| p.direct()?.write_all_at(Aligned::new(8192).bytes(), PAGE)),
    data("direct write behind the end", GROWING, |p| {
        p.direct()?.write_all_at(Aligned::new(8192).bytes(), 2 * SIZE)
    }),
    data("write, fsync", GROWING, |p| p.file().write_all_at(&[6; 10], 10).and_then(|()| p.file().sync_all())),
    data("write, fdatasync", FILE, |p| {
        p.file().write_all_at(&[6; 10], 10).and_then(|()| p.file().sync_data())
    }),
    data("preallocate", GROWING, |p| p.allocate(0, SIZE, SIZE)),
    data("punch", GROWING, |p| {
        p.allocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 100, SIZE / 2)
    }),
    data("zero", FILE, |p| p.allocate(libc::FALLOC_FL_ZERO_RANGE, 100, SIZE / 2)),
    data("seek", FILE, |p| p.seek_hole()),
    data("copy", &[Role::File, Role::Other], |p| p.copy_to("n/other")),
    data("copy back", &[Role::File, Role::Other], |p| p.copy_from("n/other")),
    data("open, close", FILE, |p| p.again(OpenOptions::new().read(true)).map(drop)),
    data("open for writing, store, close", FILE, |p| {
        Pages::map(&p.again(OpenOptions::new().read(true).write(true))?)?.store()
    }),
    data("open truncating", GROWING, |p| p.again(OpenOptions::new().write(true).truncate(true)).map(drop)),
    data("set attribute", GROWING, |p| p.set_xattr(&[7; 2000])),
    data("get attribute", FILE, |p| p.get_xattr()),
    data("list attributes", FILE, |p| p.list_xattrs()),
    data("remove attribute", FILE, |p| p.set_xattr(b"x").and_then(|()| p.remove_xattr())),
    named("stat", BOTH, |p| fs::metadata(p.at("p/file")).map(drop)),
    named("stat of a missing name", PARENT, |p| match fs::metadata(p.at("p/missing")) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map(drop),
    }),
    named("access", BOTH, |p| {
        let path = c_path(&p.at("p/file"));
        // SAFETY: a string that outlives the call.
        check(unsafe { libc::access(path.as_ptr(), libc::R_OK | libc::W_OK) }.into())
    }),
    named("chmod of a directory", PARENT, |p| {
        fs::set_permissions(p.at("p"), fs::Permissions::from_mode(0o711))
    }),
    named("readlink", &[Role::Parent, Role::Symlink], |p| fs::read_link(p.at("p/symlink")).map(drop)),
    named("through a symlink", &[Role::Symlink, Role::File], |p| fs::read(p.at("p/symlink")).map(drop)),
    named("list", PARENT, |p| fs::read_dir(p.at("p"))?.try_for_each(|e| e.map(drop))),
    named("list with attributes", BOTH, |p| {
        fs::read_dir(p.at("p"))?.try_for_each(|e| match e?.metadata() {
            // Listed, and gone by the other host's next blow.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map(drop),
        })
    }),
    named("fsync of a directory", PARENT, |p| File::open(p.at("p"))?.sync_all()),
    named("create", CREATING, |p| File::create_new(p.at("p/new")).map(drop)),
    named("create, write, close", CREATING, |p| fs::write(p.at("p/new"), [8; 9000])),
    named("create what is there", BOTH, |p| {
        OpenOptions::new().create(true).truncate(false).write(true).open(p.at("p/file")).map(drop)
    }),
    named("mkdir", CREATING, |p| fs::create_dir(p.at("p/new"))),
    named("mknod", CREATING, |p| {
        let path = c_path(&p.at("p/new"));
        // SAFETY: a string that outlives the call.
        check(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }.into())
    }),
    named("symlink", CREATING, |p| symlink("file", p.at("p/new"))),
    named("link", &[Role::File, Role::New], |p| fs::hard_link(p.at("p/file"), p.at("n/new"))),
    named("unlink", &[Role::Parent, Role::File, Role::Group], |p| fs::remove_file(p.at("p/file"))),
    named("unlink of an open file", BOTH, |p| {
        let file = File::open(p.at("p/file"))?;
        fs::remove_file(p.at("p/file")).and_then(|()| file.metadata().map(drop))
    }),
    named("rmdir", &[Role::Parent, Role::Directory], |p| fs::remove_dir(p.at("p/directory"))),
    named("rename", BOTH, |p| fs::rename(p.at("p/file"), p.at("p/renamed"))),
    named("rename over", &[Role::Parent, Role::New, Role::File, Role::Other], |p| {
        fs::rename(p.at("p/file"), p.at("n/other"))
    }),
    named("exchange", &[Role::Parent, Role::New, Role::File, Role::Other], |p| {
        p.exchange("p/file", "n/other")
    }),
    named("move of a directory", &[Role::Parent, Role::New, Role::Directory, Role::Moves], |p| {
        fs::rename(p.at("p/directory"), p.at("n/new"))
    }),
    named("move over a directory", &[Role::New, Role::Directory, Role::Empty, Role::Moves], |p| {
        fs::rename(p.at("p/directory"), p.at("n/empty"))
    }),
    named("up and down", &[Role::Directory, Role::New], |p| {
        fs::metadata(p.at("p/directory/../../n/../p/directory/..")).map(drop)
    }),
    named("statfs", &[Role::Group], |p| {
        let path = c_path(&p.at("p"));
        // SAFETY: statvfs is plain data; the string outlives the call.
        check(unsafe { libc::statvfs(path.as_ptr(), &mut std::mem::zeroed()) }.into())
    }),
];
