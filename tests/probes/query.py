"""query.py NAME SERVER...: asks each server for NAME's IPv4 address, by a socket that is not connected; "SERVER: ADDRESS from WHO" a line."""
import socket
import struct
import sys

name, servers = sys.argv[1], sys.argv[2:]
question = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0" + struct.pack("!HH", 1, 1)
for server in servers:
    with socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(3)
        try:
            sock.sendto(struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + question, (server, 53))
            answer, sender = sock.recvfrom(512)
            print(f"{server}: {socket.inet_ntoa(answer[-4:])} from {sender[0]}")
        except OSError as error:
            print(f"{server}: {error}")
