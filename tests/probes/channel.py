"""channel.py SERVER CLOSED OPEN: what a tunnel of names does. Random words below CLOSED (A and TXT) and OPEN (A and TXT), one at
a time, an outsized label and name, then a flood below CLOSED. How many answers of each code come, as KIND_CODE=COUNT."""
import collections
import os
import socket
import struct
import sys

server, closed, opened = sys.argv[1:]
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect((server, 53))
sock.settimeout(5)
counts = collections.Counter()


def message(labels, kind, number=7):
    name = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    return struct.pack("!6H", number, 0x100, 1, 0, 0, 0) + name + struct.pack("!2H", kind, 1)


def ask(word, labels, kind):
    sock.send(message(labels, kind))
    flags, _, records = struct.unpack("!3H", sock.recv(4096)[2:8])
    counts[f"{word}_{flags & 15}{'_data' if records else ''}"] += 1


def below(base):
    return [os.urandom(20).hex().encode(), *(label.encode() for label in base.split("."))]


for _ in range(200):
    for word, base in (("closed", closed), ("open", opened)):
        ask(f"{word}_a", below(base), 1)
        ask(f"{word}_txt", below(base), 16)
ask("label", [b"a" * 64, *below(opened)[1:]], 1)
ask("name", [b"a" * 60] * 5 + below(opened)[1:], 1)
for _ in range(10_000):
    sock.send(message(below(closed), 1))
for key, count in sorted(counts.items()):
    print(f"{key}={count}")
