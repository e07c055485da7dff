//! What another host finds after a power cut.

use super::super::*;
use super::disk::*;
use super::model::World;
use crate::base::BlockNo;
use crate::txn::BlockRun;
use rand::Rng;

impl World {
    /// Looks at what another host would find after a power cut right now.
    pub fn crash(&mut self) {
        let i = self.rng.random_range(0..self.commits.len());
        let (blocks, next, sure) = self.commits[i].clone();
        let disk = self.disk.crashed(sure, &mut self.rng);
        let mut meta = copy(&blocks, next);
        let attr = tree().read_attr(&meta).unwrap();
        let pool = PagePool::new(1 << 30);
        let mut file = FileState::load(&meta, tree(), &geometry(), pool.clone(), attr.size).unwrap();
        assert!(!(file.inline && file.has_extents), "bytes in the inode and in extents");
        let got = file.plan_read(&meta, 0, 1 << 30).unwrap().read(file.pages.pool(), &disk).unwrap().to_vec();
        assert_eq!(got.len() as u64, attr.size);
        // A flush in parts may leave a size in between, but never one beyond what was written.
        assert!(attr.size <= *self.sizes.last().unwrap() && attr.size >= *self.sizes.first().unwrap());
        for (at, value) in got.iter().enumerate() {
            let allowed = *value < 128 && self.past[at] >> *value & 1 == 1;
            assert!(allowed, "byte {at} is {value}, it was one of {:x} since the sync", self.past[at]);
        }
        // Growing shows zeros.
        let mut attr = attr;
        if let Some(target) = attr.truncating {
            let all = StepLimit { changes: u32::MAX, blocks: u64::MAX };
            let progress = file.truncate_apply(&mut meta, &mut attr, target, all).unwrap();
            assert_eq!((progress, attr.truncating), (Progress::Done, None));
            file.truncate_done(target, progress);
        }
        let size = attr.size + 5000;
        let plan = file.plan_grow(&meta, size).unwrap();
        file.write(plan, &disk, &meta, &[]).unwrap();
        while file.is_dirty() {
            let limit = TakeLimit { bytes: FLUSH_IO_BYTES, new_blocks: 9, changes: 9, mark: FlushMark::ALL };
            let mut batch = file.flush_take(&meta, limit).unwrap().unwrap();
            let run = BlockRun { start: BlockNo(900_000), blocks: batch.blocks_wanted() };
            file.flush_place(&mut batch, &[run]);
            batch.write_data(&pool, &disk).unwrap();
            file.flush_apply(&batch, &mut meta, &mut attr).unwrap();
            file.flush_done(batch);
        }
        let file = FileState::load(&meta, tree(), &geometry(), pool, size).unwrap();
        let grown =
            file.plan_read(&meta, 0, 1 << 30).unwrap().read(file.pages.pool(), &disk).unwrap().to_vec();
        assert_same(&grown[..got.len()], &got, 0);
        assert!(grown[got.len()..].iter().all(|b| *b == 0), "old bytes behind the end came back");
    }
}
