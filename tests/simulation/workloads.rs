//! The runs whose crash points are looked at, one for each kind of change.

use crate::draw::Draw;
use crate::host::How;
use crate::model::Op;
use crate::points::{self, sweep};
use crate::story::{Recorder, Story};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;

fn p(path: &str) -> String {
    path.to_owned()
}

fn write(path: &str, offset: u64, length: usize) -> Op {
    Op::Write { path: p(path), offset, length, how: How::Buffered }
}

fn write_as(path: &str, offset: u64, length: usize, how: How) -> Op {
    Op::Write { path: p(path), offset, length, how }
}

fn truncate(path: &str, size: u64) -> Op {
    Op::Truncate { path: p(path), size }
}

fn rename(from: &str, to: &str) -> Op {
    Op::Rename { from: p(from), to: p(to), exchange: false }
}

fn exchange(from: &str, to: &str) -> Op {
    Op::Rename { from: p(from), to: p(to), exchange: true }
}

fn create(path: &str) -> Op {
    Op::Create(p(path))
}

fn fsync(path: &str) -> Op {
    Op::Fsync(p(path))
}

fn unlink(path: &str) -> Op {
    Op::Unlink(p(path))
}

/// Random operations on random hosts, committed often.
fn random_story(seed: u64, hosts: usize, operations: usize) -> Story {
    let mut random = StdRng::seed_from_u64(seed);
    let commit = Duration::from_millis([15, 60, 1000][random.random_range(0..3)]);
    let run = Recorder::with_commits(64, hosts, commit);
    work_at_random(run, &mut random, operations).finish()
}

/// So many random operations on random hosts.
pub fn work_at_random(mut run: Recorder, random: &mut StdRng, operations: usize) -> Recorder {
    run.run(0, Op::Mkdir(p("/shared")));
    run.run(0, Op::Mkdir(p("/w0")));
    for _ in 0..operations {
        let model = run.model().clone();
        let op = match random.random_range(0..25) {
            0 => Op::Rest(random.random_range(5..60)),
            1 => Op::Trim,
            _ => Draw { worker: 0, random, model: &model }.op(),
        };
        let host = random.random_range(0..run.hosts.len());
        run.run(host, op);
    }
    run
}

/// Run `ops` on one host and look at the crash points.
fn alone(name: &str, ops: impl IntoIterator<Item = Op>) {
    let mut run = Recorder::new(64, 1);
    ops.into_iter().for_each(|op| run.run(0, op));
    sweep(name, &run.finish());
}

#[test]
fn create_and_write() {
    alone(
        "create and write",
        [
            create("/small"),
            write("/small", 0, 100),
            fsync("/small"),
            write("/small", 50, 3000),
            create("/a"),
            write("/a", 0, 20_000),
            fsync("/a"),
            write("/a", 8192, 4096),
            write("/a", 19_000, 30_000),
            fsync("/a"),
            fsync("/small"),
            write("/small", 3000, 2000),
            fsync("/small"),
            create("/b"),
            write("/b", 100, 70_000),
            Op::Rest(1100),
            write("/b", 0, 70_000),
            fsync("/b"),
            write("/a", 0, 49_000),
            Op::Rest(5600),
            write("/a", 1000, 10),
            fsync("/a"),
        ],
    );
}

#[test]
fn direct_sync_append_sparse() {
    let mut ops = vec![create("/d"), write_as("/d", 0, 65_536, How::Direct), fsync("/d")];
    ops.extend((0..4).map(|n| write_as("/d", n * 16_384, 4096, How::Direct)));
    ops.extend([fsync("/d"), write_as("/d", 65_536, 12_288, How::Direct), fsync("/d")]);
    ops.extend([create("/s"), write_as("/s", 0, 5000, How::Sync), write_as("/s", 4000, 9000, How::Sync)]);
    ops.push(create("/log"));
    for n in 0..12 {
        ops.push(write_as("/log", 0, 700 + 331 * n, How::Append));
        ops.extend((n % 3 == 2).then(|| fsync("/log")));
    }
    ops.push(create("/holes"));
    ops.extend([900_000, 12_288, 500_001, 3, 40_000].map(|at| write("/holes", at, 5000)));
    ops.extend([fsync("/holes"), write("/holes", 100_000, 9000), write("/holes", 1_500_000, 100)]);
    ops.extend([
        Op::Rest(1100),
        fsync("/holes"),
        write_as("/holes", 204_800, 8192, How::Direct),
        fsync("/holes"),
    ]);
    alone("direct, sync, append, sparse", ops);
}

