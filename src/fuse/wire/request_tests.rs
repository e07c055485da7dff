//! Requests as the kernel lays them out, cut at every byte, and bytes that are none.

use super::*;
use proptest::prelude::*;

const LONG: Dialect = Dialect { setxattr_ext: true };

/// A request of `opcode` with these arguments.
fn packet(opcode: u32, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let header = FuseInHeader {
        len: (size_of::<FuseInHeader>() + body.len()) as u32,
        opcode,
        unique: 6,
        nodeid: 7,
        uid: 8,
        gid: 9,
        pid: 10,
        ..FuseInHeader::default()
    };
    [header.as_bytes(), &body].concat()
}

fn of(opcode: Opcode, parts: &[&[u8]]) -> Vec<u8> {
    packet(opcode as u32, parts)
}

fn parsed(bytes: &[u8]) -> Request<'_> {
    parse(bytes, LONG).unwrap().request
}

/// One request of each kind, as long as it must be.
fn samples() -> Vec<Vec<u8>> {
    let zeros = |n: usize| vec![0u8; n];
    let (write, ioctl) =
        (FuseWriteIn { size: 3, ..Default::default() }, FuseIoctlIn { in_size: 2, ..Default::default() });
    let forgets = FuseBatchForgetIn { count: 2, dummy: 0 };
    let value = FuseSetxattrIn { size: 4, ..Default::default() };
    let one = |opcode: Opcode| -> Vec<u8> {
        use Opcode as O;
        let plain = |record: usize| of(opcode, &[&zeros(record)]);
        let named = |record: usize| of(opcode, &[&zeros(record), b"name\0"]);
        match opcode {
            O::Lookup | O::Unlink | O::Rmdir | O::Removexattr => named(0),
            O::Mkdir | O::Link | O::Getxattr => named(8),
            O::Mknod | O::Create => named(16),
            O::Symlink => of(opcode, &[b"name\0", b"to/here\0"]),
            O::Rename => of(opcode, &[&zeros(8), b"a\0", b"bc\0"]),
            O::Rename2 => of(opcode, &[&zeros(16), b"a\0", b"bc\0"]),
            O::Forget | O::Interrupt | O::Open | O::Opendir | O::Listxattr => plain(8),
            O::Init => plain(8),
            O::Getattr | O::Fsync | O::Fsyncdir | O::Tmpfile => plain(16),
            O::Statx | O::Release | O::Releasedir | O::Flush | O::Lseek => plain(24),
            O::Fallocate => plain(32),
            O::Read | O::Readdir | O::Readdirplus => plain(40),
            O::Getlk | O::Setlk | O::Setlkw => plain(48),
            O::CopyFileRange | O::CopyFileRange64 => plain(56),
            O::Setattr => plain(88),
            O::BatchForget => of(opcode, &[forgets.as_bytes(), &zeros(32)]),
            O::Setxattr => of(opcode, &[value.as_bytes(), b"user.a\0", b"1234"]),
            O::Write => of(opcode, &[write.as_bytes(), b"abc"]),
            O::Ioctl => of(opcode, &[ioctl.as_bytes(), b"xy"]),
            _ => of(opcode, &[]),
        }
    };
    Opcode::ALL.iter().map(|opcode| one(*opcode)).collect()
}

#[test]
fn arguments_are_where_the_kernel_puts_them() {
    let lookup = of(Opcode::Lookup, &[b"a name\0"]);
    let whole = parse(&lookup, LONG).unwrap();
    let (h, request) = (whole.header, whole.request);
    assert_eq!((h.unique, h.nodeid, h.uid, h.gid, h.pid), (6, 7, 8, 9, 10));
    assert_eq!(request, Request::Lookup { name: b"a name" });

    let arg = FuseRename2In { newdir: 99, flags: 2, padding: 0 };
    let rename = of(Opcode::Rename2, &[arg.as_bytes(), b"old\0", b"new one\0"]);
    assert_eq!(parsed(&rename), Request::Rename { arg, name: b"old", new_name: b"new one" });
    let old_form = of(Opcode::Rename, &[&99u64.to_ne_bytes(), b"old\0", b"new\0"]);
    let arg = FuseRename2In { newdir: 99, ..Default::default() };
    assert_eq!(parsed(&old_form), Request::Rename { arg, name: b"old", new_name: b"new" });

    let arg = FuseWriteIn { fh: 3, offset: 1 << 40, size: 5, write_flags: 1, ..Default::default() };
    let write = of(Opcode::Write, &[arg.as_bytes(), b"bytes"]);
    assert_eq!(parsed(&write), Request::Write { arg, data: b"bytes" });
    assert_eq!(&write[crate::fuse::wire::WRITE_HEAD..], b"bytes");

    let (one, two) = (FuseForgetOne { nodeid: 1, nlookup: 2 }, FuseForgetOne { nodeid: 3, nlookup: 4 });
    let head = FuseBatchForgetIn { count: 2, dummy: 0 };
    let forget = of(Opcode::BatchForget, &[head.as_bytes(), one.as_bytes(), two.as_bytes()]);
    let Request::BatchForget(all) = parsed(&forget) else { panic!() };
    assert_eq!(all.iter().collect::<Vec<_>>(), [one, two]);
}

