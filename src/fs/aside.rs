//! Flushes that find themselves short of space step aside, as operations do.
//!
//! What was written has its space promised, so that is rare: a group turned out to be damaged, or a tree took
//! more than could be foreseen and the emergency share is used up. Whoever flushes then lets go of its
//! locks, a further group is asked for, what it gives is put to the inode's promises, and the flush is run
//! again. Only when no group of the volume has anything is that an error, for those who have the file open.
//!
//! A demotion does not wait for space: it is busy until the flush that follows has come through. So it
//! never waits for a group whose holder waits for it. The groups that are wanted meanwhile can be flushed
//! by their own emergency shares.

use super::*;
use crate::alloc::Want;
use crate::inode::tree_costs;
use std::sync::mpsc;

/// How long not to ask again when no group has had anything.
const SEEK_PAUSE: Duration = Duration::from_secs(5);

impl Core {
    /// What a flush of an inode lacks.
    fn lacks(&self, node: &Node, state: &NodeState) -> Want {
        let need = state.file.as_ref().map(FileState::space_want).unwrap_or_default();
        let (data, meta) = state.space.as_ref().map_or((0, 0), |held| (held.data(), held.meta()));
        let meta = need.meta.saturating_sub(u32::try_from(meta).unwrap_or(u32::MAX));
        Want {
            data: need.data.saturating_sub(data),
            meta: meta.max(tree_costs::NEW_BLOCKS),
            near: self.group(node.ino),
        }
    }

    /// Flush in an operation; `flush` is one of the core's.
    pub(super) fn flush_in(
        self: &Arc<Self>,
        op: &mut Op<'_>,
        node: &Arc<Node>,
        flush: impl FnOnce(&Arc<Self>, &Arc<Node>) -> Result<()>,
    ) -> Step<()> {
        if let Some(space) = op.granted() {
            self.put_space(&mut node.state.lock(), space);
        }
        match flush(self, node) {
            Err(Error::NeedSpace) => Err(Stop::Space(self.lacks(node, &node.state.lock()))),
            other => Ok(other?),
        }
    }

    /// The same with the state locked throughout.
    pub(super) fn flush_locked_in(
        self: &Arc<Self>,
        op: &mut Op<'_>,
        node: &Arc<Node>,
        state: &mut NodeState,
    ) -> Step<()> {
        if let Some(space) = op.granted() {
            self.put_space(state, space);
        }
        match self.flush_locked(node, state) {
            Err(Error::NeedSpace) => Err(Stop::Space(self.lacks(node, state))),
            other => Ok(other?),
        }
    }

    fn put_space(&self, state: &mut NodeState, space: Reservation) {
        if state.is_data_dirty() {
            state.space.get_or_insert_default().merge(space);
        }
    }

    /// Get space for an inode whose flush was short of it, and flush it then, in the background. Nothing is
    /// held.
    pub(super) fn seek_space(self: &Arc<Self>, node: &Arc<Node>) {
        let want = {
            let mut state = node.state.lock();
            if !state.is_data_dirty() || state.seeks_until.is_some_and(|until| self.clock.now() < until) {
                return;
            }
            state.seeks_until = Some(Duration::MAX);
            self.lacks(node, &state)
        };
        tracing::debug!(inode = node.ino.0, "write-back asks for space: {want:?}");
        let (core, node) = (self.clone(), node.clone());
        let then = move |got: Result<Reservation>| {
            let mut state = node.state.lock();
            match got {
                Ok(space) => {
                    state.seeks_until = None;
                    core.put_space(&mut state, space);
                    core.writeback.flush_soon(node.ino);
                }
                Err(e) => {
                    tracing::error!(inode = node.ino.0, "write-back failed: {e}");
                    state.seeks_until = Some(core.clock.now() + SEEK_PAUSE);
                    state.write_errors.note(e);
                }
            }
        };
        space::acquire(self, want, Box::new(then));
    }

    /// Flush an inode on a thread that may wait: for its lock by `pin`, which answers `None` if there is no
    /// point in it any more, and for space with nothing held.
    pub(super) fn flush_waiting(
        self: &Arc<Self>,
        node: &Arc<Node>,
        mut pin: impl FnMut() -> Result<Option<crate::lock::Pins>>,
    ) -> Result<()> {
        loop {
            let Some(pins) = pin()? else { return Ok(()) };
            let flushed = self.flush_node(node);
            drop(pins);
            if flushed != Err(Error::NeedSpace) {
                return flushed;
            }
            let want = self.lacks(node, &node.state.lock());
            let (sender, got) = mpsc::channel();
            space::acquire(self, want, Box::new(move |space| _ = sender.send(space)));
            let got = got.recv().map_err(|_| Error::Halted("no more space is looked for".into()))?;
            let space = got.inspect_err(|e| node.state.lock().write_errors.note(e.clone()))?;
            self.put_space(&mut node.state.lock(), space);
        }
    }
}
