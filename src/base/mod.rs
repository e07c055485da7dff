//! What every room may use: ids, errors, the clock, lock names. Level 0.
pub mod block_device;
pub mod clock;
pub mod error;
pub mod ids;
pub mod lock_name;

pub use block_device::{BlockDevice, Discards, IoCounts};
pub use clock::{Clock, SystemClock};
pub use error::{Error, Result};
pub use ids::*;
pub use lock_name::{LockName, Mode};
