//! The lease of a mount as its store sees it.

use crate::base::{Error, Result};
use crate::cluster::LeaseSink;
use crate::format::superblock;
use crate::store::Store;
use std::sync::Arc;
use std::time::Duration;

/// Tells a store how long it may write.
pub struct StoreLease(pub Arc<Store>);

impl LeaseSink for StoreLease {
    fn renewed(&self, lease_end: Duration, write_until: Duration) {
        self.0.permit().set_deadlines(write_until, lease_end);
    }

    fn confirm(&self) -> Result<()> {
        let device = &**self.0.device();
        match superblock::load(device) {
            Ok((now, _)) if now.format_id == self.0.format_id() => Ok(()),
            Ok(_) => Err(Error::Device(format!("{}: another volume was made here meanwhile", device.name()))),
            Err(Error::Device(e)) => Err(Error::Device(format!("the volume is gone meanwhile: {e}"))),
            Err(e) => Err(e),
        }
    }

    fn lost(&self, reason: &str) {
        self.0.cut_off(reason);
    }
}
