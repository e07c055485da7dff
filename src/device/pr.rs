//! Persistent reservations of the kernel's block devices.
//!
//! Commands are the ioctls of <linux/pr.h>, which the kernel turns into those of SCSI, NVMe or all paths of a
//! multipath device. Their result is 0, an errno, or a positive status of the device. Reading the keys has
//! ioctls of that kind only since Linux 6.19; before, the device's own command is sent: PERSISTENT RESERVE IN
//! through SG_IO, or Reservation Report through the NVMe passthrough.

use super::reservation::{Answer, Held, Kind, Refused, Report, Reservations};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// _IOC(dir, type, number, size) of <asm-generic/ioctl.h>.
const fn ioc(dir: u64, kind: u8, number: u64, size: usize) -> u64 {
    dir << 30 | (size as u64) << 16 | (kind as u64) << 8 | number
}
const WRITE: u64 = 1;
const READ: u64 = 2;

const REGISTER: u64 = ioc(WRITE, b'p', 200, 24);
const RESERVE: u64 = ioc(WRITE, b'p', 201, 16);
const PREEMPT: u64 = ioc(WRITE, b'p', 203, 24);
const PREEMPT_ABORT: u64 = ioc(WRITE, b'p', 204, 24);
const CLEAR: u64 = ioc(WRITE, b'p', 205, 16);
const READ_KEYS: u64 = ioc(READ | WRITE, b'p', 206, 16);
const READ_RESERVATION: u64 = ioc(READ, b'p', 207, 16);
const SG_IO: u64 = 0x2285;
const NVME_ID: u64 = ioc(0, b'N', 0x40, 0);
const NVME_IO_CMD: u64 = ioc(READ | WRITE, b'N', 0x43, 72);

/// PR_FL_IGNORE_KEY.
const IGNORE_KEY: u32 = 1;
/// A conflict: by SCSI and newer kernels, and what older ones pass on from NVMe.
const CONFLICT: i32 = 0x18;
const NVME_CONFLICT: i32 = 0x83;
/// Bits of an NVMe status that are its code; "do not retry" and "more" are above.
const NVME_CODE: i32 = 0x7ff;
const NVME_NO_COMMAND: i32 = 1;
const NVME_NO_FIELD: i32 = 2;
/// "See the sense data": an illegal request, or a unit attention, which is told once per change.
const CHECK_CONDITION: i32 = 2;
const ATTEMPTS: u32 = 3;
/// Room for so many registrations in a report.
const KEYS_MAX: usize = 1024;
const TIMEOUT_MS: u32 = 30_000;

/// struct pr_registration and struct pr_preempt.
#[repr(C)]
struct TwoKeys {
    old: u64,
    new: u64,
    /// Flags of a registration, kind of a preemption.
    first: u32,
    second: u32,
}

/// struct pr_reservation and struct pr_clear.
#[repr(C)]
struct OneKey {
    key: u64,
    first: u32,
    second: u32,
}

/// struct pr_read_keys.
#[repr(C)]
struct ReadKeys {
    generation: u32,
    count: u32,
    keys: u64,
}

/// struct pr_read_reservation.
#[repr(C)]
#[derive(Default)]
struct ReadReservation {
    key: u64,
    generation: u32,
    kind: u32,
}

/// struct sg_io_hdr.
#[repr(C)]
struct SgIo {
    interface: i32,
    direction: i32,
    command_length: u8,
    sense_length_max: u8,
    iovec_count: u16,
    length: u32,
    data: *mut u8,
    command: *const u8,
    sense: *mut u8,
    timeout_ms: u32,
    flags: u32,
    pack_id: i32,
    usr_ptr: *mut u8,
    status: u8,
    masked_status: u8,
    msg_status: u8,
    sense_length: u8,
    host_status: u16,
    driver_status: u16,
    resid: i32,
    duration_ms: u32,
    info: u32,
}

/// struct nvme_passthru_cmd.
#[repr(C)]
#[derive(Default)]
struct NvmeCommand {
    opcode: u8,
    flags: u8,
    reserved: u16,
    nsid: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    address: u64,
    metadata_length: u32,
    length: u32,
    cdw10: u32,
    cdw11: u32,
    rest: [u32; 4],
    timeout_ms: u32,
    result: u32,
}

