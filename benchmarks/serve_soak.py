"""Send many requests to a served detector, bad ones among them, kill it in the middle, and check every answer.

    python -m benchmarks.serve_soak DETECTOR FOLDER --output benchmarks/results/serve_soak.json

Clients send photographs of the folder at the same time. One request in four is bad: truncated, too large, of another
kind, a bomb of pixels, or so slow that the service gives up. After half of the requests the service is killed (SIGKILL)
and started again; clients repeat what was not answered. The result holds the service's resident memory at ten moments
after the restart, the latency of good requests, and whether all bounds are kept: each good request has the score that
the detector gives without a service, each bad one the right status, the service never ended by itself, memory grows by
less than 5 %, and SIGTERM ends the service with code 0.
"""

import argparse
import http.client
import itertools
import json
import platform
import queue
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.soak import is_flat, latency_result, memory_result, resident
from experiments.runs import script
from texture_ad.deploy.scorer import Scorer, find_files
from texture_ad.files import write_text
from texture_ad.methods.registry import load

MAX_MB = 4
TIMEOUT = 2  # seconds in which the service wants a body
TOLERANCE = 1e-4  # of scores, relative where they are above 1
BAD_SHARE = 0.25
SLOW_SHARE = 0.01  # of the bad ones, each of which takes TIMEOUT


class Reply(NamedTuple):
    """Hold an answer of the service: its status and its JSON."""

    status: int
    content: dict[str, Any]


