"""source.py NAME: asks several servers from unconnected sockets and says who answers, by recvfrom and by recvmsg."""
import socket
import struct
import sys

labels = b"".join(bytes([len(label)]) + label.encode() for label in sys.argv[1].split("."))
query = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1)
for server in ["127.0.0.11", "203.0.113.8", "::1", "2001:db8::54"]:
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        one.settimeout(5)
        one.sendto(query, (server, 53))
        answer, peer = one.recvfrom(4096)
        one.sendto(query, (server, 53))
        again, _, _, same = one.recvmsg(4096)
        if answer[:2] == again[:2] == query[:2] and peer[:2] == same[:2]:
            print(f"{server} answers as {peer[0]} {peer[1]}")
