//! The timing profile of a volume is changed only while nobody has it, and all hosts go by the same one.

use super::*;
use crate::base::Incarnation;
use crate::cluster::join::Joiner;
use crate::cluster::{profile, tune};
use crate::format::cluster::Claim;
use crate::format::cluster::lobby::ClaimKind;
use crate::format::superblock::TimingProfile;
use TimingProfile::{Default as Usual, San};

/// Their names are told apart here, their times need not be.
fn named(medium: &Arc<Medium>, name: &str, place: Where, profile: TimingProfile) -> (Disk, JoinOptions) {
    let (port, lease) = (medium.port(), Arc::new(Lease::default()));
    let options = options(name, place, &port, &lease);
    (disk_of(port), JoinOptions { profile: Some(profile), patience: Duration::from_secs(4), ..options })
}

fn mount(medium: &Arc<Medium>, name: &str, place: Where, profile: TimingProfile) -> Result<Cluster> {
    let (disk, options) = named(medium, name, place, profile);
    let (cluster, report) = Cluster::join(disk, options)?;
    if !report.replay.is_empty() {
        cluster.recovered(&report.replay)?;
    }
    Ok(cluster)
}

fn set(medium: &Arc<Medium>, place: Where, from: TimingProfile, to: TimingProfile) -> Result<()> {
    let (disk, options) = named(medium, "tune", place, from);
    let mut stored = false;
    let tuned = tune(disk, options, to, false, &mut || stored = true);
    assert_eq!(stored, tuned.is_ok());
    tuned
}

fn now_of(medium: &Arc<Medium>) -> TimingProfile {
    profile(&medium.disk(), Usual).unwrap()
}

#[test]
fn it_is_changed_while_nobody_has_the_volume() {
    for place in [Where::Here, Where::Elsewhere] {
        let medium = Medium::formatted();
        assert_eq!(now_of(&medium), Usual, "as mkfs wrote");
        mount(&medium, "a", place, Usual).unwrap().leave().unwrap();
        set(&medium, place, Usual, San).unwrap();
        assert_eq!(now_of(&medium), San);
        set(&medium, place, San, San).unwrap();
        let why = mount(&medium, "a", place, Usual).err().expect("it goes by other times").to_string();
        assert!(why.contains("san now, not default"), "{why}");
        let a = mount(&medium, "a", place, San).unwrap();
        mount(&medium, "b", place, San).unwrap().leave().unwrap();
        a.leave().unwrap();
        set(&medium, place, San, Usual).unwrap();
        mount(&medium, "a", place, Usual).unwrap().leave().unwrap();
    }
}

#[test]
fn not_under_a_host_that_has_it_nor_behind_one_that_died() {
    for place in [Where::Here, Where::Elsewhere] {
        let medium = Medium::formatted();
        let why = |medium| set(medium, place, Usual, San).unwrap_err().to_string();
        let a = mount(&medium, "a", place, Usual).unwrap();
        assert!(why(&medium).contains("mounted by a (slot 0)"), "{}", why(&medium));
        let joins = mount(&medium, "b", place, San).err().expect("it goes by other times").to_string();
        assert!(joins.contains("default now, not san"), "{joins}");
        drop(a);
        assert!(why(&medium).contains("a (slot 0) did not leave"), "{}", why(&medium));
        std::thread::sleep(QUICK.wait());
        assert!(why(&medium).contains("a (slot 0) did not leave"), "however long ago");
        mount(&medium, "a", place, Usual).unwrap().leave().unwrap();
        set(&medium, place, Usual, San).unwrap();
    }
}

/// It has read the times that it goes by.
#[test]
fn not_while_somebody_asks_to_be_let_in() {
    let medium = Medium::formatted();
    mount(&medium, "a", Where::Elsewhere, Usual).unwrap().leave().unwrap();
    let asks = AtomicBool::new(true);
    let why = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut claim = Claim { kind: ClaimKind::Join, incarnation: Incarnation(9), ..Claim::default() };
            claim.name = "b".into();
            while asks.load(Ordering::Relaxed) {
                claim.sequence += 1;
                medium.disk().write_claim(40, &claim).unwrap();
                std::thread::sleep(QUICK.heartbeat / 2);
            }
        });
        let tuned = set(&medium, Where::Elsewhere, Usual, San);
        asks.store(false, Ordering::Relaxed);
        tuned.unwrap_err().to_string()
    });
    assert!(why.contains("b is just mounting it"), "{why}");
    assert_eq!(now_of(&medium), Usual);
    set(&medium, Where::Elsewhere, Usual, San).unwrap();
}

/// It was let in under them just when they were changed, and leaves by a ballot.
#[test]
fn whoever_has_read_other_times_goes_by_the_view() {
    let medium = Medium::formatted();
    mount(&medium, "a", Where::Elsewhere, Usual).unwrap().leave().unwrap();
    let (disk, options) = named(&medium, "b", Where::Elsewhere, Usual);
    let mut joiner = Joiner::new(disk, options).unwrap();
    assert_eq!(joiner.timing(), QUICK);
    set(&medium, Where::Elsewhere, Usual, San).unwrap();
    joiner.read_views().unwrap();
    assert_eq!(joiner.timing(), Timing::SAN);
}

/// Whoever looked before the change does not mount after it.
#[test]
fn of_a_change_and_mounts_at_the_same_moment_one_prevails() {
    for (round, place) in [Where::Here, Where::Elsewhere].into_iter().cycle().take(12).enumerate() {
        let medium = &Medium::formatted();
        let (tuned, mounted) = std::thread::scope(|scope| {
            let mounts = ["a", "b"].map(|name| {
                scope.spawn(move || {
                    std::thread::sleep(QUICK.heartbeat * round as u32);
                    mount(medium, name, place, Usual)
                })
            });
            let tuned = set(medium, place, Usual, San);
            (tuned, mounts.map(|mount| mount.join().unwrap()))
        });
        assert_eq!(now_of(medium) == San, tuned.is_ok(), "{tuned:?}");
        for mounted in mounted {
            assert_eq!(mounted.is_err(), tuned.is_ok(), "{:?}: {tuned:?}", mounted.err());
        }
    }
}
