#!/usr/bin/env python3
"""make bench: ext4 on a loop device, fuse2fs and Shoal (one mount), side by side in one run.

Images lie in /dev/shm, so what is compared is software, not a disk. The rounds of the systems
alternate: whatever else the machine does hits all of them. Trust the ratios of one run, not
absolute figures of different runs. It removes only what it made.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

MIB = 1 << 20
UMOUNT_S_MAX = 120

# name, unit, how the figure reads
TESTS = [
    ("create", "files/s", "create empty files in one directory"),
    ("cold stat", "files/s", "stat each of them after a remount"),
    ("hot stat", "files/s", "stat each of them again"),
    ("unlink", "files/s", "unlink them"),
    ("create 4 KiB", "files/s", "create, write 4 KiB, close"),
    ("overwrite+fsync", "ops/s", "overwrite 4 KiB at random places of an 8 MiB file, fsync each"),
    ("stream write", "MiB/s", "write one file in 1 MiB pieces, then fsync"),
    ("cold read", "MiB/s", "read it after a remount"),
]


def run(*command):
    """Run a program; its output is the error message if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}: {done.stdout.strip()}")
    return done.stdout.strip()


def is_mounted(place):
    with open("/proc/self/mountinfo", encoding="utf-8") as lines:
        return any(line.split()[4] == place for line in lines)


class System:
    """A filesystem on an image of its own."""

    name = ""
    needs = ()

    def __init__(self, base, size_mib):
        self.image = os.path.join(base, "image." + type(self).__name__)
        self.place = os.path.join(base, "mnt." + type(self).__name__)
        self.size_mib = size_mib
        os.mkdir(self.place)

    def make(self):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.image)
        with open(self.image, "wb") as image:
            image.truncate(self.size_mib * MIB)

    def mount(self):
        raise NotImplementedError

    def umount(self):
        if is_mounted(self.place):
            run("umount", self.place)

    def remount(self):
        self.umount()
        self.mount()

    def end(self):
        """Whatever state it is in: unmounted, nothing left behind."""
        try:
            self.umount()
        except (RuntimeError, subprocess.TimeoutExpired):
            subprocess.run(["umount", "-l", self.place], check=False)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.image)


class Ext4(System):
    name = "ext4"
    needs = ("mkfs.ext4", "losetup")
    loop = None

    def make(self):
        super().make()
        run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", self.image)

    def mount(self):
        self.loop = run("losetup", "--find", "--show", self.image)
        run("mount", "-t", "ext4", self.loop, self.place)

    def umount(self):
        super().umount()
        if self.loop:
            run("losetup", "--detach", self.loop)
            self.loop = None


class Fuse2fs(System):
    name = "fuse2fs"
    needs = ("mkfs.ext4", "fuse2fs")
    process = None

    def make(self):
        super().make()
        run("mkfs.ext4", "-q", "-F", self.image)

    def mount(self):
        # In the foreground, so that the end of the process is the end of the mount.
        self.process = subprocess.Popen(
            ["fuse2fs", "-f", self.image, self.place], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        limit = time.monotonic() + 30
        while not is_mounted(self.place):
            if self.process.poll() is not None or time.monotonic() > limit:
                raise RuntimeError("fuse2fs does not mount")
            time.sleep(0.01)

    def umount(self):
        super().umount()
        if self.process:
            self.process.wait(UMOUNT_S_MAX)
            self.process = None


class Shoal(System):
    name = "Shoal"
    programs = ""

    def make(self):
        super().make()
        run(os.path.join(self.programs, "mkfs.shoal"), "-q", "--timing", "test", self.image)

    def mount(self):
        run(os.path.join(self.programs, "shoal"), "mount", self.image, self.place, "-o", "log=" + self.image + ".log")

    def umount(self):
        if is_mounted(self.place):
            run(os.path.join(self.programs, "shoal"), "umount", self.place)

    def end(self):
        super().end()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.image + ".log")


def timed(count, work):
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)