const _: () = assert!(size_of::<NvmeCommand>() == 72 && size_of::<SgIo>() == 88);

/// The kernel's reservations on one open block device.
pub struct KernelReservations {
    device: Open,
}

/// What keeps the device open.
enum Open {
    Device(Arc<super::FileDevice>),
    File(File),
}

/// The number of a kind in <linux/pr.h> and in NVMe.
fn number(kind: Kind) -> u32 {
    match kind {
        Kind::RegistrantsOnly => 3,
        Kind::AllRegistrants => 5,
    }
}

fn kind_of(number: u32) -> Option<Kind> {
    [Kind::RegistrantsOnly, Kind::AllRegistrants].into_iter().find(|k| self::number(*k) == number)
}

/// The SCSI status in a result: older kernels add a message byte above it. What went wrong on the way, above
/// that, is no status of the device.
fn scsi_status(result: i32) -> Option<i32> {
    (result >> 16 == 0).then_some(result & 0xff)
}

fn is_conflict(result: i32) -> bool {
    scsi_status(result) == Some(CONFLICT) || result & NVME_CODE == NVME_CONFLICT
}

fn refused(what: &str, result: i32, errno: i32) -> Refused {
    let system = std::io::Error::from_raw_os_error(errno);
    match (result, errno) {
        (1.., _) if is_conflict(result) => Refused::Conflict,
        (1.., _) => Refused::Failed(format!("{what}: the device answered with status {result:#x}")),
        (_, libc::EBADE) => Refused::Conflict,
        (_, libc::EOPNOTSUPP | libc::ENOTTY | libc::EINVAL | libc::ENOSYS | libc::EPERM | libc::EACCES) => {
            Refused::Unsupported(format!("{what}: {system}"))
        }
        _ => Refused::Failed(format!("{what}: {system}")),
    }
}

impl KernelReservations {
    /// On a device that stays open as long as this.
    pub fn new(device: Arc<super::FileDevice>) -> KernelReservations {
        KernelReservations { device: Open::Device(device) }
    }

    /// On a device that is open for nothing else.
    pub fn on(file: File) -> KernelReservations {
        KernelReservations { device: Open::File(file) }
    }

    fn file(&self) -> &File {
        match &self.device {
            Open::Device(device) => device.file(),
            Open::File(file) => file,
        }
    }