#[test]
fn truncate_both_ways() {
    let mut ops = vec![create("/t"), write("/t", 0, 60_000), fsync("/t")];
    for (to, length) in
        [(30_000, 100), (29_999, 5000), (50_000, 0), (4096, 300), (0, 2500), (2000, 1), (1, 80_000)]
    {
        ops.push(truncate("/t", to));
        if length > 0 {
            ops.push(write("/t", to / 2, length));
        }
        ops.extend((to % 2 == 0).then(|| fsync("/t")));
    }
    ops.extend([truncate("/t", 200_000), fsync("/t"), write("/t", 150_000, 10), truncate("/t", 150_005)]);
    ops.extend([Op::Rest(1100), truncate("/t", 300_000), write("/t", 299_000, 1000), fsync("/t")]);
    // Many extents, so that cutting takes several transactions.
    ops.extend([create("/many")]);
    ops.extend((0..150).map(|n| write("/many", n * 12_288, 4096)));
    ops.extend([fsync("/many"), truncate("/many", 5000), write("/many", 4000, 3000), fsync("/many")]);
    alone("truncate", ops);
}

#[test]
fn renames() {
    alone(
        "rename",
        [
            create("/a"),
            write("/a", 0, 6000),
            fsync("/a"),
            rename("/a", "/b"),
            create("/a"),
            write("/a", 0, 9000),
            fsync("/a"),
            rename("/a", "/b"),
            fsync("/b"),
            create("/new"),
            write("/new", 0, 50_000),
            rename("/new", "/b"),
            create("/new"),
            write("/new", 0, 200),
            rename("/new", "/b"),
            fsync("/"),
            create("/new"),
            write("/new", 0, 9000),
            fsync("/new"),
            write("/new", 0, 5000),
            rename("/new", "/b"),
            fsync("/"),
            Op::Mkdir(p("/d")),
            Op::Mkdir(p("/e")),
            create("/d/x"),
            write("/d/x", 0, 3000),
            exchange("/b", "/d/x"),
            fsync("/b"),
            rename("/d", "/e/d"),
            Op::Mkdir(p("/e/f")),
            exchange("/e/d", "/e/f"),
            rename("/e/f/x", "/x"),
            fsync("/x"),
            Op::Mkdir(p("/g")),
            rename("/g", "/e/f"),
            exchange("/e", "/x"),
            rename("/x/d", "/d"),
            Op::Rest(1100),
            rename("/b", "/d/b"),
            rename("/d/b", "/d/c"),
            rename("/d", "/x/f"),
            fsync("/x/f"),
        ],
    );
}

#[test]
fn links_and_removal() {
    let mut ops = vec![create("/a"), write("/a", 0, 40_000), fsync("/a")];
    ops.extend([Op::Link { from: p("/a"), to: p("/b") }, fsync("/a"), unlink("/a")]);
    ops.extend([Op::Mkdir(p("/d")), Op::Link { from: p("/b"), to: p("/d/c") }, unlink("/b"), fsync("/d/c")]);
    ops.push(Op::Symlink { path: p("/short"), target: vec![b's'; 30] });
    ops.push(Op::Symlink { path: p("/long"), target: vec![b'l'; 3000] });
    ops.extend([fsync("/d"), unlink("/d/c"), unlink("/long"), Op::Rmdir(p("/d")), Op::Rest(300)]);
    for round in 0..3 {
        for n in 0..8 {
            ops.extend([create(&format!("/f{n}")), write(&format!("/f{n}"), 0, 3000 * (n + 1))]);
        }
        ops.push(fsync("/f3"));
        ops.extend((0..8).map(|n| unlink(&format!("/f{n}"))));
        ops.extend((round == 1).then_some(Op::Rest(1200)));
        ops.push(fsync("/"));
    }
    alone("links and removal", ops);
}

#[test]
fn attributes() {
    let set = |name: &str, length| Op::SetXattr { path: p("/x"), name: p(name), length };
    let mut ops = vec![create("/x"), set("user.a", 10), fsync("/x"), set("user.a", 900), set("user.b", 5000)];
    ops.extend([fsync("/x"), set("user.b", 60_000), set("user.b", 20), set("user.c", 30_000), fsync("/x")]);
    ops.push(Op::RemoveXattr { path: p("/x"), name: p("user.c") });
    ops.extend((0..40).map(|n| set(&format!("user.many{n}"), 120)));
    ops.extend([Op::Chmod { path: p("/x"), mode: 0o600 }, write("/x", 0, 3000), fsync("/x")]);
    ops.extend((0..40).map(|n| Op::RemoveXattr { path: p("/x"), name: format!("user.many{n}") }));
    ops.extend([Op::Mkdir(p("/d")), Op::SetXattr { path: p("/d"), name: p("user.d"), length: 9000 }]);
    ops.extend([Op::Rest(1100), set("user.b", 4000), fsync("/d"), unlink("/x")]);
    alone("attributes", ops);
}

