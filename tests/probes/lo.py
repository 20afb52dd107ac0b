"""lo.py: servers on loopback addresses and a unix socket, a connection to each. Exit status 0 when every server got its
token and a closed port refused."""
import errno
import os
import socket
import sys
import tempfile
import threading

FAMILIES = {"127.0.0.1": socket.AF_INET, "127.1.2.3": socket.AF_INET, "::1": socket.AF_INET6}
failures, seen = [], []


def server(listener):
    while True:
        connection, _ = listener.accept()
        with connection:
            seen.append(connection.recv(100).decode())
            connection.send(b"taken")


def listen(listener):
    listener.listen()
    threading.Thread(target=server, args=(listener,), daemon=True).start()


def check(name, connect):
    try:
        with connect() as sock:
            sock.settimeout(3)
            sock.send(name.encode())
            if sock.recv(100) != b"taken" or name not in seen:
                failures.append(f"{name}: not taken")
    except OSError as error:
        failures.append(f"{name}: {error}")


def tcp(address, port):
    return lambda: socket.create_connection((address, port), 3)


for address, family in FAMILIES.items():
    listener = socket.socket(family)
    listener.bind((address, 0))
    listen(listener)
    check(f"to {address}", tcp(address, listener.getsockname()[1]))
    if address == "127.0.0.1":
        check("to localhost", tcp("localhost", listener.getsockname()[1]))
        check("to 0.0.0.0", tcp("0.0.0.0", listener.getsockname()[1]))

directory = tempfile.TemporaryDirectory()
path = os.path.join(directory.name, "socket")
unix = socket.socket(socket.AF_UNIX)
unix.bind(path)
listen(unix)


def by_path():
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    return sock


check("to a unix socket", by_path)
for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    with socket.socket(family, socket.SOCK_DGRAM) as one, socket.socket(family, socket.SOCK_DGRAM) as two:
        one.bind((address, 0))
        one.settimeout(3)
        try:
            two.sendto(b"datagram", one.getsockname()[:2])
            if one.recv(100) != b"datagram":
                failures.append(f"udp {address}: wrong")
        except OSError as error:
            failures.append(f"udp {address}: {error}")

with socket.socket() as closed:
    closed.bind(("127.0.0.1", 0))
    try:
        socket.create_connection(closed.getsockname(), 3)
        failures.append("a closed port accepted")
    except OSError as error:
        if error.errno != errno.ECONNREFUSED:
            failures.append(f"closed port: {error}")

print("\n".join(failures or ["all"]))
sys.exit(bool(failures))
