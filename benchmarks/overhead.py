"""The cost of the evaluator on top of its requests: time, processor, memory.

    make bench

The same requests go to the same server from llama-eval.py and from threads of bare `http.client` that do nothing
else. Both are processes of their own, taken in turn; the figures are medians, the third column is the floor and the
fourth the ratio. The request phase is timed at the server, the rest is what the operating system counted.
"""

import http.client
import json
import queue
import statistics
import sys
import tempfile
import threading

from harness import DEADLINE, EVALUATOR, Cost, Report, evaluation, measure, question, request_phase, slow_server

ROUNDS = 5


def floor(port: int, tasks: int, threads: int, stream: bool) -> None:
    """The least that a client can do: threads that send the same requests over connections that stay open."""
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(tasks):
        todo.put(number)
    headers = {"Content-Type": "application/json"}

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
        while True:
            try:
                number = todo.get_nowait()
            except queue.Empty:
                return
            body = {"messages": [{"role": "user", "content": question(number)}], **({"stream": True} if stream else {})}
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            reply = connection.getresponse().read()
            if not stream:
                json.loads(reply)["choices"][0]["message"]["content"]
                continue
            lines = [line[6:] for line in reply.split(b"\n") if line.startswith(b"data: {")]
            choices = [json.loads(line)["choices"] for line in lines]
            "".join(choice[0]["delta"].get("content") or "" for choice in choices if choice)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def against_the_floor(report: Report, threads: int, delay: float, goal: float, stream: bool) -> None:
    """Both clients in turn, at a server that takes its time."""
    tasks = 200 if threads == 32 else 2048
    how = "streamed" if stream else "whole replies"
    report.heading(f"{tasks} tasks, {threads} at a time, a server that answers in {1000 * delay:g} ms, {how}")
    ours, bare, our_phases, bare_phases = [], [], [], []
    with slow_server(delay) as port, tempfile.TemporaryDirectory() as folder:
        command = evaluation(folder, [port], tasks, str(threads), *([] if stream else ["--no-stream"]))
        for _ in range(ROUNDS):
            arguments = [str(number) for number in (port, tasks, threads, int(stream))]
            bare.append(measure([sys.executable, __file__, "--floor", *arguments]))
            bare_phases.append(request_phase(port, tasks))
            ours.append(measure(command))
            our_phases.append(request_phase(port, tasks))
    median = statistics.median
    report.figure("request phase", median(our_phases), "s", median(bare_phases), goal)
    report.figure("whole process", median(c.wall for c in ours), "s", median(c.wall for c in bare))
    idle = measure([*EVALUATOR, "--help"]).cpu
    report.figure("CPU for each task", 1000 * (median(c.cpu for c in ours) - idle) / tasks, "ms")
    report.figure("peak memory", median(c.memory for c in ours), "MiB", median(c.memory for c in bare))


def long_replies(report: Report) -> None:
    """Replies of 82 KB against short ones."""
    report.heading("200 replies of 82 KB against 200 short ones, 32 at a time, a server that answers in 50 ms")
    for how, options in (("streamed", []), ("whole replies", ["--no-stream"])):
        costs: dict[int, list[Cost]] = {0: [], 82_000: []}
        phases: dict[int, list[float]] = {0: [], 82_000: []}
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(ROUNDS):
                for size in (0, 82_000):
                    with slow_server(0.05, "--size", size) as port:
                        costs[size].append(measure(evaluation(folder, [port], 200, "32", *options)))
                        phases[size].append(request_phase(port, 200))
        median = statistics.median
        walls = [median(c.wall for c in costs[size]) for size in (0, 82_000)]
        report.figure(f"whole process, {how}", walls[1], "s", walls[0], 1.3)
        report.figure(f"request phase, {how}", median(phases[82_000]), "s", median(phases[0]))
        report.figure(f"peak memory, {how}", median(c.memory for c in costs[82_000]), "MiB", goal=120)


def many_tokens(report: Report) -> None:
    """Tokens that arrive one by one over many streams."""
    streams, each, gap = 128, 800, 0.0128
    report.heading(f"{streams} streams with a token every {1000 * gap:g} ms each")
    with slow_server(0, "--tokens", each, "--gap", gap) as port, tempfile.TemporaryDirectory() as folder:
        cost = measure(evaluation(folder, [port], streams, str(streams)))
        seconds = request_phase(port, streams)
        short = measure(evaluation(folder, [port], 1, "1"))
    idle = measure([*EVALUATOR, "--help"]).cpu
    report.figure("tokens a second", streams * each / seconds, "/s")
    report.figure("CPU while they arrive", (cost.cpu - idle) / seconds, "core", goal=0.5)
    report.figure("a single such stream", (short.cpu - idle) / seconds, "core")


def main() -> None:
    """Measure everything."""
    report = Report("overhead")
    for stream in (True, False):
        against_the_floor(report, 32, 0.05, 1.15, stream)
        against_the_floor(report, 256, 0.25, 1.3, stream)
    long_replies(report)
    many_tokens(report)
    report.heading("start")
    report.figure("--help", statistics.median(measure([*EVALUATOR, "--help"]).wall for _ in range(5)), "s", goal=0.25)
    report.save()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--floor"]:
        port, tasks, threads, stream = map(int, sys.argv[2:])
        floor(port, tasks, threads, bool(stream))
    else:
        main()
