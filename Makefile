# Shoal. `make` builds, `make test` tests, `make install DESTDIR=... PREFIX=...` installs.

CARGO ?= cargo
CARGO_TARGET_DIR ?= target
export CARGO_TARGET_DIR
PREFIX ?= /usr/local
# mount(8), umount(8), mkfs(8) and fsck(8) look for helpers in /sbin alone.
SBINDIR ?= /sbin
BINDIR ?= $(PREFIX)/bin
DOCDIR ?= $(PREFIX)/share/doc/shoal

RELEASE = $(CARGO_TARGET_DIR)/release
SUDO = $(if $(filter 0,$(shell id -u)),,sudo)
DEPS = ca-certificates util-linux e2fsprogs fuse2fs sqlite3 rsync git attr acl python3-minimal
# The same as programs, so that a demo or a test asks for a package only where one is missing.
TOOLS = cc:gcc mount:mount unshare:util-linux mkfs.ext4:e2fsprogs
POSTGRES = losetup:mount setpriv:util-linux unshare:util-linux python3:python3-minimal initdb:postgresql
PROGRAMS = $(TOOLS) git:git sqlite3:sqlite3 rsync:rsync setfattr:attr setfacl:acl
DEPS_VM = user-mode-linux uml-utilities open-iscsi iproute2 kmod util-linux python3-minimal sg3-utils

# What cargo-deny checks; `make lint DENY="bans licenses sources"` where its database cannot be fetched.
DENY ?= all

# Longer runs of the simulations: how many, from which seed on, how many at a time.
POINTS ?= 100000
SEEDS ?= 20
SEED ?= 1
JOBS ?= 4
DEATHS ?= 200
REPLAYS ?= 60
ROUNDS ?= 5
STORE ?= loop

.PHONY: all build demo tools test programs postgres test-vm deps-vm crash-points simulate deaths replays torture bench install deps lint clean

all: build

# Cargo cannot build names with dots in them; the programs look at the name they are called by.
build:
	$(CARGO) build --release --workspace
	ln -sf mkfs_shoal $(RELEASE)/mkfs.shoal
	ln -sf fsck_shoal $(RELEASE)/fsck.shoal
	ln -sf shoal $(RELEASE)/mount.fuse.shoal
	ln -sf shoal $(RELEASE)/umount.fuse.shoal
	ln -sf shoal $(RELEASE)/mount.fuseblk.shoal
	ln -sf shoal $(RELEASE)/umount.fuseblk.shoal

demo: tools build
	tests/demo.sh $(RELEASE)

tools:
	tests/tools.sh $(TOOLS)

# Tests that mount look for mkfs and fsck beside the program under test: build all first.
test: tools
	$(CARGO) build --workspace
	$(CARGO) test --workspace

# Real programs on two hosts; CARGO_TOO=cargo also builds this project there (minutes).
programs: build
	tests/tools.sh $(PROGRAMS)
	tests/programs.sh $(RELEASE) $(CARGO_TOO)

# PostgreSQL on two hosts, of which the one that it runs on dies under load, ROUNDS times. Debian keeps its programs beside PATH.
postgres: build
	PATH="$$PATH$$(printf ':%s' /usr/lib/postgresql/*/bin)" tests/tools.sh $(POSTGRES)
	tests/postgres.sh $(RELEASE) $(ROUNDS) $(SEED) $(STORE)

# Several kernels on one image: User-Mode Linux guests. Root; no virtualisation is needed.
test-vm: deps-vm
	$(CARGO) build --workspace
	$(CARGO) test --test vm -- --test-threads=1

crash-points:
	SHOAL_POINTS=$(POINTS) SHOAL_SEED=$(SEED) \
		$(CARGO) test --release --test simulation workloads -- --nocapture

simulate:
	SHOAL_SEEDS=$(SEEDS) SHOAL_SEED=$(SEED) SHOAL_JOBS=$(JOBS) \
		$(CARGO) test --release --test simulation -- --nocapture cluster chaos

# Hosts that die while others live, in memory: SEEDS=10000 JOBS=12 takes a night.
deaths:
	SHOAL_SEEDS=$(SEEDS) SHOAL_SEED=$(SEED) SHOAL_JOBS=$(JOBS) \
		$(CARGO) test --release --test simulation -- --nocapture hosts_die_while_others_live

# Power cuts behind every request of a replay, for so many seeds.
replays:
	for seed in $$(seq $(SEED) $$(($(SEED) + $(REPLAYS) - 1))); do \
		SHOAL_SEED=$$seed SHOAL_REPLAYS=0 \
			$(CARGO) test --release --test simulation -- --nocapture replayed || exit 1; \
	done

# Random deaths of real mounts under load, 3 to 10 s each. Needs root and /dev/fuse.
torture: build
	SHOAL_DEATHS=$(DEATHS) SHOAL_SEED=$(SEED) \
		$(CARGO) test --release --test cluster torture -- --nocapture

# BENCH="--rounds 1 --files 1000 --mib 64 --no-idle" takes less than a minute.
bench: build
	$(CARGO) build --release --bench memfs
	benches/bench.py $(BENCH) --memfs $$(ls -t $(RELEASE)/deps/memfs-* | grep -v '\.d$$' | head -1) $(RELEASE)

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) test --test house
	@command -v cargo-deny >/dev/null || { echo "missing here: cargo install --locked cargo-deny" >&2; exit 1; }
	$(CARGO) deny check $(DENY)

install: build
	install -d $(DESTDIR)$(SBINDIR) $(DESTDIR)$(BINDIR) $(DESTDIR)$(DOCDIR)
	install -m 755 $(RELEASE)/shoal $(DESTDIR)$(BINDIR)/shoal
	install -m 755 $(RELEASE)/mkfs_shoal $(DESTDIR)$(SBINDIR)/mkfs.shoal
	install -m 755 $(RELEASE)/fsck_shoal $(DESTDIR)$(SBINDIR)/fsck.shoal
	ln -sf mkfs.shoal $(DESTDIR)$(SBINDIR)/mkfs.fuse.shoal
	ln -sf fsck.shoal $(DESTDIR)$(SBINDIR)/fsck.fuse.shoal
	install -m 755 $(RELEASE)/shoal $(DESTDIR)$(SBINDIR)/mount.fuse.shoal
	ln -sf mount.fuse.shoal $(DESTDIR)$(SBINDIR)/umount.fuse.shoal
	ln -sf mount.fuse.shoal $(DESTDIR)$(SBINDIR)/mount.fuseblk.shoal
	ln -sf mount.fuse.shoal $(DESTDIR)$(SBINDIR)/umount.fuseblk.shoal
	ln -sf mkfs.shoal $(DESTDIR)$(SBINDIR)/mkfs.fuseblk.shoal
	ln -sf fsck.shoal $(DESTDIR)$(SBINDIR)/fsck.fuseblk.shoal
	install -m 644 LICENSE-MIT LICENSE-APACHE $(DESTDIR)$(DOCDIR)

# What tests, demo and benchmarks use (Debian and its kin).
deps:
	$(SUDO) apt-get update
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $(DEPS)

# Guests see this machine's / and cannot write to it: they need a place there to mount their kernel's modules upon.
deps-vm:
	$(SUDO) apt-get update
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $(DEPS_VM)
	$(SUDO) install -d /usr/lib/modules

clean:
	$(CARGO) clean
