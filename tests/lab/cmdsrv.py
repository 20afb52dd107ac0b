"""Runs shell scripts that come as JSON lines on standard input, each in its own thread; answers in JSON lines."""
import json
import subprocess
import sys
import threading
import time

lock = threading.Lock()


def run(order):
    started = time.monotonic()
    done = subprocess.run(["sh", "-c", order["script"]], stdin=subprocess.DEVNULL, capture_output=True)
    answer = {
        "id": order["id"],
        "status": done.returncode,
        "stdout": done.stdout.decode("utf-8", "replace"),
        "stderr": done.stderr.decode("utf-8", "replace"),
        "took": time.monotonic() - started,
    }
    with lock:
        print(json.dumps(answer), flush=True)


threads = []
for line in sys.stdin:
    thread = threading.Thread(target=run, args=(json.loads(line),))
    thread.start()
    threads.append(thread)
for thread in threads:
    thread.join()