    fn ioctl<T>(&self, request: u64, argument: *mut T) -> (i32, i32) {
        // SAFETY: each request is issued with the record that it reads or writes (see the constants), which
        // lives until the call returns.
        let result = unsafe { libc::ioctl(self.file().as_raw_fd(), request as _, argument) };
        (result, std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
    }

    fn command<T>(&self, what: &str, request: u64, mut argument: T) -> Answer<()> {
        let mut attempt = 1;
        loop {
            match self.ioctl(request, &mut argument) {
                (0, _) => return Ok(()),
                // Perhaps only the news that registrations have changed.
                (result @ 1.., _) if scsi_status(result) == Some(CHECK_CONDITION) && attempt < ATTEMPTS => {
                    attempt += 1;
                }
                (result, errno) => return Err(refused(what, result, errno)),
            }
        }
    }

    /// The namespace, if this is NVMe.
    fn namespace(&self) -> Option<u32> {
        match self.ioctl(NVME_ID, std::ptr::null_mut::<u8>()) {
            (nsid @ 1.., _) => Some(nsid as u32),
            _ => None,
        }
    }

    fn nvme(&self, what: &str, mut command: NvmeCommand) -> Answer<()> {
        command.timeout_ms = TIMEOUT_MS;
        match self.ioctl(NVME_IO_CMD, &mut command) {
            (0, _) => Ok(()),
            (result @ 1.., _) if [NVME_NO_COMMAND, NVME_NO_FIELD].contains(&(result & NVME_CODE)) => {
                Err(Refused::Unsupported(format!("{what}: status {result:#x}")))
            }
            (result, errno) => Err(refused(what, result, errno)),
        }
    }

    /// PERSISTENT RESERVE IN.
    fn scsi_in(&self, action: u8, into: &mut [u8]) -> Answer<()> {
        const FROM_DEVICE: i32 = -3;
        let length = u16::try_from(into.len()).unwrap_or(u16::MAX);
        let [high, low] = length.to_be_bytes();
        let command = [0x5e, action, 0, 0, 0, 0, 0, high, low, 0];
        let mut impossible = false;
        for _ in 0..ATTEMPTS {
            let mut sense = [0u8; 32];
            // SAFETY: plain data; all zeros is a valid value.
            let mut io: SgIo = unsafe { std::mem::zeroed() };
            io.interface = i32::from(b'S');
            io.direction = FROM_DEVICE;
            io.command_length = command.len() as u8;
            io.sense_length_max = sense.len() as u8;
            io.length = u32::from(length);
            io.data = into.as_mut_ptr();
            io.command = command.as_ptr();
            io.sense = sense.as_mut_ptr();
            io.timeout_ms = TIMEOUT_MS;
            match self.ioctl(SG_IO, &mut io) {
                (0, _) if io.status == 0 && io.host_status == 0 => return Ok(()),
                (0, _) if i32::from(io.status) == CHECK_CONDITION => impossible = is_illegal_request(&sense),
                (0, _) => {
                    let what = format!("status {:#x}, host {:#x}", io.status, io.host_status);
                    return Err(Refused::Failed(format!("reading the keys: {what}")));
                }
                (result, errno) => return Err(refused("reading the keys", result, errno)),
            }
        }
        Err(match impossible {
            true => Refused::Unsupported("the device does not tell its keys".into()),
            false => Refused::Failed("reading the keys: the device is not ready".into()),
        })
    }

    fn report_scsi(&self) -> Answer<Report> {
        let mut keys = vec![0; 8 + KEYS_MAX * 8];
        self.scsi_in(0, &mut keys)?;
        let mut held = [0; 24];
        self.scsi_in(1, &mut held)?;
        Ok(scsi_report(&keys, &held))
    }

    fn report_nvme(&self, nsid: u32) -> Answer<Report> {
        let mut reply = vec![0u8; 64 + KEYS_MAX * 64];
        // With 16 bytes per host identifier, and with 8 where the controller has only those.
        let mut last = Refused::Unsupported("no Reservation Report".into());
        for extended in [true, false] {
            let command = NvmeCommand {
                opcode: 0x0e,
                nsid,
                address: reply.as_mut_ptr() as u64,
                length: reply.len() as u32,
                cdw10: (reply.len() / 4 - 1) as u32,
                cdw11: u32::from(extended),
                ..NvmeCommand::default()
            };
            match self.nvme("Reservation Report", command) {
                Ok(()) => return Ok(nvme_report(&reply, extended)),
                Err(why) => last = why,
            }
        }
        Err(last)
    }

    /// Linux 6.19 and later.
    fn report_kernel(&self) -> Answer<Report> {
        let mut keys = vec![0u64; KEYS_MAX];
        let mut read = ReadKeys { generation: 0, count: KEYS_MAX as u32, keys: keys.as_mut_ptr() as u64 };
        match self.ioctl(READ_KEYS, &mut read) {
            (0, _) => {}
            (result, errno) => return Err(refused("reading the keys", result, errno)),
        }
        let mut held = ReadReservation::default();
        match self.ioctl(READ_RESERVATION, &mut held) {
            (0, _) => {}
            (result, errno) => return Err(refused("reading the reservation", result, errno)),
        }
        keys.truncate(read.count as usize);
        let held = (held.kind != 0).then(|| {
            let kind = kind_of(held.kind);
            Held { key: if kind == Some(Kind::AllRegistrants) { 0 } else { held.key }, kind }
        });
        Ok(Report { keys, held })
    }
}

/// There is no such command, by the sense data (SPC-4 4.5).
fn is_illegal_request(sense: &[u8; 32]) -> bool {
    const ILLEGAL_REQUEST: u8 = 5;
    match sense[0] & 0x7f {
        0x70 | 0x71 => sense[2] & 0xf == ILLEGAL_REQUEST,
        0x72 | 0x73 => sense[1] & 0xf == ILLEGAL_REQUEST,
        _ => false,
    }
}

fn be(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b))
}

