"""Sends one datagram after the other to an address until its input ends, and writes for each: moment, arrived or not."""
import select
import socket
import sys
import time

token, address = sys.argv[1], sys.argv[2]
print("open", flush=True)
lines = []
while not select.select([sys.stdin], [], [], 0.0003)[0]:
    began = time.monotonic_ns()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.sendto(token.encode(), (address, 9))
        lines.append("%d ok" % began)
    except OSError:
        lines.append("%d no" % began)
print("\n".join(lines), flush=True)
