# In the guest that is the disk array: /dev/ubda as one iSCSI LUN with persistent reservations (the kernel's own
# target). HOSTS: numbers of the guests that may log in, each under a name, and so a nexus, of its own.
set -e
mount -n --bind /usr/lib/uml/modules /usr/lib/modules
ip link set lo up
ip addr add 10.78.0.1/24 dev eth0
ip link set eth0 up
mkdir -p /var/target/pr /var/target/alua
for module in target_core_mod target_core_iblock iscsi_target_mod; do modprobe $module; done
mountpoint -q /sys/kernel/config || mount -n -t configfs configfs /sys/kernel/config
target=/sys/kernel/config/target
store=$target/core/iblock_0/disk
mkdir -p $store
echo udev_path=/dev/ubda >$store/control
echo shoal-test >$store/wwn/vpd_unit_serial
echo 1 >$store/enable
mkdir -p $target/iscsi
portal=$target/iscsi/iqn.2026-11.test.shoal:array/tpgt_1
mkdir -p $portal/lun/lun_0
ln -s $store $portal/lun/lun_0/disk
mkdir -p $portal/np/10.78.0.1:3260
echo 0 >$portal/attrib/authentication
echo 0 >$portal/attrib/demo_mode_write_protect
for host in $HOSTS; do
    acl=$portal/acls/iqn.2026-11.test.shoal:guest$host
    mkdir -p $acl/lun_0
    ln -s $portal/lun/lun_0 $acl/lun_0/disk
done
echo 1 >$portal/enable
