"""What batching gains a server: `python benchmarks/serve.py`, with more words for the server.

One client, then 16 at once, ask for images one by one; each round lasts some seconds. Bars: at 16
clients at least 1.5 times the samples a second, and no request fails. The server's memory is what
its processes hold (proportional set size), and is to be steady.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

SECONDS, CLIENTS = 10, 16


def main() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    words = ["modality=image", f"port={port}", *sys.argv[1:]]
    process = subprocess.Popen([sys.executable, "-m", "scm_core.serve", *words])
    try:
        address = f"http://127.0.0.1:{port}"
        while not answers(f"{address}/health"):
            if process.poll() is not None:
                sys.exit("the server did not start")
            time.sleep(0.2)
        answers(f"{address}/sample", {})
        before = megabytes(process.pid)
        one, failed = load(address, 1)
        many, more = load(address, CLIENTS)
        after = megabytes(process.pid)
    finally:
        process.terminate()
        process.wait()
    print(f"1 client {one:.1f} samples/s, {CLIENTS} clients {many:.1f}, ratio {many / one:.2f}")
    print(f"failed requests {failed + more}; memory {before:.0f} MB before, {after:.0f} MB after")


def load(address: str, clients: int) -> tuple[float, int]:
    """Samples a second of so many clients, and how many of their requests failed."""
    counts: list[bool] = []
    until = time.monotonic() + SECONDS

    def client(first: int) -> None:
        seed = first
        while time.monotonic() < until:
            counts.append(answers(f"{address}/sample", {"seed": seed}))
            seed += clients

    threads = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.monotonic() - started), counts.count(False)


def answers(address: str, body: dict | None = None) -> bool:
    """Whether an address answers a GET, or a POST of `body`, with success."""
    content = None if body is None else json.dumps(body).encode()
    try:
        request = Request(address, content, {"Content-Type": "application/json"})
        with urlopen(request, timeout=60) as answer:
            return bool(answer.read())
    except (URLError, ConnectionError):
        return False


def megabytes(pid: int) -> float:
    """What a process and its children hold, pages that they share counted once."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    own = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return own / 1024 + sum(megabytes(int(child)) for child in children)


if __name__ == "__main__":
    main()
