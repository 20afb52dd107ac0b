"""mtu.py ADDRESS PORT: sends 1400 bytes that may not be fragmented until the path's MTU is known to be lower; prints it."""
import socket
import sys
import time

IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_MTU = 10, 2, 14
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
sock.connect((sys.argv[1], int(sys.argv[2])))
end = time.monotonic() + 3
while (mtu := sock.getsockopt(socket.IPPROTO_IP, IP_MTU)) >= 1428 and time.monotonic() < end:
    try:
        sock.send(b"x" * 1400)
    except OSError as error:
        print(error, file=sys.stderr)
    time.sleep(0.02)
print(f"mtu={mtu}")
