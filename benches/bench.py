#!/usr/bin/env python3
"""make bench: ext4 on a loop device, fuse2fs, a filesystem in memory behind our own kernel adapter (the
ceiling), and Shoal with one host and with two, side by side in one run.

Images lie in /dev/shm, so what is compared is software, not a disk (--disk for that). All systems are mounted at once and
take turns row by row, so whatever else the machine does hits all of them; a ratio is the median of the
ratios of each round. Where one operation follows the other, program and daemons share one CPU: left to the
scheduler, a FUSE filesystem is three times as fast when both happen to run on one CPU as when each request
wakes the other, idle one, and the rows would compare luck. Streams and rows of two hosts run on all. Trust ratios of one run, not absolute figures of different runs. It removes only
what it made.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import systems
import workloads

# As large as what people have: on a toy, journals are as small as they may be, and commits come all the time.
VOLUME_MIB = 16384
# On a real disk every block of the images is written before.
DISK_VOLUME_MIB = 2048
IDLE_S = 10
SETTLE_S = 8


def measure(system, row, spread):
    """One row once: rate, disk operations and microseconds of CPU per operation."""
    if row.prepare:
        row.prepare(system)
    if row.memory_mib:
        workloads.touch(row.memory_mib)
    disk, cpu = system.disk_operations(), system.cpu_s()
    with contextlib.nullcontext() if spread or row.free else system.on_one_cpu():
        rate = workloads.timed(row.count, lambda: row.work(system))
    figures = {"rate": rate, "disk": None, "cpu": None}
    if cpu is not None:
        figures["cpu"] = (system.cpu_s() - cpu) * 1e6 / row.count
    if disk is not None:
        figures["disk"] = (system.disk_operations() - disk) / row.count
    return figures


def one_round(number, present, rows, results, spread):
    """All rows for all systems; a peer that fails is left out from then on."""
    for system in present:
        system.make()
        system.mount()
    for row in rows:
        for system in list(present):
            if row.only and system.key not in row.only:
                continue
            start = time.monotonic()
            try:
                figures = measure(system, row, spread)
            except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
                if isinstance(system, systems.Shoal):
                    raise
                print(f"{system.name} is left out: {error}", file=sys.stderr)
                results.pop(system.key, None)
                present.remove(system)
                system.end()
                continue
            results.setdefault(system.key, {}).setdefault(row.name, []).append(figures)
            took = time.monotonic() - start
            print(f"round {number + 1}: {row.name}: {system.name} {took:.1f} s", file=sys.stderr)
    for system in present:
        system.umount()


def idle(base):
    """Disk operations per second and host of a cluster that does nothing."""
    system = systems.Idle(base, 512)
    try:
        system.make()
        system.mount()
        os.mkdir(f"{system.place}/d")
        os.listdir(f"{system.places[1]}/d")
        time.sleep(SETTLE_S)
        before = system.disk_operations()
        time.sleep(IDLE_S)
        return (system.disk_operations() - before) / IDLE_S / system.hosts
    finally:
        system.end()


def median_ratio(ours, theirs):
    return statistics.median(a["rate"] / b["rate"] for a, b in zip(ours, theirs))


def cells(rows, results):
    """Header and lines of the table; ratios first."""
    shown = [s for s in systems.ALL if s.key in results]
    peers = [s for s in shown if s.key in ("ext4", "fuse2fs", "memfs")] if "shoal" in results else []
    head = ["row", *(f"/ {s.name}" for s in peers), *(s.name for s in shown), "unit", "disk ops", "2 hosts"]
    lines = []
    for row in rows:
        line = [row.name]
        ours = results.get("shoal", {}).get(row.name)
        for peer in peers:
            theirs = results[peer.key].get(row.name)
            line.append(f"{median_ratio(ours, theirs):.2f}" if ours and theirs else "")
        for s in shown:
            got = results[s.key].get(row.name)
            line.append(f"{statistics.median(f['rate'] for f in got):,.0f}" if got else "")
        line.append(row.unit)
        for key in ("shoal", "shoal2"):
            got = results.get(key, {}).get(row.name)
            line.append(f"{statistics.median(f['disk'] for f in got):.2f}" if got else "")
        lines.append(line)
    return [head, *lines]


def cpu_cells(rows, results):
    """CPU time per operation, for whom it can be told."""
    shown = [s for s in systems.ALL if s.key in results and s.key != "ext4"]
    lines = [["row", *(s.name for s in shown), "unit"]]
    for row in rows:
        line = [row.name]
        for s in shown:
            got = results[s.key].get(row.name)
            line.append(f"{statistics.median(f['cpu'] for f in got):,.1f}" if got else "")
        lines.append([*line, "us of CPU / " + row.unit.split("/")[0].rstrip("s")])
    return lines


def show(table):
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    texts = {0, table[0].index("unit")}
    rule = ["---" if i in texts else "--:" for i in range(len(widths))]
    print()
    for line in [table[0], rule, *table[1:]]:
        padded = (c.ljust(w) if i in texts else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths)))
        print("| " + " | ".join(padded) + " |")


def report(rows, results, args, idle_rate):
    show(cells(rows, results))
    show(cpu_cells(rows, results))
    print(f"\nRatios are Shoal's rate (one host) by the peer's, above 1 Shoal is faster; medians of {args.rounds} "
          f"rounds. Disk operations\nare reads, writes and flushes of all hosts per operation; CPU is that of program and daemons together. {args.files} files, "
          f"{args.mib} MiB; {os.cpu_count()} CPUs, Linux {platform.release()}, images {'on a disk' if args.disk else 'in memory'}.")
    if idle_rate is not None:
        print(f"Two idle hosts, default timing: {idle_rate:.1f} disk operations per second and host.")
    for row in rows:
        print(f"  {row.name}: {row.what}")


def picture(rows, results, path):
    """The ratios as bars."""
    try:
        import matplotlib  # pylint: disable=import-outside-toplevel
    except ImportError:
        print("no picture: matplotlib is not installed", file=sys.stderr)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot  # pylint: disable=import-outside-toplevel

    peers = [s for s in systems.ALL if s.key in ("ext4", "fuse2fs", "memfs") and s.key in results]
    shown = [r for r in rows if all(results[s.key].get(r.name) for s in peers) and results["shoal"].get(r.name)]
    figure, axes = pyplot.subplots(figsize=(9, 0.55 * len(shown) + 1.5))
    height = 0.8 / max(len(peers), 1)
    for i, peer in enumerate(peers):
        ratios = [median_ratio(results["shoal"][r.name], results[peer.key][r.name]) for r in shown]
        axes.barh([y + i * height for y in range(len(shown))], ratios, height, label=f"Shoal / {peer.name}")
    axes.set_yticks([y + 0.4 - height / 2 for y in range(len(shown))], [r.name for r in shown])
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel("ratio of rates, above 1 Shoal is faster")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("programs", help="directory with shoal and mkfs.shoal")
    parser.add_argument("--memfs", help="the program of benches/memfs; without it there is no ceiling")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--only", help="systems, separated by commas: ext4,fuse2fs,memfs,shoal,shoal2")
    parser.add_argument("--rows", help="rows, separated by commas; those that others build on run all the same")
    parser.add_argument("--no-idle", action="store_true", help="leave out the idle cluster (half a minute)")
    parser.add_argument("--spread", action="store_true",
                        help="let the scheduler place program and daemons in all rows (rates then vary by a factor of 3)")
    parser.add_argument("--volume", type=int, metavar="MIB",
                        help=f"size of the images (default: {VOLUME_MIB}, which take memory only where something is "
                             f"written; with --disk {DISK_VOLUME_MIB})")
    parser.add_argument("--disk", metavar="DIR",
                        help="images are files there, on a real disk, and the loop devices read and write them directly "
                             "(default: in memory)")
    parser.add_argument("--nice", type=int, default=0, help="niceness of everything, to stand out of other load")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--png", metavar="FILE", help="draw the ratios there (needs matplotlib)")
    return parser.parse_args()


def wanted_rows(args):
    rows = workloads.single_rows(args.files, args.mib)
    for row in workloads.cluster_rows(args.files):
        row.only, row.free = ("shoal2",), True
        rows.append(row)
    if args.rows:
        keep = {name.strip() for name in args.rows.split(",")}
        unknown = keep - {row.name for row in rows}
        if unknown:
            sys.exit(f"bench: no such rows: {', '.join(sorted(unknown))}")
        needed = {"create": {"cold stat", "hot stat", "readdir+stat", "unlink"},
                  "stream write": {"cold read", "random read"}, "overwrite in turn": {"append in turn"}}
        keep |= {first for first, later in needed.items() if later & keep}
        rows = [row for row in rows if row.name in keep]
    return rows


def choose(args, base):
    """The systems that can take part."""
    wanted = [w.strip().lower() for w in args.only.split(",")] if args.only else None
    present = []
    for kind in systems.ALL:
        if wanted and kind.key not in wanted:
            continue
        missing = [n for n in kind.needs if shutil.which(n) is None]
        if kind is systems.Memory and not args.memfs:
            missing = ["the memfs benchmark (--memfs)"]
        if missing:
            print(f"{kind.name} is left out: {', '.join(missing)} is missing", file=sys.stderr)
        else:
            present.append(kind(base, args.volume or (DISK_VOLUME_MIB if args.disk else VOLUME_MIB)))
    return present


def main():
    args = arguments()
    if os.geteuid() != 0:
        sys.exit("bench: mounting needs root")
    systems.System.options = {"programs": os.path.abspath(args.programs),
                              "memfs": args.memfs and os.path.abspath(args.memfs), "disk": args.disk}
    # An ordinary exit on a signal, so that everything is cleaned up.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    os.nice(args.nice)
    rows = wanted_rows(args)
    base = os.path.realpath(tempfile.mkdtemp(prefix="shoal-bench.", dir=args.disk or "/dev/shm"))
    everybody, results, idle_rate = choose(args, base), {}, None
    try:
        present = list(everybody)
        for number in range(args.rounds):
            one_round(number, present, rows, results, args.spread)
        if not args.no_idle and "shoal2" in results:
            idle_rate = idle(base)
        report(rows, results, args, idle_rate)
        if args.json:
            with open(args.json, "w", encoding="utf-8") as out:
                json.dump({"results": results, "idle": idle_rate, "files": args.files, "mib": args.mib}, out, indent=1)
        if args.png and "shoal" in results:
            picture(rows, results, args.png)
    finally:
        for system in everybody:
            system.end()
        if not any(is_left for is_left in map(systems.is_mounted, (os.path.join(base, p) for p in os.listdir(base)))):
            shutil.rmtree(base, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
