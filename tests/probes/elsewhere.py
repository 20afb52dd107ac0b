"""elsewhere.py ADDRESS: the ports of other ways to resolve names, and some that are not; the errno of each, 0 where it went."""
import socket
import sys

address = sys.argv[1]


def told(name, work):
    try:
        work()
        print(f"{name}=0")
    except OSError as error:
        print(f"{name}={error.errno}")


def datagram(to, port):
    with socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"question", (to, port))


for port in (853, 8080):
    told(f"tcp{port}", lambda: socket.create_connection((address, port), 3).close())
for port in (853, 5353, 5355, 137, 443):
    told(f"udp{port}", lambda: datagram(address, port))
told("mdns4", lambda: datagram("224.0.0.251", 5353))
told("mdns6", lambda: datagram("ff02::fb%eth0", 5353))
told("llmnr4", lambda: datagram("224.0.0.252", 5355))
