"""Sends datagrams and stream data to each address until its input ends; every payload tells the moment it was handed over.

drip.py TOKEN ADDRESS...        sockets are made at the start
drip.py --wait TOKEN ADDRESS... the same, then waits for a line of input before the first byte
"""
import select
import socket
import sys
import time

words = sys.argv[1:]
wait = words[0] == "--wait"
token, addresses = words[wait], words[wait + 1 :]


def sockets(address):
    stream = socket.create_connection((address, 8080), 5)
    stream.setblocking(False)
    datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagram.connect((address, 9))
    return {"tcp": stream, "udp": datagram}


made = [(address, kind, one) for address in addresses for kind, one in sockets(address).items()]
print("open", flush=True)
if wait:
    sys.stdin.readline()
refused = {}
while not select.select([sys.stdin], [], [], 0.002)[0]:
    for address, kind, one in made:
        try:
            one.send(b"%s %s;%d;" % (token.encode(), kind.encode(), time.monotonic_ns()))
        except OSError:
            refused[address] = refused.get(address, 0) + 1
            if refused[address] == 50:
                print("refused 50 to", address, flush=True)
