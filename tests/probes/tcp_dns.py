"""tcp_dns.py SERVER NAME: A and AAAA by one TCP connection, in one write and in writes of one octet; how many answers come."""
import socket
import struct
import sys


def question(number, name, kind):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    message = struct.pack(">6H", number, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", kind, 1)
    return struct.pack(">H", len(message)) + message


def ask(server, pieces):
    with socket.create_connection((server, 53), 5) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            stream.sendall(piece)
        file, answers = stream.makefile("rb"), set()
        for _ in range(2):
            (length,) = struct.unpack(">H", file.read(2))
            answer = file.read(length)
            number, flags, _, records = struct.unpack(">4H", answer[:8])
            if flags & 0x800F == 0x8000 and records > 0:
                answers.add(number)
        return len(answers)


server, name = sys.argv[1:]
both = question(1, name, 1) + question(2, name, 28)
print(f"pipelined={ask(server, [both])}")
print(f"split={ask(server, [both[at:at + 1] for at in range(len(both))])}")
