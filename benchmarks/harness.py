"""The common parts of the benchmarks: processes to measure, servers that take their time, figures with goals."""

import http.client
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
REPO = HERE.parent
EVALUATOR = [sys.executable, str(REPO / "llama-eval.py")]
RESULTS = REPO / "build" / "bench"
DEADLINE = 300.0


@dataclass(frozen=True)
class Cost:
    """The cost of one process: wall and CPU seconds, peak resident MiB."""

    wall: float
    cpu: float
    memory: float


def measure(command: list[str]) -> Cost:
    """Run a command to its end, which must be a success, and count what it cost."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    watchdog = threading.Timer(DEADLINE, process.kill)
    watchdog.start()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    watchdog.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with status {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 2**20)


def load_script(path: Path) -> ModuleType:
    """A script of the project as a module; its name has a dash, which `import` cannot say."""
    name = path.stem.replace("-", "_")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        sys.exit(f"cannot load {path}")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def slow_server(*arguments: object) -> Iterator[int]:
    """The port of a slow server with these arguments, for the length of the block."""
    command = [sys.executable, str(HERE / "slow_server.py"), *map(str, arguments)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield int(server.stdout.readline()) if server.stdout else 0
    finally:
        server.kill()
        server.wait()


def request_phase(port: int, tasks: int) -> float:
    """Seconds that the requests since the last call took, as the server saw them; they must be all there."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    connection.request("GET", "/phase")
    phase = json.loads(connection.getresponse().read())
    connection.close()
    if phase["requests"] != tasks:
        sys.exit(f"the server got {phase['requests']} requests, not {tasks}")
    return float(phase["seconds"])


def question(number: int) -> str:
    """A question of about the length of a real one."""
    return f"Question {number}: " + "find the number of ways in which this can be done. " * 8


def evaluation(folder: str, ports: list[int], tasks: int, threads: str, *options: str) -> list[str]:
    """The command that evaluates so many questions, which are written into the folder."""
    rows = [json.dumps({"question": question(number), "answer": 70}) for number in range(tasks)]
    Path(folder, "bench.jsonl").write_text("\n".join(rows), encoding="utf-8")
    urls = ",".join(f"http://127.0.0.1:{port}" for port in ports)
    command = [*EVALUATOR, "--endpoint", urls, "--threads", threads, "--dataset", f"{folder}/bench.jsonl"]
    return [*command, "--output", f"{folder}/run.json", "--overwrite", *options]


@dataclass
class Report:
    """Figures as they are printed, and saved as JSON for whoever compares two of them."""

    name: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    def heading(self, text: str) -> None:
        """Print a line above the figures to come."""
        print(f"\n{text}", flush=True)

    def figure(self, name: str, value: float, unit: str, floor: float | None = None, goal: float | None = None) -> None:
        """One figure; with a floor that was measured beside it the goal is a ratio, else it has the figure's unit."""
        ratio = value / floor if floor else None
        judged = value if ratio is None else ratio
        met = None if goal is None else judged <= goal
        self.rows.append(
            {"name": name, "value": value, "unit": unit, "floor": floor, "ratio": ratio, "goal": goal, "met": met}
        )
        beside = f"{floor:>10.3f}{ratio:>8.2f}" if floor else " " * 18
        verdict = "" if goal is None else f"  goal {goal:g}{'' if floor else f' {unit}'}: {'met' if met else 'MISSED'}"
        print(f"  {name:<44}{value:>10.3f} {unit:<4}{beside}{verdict}", flush=True)

    def save(self) -> None:
        """Write the figures to build/bench."""
        RESULTS.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"python": sys.version.split()[0], "cpus": os.cpu_count(), "figures": self.rows}, indent=1)
        (RESULTS / f"{self.name}.json").write_text(text + "\n", encoding="utf-8")
