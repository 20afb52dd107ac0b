"""raw.py TARGET TOKEN [MAC]: tries every way past the socket hooks to send to TARGET, one line a way: NAME=ok|ERRNO.

Where the way has a payload, it is TOKEN-NAME; where it has none, it goes to a port of its own (see PORTS in raw's test).
MAC is the link address for frames made by hand; without it they are broadcast.
"""
import errno
import socket
import struct
import sys

target, token = sys.argv[1:3]
mac = bytes.fromhex(sys.argv[3].replace(":", "")) if len(sys.argv) > 3 else b"\xff" * 6
own = sys.argv[4] if len(sys.argv) > 4 else "198.51.100.30"
IPPROTO_MPTCP, IPPROTO_UDPLITE, SOL_PACKET, PACKET_QDISC_BYPASS, MSG_FASTOPEN = 262, 136, 263, 20, 0x20000000


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packet(port, payload):
    udp = struct.pack("!HHHH", 5555, port, 8 + len(payload), 0) + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0x1234, 0, 64, socket.IPPROTO_UDP, 0)
    head += socket.inet_aton(own) + socket.inet_aton(target)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + udp


def echo(payload):
    head = struct.pack("!BBHHH", 8, 0, 0, 7, 1)
    return head[:2] + struct.pack("!H", checksum(head + payload)) + head[4:] + payload


def header_included(payload):
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(packet(7001, payload), (target, 0))


def icmp(payload):
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.sendto(echo(payload), (target, 0))


def gre(payload):
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, 47) as raw:
        raw.sendto(payload, (target, 0))


def ping(payload):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as sock:
        sock.sendto(echo(payload), (target, 0))


def link(payload, bypass=False, ethertype=b"\x08\x00"):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        if bypass:
            sock.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
        sock.bind(("eth0", 0))
        sock.send(mac + b"\x02\0\0\0\0\x30" + ethertype + packet(7004, payload))


def bypass(payload):
    link(payload, bypass=True)


def vlan(payload):
    link(payload, ethertype=b"\x81\x00\x00\x05\x08\x00")


def fast_open(payload):
    with socket.socket() as sock:
        sock.settimeout(0.3)
        sock.sendto(payload, MSG_FASTOPEN, (target, 7006))


def mptcp(_payload):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP) as sock:
        sock.settimeout(0.3)
        sock.connect((target, 7007))


def udp_lite(payload):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, IPPROTO_UDPLITE) as sock:
        sock.sendto(payload, (target, 7008))


def tcp(_payload):
    with socket.socket() as sock:
        sock.settimeout(0.3)
        sock.connect((target, 7011))


def mapped_tcp(_payload):
    with socket.socket(socket.AF_INET6) as sock:
        sock.settimeout(0.3)
        sock.connect((f"::ffff:{target}", 7012))


def vsock(_payload):
    socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()


def xdp(_payload):
    socket.socket(44, socket.SOCK_RAW).close()


WAYS = [header_included, icmp, gre, ping, link, bypass, vlan, fast_open, mptcp, udp_lite, tcp, mapped_tcp, vsock, xdp]
for way in WAYS:
    try:
        way(f"{token}-{way.__name__}".encode())
        print(f"{way.__name__}=ok")
    except TimeoutError:
        print(f"{way.__name__}=timeout")
    except OSError as error:
        print(f"{way.__name__}={errno.errorcode.get(error.errno, error.errno)}")
