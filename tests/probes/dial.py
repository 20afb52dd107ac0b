"""dial.py PORT: a datagram and a connection to loopback's PORT; the errno of each, 0 where it went."""
import socket
import sys

for name, kind in (("udp", socket.SOCK_DGRAM), ("tcp", socket.SOCK_STREAM)):
    with socket.socket(socket.AF_INET, kind) as one:
        one.settimeout(5)
        try:
            one.connect(("127.0.0.1", int(sys.argv[1])))
            one.send(b"\0")
            print(f"{name}=0")
        except OSError as error:
            print(f"{name}={error.errno}")
