"""A TLS server on [::]:443. One JSON line per request: who, to which address, under which server name, what."""
import json
import re
import socket
import ssl
import sys
import threading

certificate, key = sys.argv[1:]
lock = threading.Lock()


def plain(address):
    return [address[0].removeprefix("::ffff:"), address[1]]


def serve(raw):
    names = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["http/1.1"])
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    line = {"src": plain(raw.getpeername()), "dst": plain(raw.getsockname()), "sni": None, "text": ""}
    try:
        raw.settimeout(10)
        with context.wrap_socket(raw, server_side=True) as stream:
            data = b""
            while b"\r\n\r\n" not in data and (chunk := stream.recv(65536)):
                data += chunk
            head, _, body = data.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: *(\d+)", head)
            while length and len(body) < int(length[1]) and (chunk := stream.recv(65536)):
                body += chunk
            line.update(sni=names[0] if names else None, text=(head + b"\r\n\r\n" + body).decode("latin-1"))
            with lock:
                print(json.dumps(line), flush=True)
            answer = b"sink " + line["dst"][0].encode() + b"\n"
            stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(answer) + answer)
    except OSError as error:
        print(f"{line['src']}: {error}", file=sys.stderr)


listener = socket.create_server(("::", 443), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
print("ready", flush=True)
while True:
    connection, _ = listener.accept()
    threading.Thread(target=serve, args=(connection,), daemon=True).start()
