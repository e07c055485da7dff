//! Random joins, leaves, crashes, recoveries and adoptions on several threads; the oracle watches
//! that no slot has two living hosts and no token of a group two masters.

use super::*;
use crate::base::SlotId;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;

#[derive(Default)]
struct Oracle {
    slots: Mutex<BTreeSet<SlotId>>,
    /// Which mount took a group under a token.
    tokens: Mutex<BTreeMap<(u32, Token), u64>>,
    adoptions: AtomicU64,
}

impl Oracle {
    fn took(&self, ag: u32, token: Token, mount: u64) {
        let first = *self.tokens.lock().entry((ag, token)).or_insert(mount);
        assert_eq!(first, mount, "two mounts took group {ag} under {token:?}");
        self.adoptions.fetch_add(1, Ordering::Relaxed);
    }
}

fn one_life(medium: &Arc<Medium>, oracle: &Oracle, rng: &mut StdRng, name: &str) {
    let Ok(host) = try_join(medium, name, Where::Here) else { return };
    let (slot, mount) = (host.report.slot, host.report.incarnation.0);
    assert!(oracle.slots.lock().insert(slot), "two hosts in slot {slot}");
    if !host.report.replay.is_empty() && rng.random_ratio(5, 6) {
        assert!(host.cluster.membership().alone(), "journals are replayed before others come");
        host.cluster.recovered(&host.report.replay).unwrap();
    }
    for _ in 0..rng.random_range(0..12) {
        let ag = rng.random_range(0..12);
        if let Ok(token) = host.cluster.adopt(AgNo(ag)) {
            let members = host.cluster.membership();
            assert_eq!(members.owner_of(AgNo(ag)), (Owner::Master(slot), token));
            oracle.took(ag, token, mount);
        }
        std::thread::sleep(Duration::from_millis(rng.random_range(0..40)));
    }
    // Until here the slot is ours; what follows makes it free.
    oracle.slots.lock().remove(&slot);
    if rng.random_ratio(4, 5) {
        // Refused if our own journal was not replayed; then we crash instead.
        let _ = host.cluster.leave();
    }
    drop(host);
}

fn churn(seed: u64) -> u64 {
    let medium = Medium::formatted();
    let oracle = Arc::new(Oracle::default());
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..3)
        .map(|i| {
            let (medium, oracle, stop) = (medium.clone(), oracle.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut rng = StdRng::seed_from_u64(seed * 100 + i);
                for life in 0..6 {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    one_life(&medium, &oracle, &mut rng, &format!("{i}.{life}"));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    // However it ended, a next mount gets in and recovers all.
    let last = join(&medium, "last", Where::Here);
    last.cluster.recovered(&last.report.replay).unwrap();
    for ag in 0..12 {
        let token = adopt(&last, ag).unwrap();
        oracle.took(ag, token, last.report.incarnation.0);
    }
    last.cluster.leave().unwrap();
    assert!(read_status(&medium.disk(), None).unwrap().is_clean());
    oracle.adoptions.load(Ordering::Relaxed)
}

#[test]
fn lives_come_and_go() {
    let adoptions: u64 = (1..=3).map(churn).sum();
    assert!(adoptions > 36, "{adoptions}");
}
