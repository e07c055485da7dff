#!/bin/sh
# postgres.sh BIN [ROUNDS [SEED [loop|file]]]: PostgreSQL with its data on a volume with two hosts (two mounts on this
# machine). First it moves in order from host a to host b; then, ROUNDS times, the host it runs on dies under load at a random
# moment, and it goes on upon the other one, where every transaction that the server had confirmed must be.
#
# A machine is a mount and the server's processes, which have numbers and shared memory of their own (namespaces).
# With `loop` each has a loop device (fuseblk), with `file` the image.
set -eu
bin=$(cd "$1" && pwd)
rounds=${2:-5} seed=${3:-1} store=${4:-loop}
here=$(cd "$(dirname "$0")" && pwd)
for there in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin; do
    [ ! -x "$there/postgres" ] || PATH=$there:$PATH
done
committers=4 scale=5 port=5499
# Longest times in seconds: of a command; from a death until the other server is ready (recovery included).
limit=120 failover_max=90
export LC_ALL=C PGUSER=postgres PGDATABASE=postgres PGPORT=$port PGCONNECT_TIMEOUT=10 PGOPTIONS=

say() { printf '== %s\n' "$*"; }
fail() {
    echo "postgres.sh: $* (seed $seed)" >&2
    exit 1
}
for program in initdb postgres pgbench psql pg_checksums setpriv unshare losetup python3; do
    command -v $program >/dev/null || fail "$program is missing (Debian: postgresql, util-linux, mount, python3-minimal)"
done
case $store in loop | file) ;; *) fail "the store is loop or file, not $store" ;; esac
[ "$(id -u)" = 0 ] || fail "mounting needs root"
[ -e /dev/fuse ] || fail "/dev/fuse is missing (modprobe fuse)"
id postgres >/dev/null 2>&1 || fail "there is no user postgres, whom the server runs as"
unshare --pid --ipc --fork true || fail "no namespaces of processes here"

dir=$(mktemp -d -p "${SHOAL_TEST_DIR:-/dev/shm}" 2>/dev/null || mktemp -d)
image=$dir/disk.img killed=$dir/killed started=0 children=

alive() { [ -n "${1:-}" ] && [ -d "/proc/$1" ]; }
daemon_of() { "$bin/shoal" status | sed -n "s|.* on $dir/$1: mounted, process \([0-9]*\).*|\1|p"; }
machine_of() { cat "$dir/machine.$1" 2>/dev/null || true; }

clean() {
    touch "$killed"
    for host in a b; do
        machine=$(machine_of $host)
        ! alive "$machine" || kill -9 "$machine"
    done
    for child in $children; do kill "$child" 2>/dev/null || true; done
    for host in a b; do
        if grep -q " $dir/$host " /proc/mounts; then
            timeout 60 "$bin/shoal" umount "$dir/$host" 2>/dev/null || umount -l "$dir/$host" 2>/dev/null || true
        fi
        device=$(cat "$dir/device.$host" 2>/dev/null || true)
        case $device in /dev/loop*) losetup -d "$device" || true ;; esac
    done
    if [ -e "$dir/passed" ]; then rm -rf "$dir"; else echo "logs are kept in $dir" >&2; rm -f "$image"; fi
}
trap clean EXIT
trap 'exit 1' INT TERM

# A number from 0 to $1 - 1 in $random; they follow from the seed.
random=0 state=$((seed % 2147483648))
draw() {
    state=$(((state * 1103515245 + 12345) % 2147483648))
    random=$((state / 32768 % $1))
}

# Until "$@" holds; at most $1 seconds.
wait_until() {
    left=$(($1 * 20)) what=$2
    shift 2
    until "$@"; do
        left=$((left - 1))
        [ $left -gt 0 ] || fail "$what takes too long"
        sleep 0.05
    done
}
gone() { ! alive "$1"; }
now_ms() { echo $(($(date +%s%N) / 1000000)); }

