"""calls.py: makes every call that `egressd run` refuses, in the cheapest way that works where nothing refuses it.
One line a call: NAME=ok|ERRNO. Nothing leaves the loopback interface.
"""
import ctypes
import errno
import fcntl
import os
import platform
import socket
import struct
import termios

libc = ctypes.CDLL(None, use_errno=True)
ARM = platform.machine() == "aarch64"
ADD_KEY, REQUEST_KEY, KEYCTL = (217, 218, 219) if ARM else (248, 249, 250)
IO_URING_SETUP, PIDFD_OPEN, PIDFD_GETFD = 425, 434, 438
TIOCLINUX, PROCESS_KEYRING, GET_KEYRING_ID, SOCK_PACKET = 0x541C, -2, 0, 10
BITS_ABOVE = 1 << 32
LOOPBACK = socket.if_nametoindex("lo")


def call(number, *arguments):
    words = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    result = libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def family(number, kind=socket.SOCK_DGRAM):
    return lambda: socket.socket(number, kind).close()


def terminal(request, *argument):
    """In a session of its own, whose terminal it is: one may type into that."""
    def attempt():
        _leader, follower = os.openpty()
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.setsid()
            fcntl.ioctl(follower, termios.TIOCSCTTY, 0)
            libc.ioctl(follower, ctypes.c_ulong(request), ctypes.c_char_p(b"x"))
            os.write(writer, struct.pack("i", ctypes.get_errno()))
            os._exit(0)
        number = struct.unpack("i", os.read(reader, 4))[0]
        os.wait()
        if number:
            raise OSError(number, "")
    return attempt


def pair(number):
    return lambda: [side.close() for side in socket.socketpair(number, socket.SOCK_STREAM)]


def uring():
    os.close(call(IO_URING_SETUP, 1, ctypes.create_string_buffer(120)))


def key(number, *rest):
    return lambda: call(number, b"user", b"egt", *rest)


def descriptor():
    pidfd = call(PIDFD_OPEN, os.getpid(), 0)
    os.close(call(PIDFD_GETFD, pidfd, 0, 0))


def storage(address):
    """A struct sockaddr_storage."""
    if ":" in address:
        return struct.pack("=HHI", socket.AF_INET6, 0, 0) + socket.inet_pton(socket.AF_INET6, address) + bytes(104)
    return struct.pack("=HH", socket.AF_INET, 0) + socket.inet_aton(address) + bytes(120)


def join(family, option, value):
    level = socket.IPPROTO_IP if family == socket.AF_INET else socket.IPPROTO_IPV6

    def attempt():
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(level, option, value)
    return attempt


V4, V6 = socket.AF_INET, socket.AF_INET6
GROUP4, GROUP6, SOURCE4, SOURCE6 = "233.252.0.1", "ff0e::db8:0:1", "127.0.0.1", "::1"
PACKED4, PACKED6, LO = socket.inet_aton(GROUP4), socket.inet_pton(V6, GROUP6), socket.inet_aton(SOURCE4)
request4 = struct.pack("=I4x", LOOPBACK) + storage(GROUP4)
request6 = struct.pack("=I4x", LOOPBACK) + storage(GROUP6)
CALLS = {
    "vsock": family(socket.AF_VSOCK, socket.SOCK_STREAM),
    "vsock_above": lambda: os.close(call(198 if ARM else 41, socket.AF_VSOCK | BITS_ABOVE, socket.SOCK_STREAM, 0)),
    "packet": family(socket.AF_PACKET),
    "packet_old": family(V4, SOCK_PACKET),
    "xdp": family(44, socket.SOCK_RAW),
    "pair_vsock": pair(socket.AF_VSOCK),
    "TIOCSTI": terminal(termios.TIOCSTI),
    "TIOCSTI_above": terminal(termios.TIOCSTI | BITS_ABOVE),
    "TIOCLINUX": terminal(TIOCLINUX),
    "add_key": key(ADD_KEY, b"value", 5, PROCESS_KEYRING),
    "request_key": key(REQUEST_KEY, None, PROCESS_KEYRING),
    "keyctl": lambda: call(KEYCTL, GET_KEYRING_ID, PROCESS_KEYRING, 1),
    "pidfd_getfd": descriptor,
    "io_uring_setup": uring,
    "IP_ADD_MEMBERSHIP": join(V4, 35, PACKED4 + struct.pack("=4xI", LOOPBACK)),
    "IP_ADD_SOURCE_MEMBERSHIP": join(V4, 39, PACKED4 + LO + LO),
    "IP_MSFILTER": join(V4, 41, PACKED4 + LO + struct.pack("=II", 1, 0)),
    "v4_MCAST_JOIN_GROUP": join(V4, 42, request4),
    "v4_MCAST_JOIN_SOURCE_GROUP": join(V4, 46, request4 + storage(SOURCE4)),
    "v4_MCAST_MSFILTER": join(V4, 48, request4 + struct.pack("=II", 1, 0)),
    "IPV6_JOIN_GROUP": join(V6, 20, PACKED6 + struct.pack("=I", LOOPBACK)),
    "IPV6_JOIN_ANYCAST": join(V6, 27, PACKED6 + struct.pack("=I", LOOPBACK)),
    "v6_MCAST_JOIN_GROUP": join(V6, 42, request6),
    "v6_MCAST_JOIN_SOURCE_GROUP": join(V6, 46, request6 + storage(SOURCE6)),
    "v6_MCAST_MSFILTER": join(V6, 48, request6 + struct.pack("=II", 1, 0)),
}
for name, attempt in CALLS.items():
    try:
        attempt()
        print(f"{name}=ok")
    except OSError as error:
        print(f"{name}={errno.errorcode.get(error.errno, error.errno)}")
