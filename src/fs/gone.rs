//! Inodes that were freed together with their last name while the kernel still knows them (O_PATH): it gets
//! the last attributes until it has forgotten them, and the number is not used again before. Nothing else
//! can be done with one; it cannot be opened.

use super::*;

/// What an inode was when it was freed, if it has been and the kernel still knows it. Changed under the
/// node's state, but for its end.
#[derive(Default)]
pub struct Gone(Mutex<Option<Box<Attr>>>);

impl Gone {
    /// Has the inode been freed?
    pub fn is_so(&self) -> bool {
        self.0.lock().is_some()
    }

    /// What it was in the end.
    pub fn last(&self) -> Option<Attr> {
        self.0.lock().as_deref().cloned()
    }

    fn put(&self, last: Box<Attr>) {
        *self.0.lock() = Some(last);
    }

    fn take(&self) -> Option<Box<Attr>> {
        self.0.lock().take()
    }
}

impl Core {
    /// A transaction has freed the inode; `attr` is what it was.
    pub(super) fn has_gone(&self, node: &Node, state: &mut NodeState, mut attr: Attr) {
        if let Some(file) = &mut state.file {
            attr.size = file.size();
            file.abandon();
        }
        // The node may outlive the inode, and be the next one's of that number.
        *state = NodeState { last_txn: state.last_txn, data_txn: state.data_txn, ..NodeState::default() };
        if node.check_generation(attr.generation).is_ok() {
            node.gone.put(Box::new(attr));
            // Looked at afterwards: who forgets it takes the last lookup away first, then ends this.
            if node.lookups() == 0 {
                self.end_of_gone(node);
            }
        } else if !node.gone.is_so() {
            // It was reached by its name alone: what the kernel knows by the number is another inode.
            self.alloc.admit(node.ino);
        }
    }

    /// The kernel has forgotten the node, or had when this was begun: it may know it again, and the inode may
    /// be freed only now. Once it is gone, nobody gets to know it any more.
    pub(super) fn forgotten(&self, node: &Node) {
        if node.gone.is_so() && node.lookups() == 0 {
            self.end_of_gone(node);
        }
    }

    /// If the inode has been freed while the kernel knows it: its last attributes. No lock covers them.
    pub(super) fn last_of_gone(&self, ino: InodeNo) -> Option<Result<AttrReply>> {
        let attr = self.nodes.find(ino)?.gone.last()?;
        let whole = attr.kind == FileKind::Regular && attr.blocks == 0;
        let in_inode = if whole { sectors_in_inode(attr.size) } else { 0 };
        let told = AttrReply { ino: self.nodeid(ino), attr, in_inode, attr_valid: Duration::ZERO };
        Some(self.store.halt().check().map(|()| told))
    }

    /// If the inode has been freed: the kernel has forgotten it, or has been told of another one by its
    /// number.
    pub(super) fn end_of_gone(&self, node: &Node) {
        if node.gone.take().is_some() {
            self.alloc.admit(node.ino);
        }
    }
}