mount_host() {
    mkdir -p "$dir/$1"
    timeout $limit "$bin/shoal" mount "$(cat "$dir/device.$1")" "$dir/$1" -o "name=$1,fence=lease,log=$dir/log.$1" ||
        fail "host $1 cannot mount"
}

# What a server may say in its log when all is well, and what it never may.
harmless='FATAL:  the database system is (starting up|not yet accepting|shutting down)'
harmless="$harmless|FATAL:  terminating .* due to administrator command|ERROR:  canceling autovacuum task"
harmless="$harmless|could not (receive|send) data (from|to) client"
look_at_log() {
    if grep -E 'PANIC|ERROR|WARNING|FATAL|corrupt|invalid page|verification failed|could not|terminated by signal' "$1" |
        grep -vE "$harmless"; then
        fail "the server complains ($1)"
    fi
}

ready() {
    alive "$(machine_of "$1")" || {
        tail -n 20 "$log" >&2
        fail "the server does not start on host $1 ($log)"
    }
    pg_isready -q -h "$dir/socket.$1"
}

# The server on host $1, in namespaces whose end is the end of all its processes. How it makes its log durable and shares
# memory changes from start to start.
start() {
    draw 4
    case $random in 0) sync=fdatasync ;; 1) sync=fsync ;; 2) sync=open_datasync ;; *) sync=open_sync ;; esac
    draw 2
    [ $random = 0 ] && shared=mmap || shared=sysv
    draw 2
    [ $random = 0 ] && recycle=on || recycle=off
    started=$((started + 1)) log=$dir/server.$started.$1
    rm -f "$dir/machine.$1"
    # Its process 1 hands SIGTERM on as an order to stop in a fast way.
    # shellcheck disable=SC2016
    unshare --pid --ipc --fork --kill-child sh -c '
        read -r number rest < /proc/self/stat
        echo "$number" > "$0.new" && mv "$0.new" "$0"
        "$@" &
        server=$!
        trap "kill -INT $server" TERM
        while kill -0 $server 2>/dev/null; do wait $server; done' \
        "$dir/machine.$1" setpriv --reuid=postgres --regid=postgres --init-groups \
        postgres -D "$dir/$1/data" -c unix_socket_directories="$dir/socket.$1" -c unix_socket_permissions=0700 \
        -c listen_addresses= -c wal_sync_method=$sync -c dynamic_shared_memory_type=$shared \
        -c wal_recycle=$recycle -c wal_init_zero=$recycle < /dev/null > "$log" 2>&1 &
    children="$children $!"
    wait_until 10 "the start of a namespace" test -e "$dir/machine.$1"
    wait_until $failover_max "the start of the server on host $1" ready "$1"
}

# In order.
stop() {
    machine=$(machine_of "$1")
    kill -TERM "$machine"
    wait_until $limit "the stop of the server on host $1" gone "$machine"
    grep -q "database system is shut down" "$log" || fail "the server on host $1 did not stop in order ($log)"
    look_at_log "$log"
}

sql() {
    there=$dir/socket.$1
    shift
    timeout $limit psql -X -q -A -t -v ON_ERROR_STOP=1 -h "$there" "$@"
}
bench() {
    there=$dir/socket.$1
    shift
    timeout $limit pgbench -n -h "$there" "$@"
}

# pgbench's four sums are one number.
sums_agree() {
    sums=$(sql "$1" -c 'select sum(abalance) from pgbench_accounts' -c 'select sum(tbalance) from pgbench_tellers' \
        -c 'select sum(bbalance) from pgbench_branches' -c 'select coalesce(sum(delta), 0) from pgbench_history')
    [ "$(echo "$sums" | uniq | wc -l)" = 1 ] || fail "accounts, tellers, branches and history differ: $(echo $sums)"
    accounts=$(sql "$1" -c 'select count(*) from pgbench_accounts')
    [ "$accounts" = $((scale * 100000)) ] || fail "$accounts accounts of $((scale * 100000))"
}

