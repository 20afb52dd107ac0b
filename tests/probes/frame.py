"""frame.py IFNAME MAC SRC DST PORT PAYLOAD: one UDP datagram as a frame made by hand, past every socket hook."""
import socket
import struct
import sys

name, mac, src, dst, port, payload = sys.argv[1:]


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


udp = struct.pack("!HHHH", 5555, int(port), 8 + len(payload), 0) + payload.encode()
head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0x1234, 0, 64, socket.IPPROTO_UDP, 0)
head += socket.inet_aton(src) + socket.inet_aton(dst)
packet = head[:10] + struct.pack("!H", checksum(head)) + head[12:] + udp
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
    link.bind((name, 0))
    link.send(bytes.fromhex(mac.replace(":", "")) + b"\x02\0\0\0\0\x30\x08\x00" + packet)
