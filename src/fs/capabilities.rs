//! What a process may do that asks us for something, and waits for the answer meanwhile: its capabilities.

/// <linux/capability.h>
pub const FSETID: u32 = 4;
pub const SYS_ADMIN: u32 = 21;

/// Has a process a capability where this daemon is, not only in a namespace of its own? Not if it cannot be found: then
/// the kernel does not say who asks.
pub fn has(pid: u32, capability: u32) -> bool {
    process(pid).is_some_and(|status| effective(&status) >> capability & 1 == 1)
}

/// The same if the process acts as the user `uid`. It may be acting for another, with rights that are not its own (a
/// server of files in the kernel does).
pub fn has_as(pid: u32, uid: u32, capability: u32) -> bool {
    process(pid).is_some_and(|s| acts_as(&s) == Some(uid) && effective(&s) >> capability & 1 == 1)
}

/// Its status, if it lives where we do.
fn process(pid: u32) -> Option<String> {
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/user")).ok();
    let ours = namespace("self")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    (namespace(&pid.to_string())? == ours).then_some(status)
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// The effective ones, as proc(5) shows them.
fn effective(status: &str) -> u64 {
    field(status, "CapEff:").and_then(|mask| u64::from_str_radix(mask, 16).ok()).unwrap_or(0)
}

/// The user for accesses to files: real, effective, saved, and this.
fn acts_as(status: &str) -> Option<u32> {
    field(status, "Uid:")?.split_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_do_what() {
        let status = |mask: &str| {
            format!(
                "Name:\tfstrim\nUid:\t1\t2\t3\t4\nCapPrm:\t000001ffffffffff\nCapEff:\t{mask}\nCapBnd:\t0\n"
            )
        };
        assert_eq!(effective(&status("0000000000200000")), 1 << SYS_ADMIN);
        assert_eq!(effective(&status("000001ffffdfffff")) >> SYS_ADMIN & 1, 0);
        assert_eq!(acts_as(&status("0")), Some(4));
        assert_eq!((effective("Name:\tx\n"), acts_as("Name:\tx\nUid:\t1\n")), (0, None));
        assert!(!has(0, SYS_ADMIN), "the kernel cannot say who");
        let (pid, ourselves) = (std::process::id(), std::fs::read_to_string("/proc/self/status").unwrap());
        let uid = acts_as(&ourselves).unwrap();
        for capability in [FSETID, SYS_ADMIN] {
            let ours = effective(&ourselves) >> capability & 1 == 1;
            assert_eq!((has(pid, capability), has_as(pid, uid, capability)), (ours, ours));
            assert!(!has_as(pid, uid + 1, capability), "it acts for another");
        }
    }
}
