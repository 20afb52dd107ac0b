"""crowd.py COUNT NAME: asks for NAME from COUNT sockets, each of which asks a server of its own and stays, and waits for a line."""
import resource
import socket
import struct
import sys

count, name = int(sys.argv[1]), sys.argv[2]
resource.setrlimit(resource.RLIMIT_NOFILE, (count + 64, count + 64))
labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
query = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1)
sockets = []
for number in range(count):
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.sendto(query, (f"203.0.{number // 250}.{1 + number % 250}", 53))
    sockets.append(one)
print(f"asked={len(sockets)}", flush=True)
sys.stdin.readline()
