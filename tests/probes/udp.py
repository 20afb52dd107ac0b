"""udp.py TOKEN ADDRESS…: every way to send a datagram to each address, on several ports; NAME=ok|ERRNO a line."""
import ctypes
import errno
import socket
import struct
import sys

token, targets = sys.argv[1], sys.argv[2:]
libc = ctypes.CDLL(None, use_errno=True)
PORTS = [5000, 443, 853, 5353, 123]


class IoVec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_char_p), ("length", ctypes.c_size_t)]


class Header(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p), ("name_length", ctypes.c_uint32), ("iov", ctypes.POINTER(IoVec)),
        ("iov_length", ctypes.c_size_t), ("control", ctypes.c_void_p), ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int), ("sent", ctypes.c_uint),
    ]


def address(target, port):
    if ":" in target:
        return struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", port, 0) + socket.inet_pton(10, target) + bytes(4)
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton(target) + bytes(8)


def allowed(target):
    """The allowed address of the same kind."""
    if ":" not in target:
        return "198.51.100.10"
    return "::ffff:198.51.100.10" if "." in target else "2001:db8::10"


def sendto(sock, target, port, payload):
    sock.sendto(payload, (target, port))


def connected(sock, target, port, payload):
    sock.connect((target, port))
    sock.send(payload)


def connected_elsewhere(sock, target, port, payload):
    sock.connect((allowed(target), 443))
    sock.sendto(payload, (target, port))


def more(sock, target, port, payload):
    sock.sendto(payload[:4], socket.MSG_MORE, (target, port))
    sock.sendto(payload[4:], (target, port))


def sendmsg(sock, target, port, payload):
    sock.sendmsg([payload], [], 0, (target, port))


def sendmmsg(sock, target, port, payload):
    name = address(target, port)
    iov = IoVec(payload, len(payload))
    header = Header(name, len(name), ctypes.pointer(iov), 1)
    if libc.sendmmsg(sock.fileno(), ctypes.byref(header), 1, 0) != 1:
        raise OSError(ctypes.get_errno(), "sendmmsg")


for target in targets:
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    for way in (sendto, connected, connected_elsewhere, more, sendmsg, sendmmsg):
        for port in PORTS:
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                try:
                    way(sock, target, port, f"{token}-{way.__name__};".encode())
                    result = "ok"
                except OSError as error:
                    result = errno.errorcode.get(error.errno, error.errno)
            print(f"{way.__name__},{target},{port}={result}")
