//! Registers between two mounts.

use super::*;
use crate::base::{Incarnation, InodeNo, LockName, Mode, SlotId};
use crate::format::cluster::Stamp;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Publishes what it is given and keeps what it hears.
#[derive(Default)]
pub struct Post {
    pub out: Mutex<Vec<Entry>>,
    heard: Mutex<BTreeMap<SlotId, Vec<Entry>>>,
    versions: AtomicU64,
    members: Mutex<Option<Membership>>,
    /// How long it takes to be told of something, in milliseconds.
    slow_ms: AtomicU64,
}

impl LockPort for Post {
    fn on_entries(&self, _: Duration, from: SlotId, entries: &[Entry]) {
        std::thread::sleep(Duration::from_millis(self.slow_ms.load(Ordering::Relaxed)));
        let sequences: Vec<_> = entries.iter().map(|e| e.seq).collect();
        assert!(sequences.iter().all(|s| *s == sequences[0]), "a mix of two contents");
        let before = self.heard.lock().insert(from, entries.to_vec());
        let last = before.and_then(|b| b.first().map(|e| e.seq)).unwrap_or(0);
        assert!(sequences.first().is_none_or(|s| *s >= last), "an older content came back");
        self.versions.fetch_add(1, Ordering::Relaxed);
    }
    fn outgoing(&self, to: &[SlotId]) -> Vec<Vec<Entry>> {
        vec![self.out.lock().clone(); to.len()]
    }
    fn on_view(&self, members: &Membership) {
        *self.members.lock() = Some(members.clone());
    }
    fn tick(&self, _: Duration) {}
}

pub fn content(version: u64, count: usize) -> Vec<Entry> {
    let entry = |i| Entry {
        lock: LockName::Inode(InodeNo(i)),
        kind: EntryKind::Request,
        // What differs in its numbers only would wait for something to go with.
        mode: if version.is_multiple_of(2) { Mode::X } else { Mode::S },
        held: Mode::N,
        cap: Mode::N,
        flags: 0,
        token: Token(1),
        number: version,
        seq: version,
    };
    (0..count as u64).map(entry).collect()
}

/// Greater than any before.
const LAST: u64 = 1_000_000;

pub fn start(medium: &Arc<Medium>, name: &str) -> (Host, Arc<Post>) {
    let host = join(medium, name, Where::Elsewhere);
    let post = Arc::new(Post::default());
    host.cluster.start(post.clone()).unwrap();
    (host, post)
}

#[test]
fn the_last_content_arrives_whole() {
    let medium = Medium::formatted();
    let (a, post_a) = start(&medium, "a");
    let (b, post_b) = start(&medium, "b");
    let mut rng = StdRng::seed_from_u64(3);
    let heard_of = || post_a.versions.load(Ordering::Relaxed);
    for version in 1.. {
        // At least so many, and until enough of them have arrived for an order to show.
        if version > 400 && heard_of() > 20 {
            break;
        }
        for (host, post) in [(&a, &post_a), (&b, &post_b)] {
            let count = [0, 1, 9, 10, 11, 200, REGISTER_ENTRIES_MAX][rng.random_range(0..7)];
            *post.out.lock() = content(version, count);
            host.cluster.wake();
        }
        if rng.random_ratio(1, 3) {
            std::thread::sleep(Duration::from_millis(rng.random_range(0..4)));
        }
        assert!(version < 100_000, "{} contents have arrived", heard_of());
    }
    for post in [&post_a, &post_b] {
        *post.out.lock() = content(LAST, 150);
    }
    a.cluster.wake();
    b.cluster.wake();
    let heard = |post: &Post, from: &Host| post.heard.lock().get(&from.report.slot).cloned();
    eventually("a's last words", || heard(&post_b, &a).as_ref() == Some(&content(LAST, 150)));
    eventually("b's last words", || heard(&post_a, &b).as_ref() == Some(&content(LAST, 150)));
}

#[test]
fn a_round_trip_is_quick_while_talking() {
    let medium = Medium::formatted();
    let (a, post_a) = start(&medium, "a");
    let (_b, post_b) = start(&medium, "b");
    let mut times = vec![];
    for version in 1..=20 {
        let begun = now();
        *post_a.out.lock() = content(version, 1);
        a.cluster.wake();
        let heard = || post_b.heard.lock().get(&a.report.slot).cloned().unwrap_or_default();
        eventually("it arrives", || heard() == content(version, 1));
        times.push(now() - begun);
    }
    times.sort();
    assert!(times[10] < Duration::from_millis(30), "median {:?}", times[10]);
}

