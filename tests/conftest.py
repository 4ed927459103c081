"""Shared fixtures: a clean environment for the processes a test starts, and servers to talk to."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

import warm
from browser import MISSING, Browser, chromium, programs
from scripts import SHARED, SIMULATOR, FakeServer, SocketServer

# Examples take as long as the machine needs: some write files, and the suite also runs under load.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# Whoever runs the suite in the background may have had signals ignored, which processes would inherit.
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

START_SECONDS = 60
STOP_SECONDS = 20

FOREIGN_VARIABLE = re.compile(r"HF_.*|HUGGING_?FACE_.*|XDG_.*|.*_API_KEY|.*_TOKEN|[A-Z]+_PROXY", re.IGNORECASE)


# The modules that need a browser, many processes or much waiting: `make test-quick` does without.
SLOW = {
    *("test_backlog", "test_command_grader", "test_comparison", "test_datasets", "test_end_to_end", "test_faults"),
    *("test_formulas", "test_matrix"),
    "test_processor",
    *("test_report", "test_report_page", "test_simulator", "test_simulator_matching", "test_simulator_model"),
    "test_simulator_serving",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of the slow modules."""
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker(pytest.mark.slow)


def clean_environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without what a machine or its user may have set up, and with another home."""
    kept = {name: value for name, value in os.environ.items() if not FOREIGN_VARIABLE.fullmatch(name)}
    return {**kept, "HOME": str(home), **(extra or {})}


@pytest.fixture(autouse=True)
def isolated_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep a test and its child processes from this machine's home, proxies, keys and caches. Gives the home."""
    home = tmp_path_factory.mktemp("home")
    for name in set(os.environ) - set(clean_environment(home)):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture
def fake_server() -> Iterator[Callable[[Callable[[str, str, Any], tuple[Any, ...]]], FakeServer]]:
    """`fake_server(reply)` gives a FakeServer, which is closed when the test ends."""
    with ExitStack() as running:

        def start_one(reply: Callable[[str, str, Any], tuple[Any, ...]]) -> FakeServer:
            server = FakeServer(reply)
            running.callback(server.close)
            return server

        yield start_one


@pytest.fixture
def socket_server() -> Iterator[Callable[..., SocketServer]]:
    """`socket_server(act)` gives a SocketServer, which is closed when the test ends."""
    with ExitStack() as running:

        def start_one(*script: Any, **more: Any) -> SocketServer:
            server = SocketServer(*script, **more)
            running.callback(server.close)
            return server

        yield start_one


@dataclass
class Server:
    """A running simulator."""

    url: str
    banner: str
    process: warm.Child | subprocess.Popen[str]
    log_file: Path

    def log(self) -> str:
        """Its stderr so far."""
        return self.log_file.read_text(encoding="utf-8")

    def stop(self) -> int:
        """Stop it, unless it has stopped by itself; returns its exit code."""
        self.process.terminate()
        try:
            return self.process.wait(STOP_SECONDS)
        finally:
            self.process.kill()
            self.process.wait()
            if self.process.stdout is not None:
                self.process.stdout.close()


StartSimulator = Callable[..., Server]


def start(arguments: tuple[object, ...], environment: Mapping[str, str], folder: Path) -> Server:
    """Start the simulator on a free port and wait for its banner; fails with its stderr if there is none."""
    log_file = folder / "stderr.log"
    with log_file.open("wb") as log:
        process = warm.popen(
            SIMULATOR, "--port", 0, *arguments, cwd=Path.cwd(), env=environment, stdout=subprocess.PIPE, stderr=log
        )
    server = Server("", "", process, log_file)
    deadline = threading.Timer(START_SECONDS, process.kill)
    deadline.start()
    assert process.stdout is not None
    while "Questions loaded:" not in server.banner:
        line = process.stdout.readline()
        if not line:
            deadline.cancel()
            server.stop()
            pytest.fail(f"no banner from {process.args} within {START_SECONDS} s\n{server.banner}{server.log()}")
        server.banner += line
    deadline.cancel()
    server.url = re.findall(r"http://\S+", server.banner)[0]
    return server


@contextmanager
def simulator_factory(paths: pytest.TempPathFactory) -> Iterator[StartSimulator]:
    """A function that starts simulators, which all stop in the end."""
    with ExitStack() as running:

        def start_one(*arguments: object, env: Mapping[str, str] | None = None) -> Server:
            folder = paths.mktemp("simulator")
            server = start(arguments, clean_environment(folder, env), folder)
            running.callback(server.stop)
            return server

        yield start_one


@pytest.fixture
def start_simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartSimulator]:
    """`start_simulator(*arguments, env=None)` gives a Server of its own, on a free port, until the test ends."""
    with simulator_factory(tmp_path_factory) as factory:
        yield factory


@pytest.fixture(scope="module")
def start_module_simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartSimulator]:
    """Like `start_simulator`, for servers that the tests of a module share."""
    with simulator_factory(tmp_path_factory) as factory:
        yield factory


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium that the tests of a module share."""
    if programs() is None:
        pytest.skip(MISSING)
    home = tmp_path_factory.mktemp("browser")
    with chromium(home, clean_environment(home)) as running:
        yield running


@pytest.fixture(scope="session")
def aime_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for HF_DATASETS_CACHE with the real rows of both AIME datasets."""
    tool = SHARED / "tools" / "make-hf-cache.py"
    if not tool.is_file():
        pytest.skip(f"the real AIME rows are not at hand: there is no {tool}")
    folder = tmp_path_factory.mktemp("hf-cache")
    environment = clean_environment(tmp_path_factory.mktemp("home"))
    subprocess.run([sys.executable, tool, folder], check=True, capture_output=True, env=environment, timeout=120)
    return folder
