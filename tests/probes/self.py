"""self.py PORT…: accepts on 0.0.0.0 and [::] and prints the request line of whatever comes."""
import socket
import sys
import threading


def serve(listener):
    while True:
        connection, _ = listener.accept()
        with connection:
            print(connection.recv(4096).split(b"\r\n")[0].decode(), flush=True)
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nself\n")


for port in sys.argv[1:]:
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address, int(port)))
        listener.listen()
        threading.Thread(target=serve, args=(listener,)).start()
print("listening", flush=True)