def create(directory, count, data=b""):
    for i in range(count):
        fd = os.open(f"{directory}/{i:06}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        if data:
            os.write(fd, data)
        os.close(fd)


def names(directory, count, call):
    for i in range(count):
        call(f"{directory}/{i:06}")


def overwrite(path, count, pages):
    rng = random.Random(1)
    data = os.urandom(4096)
    fd = os.open(path, os.O_WRONLY)
    try:
        for _ in range(count):
            os.pwrite(fd, data, rng.randrange(pages) * 4096)
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


def one_round(system, files, mib):
    """All tests once on a fresh filesystem: test name -> figure."""
    figures = {}
    system.make()
    system.mount()
    d, small = f"{system.place}/d", f"{system.place}/small"
    os.mkdir(d)
    figures["create"] = timed(files, lambda: create(d, files))
    system.remount()
    figures["cold stat"] = timed(files, lambda: names(d, files, os.stat))
    figures["hot stat"] = timed(files, lambda: names(d, files, os.stat))
    figures["unlink"] = timed(files, lambda: names(d, files, os.unlink))
    os.mkdir(small)
    few = max(files * 2 // 5, 1)
    figures["create 4 KiB"] = timed(few, lambda: create(small, few, b"x" * 4096))
    log = f"{system.place}/overwritten"
    stream_write(log, 8)
    syncs = max(files // 10, 1)
    figures["overwrite+fsync"] = timed(syncs, lambda: overwrite(log, syncs, 8 * MIB // 4096))
    big = f"{system.place}/big"
    figures["stream write"] = timed(mib, lambda: stream_write(big, mib))
    system.remount()
    figures["cold read"] = timed(mib, lambda: stream_read(big, mib))
    system.umount()
    return figures


def report(results, files, mib, rounds):
    shown = list(results)
    medians = {s: {t: statistics.median(r[t] for r in results[s]) for t, _, _ in TESTS} for s in shown}
    others = [s for s in shown if s != "Shoal"] if "Shoal" in shown else []
    head = ["test", *(f"Shoal/{o}" for o in others), *shown, "unit"]
    rows = [head, ["---", *["--:"] * (len(head) - 2), "---"]]
    for test, unit, _ in TESTS:
        ratios = [f"{medians['Shoal'][test] / medians[o][test]:.2f}" for o in others]
        rows.append([test, *ratios, *(f"{medians[s][test]:,.0f}" for s in shown), unit])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    print()
    for row in rows:
        print("| " + " | ".join(cell.ljust(w) if i in (0, len(row) - 1) else cell.rjust(w)
                                for i, (cell, w) in enumerate(zip(row, widths))) + " |")
    print(f"\nMedians of {rounds}; a ratio above 1 means that Shoal is faster. {files} files, {mib} MiB; "
          f"{os.cpu_count()} CPUs, Linux {platform.release()}, images in memory.")
    for test, _, what in TESTS:
        print(f"  {test}: {what}")
    return medians


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("programs", help="directory with shoal and mkfs.shoal")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--only", help="systems, separated by commas: ext4,fuse2fs,shoal")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("bench: mounting needs root")
    Shoal.programs = os.path.abspath(args.programs)
    # An ordinary exit on a signal, so that everything is cleaned up.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    wanted = [w.strip().lower() for w in args.only.split(",")] if args.only else None
    base = os.path.realpath(tempfile.mkdtemp(prefix="shoal-bench.", dir="/dev/shm"))
    systems, results = [], {}
    try:
        for kind in (Ext4, Fuse2fs, Shoal):
            if wanted and kind.name.lower() not in wanted:
                continue
            missing = [n for n in kind.needs if shutil.which(n) is None]
            if missing:
                print(f"{kind.name} is left out: {', '.join(missing)} is not installed", file=sys.stderr)
                continue
            systems.append(kind(base, args.mib * 2 + 512))
        for number in range(args.rounds):
            for system in list(systems):
                start = time.monotonic()
                try:
                    figures = one_round(system, args.files, args.mib)
                except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
                    if system.name == "Shoal":
                        raise
                    print(f"{system.name} is left out: {error}", file=sys.stderr)
                    results.pop(system.name, None)
                    systems.remove(system)
                    system.end()
                    continue
                results.setdefault(system.name, []).append(figures)
                took = time.monotonic() - start
                print(f"round {number + 1}: {system.name} {took:.0f} s", file=sys.stderr)
        if results:
            report(results, args.files, args.mib, args.rounds)
        if args.json:
            with open(args.json, "w", encoding="utf-8") as out:
                json.dump({"rounds": results, "files": args.files, "mib": args.mib}, out, indent=1)
    finally:
        for system in systems:
            system.end()
        mounted = [p for p in os.listdir(base) if is_mounted(os.path.join(base, p))]
        if not mounted:
            shutil.rmtree(base, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