# Every number that was confirmed is there, once; beyond those at most the one that each client waited for when its server died.
# Without indexes and by the index.
rows_are_there() {
    cat "$dir"/confirmed.* > "$dir/confirmed"
    sql "$1" > "$dir/found" <<END
create temp table confirmed (n bigint);
\\copy confirmed from '$dir/confirmed'
set enable_indexscan = off; set enable_indexonlyscan = off; set enable_bitmapscan = off;
create temp table more as select n from committed except select n from confirmed;
select 'lost ' || n from (select n from confirmed except select n from committed order by n limit 20) lost;
select 'twice ' || n from committed group by n having count(*) > 1 limit 20;
select 'never asked for ' || m.n from more m where exists (select from confirmed c where c.n = m.n + 1)
    or (m.n % 1000000 > 0 and not exists (select from confirmed c where c.n = m.n - 1)) limit 20;
create temp table counted as select count(*) from committed;
reset enable_indexscan; reset enable_indexonlyscan; reset enable_bitmapscan; set enable_seqscan = off;
select 'the index has ' || count(*) || ', the table ' || (table counted) from committed where n >= 0
    having count(*) <> (table counted);
END
    [ ! -s "$dir/found" ] || {
        cat "$dir/found" >&2
        fail "what was committed is not what is there"
    }
}

amcheck() {
    command -v pg_amcheck >/dev/null || return 0
    sql "$1" -c 'create extension if not exists amcheck' 2>/dev/null || return 0
    timeout $limit pg_amcheck -h "$dir/socket.$1" --heapallindexed --parent-check postgres || fail "pg_amcheck found damage"
}

# Load on host $1, which dies in the middle of it; host $2 goes on.
round() {
    from=$1 to=$2 clients=
    rm -f "$killed"
    timeout $limit pgbench -n -h "$dir/socket.$from" -c 4 -T $limit > "$dir/pgbench.$number" 2>&1 &
    bench_pid=$!
    client=0
    while [ $client -lt $committers ]; do
        file=$dir/confirmed.$number.$client
        "$here/postgres_client.py" commit "$dir/socket.$from/.s.PGSQL.$port" $(((number * 16 + client) * 1000000)) \
            "$file" "$killed" 2>> "$dir/complaints" &
        clients="$clients $!"
        client=$((client + 1))
        wait_until $limit "the first transaction of a client" test -s "$file"
    done
    "$here/postgres_client.py" churn "$dir/socket.$from/.s.PGSQL.$port" "$killed" 2>> "$dir/complaints" &
    clients="$clients $!"
    children="$children $bench_pid $clients"
    draw 6000
    moment=$random
    sleep "$((moment / 1000)).$(printf %03d $((moment % 1000)))"

    daemon=$(daemon_of "$from")
    [ -n "$daemon" ] || fail "no daemon of host $from"
    machine=$(machine_of "$from")
    alive "$bench_pid" || fail "pgbench ended before its server: $(cat "$dir/pgbench.$number")"
    [ ! -s "$dir/complaints" ] || fail "a client: $(cat "$dir/complaints")"
    look_at_log "$log"
    touch "$killed"
    kill -9 "$daemon"
    death=$(now_ms)
    # The server may have been quicker: it gives up when it cannot write.
    kill -9 "$machine" 2>/dev/null || true
    wait_until 30 "the end of the processes of host $from" gone "$machine"
    wait_until 30 "the end of the daemon of host $from" gone "$daemon"
    umount -l "$dir/$from"
    for child in $clients; do wait "$child" || fail "a client of round $number: $(cat "$dir/complaints")"; done
    wait "$bench_pid" 2>/dev/null || true

    # The number in it is of a process of the dead machine: here it may be another's. Whoever knows that the machine is off removes it.
    timeout $failover_max rm "$dir/$to/data/postmaster.pid" || fail "host $to does not take over"
    start "$to"
    ready_after=$(($(now_ms) - death))
    grep -q 'automatic recovery in progress' "$log" || fail "the server on host $to did not recover ($log)"
    grep -qE 'redo (done|is not required)' "$log" || fail "the server on host $to recovered without an end ($log)"
    rows_are_there "$to"
    sums_agree "$to"
    [ $((number % 5)) != 0 ] || amcheck "$to"
    look_at_log "$log"
    mount_host "$from"
    say "round $number: host $from died after $moment ms of load and $(cat "$dir/confirmed.$number".* | wc -l) confirmed rows;" \
        "ready on host $to $ready_after ms later ($sync, $shared, recycle $recycle)"
}

