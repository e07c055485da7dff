#!/bin/sh
# programs.sh BIN [cargo]: real programs on one volume with two hosts (two mounts on this machine), half of the
# steps on the other host: git, SQLite, tar, rsync; with `cargo` also a build of this project (minutes).
set -eu
bin=$(cd "$1" && pwd)
build=${2:-}
top=$(cd "$(dirname "$0")/.." && pwd)
dir=$(mktemp -d -p /dev/shm 2>/dev/null || mktemp -d)
a=$dir/a b=$dir/b
say() { printf '== %s\n' "$*"; }
fail() {
    echo "programs.sh: $*" >&2
    exit 1
}
clean() {
    for host in a b; do
        if mountpoint -q "$dir/$host"; then "$bin/shoal" umount "$dir/$host" || umount -l "$dir/$host"; fi
    done
    rm -rf "$dir"
}
trap clean EXIT
trap 'exit 1' INT TERM
[ "$(id -u)" = 0 ] || fail "mounting needs root"
[ -e /dev/fuse ] || fail "/dev/fuse is missing (modprobe fuse)"
# The settings of whoever runs this stay out of it; the toolchain may be one of theirs.
export RUSTUP_HOME="${RUSTUP_HOME:-$HOME/.rustup}" CARGO_HOME="${CARGO_HOME:-$HOME/.cargo}"
export HOME="$dir" GIT_CONFIG_NOSYSTEM=1
mkdir "$a" "$b"
"$bin/mkfs.shoal" -q --timing test "$dir/disk.img" 6G
"$bin/shoal" mount "$dir/disk.img" "$a" -o "name=a,log=$dir/log.a"
"$bin/shoal" mount "$dir/disk.img" "$b" -o "name=b,log=$dir/log.b"

say "git: clone on host a, fsck and another branch on host b, a commit there, pulled on host a"
origin=$dir/origin
git init -q -b main "$origin"
git -C "$origin" config user.email nobody@example.org
git -C "$origin" config user.name nobody
for n in 1 2 3 4 5 6 7 8; do
    for file in "$top"/src/*/*.rs; do
        sed "s/^/$n /" "$file" > "$origin/$(basename "$(dirname "$file")")-$(basename "$file")"
    done
    git -C "$origin" add . && git -C "$origin" commit -qm "change $n"
    [ $n != 4 ] || git -C "$origin" branch old
done
git clone -q --no-local "$origin" "$a/repo"
git -C "$b/repo" fsck --full --strict
git -C "$b/repo" checkout -q old
git -C "$a/repo" diff --exit-code origin/old >/dev/null || fail "git: the tree of branch old differs on host a"
[ -z "$(git -C "$a/repo" status --porcelain)" ] || fail "git: host a sees changes that nobody made"
git -C "$b/repo" checkout -q main
git -C "$b/repo" -c user.email=b@example.org -c user.name=b commit -q --allow-empty -m "from host b"
git clone -q --no-local "$b/repo" "$a/again"
[ "$(git -C "$a/again" log -1 --format=%s)" = "from host b" ] || fail "git: host b's commit is not there"
git -C "$a/repo" gc -q
git -C "$b/repo" fsck --full --strict

say "SQLite: 20 transactions in turn on each host, rollback journal"
sqlite3 "$a/base.db" 'create table t (n integer primary key, host text);'
n=0
while [ $n -lt 20 ]; do
    sqlite3 "$a/base.db" "begin; insert into t values ($((2 * n)), 'a'); commit;"
    sqlite3 "$b/base.db" "begin; insert into t values ($((2 * n + 1)), 'b'); commit;"
    n=$((n + 1))
done
[ "$(sqlite3 "$a/base.db" 'pragma integrity_check; select count(*), sum(n) from t;' | tr '\n' ' ')" = "ok 40|780 " ] ||
    fail "sqlite: the base is not what was written"

say "tar and rsync -aHAX: a real tree there and back, identical"
tree=$dir/tree
mkdir "$tree"
cp -a /usr/share/perl /usr/share/doc /etc "$tree" 2>/dev/null || true
ln "$tree/etc/hostname" "$tree/hard link" 2>/dev/null || true
setfattr -n user.colour -v blue "$tree/etc"
setfacl -m u:7:rx,d:u:7:rwx "$tree/etc"
mkfifo "$tree/pipe"
truncate -s 1G "$tree/sparse"
tar -C "$tree" --xattrs --acls --sparse -cf - . | (mkdir "$a/tree.tar" && tar -C "$a/tree.tar" --xattrs --acls -xpf -)
rsync -aHAX --sparse "$tree/" "$b/tree.rsync/"
for there in "$b/tree.tar" "$a/tree.rsync"; do
    left=$(rsync -aHAXnc --itemize-changes --delete "$tree/" "$there/")
    [ -z "$left" ] || fail "$there differs: $left"
    rsync -aHAX --sparse "$there/" "$dir/back/"
    left=$(rsync -aHAXnc --itemize-changes --delete "$tree/" "$dir/back/")
    [ -z "$left" ] || fail "what came back from $there differs: $left"
    rm -rf "$dir/back"
done

if [ "$build" = cargo ]; then
    say "cargo build with its target directory on the volume: mkfs on host a, all of it on host b, again on host a"
    (cd "$top" && CARGO_TARGET_DIR=$a/target cargo build -p shoal-mkfs)
    (cd "$top" && CARGO_TARGET_DIR=$b/target cargo build --workspace)
    again=$(cd "$top" && CARGO_TARGET_DIR=$a/target cargo build --workspace 2>&1)
    case $again in
    *Compiling*) fail "cargo: host a found work that host b had done: $again" ;;
    esac
    "$a/target/debug/mkfs_shoal" -q "$b/built.img" 64M
    "$b/target/debug/fsck_shoal" -f "$a/built.img"
fi

"$bin/shoal" umount "$a"
"$bin/shoal" umount "$b"
"$bin/fsck.shoal" -f "$dir/disk.img"
if grep -h ERROR "$dir/log.a" "$dir/log.b"; then fail "a host logged errors"; fi
say "all as on one local disk"
