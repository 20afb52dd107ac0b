"""blast.py HOST PORT SECONDS KIND FLOWS [MBIT]: as many bytes as pass, or so many Mbit/s of datagrams in all flows together.

KIND is udp or tcp for uploads, gso for datagrams that the kernel cuts out of one long one, chat for a word now and then, or take for
downloads: then the bytes that came from 0.7 s on, and their seconds, are told. A flow that fails ends the others.
"""
import os
import socket
import struct
import sys
import threading
import time

host, port, seconds, kind, flows = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4], int(sys.argv[5])
pace = float(sys.argv[6]) * 1e6 / 8 / flows if len(sys.argv) > 6 else 0
family = socket.AF_INET6 if ":" in host else socket.AF_INET
start = time.monotonic()
end = start + seconds
taken = []
# include/uapi/linux/udp.h
UDP_SEGMENT = 103


def udp(flow, segments=1, size=1400):
    out = socket.socket(family, socket.SOCK_DGRAM)
    out.connect((host, port))
    if segments > 1:
        out.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
        size *= segments
    sent = 0
    while time.monotonic() < end:
        if pace:
            # Until the next one is due, each flow in its turn; late ones follow at once.
            time.sleep(max(0, start + (sent + flow / flows) * size / pace - time.monotonic()))
        for _ in range(1 if pace else 20):
            try:
                out.send(bytes(size))
            except BlockingIOError:
                pass
            sent += 1
        if not pace:
            # Ten times what any of the limits lets pass, and time left for who counts it.
            time.sleep(0.001)


def upload(_):
    out = socket.create_connection((host, port))
    # What was not sent in time is not sent at all: at a low rate it would go on for minutes beside whoever comes next.
    out.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    out.settimeout(0.2)
    while time.monotonic() < end:
        try:
            out.send(bytes(1 << 16))
        except TimeoutError as error:
            # The kernel's own has a number: it gave the connection up.
            if error.errno:
                raise


def chat(_):
    out = socket.create_connection((host, port))
    while time.monotonic() < end:
        out.send(bytes(100))
        time.sleep(0.02)


def download(_):
    into = socket.create_connection((host, port))
    while time.monotonic() < end:
        count = len(into.recv(1 << 18))
        taken.append((time.monotonic(), count))


def failed(args):
    sys.excepthook(args.exc_type, args.exc_value, args.exc_traceback)
    os._exit(1)


threading.excepthook = failed
work = {"udp": udp, "gso": lambda flow: udp(flow, 40), "tcp": upload, "chat": chat, "take": download}[kind]
threads = [threading.Thread(target=work, args=(flow,)) for flow in range(flows)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
if taken:
    taken.sort()
    late = [entry for entry in taken if entry[0] > taken[0][0] + 0.7]
    print(sum(count for _, count in late[1:]), late[-1][0] - late[0][0])
