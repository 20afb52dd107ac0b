"""ctrl_c.py CMD…: runs CMD on a terminal of its own, presses Ctrl-C once it says "ready", exits as CMD did.

CMD itself, which is egressd, is stopped until its own command says "got": two copies of a signal that come close together are
one to the kernel.
"""
import os
import pty
import signal
import sys

child, terminal = pty.fork()
if child == 0:
    os.execv(sys.argv[1], sys.argv[1:])
said, pressed, stopped = b"", False, False
while True:
    try:
        data = os.read(terminal, 4096)
    except OSError:
        break
    if not data:
        break
    said += data
    if b"ready" in said and not pressed:
        os.kill(child, signal.SIGSTOP)
        pressed = stopped = os.write(terminal, b"\x03") == 1
    if b"got" in said and stopped:
        os.kill(child, signal.SIGCONT)
        stopped = False
sys.stdout.buffer.write(said)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
sys.exit(status if status >= 0 else 128 - status)
