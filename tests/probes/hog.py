"""hog.py: says its memory is small, waits for a line, then takes 256 MiB."""
import sys

print("ready", flush=True)
sys.stdin.readline()
taken = b"x" * (256 << 20)
print(len(taken))
