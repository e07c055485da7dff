#!/bin/sh
# First process of a guest: User-Mode Linux with the host's / as a read-only root. What a program may write
# to is memory of this guest. GUEST (a number) and RUN (the test's folder on the host, read-write) come from
# the kernel's command line.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C
mount -n -t proc proc /proc
mount -n -t sysfs sysfs /sys
mountpoint -q /dev || mount -n -t devtmpfs devtmpfs /dev
for place in /run /mnt; do mount -n -t tmpfs tmpfs $place; done
mkdir -p /mnt/host /mnt/fs /mnt/etc
mount -n -t hostfs -o "$RUN" none /mnt/host
# A host is known by its machine id and its name; this copy is the guest's own.
cp -a /etc/. /mnt/etc/ 2>/dev/null
mount -n --bind /mnt/etc /etc
printf '%032d\n' "$GUEST" >/etc/machine-id
hostname "guest$GUEST"
for place in /tmp /var /dev/shm; do mkdir -p $place; mount -n -t tmpfs tmpfs $place; done
mkdir -p /var/tmp /var/log
insmod "/usr/lib/uml/modules/$(uname -r)/kernel/fs/fuse/fuse.ko"
dmesg -n 4
# Commands come as numbers over the serial line: N stands for the script N.sh of this guest.
stty -F /dev/ttyS0 raw -echo
exec 7</dev/ttyS0 8>/dev/ttyS0
echo "READY 0" >&8
while read -r number <&7; do
    job="/mnt/host/guest$GUEST.$number"
    (
        sh "$job.sh" </dev/null >"$job.out" 2>&1 7<&- 8>&-
        echo "DONE $number $?" >&8
    ) &
done
# The test is over, or dead: so is its guest.
echo o >/proc/sysrq-trigger
sleep 60
