"""blast.py HOST PORT SECONDS KIND FLOWS: as many bytes as pass.

KIND is udp or tcp for uploads, or take for downloads: then the bytes that came from 0.7 s on, and their seconds, are told.
"""
import socket
import sys
import threading
import time

host, port, seconds, kind, flows = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4], int(sys.argv[5])
family = socket.AF_INET6 if ":" in host else socket.AF_INET
start = time.monotonic()
end = start + seconds
taken = []


def udp(size=1400):
    out = socket.socket(family, socket.SOCK_DGRAM)
    out.connect((host, port))
    while time.monotonic() < end:
        try:
            out.send(bytes(size))
        except BlockingIOError:
            pass


def upload():
    out = socket.socket(family, socket.SOCK_STREAM)
    out.settimeout(0.2)
    out.connect((host, port))
    while time.monotonic() < end:
        try:
            out.send(bytes(1 << 16))
        except TimeoutError:
            pass


def download():
    into = socket.create_connection((host, port))
    while time.monotonic() < end:
        count = len(into.recv(1 << 18))
        taken.append((time.monotonic(), count))


work = {"udp": udp, "take": download}.get(kind, upload)
threads = [threading.Thread(target=work) for _ in range(flows)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
if taken:
    taken.sort()
    late = [entry for entry in taken if entry[0] > taken[0][0] + 0.7]
    print(sum(count for _, count in late[1:]), late[-1][0] - late[0][0])
