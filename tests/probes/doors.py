"""doors.py PATH…: connects to unix sockets; one line each: PATH=ok|ERRNO."""
import errno
import socket
import sys

for path in sys.argv[1:]:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(path)
            print(f"{path}=ok")
        except OSError as error:
            print(f"{path}={errno.errorcode.get(error.errno, error.errno)}")
