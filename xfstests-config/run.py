#!/usr/bin/env python3
"""Runs an installed xfstests on Shoal, one test at a time, each with a time limit.

    TEST_DEV=/dev/loop1 SCRATCH_DEV=/dev/loop2 xfstests-config/run.py /path/to/xfstests generic/quick

Both devices are overwritten. Needs root and `make install`. Arguments after the path: groups as above
or tests (generic/001). --fstype compares another filesystem, --limit is the seconds that one test may
take, --out the table. A test beyond its limit has its mounts cut; the next one starts on a fresh
TEST_DEV. With --beside a second host has both devices mounted and works there all the time (beside.py).
"""
import argparse
import os
import re
import signal
import subprocess
import sys
import time

from beside import Beside

HERE = os.path.dirname(os.path.abspath(__file__))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("xfstests")
    parser.add_argument("what", nargs="+", help="groups (generic/quick) or tests (generic/001)")
    parser.add_argument("--fstype", default="fuseblk.shoal")
    parser.add_argument("--limit", type=int, default=90)
    parser.add_argument("--out", default="xfstests.tsv")
    parser.add_argument("--after", default="", help="start behind this test")
    parser.add_argument("--without", nargs="*", default=[], metavar="CALL",
                        help="leave out tests with this in their text, such as _require_dm_target")
    parser.add_argument("--beside", action="store_true", help="a second host works on both (loop) devices")
    return parser.parse_args()


def excluded():
    with open(os.path.join(HERE, "excluded-groups")) as lines:
        return [g for line in lines if not line.startswith("#") for g in line.split()]


def tests(options):
    """The names that the arguments stand for, excluded groups and calls left out."""
    names, xfstests = [], options.xfstests
    for item in options.what:
        folder, last = item.split("/")
        if re.fullmatch(r"\d+", last):
            names.append(item)
            continue
        out_of_reach = set(excluded())
        with open(f"{xfstests}/tests/{folder}/group.list") as lines:
            for line in lines:
                number, *groups = line.split("#")[0].split() or [""]
                if number and last in groups and not out_of_reach & set(groups):
                    names.append(f"{folder}/{number}")
    return [n for n in names if n > options.after and not lacks(xfstests, n, options.without)]


def lacks(xfstests, name, calls):
    """Does a test need one of these calls?"""
    with open(f"{xfstests}/tests/{name}", errors="replace") as text:
        return bool(calls) and any(call in line for line in text for call in calls)


CONNECTIONS = "/sys/fs/fuse/connections"


def cut(*places):
    """Abort and detach what is mounted at these places."""
    if not os.path.ismount(CONNECTIONS):
        subprocess.run(["mount", "-t", "fusectl", "fusectl", CONNECTIONS], check=False)
    for place in places:
        for line in reversed(open("/proc/self/mountinfo").read().splitlines()):
            fields = line.split()
            if fields[4] == place:
                major, minor = map(int, fields[2].split(":"))
                # The kernel's dev_t; a mount of a block device has that device's.
                try:
                    with open(f"{CONNECTIONS}/{major << 20 | minor}/abort", "w") as control:
                        control.write("1")
                except OSError:
                    pass
                subprocess.run(["umount", "-l", place], check=False)


def make(env):
    """A fresh TEST_DEV."""
    for place in (env["SCRATCH_MNT"], env["TEST_DIR"]):
        if os.path.ismount(place):
            subprocess.run(["umount", place], check=False, timeout=60)
    command = ["mkfs", "-t", env["FSTYP"], *env.get("MKFS_OPTIONS", "").split(), env["TEST_DEV"]]
    for attempt in range(1, 4):
        made = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=200)
        if made.returncode == 0:
            return
        # A daemon whose mount was cut may still be on its way out.
        time.sleep(5 * attempt)
    sys.exit(f"cannot make {env['TEST_DEV']}")


def run(xfstests, name, env, limit):
    """One test: its result, and what it said about it."""
    check = subprocess.Popen(["./check", name], cwd=xfstests, env=env, stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        output = check.communicate(timeout=limit)[0].decode(errors="replace")
    except subprocess.TimeoutExpired:
        cut(env["SCRATCH_MNT"], env["TEST_DIR"])
        os.killpg(check.pid, signal.SIGKILL)
        check.communicate()
        cut(env["SCRATCH_MNT"], env["TEST_DIR"])
        make(env)
        return "timeout", ""
    said = [line for line in output.splitlines() if line.startswith(name)]
    said = said[0][len(name):].strip() if said else output.strip().splitlines()[-1:][0]
    if "[not run]" in said:
        return "notrun", said.split("[not run]")[1].strip()
    if "Passed all 1 tests" in output:
        return "pass", ""
    return "FAIL", said


def main():
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    env = dict(os.environ, FSTYP=options.fstype, HOST_OPTIONS=os.path.join(HERE, "shoal.config"))
    if options.fstype not in ("fuse.shoal", "fuseblk.shoal"):
        env.setdefault("MKFS_OPTIONS", " ")
    env.setdefault("MKFS_OPTIONS", "-f -q --timing test")
    env.setdefault("TEST_DIR", "/mnt/test")
    env.setdefault("SCRATCH_MNT", "/mnt/scratch")
    for place in (env["TEST_DIR"], env["SCRATCH_MNT"]):
        os.makedirs(place, exist_ok=True)
    beside = Beside(env) if options.beside else None
    counts = {}
    try:
        make(env)
        with open(options.out, "w") as table:
            for name in tests(options):
                start = time.monotonic()
                if beside and os.path.ismount(env["TEST_DIR"]):
                    beside.hosts["test"].join()
                result, why = run(options.xfstests, name, env, options.limit)
                if beside:
                    beside.leave()
                    if faults := beside.faults():
                        result, why = "FAIL", "; ".join(faults)
                counts[result] = counts.get(result, 0) + 1
                print(name, result, f"{time.monotonic() - start:.0f}", why, sep="\t", file=table, flush=True)
    finally:
        if beside:
            print(beside.close())
    print(", ".join(f"{n} {result}" for result, n in sorted(counts.items())))
    return 1 if counts.get("FAIL") or counts.get("timeout") else 0


if __name__ == "__main__":
    sys.exit(main())
