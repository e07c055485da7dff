//! What a device makes of being told that ranges are unused, as the kernel describes it.

use super::{Discards, FileDevice, Medium};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Of a file: a hole takes whole blocks of the filesystem below, which are hardly ever larger.
const PAGE: u64 = 4096;

/// See [`crate::base::BlockDevice::discards`]. Where nothing is known, trying tells.
pub(super) fn discards(device: &FileDevice) -> Option<Discards> {
    let unknown = Discards { granule: PAGE, most: u64::MAX };
    let number = match (device.medium(), device.file().metadata()) {
        (Medium::Block, Ok(meta)) => meta.rdev(),
        _ => return Some(unknown),
    };
    let own = format!("/sys/dev/block/{}:{}", libc::major(number), libc::minor(number));
    let queue = queue_of(Path::new(&own));
    limits(&queue).unwrap_or(Some(unknown))
}

/// A partition has its disk's.
fn queue_of(device: &Path) -> PathBuf {
    let partition = device.join("partition").exists();
    device.join(if partition { "../queue" } else { "queue" })
}

/// `None`: not told.
fn limits(queue: &Path) -> Option<Option<Discards>> {
    let number = |name: &str| std::fs::read_to_string(queue.join(name)).ok()?.trim().parse::<u64>().ok();
    let most = number("discard_max_bytes")?;
    let granule = number("discard_granularity").unwrap_or(0).max(PAGE);
    Some((most > 0).then_some(Discards { granule, most: most.max(PAGE) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_of_a_queue() {
        let dir = tempfile::tempdir().unwrap();
        let queue = dir.path();
        assert_eq!(limits(queue), None);
        for (most, granule, expected) in [
            ("0\n", "0\n", None),
            ("2147450880\n", "512\n", Some(Discards { granule: 4096, most: 2_147_450_880 })),
            ("65536\n", "1048576\n", Some(Discards { granule: 1 << 20, most: 65536 })),
        ] {
            std::fs::write(queue.join("discard_max_bytes"), most).unwrap();
            std::fs::write(queue.join("discard_granularity"), granule).unwrap();
            assert_eq!(limits(queue), Some(expected), "{most}");
        }
    }

    #[test]
    fn a_partition_asks_its_disk() {
        let dir = tempfile::tempdir().unwrap();
        let part = dir.path().join("disk1");
        std::fs::create_dir_all(&part).unwrap();
        assert_eq!(queue_of(&part), part.join("queue"));
        std::fs::write(part.join("partition"), "1").unwrap();
        assert_eq!(queue_of(&part), part.join("../queue"));
    }
}
