#!/usr/bin/env python3
"""A second host on the devices of xfstests, mounted and working for as long as a test has them mounted.

`run.py --beside` uses it. It puts programs of the names `mount`, `mkfs` and `fsck` before those of the
system: when a test mounts a device, the second host mounts its twin (another loop device on the same
file) and works there; before the device is made afresh or checked, it leaves. What it works on is in a
directory of its own, of which it knows what has to be there, and it looks at all else. A difference, or
an error other than a full volume, is a fault of the test.
"""
import errno
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

HOME = ".beside"
FILES = 24
LARGEST = 40_000
LOOKED_AT = 300

TOOL = """#!/bin/sh
tell() {{
    case " $* " in *" $TEST_DEV "*) {python} -SE {here} tell {socket} {verb} test;; esac
    case " $* " in *" $SCRATCH_DEV "*) {python} -SE {here} tell {socket} {verb} scratch;; esac
}}
{before}
{tool} "$@" || exit
{behind}
"""


class Host:
    """The second host on one device."""

    def __init__(self, device, fstype, place):
        self.fstype, self.place = fstype, place
        name = os.path.basename(device)
        try:
            with open(f"/sys/block/{name}/loop/backing_file") as file:
                self.image = file.read().strip()
        except OSError:
            sys.exit(f"--beside needs loop devices, and {device} is none")
        shown = subprocess.run(["losetup", "-f", "--show", self.image], check=True, capture_output=True, text=True)
        self.twin = shown.stdout.strip()
        os.makedirs(place, exist_ok=True)
        self.worker, self.faults, self.lock = None, [], threading.Lock()
        self.visits = self.done = 0

    def join(self):
        """Mount and begin to work, unless it does."""
        with self.lock:
            if self.worker is not None:
                return
            options = f"name=beside,log={self.place}.log"
            command = ["mount", "-t", self.fstype, "-o", options, self.twin, self.place]
            try:
                subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=60)
            except subprocess.SubprocessError as error:
                self.faults.append(f"cannot mount: {(error.stderr or b'').decode(errors='replace').strip() or error}")
                return
            self.visits += 1
            self.worker = subprocess.Popen([sys.executable, os.path.abspath(__file__), "work", self.place],
                                           stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                                           start_new_session=True)

    def leave(self):
        """Stop, hear what was found, unmount."""
        with self.lock:
            if self.worker is None:
                return
            self.worker.send_signal(signal.SIGTERM)
            try:
                said = self.worker.communicate(timeout=60)[0].split("\n")
                self.done += int(said[0] or 0) if said[0].isdigit() else 0
                self.faults += [line for line in said[1:] if line]
                # Told before it had begun: it does not listen yet, and has done nothing.
                if self.worker.returncode not in (0, -signal.SIGTERM) and not said[1:-1]:
                    self.faults.append(f"died: {self.worker.returncode}")
            except subprocess.TimeoutExpired:
                self.worker.kill()
                self.faults.append("stood still for 60 s")
            self.worker = None
            # Whoever looks at all mounts, as df does, keeps one busy for a moment.
            for attempt in range(5):
                time.sleep(attempt)
                gone = subprocess.run(["umount", self.place], stderr=subprocess.PIPE, text=True, timeout=60)
                if gone.returncode == 0:
                    return
            self.faults.append(f"umount: {gone.stderr.strip()}")
            subprocess.run(["umount", "-l", self.place], check=False)

    def close(self):
        """Leave for good."""
        self.leave()
        subprocess.run(["losetup", "-d", self.twin], check=False)


class Beside:
    """The second host on both devices; what tests do to them is told over a socket."""

    def __init__(self, env):
        self.folder = tempfile.mkdtemp(prefix="beside.")
        places = {"test": env["TEST_DEV"], "scratch": env["SCRATCH_DEV"]}
        self.hosts = {name: Host(device, env["FSTYP"], f"{self.folder}/{name}") for name, device in places.items()}
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(f"{self.folder}/socket")
        self.listener.listen()
        threading.Thread(target=self.serve, daemon=True).start()
        self.tool("mount", "join", behind='tell "$@"')
        self.tool("mkfs", "leave", before='tell "$@"')
        self.tool("fsck", "leave", before='tell "$@"')
        env["PATH"] = f"{self.folder}/bin:{env['PATH']}"

    def tool(self, name, verb, before="", behind=""):
        """Write the program of this name that goes before the system's."""
        os.makedirs(f"{self.folder}/bin", exist_ok=True)
        path = f"{self.folder}/bin/{name}"
        with open(path, "w") as file:
            file.write(TOOL.format(python=sys.executable, here=os.path.abspath(__file__), verb=verb, before=before,
                                   behind=behind, socket=f"{self.folder}/socket", tool=shutil.which(name)))
        os.chmod(path, 0o755)

    def serve(self):
        """Do what is told, one at a time."""
        while True:
            talk = self.listener.accept()[0]
            with talk:
                verb, name = talk.recv(100).decode().split()
                try:
                    getattr(self.hosts[name], verb)()
                except (subprocess.SubprocessError, OSError) as error:
                    self.hosts[name].faults.append(f"{verb}: {error}")
                try:
                    talk.send(b"done")
                except OSError:
                    pass

    def leave(self):
        """Off both devices."""
        for host in self.hosts.values():
            host.leave()

    def places(self):
        """Where the second host mounts."""
        return [host.place for host in self.hosts.values()]

    def faults(self):
        """What went wrong since this was last asked."""
        found = [f"beside on {name}: {fault}" for name, host in self.hosts.items() for fault in host.faults]
        for name, host in self.hosts.items():
            if host.faults and os.path.exists(f"{host.place}.log"):
                with open(f"{host.place}.log", errors="replace") as log:
                    found += [f"its log: {line.strip()}" for line in log.readlines()[-3:]]
        for host in self.hosts.values():
            host.faults.clear()
        return found

    def close(self):
        """Leave for good; says how much was done."""
        for host in self.hosts.values():
            host.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        return ", ".join(f"{h.visits} visits and {h.done} changes on {name}" for name, h in self.hosts.items())


