//! Contents, sizes and times of files; statfs.

use super::{Pair, ROUNDS};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

#[test]
fn writes_sizes_and_times() {
    let pair = Pair::new();
    let (a, b) = (pair.a.clone(), pair.b.clone());
    fs::write(a.join("f"), b"start").unwrap();
    let mut reader = File::open(b.join("f")).unwrap();
    for round in 0..ROUNDS {
        let (from, to) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let text = format!("round {round} {}", "x".repeat(round * 977));
        let before = fs::metadata(to.join("f")).unwrap();
        fs::write(from.join("f"), &text).unwrap();
        let after = fs::metadata(to.join("f")).unwrap();
        assert_eq!(after.len(), text.len() as u64, "round {round}");
        assert!((after.mtime(), after.mtime_nsec()) > (before.mtime(), before.mtime_nsec()));
        assert_eq!(fs::read_to_string(to.join("f")).unwrap(), text);
        let mut seen = String::new();
        reader.seek(SeekFrom::Start(0)).unwrap();
        reader.read_to_string(&mut seen).unwrap();
        assert_eq!(seen, text, "through a handle that stayed open");
    }
    drop(reader);
    pair.finish();
}

/// Writes anywhere, of any size, from both hosts, read by the other through a handle that stays open.
#[test]
fn writes_anywhere() {
    const SIZE_MAX: usize = 300_000;
    let pair = Pair::new();
    let mut random = StdRng::seed_from_u64(11);
    let open = |at: &Path| {
        OpenOptions::new().create(true).truncate(false).read(true).write(true).open(at.join("f")).unwrap()
    };
    let (mut model, handles) = (Vec::new(), [open(&pair.a), open(&pair.b)]);
    pair.alternate(8 * ROUNDS, |round, _, to| {
        let (writer, reader) = (&handles[round % 2], &handles[(round + 1) % 2]);
        let at = random.random_range(0..SIZE_MAX);
        let length = if round % 3 == 0 { random.random_range(1..50) } else { random.random_range(1..40_000) };
        let data = vec![round as u8 + 1; length];
        if model.len() < at + length {
            model.resize(at + length, 0);
        }
        model[at..at + length].copy_from_slice(&data);
        writer.write_all_at(&data, at as u64).unwrap();
        assert_eq!(reader.metadata().unwrap().len(), model.len() as u64, "round {round}");
        let mut seen = vec![0; model.len()];
        reader.read_exact_at(&mut seen, 0).unwrap();
        assert!(seen == model, "round {round}: {length} bytes at {at}");
        if round % 10 == 0 {
            assert!(fs::read(to.join("f")).unwrap() == model, "round {round}: by name");
        }
    });
    drop(handles);
    pair.finish();
}

#[test]
fn truncation_both_ways() {
    let pair = Pair::new();
    fs::write(pair.a.join("f"), vec![0xff; 20_000]).unwrap();
    let mut model = vec![0xff_u8; 20_000];
    let handles = [File::open(pair.a.join("f")).unwrap(), File::open(pair.b.join("f")).unwrap()];
    let sizes = [12_345, 12_346, 4096, 4095, 9000, 0, 5, 8192, 100, 1 << 20, 3];
    pair.alternate(4 * sizes.len(), |round, from, to| {
        let size = sizes[round % sizes.len()];
        OpenOptions::new().write(true).open(from.join("f")).unwrap().set_len(size as u64).unwrap();
        model.resize(size, 0);
        assert_eq!(fs::metadata(to.join("f")).unwrap().len(), size as u64);
        let mut seen = Vec::new();
        let mut reader = &handles[(round + 1) % 2];
        reader.seek(SeekFrom::Start(0)).unwrap();
        reader.read_to_end(&mut seen).unwrap();
        assert!(seen == model, "round {round}: size {size}");
        if round % 3 == 0 {
            // What is cut off must not come back when the file grows again.
            OpenOptions::new().write(true).open(to.join("f")).unwrap().write_all_at(b"end", 2000).unwrap();
            model.resize(model.len().max(2003), 0);
            model[2000..2003].copy_from_slice(b"end");
            assert!(fs::read(from.join("f")).unwrap() == model, "round {round}: after a write");
        }
    });
    drop(handles);
    pair.finish();
}

#[test]
fn an_open_that_truncates() {
    let pair = Pair::new();
    pair.alternate(ROUNDS, |round, from, to| {
        let _ = fs::read(to.join("f"));
        fs::write(from.join("f"), vec![round as u8; 10_000 - 400 * round]).unwrap();
        assert!(fs::read(to.join("f")).unwrap() == vec![round as u8; 10_000 - 400 * round]);
        drop(File::create(from.join("f")).unwrap());
        assert_eq!(fs::metadata(to.join("f")).unwrap().len(), 0);
        assert!(fs::read(to.join("f")).unwrap().is_empty());
    });
    pair.finish();
}

/// Whole blocks past the kernel's cache on one side, through it on the other.
#[test]
fn direct_and_cached() {
    #[repr(align(4096))]
    struct Aligned([u8; 65536]);
    let pair = Pair::new();
    fs::write(pair.a.join("f"), vec![0; 65536]).unwrap();
    let direct = |at: &Path| {
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(at.join("f")).unwrap()
    };
    let direct = [direct(&pair.a), direct(&pair.b)];
    let mut buffer = Box::new(Aligned([0; 65536]));
    pair.alternate(2 * ROUNDS, |round, _, to| {
        let value = round as u8 + 1;
        buffer.0.fill(value);
        direct[round % 2].write_all_at(&buffer.0, 0).unwrap();
        assert!(fs::read(to.join("f")).unwrap() == buffer.0, "round {round}: read through the cache");
        fs::write(to.join("f"), [!value; 65536]).unwrap();
        direct[round % 2].read_exact_at(&mut buffer.0, 0).unwrap();
        assert!(buffer.0 == [!value; 65536], "round {round}: read past the cache");
    });
    drop(direct);
    pair.finish();
}

fn statfs(at: &Path) -> libc::statvfs {
    let at = std::ffi::CString::new(at.as_os_str().as_bytes()).unwrap();
    // SAFETY: statvfs is plain data; the string and the result outlive the call.
    unsafe {
        let mut found = std::mem::zeroed();
        assert_eq!(libc::statvfs(at.as_ptr(), &mut found), 0);
        found
    }
}

/// Free space is told with the heartbeat: a moment later, but never wrong for long.
#[test]
fn free_space_is_the_same_everywhere() {
    let pair = Pair::new();
    let free = |at: &Path| {
        let s = statfs(at);
        s.f_bfree * s.f_frsize
    };
    assert_eq!(statfs(&pair.a).f_blocks, statfs(&pair.b).f_blocks);
    let settles = |what: &str, is_right: &dyn Fn(u64) -> bool| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while ![&pair.a, &pair.b].into_iter().all(|at| is_right(free(at))) {
            let now = (free(&pair.a), free(&pair.b));
            assert!(Instant::now() < deadline, "{what}: {now:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    let before = free(&pair.a);
    let size = 40 << 20;
    let file = File::create(pair.a.join("f")).unwrap();
    (0..size >> 20).for_each(|i| file.write_all_at(&vec![i as u8; 1 << 20], i << 20).unwrap());
    file.sync_all().unwrap();
    drop(file);
    settles("written", &|free| free <= before - size && free >= before - size - (4 << 20));
    fs::remove_file(pair.b.join("f")).unwrap();
    settles("removed", &|free| free >= before - (4 << 20));
    pair.finish();
}