class Server:
    """Run the service in a process of its own.

    Args:
        detector: file.
        port: the first one that it listens at is kept over restarts.
    """

    def __init__(self, detector: Path):
        self.detector = detector
        self.port = 0
        self.start()

    def start(self) -> None:
        """Start the service and wait until it listens."""
        command = [sys.executable, "-m", "texture_ad.serve", f"detector={self.detector}", f"port={self.port}"]
        command += [f"max_mb={MAX_MB}", f"timeout={TIMEOUT}", "rate=null", "max_requests=64"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        found = None
        while found is None:
            line = self.process.stdout.readline()
            if not line:
                raise SystemExit("the service did not start")
            found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        self.port = int(found[1])

    def restart(self) -> None:
        """Kill the service as a crash or a loss of power would, and start it again."""
        self.process.kill()
        self.process.wait()
        self.start()

    def stop(self) -> int:
        """Ask the service to end; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def post(self, body: bytes, kind: str = "image/png") -> Reply:
        """Send a body and return the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("POST", "/predict", body, {"Content-Type": kind})
            answer = connection.getresponse()
            return Reply(answer.status, json.loads(answer.read()))
        finally:
            connection.close()


# --- bad requests: each sends one and returns the status that it expects -------------------------------


def truncated(server: Server, good: bytes) -> tuple[Reply, int]:
    """Send half of a photograph."""
    return server.post(good[: len(good) // 2]), 422


def huge(server: Server, good: bytes) -> tuple[Reply, int]:
    """Send more bytes than the service takes."""
    return server.post(good + bytes(int(MAX_MB * 1e6))), 413


def another_kind(server: Server, good: bytes) -> tuple[Reply, int]:
    """Send a text."""
    return server.post(b"not a photograph", "text/plain"), 415


def mislabelled(server: Server, good: bytes) -> tuple[Reply, int]:
    """Send a text that claims to be a photograph."""
    return server.post(b"not a photograph"), 422


def empty(server: Server, good: bytes) -> tuple[Reply, int]:
    """Send nothing."""
    return server.post(b""), 422


def bomb(server: Server, good: bytes) -> tuple[Reply, int]:
    """Send a small file whose header claims 64 million pixels."""
    head = struct.pack(">IIBBBBB", 8_000, 8_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    file = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(head)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return server.post(file + good[33:]), 413


def leaving(server: Server, good: bytes) -> tuple[Reply, int]:
    """Send half of what was announced, and leave."""
    _begin(server, good).close()
    return Reply(0, {}), 0


def slow(server: Server, good: bytes) -> tuple[Reply, int]:
    """Send half of what was announced, and wait."""
    connection = _begin(server, good)
    status = int(connection.recv(12)[9:] or 0)
    connection.close()
    return Reply(status, {}), 408


def _begin(server: Server, good: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    head = (
        f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: {len(good)}\r\n\r\n"
    )
    connection.sendall(head.encode() + good[: len(good) // 2])
    return connection


BAD = (truncated, huge, another_kind, mislabelled, empty, bomb, leaving)


class Clients:
    """Send requests from several threads until all are answered.

    Args:
        server: that is asked.
        photographs: bytes and expected score of each.
        count: requests.
        clients: threads.
        half: called once, when half of the requests are answered.

    Attributes:
        seconds: of each good request that was answered at the first try.
        memory: of the service in MiB, at ten moments of the second half.
        kinds: how many requests of each kind were answered.
        wrong: a sentence for each answer that was not as expected.
        repeated: requests that the kill left without an answer.
    """

    def __init__(
        self,
        server: Server,
        photographs: Sequence[tuple[bytes, float]],
        count: int,
        clients: int,
        half: Callable[[], None],
    ):
        self.server = server
        self.photographs = photographs
        self.count = count
        self.half = half
        self.seconds: list[float] = []
        self.memory: list[float] = []
        self.kinds: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.repeated = 0
        self._lock = threading.Lock()
        self._numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(count):
            self._numbers.put(number)
        threads = [threading.Thread(target=self._run) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _run(self) -> None:
        while True:
            try:
                number = self._numbers.get_nowait()
            except queue.Empty:
                return
            self._ask(number)
            self._note(number)

    def _ask(self, number: int) -> None:
        """Send request `number` until it is answered."""
        chosen = random.Random(number)
        body, expected = self.photographs[number % len(self.photographs)]
        bad = None
        if chosen.random() < BAD_SHARE:
            bad = slow if chosen.random() < SLOW_SHARE else chosen.choice(BAD)
        for attempt in itertools.count():
            start = time.perf_counter()
            try:
                reply, status = bad(self.server, body) if bad else (self.server.post(body), 200)
            except (OSError, http.client.HTTPException) as error:  # killed, or not up again yet
                if attempt > 3000:  # five minutes: a busy machine starts slowly
                    raise SystemExit(f"request {number}: no answer ({error})") from error
                time.sleep(0.1)
                continue
            if reply.status == 503 or (bad is slow and reply.status == 0):
                time.sleep(0.05)
                continue
            break
        with self._lock:
            self.repeated += attempt > 0
            self.kinds[bad.__name__ if bad else "good"] += 1
            if reply.status != status:
                self.wrong.append(f"request {number}: {reply.status} {reply.content}, expected {status}")
            elif bad is None:
                difference = abs(reply.content["score"] - expected) / max(1.0, abs(expected))
                if difference > TOLERANCE:
                    self.wrong.append(f"request {number}: score {reply.content['score']}, expected {expected}")
                if attempt == 0:
                    self.seconds.append(time.perf_counter() - start)

    def _note(self, number: int) -> None:
        """Note the service's memory now and then, after it was killed at half of the requests."""
        if number == self.count // 2:
            self.half()
        rest = number - int(0.55 * self.count)  # a tenth of the second half is its warm-up
        if rest >= 0 and rest % max(1, int(0.045 * self.count)) == 0:
            memory = resident(self.server.process.pid)
            if memory is not None:
                self.memory.append(memory)
            print(f"{number} requests, {memory} MiB", flush=True)


def expected_scores(detector: Path, folder: Path) -> list[tuple[bytes, float]]:
    """Return bytes and score of each photograph of a folder that the service takes, without a service."""
    scorer = Scorer(load(detector), folder, None)
    paths = [path for path in find_files(folder, folder / "none").images if path.stat().st_size < MAX_MB * 1e6]
    results = [scorer.score([path], scorer.read([path]))[0] for path in paths]
    return [(path.read_bytes(), result.score) for path, result in zip(paths, results, strict=True) if result.score]


def soak(detector: Path, folder: Path, count: int, clients: int) -> dict[str, Any]:
    """Return the result of `count` requests from `clients` threads."""
    photographs = expected_scores(detector, folder)
    server = Server(detector)
    start = time.perf_counter()
    try:
        done = Clients(server, photographs, count, clients, server.restart)
        alive = server.process.poll() is None
        seconds = time.perf_counter() - start
        code = server.stop()
    finally:
        server.process.kill()
    memory = done.memory
    return {
        "requests": count,
        "clients": clients,
        "kinds": dict(sorted(done.kinds.items())),
        "wrong": len(done.wrong),
        "first_wrong": done.wrong[:5],
        "repeated_after_kill": done.repeated,
        **memory_result(memory),
        **latency_result(np.array(done.seconds)),
        "requests_per_second": round(count / seconds, 1),
        "exit_code": code,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "kept": alive and code == 0 and not done.wrong and is_flat(memory),
    }


def main() -> None:
    """Soak a detector's service and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("detector", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path("serve_soak.json"))
    args = parser.parse_args()
    text = json.dumps(soak(args.detector, args.folder, args.count, args.clients), indent=2)
    write_text(args.output, text + "\n")
    print(text)


if __name__ == "__main__":
    script(main)
