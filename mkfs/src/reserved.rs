//! Who is registered with the device by persistent reservations, before a volume is made on it.

use shoal::base::{Error, Result};
use shoal::cluster::keys::{is_of_volume, listed};
use shoal::device::pr::KernelReservations;
use shoal::device::reservation::{Answer, Report, Reservations};
use shoal::device::{BlockDevice, FileDevice, Fitness, fitness};
use shoal::format::superblock;
use std::sync::Arc;

/// Refuse a device that somebody keeps hosts off, or is registered with. The volume that was there is forgotten
/// with mkfs, and with it that a host of its may be paused, with writes queued for what is there then; so this
/// is not overridden. The answer: the device tells that nobody is, and mounts will ask it for reservations.
///
/// # Errors
/// `Device` naming the keys.
pub fn check(device: &Arc<FileDevice>) -> Result<bool> {
    let fitness = fitness(device);
    if let Fitness::Unfit(_) = fitness {
        return Ok(false);
    }
    let format_id = superblock::load(&**device).ok().map(|(volume, _)| volume.format_id);
    let tells = judge(&device.name(), &KernelReservations::new(device.clone()).report(), format_id)?;
    Ok(tells && fitness == Fitness::Fit)
}

fn judge(name: &str, report: &Answer<Report>, format_id: Option<u64>) -> Result<bool> {
    // Whoever cannot tell may have reservations all the same: a mount finds out.
    let Ok(report) = report else { return Ok(false) };
    let keys: Vec<u64> = report.keys.iter().copied().filter(|key| *key != 0).collect();
    let known = |key: &u64| format_id.is_some_and(|id| is_of_volume(id, *key));
    let what = match (keys.is_empty(), report.held.is_some()) {
        (true, false) => return Ok(true),
        (true, true) => "is reserved".to_string(),
        (false, false) => format!("has keys registered: {}", listed(&keys)),
        (false, true) => format!("is reserved, with keys registered: {}", listed(&keys)),
    };
    let whose = match !keys.is_empty() && keys.iter().all(known) {
        true => {
            "by hosts of the volume that is there: they have it mounted, or one that was kept off may be paused"
        }
        false => {
            "by other software, or by hosts of a volume that was here before, of which one may be paused with writes \
             queued"
        }
    };
    Err(Error::Device(format!(
        "{name}: the device {what}, {whose}; not touched. If nothing uses it and no such host is paused, `shoal \
         fence --clear {name}` takes the keys away"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal::base::Incarnation;
    use shoal::cluster::keys::key_of;
    use shoal::device::reservation::{Held, Kind, Refused};

    fn said(keys: &[u64], held: bool, format_id: Option<u64>) -> std::result::Result<bool, String> {
        let held = held.then_some(Held { key: 0, kind: Some(Kind::AllRegistrants) });
        judge("/dev/x", &Ok(Report { keys: keys.to_vec(), held }), format_id).map_err(|e| e.to_string())
    }

    #[test]
    fn a_device_that_nobody_has_or_that_does_not_tell_is_taken() {
        assert_eq!(said(&[], false, None), Ok(true));
        assert_eq!(said(&[0, 0], false, Some(5)), Ok(true), "NVMe hosts that could not be unregistered");
        let none = Err(Refused::Unsupported("no".into()));
        assert_eq!(judge("/dev/x", &none, None), Ok(false));
    }

    #[test]
    fn who_is_registered_is_named() {
        let ours = key_of(5, Incarnation(9));
        let why = said(&[ours], true, Some(5)).unwrap_err();
        assert!(
            why.contains("hosts of the volume that is there") && why.contains("fence --clear /dev/x"),
            "{why}"
        );
        assert!(why.contains(&format!("{ours:#018x}")), "{why}");
        for format_id in [None, Some(6)] {
            let why = said(&[ours], false, format_id).unwrap_err();
            assert!(why.contains("other software") && why.contains(&format!("{ours:#018x}")), "{why}");
        }
        let why = said(&[ours, 0xabcd], true, Some(5)).unwrap_err();
        assert!(why.contains("other software") && why.contains("0x000000000000abcd"), "{why}");
        assert!(said(&[], true, Some(5)).unwrap_err().contains("is reserved"));
    }
}