#[test]
fn a_directory_grows_and_shrinks() {
    let name = |n: usize| format!("/d/a-name-that-takes-some-room-in-a-page-{n}");
    let mut ops = vec![Op::Mkdir(p("/d"))];
    for n in 0..160 {
        ops.push(create(&name(n)));
        ops.extend((n % 50 == 49).then(|| fsync(&name(n))));
    }
    ops.push(Op::Rest(1100));
    ops.extend((0..150).map(|n| unlink(&name(n * 7 % 160))));
    ops.push(fsync("/d"));
    alone("directory", ops);
}

#[test]
fn preallocation_and_holes() {
    let call = |offset, length, mode| Op::Fallocate { path: p("/f"), offset, length, mode };
    let (keep, punch, zero) =
        (libc::FALLOC_FL_KEEP_SIZE, libc::FALLOC_FL_PUNCH_HOLE, libc::FALLOC_FL_ZERO_RANGE);
    alone(
        "fallocate",
        [
            create("/f"),
            call(0, 100_000, 0),
            fsync("/f"),
            write("/f", 10_000, 30_000),
            fsync("/f"),
            write("/f", 50_000, 20_000),
            call(20_000, 45_000, punch | keep),
            fsync("/f"),
            write("/f", 30_000, 5000),
            call(0, 15_000, zero),
            write("/f", 2000, 3000),
            fsync("/f"),
            call(100_000, 300_000, keep),
            write("/f", 120_000, 4096),
            fsync("/f"),
            call(90_000, 50_000, zero | keep),
            Op::Rest(1100),
            write("/f", 100_001, 60_000),
            fsync("/f"),
            call(110_000, 20_000, punch | keep),
            truncate("/f", 115_000),
            call(60_000, 200_000, 0),
            write("/f", 250_000, 4096),
            fsync("/f"),
        ],
    );
}

/// Freed blocks find new owners at once: none may show the old one's bytes, nor lose its own.
#[test]
fn blocks_change_owners() {
    let mut ops = Vec::new();
    for round in 0..6 {
        for n in 0..5 {
            let name = format!("/r{}-{n}", round % 2);
            ops.extend([create(&name), write(&name, 0, 700_000 + 1000 * n)]);
            ops.extend((n % 2 == 0).then(|| fsync(&name)));
        }
        let old = (round + 1) % 2;
        if round > 0 {
            ops.extend((0..5).map(|n| unlink(&format!("/r{old}-{n}"))));
        }
        ops.push(Op::Rest(150));
    }
    alone("owners", ops);
}

/// So many inodes that chunks become metadata chunks, and so few that they drain.
#[test]
fn chunks_change_their_type() {
    let name = |n: usize| format!("/d{}/f{n}", n % 3);
    let mut ops: Vec<Op> = (0..3).map(|n| Op::Mkdir(format!("/d{n}"))).collect();
    ops.extend([create("/data"), write("/data", 0, 2_000_000), fsync("/data"), unlink("/data"), fsync("/")]);
    for n in 0..700 {
        ops.push(create(&name(n)));
        ops.extend((n % 200 == 199).then(|| fsync(&name(n))));
    }
    ops.extend((0..700).map(|n| unlink(&name(n))));
    ops.extend([fsync("/d0"), Op::Rest(1200), create("/more"), write("/more", 0, 3_000_000), fsync("/more")]);
    alone("chunks", ops);
}

