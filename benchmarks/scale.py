"""The cost of a run as its tasks grow, the time to resume one, and the sharing of one by uneven servers.

make bench
"""

import contextlib
import json
import statistics
import tempfile
from pathlib import Path

from harness import Cost, Report, evaluation, measure, slow_server


def growing_runs(report: Report) -> None:
    """Time for each task of runs of 100, 1000 and 10000 tasks; then the longest one resumed."""
    report.heading("runs of growing length, 32 at a time, a server that answers in 10 ms; floor: 100 tasks")
    with slow_server(0.01) as port, tempfile.TemporaryDirectory() as folder:
        start = statistics.median(measure(evaluation(folder, [port], 1, "32")).wall for _ in range(5))
        each: dict[int, float] = {}
        for tasks, rounds in ((100, 9), (1000, 5), (10_000, 3)):
            walls = [measure(evaluation(folder, [port], tasks, "32")).wall for _ in range(rounds)]
            each[tasks] = 1000 * (statistics.median(walls) - start) / tasks
            report.figure(f"{tasks} tasks, each", each[tasks], "ms", each[100], 1.2)
        resume(report, folder, port)


def resume(report: Report, folder: str, port: int) -> None:
    """Resume the run of 10000 tasks in the folder, with nothing and with one task left to do, and from its journal."""
    command = [word for word in evaluation(folder, [port], 10_000, "32") if word != "--overwrite"] + ["--resume"]
    path = Path(folder, "run.json")
    report.figure("resume of 10000 tasks, none left", median_wall(command), "s", goal=2)
    data = json.loads(path.read_text("utf-8"))
    last = data["tasks"][-1]["id"]
    data["task_states"][last] |= {"status": "pending", "grade": None, "response": None}
    path.write_text(json.dumps(data), encoding="utf-8")
    report.figure("resume of 10000 tasks, one left", measure(command).wall, "s", goal=2)
    lines = [{"journal": data["journal"], "task": task, "state": state} for task, state in data["task_states"].items()]
    data["task_states"] = {
        task: {**state, "status": "pending", "grade": None, "response": None}
        for task, state in data["task_states"].items()
    }
    path.write_text(json.dumps(data), encoding="utf-8")
    Path(folder, "run.json.journal").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    report.figure("resume of 10000 tasks, all in the journal", measure(command).wall, "s", goal=2)


def median_wall(command: list[str]) -> float:
    """The median wall time of three runs."""
    costs: list[Cost] = [measure(command) for _ in range(3)]
    return statistics.median(cost.wall for cost in costs)


def ideal_makespan(tasks: int, seats: list[tuple[int, float]]) -> float:
    """The least seconds in which so many tasks can be done by (threads, seconds for a task) of each endpoint."""
    ends = sorted({count * delay for _, delay in seats for count in range(1, tasks + 1)})
    low, high = 0, len(ends) - 1
    while low < high:
        middle = (low + high) // 2
        done = sum(threads * int(ends[middle] / delay + 1e-9) for threads, delay in seats)
        low, high = (low, middle) if done >= tasks else (middle + 1, high)
    return ends[low]


def uneven_servers(report: Report) -> None:
    """Three endpoints of different speed share 64 threads."""
    tasks, seats = 3000, [(22, 0.15), (21, 0.25), (21, 0.4)]
    report.heading(f"{tasks} tasks on endpoints of {', '.join(f'{n} threads at {1000 * s:g} ms' for n, s in seats)}")
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(slow_server(delay)) for _, delay in seats]
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        threads = ",".join(str(number) for number, _ in seats)
        start = measure(evaluation(folder, ports[:1], 1, "1")).wall - seats[0][1]
        wall = measure(evaluation(folder, ports, tasks, threads)).wall
    report.figure("makespan, less the start of the process", wall - start, "s", ideal_makespan(tasks, seats), 1.05)


def main() -> None:
    """Measure everything."""
    report = Report("scale")
    growing_runs(report)
    uneven_servers(report)
    report.save()


if __name__ == "__main__":
    main()
