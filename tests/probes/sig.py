"""sig.py NAME TOKEN LIVES: sends one datagram to NAME:9 for every INT or TERM it gets. Of the one that takes its last life
it dies, after it has lingered for more of them; with LIVES 0 of none."""
import os
import signal
import socket
import sys

name, token, lives = sys.argv[1], sys.argv[2], int(sys.argv[3])
target = socket.getaddrinfo(name, 9, socket.AF_INET, socket.SOCK_DGRAM)[0][4]
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
SIGNALS = (signal.SIGINT, signal.SIGTERM)
LINGER_S = 0.3

deaf = lives == 0
signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
print("ready", flush=True)
last = signal.SIGTERM
while got := signal.sigtimedwait(SIGNALS, 3600 if deaf or lives > 0 else LINGER_S):
    last = signal.Signals(got.si_signo)
    sender.sendto(f"{token}-{last.name};".encode(), target)
    print(f"got {last.name}", flush=True)
    lives -= 1
signal.signal(last, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
os.kill(os.getpid(), last)
