"""What guests do on a volume. worker.py promise|keep|probe|append|mapped ...; the docstrings tell the arguments."""

import hashlib
import mmap
import os
import random
import sys
import time


def promise(directory, who, ledger, seed):
    """Create, change, rename and unlink files for ever; `ledger` gets a line for what was fsync'd."""
    rng = random.Random(f"{who}.{seed}")
    names = []
    with open(ledger, "a", buffering=1, encoding="utf-8") as promised:
        for number in range(1 << 30):
            kind = rng.randrange(10)
            if names and kind == 0:
                # Not promised, so it may come back; from here on nobody may ask for it.
                name = names.pop(rng.randrange(len(names)))
                promised.write(f"maybe {name} -\n")
                os.unlink(f"{directory}/{name}")
                continue
            name = f"{who}.{seed}.{number}"
            data = rng.randbytes(rng.randrange(60_000))
            fd = os.open(f"{directory}/{name}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            for start in range(0, len(data), 9000):
                os.write(fd, data[start:start + 9000])
            os.fsync(fd)
            if kind == 1:
                os.rename(f"{directory}/{name}", f"{directory}/{name}.moved")
                os.fsync(fd)
                name += ".moved"
            os.close(fd)
            promised.write(f"there {name} {hashlib.sha256(data).hexdigest()}\n")
            names.append(name)


def keep(directory, ledger):
    """Is all there that was promised? Prints how many files."""
    wanted = {}
    with open(ledger, encoding="utf-8") as lines:
        for line in lines:
            # The last line may be cut by the death of its writer.
            if line.endswith("\n"):
                word, name, digest = line.split()
                wanted[name] = digest if word == "there" else None
    count = 0
    for name, digest in wanted.items():
        if digest is None:
            continue
        with open(f"{directory}/{name}", "rb") as file:
            found = hashlib.sha256(file.read()).hexdigest()
        assert found == digest, f"{name} has other content than was fsync'd"
        count += 1
    print(count)


def probe(directory, seconds):
    """Create, fsync and remove a file again and again; how long did one round take at most?"""
    begun, longest, count = time.monotonic(), 0.0, 0
    while (start := time.monotonic()) < begun + float(seconds):
        path = f"{directory}/probe"
        fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
        os.write(fd, b"probe")
        os.fsync(fd)
        os.close(fd)
        os.unlink(path)
        longest, count = max(longest, time.monotonic() - start), count + 1
        time.sleep(0.01)
    print(f"{count} rounds, the longest {longest:.2f} s")


def append(path, who, count):
    """Append that many records to a file that others append to."""
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    for number in range(int(count)):
        os.write(fd, f"{who} {number:06}\n".encode())
    os.close(fd)


def mapped(path, at, value):
    """Store one byte through a shared mapping and msync it; without a value print what stands there."""
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, 0) as memory:
        if value == "-":
            print(memory[int(at)])
        else:
            memory[int(at)] = int(value)
            memory.flush()
    os.close(fd)


if __name__ == "__main__":
    {"promise": promise, "keep": keep, "probe": probe, "append": append, "mapped": mapped}[sys.argv[1]](*sys.argv[2:])
