"""asking.py SERVER NAME STOP: asks for NAME again and again, each time by a new socket, until the file STOP is there. How many
answers with an address came, and the longest time without one."""
import os
import socket
import struct
import sys
import time

server, name, stop = sys.argv[1:]
question = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0" + struct.pack("!HH", 1, 1)
answers, gap, last = 0, 0.0, time.monotonic()
while not os.path.exists(stop):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.1)
        try:
            sock.connect((server, 53))
            sock.send(struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + question)
            if struct.unpack("!H", sock.recv(512)[6:8])[0] > 0:
                now = time.monotonic()
                answers, gap, last = answers + 1, max(gap, now - last), now
        except OSError:
            pass
    time.sleep(0.01)
print(f"answers={answers}")
print(f"gap_ms={int(max(gap, time.monotonic() - last) * 1000)}")