fn le(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// READ KEYS and READ RESERVATION of SPC-4 (6.15.2, 6.15.3).
fn scsi_report(keys: &[u8], held: &[u8; 24]) -> Report {
    let length = (be(&keys[4..8]) as usize).min(keys.len() - 8);
    let held = (be(&held[4..8]) >= 16).then(|| {
        let kind = match held[21] & 0xf {
            5 => Some(Kind::RegistrantsOnly),
            7 => Some(Kind::AllRegistrants),
            _ => None,
        };
        Held { key: if kind == Some(Kind::AllRegistrants) { 0 } else { be(&held[8..16]) }, kind }
    });
    let keys: Vec<u64> = keys[8..8 + length].chunks_exact(8).map(be).collect();
    Report { keys, held }
}

/// The data of Reservation Report (NVMe base, 7.6): a header, and an entry per registered controller.
fn nvme_report(reply: &[u8], extended: bool) -> Report {
    let count = le(&reply[5..7]) as usize;
    let (from, size, key_at, host) = if extended { (64, 64, 8, 16..32) } else { (24, 24, 16, 8..16) };
    let entries: Vec<&[u8]> = reply[from..].chunks_exact(size).take(count).collect();
    let mut hosts: Vec<(&[u8], u64)> =
        entries.iter().map(|e| (&e[host.clone()], le(&e[key_at..key_at + 8]))).collect();
    // A host with several controllers is one nexus.
    hosts.sort_unstable();
    hosts.dedup();
    let holder = entries.iter().find(|e| e[2] & 1 != 0).map(|e| le(&e[key_at..key_at + 8]));
    let number = u32::from(reply[4]);
    let held = (number != 0).then(|| {
        let kind = kind_of(number);
        Held { key: if kind == Some(Kind::AllRegistrants) { 0 } else { holder.unwrap_or(0) }, kind }
    });
    let keys = hosts.into_iter().map(|(_, key)| key).collect();
    Report { keys, held }
}

impl Reservations for KernelReservations {
    fn register(&self, old: u64, new: u64) -> Answer<()> {
        self.command("register", REGISTER, TwoKeys { old, new, first: 0, second: 0 })
    }

    fn replace(&self, new: u64) -> Answer<()> {
        // NVMe: with an old key of 0 the kernel asks for a registration, which conflicts with the one that
        // is there; with any other it asks for its replacement, which fails where there is none.
        let ignoring = |old| TwoKeys { old, new, first: IGNORE_KEY, second: 0 };
        match self.command("register", REGISTER, ignoring(0)) {
            Err(Refused::Conflict) => self.command("register", REGISTER, ignoring(new)),
            other => other,
        }
    }

    fn unregister(&self, key: u64) -> Answer<()> {
        if let Some(nsid) = self.namespace() {
            // The ioctl would only replace the key by 0, and the host stay registered.
            let mut keys = [key.to_le_bytes(), [0; 8]].concat();
            let command = NvmeCommand {
                opcode: 0x0d,
                nsid,
                address: keys.as_mut_ptr() as u64,
                length: keys.len() as u32,
                cdw10: 1,
                ..NvmeCommand::default()
            };
            match self.nvme("Reservation Register", command) {
                Err(Refused::Unsupported(_)) => {}
                other => return other,
            }
        }
        self.command("unregister", REGISTER, TwoKeys { old: key, new: 0, first: 0, second: 0 })
    }

    fn reserve(&self, key: u64, kind: Kind) -> Answer<()> {
        self.command("reserve", RESERVE, OneKey { key, first: number(kind), second: 0 })
    }

    fn preempt(&self, key: u64, victim: u64, kind: Kind, abort: bool) -> Answer<()> {
        let (what, request) = if abort { ("preempt and abort", PREEMPT_ABORT) } else { ("preempt", PREEMPT) };
        self.command(what, request, TwoKeys { old: key, new: victim, first: number(kind), second: 0 })
    }

    fn is_abort_certain(&self) -> bool {
        self.namespace().is_none()
    }

    fn clear(&self, key: u64) -> Answer<()> {
        self.command("clear", CLEAR, OneKey { key, first: 0, second: 0 })
    }

    fn report(&self) -> Answer<Report> {
        match self.report_kernel() {
            Err(_) => match self.namespace() {
                Some(nsid) => self.report_nvme(nsid),
                None => self.report_scsi(),
            },
            report => report,
        }
    }
}

#[cfg(test)]
mod tests;
