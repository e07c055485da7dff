"""The rows: small programs against a mounted filesystem, each giving a rate."""

import mmap
import os
import random
import time

MIB = 1 << 20
PAGE = 4096
OVERWRITTEN_MIB = 8
# Of what is streamed: caches of the filesystem and of its device, the image in memory, and room to spare.
COPIES_MAX = 3


def timed(count, work):
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)


def create(directory, count, data=b"", prefix=""):
    for i in range(count):
        fd = os.open(f"{directory}/{prefix}{i:06}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        if data:
            os.write(fd, data)
        os.close(fd)


def names(directory, count, call):
    for i in range(count):
        call(f"{directory}/{i:06}")


def listing(directory, count):
    with os.scandir(directory) as entries:
        seen = sum(1 for entry in entries if entry.stat(follow_symlinks=False))
    assert seen == count, f"{seen} entries of {count}"


def overwrite(path, count):
    rng = random.Random(1)
    data = os.urandom(PAGE)
    fd = os.open(path, os.O_WRONLY)
    try:
        for _ in range(count):
            os.pwrite(fd, data, rng.randrange(OVERWRITTEN_MIB * MIB // PAGE) * PAGE)
            os.fsync(fd)
    finally:
        os.close(fd)


def stream_write(path, mib):
    piece = os.urandom(MIB)
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    try:
        for _ in range(mib):
            written = os.write(fd, piece)
            assert written == MIB, f"short write of {written}"
        os.fsync(fd)
    finally:
        os.close(fd)


def stream_read(path, mib):
    fd = os.open(path, os.O_RDONLY)
    try:
        got = 0
        while piece := os.read(fd, MIB):
            got += len(piece)
        assert got == mib * MIB, f"read {got} bytes of {mib} MiB"
    finally:
        os.close(fd)


def random_read(path, mib, count):
    rng = random.Random(2)
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for _ in range(count):
            assert len(os.pread(fd, PAGE, rng.randrange(mib * MIB // PAGE) * PAGE)) == PAGE
    finally:
        os.close(fd)


def in_turn(paths, flags, count, work):
    """One operation through each mount in turn."""
    fds = [os.open(path, flags) for path in paths]
    try:
        for i in range(count):
            work(fds[i % len(fds)])
    finally:
        for fd in fds:
            os.close(fd)


def at_once(works):
    """Each in a process of its own; an error of one is an error of all."""
    children = []
    for work in works:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                work()
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    failed = [pid for pid in children if os.waitpid(pid, 0)[1] != 0]
    if failed:
        raise RuntimeError("a process of a concurrent row failed")


def touch(mib):
    """Write to so much memory and free it again. A virtual machine may give free memory back to its host after
    seconds, and wait for every page when it is used anew: that would be measured in place of a stream."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    with mmap.mmap(-1, mib * MIB, flags=flags):
        pass


class Row:
    """One line of the table. `prepare` is not measured; `work` returns nothing, `count` is what it did.
    A row that `streams` so many MiB runs on all CPUs, others on one."""

    def __init__(self, name, unit, what, count, work, prepare=None, only=None, streams=0):
        self.name, self.unit, self.what = name, unit, what
        self.count, self.work, self.prepare, self.only = count, work, prepare, only
        self.free, self.memory_mib = streams > 0, streams * COPIES_MAX


def single_rows(files, mib):
    """Rows for every filesystem, in the order they must run."""
    few, syncs, reads = max(files * 2 // 5, 1), files, files

    def at(system, name):
        return f"{system.place}/{name}"

    def rested(system):
        # What earlier rows have left to be written would be written now, on the one CPU of this row.
        system.cold()
        stream_write(at(system, "log"), OVERWRITTEN_MIB)

    def known(system):
        # However long the other systems have taken since: no name's time is over here.
        names(at(system, "d"), files, os.stat)

    return [
        Row("create", "files/s", "create empty files in one directory", files,
            lambda s: create(at(s, "d"), files), lambda s: os.mkdir(at(s, "d"))),
        Row("cold stat", "files/s", "stat each of them after a remount", files,
            lambda s: names(at(s, "d"), files, os.stat), lambda s: s.cold()),
        Row("hot stat", "files/s", "stat each of them again", files,
            lambda s: names(at(s, "d"), files, os.stat), known),
        Row("readdir+stat", "files/s", "list the directory and stat each entry, after a remount", files,
            lambda s: listing(at(s, "d"), files), lambda s: s.cold()),
        Row("unlink", "files/s", "unlink them, whose names the kernel knows", files,
            lambda s: names(at(s, "d"), files, os.unlink), known),
        Row("create 4 KiB", "files/s", "create, write 4 KiB, close", few,
            lambda s: create(at(s, "small"), few, b"x" * PAGE), lambda s: os.mkdir(at(s, "small"))),
        Row("overwrite+fsync", "ops/s",
            f"overwrite 4 KiB at random places of {OVERWRITTEN_MIB} MiB, fsync each, after a remount",
            syncs, lambda s: overwrite(at(s, "log"), syncs), rested),
        Row("stream write", "MiB/s", "write one file in 1 MiB pieces, then fsync", mib,
            lambda s: stream_write(at(s, "big"), mib), streams=mib),
        Row("cold read", "MiB/s", "read it after a remount", mib,
            lambda s: stream_read(at(s, "big"), mib), lambda s: s.cold(), streams=mib),
        Row("random read", "ops/s", "read 4 KiB at random places of it, after a remount", reads,
            lambda s: random_read(at(s, "big"), mib, reads), lambda s: s.cold()),
    ]


def cluster_rows(files):
    """Rows that need two hosts."""
    each, turns = max(files // 2, 1), max(files // 20, 2)

    def both(s, name):
        return [f"{place}/{name}" for place in s.places]

    def make_shared(s):
        os.mkdir(f"{s.place}/shared")

    def make_own(s):
        for number, place in enumerate(s.places):
            os.mkdir(f"{place}/own{number}")

    def make_turns(s):
        stream_write(f"{s.place}/turns", 1)

    def of_other(s, name="other"):
        os.mkdir(f"{s.places[1]}/{name}")
        create(f"{s.places[1]}/{name}", files)

    return [
        Row("stat other's", "files/s", "stat files that the other host has just made", files,
            lambda s: names(f"{s.place}/other", files, os.stat), of_other),
        Row("unlink other's", "files/s", "unlink them", files,
            lambda s: names(f"{s.place}/other", files, os.unlink)),
        Row("list other's", "files/s", "list a directory that the other host has just made, and stat each entry",
            files, lambda s: listing(f"{s.place}/other2", files), lambda s: of_other(s, "other2")),
        Row("creates, same dir", "files/s", "both hosts create in one directory", 2 * each,
            lambda s: at_once([lambda p=p, n=n: create(p, each, prefix=f"host{n}.")
                               for n, p in enumerate(both(s, "shared"))]), make_shared),
        Row("creates, own dirs", "files/s", "each host creates in a directory of its own", 2 * each,
            lambda s: at_once([lambda p=p, n=n: create(f"{p}/own{n}", each)
                               for n, p in enumerate(s.places)]), make_own),
        Row("overwrite in turn", "ops/s", "the hosts overwrite 4 KiB of one file in turn", turns,
            lambda s: in_turn(both(s, "turns"), os.O_WRONLY, turns, lambda fd: os.pwrite(fd, b"o" * PAGE, 0)),
            make_turns),
        Row("append in turn", "ops/s", "the hosts append 100 bytes to one file in turn", turns,
            lambda s: in_turn(both(s, "turns"), os.O_WRONLY | os.O_APPEND, turns,
                              lambda fd: os.write(fd, b"a" * 100))),
    ]
