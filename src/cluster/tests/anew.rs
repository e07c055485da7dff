//! Machines that mount again while their last mount is dead: no command is run for them, and none is believed
//! to be gone that only looks like one.

use super::command::{
    MACHINE_A, MACHINE_B, MACHINE_C, join_by_fence, join_by_program, join_with, recover_at_once,
};
use super::*;
use crate::base::{Incarnation, SlotId};
use crate::cluster::anew::{Again, Look};
use crate::cluster::fencer::{Cut, Fence, Victim};
use crate::format::cluster::lobby::ClaimKind;
use crate::format::cluster::{Claim, FenceClass, SlotState};
use crate::format::layout::LOBBY_CELLS;

type Machine = ([u8; 16], [u8; 16]);

/// Its command never succeeds.
fn fails(medium: &Arc<Medium>, name: &str, machine: Machine) -> Result<Host> {
    join_by_program(&medium.port(), name, machine, "/bin/false", Box::new(|| ())).0
}

/// `a` lives, `b` has died; does a mount of this name and machine get in, so much later?
fn is_let_in(name: &str, machine: Machine, later: Duration) -> Result<Host> {
    let medium = Medium::formatted();
    let a = Arc::new(fails(&medium, "a", MACHINE_A).unwrap());
    recover_at_once(&a);
    drop(fails(&medium, "b", MACHINE_B).unwrap());
    std::thread::sleep(later);
    let again = fails(&medium, name, machine);
    assert!(a.lease.lost.lock().is_none());
    again
}

#[test]
fn a_machine_that_was_started_anew_is_let_in_without_a_command() {
    is_let_in("b", (MACHINE_B.0, [9; 16]), Duration::ZERO).unwrap();
}

#[test]
fn a_machine_whose_daemon_died_is_let_in_without_a_command() {
    is_let_in("b", MACHINE_B, Duration::ZERO).unwrap();
}

#[test]
fn a_machine_of_another_name_or_identity_is_not_the_one_that_died() {
    for (name, machine) in [("c", (MACHINE_B.0, [9; 16])), ("b", (MACHINE_C.0, [9; 16]))] {
        // Before that nobody is dead.
        let why = is_let_in(name, machine, QUICK.suspicion * 3).err().expect("it was let in").to_string();
        assert!(why.contains("a cannot keep b (slot 1) off the disk"), "{why}");
    }
}

/// A new name, which is not set yet when it mounts for the first time; or a clone.
#[test]
fn a_machine_that_asks_under_another_name_is_told_of_and_not_cut() {
    let medium = Medium::formatted();
    let (a, noted) = join_with(&medium.port(), "a", MACHINE_A);
    let a = Arc::new(a.unwrap());
    recover_at_once(&a);
    drop(fails(&medium, "b", MACHINE_B).unwrap());
    let why = fails(&medium, "other", (MACHINE_B.0, [9; 16])).err().expect("it was let in").to_string();
    assert!(why.contains("a cannot keep b (slot 1) off the disk"), "{why}");
    assert!(why.contains("other asks") && why.contains("/etc/machine-id"), "{why}");
    assert!(!noted.victims.lock().is_empty());
    // It asks no more: whatever it was, b is dead.
    let is_clean = || matches!(a.cluster.membership().view.slots[1].state, SlotState::Clean { .. });
    eventually("b is recovered", is_clean);
}

/// Nobody is switched off while it mounts.
#[test]
fn after_the_death_of_all_those_who_mount_again_get_in() {
    for sign in [Sign::Asks, Sign::Says] {
        let medium = &Medium::formatted();
        drop(MACHINES.map(|(name, machine)| fails(medium, name, machine).unwrap()));
        all_mount_again(medium, &MACHINES, Fails::but_for(sign));
    }
}

/// The class that they had before promised no command, nor do they need one.
#[test]
fn those_who_died_under_leases_get_in_too() {
    let medium = &Medium::formatted();
    let under_leases = |(name, (host, boot)): (&str, Machine)| {
        let (port, lease) = (medium.port(), Arc::new(Lease::default()));
        let mut options = options(name, Where::Elsewhere, &port, &lease);
        (options.host, options.boot, options.file.rdev) = (host, boot, 7);
        Cluster::join(disk_of(port), options).unwrap()
    };
    drop(MACHINES.map(under_leases));
    all_mount_again(medium, &MACHINES, Fails::but_for(Sign::Asks));
}

