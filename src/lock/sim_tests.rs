//! Random operations on a cluster of desks (`sim_world`). After every step the modes held by all hosts
//! must go together; at the end everything asked for must have been granted.

use crate::lock::sim_world::World;

fn run(seed: u64, members: bool) -> (usize, usize) {
    let mut world = World::new(seed, 2 + (seed % 3) as u16);
    for _ in 0..4000 {
        world.step(true, members);
        world.check();
    }
    while let Some((slot, _)) = world.dead.pop_first() {
        world.set_clean(slot);
    }
    for round in 0.. {
        world.step(false, false);
        world.check();
        if round % 64 == 0 && world.is_settled() {
            break;
        }
        assert!(round < 400_000, "seed {seed}: not settled\n{}", world.state());
    }
    (world.granted, world.adopted)
}

/// `SHOAL_SEEDS=from..to` runs others.
pub(in crate::lock) fn seeds(default: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("SHOAL_SEEDS") else { return default };
    let (from, to) = text.split_once("..").expect("from..to");
    from.parse().expect("a number")..to.parse().expect("a number")
}

fn run_all(members: bool, range: std::ops::Range<u64>) {
    let (mut granted, mut adopted) = (0, 0);
    for seed in seeds(range) {
        let caught = std::panic::catch_unwind(|| run(seed, members));
        let Ok((g, a)) = caught else { panic!("seed {seed} failed") };
        granted += g;
        adopted += a;
    }
    println!("{granted} grants of sets, {adopted} adoptions");
    assert!(granted > 1000 && adopted > 10);
}

#[test]
fn fixed_members() {
    run_all(false, 0..300);
}

#[test]
fn members_come_go_and_die() {
    run_all(true, 0..300);
}
