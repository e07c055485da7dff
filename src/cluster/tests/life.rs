//! Joining, owning, leaving.

use super::*;
use crate::base::SlotId;
use crate::cluster::view::{live, slots};
use crate::format::cluster::{Adopter, SlotState};

#[test]
fn alone_on_a_new_volume() {
    let medium = Medium::formatted();
    let begun = now();
    let a = join(&medium, "a", Where::Here);
    assert!(now() - begun < QUICK.lease, "an image of this machine needs no waiting");
    assert_eq!((a.report.slot, a.report.first, a.report.replay.len()), (SlotId(0), true, 0));
    assert!(*a.lease.write_until.lock() > now());
    let members = a.cluster.membership();
    assert!(members.alone());
    assert!((0..12).all(|g| members.owner_of(AgNo(g)) == (Owner::Adopter(SlotId(0)), Token(1))));
    // Own groups come along in one write, those of clean slots one by one.
    assert_eq!(adopt(&a, 4), Ok(Token(2)));
    assert_eq!(adopt(&a, 5), Ok(Token(2)));
    let members = a.cluster.membership();
    let mine = |g| members.owner_of(AgNo(g)).0 == Owner::Master(SlotId(0));
    assert_eq!((0..12).filter(|g| mine(*g)).collect::<Vec<_>>(), [0, 4, 5, 8]);
    assert_eq!(adopt(&a, 0), Ok(Token(2)), "again costs nothing");
    assert!(matches!(adopt(&a, 99), Err(Error::Busy(_))));
    a.cluster.leave().unwrap();
    assert!(matches!(a.cluster.adopt(AgNo(6)), Err(Error::Busy(_) | Error::Halted(_))));
    assert!(read_status(&medium.disk(), None).unwrap().is_clean());

    let b = join(&medium, "b", Where::Here);
    assert!(b.report.replay.is_empty());
    assert_eq!(adopt(&b, 5), Ok(Token(3)), "a new life takes a new token");
}

#[test]
fn a_first_mount_elsewhere_waits_for_its_claim_only() {
    let medium = Medium::formatted();
    let begun = now();
    let a = join(&medium, "a", Where::Elsewhere);
    assert!(now() - begun >= QUICK.claim_wait());
    assert!(a.report.first);
}

#[test]
fn joiners_are_let_in_and_all_agree() {
    let medium = Medium::formatted();
    let a = join(&medium, "a", Where::Elsewhere);
    let (b, c) = (join(&medium, "b", Where::Elsewhere), join(&medium, "c", Where::Here));
    assert_eq!([&b, &c].map(|h| (h.report.slot, h.report.first)), [(SlotId(1), false), (SlotId(2), false)]);
    let hosts = [&a, &b, &c];
    eventually("all know the view", || hosts.iter().all(|h| h.cluster.membership().live().count() == 3));
    // b masters its slot's groups, a those of slot 3; everybody comes to know.
    assert_eq!(adopt(&b, 1), Ok(Token(2)));
    assert_eq!(adopt(&a, 3), Ok(Token(2)));
    assert!(matches!(adopt(&c, 3), Err(Error::Busy(_))), "not c's to take");
    let knows = |h: &&Host| {
        let m = h.cluster.membership();
        m.owner_of(AgNo(1)) == (Owner::Master(SlotId(1)), Token(2))
            && m.owner_of(AgNo(3)) == (Owner::Master(SlotId(0)), Token(2))
    };
    eventually("all know the owners", || hosts.iter().all(knows));
    b.cluster.leave().unwrap();
    let heir = |h: &Host| h.cluster.membership().owner_of(AgNo(1));
    eventually("a looks after b's slot", || {
        heir(&a) == (Owner::Adopter(SlotId(0)), Token(2)) && heir(&a) == heir(&c)
    });
    let status = read_status(&medium.disk(), Some(QUICK.heartbeat * 8)).unwrap();
    assert_eq!(status.occupied().filter(|h| h.moving == Some(true)).count(), 2, "{status:?}");
    a.cluster.leave().unwrap();
    c.cluster.leave().unwrap();
    let status = read_status(&medium.disk(), Some(QUICK.heartbeat * 2)).unwrap();
    assert!(status.is_clean() && !status.is_anybody_alive());
    assert!(status.hosts.iter().all(|h| h.state == SlotState::Clean { adopter: Adopter::NextJoiner }));
}

