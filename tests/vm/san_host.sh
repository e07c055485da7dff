# In a guest that is a host: logs in to the array; says what the disk is called here.
set -e
mount -n --bind /usr/lib/uml/modules /usr/lib/modules
ip link set lo up
ip addr add 10.78.0.$GUEST/24 dev eth0
ip link set eth0 up
for module in sd_mod sg iscsi_tcp; do modprobe $module; done
mkdir -p /etc/iscsi /run/lock/iscsi /var/lib/iscsi
[ -e /run/lock ] || mkdir -p /run/lock
echo "InitiatorName=iqn.2026-11.test.shoal:guest$GUEST" >/etc/iscsi/initiatorname.iscsi
iscsid
n=0
until iscsiadm -m discovery -t st -p 10.78.0.1 >/dev/null 2>&1; do
    n=$((n + 1))
    [ $n -lt 50 ]
    sleep 0.3
done
iscsiadm -m node -l >&2
n=0
until disk=$(ls /sys/block | grep '^sd' | head -1) && [ -n "$disk" ] && [ -b "/dev/$disk" ]; do
    n=$((n + 1))
    [ $n -lt 100 ]
    sleep 0.1
done
echo "/dev/$disk"
