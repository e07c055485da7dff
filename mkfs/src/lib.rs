//! Making a Shoal volume: choosing the sizes (`plan`), then writing the empty volume (`write`).
mod plan;
mod refuse;
mod write;

pub use plan::{Options, Plan, parse_size, plan};
pub use refuse::check_overwrite;
pub use write::write;

use shoal::base::Result;
use shoal::device::BlockDevice;

/// Plan and write in one step: what tests and tools want.
pub fn make(dev: &dyn BlockDevice, options: &Options) -> Result<Plan> {
    let plan = plan(dev, options)?;
    write(dev, &plan)?;
    Ok(plan)
}
