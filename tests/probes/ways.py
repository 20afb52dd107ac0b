"""ways.py TOKEN [WORD…]: every way of a socket to send elsewhere than the policy says, over both families; NAME4=ok|ERRNO and
NAME6=… a line. Payloads are TOKEN-NAME4; a way without one goes to a TCP port of its own (PORTS). Words pick ways."""
import ctypes
import errno
import os
import socket
import struct
import sys

token, words = sys.argv[1], sys.argv[2:]
UDP, PORT = socket.IPPROTO_UDP, 443
V4 = (socket.AF_INET, "198.51.100.10", "198.51.100.20", "198.51.100.30", socket.IPPROTO_IP)
V6 = (socket.AF_INET6, "2001:db8::10", "2001:db8::20", "2001:db8::30", socket.IPPROTO_IPV6)
PORTS = {"tcp": 7101, "mptcp": 7102, "fast_open": 7103, "fast_open_connect": 7104, "transparent_tcp": 7105, "repaired": 7106}
libc = ctypes.CDLL(None, use_errno=True)


def name_of(family, address, port, says=None):
    """A socket address as bytes, under another family's number where `says` is one."""
    if family == socket.AF_INET:
        return struct.pack("=H", family if says is None else says) + struct.pack("!H", port) + socket.inet_aton(address) + bytes(8)
    return struct.pack("=H", family) + struct.pack("!HI", port, 0) + socket.inet_pton(family, address) + bytes(4)


def call(function, sock, *arguments):
    if getattr(libc, function)(sock.fileno(), *arguments) < 0:
        raise OSError(ctypes.get_errno(), function)


def datagram(to):
    return socket.socket(to[0], socket.SOCK_DGRAM)


def raw(to, protocol):
    return socket.socket(to[0], socket.SOCK_RAW, protocol)


def udp(payload, port=PORT):
    return struct.pack("!HHHH", 5555, port, 8 + len(payload), 0) + payload


def sum16(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def header(to, body, protocol=UDP, dst=None):
    family, _, target, own, _ = to
    ends = socket.inet_pton(family, own) + socket.inet_pton(family, dst or target)
    if family == socket.AF_INET:
        return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0x1234, 0, 64, protocol, 0) + ends + body
    return struct.pack("!IHBB", 6 << 28, len(body), protocol, 64) + ends + body


def plain(to, payload):
    """The control of the probe itself: what is allowed arrives."""
    datagram(to).sendto(payload, (to[1], PORT))


def raw_header(to, payload):
    raw(to, socket.IPPROTO_RAW).sendto(header(to, udp(payload)), (to[2], 0))


def raw_header_elsewhere(to, payload):
    """The socket is told an allowed address, the header says another."""
    raw(to, socket.IPPROTO_RAW).sendto(header(to, udp(payload)), (to[1], 0))


def raw_udp(to, payload):
    raw(to, UDP).sendto(udp(payload), (to[2], 0))


def raw_connected(to, payload):
    sock = raw(to, UDP)
    sock.connect((to[2], 0))
    sock.send(udp(payload))


def raw_tunnel(to, payload):
    raw(to, 47).sendto(payload, (to[1], 0))


def raw_sctp(to, payload):
    raw(to, 132).sendto(payload, (to[1], 0))


def echo(to, payload):
    head = struct.pack("!BBHHH", 8 if to is V4 else 128, 0, 0, 7, 1) + payload
    return head[:2] + struct.pack("!H", sum16(head)) + head[4:]


def raw_icmp(to, payload):
    raw(to, 1 if to is V4 else 58).sendto(echo(to, payload), (to[2], 0))


def ping(to, payload):
    socket.socket(to[0], socket.SOCK_DGRAM, 1 if to is V4 else 58).sendto(echo(to, payload), (to[2], 0))


def ping_connected(to, payload):
    sock = socket.socket(to[0], socket.SOCK_DGRAM, 1 if to is V4 else 58)
    sock.connect((to[2], 0))
    sock.send(echo(to, payload))


def udp_lite(to, payload):
    socket.socket(to[0], socket.SOCK_DGRAM, 136).sendto(payload, (to[2], PORT))


