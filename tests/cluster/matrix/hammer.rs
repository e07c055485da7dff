//! The other host: takes the lock of one thing away, again and again.

use super::operations::Role;
use super::place::{Pages, SIZE};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Between two blows at what the operation is to wait for, not to be robbed of.
const PAUSE: Duration = Duration::from_millis(3);

/// See the head of the file. Errors are not its business: names may go, mounts may be cut.
pub struct Hammer {
    role: Role,
    root: PathBuf,
    /// By descriptor, so that it goes on when the name is gone.
    file: Option<File>,
    pages: Option<Pages>,
}

impl Hammer {
    /// At the `role` in the directory `root`.
    pub fn new(role: Role, root: &Path) -> io::Result<Hammer> {
        let path = role.path().map(|path| root.join(path));
        let (file, pages) = match (role, path) {
            (Role::File | Role::Other, Some(path)) => {
                let file = OpenOptions::new().read(true).write(true).open(path)?;
                let pages = Pages::map(&file)?;
                (file, Some(pages))
            }
            (Role::Symlink, _) => return Ok(Hammer { role, root: root.to_owned(), file: None, pages: None }),
            (_, Some(path)) => (File::open(path)?, None),
            (Role::Group, None) => (File::create(root.join("blocks"))?, None),
            (_, None) => {
                ["m", "m/a", "m/b", "m/a/moving"].iter().try_for_each(|d| fs::create_dir(root.join(d)))?;
                return Ok(Hammer { role, root: root.to_owned(), file: None, pages: None });
            }
        };
        Ok(Hammer { role, root: root.to_owned(), file: Some(file), pages })
    }

    /// Blow number `n`: every one but the reads needs the lock exclusively.
    pub fn blow(&self, n: usize) {
        let _ = match self.role {
            Role::File | Role::Other => self.file_blow(n),
            Role::Group => self.blocks_blow(),
            Role::Symlink => lchown(self.root.join("p/symlink"), Some(n as u32 % 3), None),
            Role::Moves => {
                let at = |d: &str| self.root.join("m").join(d).join("moving");
                let (from, to) = if n.is_multiple_of(2) { ("a", "b") } else { ("b", "a") };
                fs::rename(at(from), at(to))
            }
            _ => self.directory_blow(n),
        };
    }

    fn file(&self) -> &File {
        self.file.as_ref().expect("opened for this role")
    }

    fn mode(&self, n: usize) -> io::Result<()> {
        let mode = if n.is_multiple_of(2) { 0o755 } else { 0o775 };
        self.file().set_permissions(fs::Permissions::from_mode(mode))
    }

    fn file_blow(&self, n: usize) -> io::Result<()> {
        match n % 5 {
            0 => self.mode(n / 5),
            1 => self.file().read_at(&mut [0; 100], SIZE / 2).map(drop),
            2 => self.file().write_all_at(&[12; 10], SIZE / 4 - 5),
            3 => self.pages.as_ref().expect("mapped for files").store(),
            _ => self.file().metadata().map(drop),
        }
    }

    fn directory_blow(&self, n: usize) -> io::Result<()> {
        let Some(path) = self.role.path().map(|path| self.root.join(path)) else { return Ok(()) };
        match (n % 4, self.role) {
            (0, _) => self.mode(n / 4),
            (1, _) => fs::read_dir(path)?.try_for_each(|e| e.map(drop)),
            // Those that may be removed or replaced must stay empty.
            (2, Role::Parent | Role::New) => {
                let passing = path.join("passing");
                File::create(&passing).and_then(|_| fs::remove_file(&passing))
            }
            _ => self.file().metadata().map(drop),
        }
    }

    fn blocks_blow(&self) -> io::Result<()> {
        self.file().write_all_at(&[13; 70_000], 0)?;
        self.file().sync_all()?;
        self.file().set_len(0)
    }

    /// Until `done`; counts the blows. With `pauses` it does not come back at once.
    pub fn run(&self, done: &AtomicBool, blows: &AtomicUsize, pauses: bool) {
        for n in 0.. {
            if done.load(Ordering::Acquire) {
                return;
            }
            self.blow(n);
            blows.fetch_add(1, Ordering::AcqRel);
            if pauses {
                std::thread::sleep(PAUSE);
            }
        }
    }
}
