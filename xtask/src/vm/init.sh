#!/bin/busybox sh
# Process 1 of a guest, in its initramfs: the host's file system below a layer that is the guest's, then GUEST in it.
bb=/bin/busybox
$bb mkdir -p /proc /dev /host /layer /root
$bb mount -t proc proc /proc
$bb mount -t devtmpfs dev /dev
exec </dev/null >/dev/ttyS1 2>&1
for module in $($bb cat /modules/order); do $bb insmod "/modules/$module"; done
$bb mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=512000 host /host
$bb mount -t tmpfs layer /layer
$bb mkdir /layer/upper /layer/work
$bb mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work overlay /root
$bb mount -t tmpfs run /root/run
$bb mount -t proc proc /root/proc
$bb mount -t sysfs sysfs /root/sys
$bb mount -t securityfs security /root/sys/kernel/security
$bb mount -t cgroup2 cgroup /root/sys/fs/cgroup
$bb mount -t bpf bpf /root/sys/fs/bpf
$bb mount -t devtmpfs dev /root/dev
$bb mkdir -p /root/dev/shm /root/dev/pts /root/dev/net
# As udev makes them: opening the one loads its driver, scripts read from the others.
$bb mknod /root/dev/net/tun c 10 200
$bb ln -s /proc/self/fd /root/dev/fd
$bb ln -s /proc/self/fd/0 /root/dev/stdin
$bb mount -t tmpfs shm /root/dev/shm
$bb mount -t devpts -o ptmxmode=0666 pts /root/dev/pts
exec $bb switch_root /root /bin/sh GUEST
