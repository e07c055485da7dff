//! Whole directories and the whole tree.

use super::Tester;
use crate::model::{Content, Id};
use std::fs;
use std::io;

impl Tester {
    pub fn compare_listing(&mut self, host: usize, path: &str, dir: Id) {
        let listed = fs::read_dir(self.at(host, path)).and_then(|entries| {
            entries.map(|e| e.map(|e| e.file_name().into_string().unwrap())).collect::<io::Result<Vec<_>>>()
        });
        let mut found = self.expect(dir, format!("h{host} list {path}/"), listed, 0).unwrap();
        found.sort();
        let wanted: Vec<String> = self.model.children(dir).keys().cloned().collect();
        if found != wanted {
            self.fail(dir, format!("{found:?}, expected {wanted:?}"));
        }
    }

    /// Everything, on every host.
    pub fn compare_all(&mut self) {
        for host in 0..self.hosts.len() {
            for (path, dir) in self.model.directories() {
                self.compare_listing(host, &path, dir);
            }
            for place in self.model.places() {
                let (at, id) = (self.at(host, &place.path), place.id);
                if let Content::Symlink(target) = &self.model.nodes[id].content {
                    let same = fs::read_link(&at).map(|t| t.as_os_str() == target.as_str());
                    let what = format!("h{host} finally readlink {}", place.path);
                    if !self.expect(id, what, same, 0).unwrap() {
                        self.fail(id, "another target".into());
                    }
                    continue;
                }
                if self.model.is_file(id) {
                    let what = format!("h{host} finally read {}", place.path);
                    let found = self.expect(id, what, fs::read(&at), 0).unwrap();
                    self.compare_bytes(id, 0, usize::MAX, &found);
                }
                self.compare_guard(host, &place);
                self.compare_xattrs(host, &place);
            }
        }
    }
}
