"""families.py: sockets of every family and of the protocols without ports; NAME=ok|ERRNO a line."""
import errno
import socket

SOCKETS = {
    "packet": (17, 3, 0), "xdp": (44, 3, 0), "vsock": (40, 1, 0), "key": (15, 3, 2), "can": (29, 3, 1), "tipc": (30, 2, 0),
    "bluetooth": (31, 3, 0), "alg": (38, 5, 0), "llc": (26, 1, 0), "smc": (43, 1, 0), "rds": (21, 5, 0), "pppox": (24, 1, 0),
    "kcm": (41, 5, 0), "qipcrtr": (42, 2, 0), "x25": (9, 5, 0), "ieee802154": (36, 2, 0), "nfc": (39, 2, 0),
    "sctp4": (2, 1, 132), "sctp6": (10, 1, 132), "sctp_packets": (2, 5, 132), "dccp4": (2, 6, 33), "dccp6": (10, 6, 33),
    "l2tp4": (2, 2, 115), "l2tp6": (10, 2, 115), "udp_lite4": (2, 2, 136), "udp_lite6": (10, 2, 136),
    "raw4": (2, 3, 255), "raw6": (10, 3, 255), "raw_icmp4": (2, 3, 1), "raw_icmp6": (10, 3, 58),
    "ping4": (2, 2, 1), "ping6": (10, 2, 58),
    "udp4": (2, 2, 0), "udp6": (10, 2, 0), "tcp4": (2, 1, 0), "tcp6": (10, 1, 0), "unix": (1, 1, 0), "netlink": (16, 3, 0),
}
for name, what in SOCKETS.items():
    try:
        socket.socket(*what).close()
        print(f"{name}=ok")
    except OSError as error:
        print(f"{name}={errno.errorcode.get(error.errno, error.errno)}")
