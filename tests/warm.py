"""Processes of the scripts that start in a hundredth of a second: forked from one that has imported everything.

Each is a real process, with its own descriptors, environment, folder and signals, and runs `main()` to the
interpreter's end. It shares only the imports and the reading of the script; where these are the matter, or the
interpreter's own settings, a test starts its process in the ordinary way.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import functools
import gc
import importlib.util
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

SETTLED = ("PYTHON", "LC_", "LANG")  # variables of which the interpreter takes note once, as it starts
HEAVY = ("requests", "urllib3", "tqdm", "flask", "Levenshtein", "jinja2", "latex2mathml.converter")
STATUS_BYTES = 8


class Child:
    """A forked process, with as much of `subprocess.Popen` as the tests need."""

    def __init__(self, args: list[str], pid: int, status: int) -> None:
        self.args, self.pid, self.status = args, pid, status
        self.returncode: int | None = None
        self.lock = threading.Lock()
        self.stdout: IO[Any] | None = None
        self.stderr: IO[Any] | None = None

    def __del__(self) -> None:
        """Let go of the descriptor that tells the exit status."""
        os.close(self.status)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the pipes and wait for the end."""
        for stream in (self.stdout, self.stderr):
            if stream:
                stream.close()
        self.wait()

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, negative for a signal; raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self.status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            with self.lock:  # several threads may wait
                if self.returncode is None:
                    self.returncode = int(os.read(self.status, STATUS_BYTES) or -signal.SIGKILL)
        return self.returncode

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def popen(
    script: Path, *args: object, cwd: Path, env: Mapping[str, str] | None = None, text: bool = True, **streams: Any
) -> Child | subprocess.Popen[Any]:
    """Start a script as `subprocess.Popen` does, warm where its variables let it.

    `streams` are stdin, stdout and stderr, and nothing where they are not given; pipes are `text` in UTF-8, or bytes.
    """
    variables = dict(os.environ if env is None else env)
    command = [str(script), *map(str, args)]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **streams}
    if not nursery().suits(variables):
        encoding = "utf-8" if text else None
        return subprocess.Popen([sys.executable, *command], cwd=cwd, env=variables, encoding=encoding, **streams)
    pipes: dict[str, IO[Any]] = {}
    with contextlib.ExitStack() as opened:

        def descriptor(name: str) -> int:
            stream = streams[name]
            if stream == subprocess.STDOUT:
                return descriptors[1]
            if stream == subprocess.DEVNULL:
                return opened.enter_context(open(os.devnull, "r+b")).fileno()
            if stream != subprocess.PIPE:
                return stream if isinstance(stream, int) else int(stream.fileno())
            reading, writing = os.pipe()
            opened.callback(os.close, writing)
            pipes[name] = os.fdopen(reading, encoding="utf-8") if text else os.fdopen(reading, "rb")
            return writing

        descriptors: list[int] = []
        for name in ("stdin", "stdout", "stderr"):
            descriptors.append(descriptor(name))
        child = nursery().start(command, cwd, variables, descriptors)
    child.stdout, child.stderr = pipes.get("stdout"), pipes.get("stderr")
    return child