#[test]
fn two_hosts_take_turns() {
    let mut run = Recorder::new(64, 2);
    for (host, op) in [
        (0, Op::Mkdir(p("/d"))),
        (0, create("/d/a")),
        (0, write("/d/a", 0, 30_000)),
        (1, write("/d/a", 4096, 5000)),
        (1, fsync("/d/a")),
        (0, create("/d/b")),
        (1, create("/d/c")),
        (1, write("/d/c", 0, 9000)),
        (0, rename("/d/c", "/d/b")),
        (0, fsync("/d/b")),
        (1, unlink("/d/a")),
        (0, create("/own0")),
        (1, create("/own1")),
        (0, write("/own0", 0, 50_000)),
        (1, write("/own1", 0, 50_000)),
        (1, fsync("/own1")),
        (0, truncate("/own1", 10_000)),
        (0, fsync("/own1")),
        (1, rename("/own0", "/d/own")),
        (0, Op::Mkdir(p("/e"))),
        (1, rename("/d", "/e/d")),
        (0, fsync("/e/d")),
        (0, unlink("/e/d/own")),
        (1, fsync("/e/d")),
    ] {
        run.run(host, op);
    }
    sweep("two hosts", &run.finish());
}

/// Files that have lost their names while a host has them open: a crash finds them as orphans, of the host that
/// unlinked them, which is not always the one that has them.
#[test]
fn unlinked_while_in_use() {
    let mut run = Recorder::new(64, 2);
    for round in 0..3 {
        let name = |n: usize| format!("/u{round}-{n}");
        for n in 0..4 {
            run.run(n % 2, create(&name(n)));
            run.run(n % 2, write(&name(n), 0, 30_000 * (n + 1)));
        }
        run.run(0, fsync(&name(2)));
        let open = |n: usize| {
            let host = &run.hosts[n / 2];
            let node = host.keep(&name(n)).expect("lookup");
            (host.open_kept(node, How::Buffered).expect("open"), node)
        };
        let opened: Vec<_> = (0..4).map(open).collect();
        (0..4).for_each(|n| run.run((n + round) % 2, unlink(&name(n))));
        run.run(round % 2, fsync("/"));
        run.run(1, create("/other"));
        run.run(1, write("/other", 0, 100_000));
        for (n, (handle, node)) in opened.into_iter().enumerate() {
            let host = &run.hosts[n / 2];
            host.close_kept(node, handle).expect("close");
            host.forget(node);
        }
        run.run(0, Op::Rest(300));
        run.run(0, unlink("/other"));
    }
    sweep("unlinked while in use", &run.finish());
}

/// What one host frees the other uses.
#[test]
fn two_hosts_hand_blocks_to_each_other() {
    let mut run = Recorder::new(64, 2);
    for round in 0..4 {
        for n in 0..3 {
            let name = format!("/f{n}");
            let (host, other) = ((round + n) % 2, (round + n + 1) % 2);
            run.run(host, create(&name));
            run.run(host, write(&name, 0, 2_000_000));
            run.run(host, fsync(&name));
            run.run(other, write(&name, 1_000_000, 300_000));
            run.run(other, unlink(&name));
            run.run(other, create(&name));
            run.run(other, write(&name, 0, 1_500_000));
            if n == 1 {
                run.run(host, fsync(&name));
            }
        }
        run.run(0, Op::Rest(150));
        for n in 0..3 {
            run.run((round + n + 1) % 2, unlink(&format!("/f{n}")));
        }
    }
    sweep("hand-over", &run.finish());
}

/// Random runs of a kind, one for each seed.
fn random_runs(kind: u64, hosts: usize) {
    for seed in points::seeds() {
        let seed = seed * 10 + kind;
        let story = random_story(seed, hosts, 90);
        sweep(&format!("random operations {seed} on {hosts} hosts"), &story);
    }
}

#[test]
fn random_operations_on_one_host() {
    random_runs(1, 1);
}

#[test]
fn more_random_operations_on_one_host() {
    random_runs(2, 1);
}

#[test]
fn random_operations_on_two_hosts() {
    random_runs(3, 2);
}

#[test]
fn more_random_operations_on_two_hosts() {
    random_runs(4, 2);
}

/// There is no room for most of it: what fails leaves nothing behind, what is freed finds new owners.
#[test]
fn random_operations_on_a_full_volume() {
    for hosts in [1, 2] {
        let mut random = StdRng::seed_from_u64(points::seeds().start * 2 + hosts as u64);
        let mut run = Recorder::with_commits(64, hosts, Duration::from_millis(30));
        run.run(0, create("/filler"));
        for piece in [1_000_000, 70_000, 9000] {
            let full = run.full;
            while run.full == full {
                let size = run.model().data(run.model().find("/filler").unwrap()).unwrap().len();
                run.run(0, write("/filler", size as u64, piece));
            }
        }
        run.run(0, fsync("/filler"));
        run = work_at_random(run, &mut random, 70);
        assert!(run.full > 6, "the volume was not full: nothing was tested");
        sweep(&format!("full volume, {hosts} hosts"), &run.finish());
    }
}