def stream(to, port, protocol=0, *options):
    sock = socket.socket(to[0], socket.SOCK_STREAM, protocol)
    sock.settimeout(0.3)
    for option in options:
        sock.setsockopt(*option)
    sock.connect((to[2], port))
    return sock


def tcp(to, _payload):
    stream(to, PORTS["tcp"])


def mptcp(to, _payload):
    stream(to, PORTS["mptcp"], 262)


def fast_open(to, payload):
    sock = socket.socket(to[0], socket.SOCK_STREAM)
    sock.settimeout(0.3)
    sock.sendto(payload, 0x20000000, (to[2], PORTS["fast_open"]))


def fast_open_connect(to, payload):
    sock = stream(to, PORTS["fast_open_connect"], 0, (socket.IPPROTO_TCP, 30, 1))
    sock.send(payload)


def repaired(to, _payload):
    """A connection that is declared to be there (TCP_REPAIR): no handshake, but a probe of the other side."""
    sock = socket.socket(to[0], socket.SOCK_STREAM)
    sock.setsockopt(socket.IPPROTO_TCP, 19, 1)
    sock.bind((to[3], 0))
    sock.connect((to[2], PORTS["repaired"]))
    sock.setsockopt(socket.IPPROTO_TCP, 19, 0)


def unconnected_again(to, payload):
    sock = datagram(to)
    sock.connect((to[1], PORT))
    call("connect", sock, bytes(16), 16)
    sock.sendto(payload, (to[2], PORT))


def connected_elsewhere(to, payload):
    sock = datagram(to)
    sock.connect((to[1], PORT))
    sock.sendto(payload, (to[2], PORT))


def unspecified_family(to, payload):
    """A name of no family is taken for one of IPv4 (`udp_sendmsg`), and for none at all by IPv6, which then has none."""
    sock = datagram(to)
    if to is V6:
        sock.connect((to[2], PORT))
    name = name_of(*V4[:1], V4[2], PORT, 0)
    call("sendto", sock, payload, len(payload), 0, name, len(name))


def name_of_the_other_family(to, payload):
    """An IPv4 name on an IPv6 socket; over IPv4, a mapped one."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    name = name_of(V4[0], V4[2], PORT) if to is V6 else name_of(V6[0], f"::ffff:{V4[2]}", PORT)
    call("sendto", sock, payload, len(payload), 0, name, len(name))


def connected_by_the_other_family(to, payload):
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    name = name_of(V4[0], V4[2], PORT) if to is V6 else name_of(V6[0], f"::ffff:{V4[2]}", PORT)
    call("connect", sock, name, len(name))
    sock.send(payload)


def padding(to):
    """Options that say nothing: record route, or six octets of padding (RFC 791; RFC 8200, 4.2)."""
    return b"\7\7\4\0\0\0\0\0" if to is V4 else b"\0\0\1\4\0\0\0\0"


def option(to, payload, which):
    sock = datagram(to)
    sock.setsockopt(to[4], which, padding(to))
    sock.sendto(payload, (to[1], PORT))


def option_in_control(to, payload, which):
    datagram(to).sendmsg([payload], [(to[4], which, padding(to))], 0, (to[1], PORT))


def options(to, payload):
    """IP_OPTIONS, IPV6_HOPOPTS."""
    option(to, payload, 4 if to is V4 else 54)


def options_in_control(to, payload):
    """IP_RETOPTS, IPV6_HOPOPTS."""
    option_in_control(to, payload, 7 if to is V4 else 54)


def options_of_the_end(to, payload):
    """IPV6_DSTOPTS; over IPv4, a router alert (RFC 2113)."""
    sock = datagram(to)
    sock.setsockopt(to[4], 4 if to is V4 else 59, b"\x94\4\0\0" if to is V4 else padding(to))
    sock.sendto(payload, (to[1], PORT))


def route(to, payload):
    """IP_OPTIONS with a source route, IPV6_RTHDR with segments: on to the target."""
    sock = datagram(to)
    if to is V4:
        sock.setsockopt(to[4], 4, b"\x83\7\4" + socket.inet_aton(to[2]) + b"\0")
    else:
        hops = socket.inet_pton(10, to[1]) + socket.inet_pton(10, to[2])
        sock.setsockopt(to[4], 57, struct.pack("!BBBBBBH", 0, 4, 4, 1, 1, 0, 0) + hops)
    sock.sendto(payload, (to[1], PORT))


def route_of_a_connection(to, payload):
    """A TCP connection to an allowed server takes another way in the middle."""
    sock = socket.socket(to[0], socket.SOCK_STREAM)
    sock.settimeout(1)
    sock.connect((to[1], 80))
    if to is V4:
        sock.setsockopt(to[4], 4, b"\x83\7\4" + socket.inet_aton(to[2]) + b"\0")
    else:
        hops = socket.inet_pton(10, to[1]) + socket.inet_pton(10, to[2])
        sock.setsockopt(to[4], 57, struct.pack("!BBBBBBH", 0, 4, 4, 1, 1, 0, 0) + hops)
    sock.send(payload)


def fragments(to, payload):
    sock = datagram(to)
    sock.setsockopt(to[4], 10 if to is V4 else 23, 0)
    sock.sendto(payload.ljust(4000, b"."), (to[2], PORT))


def segmented(to, payload):
    sock = datagram(to)
    sock.setsockopt(UDP, 103, 1000)
    sock.sendto(payload.ljust(5000, b"."), (to[2], PORT))


def without_copy(to, payload):
    sock = datagram(to)
    sock.setsockopt(socket.SOL_SOCKET, 60, 1)
    sock.sendto(payload, 0x4000000, (to[2], PORT))


def marked(to, payload):
    sock = datagram(to)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0xEE)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, 7)
    sock.sendto(payload, (to[2], PORT))


def bound_to_the_device(to, payload):
    sock = datagram(to)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
    sock.sendto(payload, (to[2], PORT))


def unrouted(to, payload):
    sock = datagram(to)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_DONTROUTE, 1)
    sock.sendto(payload, (to[2], PORT))


def transparent(to, payload):
    """From an address that is nobody's here."""
    sock = datagram(to)
    sock.setsockopt(to[4], 19 if to is V4 else 75, 1)
    sock.bind(("203.0.113.9" if to is V4 else "2001:db8:9::9", 0))
    sock.sendto(payload, (to[2], PORT))


