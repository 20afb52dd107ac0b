"""outsider.py PID: what can be done to another process; one line each: NAME=ok|ERRNO. The last one kills it."""
import ctypes
import errno
import os
import signal
import sys

libc = ctypes.CDLL(None, use_errno=True)
PIDFD_OPEN, PIDFD_GETFD = 434, 438
PTRACE_DETACH, PTRACE_SEIZE = 17, 0x4206
pid = int(sys.argv[1])


def call(function, *arguments):
    words = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    result = function(*words)
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def trace():
    call(libc.ptrace, PTRACE_SEIZE, pid, 0, 0)
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, 0x40000000)
    call(libc.ptrace, PTRACE_DETACH, pid, 0, 0)


def steal():
    pidfd = call(libc.syscall, PIDFD_OPEN, pid, 0)
    os.close(call(libc.syscall, PIDFD_GETFD, pidfd, 0, 0))


STEPS = {
    "pidfd_open": lambda: os.close(call(libc.syscall, PIDFD_OPEN, pid, 0)),
    "pidfd_getfd": steal,
    "memory": lambda: os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR)),
    "ptrace": trace,
    "kill": lambda: os.kill(pid, signal.SIGKILL),
}
for name, step in STEPS.items():
    try:
        step()
        print(f"{name}=ok")
    except OSError as error:
        print(f"{name}={errno.errorcode.get(error.errno, error.errno)}")