class Full(Exception):
    """There was no space: what the file holds now is nobody's business."""


class Work:
    """What the second host does, and what it knows of its files."""

    def __init__(self, place, seed):
        self.place, self.home = place, f"{place}/{HOME}"
        self.random = random.Random(seed)
        self.files, self.changes, self.going = {}, 0, True
        shutil.rmtree(self.home, ignore_errors=True)

    def step(self):
        """One change, or one look."""
        name = f"f{self.random.randrange(FILES)}"
        path = f"{self.home}/{name}"
        kind = self.random.choice(["write", "write", "append", "rename", "remove", "read", "list", "around"])
        try:
            if kind == "write":
                self.write(path, name, self.random.randbytes(self.random.randrange(LARGEST)), "wb")
            elif kind == "append" and name in self.files:
                self.write(path, name, self.random.randbytes(self.random.randrange(3000)), "ab")
            elif kind == "rename" and name in self.files:
                other = f"f{self.random.randrange(FILES)}"
                os.rename(path, f"{self.home}/{other}")
                self.files[other] = self.files.pop(name)
            elif kind == "remove" and name in self.files:
                os.unlink(path)
                del self.files[name]
            elif kind == "around" and self.random.randrange(4) == 0:
                self.around()
            elif kind == "list":
                self.compare("names", sorted(os.listdir(self.home)), sorted(self.files))
            elif name in self.files:
                with open(path, "rb") as file:
                    self.compare(name, file.read(), self.files[name])
            self.changes += 1
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise Full from error

    def write(self, path, name, data, mode):
        """Replace or extend a file; one for which there is no space is removed."""
        try:
            with open(path, mode) as file:
                file.write(data)
                if self.random.randrange(20) == 0:
                    os.fsync(file.fileno())
            self.files[name] = (self.files.get(name, b"") if mode == "ab" else b"") + data
        except OSError:
            self.files.pop(name, None)
            if os.path.lexists(path):
                os.unlink(path)
            raise

    def compare(self, what, seen, known):
        """Nobody else is in this directory."""
        if seen != known:
            raise ValueError(f"{what}: not what this host made of it, {len(seen)} instead of {len(known)}")

    def around(self):
        """Look at what the test has; it may vanish meanwhile."""
        left, folders = LOOKED_AT, [self.place]
        while folders and left > 0 and self.going:
            try:
                with os.scandir(folders.pop(self.random.randrange(len(folders)))) as entries:
                    for entry in entries:
                        left -= 1
                        if left < 0 or entry.name == HOME:
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(entry.path)
                        os.lstat(entry.path)
            except (FileNotFoundError, NotADirectoryError):
                pass

    def run(self):
        """Until told to stop. Says the number of changes, then what went wrong."""
        def stop(*_):
            self.going = False
        signal.signal(signal.SIGTERM, stop)
        pause = threading.Event()
        fault = ""
        try:
            while self.going:
                try:
                    os.makedirs(self.home, exist_ok=True)
                    self.step()
                    pause.wait(0.002)
                except Full:
                    pause.wait(0.1)
            shutil.rmtree(self.home)
        except (OSError, ValueError) as error:
            fault = f"{type(error).__name__}: {error}"
        print(self.changes, fault, sep="\n", flush=True)
        return 1 if fault else 0


def tell(path, verb, name):
    """The word of one of the programs in the way; returns when it is done."""
    with socket.socket(socket.AF_UNIX) as talk:
        talk.settimeout(200)
        talk.connect(path)
        talk.send(f"{verb} {name}".encode())
        talk.recv(10)


if __name__ == "__main__":
    if sys.argv[1] == "work":
        sys.exit(Work(sys.argv[2], os.getpid()).run())
    tell(*sys.argv[2:])
