"""frames.py TOKEN MAC HOW [ADDRESS ADDRESS6]: frames made by hand, past every socket hook; NAME=ok|ERRNO a line. Payloads are TOKEN-NAME;

The addresses are those that they come from. HOW is `print` (NAME and hexadecimal, for who sends them otherwise) or DEVICE[+bypass|+cooked]: by a packet socket, with
PACKET_QDISC_BYPASS, or one that lets the kernel write the link header.
"""
import errno
import socket
import struct
import sys

token, mac, how, *own = sys.argv[1:]
BOX, BOX6 = own or ("198.51.100.30", "2001:db8::30")
OK, OK6, EVIL, EVIL6 = "198.51.100.10", "2001:db8::10", "198.51.100.20", "2001:db8::20"
UDP, TCP = 17, 6
PORT, CLOSED = 443, 9
LINK = bytes.fromhex(mac.replace(":", "")) + b"\x02\0\0\0\0\x30"
IPV4, IPV6 = b"\x08\x00", b"\x86\xdd"


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp(payload, port=PORT):
    return struct.pack("!HHHH", 5555, port, 8 + len(payload), 0) + payload


def syn(payload, port=PORT):
    return struct.pack("!HHIIBBHHH", 5555, port, 1, 0, 0x50, 2, 1000, 0, 0) + payload


def v4(dst, body, protocol=UDP, src=BOX, fragment=0, options=b""):
    words = 5 + len(options) // 4
    head = struct.pack("!BBHHHBBH", 0x40 | words, 0, words * 4 + len(body), 0x1234, fragment, 64, protocol, 0)
    head += socket.inet_aton(src) + socket.inet_aton(dst) + options
    return LINK + IPV4 + head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body


def v6(dst, body, following=UDP, src=BOX6):
    head = struct.pack("!IHBB", 6 << 28, len(body), following, 64)
    return LINK + IPV6 + head + socket.inet_pton(10, src) + socket.inet_pton(10, dst) + body


def part6(offset, more, body, following=UDP):
    """A fragment header (RFC 8200, 4.5) and what follows it."""
    return struct.pack("!BBHI", following, 0, offset << 3 | more, 7) + body


def header6(following, body=b"\1\4\0\0\0\0"):
    """Any other extension header of eight octets; by default it holds six octets of padding."""
    return struct.pack("!BB", following, 0) + body


def route6(kind, body):
    """A routing header of type 0, 2 or 4 (RFC 5095, 6275, 8754) with one segment left, and that is EVIL6."""
    return struct.pack("!BBBBI", UDP, 2, kind, 1, 0) + socket.inet_pton(10, EVIL6) + body


def tagged(frame, tag=b"\x81\x00\x00\x05"):
    return frame[:12] + tag + frame[12:]


def other(kind, payload):
    return LINK + struct.pack("!H", kind) + payload.ljust(60, b".")