def run(
    script: Path, *args: object, cwd: Path, env: Mapping[str, str] | None = None, timeout: float
) -> subprocess.CompletedProcess[str]:
    """A script run to its end as `subprocess.run` does, with what it printed; raises subprocess.TimeoutExpired."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        with popen(script, *args, cwd=cwd, env=env, stdout=out, stderr=errors) as process:
            try:
                status = process.wait(timeout)
            except BaseException:
                process.kill()
                raise
        printed = [file.seek(0) or file.read().decode("utf-8") for file in (out, errors)]
    return subprocess.CompletedProcess([script, *args], status, *printed)


class Request(NamedTuple):
    """The start of one process: where, with which variables, and on which descriptors for its three streams."""

    args: list[str]
    cwd: str
    env: dict[str, str]


class Nursery:
    """The process that the others are forked from; it ends when this one does."""

    def __init__(self) -> None:
        self.variables = {name: value for name, value in os.environ.items() if name.startswith(SETTLED)}
        self.lock = threading.Lock()
        self.channel, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno())]
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True)
        atexit.register(self.close)

    def suits(self, env: Mapping[str, str]) -> bool:
        """Whether a process with these variables would have found the interpreter that this is."""
        return {name: value for name, value in env.items() if name.startswith(SETTLED)} == self.variables

    def start(self, args: list[str], cwd: Path, env: Mapping[str, str], streams: list[int]) -> Child:
        """Start the script args[0] with the other `args` and these descriptors for stdin, stdout and stderr."""
        reading, writing = os.pipe()
        message = json.dumps(Request(args, str(cwd), dict(env))).encode() + b"\n"
        with self.lock:
            socket.send_fds(self.channel, [message], [*streams, writing])
            pid = int(self.channel.recv(STATUS_BYTES))
        os.close(writing)
        return Child(args, pid, reading)

    def close(self) -> None:
        """End it; the processes that it has started go on."""
        self.channel.close()
        self.process.wait()


@functools.cache
def nursery() -> Nursery:
    """The one of this process, started when it is first needed."""
    return Nursery()


def module_of(path: str) -> Any:
    """The script at `path` as a module, loaded once."""
    name = Path(path).stem.replace("-", "_")
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec
        assert spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def receive(channel: socket.socket) -> tuple[Request, list[int]] | None:
    """The next request and its descriptors; None when nobody is there to send any."""
    size = 4 * array.array("i").itemsize
    data, ancillary, _, _ = channel.recvmsg(1 << 16, socket.CMSG_SPACE(size))
    descriptors = array.array("i", ancillary[0][2][:size] if ancillary else b"")
    while data and not data.endswith(b"\n"):
        data += channel.recv(1 << 16)
    return (Request(*json.loads(data)), list(descriptors)) if data else None


def serve(channel: socket.socket) -> Request | None:
    """Fork a process for each request; returns the request in the process that is to fulfil it, None in the end."""
    woken, waking = socket.socketpair()
    woken.setblocking(False)
    waking.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waking.fileno())
    running: dict[int, int] = {}  # by the number of a process the descriptor that is told how it ended
    while True:
        ready = select.select([channel, woken], [], [])[0]
        if woken in ready:
            woken.recv(1 << 12)
            reap(running)
        if channel not in ready:
            continue
        received = receive(channel)
        if received is None:
            return None
        request, (*streams, status) = received
        module_of(request.args[0])
        gc.freeze()  # else the collector would touch, and so copy, every page that is shared
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number, descriptor in enumerate(streams):
                os.dup2(descriptor, number)
            for descriptor in (*streams, status, *running.values()):
                os.close(descriptor)
            for end in (channel, woken, waking):
                end.close()
            return request
        for descriptor in streams:
            os.close(descriptor)
        running[pid] = status
        channel.send(str(pid).encode().ljust(STATUS_BYTES))


def reap(running: dict[int, int]) -> None:
    """Tell of each process that has ended how it did."""
    with contextlib.suppress(ChildProcessError):
        while running and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            status = running.pop(ended[0])
            with contextlib.suppress(OSError):  # nobody may want to know
                os.write(status, str(os.waitstatus_to_exitcode(ended[1])).encode())
            os.close(status)


def main() -> None:
    """Be the nursery, or one of its processes."""
    for name in HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    if request is None:
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # The streams anew: these have looked, when they were made, at what the descriptors were then.
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        made = getattr(sys, name)
        buffering = 1 if name == "stderr" or os.isatty(number) else -1
        fresh = open(number, mode, buffering, made.encoding, made.errors, closefd=False)  # noqa: SIM115 - for good
        setattr(sys, name, fresh)
        setattr(sys, f"__{name}__", fresh)
    os.chdir(request.cwd)
    os.environ.clear()
    os.environ.update(request.env)
    sys.argv = request.args
    sys.path[0] = str(Path(request.args[0]).parent)
    sys.exit(module_of(request.args[0]).main())


if __name__ == "__main__":
    main()
