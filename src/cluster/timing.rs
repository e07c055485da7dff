//! All times of the cluster protocol, and the inequalities they must obey.
//!
//! The worst case, walked through. A host D writes its last heartbeat at its own time t, reads the
//! row and the newest view, finds itself a member, and may write shared blocks until t + lease -
//! guard; a write submitted at the last instant may take `write_life` until it is on the medium or
//! can never be. A host A first sees that heartbeat at its own time o; the beat was submitted before
//! o, so D's last effect is at most lease + write_life after o on a perfect clock. D's clock may be
//! slow by `DRIFT` (its lease lasts longer in A's eyes) and A's may be fast by as much: hence
//! `wait = (1 + DRIFT) * (lease / (1 - DRIFT) + write_life)`. A has published the exclusion and
//! looked at D's cell again before it acts, so no renewal of D can have missed the exclusion.
//!
//! Not covered: a host paused between its check of the lease and the submission for longer than
//! `guard` (a paused virtual machine). Only fencing at the target covers that.

use crate::format::superblock::TimingProfile;
use std::time::Duration;

/// Most that two clocks may differ in rate.
pub const DRIFT: f64 = 1e-3;

/// How long umount(2) waits for a host that leaves once nothing it has written can be lost any more: longer than others
/// take over from one that died in most cases (62 s at the `san` profile and by command, and what the command takes; two
/// deaths one after the other may take 106 s), shorter than what systemd gives a unit to stop, and than what the kernel
/// takes for a hung task. It leaves all the same afterwards.
pub const LEAVE_MAX: Duration = Duration::from_secs(75);

/// A timing profile. All members of a volume use the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timing {
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// How long a confirmed renewal lasts, from before its heartbeat was written.
    pub lease: Duration,
    /// How long before its end shared writes stop being submitted: the longest pause between check
    /// and submission.
    pub guard: Duration,
    /// A heartbeat that stands still for so long under gap-free polling makes its host silent.
    pub suspicion: Duration,
    /// Whole life of a submitted write, retries below us included.
    pub write_life: Duration,
}

impl Timing {
    /// Ordinary disks and cloud volumes.
    pub const DEFAULT: Timing = Timing {
        heartbeat: Duration::from_secs(1),
        lease: Duration::from_secs(10),
        guard: Duration::from_secs(2),
        suspicion: Duration::from_secs(12),
        write_life: Duration::from_secs(10),
    };
    /// Storage networks with path failover.
    pub const SAN: Timing = Timing {
        heartbeat: Duration::from_secs(2),
        lease: Duration::from_secs(20),
        guard: Duration::from_secs(4),
        suspicion: Duration::from_secs(22),
        write_life: Duration::from_secs(30),
    };
    /// Several mounts on one machine.
    pub const TEST: Timing = Timing {
        heartbeat: Duration::from_millis(200),
        lease: Duration::from_secs(2),
        guard: Duration::from_millis(400),
        suspicion: Duration::from_millis(2200),
        write_life: Duration::from_millis(500),
    };

    /// The times of a profile.
    pub fn of(profile: TimingProfile) -> Timing {
        match profile {
            TimingProfile::Default => Timing::DEFAULT,
            TimingProfile::San => Timing::SAN,
            TimingProfile::Test => Timing::TEST,
        }
    }

    /// How long after a host's last heartbeat was first seen none of its writes can land any more.
    pub fn wait(&self) -> Duration {
        (self.lease.div_f64(1.0 - DRIFT) + self.write_life).mul_f64(1.0 + DRIFT)
    }

    /// How long after that its lease is over, for the slowest of clocks.
    pub fn lease_wait(&self) -> Duration {
        self.lease.div_f64(1.0 - DRIFT).mul_f64(1.0 + DRIFT)
    }

    /// How long a first mount's claim must stand before it counts: longer than any write that was
    /// submitted when the claim was not visible yet.
    pub fn claim_wait(&self) -> Duration {
        self.write_life.mul_f64(1.0 + DRIFT)
    }

    /// How long a first mount's own claim must have stood before it writes a ballot: whoever had the claim
    /// before looked at it at most a guard time before its last write.
    pub fn claim_hold(&self) -> Duration {
        (self.write_life + self.guard).mul_f64(1.0 + DRIFT)
    }

    /// Longest pause between two polls of the heartbeat row that still counts as gap-free.
    pub fn gap_max(&self) -> Duration {
        self.heartbeat * 2
    }

    /// The first inequality that does not hold.
    pub fn violated(&self) -> Option<&'static str> {
        let rules = [
            (self.lease >= self.heartbeat * 4, "a lease outlives three missed beats and their I/O"),
            (self.guard < self.lease / 2, "the guard leaves time to write"),
            (self.guard >= self.heartbeat * 2, "the guard covers a scheduling pause of two beats"),
            (self.suspicion > self.lease_wait(), "nobody is suspected whose lease runs"),
            (self.suspicion >= self.heartbeat * 6, "a stall of a few beats suspects nobody"),
            (self.wait() >= self.lease + self.write_life, "the wait covers lease and write life"),
            (self.claim_wait() > self.write_life, "a claim waits for every write before it"),
        ];
        rules.iter().find(|(holds, _)| !holds).map(|(_, rule)| *rule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_obey_the_inequalities() {
        for (timing, takeover_ms) in [(Timing::DEFAULT, 20_500), (Timing::SAN, 51_000), (Timing::TEST, 2_600)]
        {
            assert_eq!(timing.violated(), None);
            assert!(timing.wait().as_millis() <= takeover_ms, "{:?}", timing.wait());
        }
        assert!(Timing { guard: Timing::TEST.lease, ..Timing::TEST }.violated().is_some());
    }
}