#[test]
fn setxattr_comes_in_two_lengths() {
    let arg = FuseSetxattrIn { size: 3, flags: 1, setxattr_flags: 1, padding: 0 };
    let long = of(Opcode::Setxattr, &[arg.as_bytes(), b"user.x\0", b"a\0b"]);
    assert_eq!(parsed(&long), Request::Setxattr { arg, name: b"user.x", value: b"a\0b" });
    let short = of(Opcode::Setxattr, &[&arg.as_bytes()[..8], b"user.x\0", b"a\0b"]);
    let arg = FuseSetxattrIn { setxattr_flags: 0, ..arg };
    let request = parse(&short, Dialect::default()).unwrap().request;
    assert_eq!(request, Request::Setxattr { arg, name: b"user.x", value: b"a\0b" });
}

#[test]
fn an_init_of_any_age_is_read() {
    let mut init = FuseInitIn { major: 7, minor: 45, flags: 5, flags2: 6, ..Default::default() };
    assert_eq!(parsed(&of(Opcode::Init, &[init.as_bytes(), &[1; 32]])), Request::Init(init), "longer");
    init.flags2 = 0;
    assert_eq!(parsed(&of(Opcode::Init, &[&init.as_bytes()[..16]])), Request::Init(init), "of 7.35");
    assert!(parse(&of(Opcode::Init, &[&[7, 0, 0, 0]]), LONG).is_err());
}

#[test]
fn a_cut_request_is_malformed_wherever_it_is_cut() {
    for whole in samples() {
        let request = parse(&whole, LONG);
        assert!(request.is_ok(), "{request:?}");
        for length in 0..whole.len() {
            let mut cut = whole[..length].to_vec();
            let error = parse(&cut, LONG).unwrap_err();
            assert_eq!(error.header.is_some(), length >= size_of::<FuseInHeader>());
            // Also if it says that it is as short as that.
            if length >= size_of::<FuseInHeader>() {
                cut[..4].copy_from_slice(&(length as u32).to_ne_bytes());
                assert!(parse(&cut, LONG).is_err(), "{request:?} of {length} bytes");
            }
        }
    }
}

#[test]
fn names_have_a_beginning_and_an_end() {
    for wrong in [&b"\0"[..], b"", b"no end"] {
        assert!(parse(&of(Opcode::Lookup, &[wrong]), LONG).is_err());
    }
    let flags = [0u8; 16];
    assert!(parse(&of(Opcode::Rename2, &[&flags, b"a\0\0"]), LONG).is_err());
}

#[test]
fn extensions_are_no_arguments() {
    let mut bytes = of(Opcode::Lookup, &[b"a\0", &[0xff; 16]]);
    let at = std::mem::offset_of!(FuseInHeader, total_extlen);
    bytes[at] = 2;
    assert_eq!(parsed(&bytes), Request::Lookup { name: b"a" });
    bytes[at] = 200;
    assert!(parse(&bytes, LONG).is_err());
}

#[test]
fn operations_of_the_future_are_unknown_not_malformed() {
    assert_eq!(parsed(&packet(4096, &[b"whatever"])), Request::Unknown(4096));
    assert_eq!(parsed(&of(Opcode::Poll, &[&[0; 24]])), Request::Unserved(Opcode::Poll));
}

proptest! {
    /// Whatever comes, and under any operation's number: no panic, and nothing from outside.
    #[test]
    fn any_bytes(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), opcode in 0u32..60, ext in 0u8..3) {
        if bytes.len() >= size_of::<FuseInHeader>() {
            let length = bytes.len() as u32;
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            bytes[4..8].copy_from_slice(&opcode.to_ne_bytes());
            let at = std::mem::offset_of!(FuseInHeader, total_extlen);
            bytes[at..at + 2].copy_from_slice(&[ext, 0]);
        }
        for setxattr_ext in [false, true] {
            if let Ok(Parsed { request: Request::BatchForget(all), .. }) = parse(&bytes, Dialect { setxattr_ext }) {
                prop_assert!(all.iter().count() * 16 <= bytes.len());
            }
        }
    }
}
