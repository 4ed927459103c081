#!/usr/bin/env python3
"""Requests per second of the simulator's own server beside werkzeug's, and of replies that take their time.

    python benchmarks/serving.py

The same application answers the same requests under both servers. The client is one thread that waits on all
connections at once, so that it costs the servers as little as can be.
"""

import json
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from harness import REPO, Report, load_script

SIMULATOR = REPO / "llama-server-simulator.py"
PRACTICE = REPO / "data" / "practice.jsonl"
SECONDS = 4.0
DEADLINE = 60.0


@contextmanager
def simulator(*options: object, server: str = "own") -> Iterator[int]:
    """The port of a simulator of the practice set, under its own server or werkzeug's."""
    arguments = ["--dataset", "practice", "--host", "127.0.0.1", "--port", "0", *map(str, options)]
    command = [sys.executable, str(SIMULATOR if server == "own" else Path(__file__)), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        found = None
        while found is None and process.stdout is not None:
            line = process.stdout.readline()
            found = re.search(r"http://[^:]+:(\d+)", line)
            if not line:
                sys.exit("the simulator has not started")
        yield int(found[1]) if found else 0
    finally:
        process.kill()
        process.wait()


def serve_with_werkzeug(arguments: list[str]) -> None:
    """Run the simulator's application under werkzeug's server."""
    from werkzeug.serving import WSGIRequestHandler, make_server  # noqa: PLC0415

    module = load_script(SIMULATOR)

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, type: str, message: str, *args: object) -> None:
            pass

    class Absent:
        """A client that never leaves."""

        def has_left(self) -> bool:
            return False

        def wait(self, seconds: float) -> bool:
            time.sleep(seconds)
            return False

    settings = module.read_settings(module.build_parser().parse_args(arguments))
    app = module.build_app(module.Simulator(module.load_dataset("practice", ""), settings))
    inner = app.wsgi_app
    app.wsgi_app = lambda environ, start: inner({**environ, "simulator.connection": Absent()}, start)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    print(f"http://127.0.0.1:{server.port}", flush=True)
    server.serve_forever()


def chat_request(**more: object) -> bytes:
    """A chat request for a known question, as it goes over the wire."""
    question = json.loads(PRACTICE.read_text(encoding="utf-8").splitlines()[0])["question"]
    body = json.dumps({"messages": [{"role": "user", "content": f"Solve.\n\n{question}"}], **more}).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@dataclass
class Connection:
    """One connection of the client, and what has arrived of the reply to its request."""

    port: int
    request: bytes
    wire: socket.socket = field(init=False)
    arrived: bytes = b""

    def open(self) -> None:
        """Connect and send the request."""
        self.wire = socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE)
        self.wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.wire.sendall(self.request)

    def read(self) -> tuple[bool, bool]:
        """Take what has arrived; whether the reply is complete, and whether the connection is at its end."""
        data = self.wire.recv(1 << 16)
        self.arrived += data
        head, found, body = self.arrived.partition(b"\r\n\r\n")
        if found:
            length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
            if len(body) >= length:
                if b" 200 " not in head[:20]:
                    sys.exit(f"the server says {head[:60]!r}")
                self.arrived = b""
                return True, b"connection: close" in head.lower()
        if not data:
            sys.exit("the server has closed too early")
        return False, False


def requests_per_second(port: int, request: bytes, count: int) -> float:
    """Replies that `count` connections get in a second, each asking again as soon as it has one."""
    poll, connections = select.poll(), {}
    for _ in range(count):
        connection = Connection(port, request)
        connection.open()
        connections[connection.wire.fileno()] = connection
        poll.register(connection.wire, select.POLLIN)
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        for number, _ in poll.poll(1000):
            connection = connections[number]
            complete, ended = connection.read()
            done += complete
            if complete and not ended:
                connection.wire.sendall(connection.request)
            elif complete:
                poll.unregister(number)
                connection.wire.close()
                del connections[number]
                connection.open()
                connections[connection.wire.fileno()] = connection
                poll.register(connection.wire, select.POLLIN)
    elapsed = time.perf_counter() - start
    for connection in connections.values():
        connection.wire.close()
    return done / elapsed


def seconds_for_waiting(port: int, count: int) -> float:
    """How long `count` requests take that are sent at the same time."""
    start, waiting = time.perf_counter(), select.poll()
    connections = {}
    for _ in range(count):
        connection = Connection(port, chat_request())
        connection.open()
        connections[connection.wire.fileno()] = connection
        waiting.register(connection.wire, select.POLLIN)
    while connections:
        for number, _ in waiting.poll(1000):
            if connections[number].read()[0]:
                waiting.unregister(number)
                connections.pop(number).wire.close()
    return time.perf_counter() - start


def main() -> None:
    """Measure, print and save."""
    report = Report("serving")
    report.heading("time per request, beside that under werkzeug's server")
    requests = {"health": b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", "chat": chat_request()}
    for name, request in requests.items():
        for count in (32, 256):
            speeds = {}
            for server in ("werkzeug", "own"):
                with simulator("--slots", 256, server=server) as port:
                    speeds[server] = requests_per_second(port, request, count)
            own, werkzeug = (1e6 / speeds[server] for server in ("own", "werkzeug"))
            report.figure(f"{name}, {count} connections", own, "us", werkzeug, goal=1 / 3)
    report.heading("256 requests sent at once, which take 0.5 s each")
    with simulator("--slots", 256, "--ttft", 0.5) as port:
        report.figure("all of them", seconds_for_waiting(port, 256), "s", 0.5, goal=1.3)
    report.save()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        serve_with_werkzeug(sys.argv[1:])
    else:
        main()