/// One of them has the claim when its command fails, and then another one.
#[test]
fn who_cannot_keep_a_third_off_is_not_cut_by_the_next_first_mount() {
    for sign in [Sign::Asks, Sign::Says] {
        let medium = &Medium::formatted();
        drop(MACHINES.map(|(name, machine)| fails(medium, name, machine).unwrap()));
        let command = Arc::new(Fails { sign, succeeds_after: 2, victims: Mutex::default() });
        all_mount_again(medium, &MACHINES[..2], command.clone());
        let victims = command.victims.lock();
        assert!(victims.len() > 2 && victims.iter().all(|slot| *slot == SlotId(2)), "{victims:?}");
    }
}

/// Its machine is up and well, but it asks no more.
#[test]
fn who_has_given_up_is_not_cut_by_the_next_first_mount() {
    let medium = &Medium::formatted();
    drop(MACHINES.map(|(name, machine)| fails(medium, name, machine).unwrap()));
    let why = |name, host| fails(medium, name, (host, [9; 16])).err().expect("it was mounted").to_string();
    let of_b = why("b", MACHINE_B.0);
    assert!(of_b.contains("a (slot 0) cannot be kept off"), "{of_b}");
    let of_a = why("a", MACHINE_A.0);
    assert!(of_a.contains("c (slot 2) cannot be kept off"), "{of_a}");
}

/// The one that was refused says nothing of the one that lived.
#[test]
fn a_clone_that_was_refused_leaves_nothing_behind_to_be_believed() {
    let medium = &Medium::formatted();
    let [a, b] = [("a", MACHINE_A), ("b", MACHINE_B)].map(|(n, machine)| fails(medium, n, machine).unwrap());
    let why = fails(medium, "a", (MACHINE_A.0, [9; 16])).err().expect("it was let in").to_string();
    assert!(why.contains("machine-id"), "{why}");
    drop((a, b));
    let why = fails(medium, "c", MACHINE_C).err().expect("it was mounted").to_string();
    assert!(why.contains("a (slot 0) cannot be kept off"), "{why}");
}

/// They stand in all the cells that are there for those who wait.
#[test]
fn who_mounts_again_is_seen_among_claims_of_mounts_that_were_killed() {
    for sign in [Sign::Asks, Sign::Says] {
        let medium = &Medium::formatted();
        drop(MACHINES.map(|(name, machine)| fails(medium, name, machine).unwrap()));
        for cell in LOBBY_CELLS / 2..LOBBY_CELLS {
            let incarnation = Incarnation(1000 + u64::from(cell));
            let claim = Claim { kind: ClaimKind::Join, incarnation, sequence: 5, ..Claim::default() };
            medium.disk().write_claim(cell, &claim).unwrap();
        }
        all_mount_again(medium, &MACHINES, Fails::but_for(sign));
    }
}

const MACHINES: [(&str, Machine); 3] = [("a", MACHINE_A), ("b", MACHINE_B), ("c", MACHINE_C)];

/// By what a machine that mounts again is known.
#[derive(Clone, Copy, PartialEq)]
enum Sign {
    Asks,
    /// Which of its mounts are over.
    Says,
}

/// A program that fails for so long, or for ever, but for whom is known by one sign alone.
struct Fails {
    sign: Sign,
    succeeds_after: usize,
    victims: Mutex<Vec<SlotId>>,
}

impl Fails {
    fn but_for(sign: Sign) -> Arc<Fails> {
        Arc::new(Fails { sign, succeeds_after: 0, victims: Mutex::default() })
    }
}

impl Fence for Fails {
    fn cut(&self, victim: &Victim) -> Result<Cut> {
        match (self.sign, victim.again.is_some(), victim.over) {
            (Sign::Asks, true, _) | (Sign::Says, _, true) => {
                return Ok(Cut { how: "it mounts again".into(), settle: QUICK.claim_wait() });
            }
            // The other one shows later.
            (Sign::Says, true, false) => return Err(Error::Device("it has not said so yet".into())),
            _ => {}
        }
        let mut victims = self.victims.lock();
        victims.push(victim.slot);
        match self.succeeds_after {
            1.. if victims.len() > self.succeeds_after => {
                Ok(Cut { how: "it is off".into(), settle: QUICK.claim_wait() })
            }
            _ => Err(Error::Device("its power switch does not answer".into())),
        }
    }
}

