"""transports.py TOKEN WHEN: SCTP and DCCP, which no rule names, to evil's and to an allowed address over both families;
NAME,ADDRESS=ok|ERRNO a line, and NAME=absent where the kernel has no such socket. Each way goes to a port of its own (WAYS). Then TOKEN-plain; by UDP to
the allowed address.

WHEN is `now`, or `later`: makes the sockets, says `ready`, and goes on after a line of input, wherever it is by then.
"""
import ctypes
import errno
import socket
import struct
import sys

token, when = sys.argv[1:]
STREAM, PACKETS, DCCP_KIND, SCTP, DCCP = 1, 5, 6, 132, 33
ADDRESSES = ["198.51.100.20", "2001:db8::20", "198.51.100.10", "2001:db8::10"]
libc = ctypes.CDLL(None, use_errno=True)


def name_of(sock, to):
    if sock.family == socket.AF_INET:
        return struct.pack("=H", sock.family) + struct.pack("!H", to[1]) + socket.inet_aton(to[0]) + bytes(8)
    return struct.pack("=H", sock.family) + struct.pack("!HI", to[1], 0) + socket.inet_pton(sock.family, to[0]) + bytes(4)


def call(function, sock, *arguments):
    if getattr(libc, function)(sock.fileno(), *arguments) < 0:
        raise OSError(ctypes.get_errno(), function)


def connected(sock, to):
    sock.connect(to)


def sent(sock, to):
    """The first message makes the association."""
    sock.sendto(token.encode(), to)


def set_option(sock, to):
    """SCTP_SOCKOPT_CONNECTX connects, and is no connect(2)."""
    name = name_of(sock, to)
    call("setsockopt", sock, SCTP, 110, name, len(name))


def got_option(sock, to):
    """SCTP_SOCKOPT_CONNECTX3 does so when it is read: association, length and addresses (struct sctp_getaddrs_old)."""
    name = name_of(sock, to)
    held = ctypes.create_string_buffer(name, len(name))
    what = ctypes.create_string_buffer(struct.pack("=iiQ", 0, len(name), ctypes.addressof(held)), 16)
    call("getsockopt", sock, SCTP, 111, what, ctypes.byref(ctypes.c_int(16)))


def in_udp(sock, to):
    """SCTP_REMOTE_UDP_ENCAPS_PORT (RFC 6951), for whatever association comes: to the port itself."""
    sock.setsockopt(SCTP, 132, struct.pack("=i4x128sH6x", 0, b"", socket.htons(to[1])))
    sock.connect(to)


WAYS = [
    ("sctp_connected", STREAM, SCTP, 7111, connected), ("sctp_sent", PACKETS, SCTP, 7112, sent),
    ("sctp_set_option", STREAM, SCTP, 7113, set_option), ("sctp_got_option", STREAM, SCTP, 7114, got_option),
    ("sctp_in_udp", STREAM, SCTP, 7115, in_udp), ("dccp_connected", DCCP_KIND, DCCP, 7116, connected),
]


def told(name, address, error):
    if error.errno in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
        print(f"{name}=absent", flush=True)
    else:
        print(f"{name},{address}={errno.errorcode.get(error.errno, error.errno)}", flush=True)


made = []
for name, kind, protocol, port, way in WAYS:
    for address in ADDRESSES:
        try:
            sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind, protocol)
            sock.setblocking(False)
            made.append((name, address, sock, port, way))
        except OSError as error:
            told(name, address, error)
if when == "later":
    print("ready", flush=True)
    sys.stdin.readline()
for name, address, sock, port, way in made:
    try:
        way(sock, (address, port))
        print(f"{name},{address}=ok", flush=True)
    except BlockingIOError:
        print(f"{name},{address}=ok", flush=True)
    except OSError as error:
        told(name, address, error)
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(f"{token}-plain;".encode(), ("198.51.100.10", 443))
