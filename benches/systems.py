"""The filesystems under test: each on an image of its own (or in memory), mounted at places of its own."""

import contextlib
import json
import os
import resource
import subprocess
import time

MIB = 1 << 20
UMOUNT_S_MAX = 120
MOUNT_S_MAX = 30
# Where daemons of Shoal say who they are.
RECORDS = "/run/shoal"


def run(*command):
    """Run a program; its output is the error message if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}: {done.stdout.strip()}")
    return done.stdout.strip()


def is_mounted(place):
    with open("/proc/self/mountinfo", encoding="utf-8") as lines:
        return any(line.split()[4] == place for line in lines)


def place(threads, cpus):
    """Let threads run on these CPUs only; one that has ended meanwhile needs no place."""
    for thread in threads:
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(thread, cpus)


class System:
    """A filesystem; `place` is where its (first) mount is."""

    key = ""
    name = ""
    needs = ()
    options = {}

    def __init__(self, base, size_mib):
        self.image = os.path.join(base, "image." + self.key)
        self.places = [os.path.join(base, "mnt." + self.key)]
        self.size_mib = size_mib
        self.loops = []
        os.mkdir(self.place)

    @property
    def place(self):
        return self.places[0]

    def make(self):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.image)
        with open(self.image, "wb") as image:
            if self.options.get("disk"):
                # Every block is there and written: what the filesystem below would do the first time is nobody's.
                for _ in range(self.size_mib):
                    image.write(bytes(MIB))
                os.fsync(image.fileno())
            else:
                image.truncate(self.size_mib * MIB)

    def attach(self, count=1):
        """Give the image to so many loop devices."""
        self.detach()
        # On a disk the loop device is one too: nothing of the image is cached in memory behind it.
        direct = ["--direct-io=on"] if self.options.get("disk") else []
        self.loops = [run("losetup", *direct, "--find", "--show", self.image) for _ in range(count)]

    def detach(self):
        """The loop devices are no longer needed. Nothing is mounted on them."""
        while self.loops:
            subprocess.run(["losetup", "--detach", self.loops.pop()], check=False)

    def mount(self):
        raise NotImplementedError

    def umount(self):
        if is_mounted(self.place):
            run("umount", self.place)

    def cold(self):
        """Nothing of the first mount is cached any more."""
        self.umount()
        self.mount()

    def disk_operations(self):
        """Requests to the disk so far, of all hosts; None where nobody counts."""
        return None

    def daemons(self):
        """Process numbers of whoever serves it; None for the kernel, whose time cannot be told apart."""
        return None

    def cpu_s(self):
        """CPU time so far of the daemons, of us and of our ended children. Unlike the time that passes it
        hardly depends on what else the machine does."""
        pids = self.daemons()
        if pids is None:
            return None
        ours = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        total = sum(usage.ru_utime + usage.ru_stime for usage in ours)
        for pid in pids:
            with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return total

    @contextlib.contextmanager
    def on_one_cpu(self):
        """Program and daemons share one CPU meanwhile."""
        threads = [0]
        for pid in self.daemons() or []:
            threads += [int(thread) for thread in os.listdir(f"/proc/{pid}/task")]
        everywhere = os.sched_getaffinity(0)
        try:
            place(threads, {min(everywhere)})
            yield
        finally:
            place(threads, everywhere)

    def end(self):
        """Whatever state it is in: unmounted, nothing left behind."""
        try:
            self.umount()
        except (RuntimeError, subprocess.TimeoutExpired):
            for place in self.places:
                subprocess.run(["umount", "-l", place], check=False)
        self.detach()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.image)


class Foreground(System):
    """Served by a child process in the foreground: its end is the end of the mount."""

    process = None

    def command(self):
        raise NotImplementedError

    def mount(self):
        self.process = subprocess.Popen(self.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        limit = time.monotonic() + MOUNT_S_MAX
        while not is_mounted(self.place):
            if self.process.poll() is not None or time.monotonic() > limit:
                raise RuntimeError(f"{self.name} does not mount")
            time.sleep(0.01)

    def daemons(self):
        return [self.process.pid]

    def umount(self):
        super().umount()
        if self.process:
            self.process.wait(UMOUNT_S_MAX)
            self.process = None


class Ext4(System):
    key, name = "ext4", "ext4"
    needs = ("mkfs.ext4", "losetup")

    def make(self):
        super().make()
        run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", self.image)

    def mount(self):
        self.attach()
        run("mount", "-t", "ext4", self.loops[0], self.place)

    def umount(self):
        super().umount()
        self.detach()


class Fuse2fs(Foreground):
    key, name = "fuse2fs", "fuse2fs"
    needs = ("mkfs.ext4", "fuse2fs", "losetup")

    def make(self):
        super().make()
        self.attach()
        run("mkfs.ext4", "-q", "-F", self.loops[0])

    def command(self):
        return ["fuse2fs", "-f", self.loops[0], self.place]


class Memory(Foreground):
    """The ceiling: what FUSE and our adapter alone can do."""

    key, name = "memfs", "ceiling"

    def make(self):
        """There is nothing to make."""

    def command(self):
        return [self.options["memfs"], self.place]

    def cold(self):
        # A remount drops the names, and with them the inodes, that the kernel caches.
        run("mount", "-i", "-o", "remount,rw", self.place)


class Shoal(System):
    """On loop devices like ext4: one for each host, as each has a device of its own for the shared disk."""

    key, name = "shoal", "Shoal"
    needs = ("losetup",)
    hosts = 1
    # Leases, and with them what the kernel keeps of names, last as long as the ceiling's answers: 2 s.
    timing = "test"

    def __init__(self, base, size_mib):
        super().__init__(base, size_mib)
        for number in range(1, self.hosts):
            self.places.append(f"{self.place}.{number}")
            os.mkdir(self.places[-1])

    def program(self, name):
        return os.path.join(self.options["programs"], name)

    def make(self):
        super().make()
        self.attach(self.hosts)
        run(self.program("mkfs.shoal"), "-q", "--timing", self.timing, self.loops[0])

    def join(self, number):
        log = f"{self.image}.log{number}"
        device = self.loops[number]
        run(self.program("shoal"), "mount", device, self.places[number], "-o", f"name=host{number},log={log}")

    def mount(self):
        for number in range(self.hosts):
            self.join(number)

    def leave(self, number):
        if is_mounted(self.places[number]):
            run(self.program("shoal"), "umount", self.places[number])

    def umount(self):
        for number in range(self.hosts):
            self.leave(number)

    def cold(self):
        self.leave(0)
        self.join(0)

    def counts(self, number):
        """What one host has asked of the device."""
        text = os.getxattr(self.places[number], "trusted.shoal.io").decode()
        return {name: int(value) for name, value in (pair.split("=") for pair in text.split())}

    def daemons(self):
        pids = []
        for name in os.listdir(RECORDS):
            with contextlib.suppress(OSError, ValueError), open(f"{RECORDS}/{name}", encoding="utf-8") as record:
                daemon = json.load(record)
                if daemon["mountpoint"] in self.places:
                    pids.append(daemon["pid"])
        return pids

    def disk_operations(self):
        counts = [self.counts(number) for number in range(self.hosts)]
        return sum(c["reads"] + c["writes"] + c["flushes"] for c in counts)

    def end(self):
        super().end()
        for number in range(self.hosts):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self.image}.log{number}")


class TwoHosts(Shoal):
    key, name = "shoal2", "Shoal, 2 hosts"
    hosts = 2


class Idle(TwoHosts):
    """Two hosts with the times that real volumes have."""

    key, name = "idle", "Shoal, 2 idle hosts"
    timing = "default"


ALL = (Ext4, Fuse2fs, Memory, Shoal, TwoHosts)