fn all_mount_again(medium: &Arc<Medium>, machines: &[(&'static str, Machine)], command: Arc<Fails>) {
    medium.wordless.store(command.sign == Sign::Asks, Ordering::Relaxed);
    let again: Vec<_> = std::thread::scope(|scope| {
        let mount = |(name, (host, _)): &(&'static str, Machine)| {
            let (name, machine, command) = (*name, (*host, [9; 16]), command.clone());
            // A first mount has no proof that its own machine's last one is over but its name.
            let fence = Arc::new(OfMachine { host: *host, command });
            scope.spawn(move || {
                let mounted = join_by_fence(&medium.port(), name, machine, fence).map(Arc::new);
                if let Ok(mounted) = &mounted {
                    if mounted.report.first {
                        mounted.cluster.recovered(&mounted.report.replay).unwrap();
                    }
                    recover_at_once(mounted);
                }
                mounted
            })
        };
        let mounts: Vec<_> = machines.iter().map(mount).collect();
        mounts.into_iter().map(|mount| mount.join().unwrap()).collect()
    });
    let again: Vec<_> = again.into_iter().map(Result::unwrap).collect();
    assert_eq!(again.iter().filter(|host| host.report.first).count(), 1);
    assert!(again.iter().all(|host| host.lease.lost.lock().is_none()));
}

struct OfMachine {
    host: [u8; 16],
    command: Arc<Fails>,
}

impl Fence for OfMachine {
    fn cut(&self, victim: &Victim) -> Result<Cut> {
        match victim.host == self.host {
            true => Ok(Cut { how: "it was this machine".into(), settle: QUICK.claim_wait() }),
            false => self.command.cut(victim),
        }
    }
}

const FILE: DeviceFile = DeviceFile { dev: 1, ino: 2, rdev: 7 };

fn lobby(sequence: u64, incarnation: u64) -> Vec<Option<Claim>> {
    let claim = Claim {
        kind: ClaimKind::Join,
        incarnation: Incarnation(incarnation),
        sequence,
        host: MACHINE_B.0,
        boot: [9; 16],
        file: FILE,
        name: "b".into(),
        ..Claim::default()
    };
    vec![None, Some(claim)]
}

fn victim() -> Victim {
    let (host, boot) = MACHINE_B;
    Victim { slot: SlotId(1), incarnation: Incarnation(4), host, boot, name: "b".into(), ..Victim::default() }
}

#[test]
fn only_a_claim_that_goes_on_moving_is_from_a_mount_that_lives() {
    let seen = |rows: &[(u64, u64)]| {
        let mut look = Look::begin(now(), &lobby(5, 8));
        let mut see = |(s, i): &(u64, u64)| look.see(now(), &lobby(*s, *i), &victim());
        rows.iter().for_each(&mut see);
        look.again()
    };
    assert_eq!(seen(&[(5, 8), (5, 8)]), None, "it stands still");
    assert_eq!(seen(&[(6, 8), (6, 8)]), None, "one write that was late");
    assert_eq!(seen(&[(6, 8), (5, 8), (6, 8)]), None, "an older one once more");
    assert_eq!(seen(&[(6, 9), (7, 9)]), None, "its first write may have been late");
    assert_eq!(seen(&[(6, 4), (7, 4), (8, 4)]), None, "the dead mount's own");
    let again = Some(Again { boot: [9; 16], file: FILE });
    assert_eq!(seen(&[(6, 8), (9, 8)]), again);
    assert_eq!(seen(&[(1, 9), (2, 9), (3, 9), (3, 9)]), again);
}

#[test]
fn what_a_machine_says_of_its_last_mount_stands_whoever_wrote_it_when() {
    let begun = now();
    let says = |over: u64| {
        let mut cells = lobby(5, 8);
        let claim = cells[1].as_mut().unwrap();
        (claim.kind, claim.name, claim.over) = (ClaimKind::None, String::new(), vec![Incarnation(over)]);
        let mut look = Look::begin(begun, &cells);
        look.see(begun, &cells, &victim());
        let told = look.tell(begun, QUICK.suspicion, victim());
        assert_eq!(told.over, look.is_done(begun, &QUICK));
        told.over
    };
    assert!(says(4) && !says(5));
}

#[test]
fn who_asks_under_another_name_is_told_of_as_long_as_it_asks() {
    let begun = now();
    let mut look = Look::begin(begun, &lobby(5, 8));
    let mut seen = |sequence, incarnation, name: &str, later| {
        let mut cells = lobby(sequence, incarnation);
        cells[1].as_mut().unwrap().name = name.into();
        look.see(begun, &cells, &victim());
        let told = look.tell(begun + later, QUICK.suspicion, victim());
        (told.alias, told.again)
    };
    let soon = QUICK.suspicion / 2;
    assert_eq!(seen(6, 8, "other", soon), (None, None), "one write that was late");
    assert_eq!(seen(7, 8, "other", soon), (Some("other".into()), None));
    assert_eq!(seen(7, 8, "other", QUICK.suspicion), (None, None), "it has given up");
    let again = Some(Again { boot: [9; 16], file: FILE });
    assert_eq!(seen(8, 8, "b", QUICK.suspicion), (None, again), "it has its name again");
}

#[test]
fn the_lobby_is_looked_at_for_some_heartbeats() {
    let begun = now();
    let look = Look::begin(begun, &lobby(1, 8));
    assert!(!look.is_done(begun + QUICK.heartbeat * 3, &QUICK));
    assert!(look.is_done(begun + QUICK.heartbeat * 4, &QUICK));
}

/// On a slow store it is some seconds from one claim to the next.
#[test]
fn who_may_be_slow_is_looked_for_as_long_as_a_host_is_not_suspected() {
    let begun = now();
    let mut look = Look::begin(begun, &lobby(5, 8));
    let soon = begun + QUICK.heartbeat * 4;
    look.see(begun, &lobby(6, 8), &victim());
    assert!(!look.is_done(soon, &QUICK) && look.is_done(begun + QUICK.suspicion, &QUICK));
    look.see(soon, &lobby(7, 8), &victim());
    assert!(look.is_done(soon, &QUICK) && look.again().is_some());
}

/// Runs until it is killed.
#[derive(Default)]
struct Endless(AtomicBool);

impl Fence for Endless {
    fn cut(&self, victim: &Victim) -> Result<Cut> {
        self.0.store(true, Ordering::Relaxed);
        eventually("it is killed", || victim.cancel.is_cancelled());
        Err(Error::Device("killed".into()))
    }
}

/// By whatever started it, which would kill it next: its claim would stand then, and keep others waiting.
#[test]
fn a_mount_that_is_told_to_end_ends_its_command_and_withdraws_its_claim() {
    let medium = &Medium::formatted();
    drop(fails(medium, "a", MACHINE_A).unwrap());
    let (port, lease) = (medium.port(), Arc::new(Lease::default()));
    let endless = Arc::new(Endless::default());
    let mut options = options("b", Where::Elsewhere, &port, &lease);
    (options.host, options.boot) = MACHINE_B;
    options.fence.wanted = Wanted::Class(FenceClass::Command);
    options.fence.command = Some(endless.clone());
    std::thread::scope(|scope| {
        let join = scope.spawn(move || Cluster::join(disk_of(port), options));
        eventually("it runs", || endless.0.load(Ordering::Relaxed));
        let told = now();
        lease.unwanted.store(true, Ordering::Relaxed);
        let why = join.join().unwrap().err().expect("it was mounted").to_string();
        assert!(why.contains("told to end"), "{why}");
        assert!(now() - told < Duration::from_secs(5), "{:?}", now() - told);
    });
    let lobby = medium.disk().read_lobby().unwrap();
    assert!(lobby.iter().flatten().all(|claim| claim.kind == ClaimKind::None), "{lobby:?}");
}

/// What it has cut may land for so long.
struct Lingers(Duration);

impl Fence for Lingers {
    fn cut(&self, _: &Victim) -> Result<Cut> {
        Ok(Cut { how: "cut".into(), settle: self.0 })
    }
}

/// Others would take its claim over, and begin all over again.
#[test]
fn a_first_mount_that_waits_for_what_may_land_is_left_alone() {
    let medium = &Medium::formatted();
    drop(fails(medium, "a", MACHINE_A).unwrap());
    let long = QUICK.claim_wait() * 4 + QUICK.suspicion * 3;
    std::thread::scope(|scope| {
        let mount = |name, machine, settle| {
            scope.spawn(move || join_by_fence(&medium.port(), name, machine, Arc::new(Lingers(settle))))
        };
        let b = mount("b", MACHINE_B, long);
        std::thread::sleep(QUICK.wait() + QUICK.suspicion);
        let c = mount("c", MACHINE_C, Duration::ZERO);
        let b = b.join().unwrap().unwrap();
        assert!(b.report.first);
        b.cluster.recovered(&b.report.replay).unwrap();
        assert!(!c.join().unwrap().unwrap().report.first);
    });
}