def transparent_tcp(to, _payload):
    sock = socket.socket(to[0], socket.SOCK_STREAM)
    sock.settimeout(0.3)
    sock.setsockopt(to[4], 19 if to is V4 else 75, 1)
    sock.bind(("203.0.113.9" if to is V4 else "2001:db8:9::9", 0))
    sock.connect((to[2], PORTS["transparent_tcp"]))


def spliced(to, payload):
    """Through a pipe, as sendfile does it."""
    sock = datagram(to)
    sock.connect((to[2], PORT))
    reader, writer = os.pipe()
    os.write(writer, payload)
    os.splice(reader, sock.fileno(), len(payload))


def group(to, payload):
    sock = datagram(to)
    sock.setsockopt(*((0, 32, socket.inet_aton(to[3])) if to is V4 else (41, 17, socket.if_nametoindex("eth0"))))
    sock.sendto(payload, ("224.0.0.251" if to is V4 else "ff05::2", PORT))


def dns(to, payload):
    """Port 53 of an address that the policy opens whole; nobody here answers names."""
    datagram(to).sendto(payload, (to[1], 53))


WAYS = [
    plain, raw_header, raw_header_elsewhere, raw_udp, raw_connected, raw_tunnel, raw_sctp, raw_icmp, ping, ping_connected,
    udp_lite, tcp, mptcp, fast_open, fast_open_connect, repaired, unconnected_again, connected_elsewhere,
    unspecified_family, name_of_the_other_family, connected_by_the_other_family, options, options_in_control,
    options_of_the_end, route, route_of_a_connection, fragments, segmented, without_copy, marked, bound_to_the_device,
    unrouted, transparent, transparent_tcp, spliced, group, dns,
]
for way in WAYS:
    for number, to in ((4, V4), (6, V6)):
        name = f"{way.__name__}{number}"
        if words and way.__name__ not in words:
            continue
        try:
            way(to, f"{token}-{name};".encode())
            print(f"{name}=ok", flush=True)
        except TimeoutError:
            print(f"{name}=timeout", flush=True)
        except OSError as error:
            print(f"{name}={errno.errorcode.get(error.errno, error.errno)}", flush=True)