/// Both are due when a beat has taken long. Others wait for the words, and a look takes as long as saying them.
#[test]
fn what_is_to_be_said_is_said_before_the_next_look() {
    let medium = Medium::formatted();
    let (a, post_a) = start(&medium, "a");
    let (b, _post_b) = start(&medium, "b");
    let (me, to) = (a.report.slot, b.report.slot);
    eventually("a knows of b", || a.cluster.membership().incarnation_of(to).is_some());
    let (beats, goes_on) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let done = Arc::new(Mutex::new(vec![]));
    a.port.set_hook({
        let (beats, goes_on, done) = (beats.clone(), goes_on.clone(), done.clone());
        let row = geometry().inbox_cell(me, SlotId(0))..geometry().inbox_cell(me, SlotId(SLOTS));
        move |op, at| {
            if op == "write" && at == geometry().heartbeat_cell(me) {
                beats.store(true, Ordering::SeqCst);
                while !goes_on.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            let said = op == "write" && at == geometry().inbox_cell(to, me);
            if goes_on.load(Ordering::SeqCst) && (said || op == "read" && row.contains(&at)) {
                done.lock().push(said);
            }
            true
        }
    });
    eventually("a beat begins", || beats.load(Ordering::SeqCst));
    *post_a.out.lock() = content(1, 1);
    a.cluster.wake();
    std::thread::sleep(Duration::from_millis(120)); // no look is further from the last
    goes_on.store(true, Ordering::SeqCst);
    eventually("it is said", || done.lock().contains(&true));
    assert!(done.lock()[0], "a look came first");
}

#[test]
fn who_cannot_say_anything_hears_the_others() {
    let medium = Medium::formatted();
    let (a, post_a) = start(&medium, "a");
    let (b, post_b) = start(&medium, "b");
    let (me, to) = (a.report.slot, b.report.slot);
    eventually("a knows of b", || a.cluster.membership().incarnation_of(to).is_some());
    let refused = Arc::new(AtomicBool::new(false));
    a.port.set_hook({
        let refused = refused.clone();
        move |op, at| {
            let said = op == "write" && at == geometry().inbox_cell(to, me);
            refused.fetch_or(said, Ordering::SeqCst);
            !said
        }
    });
    *post_a.out.lock() = content(1, 1);
    a.cluster.wake();
    eventually("it cannot be said", || refused.load(Ordering::SeqCst));
    *post_b.out.lock() = content(1, 3);
    b.cluster.wake();
    eventually("a hears b", || post_a.heard.lock().get(&to).is_some_and(|e| e.len() == 3));
    a.port.set_hook(|_, _| true);
    eventually("b hears a", || post_b.heard.lock().get(&me).is_some_and(|e| e.len() == 1));
}

/// News of three takes longer than a lease here; of one it does not.
#[test]
fn beats_go_on_between_the_news_of_several() {
    let medium = Medium::formatted();
    let (a, post_a) = start(&medium, "a");
    let others = ["b", "c", "d"].map(|name| start(&medium, name));
    post_a.slow_ms.store(QUICK.lease.as_millis() as u64 * 3 / 5, Ordering::Relaxed);
    let told = || post_a.versions.load(Ordering::Relaxed);
    let renewed = || a.lease.renewals.load(Ordering::Relaxed);
    let (before, beats) = (told(), renewed());
    let mut version = 0;
    while told() < before + 12 {
        version += 1;
        assert!(version < 100_000, "{} contents have arrived", told() - before);
        for (host, post) in &others {
            *post.out.lock() = content(version, 3);
            host.cluster.wake();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(
        renewed() - beats >= 10,
        "{} beats between {} pieces of news",
        renewed() - beats,
        told() - before
    );
    post_a.slow_ms.store(0, Ordering::Relaxed);
    for (host, _) in &others {
        eventually("its last words", || {
            post_a.heard.lock().get(&host.report.slot) == Some(&content(version, 3))
        });
    }
}

#[test]
fn a_new_mount_in_a_slot_starts_with_an_empty_register() {
    let medium = Medium::formatted();
    let (a, post_a) = start(&medium, "a");
    let (b, post_b) = start(&medium, "b");
    let slot = b.report.slot;
    for post in [&post_a, &post_b] {
        *post.out.lock() = content(1, 12);
    }
    a.cluster.wake();
    b.cluster.wake();
    eventually("both hear", || post_a.heard.lock().contains_key(&slot) && !post_b.heard.lock().is_empty());
    eventually("b's content", || post_a.heard.lock()[&slot].len() == 12);
    b.cluster.leave().unwrap();
    let (c, post_c) = start(&medium, "c");
    assert_eq!(c.report.slot, slot);
    eventually("b's words are gone", || post_a.heard.lock()[&slot].is_empty());
    eventually("a's words are for c now", || {
        post_c.heard.lock().get(&a.report.slot).is_some_and(|e| e.len() == 12)
    });
    let told = post_a.members.lock().clone().unwrap();
    assert_eq!(told.incarnation_of(slot), Some(c.report.incarnation));
    // What a wrote for another mount of this slot says nothing to c, however new it is.
    let stamp = Stamp { slot: a.report.slot, incarnation: a.report.incarnation, sequence: 1 << 40 };
    medium.disk().write_register(slot, Incarnation(999), stamp, &content(50, 3)).unwrap();
    eventually("c hears nothing", || post_c.heard.lock()[&a.report.slot].is_empty());
}
