"""The scripts under test: loaded as modules for their pure rules, run as processes for their behaviour."""

import contextlib
import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any

import warm

REPO = Path(__file__).resolve().parent.parent
SHARED = REPO.parent / "shared"
EVAL = REPO / "llama-eval.py"
SIMULATOR = REPO / "llama-server-simulator.py"
REPORT = REPO / "llama-eval-report.py"
DEADLINE = 60.0


def load(path: Path) -> Any:
    """The script at `path` as a module; its name has a dash, which `import` cannot say."""
    return warm.module_of(str(path))


def run_eval(
    *args: object, cwd: Path, env: dict[str, str] | None = None, timeout: float = DEADLINE
) -> subprocess.CompletedProcess[str]:
    """`llama-eval.py` with `args` run to its end in the folder `cwd`; `env` is added to the environment."""
    return warm.run(EVAL, *args, cwd=cwd, env={**os.environ, **(env or {})}, timeout=timeout)


def start_eval(*args: object, cwd: Path, **streams: Any) -> Any:
    """`llama-eval.py` with `args`, running in the folder `cwd`; `streams` are those of `subprocess.Popen`."""
    return warm.popen(EVAL, *args, cwd=cwd, **streams)


def run_report(*args: object, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`llama-eval-report.py` with `args` run to its end in the folder `cwd`; it never ends in a traceback."""
    done = warm.run(REPORT, *args, cwd=cwd, env={**os.environ, **(env or {})}, timeout=DEADLINE)
    assert "Traceback" not in done.stderr
    return done


def refused(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The complaint of `llama-eval-report.py`, which says in one line why it does nothing."""
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)
    assert done.stderr.startswith("llama-eval-report: error: ")
    return done.stderr


def completion(content: str | None, **more: Any) -> dict[str, Any]:
    """The least that a chat completion can be."""
    return {"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}], **more}


def practice_answers() -> dict[str, str]:
    """The expected answer to each question of the practice set."""
    lines = (REPO / "data" / "practice.jsonl").read_text("utf-8").splitlines()
    return {row["question"]: str(row["answer"]) for row in map(json.loads, lines)}


ANSWERS = practice_answers()


def expected(body: Any) -> str:
    """The expected answer to the practice question in a request."""
    return next(answer for question, answer in ANSWERS.items() if question in body["messages"][-1]["content"])


def right(method: str, path: str, body: Any) -> tuple[int, Any]:
    """The reply of a server that knows the practice set and says little else."""
    return (200, completion(f'{{"answer": {expected(body)}}}')) if method == "POST" else (404, b"")


def tasks_of(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The tasks in a state file, each with the texts of its problem."""
    first = {task["problem"]: task for task in reversed(state["tasks"])}
    return [{**first[task["problem"]], **task} for task in state["tasks"]]


Reply = Callable[[str, str, Any], tuple[Any, ...]]


def busy_at_first() -> Reply:
    """The reply of a server that is right, after a 503 to each question."""
    failed = set()

    def reply(method: str, path: str, body: Any) -> tuple[int, Any]:
        if method == "POST" and expected(body) not in failed:
            failed.add(expected(body))
            return 503, {"error": {"message": "busy"}}
        return right(method, path, body)

    return reply


def held_back() -> tuple[Reply, threading.Event, threading.Event]:
    """The reply of a server that is right, but not until the last of two events; the first says that it was asked."""
    asked, over = threading.Event(), threading.Event()

    def reply(method: str, path: str, body: Any) -> tuple[int, Any]:
        if method == "POST":
            asked.set()
            over.wait(DEADLINE)
        return right(method, path, body)

    return reply, asked, over


class FakeServer:
    """A real HTTP server on a free port; `reply(method, path, body)` gives a status, a payload and maybe headers.

    Bytes are sent as they are, anything else as JSON. Every request is kept in `requests`, as
    (method, path, headers, body).
    """

    def __init__(self, reply: Reply) -> None:
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16  # a reply in one piece

            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                if len(body) < length:  # the client has left in the middle of its request
                    self.close_connection = True
                    return
                parsed = json.loads(body) if body else None
                outer.requests.append((self.command, self.path, dict(self.headers), parsed))
                status, payload, *headers = reply(self.command, self.path, parsed)
                data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                for name, value in headers[0].items() if headers else ():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = answer  # noqa: N815 - the names that http.server looks for

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def prompts(self) -> list[Any]:
        """The bodies of the chat completion requests."""
        return [body for method, path, _, body in self.requests if path.endswith("/chat/completions")]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class HangupError(Exception):
    """Raised by an act to close the connection."""


Act = Callable[[socket.socket, Any], None]


class SocketServer:
    """A server on a free port that is scripted down to the bytes.

    `act(connection, body)` answers a completion request as it likes, and raises HangupError to close the connection;
    every GET is answered by 404, unless `get` is another act. `bodies` are the requests that have come.
    """

    def __init__(self, act: Act, get: Act | None = None, port: int = 0) -> None:
        self.act, self.get = act, get or (lambda connection, path: connection.sendall(http(b"{}", status=404)))
        self.bodies: list[Any] = []
        self.connections: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", port), backlog=512, reuse_port=False)
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self.listener.accept()
                self.connections.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        ends = (HangupError, OSError, ValueError)  # the last where a request is cut off
        with contextlib.suppress(*ends), connection, connection.makefile("rb") as requests:
            while line := requests.readline():
                head = http_headers(requests)
                body = requests.read(int(head.get("content-length", 0)))
                if line.startswith(b"GET"):
                    self.get(connection, line.split()[1].decode())
                    continue
                self.bodies.append(json.loads(body))
                self.act(connection, self.bodies[-1])

    def close(self) -> None:
        """Stop at once, as a killed process does: nobody listens, and every connection is gone."""
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def http_headers(stream: IO[bytes]) -> dict[str, str]:
    """The headers of a request, by their names in lower case."""
    lines = iter(stream.readline, b"\r\n")
    return {name.strip().lower(): value.strip() for name, _, value in (line.decode().partition(":") for line in lines)}


def http(body: bytes, status: int = 200, **headers: str) -> bytes:
    """A whole HTTP reply."""
    lines = [f"HTTP/1.1 {status} X", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def event(**fields: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def delta(content: str | None = None, finish_reason: str | None = None, **more: Any) -> bytes:
    """The event of a piece of a response."""
    piece = {"content": content, **more} if content is not None or more else {}
    return event(choices=[{"index": 0, "delta": piece, "finish_reason": finish_reason}], model="tiny")


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def chunk(data: bytes = b"") -> bytes:
    """A chunk of a chunked body; the last one if empty."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def streamed(*events: bytes) -> bytes:
    """A whole reply that is a stream of events."""
    return STREAM + b"".join(map(chunk, events)) + chunk()


def answer_stream(body: Any) -> bytes:
    """The stream of a server that knows the practice set, in the order of llama-server's events."""
    usage = event(choices=[], usage={"prompt_tokens": 9, "completion_tokens": 3})
    pieces = (delta(content) for content in ('{"answer": ', expected(body), "}"))
    return streamed(delta(role="assistant"), *pieces, delta(finish_reason="stop"), usage, DONE)


def answer(connection: socket.socket, body: Any) -> None:
    """Answer a request as asked: as a stream, or in one piece."""
    whole = http(json.dumps(right("POST", "", body)[1]).encode())
    connection.sendall(answer_stream(body) if body.get("stream") else whole)
