//! The timing profile of a volume is changed only while nobody has it, and all hosts go by the same one.

use super::*;
use crate::cluster::{profile, tune};
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
