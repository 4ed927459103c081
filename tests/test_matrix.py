"""The evaluator against the simulator, over what the simulator can do: it must report what `/simulator/expected` says.

Each run is a simulator of its own and an evaluation of the practice set with 64 threads. They take turns at the
two processors, several at a time: most of a run under faults is waiting.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import StartSimulator

from scripts import DEADLINE, SIMULATOR, load, run_eval

simulator = load(SIMULATOR)
AT_A_TIME = 4
COUNTED = ("correct", "incorrect", "no_answer", "truncated")
STREAMING = ((), ("--no-stream",))
# A hanging or dripping reply ends by a time limit; every other fault by itself. Faults that say that the request is
# wrong, and not that it failed, are not recoverable.
REFUSALS = ("400", "401", "404")
SILENT = {"hang": ("--stall-timeout", "1"), "drip": ("--request-timeout", "2")}
RECOVERABLE = [kind for kind in simulator.FAULTS if kind not in REFUSALS]


@dataclass(frozen=True)
class Case:
    """The options of a simulator, and those of an evaluation of it."""

    simulator: tuple[object, ...]
    evaluation: tuple[object, ...]

    def __str__(self) -> str:
        return " ".join(map(str, (*self.simulator, "|", *self.evaluation)))


@dataclass(frozen=True)
class Outcome:
    """The report of an evaluation, the report that was due, and its exit status and output."""

    status: int
    reported: dict[str, Any]
    expected: dict[str, Any]
    output: str


SHARES = ("--success-rate", 0.6, "--truncate-rate", 0.1, "--no-answer-rate", 0.1, "--loop-rate", 0.1)
FAULTY = [
    Case(("--success-rate", 0.6, "--fault", f"{kind}:0.25", "--slots", 64), (*stream, *SILENT.get(kind, ())))
    for kind, stream in itertools.product(RECOVERABLE, STREAMING)
    if stream == () or not simulator.FAULTS[kind].only_streams
]
MANY_FAULTS = ",".join(f"{kind}:0.02" for kind in RECOVERABLE if kind not in SILENT)
FAULTY += [
    Case(("--success-rate", 0.6, "--fault", MANY_FAULTS, "--slots", 64, "--seed", seed), stream)
    for seed, stream in itertools.product((1, 2), STREAMING)
]
FAULTY += [
    Case((*SHARES, "--slots", 64, "--answer-format", "mixed", "--fault", f"{kind}:0.3"), ("--max-tokens", 600, *stream))
    for kind, stream in itertools.product(("bad-utf8", "null-content"), STREAMING)
]
FAULTY += [Case(("--success-rate", 0.6, "--fault", "503:0,reset:0,cut-json:0", "--fault-first", 3), ())]

MODEL = (*SHARES, "--slots", 64, "-c", 64 * 1536, "--tokens", 80, "--jitter", 0.4)
FORMATS = [
    Case((*MODEL, "--answer-format", answer, "--reasoning", reasoning), stream)
    for answer, reasoning, stream in itertools.product(simulator.ANSWER_FORMATS, ("none", "field", "inline"), STREAMING)
]
PROMPTS = [
    Case((*MODEL, "--answer-format", "mixed", "--reasoning", reasoning), ("--answer-format", prompt, *stream))
    for reasoning, prompt, stream in itertools.product(("none", "field", "inline"), ("schema", "boxed"), STREAMING)
]
OTHERS = [
    Case(("--success-rate", 0.5, "--success-mode", "random", "--wrong-answer", "random"), ("--samples", 4)),
    Case(("--success-rate", 0.5, "--wrong-answer", "reversed", "-np", 2, "--tokens-per-second", 2000), ()),
    Case(("--success-rate", 0.4, "--ttft", 0.05, "--jitter", 1, "-np", 8, "--load-time", 1), ("--samples", 2)),
    Case(("--success-rate", 0.4, "--ttft", 0.8, "--jitter", 0.5, "-np", 16), ("--no-stream", "--request-timeout", 4)),
    Case(("--success-rate", 0.7, "--tokens", 300, "--slots", 64), ("--max-tokens", 200)),
]
JUDGED = [
    Case((*SHARES, "--slots", 64, "--answer-format", "mixed", "--reasoning", reasoning), ("--max-tokens", 600, *judge))
    for reasoning, judge in itertools.product(
        ("none", "inline"), (("--grader", "llm"), ("--grader", "cascade"), ("--grader", "llm", "--no-stream"))
    )
]
JUDGED += [
    Case(
        ("--success-rate", 0.6, "--fault", "503:0.15,reset-body:0.1,no-choices:0.1", "--slots", 64),
        ("--grader", "llm", "--grader-retries", 20),
    )
]
CASES = [*FAULTY, *FORMATS, *PROMPTS, *OTHERS, *JUDGED]


def run(case: Case, start_simulator: StartSimulator, folder: Path) -> Outcome:
    server = start_simulator("--dataset", "practice", *case.simulator)
    try:
        judge = ("--judge-endpoint", server.url) if "--grader" in case.evaluation else ()
        options = ("--dataset", "practice", "--threads", 64, "--output", "run.json", "--max-retries", 20)
        done = run_eval("--endpoint", server.url, *options, *case.evaluation, *judge, cwd=folder, timeout=4 * DEADLINE)
        expected = requests.get(server.url + "/simulator/expected", timeout=DEADLINE).json()
    finally:
        server.stop()
    summary = json.loads((folder / "run.json").read_text("utf-8"))["summary"] if (folder / "run.json").exists() else {}
    return Outcome(done.returncode, summary, expected, done.stdout + done.stderr)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_evaluator_reports_what_the_simulator_expects(
    start_simulator: StartSimulator, tmp_path: Path, case: Case
) -> None:
    outcome = run(case, start_simulator, tmp_path)
    assert outcome.status == 0, outcome.output
    counts = outcome.reported["counts"]
    assert {name: counts[name] for name in COUNTED} == {name: outcome.expected[name] for name in COUNTED}
    assert outcome.reported["accuracy"] == outcome.expected["accuracy"]
    assert sum(counts.values()) == outcome.reported["scored"] == outcome.expected["deliveries"] >= 30


def test_the_matrix_is_whole() -> None:
    assert len(set(CASES)) == len(CASES) > 90