#[test]
fn a_full_volume_refuses_by_name() {
    let medium = Medium::formatted();
    let hosts: Vec<_> = (0..SLOTS).map(|i| join(&medium, &format!("h{i}"), Where::Here)).collect();
    let error = try_join(&medium, "late", Where::Here).err().unwrap();
    let error = error.to_string();
    assert!(error.contains("slots are taken"), "{error}");
    (0..SLOTS).for_each(|i| assert!(error.contains(&format!("h{i} (slot {i})")), "{error}"));
    hosts[2].cluster.leave().unwrap();
    assert_eq!(join(&medium, "late", Where::Here).report.slot, SlotId(2));
}

fn race(place: Where) {
    let medium = Medium::formatted();
    let threads: Vec<_> = (0..SLOTS)
        .map(|i| {
            let medium = medium.clone();
            std::thread::spawn(move || join(&medium, &format!("h{i}"), place))
        })
        .collect();
    let hosts: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    let mut taken: Vec<_> = hosts.iter().map(|h| h.report.slot.0).collect();
    taken.sort();
    assert_eq!(taken, [0, 1, 2, 3]);
    eventually("one view", || {
        let views: Vec<_> = hosts.iter().map(|h| h.cluster.membership().view.clone()).collect();
        views.iter().all(|v| *v == views[0]) && live(&views[0]) == 15
    });
    let members = hosts[0].cluster.membership();
    for host in &hosts {
        let incarnation = slots(&members.view).nth(host.report.slot.0.into()).unwrap().1.incarnation;
        assert_eq!(incarnation, host.report.incarnation);
        assert!(host.report.replay.is_empty());
    }
}

#[test]
fn four_first_mounts_at_once_on_one_machine() {
    race(Where::Here);
}

#[test]
fn four_first_mounts_at_once_on_four_machines() {
    race(Where::Elsewhere);
}

#[test]
fn an_idle_pair_costs_little() {
    struct Quiet;
    impl LockPort for Quiet {
        fn on_entries(&self, _: Duration, _: SlotId, _: &[Entry]) {}
        fn outgoing(&self, to: &[SlotId]) -> Vec<Vec<Entry>> {
            vec![vec![]; to.len()]
        }
        fn on_view(&self, _: &Membership) {}
        fn tick(&self, _: Duration) {}
    }
    let medium = Medium::formatted();
    let hosts = [join(&medium, "a", Where::Here), join(&medium, "b", Where::Here)];
    for host in &hosts {
        host.cluster.start(Arc::new(Quiet)).unwrap();
    }
    std::thread::sleep(Duration::from_millis(1500));
    let count =
        |h: &Host| (h.port.requests.load(Ordering::Relaxed), h.lease.renewals.load(Ordering::Relaxed));
    let before = hosts.each_ref().map(count);
    std::thread::sleep(Duration::from_secs(1));
    // Per beat: the own cell read and written, the row, and the lobby for the lowest member. At one beat per second that
    // leaves 17 for the polls.
    for ((host, before), per_beat) in hosts.iter().zip(before).zip([4, 3]) {
        let after = count(host);
        let polls = (after.0 - before.0).saturating_sub(per_beat * (after.1 - before.1));
        assert!((3..=17).contains(&polls), "{polls} polls a second when idle");
    }
}

/// Its look at the claim counts from when it began: whoever takes the slot over goes by that.
#[test]
fn a_first_mount_writes_no_ballot_behind_an_old_look_at_its_claim() {
    let medium = Medium::formatted();
    let port = medium.port();
    let regions = geometry().regions();
    let (ballots, lobby) =
        (regions.ballots * 4096..regions.ledgers * 4096, regions.lobby * 4096..regions.end * 4096);
    let looks = Arc::<Mutex<(u32, Duration)>>::default();
    let (seen, oldest) = (looks.clone(), Arc::<Mutex<Duration>>::default());
    let longest = oldest.clone();
    port.set_hook(move |op, offset| {
        if op == "read" && lobby.contains(&offset) {
            let mut looks = seen.lock();
            *looks = (looks.0 + 1, now());
            // Before and behind the claim; then before each write of a ballot.
            if matches!(looks.0, 3 | 4 | 7) {
                std::thread::sleep(QUICK.guard * 2);
            }
        }
        if op == "write" && ballots.contains(&offset) {
            let mut longest = longest.lock();
            *longest = longest.max(now() - seen.lock().1);
        }
        true
    });
    let host = join_by(port.clone(), "a", Where::Elsewhere).unwrap();
    assert!(looks.lock().0 > 7 && host.report.first, "nothing was tested");
    assert!(*oldest.lock() < QUICK.guard, "{:?}", oldest.lock());
}
