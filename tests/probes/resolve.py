"""Resolves each name of the command line as Python does; lines as resolve.c writes them."""
import socket
import sys
import time

for name in sys.argv[1:]:
    start = time.monotonic_ns()
    try:
        found = [entry[4][0] for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]
    except socket.gaierror as error:
        found = [f"!{error.strerror}"]
    print(name, (time.monotonic_ns() - start) // 1000, *found)
