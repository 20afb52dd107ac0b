"""options.py TOKEN ALLOWED TARGET ALLOWED6 TARGET6: headers that send a packet elsewhere than its socket says, and packets
that are not what the socket's kind suggests. NAME=ok|ERRNO a line; payloads are TOKEN-NAME."""
import errno
import socket
import struct
import sys

token, allowed, target, allowed6, target6 = sys.argv[1:]
IP_OPTIONS, IP_RETOPTS, IPV6_RTHDR, IPV6_HOPOPTS, IPV6_DSTOPTS, UDP_SEGMENT = 4, 7, 57, 54, 59, 103
PORT = 443


def route(kind, hop):
    return bytes([kind, 7, 4]) + socket.inet_aton(hop) + b"\0"


def udp(family=socket.AF_INET):
    return socket.socket(family, socket.SOCK_DGRAM)


def source_route(payload, kind=131):
    with udp() as sock:
        sock.setsockopt(socket.IPPROTO_IP, IP_OPTIONS, route(kind, target))
        sock.sendto(payload, (allowed, PORT))


def strict_route(payload):
    source_route(payload, 137)


def route_in_control(payload):
    with udp() as sock:
        sock.sendmsg([payload], [(socket.IPPROTO_IP, IP_RETOPTS, route(131, target))], 0, (allowed, PORT))


def route_after_connect(payload):
    with udp() as sock:
        sock.connect((allowed, PORT))
        sock.setsockopt(socket.IPPROTO_IP, IP_OPTIONS, route(131, target))
        sock.send(payload)


def tcp_route(payload):
    with socket.socket() as sock:
        sock.settimeout(0.3)
        sock.setsockopt(socket.IPPROTO_IP, IP_OPTIONS, route(131, target))
        sock.connect((allowed, 80))
        sock.send(payload)


def crafted_route(payload):
    """From an allowed hop on to TARGET. To who reads ports too early, the option is one from 33543 to 1222."""
    option = route(131, target)
    datagram = struct.pack("!HHHH", 5555, PORT, 8 + len(payload), 0) + payload
    header = struct.pack("!BBHHHBBH", 0x47, 0, 28 + len(datagram), 0x1234, 0, 64, socket.IPPROTO_UDP, 0)
    header += socket.inet_aton("198.51.100.30") + socket.inet_aton(allowed)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        sock.sendto(header + option + datagram, (allowed, 0))


def segments(payload):
    """A segment routing header (RFC 8754) whose first segment is TARGET6."""
    hops = socket.inet_pton(socket.AF_INET6, allowed6) + socket.inet_pton(socket.AF_INET6, target6)
    header = struct.pack("!BBBBBBH", 0, 4, 4, 1, 1, 0, 0) + hops
    with udp(socket.AF_INET6) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RTHDR, header)
        sock.sendto(payload, (allowed6, PORT))


def destination_options(payload):
    with udp(socket.AF_INET6) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_DSTOPTS, b"\0\0\1\4\0\0\0\0")
        sock.sendto(payload, (allowed6, PORT))


def fragments(payload):
    with udp() as sock:
        sock.setsockopt(socket.IPPROTO_IP, 10, 0)
        sock.sendto(payload.ljust(4000, b"."), (target, PORT))


def segmented(payload):
    with udp() as sock:
        sock.connect((target, PORT))
        sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        sock.send(payload.ljust(5000, b"."))


def broadcast(payload):
    with udp() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.sendto(payload, ("198.51.100.255", PORT))
        sock.sendto(payload, ("255.255.255.255", PORT))


def multicast(payload):
    with udp() as sock:
        sock.sendto(payload, ("224.0.0.251", PORT))


def multicast6(payload):
    with udp(socket.AF_INET6) as sock:
        sock.sendto(payload, ("ff02::fb%eth0", PORT))


def reconnected(payload):
    with udp() as sock:
        sock.connect((allowed, PORT))
        sock.connect((target, PORT))
        sock.send(payload)


def fast_open(payload):
    with socket.socket() as sock:
        sock.settimeout(0.3)
        sock.setsockopt(socket.IPPROTO_TCP, 30, 1)
        sock.connect((target, PORT))
        sock.send(payload)


def plain(payload):
    """The control of the probe itself: what is allowed arrives."""
    with udp() as sock:
        sock.sendto(payload, (allowed, PORT))


def plain6(payload):
    with udp(socket.AF_INET6) as sock:
        sock.sendto(payload, (allowed6, PORT))


WAYS = [
    source_route, strict_route, route_in_control, route_after_connect, tcp_route, crafted_route, segments,
    destination_options, fragments, segmented, broadcast, multicast, multicast6, reconnected, fast_open, plain, plain6,
]
for way in WAYS:
    try:
        way(f"{token}-{way.__name__};".encode())
        print(f"{way.__name__}=ok")
    except TimeoutError:
        print(f"{way.__name__}=timeout")
    except OSError as error:
        print(f"{way.__name__}={errno.errorcode.get(error.errno, error.errno)}")
