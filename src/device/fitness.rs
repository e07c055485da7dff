//! Whether persistent reservations fit a device: they cover whole disks, and each way to one.

use super::{FileDevice, Medium};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// May reservations of a device be used?
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fitness {
    Fit,
    /// Only where the administrator asks for them: why.
    OnRequest(String),
    /// Never: why.
    Unfit(String),
}

/// What kind of device it is, by its number in sysfs. Whether it has reservations only trying tells.
pub fn fitness(device: &FileDevice) -> Fitness {
    if device.medium() == Medium::File {
        return Fitness::Unfit("an image file has no reservations".into());
    }
    let Ok(meta) = device.file().metadata() else {
        return Fitness::Unfit("the device cannot be asked what it is".into());
    };
    let number = meta.rdev();
    let sysfs = format!("/sys/dev/block/{}:{}", libc::major(number), libc::minor(number));
    let sysfs = Path::new(&sysfs);
    if sysfs.join("partition").exists() {
        return Fitness::Unfit("it is a partition, and reservations cover the whole disk".into());
    }
    match std::fs::read_to_string(sysfs.join("dm/uuid")) {
        Ok(uuid) if uuid.starts_with("mpath-") => Fitness::OnRequest(
            "a path of a multipath device that comes up later is not registered, and halts its host".into(),
        ),
        Ok(_) => Fitness::Unfit("it is a mapped device, and reservations cover the whole disks below".into()),
        Err(_) => Fitness::Fit,
    }
}
