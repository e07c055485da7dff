//! What the replies of the ioctls and of the devices mean.

use super::*;

#[test]
fn results_of_the_ioctls_are_told_apart() {
    assert_eq!(refused("x", 0x18, 0), Refused::Conflict);
    assert_eq!(refused("x", 0x118, 0), Refused::Conflict, "iSCSI on Linux 6.1");
    assert!(matches!(refused("x", 0x10018, 0), Refused::Failed(_)), "the way to the device");
    assert_eq!(refused("x", 0x4083, 0), Refused::Conflict, "NVMe, do not retry");
    assert_eq!(refused("x", -1, libc::EBADE), Refused::Conflict);
    assert!(matches!(refused("x", 2, 0), Refused::Failed(_)));
    assert!(matches!(refused("x", -1, libc::EIO), Refused::Failed(_)));
    for errno in [libc::EOPNOTSUPP, libc::ENOTTY, libc::EPERM] {
        assert!(matches!(refused("x", -1, errno), Refused::Unsupported(_)));
    }
}

#[test]
fn numbers_of_the_ioctls_are_those_of_the_header() {
    assert_eq!([REGISTER, RESERVE, PREEMPT], [0x4018_70c8, 0x4010_70c9, 0x4018_70cb]);
    assert_eq!([PREEMPT_ABORT, CLEAR, NVME_IO_CMD], [0x4018_70cc, 0x4010_70cd, 0xc048_4e43]);
}

#[test]
fn a_device_that_cannot_tell_is_not_one_that_is_not_ready() {
    let sense = |bytes: [u8; 3]| std::array::from_fn(|i| bytes.get(i).copied().unwrap_or(0));
    assert!(is_illegal_request(&sense([0x70, 0, 5])) && is_illegal_request(&sense([0x72, 5, 0x20])));
    assert!(!is_illegal_request(&sense([0xf0, 0, 6])) && !is_illegal_request(&sense([0x72, 6, 5])));
    assert!(!is_illegal_request(&[0; 32]));
}

#[test]
fn scsi_replies_are_read() {
    let mut keys = vec![0; 64];
    keys[..8].copy_from_slice(&[0, 0, 0, 7, 0, 0, 0, 16]);
    keys[8..24].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0xa, 0, 0, 0, 0, 0, 0, 1, 2]);
    let mut held = [0; 24];
    assert_eq!(scsi_report(&keys, &held).held, None);
    held[7] = 16;
    held[15] = 0xa;
    held[21] = 5;
    let report = scsi_report(&keys, &held);
    assert_eq!(report.keys, [0xa, 0x102]);
    assert_eq!(report.held, Some(Held { key: 0xa, kind: Some(Kind::RegistrantsOnly) }));
    held[21] = 7;
    assert_eq!(scsi_report(&keys, &held).held, Some(Held { key: 0, kind: Some(Kind::AllRegistrants) }));
    held[21] = 1;
    assert_eq!(scsi_report(&keys, &held).held.unwrap().kind, None);
    // A length beyond what was asked for.
    keys[4..8].fill(0xff);
    assert_eq!(scsi_report(&keys, &held).keys.len(), 7);
}

#[test]
fn nvme_replies_are_read() {
    let mut reply = vec![0; 64 * 4];
    (reply[4], reply[5]) = (5, 3);
    for (n, (host, key)) in [(1, 0xa_u64), (1, 0xa), (2, 0xb)].into_iter().enumerate() {
        let entry = &mut reply[64 + n * 64..][..64];
        entry[8..16].copy_from_slice(&key.to_le_bytes());
        entry[16] = host;
    }
    let report = nvme_report(&reply, true);
    assert_eq!(report.keys, [0xa, 0xb], "two controllers of one host are one nexus");
    assert_eq!(report.held, Some(Held { key: 0, kind: Some(Kind::AllRegistrants) }));
    let mut short = vec![0; 24 * 3];
    (short[4], short[5]) = (3, 1);
    short[24 + 2] = 1;
    short[24 + 8] = 9;
    short[24 + 16] = 0xc;
    let report = nvme_report(&short, false);
    assert_eq!(report.held, Some(Held { key: 0xc, kind: Some(Kind::RegistrantsOnly) }));
    assert_eq!(nvme_report(&[0; 64], true), Report::default());
}