mkdir "$dir/socket.a" "$dir/socket.b"
chmod 755 "$dir"
chown postgres: "$dir/socket.a" "$dir/socket.b"
truncate -s 4G "$image"
for host in a b; do
    case $store in loop) losetup -f --show "$image" ;; file) echo "$image" ;; esac > "$dir/device.$host"
done
"$bin/mkfs.shoal" -q --timing test "$(cat "$dir/device.a")"
mount_host a
mount_host b

say "seed $seed, $rounds rounds, $(postgres --version), $(grep " $dir/a " /proc/mounts | cut -d' ' -f3)"
say "initdb and pgbench on host a, stopped; on host b the same, and on with it"
install -d -o postgres -g postgres -m 700 "$dir/a/data"
timeout $limit setpriv --reuid=postgres --regid=postgres --init-groups \
    initdb -k --no-locale -E UTF8 -A trust --wal-segsize=4 -D "$dir/a/data" > "$dir/initdb" 2>&1 || {
    cat "$dir/initdb" >&2
    fail "initdb"
}
# Little memory and short logs: pages are written and read again, segments recycled, checkpoints made all the time.
cat >> "$dir/a/data/postgresql.conf" <<END
port = $port
shared_buffers = 8MB
min_wal_size = 8MB
max_wal_size = 32MB
checkpoint_timeout = 30s
autovacuum_naptime = 2s
max_connections = 40
END
start a
bench a -i -q -s $scale > "$dir/pgbench.i" 2>&1 || fail "pgbench -i: $(cat "$dir/pgbench.i")"
sql a -c 'create table committed (n bigint)' -c 'create index on committed (n)'
bench a -c 4 -T 5 > "$dir/pgbench.a" 2>&1 || fail "pgbench: $(cat "$dir/pgbench.a")"
sums_agree a
before=$sums
stop a
start b
! grep -q 'not properly shut down' "$log" || fail "the server was stopped in order and has to recover"
sums_agree b
[ "$before" = "$sums" ] || fail "the sums were $before and are $sums"
bench b -c 4 -T 5 > "$dir/pgbench.b" 2>&1 || fail "pgbench: $(cat "$dir/pgbench.b")"
sums_agree b
stop b
sed -n 's/^tps = \([0-9.]*\).*/transactions a second: \1/p' "$dir/pgbench.a" "$dir/pgbench.b"

number=0 from=a to=b
start a
while [ $number -lt "$rounds" ]; do
    number=$((number + 1))
    round $from $to
    other=$from from=$to to=$other
done

say "pg_amcheck, a stop in order, pg_checksums on the other host"
amcheck $from
stop $from
timeout $limit setpriv --reuid=postgres --regid=postgres --init-groups pg_checksums --check -D "$dir/$to/data" > "$dir/checksums" 2>&1 || {
    cat "$dir/checksums" >&2
    fail "pg_checksums found damage"
}
grep 'Blocks scanned' "$dir/checksums"
for host in a b; do
    timeout $limit "$bin/shoal" umount "$dir/$host" || fail "host $host does not leave"
done
"$bin/fsck.shoal" -n -f "$(cat "$dir/device.a")"
if grep -h ERROR "$dir/log.a" "$dir/log.b"; then fail "a host logged errors"; fi
touch "$dir/passed"
say "nothing lost, nothing twice: $(cat "$dir"/confirmed.*.* 2>/dev/null | wc -l) confirmed rows over $rounds deaths"
