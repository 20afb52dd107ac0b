"""netkit.py NAME PEER NETNS MODE: makes a netkit pair (l2 or l3), its peer in another network namespace, where iproute2 is too old to.

Exits with 1 where the kernel has none (linux/if_link.h, IFLA_NETKIT_*).
"""
import errno
import os
import socket
import struct
import sys

RTM_NEWLINK, NLM_F_REQUEST, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL = 16, 1, 4, 0x400, 0x200
IFLA_IFNAME, IFLA_LINKINFO, IFLA_NET_NS_FD = 3, 18, 28
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_NETKIT_PEER_INFO, IFLA_NETKIT_MODE = 1, 2, 1, 5
MODES = {"l2": 0, "l3": 1}


def attribute(kind, value):
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


name, peer, netns, mode = sys.argv[1:]
there = os.open(netns, os.O_RDONLY)
link = struct.pack("=BxHiII", 0, 0, 0, 0, 0)
peer = link + attribute(IFLA_IFNAME, peer.encode() + b"\0") + attribute(IFLA_NET_NS_FD, struct.pack("=i", there))
pair = attribute(IFLA_NETKIT_MODE, struct.pack("=I", MODES[mode])) + attribute(IFLA_NETKIT_PEER_INFO, peer)
kind = attribute(IFLA_INFO_KIND, b"netkit") + attribute(IFLA_INFO_DATA, pair)
body = link + attribute(IFLA_IFNAME, name.encode() + b"\0") + attribute(IFLA_LINKINFO, kind)
flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
    netlink.send(struct.pack("=IHHII", 16 + len(body), RTM_NEWLINK, flags, 1, 0) + body)
    answer = -struct.unpack_from("=i", netlink.recv(4096), 16)[0]
if answer == errno.EOPNOTSUPP:
    sys.exit(1)
if answer:
    sys.exit(f"netkit: {os.strerror(answer)}")