MORE = 0x2000
# Whoever looks for the payload behind a header that is none finds it all the same.
LEAD = b"." * 40
FRAMES = {
    # What passes, as controls of the probe itself.
    "plain4": lambda p: v4(OK, udp(p)),
    "plain6": lambda p: v6(OK6, udp(p)),
    # Elsewhere.
    "evil4": lambda p: v4(EVIL, udp(p)),
    "evil6": lambda p: v6(EVIL6, udp(p)),
    "syn4": lambda p: v4(EVIL, syn(p), TCP),
    "syn6": lambda p: v6(EVIL6, syn(p), TCP),
    "port4": lambda p: v4(OK, udp(p, CLOSED)),
    "port6": lambda p: v6(OK6, udp(p, CLOSED)),
    "query4": lambda p: v4(OK, udp(p, 53)),
    "query6": lambda p: v6(OK6, udp(p, 53)),
    "mapped": lambda p: v6("::ffff:198.51.100.20", udp(p)),
    "nat64": lambda p: v6("64:ff9b::198.51.100.20", udp(p)),
    "sixtofour": lambda p: v6("2002:c633:640a::1", udp(p)),
    "broadcast": lambda p: v4("255.255.255.255", udp(p)),
    "group4": lambda p: v4("224.0.0.251", udp(p)),
    "group6": lambda p: v6("ff05::2", udp(p)),
    "echo4": lambda p: v4(EVIL, struct.pack("!BBHHH", 8, 0, 0, 7, 1) + p, 1),
    "echo6": lambda p: v6(EVIL6, struct.pack("!BBHHH", 128, 0, 0, 7, 1) + p, 58),
    # From somebody else.
    "source4": lambda p: v4(OK, udp(p), src="198.51.100.99"),
    "source6": lambda p: v6(OK6, udp(p), src="2001:db8::99"),
    "unspecified4": lambda p: v4(OK, udp(p), src="0.0.0.0"),
    # To an allowed address, in a form that hides what else it says.
    "tag": lambda p: tagged(v4(OK, udp(p))),
    "tag6": lambda p: tagged(v6(OK6, udp(p))),
    "service_tag": lambda p: tagged(v4(OK, udp(p)), b"\x88\xa8\x00\x05"),
    "two_tags": lambda p: tagged(tagged(v4(OK, udp(p))), b"\x88\xa8\x00\x06"),
    "loose_route": lambda p: v4(OK, udp(p), options=b"\x83\7\4" + socket.inet_aton(EVIL) + b"\0"),
    "record_route": lambda p: v4(OK, udp(p), options=b"\7\7\4\0\0\0\0\0"),
    "router_alert": lambda p: v4(OK, udp(p), options=b"\x94\4\0\0"),
    "hop_by_hop": lambda p: v6(OK6, header6(UDP) + udp(p), 0),
    "destination": lambda p: v6(OK6, header6(UDP) + udp(p), 60),
    "route0": lambda p: v6(OK6, route6(0, udp(p)), 43),
    "route2": lambda p: v6(OK6, route6(2, udp(p)), 43),
    "segments": lambda p: v6(OK6, route6(4, udp(p)), 43),
    "hidden_route": lambda p: v6(OK6, part6(0, 0, route6(0, udp(p)), 43), 44),
    "two_fragment_headers": lambda p: v6(OK6, part6(0, 0, part6(0, 0, udp(p)), 44), 44),
    "mobility": lambda p: v6(OK6, p, 135),
    "nothing_follows": lambda p: v6(OK6, p, 59),
    # Fragments: none of them has ports but the first; that one must have its whole header.
    "first4": lambda p: v4(EVIL, udp(p), fragment=MORE),
    "first6": lambda p: v6(EVIL6, part6(0, 1, udp(p)), 44),
    "tail4": lambda p: v4(EVIL, LEAD + p, fragment=5),
    "tail6": lambda p: v6(EVIL6, part6(5, 0, LEAD + p), 44),
    "atomic6": lambda p: v6(EVIL6, part6(0, 0, udp(p)), 44),
    "first_closed4": lambda p: v4(OK, udp(p, CLOSED), fragment=MORE),
    "first_closed6": lambda p: v6(OK6, part6(0, 1, udp(p, CLOSED)), 44),
    # Protocols without a rule, to an allowed address.
    **{f"protocol{n}_4": lambda p, n=n: v4(OK, LEAD + p, n) for n in (2, 4, 33, 41, 47, 50, 51, 132, 136, 255)},
    **{f"protocol{n}_6": lambda p, n=n: v6(OK6, LEAD + p, n) for n in (4, 33, 41, 47, 50, 51, 132, 136, 255)},
    # Neither IPv4 nor IPv6 nor ARP: MPLS, PPPoE, EAPOL, experimental, Wake-on-LAN, LLC.
    **{f"kind{n:04x}": lambda p, n=n: other(n, p) for n in (0x8847, 0x8864, 0x888E, 0x88B5, 0x0842, 0x0801, 68)},
}

frames = {name: make(f"{token}-{name};".encode()) for name, make in FRAMES.items()}
if how == "print":
    for name, frame in frames.items():
        print(name, frame.hex())
    sys.exit(0)

device, _, way = how.partition("+")
with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM if way == "cooked" else socket.SOCK_RAW) as sock:
    if way == "bypass":
        sock.setsockopt(263, 20, 1)  # SOL_PACKET, PACKET_QDISC_BYPASS
    sock.bind((device, 0))
    for name, frame in frames.items():
        try:
            if way == "cooked":
                sock.sendto(frame[14:], (device, struct.unpack("!H", frame[12:14])[0], 0, 0, frame[:6]))
            else:
                sock.send(frame)
            print(f"{name}=ok")
        except OSError as error:
            print(f"{name}={errno.errorcode.get(error.errno, error.errno)}")
