"""source.py NAME [wait]: asks several servers from unconnected sockets and says who answers, by recvfrom and by recvmsg. With
`wait` it says when it has asked, and reads a line before it looks for the answers."""
import socket
import struct
import sys

labels = b"".join(bytes([len(label)]) + label.encode() for label in sys.argv[1].split("."))
query = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1)
asked = []
for server in ["127.0.0.11", "203.0.113.8", "::1", "2001:db8::54"]:
    one = socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM)
    one.settimeout(5)
    one.sendto(query, (server, 53))
    asked.append((server, one))
if sys.argv[2:] == ["wait"]:
    print("asked", flush=True)
    sys.stdin.readline()
for server, one in asked:
    answer, peer = one.recvfrom(4096)
    one.sendto(query, (server, 53))
    again, _, _, same = one.recvmsg(4096)
    if answer[:2] == again[:2] == query[:2] and peer[:2] == same[:2]:
        print(f"{server} answers as {peer[0]} {peer[1]}")
