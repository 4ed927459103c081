"""What the evaluator costs on top of its requests: time, memory, start.

    make bench

A server answers in 50 ms; 200 tasks go to it, 32 at a time, once from llama-eval.py and once from threads of
bare `http.client` that do nothing else. Both are processes of their own, taken in turn; the figures are
medians. The request phase is timed at the server, the rest is what the operating system counted.
"""

import http.client
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
TASKS, THREADS, DELAY, ROUNDS = 200, 32, 0.05, 7
DEADLINE = 60.0


@dataclass(frozen=True)
class Cost:
    """What one process took: wall and CPU seconds, peak resident MiB."""

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


def request_phase(port: int) -> float:
    """Seconds that the requests since the last call took, as the server saw them; they must be all there."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    connection.request("GET", "/phase")
    phase = json.loads(connection.getresponse().read())
    connection.close()
    if phase["requests"] != TASKS:
        sys.exit(f"the server got {phase['requests']} requests, not {TASKS}")
    return float(phase["seconds"])


def floor(port: int) -> None:
    """The least that a client can do: threads that send the same requests over connections that stay open."""
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(TASKS):
        todo.put(number)

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
        while True:
            try:
                number = todo.get_nowait()
            except queue.Empty:
                return
            body = {"messages": [{"role": "user", "content": question(number)}]}
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
            json.loads(connection.getresponse().read())["choices"][0]["message"]["content"]

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def question(number: int) -> str:
    """A question of about the length of a real one."""
    return f"Question {number}: " + "find the number of ways in which this can be done. " * 8


def verdict(figure: float, goal: float, unit: str) -> str:
    """Whether a figure is within its goal."""
    return f"goal {goal:g} {unit}: {'met' if figure <= goal else 'MISSED'}"


def main() -> None:
    """Measure in turn, print medians and ratios."""
    evaluator = [sys.executable, str(REPO / "llama-eval.py")]
    server = subprocess.Popen(
        [sys.executable, str(REPO / "benchmarks/slow_server.py"), str(DELAY)], stdout=subprocess.PIPE, text=True
    )
    try:
        port = int(server.stdout.readline()) if server.stdout else 0
        with tempfile.TemporaryDirectory() as folder:
            rows = [json.dumps({"question": question(number), "answer": 70}) for number in range(TASKS)]
            Path(folder, "bench.jsonl").write_text("\n".join(rows), encoding="utf-8")
            run = [*evaluator, "--endpoint", f"http://127.0.0.1:{port}", "--threads", str(THREADS)]
            run += ["--dataset", f"{folder}/bench.jsonl", "--output", f"{folder}/run.json", "--overwrite"]
            ours, bare, starts = [], [], []
            our_phases, bare_phases = [], []
            for _ in range(ROUNDS):
                bare.append(measure([sys.executable, __file__, "--floor", str(port)]))
                bare_phases.append(request_phase(port))
                ours.append(measure(run))
                our_phases.append(request_phase(port))
                starts.append(measure([*evaluator, "--help"]).wall)
    finally:
        server.kill()
        server.wait()
    report(ours, our_phases, bare, bare_phases, starts)


def report(
    ours: list[Cost], our_phases: list[float], bare: list[Cost], bare_phases: list[float], starts: list[float]
) -> None:
    """Print the medians side by side."""
    median = statistics.median
    print(
        f"{TASKS} tasks, {THREADS} at a time, a server that answers in {1000 * DELAY:g} ms, median of {ROUNDS} rounds\n"
    )
    print(f"{'':<24}{'llama-eval':>12}{'http.client':>12}{'ratio':>8}")
    rows = {
        "request phase, s": (median(our_phases), median(bare_phases), 1.3, None),
        "whole process, s": (median(c.wall for c in ours), median(c.wall for c in bare), None, 1.2),
        "CPU, s": (median(c.cpu for c in ours), median(c.cpu for c in bare), None, None),
        "peak memory, MiB": (median(c.memory for c in ours), median(c.memory for c in bare), None, 60.0),
    }
    for name, (our, floor_figure, ratio_goal, goal) in rows.items():
        unit = name.rpartition(" ")[2]
        told = (
            verdict(our / floor_figure, ratio_goal, "times") if ratio_goal else verdict(our, goal, unit) if goal else ""
        )
        print(f"{name:<24}{our:>12.3f}{floor_figure:>12.3f}{our / floor_figure:>8.2f}  {told}")
    print(f"{'--help, s':<24}{median(starts):>12.3f}{'':>20}  {verdict(median(starts), 0.25, 's')}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--floor"]:
        floor(int(sys.argv[2]))
    else:
        main()
