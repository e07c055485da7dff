//! What operations cost in words between two hosts, counted at the device: messages are writes to the
//! inbox region.

use crate::rig::Cluster;
use crate::rig_xattr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);
const FILES: usize = 300;

/// Writes of all hosts to the inbox region so far.
pub fn words(cluster: &Cluster) -> u64 {
    let count = |host| {
        let report = rig_xattr::get(&cluster.at(host), "trusted.shoal.io").expect("on the root");
        let report = String::from_utf8(report).expect("text");
        let count = report.split(' ').find_map(|pair| pair.strip_prefix("inbox_writes="));
        count.expect("counted").parse::<u64>().expect("a number")
    };
    count(0) + count(1)
}

fn name(i: usize) -> String {
    format!("{i:05}")
}

fn create(directory: &Path, names: std::ops::Range<usize>) {
    names.for_each(|i| drop(File::create_new(directory.join(name(i))).unwrap()));
}

/// What `work` costs in words.
fn cost(cluster: &Cluster, work: impl FnOnce()) -> u64 {
    let before = words(cluster);
    work();
    words(cluster) - before
}

/// What is done once, and the words about it, is over.
fn settle() {
    std::thread::sleep(Duration::from_millis(300));
}

#[test]
fn work_in_an_own_directory_costs_no_words_after_remounts_either() {
    let cluster = Cluster::new("256M", 2, LIMIT);
    fs::create_dir(cluster.at(0).join("before")).unwrap();
    create(&cluster.at(0).join("before"), 0..FILES);
    for remounted in [None, Some(0), Some(1)] {
        if let Some(host) = remounted {
            cluster.umount(host);
            // The other one goes on with what both know, and takes what it needs for it.
            fs::write(cluster.at(1 - host).join("meanwhile"), b"x").unwrap();
            cluster.mount(host);
        }
        for host in 0..2 {
            let own = cluster.at(host).join(format!("own{host}-{remounted:?}"));
            fs::create_dir(&own).unwrap();
            create(&own, 0..10);
            settle();
            let words = cost(&cluster, || {
                create(&own, 10..FILES);
                (10..FILES).for_each(|i| _ = fs::metadata(own.join(name(i))).unwrap());
                (10..FILES).for_each(|i| fs::write(own.join(name(i)), b"content").unwrap());
                (10..FILES).for_each(|i| fs::remove_file(own.join(name(i))).unwrap());
            });
            assert!(words <= 20, "host {host}, remounted {remounted:?}: {words} words");
        }
    }
    (0..2).for_each(|host| cluster.umount(host));
    cluster.check();
}

/// Read, then written, by one host after the other: after a few such turns whoever reads asks for what it takes to
/// write. One who only reads ends that.
#[test]
fn a_counter_that_hosts_increment_in_turn_changes_hands_once_a_turn() {
    let cluster = Cluster::new("256M", 2, LIMIT);
    fs::write(cluster.at(0).join("counter"), [0]).unwrap();
    let both =
        |how: &dyn Fn() -> OpenOptions| [0, 1].map(|h| how().open(cluster.at(h).join("counter")).unwrap());
    let read = |file: &File| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, 0).unwrap();
        byte[0]
    };
    let files = both(&|| OpenOptions::new().read(true).write(true).to_owned());
    let increment = |turn: usize| {
        let file = &files[turn % 2];
        let count = read(file);
        file.write_all_at(&[count + 1], 0).unwrap();
        assert_eq!(usize::from(count), turn);
    };
    (0..10).for_each(increment);
    let words = cost(&cluster, || (10..110).for_each(increment));
    // Shared first, then exclusively, it takes six a turn.
    assert!(words <= 500, "{words} words for 100 turns");
    drop(files);
    let files = both(&|| OpenOptions::new().read(true).to_owned());
    (0..10).for_each(|turn| assert_eq!(read(&files[turn % 2]), 110));
    settle();
    let words = cost(&cluster, || (0..100).for_each(|turn| assert_eq!(read(&files[turn % 2]), 110)));
    assert!(words <= 4, "{words} words for 100 reads");
    drop(files);
    (0..2).for_each(|host| cluster.umount(host));
    cluster.check();
}

#[test]
fn one_word_asks_for_many_files_of_another_host() {
    let cluster = Cluster::new("256M", 2, LIMIT);
    let made = cluster.at(1).join("made");
    let seen = cluster.at(0).join("made");
    fs::create_dir(&made).unwrap();
    create(&made, 0..FILES);
    let all = |work: &dyn Fn(&Path)| (0..FILES).for_each(|i| work(&seen.join(name(i))));
    // One by one each takes four, two on either side.
    let most = FILES as u64;
    let words = cost(&cluster, || all(&|path| _ = fs::metadata(path).unwrap()));
    assert!(words < most, "stat: {words} words");
    let words = cost(&cluster, || all(&|path| _ = fs::read(path).unwrap()));
    assert!(words < most, "read: {words} words");
    // Their locks; what it takes to free the inodes afterwards hangs on how soon it follows.
    let words =
        cost(&cluster, || all(&|path| fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap()));
    assert!(words < most, "change: {words} words");
    all(&|path| fs::remove_file(path).unwrap());
    let other = cluster.at(1).join("listed");
    fs::create_dir(&other).unwrap();
    create(&other, 0..FILES);
    let words = cost(&cluster, || {
        let listed = fs::read_dir(cluster.at(0).join("listed")).unwrap();
        let sizes = listed.map(|e| e.unwrap().metadata().unwrap().len());
        assert_eq!(sizes.collect::<Vec<_>>(), [0; FILES]);
    });
    assert!(words < most, "list with attributes: {words} words");
    (0..2).for_each(|host| cluster.umount(host));
    cluster.check();
}
