#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "jinja2>=3.1",                # for pages
#     "latex2mathml>=3.77",         # without it mathematics is shown as its source
# ]
# ///
"""Show a run of llama-eval as one HTML page, or tell whether one run is worse than another.

    python llama-eval-report.py run.json                        # writes run.html
    python llama-eval-report.py run.json --watch                # and again whenever the run has been saved
    python llama-eval-report.py compare full.json q4.json       # is q4 worse than full?
    python llama-eval-report.py *.json --markdown               # the runs in one table, newest first

The page is one file that loads nothing: it can be mailed, kept and opened offline. What a model wrote is shown in it
as text, never as markup. The figures of a run are those in its state file, which llama-eval.py computed. Exit status:
0 done, 1 a file cannot be read or written or the runs cannot be compared, 2 bad usage, 4 a run is worse than
--threshold or --reference allow, beyond doubt at the 5 % level; 129, 130 and 143 stopped by SIGHUP, Ctrl-C and SIGTERM.

Sections: runs, comparison, numbers as text, markup, charts, pages, tables, command line.
"""

from __future__ import annotations

import argparse
import base64
import bisect
import contextlib
import csv
import functools
import gzip
import hashlib
import html
import io
import itertools
import json
import math
import os
import random
import re
import signal
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn
from urllib.parse import quote
from xml.etree import ElementTree

if TYPE_CHECKING:
    import jinja2

VERSION = "0.1.0"
SCHEMA_VERSION = 3  # the newest form of the state file that is understood

# The statuses of a task with the mark that tells them apart without colours; those in the accuracy's denominator.
MARKS = {
    "correct": "✓",
    "incorrect": "✗",
    "no_answer": "∅",
    "truncated": "…",
    "ungraded": "?",
    "error": "!",
    "pending": "·",
}
SCORED = ("correct", "incorrect", "no_answer", "truncated")
UNSCORED = ("ungraded", "error")  # and pending, which is not finished


class ReportError(Exception):
    """A report cannot be made."""

    exit_code = 1


class UsageError(ReportError):
    """The command line asks for something that makes no sense."""

    exit_code = 2


# ---- runs -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One task with its outcome. Seconds are those of the request, times are seconds since 1970.

    What is not known is None, or an empty text.
    """

    id: str
    problem: str
    number: int
    question: str
    expected: str
    status: str
    answer: str | None
    grade: dict[str, Any]
    content: str
    reasoning: str
    partial: str
    finish_reason: str
    tokens: int | None
    seconds: float | None
    speed: float | None
    endpoint: str
    attempts: int
    error: str
    started: float | None
    finished: float | None


@dataclass(frozen=True)
class Run:
    """A run as its state file has it; `summary`, `problems` and `review` are the evaluator's own.

    `unsaved` is the number of finished tasks that so far are in its journal only.
    """

    path: Path
    id: str
    created: str
    updated: str
    model: str
    tool: str
    dataset: dict[str, Any]
    prompt: dict[str, Any]
    sampling: dict[str, Any]  # and whether loops are stopped, where that is known
    grader: dict[str, Any]
    endpoints: list[dict[str, Any]]
    summary: dict[str, Any]
    problems: list[dict[str, Any]]
    review: list[dict[str, str]]
    samples: list[Sample]
    gate: list[tuple[str, str]]  # its rule, and each of its looks
    unsaved: int

    @functools.cached_property
    def by_problem(self) -> dict[str, list[Sample]]:
        """The samples of each problem, by number."""
        table: dict[str, list[Sample]] = {}
        for sample in sorted(self.samples, key=lambda sample: sample.number):
            table.setdefault(sample.problem, []).append(sample)
        return table

    @property
    def size(self) -> str:
        """Its extent, such as "30 problems x 8 samples"."""
        n, k = len(self.problems), self.summary["k"]
        return f"{n} problem{'s' * (n != 1)} x {k} sample{'s' * (k != 1)}"


def read_run(path: Path) -> Run:
    """The run in the state file at `path`; raises ReportError when there is none, or none that can be shown."""
    try:
        data = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise ReportError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ReportError(f"{path} is not a state of llama-eval: it is not JSON") from None
    schema = data.get("schema_version") if isinstance(data, dict) else None
    if type(schema) is not int or schema < 1:
        raise ReportError(f"{path} is not a state of llama-eval: it has no schema_version")
    if schema > SCHEMA_VERSION:
        raise ReportError(f"{path} was written by a newer llama-eval (schema {schema}; this is {SCHEMA_VERSION})")
    if "problems" not in data:
        raise ReportError(
            f"{path} was written by an older llama-eval, without the figures shown here: have them made with "
            f"llama-eval.py --merge {path} --output NEW.json"
        )
    try:
        return run_of(data, path)
    except ReportError as error:
        raise ReportError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ReportError(f"{path} is not a state of llama-eval: {type(error).__name__} {error}") from None


def run_of(data: dict[str, Any], path: Path) -> Run:
    """The run that the JSON of a state file describes; raises KeyError, TypeError or ValueError on anything else."""
    asked: dict[str, dict[str, Any]] = {}
    for entry in [*data["problems"], *data["tasks"]]:  # the texts of a problem stand in its first task
        asked.setdefault(entry["problem"], {}).update(entry if "question" in entry else {})
    samples = [sample_of({**asked[task["problem"]], **task}, data["task_states"][task["id"]]) for task in data["tasks"]]
    problems = [problem_of(entry) for entry in data["problems"]]
    if not samples or sorted(entry["problem"] for entry in problems) != sorted({sample.problem for sample in samples}):
        raise ValueError("its problems are not those of its tasks")
    summary = summary_of(data["summary"])
    check_figures(summary, problems, samples)
    return Run(
        path=path,
        id=str(data["id"]),
        created=as_iso(data["created"]),
        updated=as_iso(data["updated"]),
        model=str(data["model"] or ""),
        tool=f"{data['tool']['name']} {data['tool']['version']}",
        dataset=dict(data["dataset"]),
        prompt=dict(data["prompt"]),
        sampling={**data["sampling"], **({"loop_stop": data["loop_stop"]} if "loop_stop" in data else {})},
        grader=dict(data["grader"]),
        endpoints=[dict(endpoint) for endpoint in data["endpoints"]],
        summary=summary,
        problems=problems,
        review=[{"task": str(entry["task"]), "reason": str(entry["reason"])} for entry in data["review"]],
        samples=samples,
        gate=gate_of(data.get("until")),
        unsaved=journal_entries(path, data.get("journal")),
    )


def sample_of(task: dict[str, Any], state: dict[str, Any]) -> Sample:
    """One task with its state, as the state file has them; raises KeyError, TypeError or ValueError."""
    if state["status"] not in MARKS:
        raise ValueError(f"has the unknown status {state['status']!r}")
    response, grade, partial = (state.get(name) or {} for name in ("response", "grade", "partial"))
    if not isinstance(grade.get("rule") or {}, dict):
        raise TypeError("a grade by rule is no object")
    tokens = as_number(response.get("completion_tokens"))
    answer = grade.get("answer")
    return Sample(
        id=str(task["id"]),
        problem=str(task["problem"]),
        number=int(task["sample"]),
        question=str(task["question"]),
        expected=str(task["expected"]),
        status=state["status"],
        answer=None if answer is None else str(answer),
        grade=dict(grade),
        content=str(response.get("content") or ""),
        reasoning=str(response.get("reasoning") or ""),
        partial="\n\n".join(str(partial[name]) for name in ("reasoning", "content") if partial.get(name)),
        finish_reason=str(response.get("finish_reason") or ""),
        tokens=None if tokens is None else int(tokens),
        seconds=as_number(response.get("seconds")),
        speed=as_number(response.get("tokens_per_second")),
        endpoint=str(state.get("endpoint") or ""),
        attempts=int(state.get("attempts") or 0),
        error=str(state.get("error") or ""),
        started=as_time(state.get("started")),
        finished=as_time(state.get("finished")),
    )


def journal_entries(path: Path, name: str | None) -> int:
    """The number of finished tasks in the journal of the state at `path` that the state has not."""
    try:
        lines = Path(f"{os.path.realpath(path)}.journal").read_bytes().split(b"\n")[:-1]
    except OSError:
        return 0
    prefix = json.dumps({"journal": name}).removesuffix("}").encode()
    return sum(line.startswith(prefix) for line in lines)


def gate_of(until: Any) -> list[tuple[str, str]]:
    """The looks of the gate of a run at it, a line each under its rule; raises KeyError, TypeError or ValueError."""
    if until is None:
        return []
    looks = [
        f"{as_count(look['samples'])} samples: {percent(float(look['value']))}, "
        f"interval {span(float(look['low']), float(look['high']))}: {look['decision']}"
        for look in until["looks"]
    ]
    return [(f"gate: {until['rule']}", look) for look in (looks if until["decision"] else [*looks, "not decided yet"])]


def summary_of(data: dict[str, Any]) -> dict[str, Any]:
    """The figures of a run, each of the kind that it should be; raises KeyError, TypeError or ValueError."""
    told = data["intervals"]
    older = {"on_new_problems": "generalisation", "on_these_problems": "resampling"}  # how schema 3 began
    intervals = {kind: told[kind if kind in told else name] for kind, name in older.items()}
    counted = ("tasks", "scored", "k", "problems", "problems_short_of_k", "responses", "responses_with_token_counts")
    return {
        **{name: as_count(data[name]) for name in (*counted, "prompt_tokens", "completion_tokens")},
        **{name: as_share_if_any(data[name]) for name in ("accuracy", "avg_at_k", "maj_at_k")},
        "counts": {status: as_count(data["counts"][status]) for status in MARKS},
        "range": as_interval(data["range"]),
        "pass_at": [
            {"j": as_count(entry["j"]), "problems": as_count(entry["problems"]), "score": as_share(entry["score"])}
            for entry in data["pass_at"]
        ],
        "intervals": {
            kind: told
            and dict(
                zip(("low", "high"), as_interval((told["low"], told["high"])), strict=True), method=str(told["method"])
            )
            for kind, told in intervals.items()
        },
    }


def check_figures(summary: dict[str, Any], problems: list[dict[str, Any]], samples: list[Sample]) -> None:
    """Raise ReportError unless the figures agree with the tasks."""
    counts = Counter(sample.status for sample in samples)
    scored = Counter(sample.problem for sample in samples if sample.status in SCORED)
    correct = Counter(sample.problem for sample in samples if sample.status == "correct")
    asked = Counter(sample.problem for sample in samples)
    right, open_tasks = counts["correct"], len(samples) - scored.total()
    expected = {
        "counts": {status: counts[status] for status in MARKS},
        "tasks": len(samples),
        "scored": scored.total(),
        "accuracy": right / scored.total() if scored else None,
        "range": (right / len(samples), (right + open_tasks) / len(samples)),
        "k": max(asked.values()),
        "problems": len(asked),
    }
    good = all(summary[name] == value for name, value in expected.items())
    for entry in problems:
        n, c = scored[entry["problem"]], correct[entry["problem"]]
        good &= (entry["samples"], entry["scored"], entry["correct"]) == (asked[entry["problem"]], n, c)
        good &= entry["score"] == (c / n if n else None)
    if not good:
        raise ReportError("its figures are not those of its tasks: llama-eval.py --merge makes them anew")


def problem_of(data: dict[str, Any]) -> dict[str, Any]:
    """The figures of a problem; raises KeyError, TypeError or ValueError."""
    return {
        "problem": str(data["problem"]),
        **{name: as_count(data[name]) for name in ("samples", "scored", "correct")},
        **{name: as_share_if_any(data[name]) for name in ("score", "majority")},
        "interval": as_interval(data["interval"]) if data["scored"] else None,
        "answers": [(str(answer), as_count(votes)) for answer, votes in data["answers"]],
    }


def as_number(value: object) -> float | None:
    """A finite number that is not negative, or None for None; raises ValueError for anything else."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"{one_line(value, 40)} is no number of tokens or seconds")
    return float(value)


def as_iso(value: object) -> str:
    """An ISO 8601 time, or an empty text; raises TypeError or ValueError."""
    as_time(str(value))
    return str(value)


def as_time(value: str | None) -> float | None:
    """An ISO 8601 time as seconds since 1970, or None for none."""
    return datetime.fromisoformat(value).timestamp() if value else None


def as_count(value: object) -> int:
    """A number of things; raises ValueError."""
    if type(value) is not int or not 0 <= value < 10**15:
        raise ValueError(f"{one_line(value, 40)} is no number of things")
    return value


def as_share(value: object) -> float:
    """A proportion; raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{one_line(value, 40)} is no proportion")
    return float(value)


def as_share_if_any(value: object) -> float | None:
    """A proportion, or None where it is not known; raises ValueError."""
    return None if value is None else as_share(value)


def as_interval(value: Sequence[object]) -> tuple[float, float]:
    """The ends of an interval; raises TypeError or ValueError."""
    low, high = map(as_share, value)
    if low > high:
        raise ValueError("an interval ends before it begins")
    return low, high


# ---- comparison -----------------------------------------------------------------------------------------

CONFIDENCE = 0.95
POWER = 0.8
EXACT_WORK = 2e9  # bytes that may be moved for the exact distribution of the test, which takes about a second
FEWEST = 6  # problems at the least have to differ in one direction for the test to reach 5 %
FLIPS = 20_000  # of all signs, where it would take more


class Pair(NamedTuple):
    """One problem in two runs: the share of correct samples in each, and the variance of the difference from sampling.

    The latter is None where a run has one sample of it. `sizes` are the numbers of samples in both.
    """

    problem: str
    before: Fraction
    after: Fraction
    noise: Fraction | None = None
    sizes: tuple[int, int] = (1, 1)


class Interval(NamedTuple):
    """The 95 % interval of a figure, from `low` to `high`."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether the figure may be this one."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Difference:
    """The difference of run B from run A, in proportions: the mean over problems of the difference in score.

    `interval` is its 95 % interval, `p` comes from the `test`; `detectable` is about the smallest
    difference that such a comparison finds with a power of 80 %, None where that cannot be told, and
    `detectable_twice` the one with twice the samples.
    """

    mean: float
    interval: Interval
    p: float
    test: str
    detectable: float | None
    detectable_twice: float | None
    detectable_whole: float | None = None  # where whole problems are lost, not a part of each


def t_share(angle: float, freedom: int) -> float:
    """The probability that Student's t lies within sqrt(freedom) tan(angle) of 0 (Abramowitz and Stegun 26.7.3, 4)."""
    cosine, sine = math.cos(angle), math.sin(angle)
    if freedom % 2:
        terms = [cosine] if freedom > 1 else []
        for n in range(3, freedom, 2):
            terms.append(terms[-1] * cosine**2 * (n - 1) / n)
        return 2 / math.pi * (angle + sine * math.fsum(terms))
    terms = [1.0]
    for n in range(2, freedom, 2):
        terms.append(terms[-1] * cosine**2 * (n - 1) / n)
    return sine * math.fsum(terms)


@functools.cache
def t_quantile(probability: float, freedom: int) -> float:
    """The value below which Student's t with `freedom` >= 1 degrees lies with this probability, 0.5 or more."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_share(middle, freedom) < 2 * probability - 1 else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def sign_flip_test(differences: Sequence[Fraction]) -> tuple[float, bool]:
    """The two-sided p-value of "each difference is as likely to have the other sign", and whether it is exact.

    The share of all ways to choose the signs whose sum is as far from 0 as the one seen (Fisher 1935, The Design of
    Experiments, 21). With one sample of each problem this is McNemar's exact test. The ways are counted as
    the coefficients of the product of 1 + x^d, which is kept as one long integer; where that would be too
    long, signs are drawn at random with a fixed seed.
    """
    scale = math.lcm(*(difference.denominator for difference in differences))
    sizes = [int(abs(difference) * scale) for difference in differences if difference]
    if not sizes:
        return 1.0, True
    shared = math.gcd(*sizes)
    sizes = [size // shared for size in sizes]
    seen, total = abs(int(sum(differences) * scale)) // shared, sum(sizes)
    cut = (total - seen) // 2  # the sum of those turned negative at the most, for a sum that far above 0
    if total == len(sizes):  # all of one size, as with one sample of each problem
        return both_tails(sum(binomials(total, cut)), len(sizes)), True
    width = (len(sizes) + 8) // 8  # bytes, in which a coefficient cannot overflow
    if total * width * len(sizes) > EXACT_WORK:
        return sampled_flips(sizes, seen), False
    ways = 1
    for size in sizes:
        ways += ways << (8 * width * size)
    tail = ways & ((1 << (8 * width * (cut + 1))) - 1)
    digits = tail.to_bytes(width * (cut + 1), "little")
    found = sum(int.from_bytes(digits[at : at + width], "little") for at in range(0, len(digits), width))
    return both_tails(found, len(sizes)), True


def both_tails(tail: int, n: int) -> float:
    """Both tails as a share of the 2^n ways to choose signs."""
    return float(min(Fraction(1), Fraction(2 * tail, 2**n)))


def binomials(n: int, last: int) -> Iterator[int]:
    """The binomial coefficients of n over 0 to `last`."""
    term = 1
    for at in range(last + 1):
        yield term
        term = term * (n - at) // (at + 1)


def sampled_flips(sizes: Sequence[int], seen: int) -> float:
    """The p-value of the same test from random signs; it counts the signs seen as one of the draws."""
    masks: dict[int, int] = {}
    for place, size in enumerate(sizes):
        masks[size] = masks.get(size, 0) | 1 << place
    chance, total, hits = random.Random(0), sum(sizes), 0
    for _ in range(FLIPS):
        signs = chance.getrandbits(len(sizes))
        positive = sum(size * (signs & mask).bit_count() for size, mask in masks.items())
        hits += abs(2 * positive - total) >= seen
    return (hits + 1) / (FLIPS + 1)


def mean_interval(values: Sequence[Fraction]) -> tuple[float, float, float]:
    """The mean of paired differences with the ends of its 95 % t interval (Miller 2024, arXiv 2411.00640, 4.2).

    Where all are alike, their spread is not known: the interval is then as wide as that of a share of problems of
    which none was seen (Wilson 1927).
    """
    n, mean = len(values), float(sum(values) / len(values))
    error = standard_error(values)
    z = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    half = t_quantile((1 + CONFIDENCE) / 2, n - 1) * error if error else z * z / (n + z * z)
    return mean, max(-1.0, mean - half), min(1.0, mean + half)


def standard_error(values: Sequence[Fraction]) -> float:
    """Of the mean of `values`; 0 for a single one."""
    return statistics.stdev(map(float, values)) / math.sqrt(len(values)) if len(set(values)) > 1 else 0.0


def difference(pairs: Sequence[Pair], k: int, among: int = 1) -> Difference:
    """The difference of B from A, from the scores of at least one problem, of `k` samples each at the most.

    `among` is the number of comparisons that are made, each of which has to show its difference among the others.
    """
    values = [pair.after - pair.before for pair in pairs]
    mean, low, high = mean_interval(values)
    p, exact = sign_flip_test(values)
    name = "sign-flip permutation test, exact" if exact else f"sign-flip permutation test, {FLIPS} random draws"
    error = standard_error(values)
    found = detectable(Design(len(values), k, among), error, abs(mean))
    noises = [pair.noise for pair in pairs if pair.noise is not None]
    twice = None
    if error and len(noises) == len(pairs):
        # Twice the samples halve what sampling adds to the variance, and leave what the problems differ by.
        noise = float(sum(noises)) / len(noises) ** 2 / 2
        less = math.sqrt(max(error**2 - noise, noise))
        twice = detectable(Design(len(values), 2 * k, among), less, abs(mean))
    test = "McNemar's exact test" if exact and k == 1 else name
    whole = detectable_whole(pairs, among) if found is not None else None
    return Difference(mean, Interval(low, high), p, test, found, twice, whole)


def detectable_whole(pairs: Sequence[Pair], among: int) -> float | None:
    """The smallest loss of whole problems that a comparison finds on new problems; None where no loss is so large.

    It is a step: the permutation test finds hardly any loss of fewer problems than it takes to reach 5 %, six for a
    single comparison, and nearly every one of as many. They are worth the score of problems that can be lost.
    """
    n, scores = len(pairs), [float(pair.before) for pair in pairs]
    fewest = math.ceil(1 + math.log2(among / (1 - CONFIDENCE)))
    worth = sum(score**2 for score in scores) / sum(scores) if any(scores) else 0.0
    found = fewest * worth / n
    return found if 0 < found < sum(scores) / n else None


GRID = 1 << 16  # steps of a proportion, where scores with unlike numbers of samples have no smaller common measure


def within_problem_test(pairs: Sequence[Pair]) -> float:
    """The two-sided p-value of "on these very problems, the samples of both runs are alike".

    Permutes the samples of each problem between the runs (Fisher 1935, The Design of Experiments, 21): the number of
    correct ones in B is then hypergeometric, and the distribution of the mean difference is the convolution of those
    of the problems. With one sample of each problem this is McNemar's exact test.
    """
    measure = math.lcm(*(math.lcm(*pair.sizes) for pair in pairs))
    measure = min(measure, GRID)
    distribution, seen = {0: 1.0}, 0
    for pair in pairs:
        a, b = pair.sizes
        correct = round(pair.before * a) + round(pair.after * b)
        ways = {
            round(measure * (Fraction(mine, b) - Fraction(correct - mine, a))): (
                math.comb(b, mine) * math.comb(a, correct - mine) / math.comb(a + b, correct)
            )
            for mine in range(max(0, correct - a), min(b, correct) + 1)
        }
        seen += round(measure * (pair.after - pair.before))
        if len(ways) > 1:
            convolved: dict[int, float] = {}
            for total, share in distribution.items():
                for step, chance in ways.items():
                    convolved[total + step] = convolved.get(total + step, 0.0) + share * chance
            distribution = convolved
    return min(1.0, math.fsum(share for total, share in distribution.items() if abs(total) >= abs(seen)))


def error_within(pairs: Sequence[Pair], loss: float = 0.0) -> float:
    """The standard error of the mean difference on these problems, from the spread within each of them.

    The variance is no less than that of one sample in each run: problems that came out the same each time may still
    come out another way. With a `loss` it is that expected once B has lost so much of each problem.
    """
    total = 0.0
    for pair in pairs:
        shares = (float(pair.before), max(0.0, float(pair.before) - loss) if loss else float(pair.after))
        total += sum(s * (1 - s) / (size - 1) for s, size in zip(shares, pair.sizes, strict=True))
    least = sum(1 / min(sizes) ** 2 for sizes in zip(*(pair.sizes for pair in pairs), strict=True))
    return math.sqrt(max(total, least)) / len(pairs)


def on_these_problems(pairs: Sequence[Pair], margin: float = 0.0) -> Difference | None:
    """The difference of B from A on these very problems; None where one sample of a problem says nothing of its noise.

    The interval is mean +- t SE, with the degrees of freedom of the samples within the problems. With a `margin` p is
    that of "B is not worse by more than this", by the t test.
    """
    if any(min(pair.sizes) < 2 for pair in pairs):
        return None
    freedom = sum(sum(pair.sizes) - 2 for pair in pairs)
    mean, error = float(sum(pair.after - pair.before for pair in pairs) / len(pairs)), error_within(pairs)
    half = t_quantile((1 + CONFIDENCE) / 2, freedom) * error
    p = within_problem_test(pairs)
    if margin:
        t = (mean + margin) / error
        p = 1 - t_share(math.atan(abs(t) / math.sqrt(freedom)), freedom) if t < 0 else 1.0
    found = 0.0
    for _ in range(20):  # the loss that is found with power 0.8 has a larger error itself
        found = (t_quantile((1 + CONFIDENCE) / 2, freedom) + t_quantile(POWER, freedom)) * error_within(pairs, found)
    interval = Interval(max(-1.0, mean - half), min(1.0, mean + half))
    return Difference(mean, interval, p, "within-problem permutation test, exact", min(1.0, found), None)


class Design(NamedTuple):
    """The extent of a comparison: problems, samples of each, and the number of comparisons."""

    problems: int
    samples: int
    among: int


def detectable(design: Design, error: float, seen: float) -> float | None:
    """About the true difference that such a comparison finds four times in five; None for fewer than six problems.

    `error` is the standard error of the mean difference, `seen` its size. The difference sought is the one that exceeds
    the limit of the t test so often, (t + t') SE (Miller 2024, arXiv 2411.00640, 5). One that is larger than the one
    seen has a larger SE, too: each sample that it turns adds 1 / k^2 to the variance of its problem, so that
    d^2 = (t + t')^2 (SE^2 + (d - seen) / (n k)). It is no less than one sample in each of the six problems that the
    permutation test needs to reach 5 %.
    """
    n, k, among = design
    if n < FEWEST:
        return None
    quantiles = t_quantile(1 - (1 - CONFIDENCE) / 2 / among, n - 1) + t_quantile(POWER, n - 1)
    found = quantiles * error
    if found > seen or not error:
        added = quantiles**2 / (n * k)
        found = (added + math.sqrt(added**2 + 4 * max(0.0, (quantiles * error) ** 2 - added * seen))) / 2
    return min(1.0, max(found, FEWEST / (n * k)))


def beyond(pairs: Sequence[Pair], margin: Fraction, question: str = "these") -> float:
    """The p-value of "B is not worse than A by more than `margin`", 1 where the interval does not say so either.

    `question` is "these" problems, or "new" ones; of one sample of each problem both are the same.
    """
    these = on_these_problems(pairs, float(margin)) if question == "these" else None
    if these:
        return these.p if these.interval.high < -margin else 1.0
    values = [pair.after - pair.before + margin for pair in pairs]
    return sign_flip_test(values)[0] if mean_interval(values)[2] < 0 else 1.0


@dataclass(frozen=True)
class Plan:
    """The extent of a comparison that finds a `loss` with power 0.8, from a run A like this one.

    `these` is the number of samples of each problem, in both runs, that it takes on these problems; `new` the one on
    new problems if the loss is spread over all of them, `new_whole` if it is of whole problems; None where none does.
    `more_problems` are as many as it takes in that case, however often each is asked. `known` says whether the run
    tells of the spread within its problems.
    """

    loss: float
    these: int
    new: int | None
    new_whole: int | None
    more_problems: int
    known: bool


def plan(run: Run, loss: float) -> Plan:
    """The Plan for a loss as a proportion; raises ReportError for a run that it cannot be taken from.

    Inverts d = (t + t') SE (Miller 2024, arXiv 2411.00640, 5), with the normal quantiles: on these problems SE^2 is the
    variance of a sample within its problem, over n k, in both runs; on new problems that of the loss between the
    problems, over n, comes on top, and does not shrink with k.
    """
    entries = [entry for entry in run.problems if entry["scored"]]
    if not entries:
        raise ReportError(f"{run.path}: none of its tasks has a verdict, so nothing can be planned from it")
    n, p = len(entries), sum(entry["score"] for entry in entries) / len(entries)
    if not 0 < loss < p:
        raise ReportError(f"{run.path}: an accuracy of {percent(p)} cannot fall by {points(loss, sign=False)}")
    several = [entry for entry in entries if entry["scored"] > 1]
    spreads = [e["score"] * (1 - e["score"]) * e["scored"] / (e["scored"] - 1) for e in several]
    within = sum(spreads) / len(spreads) if spreads else p * (1 - p)  # at the most, where nothing is known
    after = max(0.0, within + loss * (2 * p - 1) - loss**2)
    normal = statistics.NormalDist()
    quantiles = (normal.inv_cdf((1 + CONFIDENCE) / 2) + normal.inv_cdf(POWER)) ** 2
    squares = max(p * p, sum(entry["score"] ** 2 for entry in entries) / n - within / run.summary["k"])
    evenly = (loss / p) ** 2 * (squares - p * p)  # the variance of a loss in proportion to each score
    whole = max(0.0, squares * loss / p - loss**2)  # that of a share loss / p of the problems which is lost for good

    def samples(between: float) -> int | None:
        room = n * loss**2 / quantiles - between
        return max(2, math.ceil((within + after) / room)) if room > 0 else None

    fewest = math.ceil(FEWEST * p / loss)  # problems, of which so many are lost
    return Plan(
        loss,
        samples(0.0) or 2,
        samples(evenly),
        samples(whole) if n >= fewest else None,
        max(fewest, math.ceil(quantiles * whole / loss**2)),
        bool(spreads),
    )


def plan_text(run: Run, told: Plan) -> str:
    """A plan for the terminal."""
    n, k = len(run.problems), run.summary["k"]
    times = [(s.started, s.finished) for s in run.samples if s.started and s.finished]
    took = max(end for _, end in times) - min(begin for begin, _ in times) if times else 0.0
    seconds = took / len(times) if times else 0.0

    def extent(samples: int | None) -> str:
        if samples is None:
            return f"no number of samples of these {n} problems"
        minutes = samples * n * seconds / 60
        long = f"{minutes / 60:.1f} hours" if minutes >= 60 else f"{max(1, round(minutes))} min"
        hours = f", about {long} a run at the speed of this one" if seconds else ""
        return f"{samples} samples of each problem in both runs{hours}"

    lines = [
        f"{'run':<11} {label(run)}: {percent(run.summary['accuracy'])}, {run.size}",
        f"{'to find':<11} a loss of {points(told.loss, sign=False)}, in four of five cases, at the 5 % level",
        f"{'on these':<11} {extent(told.these)}",
        f"{'on new':<11} {extent(told.new)}, if it is spread over all problems",
        f"{'':<11} {extent(told.new_whole)}, if whole problems are lost: "
        f"about {told.more_problems} problems let it be seen, however often each is asked",
    ]
    if not told.known:
        lines.append(f"{'note':<11} from {k} sample of each problem the spread is not known: these are upper bounds")
    return "\n".join(lines) + "\n"


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979, Scandinavian Journal of Statistics 6:65), in the same order."""
    adjusted, running = [0.0] * len(values), 0.0
    for rank, at in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        running = max(running, min(1.0, (len(values) - rank) * values[at]))
        adjusted[at] = running
    return adjusted


@dataclass(frozen=True)
class Comparison:
    """Run B against run A: the problems that both have verdicts on, their outcome, and warnings."""

    before: Run
    after: Run
    pairs: list[Pair]
    difference: Difference
    warnings: list[str]
    p_adjusted: float
    name: str = "B"
    these: Difference | None = None  # on these very problems, where their samples tell; `difference` is on new ones
    these_p_adjusted: float = 1.0

    @property
    def shown_on_these(self) -> bool:
        """Whether there is a difference on these very problems beyond doubt; as on new ones with one sample of each."""
        if self.these is None:
            return self.shown
        return self.these_p_adjusted < 1 - CONFIDENCE and not self.these.interval.holds(0)

    @property
    def lost_and_gained(self) -> tuple[int, int]:
        """The number of flipped problems that B has lost, and of those that it has gained."""
        lost = sum(pair.after < pair.before for pair in self.flipped)
        return lost, len(self.flipped) - lost

    @property
    def shown(self) -> bool:
        """Whether there is a difference beyond doubt: the interval and the test agree that it is not 0."""
        return self.p_adjusted < 1 - CONFIDENCE and not self.difference.interval.holds(0)

    @property
    def means(self) -> tuple[float, float]:
        """The mean scores of A and B on the problems compared."""
        n = len(self.pairs)
        return float(sum(pair.before for pair in self.pairs)) / n, float(sum(pair.after for pair in self.pairs)) / n

    @functools.cached_property
    def flipped(self) -> list[Pair]:
        """The problems that one run solves in more than half of its samples, the other in less, losses first."""
        half = Fraction(1, 2)
        return [pair for pair in self.changed if (pair.before - half) * (pair.after - half) < 0]

    @functools.cached_property
    def changed(self) -> list[Pair]:
        """The problems with another score, losses first."""
        changed = [pair for pair in self.pairs if pair.before != pair.after]
        return sorted(changed, key=lambda pair: pair.after - pair.before)


def compare(before: Run, after: Run, name: str = "B", among: int = 1) -> Comparison:
    """The comparison of two runs, one of `among`, the second called `name`; raises ReportError where it cannot be."""
    names = [str(run.dataset.get("name")) for run in (before, after)]
    if names[0] != names[1]:
        raise ReportError(
            f"{before.path} and {after.path} cannot be compared: they are of the datasets {names[0]} and {names[1]}"
        )
    shared = (name for name in before.by_problem if name in after.by_problem)
    same = [name for name in shared if row_of(before, name) == row_of(after, name)]
    scores = [{entry["problem"]: entry for entry in run.problems} for run in (before, after)]
    pairs = [
        pair_of(name, *(table[name] for table in scores))
        for name in same
        if all(table[name]["scored"] for table in scores)
    ]
    if not pairs:
        raise ReportError(f"{before.path} and {after.path} cannot be compared: no problem has verdicts in both")
    found = difference(pairs, max(run.summary["k"] for run in (before, after)), among)
    these = on_these_problems(pairs)
    warnings = misgivings(before, after, name)
    return Comparison(before, after, pairs, found, warnings, found.p, name, these, these.p if these else found.p)


def pair_of(name: str, before: dict[str, Any], after: dict[str, Any]) -> Pair:
    """A problem in two runs, from the score that each has of it."""
    shares = [Fraction(entry["correct"], entry["scored"]) for entry in (before, after)]
    more = [entry["scored"] - 1 for entry in (before, after)]
    noise = sum((s * (1 - s) / m for s, m in zip(shares, more, strict=True)), Fraction(0)) if all(more) else None
    return Pair(name, shares[0], shares[1], noise, (before["scored"], after["scored"]))


def misgivings(before: Run, after: Run, called: str) -> list[str]:
    """The reasons why two runs are less comparable, a sentence each."""
    told = []
    runs = {"A": before, called: after}
    shared = before.by_problem.keys() & after.by_problem.keys()
    other = sum(row_of(before, name) != row_of(after, name) for name in shared)
    for name, run in runs.items():
        if len(run.by_problem) > len(shared):
            told.append(f"{len(run.by_problem) - len(shared)} problems of {name} are not in the other run: left out")
    if other:
        told.append(f"{other} problems have another question or expected answer in the other run: left out")
    if before.dataset.get("sha256") != after.dataset.get("sha256"):
        told.append("the rows of the dataset differ")
    for group in ("prompt", "sampling", "grader"):
        told += differing(group, *(getattr(run, group) for run in runs.values()))
    told += served_otherwise(before, after)
    if before.summary["k"] != after.summary["k"]:
        told.append(f"A has {before.summary['k']} samples of a problem, {called} {after.summary['k']}")
    for name, run in runs.items():
        missing = run.summary["tasks"] - run.summary["scored"]
        if missing:
            told.append(f"{missing} tasks of {name} have no verdict")
    return told


def row_of(run: Run, problem: str) -> tuple[str, str]:
    """The row of the dataset that a problem is: question and expected answer."""
    sample = run.by_problem[problem][0]
    return sample.question, sample.expected


UNSAMPLED = ("seed", "n_predict", "max_tokens", "stream", "n_probs", "n_keep", "n_discard", "lora")  # of /props


def served(run: Run) -> dict[str, str]:
    """The settings that the servers of a run chose themselves, where the run did not ask for another."""
    asked = {name for name, value in run.sampling.items() if value is not None} | as_object(
        run.sampling.get("extra_body")
    ).keys()
    told: dict[str, set[str]] = {}
    for endpoint in run.endpoints:
        props = as_object(endpoint.get("props"))
        defaults = as_object(props.get("default_generation_settings"))
        values = {"build": props.get("build_info"), "chat template": props.get("chat_template")}
        values["context"] = defaults.get("n_ctx")
        for name, value in as_object(defaults.get("params")).items():
            if name not in asked and name not in UNSAMPLED:
                # Servers keep single precision, and say 0.800000011920929.
                values[f"default {name}"] = float(f"{value:.6g}") if isinstance(value, float) else value
        for name, value in values.items():
            if value is not None:
                told.setdefault(name, set()).add(brief(value, 2000))
    return {name: one_line(" or ".join(sorted(values)), 60) for name, values in told.items()}


def served_otherwise(before: Run, after: Run) -> list[str]:
    """The differences between two runs' servers, a sentence each; not their builds, which may be the point."""
    servers = [served(run) for run in (before, after)]
    if bool(servers[0]) != bool(servers[1]):
        return ["what one of the servers does by default is not known: it has no /props"]
    shared = sorted((servers[0].keys() & servers[1].keys()) - {"build"})
    return [
        f"server differs: {name} was {servers[0][name]}, is {servers[1][name]}"
        for name in shared
        if servers[0][name] != servers[1][name]
    ]


def differing(group: str, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The settings of a group that differ, a sentence each."""
    return [
        f"{group} differs: {name.replace('_', ' ')} was {brief(before.get(name))}, is {brief(after.get(name))}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def brief(value: object, width: int = 60) -> str:
    """A setting as a few words."""
    if value is None:
        return "not set"
    return one_line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), width)


def verdict_on_these(told: Comparison) -> str:
    """The verdict of a comparison on these very problems, in a sentence."""
    if told.shown_on_these:
        return f"On these problems {told.name} is {'worse' if told.difference.mean < 0 else 'better'} than A."
    return "On these problems no difference is shown."


def verdict(told: Comparison) -> str:
    """The verdict of a comparison on new problems, in a sentence or two."""
    found = told.difference
    if told.shown:
        return f"On new problems, too, {told.name} is {'worse' if found.mean < 0 else 'better'} than A."
    says = "On new problems no difference is shown, which does not mean that there is none"
    if found.detectable is None:
        return f"{says}: so few problems cannot show one."
    if found.p < 1 - CONFIDENCE <= told.p_adjusted and not found.interval.holds(0):
        return f"{says}: taken by itself the comparison shows one, among so many it is not beyond doubt."
    if not found.interval.holds(0) or told.p_adjusted < 1 - CONFIDENCE:
        return f"{says}: this is a borderline case, in which interval and test do not agree."
    twice = found.detectable_twice
    more = f"; with twice the samples, one of {points(twice, sign=False)}" if twice and twice < found.detectable else ""
    least = points(found.detectable, sign=False)
    return (
        f"{says}: this comparison finds one of about {least} in four of five cases, and smaller ones less often{more}."
    )


@dataclass(frozen=True)
class Claim:
    """A run against a published or reference score: is it at least `bar`, the reference less the tolerance?

    `passed` is None where tasks without a verdict may still decide it; `supported` is True or False where the interval
    allows to tell, None where it holds the bar.
    """

    run: Run
    reference: float
    bar: float
    ratio: float
    passed: bool | None
    supported: bool | None
    interval: Interval
    kind: str


def claim(run: Run, reference: Fraction, tolerance: Fraction) -> Claim:
    """Hold the accuracy of `run` against `reference`, both proportions; raises ReportError where it has none.

    A reference score is of the same problems, so the interval on these problems is the one that counts. With one
    sample of each problem it is not known, and the one on new problems, which is wider, takes its place.
    """
    summary = run.summary
    if not summary["scored"]:
        raise ReportError(f"{run.path} cannot be held against a reference: none of its tasks has a verdict")
    kind = "on_these_problems" if summary["intervals"]["on_these_problems"] else "on_new_problems"
    low, high = (summary["intervals"][kind][end] for end in ("low", "high"))
    bar, correct, total = reference * (1 - tolerance), summary["counts"]["correct"], summary["tasks"]
    accuracy, missing = Fraction(correct, summary["scored"]), total - summary["scored"]
    passed = accuracy >= bar
    decided = Fraction(correct, total) >= bar or Fraction(correct + missing, total) < bar or not missing
    supported = None if not decided else True if low >= bar else False if high < bar else None
    ratio = float(accuracy / reference)
    return Claim(
        run, float(reference), float(bar), ratio, passed if decided else None, supported, Interval(low, high), kind
    )


def claim_text(told: Claim) -> str:
    """A claim in a sentence or two."""
    summary = told.run.summary
    text = f"{RESULTS[told.passed]}: {percent(summary['accuracy'])} is {told.ratio:.3f} of the reference "
    text += f"{percent(told.reference)} (at least {percent(told.bar)} is asked for), {told.run.size}"
    if summary["scored"] < summary["tasks"]:
        missing = summary["tasks"] - summary["scored"]
        text += f"; {missing} tasks have no verdict, with them it will be {span(*summary['range'])}"
    interval = f"the 95 % interval {QUESTIONS[told.kind]}, {span(*told.interval)}"
    return f"{text}; {CLAIMS[told.supported]}: {interval}"


RESULTS = {True: "pass", False: "fail", None: "undecided"}
CLAIMS = {True: "supported", False: "ruled out", None: "neither supported nor ruled out"}


# ---- numbers as text ------------------------------------------------------------------------------------


class Amount(str):
    """A number as people read it."""

    __slots__ = ()


def is_amount(content: object) -> bool:
    """Whether a cell holds a number, which is set to the right."""
    return isinstance(content, Amount)


def percent(proportion: float | None) -> str:
    """0.8 as "80.0 %"; what is not all or nothing is not rounded to that: 0.9999 is "99.9 %"."""
    if proportion is None:
        return "-"
    shown = round(100 * proportion, 1)
    if shown == round(proportion) * 100 and 0 < proportion < 1:
        shown = 99.9 if shown else 0.1
    return f"{shown:.1f} %"


def points(proportion: float, sign: bool = True) -> str:
    """-0.058 as "-5.8 points", with a real minus sign."""
    shown = round(100 * proportion, 1) + 0.0  # of which -0.0 is none
    text = f"{shown:+.1f}" if sign else f"{shown:.1f}"
    return f"{text.replace('-', '−')} points"


def points_span(low: float, high: float) -> str:
    """An interval of differences as "−10.1 to +1.5 points"."""
    return f"{points(low).removesuffix(' points')} to {points(high)}"


def span(low: float, high: float) -> str:
    """An interval of proportions as "62.7 % to 90.5 %"."""
    return f"{percent(low)} to {percent(high)}"


def p_text(p: float) -> str:
    """A p-value as far as it says something."""
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}" if p >= 0.1 else f"p = {p:.3g}"


def amount(value: float | None) -> Amount:
    """A number of tokens or seconds with about three digits."""
    if value is None:
        return Amount("-")
    return Amount(f"{value:,.0f}".replace(",", " ") if value >= 100 else f"{value:.3g}")


def mean_of(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are known."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def one_line(text: object, width: int = 160) -> str:
    """`text` on one line of at most `width` characters, without control characters."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return flat if len(flat) <= width else flat[: width - 3] + "..."


def label(run: Run) -> str:
    """The name of a run for people: its file, and its model."""
    return one_line(run.path.stem, 60) + (f" ({one_line(run.model, 60)})" if run.model else "")


def p_values(told: Comparison) -> str:
    """The p-value of a comparison, also the one adjusted for several."""
    adjusted = f", {p_text(told.p_adjusted).removeprefix('p = ')} after Holm"
    return p_text(told.difference.p) + adjusted * (told.p_adjusted != told.difference.p)


def answers_text(run: Run, problem: str) -> str:
    """The answers that a run gave to a problem, the most frequent first, such as "70 x 7, 71"."""
    entry = next(entry for entry in run.problems if entry["problem"] == problem)
    given = [f"{one_line(answer, 24)}{f' x {count}' if count > 1 else ''}" for answer, count in entry["answers"]]
    silent = Counter(s.status for s in run.by_problem[problem] if s.answer is None)
    given += [f"{status.replace('_', ' ')}{f' x {n}' if n > 1 else ''}" for status, n in silent.most_common()]
    return ", ".join(given)


# ---- markup ---------------------------------------------------------------------------------------------


class Html(str):
    """Text that is markup already. All other text is escaped where it is put into a page: that is the one rule."""

    __slots__ = ()

    def __html__(self) -> str:
        """The same, for templates."""
        return self


Content = str | float | None | Iterable["Content"]
VOID = ("input", "meta", "br")
CR = "\r"  # which the reader of a page would turn into a line feed


def el(name: str, /, *content: Content, **attributes: str | float | None) -> Html:
    """An element with this content and these attributes, whose names are written class_ and data_id.

    None adds nothing, as content or as an attribute.
    """
    told = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(printable(str(value))).replace(CR, "&#13;")}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{told}>" if name in VOID else f"<{name}{told}>{markup(*content)}</{name}>")


def markup(*content: Content) -> Html:
    """Everything in `content`, one after another; text that is no markup yet is escaped."""
    pieces = []
    for piece in content:
        if hasattr(piece, "__html__"):  # Html, or the markup of a template's macro
            pieces.append(str(piece))
        elif isinstance(piece, (str, int, float)):
            pieces.append(html.escape(printable(str(piece))).replace(CR, "&#13;"))
        elif piece is not None:
            pieces.append(markup(*piece))
    return Html("".join(pieces))


def printable(text: str) -> str:
    """`text` without the characters that HTML has no place for or that turn the order of others: they become U+FFFD."""
    return re.sub(
        r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]", "\ufffd", text
    )


def link_to(task_id: str) -> str:
    """The link that opens a task in the page."""
    return "#" + quote(printable(task_id), safe="/#:,@!$&'()*+;=~", errors="replace")


def words(status: str) -> str:
    """A status as a person reads it."""
    return status.replace("_", " ")


FORMULA_LENGTH = 3000  # characters; what is longer is shown as its source
FORMULA = re.compile(
    r"\$\$(?P<display>.{1,LENGTH}?)\$\$"
    r"|\\\[(?P<bracket>(?:\\\\|(?!\\[\[\]]).){1,LENGTH})\\\]"
    r"|\\\((?P<inline>(?:\\\\|(?!\\[()]).){1,LENGTH})\\\)"
    r"|(?P<environment>\\begin\{(?P<name>align|equation|gather|eqnarray|array|cases)(?P<star>\*?)\}.{1,LENGTH}?"
    r"\\end\{(?P=name)(?P=star)\})"
    r"|(?<!\\)\$(?P<dollar>(?:\\.|[^$\\]){1,LENGTH}?)(?<!\\)\$".replace("LENGTH", str(FORMULA_LENGTH)),
    re.DOTALL,
)
ELEMENTS = frozenset(
    "math mrow mi mn mo ms mtext mspace msub msup msubsup munder mover munderover mfrac msqrt mroot mtable mtr mtd "
    "mstyle mpadded mphantom menclose mmultiscripts mprescripts none".split()
)
ATTRIBUTES = frozenset(
    "accent accentunder columnalign columnlines columnspacing depth display displaystyle fence form height largeop "
    "linethickness lspace mathvariant maxsize minsize movablelimits notation rowlines rowspacing rspace scriptlevel "
    "separator stretchy symmetric voffset width".split()
)


class Formula(NamedTuple):
    """Mathematics in a text: from where to where, its source without the delimiters, and how it is to be set."""

    start: int
    end: int
    source: str
    display: str


def formulas(question: str) -> Iterator[Formula]:
    """The mathematics in a question, in order."""
    at = 0
    while found := FORMULA.search(question, at):
        block = found["display"] or found["bracket"] or found["environment"]
        source = block or found["inline"] or found["dollar"]
        at = found.end()
        if found["dollar"] and not is_formula(source, question[at : at + 1]):
            at = found.start() + 1
        else:
            yield Formula(found.start(), at, source.strip(), "block" if block else "inline")


def with_formulas(question: str) -> Html:
    """A question with its mathematics as MathML, and as its source where that cannot be."""
    pieces: list[Content] = []
    at = 0
    for formula in formulas(question):
        shown = mathml(formula.source, formula.display) or el("code", question[formula.start : formula.end])
        pieces += [question[at : formula.start], shown]
        at = formula.end
    return markup(*pieces, question[at:])


def is_formula(source: str, following: str) -> bool:
    """Whether the text between two dollar signs is mathematics, rather than two amounts of money.

    As in pandoc, no space inside, and no digit after it; or, as AIME II 2025 is written, a space at the beginning,
    mostly at the end, too, and no prose between them.
    """
    before, after = source[0].isspace(), source[-1].isspace()
    if not before and not after:
        return not following.isdigit()
    symbols = re.search(r"[\\^_=<>+]", source)
    shortest = 3 if before and after else 2
    plain = re.sub(r"\\(?:text|mbox)\{[^}]*\}", "", source)
    prose = re.findall(rf"(?<![\\{{a-z])\b[a-z]{{{shortest},}}\b", plain)
    return before and len(prose) < (3 if symbols else 1)


@functools.cache
def mathml(source: str, display: str) -> Html | None:
    """A formula as MathML, built of none but known elements and attributes; None where that cannot be."""
    converter = formula_converter()
    if converter is None:
        return None
    try:
        return rebuilt(converter(source.replace("\\allowbreak", ""), display=display))
    except Exception:  # noqa: BLE001 - whatever stumbles over it, and be it its depth, the source can be shown
        return None


@functools.cache
def formula_converter() -> Callable[..., ElementTree.Element] | None:
    """The converter to MathML, or None where latex2mathml is not installed."""
    try:
        from latex2mathml.converter import convert_to_element  # noqa: PLC0415 - only questions with formulas need it
    except ImportError:
        return None
    return convert_to_element


def rebuilt(tree: ElementTree.Element) -> Html | None:
    """MathML written anew, or None where it has an unknown element or a command that was not understood."""
    if tree.tag not in ELEMENTS or "\\" in (tree.text or ""):
        return None
    children = [rebuilt(child) for child in tree]
    if None in children:
        return None
    kept = {name: value for name, value in tree.attrib.items() if name in ATTRIBUTES}
    # The library writes characters as references that it means to be read as such.
    return el(tree.tag, html.unescape(tree.text or ""), *children, **kept)


# ---- charts ---------------------------------------------------------------------------------------------

WIDTH = 960  # of every chart, in its own units


def chart(name: str, title: str, description: str, height: float, *content: Content) -> Html:
    """An SVG picture, with a description for those who do not see it."""
    drawn = el(
        "svg",
        el("title", title, id=f"{name}-title"),
        el("desc", description, id=f"{name}-desc"),
        *content,
        viewBox=f"0 0 {WIDTH} {height:g}",
        role="group" if name == "timeline" else "img",  # whose bars are links
        aria_labelledby=f"{name}-title {name}-desc",
        class_=f"chart {name.partition('-')[0]}",
    )
    return el("div", drawn, class_="wide")


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Html:
    """A straight line."""
    return el("line", x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}", class_=class_)


def caption(x: float, y: float, content: Content, anchor: str = "start", **attributes: str) -> Html:
    """Text in a chart."""
    return el("text", content, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, **attributes)


def box(corner: tuple[float, float], width: float, height: float, class_: str, title: Content = None) -> Html:
    """A rectangle, with a title to be shown by the pointer."""
    told = el("title", title) if title is not None else None
    place = {"x": f"{corner[0]:.1f}", "y": f"{corner[1]:.1f}"}
    return el("rect", told, **place, width=f"{max(width, 1):.1f}", height=f"{max(height, 1):.1f}", class_=class_)


def interval_chart(summary: dict[str, Any]) -> Html:
    """The accuracy with its intervals on a scale from 0 to 100 %."""
    left, right = 350, WIDTH - 20
    rows = [(name, told) for name, told in summary["intervals"].items() if told]

    def x(proportion: float) -> float:
        return left + (right - left) * proportion

    bottom = 28 * len(rows) + 6
    marks: list[Content] = []
    for tenth in range(0, 11, 2):
        marks += [line(x(tenth / 10), 4, x(tenth / 10), bottom, "rule")]
        marks += [caption(x(tenth / 10), bottom + 16, f"{10 * tenth} %", "middle")]
    for row, (name, told) in enumerate(rows):
        y = 18 + 28 * row
        reach = f"{name}: {span(told['low'], told['high'])}; {told['method']}"
        marks.append(caption(0, y + 5, f"{span(told['low'], told['high'])}", class_="strong"))
        marks.append(caption(left - 12, y + 5, QUESTIONS[name], "end"))
        marks.append(box((x(told["low"]), y - 7), x(told["high"]) - x(told["low"]), 14, f"interval {name}", reach))
        marks.append(line(x(summary["accuracy"]), y - 10, x(summary["accuracy"]), y + 10, "accuracy"))
    spoken = "; ".join(f"{name} {span(told['low'], told['high'])}" for name, told in rows)
    description = f"{percent(summary['accuracy'])}; {spoken}"
    return chart("intervals", "Accuracy with its 95 % intervals", description, bottom + 24, *marks)


QUESTIONS = {"on_new_problems": "on new problems", "on_these_problems": "on these problems"}
LABELLED = 60  # problems at the most have their names below the chart


def accuracy_chart(run: Run) -> Html:
    """The score of each problem with its interval, in order, or by score where there are many."""
    entries = [entry for entry in run.problems if entry["score"] is not None]
    labelled = len(entries) <= LABELLED
    if not labelled:
        entries.sort(key=lambda entry: entry["score"])
    left, right, top, bottom = 50, WIDTH - 10, 10, 210
    step = (right - left) / max(1, len(entries))

    def y(proportion: float) -> float:
        return bottom - (bottom - top) * proportion

    marks: list[Content] = [
        [
            line(left, y(part / 4), right, y(part / 4), "rule"),
            caption(left - 8, y(part / 4) + 4, f"{25 * part} %", "end"),
        ]
        for part in range(5)
    ]
    size = min(5.0, max(1.2, step / 3))
    for at, entry in enumerate(entries):
        x = left + step * (at + 0.5)
        low, high = entry["interval"]
        told = f"{entry['problem']}: {entry['correct']} of {entry['scored']}, {span(low, high)}"
        dot = el(
            "circle", el("title", told), cx=f"{x:.1f}", cy=f"{y(entry['score']):.1f}", r=f"{size:.1f}", class_="dot"
        )
        marks += [line(x, y(low), x, y(high), "whisker"), dot]
        if labelled:
            turn = f"rotate(-60 {x:.1f} {bottom + 14})"
            marks.append(caption(x + 3, bottom + 14, one_line(entry["problem"], 24), "end", transform=turn))
    solved = sum(entry["score"] > 0.5 for entry in entries)
    order = "in the order of the dataset" if labelled else "by score"
    description = f"{solved} of {len(entries)} problems are solved in more than half of their samples; {order}"
    longest = max((len(one_line(entry["problem"], 24)) for entry in entries), default=0)
    height = bottom + (26 + 6 * longest if labelled else 14)
    return chart("problems", "Accuracy by problem with 95 % intervals", description, height, *marks)


def bin_width(largest: float, bins: int = 30) -> float:
    """The smallest of 1, 2 and 5 times a power of ten of which so many reach `largest`."""
    size = 10.0 ** math.floor(math.log10(max(largest, 1e-3) / bins))
    return next(size * factor for factor in (1, 2, 5, 10) if size * factor * bins >= largest)


PREFERRED = (1, 1.25, 1.6, 2, 2.5, 3.15, 4, 5, 6.3, 8)  # ten steps to a factor of ten (ISO 3, R10)


def bin_edges(values: Sequence[float], whole: bool) -> tuple[list[float], list[int]]:
    """The edges of a histogram's bins, and which of them are to be labelled; `whole` if values are whole numbers.

    The bins are of one width, or grow with their place where the largest value is far from the others.
    """
    least, middle, largest = min(values), statistics.median(values), max(values)
    if largest <= max(10 * middle, 0.01):
        width = max(bin_width(largest), 1.0 if whole else 0)
        edges = [width * at for at in range(int(largest / width) + 2)]
        return edges, list(range(0, len(edges), 5))
    decades = range(math.floor(math.log10(max(least, middle / 1000, 1e-3))), math.ceil(math.log10(largest)) + 1)
    edges = [step * 10.0**decade for decade in decades for step in PREFERRED]
    first = max(0, bisect.bisect_right(edges, least) - 1)
    edges = edges[first : bisect.bisect_right(edges, largest) + 1]
    round_ones = [10.0**decade * step for decade in decades for step in ((1, 2, 5) if len(edges) < 40 else (1,))]
    return edges, [at for at, edge in enumerate(edges) if edge in round_ones]


def histogram(unit: str, values: dict[str, list[float]]) -> Html:
    """A histogram of the amounts of `unit`, a row for each status, all on one scale."""
    everything = [value for given in values.values() for value in given]
    edges, labelled = bin_edges(everything, whole=unit == "tokens")
    counts = {
        status: Counter(max(0, bisect.bisect_right(edges, value) - 1) for value in given)
        for status, given in values.items()
    }
    most = max(votes for counter in counts.values() for votes in counter.values())
    left, row = 170, 56
    step = (WIDTH - left - 20) / (len(edges) - 1)
    bottom = row * len(values) + 8
    marks: list[Content] = []
    for at in labelled:
        x = left + step * at
        marks += [line(x, 4, x, bottom, "rule"), caption(x, bottom + 16, amount(edges[at]), "middle")]
    for place, (status, counter) in enumerate(counts.items(), 1):
        base = row * place
        told = f"median {amount(statistics.median(values[status]))}"
        marks.append(caption(left - 12, base - 22, f"{words(status)} ({len(values[status])})", "end"))
        marks.append(caption(left - 12, base - 6, told, "end", class_="faint"))
        for at, votes in sorted(counter.items()):
            height = max(2.0, (row - 14) * votes / most)
            reach = f"{votes} {words(status)}: {amount(edges[at])} to {amount(edges[at + 1])} {unit}"
            marks.append(box((left + step * at, base - height), step - 1, height, status, reach))
        marks.append(line(left, base, WIDTH - 20, base, "axis"))
    medians = (f"{words(status)}: median {amount(statistics.median(given))}" for status, given in values.items())
    scale = "" if edges[0] == 0 else ", on a logarithmic scale"
    marks.append(caption(WIDTH - 20, bottom + 32, unit + scale, "end", class_="faint"))
    title = f"{unit.capitalize()} of a response by outcome"
    return chart(unit, title, "; ".join(medians), bottom + 38, *marks)


class Bar(NamedTuple):
    """A task in the timeline: which row of its endpoint it takes, and from when to when."""

    sample: Sample
    lane: int
    start: float
    end: float


def lanes(samples: Iterable[Sample]) -> list[Bar]:
    """Each task on the first row that is free when it starts."""
    free: list[float] = []
    bars = []
    for sample in sorted(samples, key=lambda sample: sample.started or 0):
        start, end = sample.started or 0.0, max(sample.started or 0.0, sample.finished or 0.0)
        lane = next((lane for lane, until in enumerate(free) if until <= start), len(free))
        free[lane : lane + 1] = [end]
        bars.append(Bar(sample, lane, start, end))
    return bars


def pauses(samples: Sequence[Sample]) -> list[tuple[float, float]]:
    """The times when nothing was at work for longer than a minute, as between a run and its resumption."""
    found = []
    until = math.inf
    for sample in sorted(samples, key=lambda sample: sample.started or 0):
        if (sample.started or 0) - until > 60:
            found.append((until, sample.started or 0))
        until = max(sample.finished or 0, until if until < math.inf else 0)
    return found


def timeline(run: Run) -> Html | None:
    """The tasks in time, by endpoint; pauses of the run are left out. None where no times are known."""
    timed = [sample for sample in run.samples if sample.started and sample.finished]
    if not timed:
        return None
    stops = pauses(timed)
    begin = min(sample.started or 0 for sample in timed)

    def worked(moment: float) -> float:
        return moment - begin - sum(min(moment, end) - start for start, end in stops if start < moment)

    total = max(1e-3, *(worked(sample.finished or 0) for sample in timed))
    left, right = 30, WIDTH - 20
    scale = (right - left) / total
    marks: list[Content] = []
    y = 0.0
    for endpoint in sorted({sample.endpoint for sample in timed}):
        bars = lanes(sample for sample in timed if sample.endpoint == endpoint)
        rows = max(bar.lane for bar in bars) + 1
        height = max(2.0, min(12.0, 240 / rows))
        y += 20
        marks.append(caption(left, y - 5, f"{one_line(endpoint, 80) or 'unknown endpoint'}: {len(bars)} tasks"))
        for bar in bars:
            x, width = left + scale * worked(bar.start), scale * (worked(bar.end) - worked(bar.start))
            told = f"{bar.sample.id}: {words(bar.sample.status)}, {amount(bar.end - bar.start)} s"
            shape = box((x, y + height * bar.lane), width - 0.5, height - 0.7, bar.sample.status, told)
            marks.append(el("a", shape, href=link_to(bar.sample.id)))
        y += height * rows + 6
    for start, end in stops:
        x = left + scale * worked(start)
        marks.append(el("g", el("title", f"a pause of {amount(end - start)} s"), line(x, 0, x, y, "pause")))
    step = bin_width(total, 8)
    for at in range(int(total / step) + 1):
        x = left + scale * step * at
        marks += [line(x, y, x, y + 4, "axis"), caption(x, y + 18, f"{amount(step * at)} s" if at else "0 s", "middle")]
    ended = f"{len(timed)} tasks in {amount(total)} s of work" + f", with {len(stops)} pauses left out" * bool(stops)
    return chart("timeline", "The tasks in time, by endpoint", ended, y + 26, *marks)


# ---- pages ----------------------------------------------------------------------------------------------

# Several texts are compressed as one, samples of a problem side by side; a browser unpacks so many in a moment.
BLOCK = 400_000  # bytes
TEMPLATES = Path(__file__).resolve().parent / "report"


class Place(NamedTuple):
    """The place of a text: its block, and its line there."""

    block: int
    line: int


class Shelf:
    """Texts, compressed for a page that unpacks them when they are asked for.

    `put` returns the place that a text will have; `blocks` are to be put at the end of the page.
    """

    def __init__(self) -> None:
        self.groups: list[list[bytes]] = []
        self.room = 0

    def put(self, detail: object) -> Place:
        """Add the JSON of `detail`; returns its place, for the page's script."""
        text = json.dumps(detail, ensure_ascii=False).encode("utf-8", "replace")
        if len(text) > self.room:
            self.groups.append([])
            self.room = BLOCK
        self.groups[-1].append(text)
        self.room -= len(text) + 1
        return Place(len(self.groups) - 1, len(self.groups[-1]) - 1)

    def blocks(self) -> Iterator[Html]:
        """The base64 of gzip of each group of texts, one in a line."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            yield from pool.map(packed, self.groups)


def packed(group: list[bytes]) -> Html:
    """Texts as the base64 of gzip, one in a line."""
    return Html(base64.b64encode(gzip.compress(b"\n".join(group), 9, mtime=0)).decode("ascii"))


def page(template: str, title: str, reload_seconds: float | None = None, **content: Any) -> Iterator[str]:
    """A whole page, piece by piece, made by one of the templates; raises ReportError where these are missing.

    Its policy allows nothing to be loaded and nothing to run but the one script, whatever else is in the page.
    """
    try:
        style, script = ((TEMPLATES / name).read_text("utf-8") for name in ("style.css", "script.js"))
    except OSError as error:
        raise ReportError(f"cannot read {error.filename}: it belongs beside this script, with its folder") from None
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    policy = f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'"
    policy += "; base-uri 'none'; form-action 'none'"
    frame = {"policy": policy, "title": title, "style": Html(style), "script": Html(script), "shelf": Shelf()}
    seconds = f"{reload_seconds:g}" if reload_seconds else None
    return environment().get_template(template).generate(**frame, reload_seconds=seconds, **content)


@functools.cache
def environment() -> jinja2.Environment:
    """The templates, with the functions and constants of this script at hand; raises ReportError without jinja2."""
    try:
        import jinja2  # noqa: PLC0415 - tables and comparisons on the console do without
    except ImportError as error:
        raise ReportError(f"a page needs jinja2 ({error}): pip install -r requirements.txt") from None
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=markup,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.globals.update(globals())
    return templates


def told_sample(run: Run, sample: Sample, title: str = "") -> dict[str, Any]:
    """The matter to be read about a task: facts with their names, and texts with their titles, open or closed."""
    grade, rule = sample.grade, sample.grade.get("rule") or {}
    known = {
        "answer": sample.answer,
        "expected": sample.expected,
        "status": f"{MARKS[sample.status]} {words(sample.status)}",
        "found by": grade.get("method"),
        "confident": None if not grade else "yes" if grade.get("confident") else "no",
        "explanation": grade.get("explanation"),
        "graded by": grade.get("grader"),
        "by rule": f"{rule.get('verdict')}, {rule.get('answer')} ({rule.get('method')})" if rule else None,
        "to be reviewed": grade.get("review"),
        "error": sample.error,
        "finish reason": sample.finish_reason,
        "tokens": None if sample.tokens is None else str(sample.tokens),
        "tokens/s": None if sample.speed is None else amount(sample.speed),
        "seconds": None if sample.seconds is None else amount(sample.seconds),
        "attempts": str(sample.attempts) if sample.attempts else None,
        "endpoint": sample.endpoint,
        "finished": at_text(sample.finished),
    }
    system, template = run.prompt.get("system"), str(run.prompt.get("template") or "{question}")
    texts = [
        ("response", sample.content, "open", "searched"),
        ("reasoning", sample.reasoning, "", "searched"),
        ("what had arrived before a failure", sample.partial, "", "searched"),
        ("system prompt", str(system or ""), "", ""),
        ("prompt", template.replace("{question}", sample.question), "", ""),
        ("what the judge was asked", str(grade.get("prompt") or ""), "", ""),
        ("what the grader replied", str(grade.get("reply") or ""), "", "searched"),
    ]
    shown = [[name, printable(str(value))] for name, value in known.items() if value]
    return {"title": title, "facts": shown, "texts": [text for text in texts if text[1]]}


def at_text(seconds: float | None) -> str:
    """A time as people write it, in UTC."""
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M:%S} UTC" if seconds else ""


def run_page(run: Run, reload_seconds: float | None = None) -> Iterator[str]:
    """The page of a run."""
    title = f"{run.dataset.get('name')}: {percent(run.summary['accuracy'])}, {label(run)}"
    return page("run.html.j2", title, reload_seconds, run=run)


def by_status(run: Run, name: str) -> dict[str, list[float]]:
    """The "tokens" or "seconds" of the responses by outcome, as far as they are known."""
    table: dict[str, list[float]] = {}
    for status in (*SCORED, "ungraded"):
        for sample in run.samples:
            value = getattr(sample, name)
            if sample.status == status and value is not None:
                table.setdefault(status, []).append(value)
    return table


def reasons(run: Run) -> list[tuple[str, int]]:
    """The most frequent reasons why tasks have no verdict, each with the number of them."""
    found = Counter(one_line(s.error or s.grade.get("explanation") or "") for s in run.samples if s.status in UNSCORED)
    return [(reason, times) for reason, times in found.most_common(5) if reason]


def in_short(run: Run) -> list[str]:
    """A run in a few words: the models that the servers loaded, the sampling, the day."""
    loaded = {str(as_object(endpoint.get("props")).get("model_path") or "") for endpoint in run.endpoints}
    kinds = {str(as_object(endpoint.get("props")).get("model_ftype") or "") for endpoint in run.endpoints}
    asked = [f"{name.replace('_', ' ')} {brief(v)}" for name, v in run.sampling.items() if v not in (None, {})]
    return [*sorted(one_line(file.rpartition("/")[2], 80) for file in loaded), *sorted(kinds), *asked, run.created[:10]]


def samples_text(summary: dict[str, Any]) -> str:
    """avg@k, pass@j and maj@k."""
    k = summary["k"]
    figures = [f"avg@{k} {percent(summary['avg_at_k'])}"]
    for entry in summary["pass_at"]:
        few = f" (of {entry['problems']} problems)" if entry["problems"] < summary["problems"] else ""
        figures.append(f"pass@{entry['j']} {percent(entry['score'])}{few}")
    figures += [f"maj@{k} {percent(summary['maj_at_k'])}"] if summary["maj_at_k"] is not None else []
    short = summary["problems_short_of_k"]
    return ", ".join(figures) + (f"; {short} problems have fewer than {k} verdicts" if short else "")


DENSE = 200  # problems with one sample each, beyond which their names only take up room


def reviewed(run: Run) -> dict[str, list[str]]:
    """The tasks that a person should look at, by the reason why."""
    reasons: dict[str, list[str]] = {}
    for entry in run.review:
        reasons.setdefault(entry["reason"], []).append(entry["task"])
    return reasons


def votes(entry: dict[str, Any], samples: Sequence[Sample]) -> list[tuple[str, str, int]]:
    """The answers to a problem, each as a status, a text and a number of votes."""
    right = {sample.answer for sample in samples if sample.status == "correct"}
    given = [
        ("correct" if answer in right else "incorrect", one_line(answer, 200), count)
        for answer, count in entry["answers"]
    ]
    silent = Counter(sample.status for sample in samples if sample.answer is None)
    return given + [(status, words(status), count) for status, count in silent.items()]


def score_text(entry: dict[str, Any]) -> str:
    """The score of a problem with its interval and majority."""
    score = f"{entry['correct']} of {entry['scored']}" if entry["scored"] else "no verdict"
    between = f" ({span(*entry['interval'])})" if entry["interval"] else ""
    majority = "" if entry["majority"] is None else f", majority {percent(entry['majority'])}"
    return score + between + majority


def provenance(run: Run) -> list[tuple[str, str]]:
    """Everything that it takes to understand the figures, or to have them again."""
    known: list[tuple[str, str]] = [
        ("run", run.id),
        ("file", str(run.path)),
        ("begun", at_text(as_time(run.created))),
        ("saved", at_text(as_time(run.updated))),
        ("made by", run.tool),
        ("model", run.model or "as served"),
        ("dataset", f"{run.dataset.get('name')}, from {run.dataset.get('source')}"),
        ("rows, sha256", str(run.dataset.get("sha256"))),
        *((f"sampling: {name}", brief(value)) for name, value in run.sampling.items() if value not in (None, {})),
        *((f"grader: {name}", brief(value)) for name, value in run.grader.items() if value is not None),
        ("answer format", str(run.prompt.get("answer_format"))),
        ("tokens", tokens_text(run.summary)),
        *run.gate,
    ]
    if all(value in (None, {}) for name, value in run.sampling.items() if name != "loop_stop"):
        known.append(("sampling", "the server's defaults"))
    for endpoint in run.endpoints:
        known.append(("endpoint", f"{endpoint.get('url')}: {endpoint_text(endpoint)}"))
    return known


def tokens_text(summary: dict[str, Any]) -> str:
    """The tokens of a run, as far as they are known."""
    told, responses = summary["responses_with_token_counts"], summary["responses"]
    text = f"{amount(summary['completion_tokens'])} generated from {amount(summary['prompt_tokens'])} of prompt"
    return text if told == responses else f"{text}, told for {told} of {responses} responses"


def endpoint_text(endpoint: dict[str, Any]) -> str:
    """A server's description of itself when the run was begun."""
    props = as_object(endpoint.get("props"))
    defaults = as_object(props.get("default_generation_settings"))
    known = {
        "threads": endpoint.get("threads"),
        "build": props.get("build_info"),
        "model file": props.get("model_path"),
        "type": props.get("model_ftype"),
        "slots": props.get("total_slots"),
        "context": defaults.get("n_ctx"),
    }
    return ", ".join(f"{name} {one_line(value, 120)}" for name, value in known.items() if value is not None)


def as_object(value: object) -> dict[str, Any]:
    """A value that a server sent, if it is an object; servers that are not llama-server may send anything."""
    return value if isinstance(value, dict) else {}


def comparison_page(runs: Sequence[Run], comparisons: Sequence[Comparison], claims: Sequence[Claim]) -> Iterator[str]:
    """The page of the comparisons of the first of the runs with the others, and of their claims to a reference."""
    changed = {pair.problem for told in comparisons for pair in told.changed}
    rows = side_by_side(runs, changed)
    title = f"{', '.join(map(label, runs[1:]))} against {label(runs[0])}"
    title = f"{runs[0].dataset.get('name')}: {title}" if comparisons else f"{label(runs[0])} against the reference"
    return page("compare.html.j2", title, runs=runs, comparisons=comparisons, claims=claims, changed=changed, rows=rows)


def runs_lines(runs: Sequence[Run]) -> dict[str, Sequence[str]]:
    """The names of the facts on several runs, each with its values, one for each run."""
    head, rows = run_rows(runs)
    lines: dict[str, Sequence[str]] = dict(zip(head, zip(*rows, strict=True), strict=True))
    lines["loaded"] = [", ".join(filter(None, in_short(run)[:-1])) for run in runs]
    for setting in dict.fromkeys(name for run in runs for name in served(run)):
        lines[f"server: {setting}"] = [one_line(served(run).get(setting, "-"), 60) for run in runs]
    lines |= {words(s): [str(run.summary["counts"][s]) for run in runs] for s in MARKS if s != "pending"}
    for name in ("tokens", "seconds"):
        spent = [by_status(run, name) for run in runs]
        for status in SCORED:
            if any(status in spent_by for spent_by in spent):
                lines[f"{name}, mean if {words(status)}"] = [amount(mean_of(k.get(status, ()))) for k in spent]
    return lines


def letters(runs: Sequence[Run]) -> list[str]:
    """The letters of all runs but the first."""
    return [name for _, name in zip(runs[1:], names(), strict=False)]


def names() -> Iterator[str]:
    """B, C, ..., Z, AA, AB, ... of the runs that are compared with A."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    singles = iter(alphabet[1:])
    longer = itertools.chain.from_iterable(itertools.product(alphabet, repeat=n) for n in itertools.count(2))
    return itertools.chain(singles, map("".join, longer))


def telling_sample(told: Comparison, pair: Pair) -> Sample:
    """The sample that shows the change of a problem best: the first that changed in its direction."""
    both = zip(told.before.by_problem[pair.problem], told.after.by_problem[pair.problem], strict=False)
    better = "after" if pair.after > pair.before else "before"
    for before, after in both:
        right, wrong = (after, before) if better == "after" else (before, after)
        if right.status == "correct" != wrong.status:
            return before
    return told.before.by_problem[pair.problem][0]


def difference_chart(found: Difference, name: str) -> Html:
    """The difference with its interval, and between which it could not be told from none."""
    reach = max(abs(found.interval.low), abs(found.interval.high), found.detectable or 0, 0.02) * 1.15
    left, right = 150, WIDTH - 20
    middle = (left + right) / 2

    def x(proportion: float) -> float:
        return middle + (right - left) / 2 * proportion / reach

    step = bin_width(reach, 4)
    ticks = [step * at for at in range(-int(reach / step), int(reach / step) + 1)]
    marks: list[Content] = []
    for tick in ticks:
        written = f"{100 * tick:+.3g}".replace("-", "−") if tick else "0"
        marks += [line(x(tick), 4, x(tick), 52, "rule"), caption(x(tick), 68, written, "middle")]
    marks.append(caption(left - 12, 26, f"{name} − A, 95 %", "end"))
    if found.detectable is not None:
        told = f"less than the {points(found.detectable, sign=False)} that are found in four of five cases"
        corner = (x(-found.detectable), 34)
        marks.append(box(corner, x(found.detectable) - corner[0], 10, "undetectable", told))
        marks.append(caption(left - 12, 44, "below detectable", "end"))
    marks.append(
        box(
            (x(found.interval.low), 14), x(found.interval.high) - x(found.interval.low), 14, "interval", "95 % interval"
        )
    )
    marks += [line(x(0), 2, x(0), 54, "axis"), line(x(found.mean), 10, x(found.mean), 32, "accuracy")]
    description = f"{points(found.mean)}, 95 % interval {points_span(*found.interval)}"
    return chart(f"difference-{name}", f"{name} − A in points of accuracy", description, 76, *marks)


def side_by_side(runs: Sequence[Run], changed: set[str]) -> list[tuple[Sample, list[Sample | None]]]:
    """The samples of the problems that changed: one of them, and all runs' side by side, None where one has none."""
    rows = []
    tables = [{(sample.problem, sample.number): sample for sample in run.samples} for run in runs]
    for name in (name for name in runs[0].by_problem if name in changed):
        for number in sorted({number for samples in tables for problem, number in samples if problem == name}):
            found = [samples.get((name, number)) for samples in tables]
            rows.append((next(sample for sample in found if sample), found))
    return rows


def told_samples(runs: Sequence[Run], samples: Sequence[Sample | None]) -> list[dict[str, Any]]:
    """The matter to be read about the same sample of several runs."""
    return [told_sample(run, sample, label(run)) for run, sample in zip(runs, samples, strict=True) if sample]


# ---- tables ---------------------------------------------------------------------------------------------


def run_rows(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of a table for people, with one run in a row; tokens, speed and seconds are means."""
    head = "run,model,dataset,size,accuracy,95 % on new problems,95 % on these problems,pass@k,maj@k,no verdict"
    rows = []
    for run in runs:
        summary, told = run.summary, run.summary["intervals"]
        intervals = [span(told[kind]["low"], told[kind]["high"]) if told[kind] else "-" for kind in told]
        several = [pass_text(run), percent(summary["maj_at_k"])] if summary["k"] > 1 else ["-", "-"]
        means = [amount(mean_of(getattr(sample, name) for sample in run.samples)) for name in MEANS.values()]
        missing = str(summary["tasks"] - summary["scored"])
        start = [run.path.stem, one_line(run.model, 60), str(run.dataset.get("name")), run.size]
        rows.append([*start, percent(summary["accuracy"]), *intervals, *several, missing, *means])
    return [*head.split(","), *MEANS], rows


MEANS = {"tokens/response": "tokens", "tokens/s": "speed", "seconds/response": "seconds"}


def pass_at_k(run: Run) -> tuple[float | None, int]:
    """pass@k with all samples, and the number of problems that have so many verdicts."""
    last = (entry for entry in run.summary["pass_at"] if entry["j"] == run.summary["k"])
    return next(((entry["score"], entry["problems"]) for entry in last), (None, 0))


def pass_text(run: Run) -> str:
    """pass@k, with the number of problems where it is not of all of them."""
    score, problems = pass_at_k(run)
    return percent(score) + (f" (of {problems})" if score is not None and problems < run.summary["problems"] else "")


def run_record(run: Run) -> dict[str, Any]:
    """A run as a record for programs: proportions from 0 to 1, means over responses, empty where not known."""
    summary = run.summary
    record: dict[str, Any] = {"file": str(run.path), "id": run.id, "created": run.created, "model": run.model}
    record |= {"dataset": run.dataset.get("name"), "problems": summary["problems"], "samples": summary["k"]}
    record["accuracy"] = summary["accuracy"]
    for kind, told in summary["intervals"].items():
        record |= {f"{kind}_{end}": told[end] if told else None for end in ("low", "high")}
    record["avg_at_k"] = summary["avg_at_k"]
    record["pass_at_k"], record["pass_at_k_problems"] = pass_at_k(run)
    record["maj_at_k"] = summary["maj_at_k"]
    record |= summary["counts"]
    record["completion_tokens"] = summary["completion_tokens"]
    for name in ("tokens", "speed", "seconds"):
        record[f"mean_{name}"] = mean_of(getattr(sample, name) for sample in run.samples)
    record |= {name: value for name, value in run.sampling.items() if name != "extra_body"}
    record |= {"extra_body": json.dumps(run.sampling.get("extra_body") or {}), "grader": run.grader.get("name")}
    return record


def problem_records(run: Run) -> list[dict[str, Any]]:
    """A record for each problem of a run."""
    records = []
    for entry in run.problems:
        low, high = entry["interval"] or (None, None)
        record = {"file": str(run.path), "problem": entry["problem"], "samples": entry["samples"]}
        record |= {name: entry[name] for name in ("scored", "correct", "score")}
        record |= {"low": low, "high": high, "majority": entry["majority"]}
        record["expected"] = run.by_problem[entry["problem"]][0].expected
        records.append(record | {"answers": answers_text(run, entry["problem"])})
    return records


def task_records(run: Run) -> list[dict[str, Any]]:
    """A record for each task of a run."""
    kept = "id problem status answer expected tokens seconds speed finish_reason endpoint attempts error".split()
    return [
        {"file": str(run.path)} | {name: getattr(s, name) for name in kept} | {"method": s.grade.get("method")}
        for s in run.samples
    ]


def comparison_record(told: Comparison) -> dict[str, Any]:
    """A comparison as a record for programs: proportions, B less A."""
    found = told.difference
    record: dict[str, Any] = {"a": str(told.before.path), "b": str(told.after.path), "problems": len(told.pairs)}
    record |= {"score_a": told.means[0], "score_b": told.means[1]}
    record |= {
        "difference": found.mean,
        "low": found.interval.low,
        "high": found.interval.high,
        "p": found.p,
        "test": found.test,
    }
    record |= {"p_holm": told.p_adjusted, "detectable": found.detectable, "flipped": len(told.flipped)}
    record |= dict(zip(("lost", "gained"), told.lost_and_gained, strict=True))
    these = told.these
    record |= {"these_low": these and these.interval.low, "these_high": these and these.interval.high}
    record |= {"these_p": these and these.p, "shown_on_these": "yes" if told.shown_on_these else "no"}
    return record | {"shown": "yes" if told.shown else "no", "warnings": "; ".join(told.warnings)}


Table = tuple[list[str], list[list[str]]]  # the titles of a table for people, and its rows


def comparison_rows(comparisons: Sequence[Comparison]) -> Table:
    """A table for people, with one comparison in a row: to be pasted into a pull request."""
    head = ["A", "B", "B − A", "on these problems", "on new problems", "lost", "gained", "verdict"]
    rows = []
    for told in comparisons:
        found = told.difference
        names = [
            f"{label(run)}: {percent(mean)}" for run, mean in zip((told.before, told.after), told.means, strict=True)
        ]
        new = f"95 % interval {points_span(*found.interval)}; {p_values(told)}"
        lost, gained = told.lost_and_gained
        verdicts = f"{verdict_on_these(told)} {verdict(told)}"
        rows.append([*names, points(found.mean), these_text(told), new, str(lost), str(gained), verdicts])
    return head, rows


def claim_record(told: Claim) -> dict[str, Any]:
    """A run against a reference as a record for programs."""
    record: dict[str, Any] = {"file": str(told.run.path), "accuracy": told.run.summary["accuracy"]}
    record |= {"reference": told.reference, "bar": told.bar, "ratio": told.ratio}
    record |= {"result": RESULTS[told.passed], "claim": CLAIMS[told.supported]}
    return record | {"low": told.interval[0], "high": told.interval[1], "interval": told.kind}


def claim_rows(claims: Sequence[Claim]) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of a table for people, with one run against the reference in a row."""
    head = ["run", "accuracy", "reference", "at least", "ratio", "result", "the interval says", "95 % interval"]
    rows = []
    for told in claims:
        shares = [percent(told.run.summary["accuracy"]), percent(told.reference), percent(told.bar)]
        interval = f"{span(*told.interval)} ({told.kind})"
        end = [f"{told.ratio:.3f}", RESULTS[told.passed], CLAIMS[told.supported], interval]
        rows.append([label(told.run), *shares, *end])
    return head, rows


def pair_records(told: Comparison) -> list[dict[str, Any]]:
    """A record for each problem of a comparison."""
    flipped = {pair.problem for pair in told.flipped}
    return [
        {
            "a": str(told.before.path),
            "b": str(told.after.path),
            "problem": pair.problem,
            "expected": told.before.by_problem[pair.problem][0].expected,
            "score_a": float(pair.before),
            "score_b": float(pair.after),
            "difference": float(pair.after - pair.before),
            "flipped": "yes" if pair.problem in flipped else "no",
            "answers_a": answers_text(told.before, pair.problem),
            "answers_b": answers_text(told.after, pair.problem),
        }
        for pair in told.pairs
    ]


def as_csv(records: Sequence[dict[str, Any]]) -> str:
    """Records as CSV; a text that a spreadsheet would take for a formula is led by an apostrophe."""
    titles, lines = columns(records), []
    rows: list[Sequence[object]] = [titles]
    rows += [[harmless(record.get(name)) for name in titles] for record in records]
    for row in rows:
        out = io.StringIO()
        csv.writer(out).writerow(row)  # which quotes line ends of any kind, as long as its own is \r\n
        lines.append(out.getvalue().removesuffix("\r\n") + "\n")
    return "".join(lines)


def columns(records: Iterable[dict[str, Any]]) -> list[str]:
    """The names in any of the records: a run of another version may have others."""
    return list(dict.fromkeys(name for record in records for name in record))


def harmless(value: object) -> object:
    """A value of a CSV cell, which a spreadsheet shows as it is."""
    if not isinstance(value, str):
        return value
    formula = re.match(r"[\t\r\n]|\s*[=+\-@\uff1d\uff0b\uff0d\uff20]", value) and not re.fullmatch(
        r"[-+]?[0-9.]+", value
    )
    return "'" * bool(formula) + printable(value)


def as_markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, in which nothing of a cell is markup."""
    lines = [head, ["---"] * len(head), *([escaped(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def escaped(cell: str) -> str:
    """A cell of a Markdown table, in which nothing is markup, nor mentions anybody."""
    return re.sub(r"([\\`*_\[\]|<>&~$#])", r"\\\1", one_line(cell, 400)).replace("@", "@\u200b")


def as_text(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal."""
    cells = [list(head), *([one_line(cell, 48) for cell in row] for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(head))]
    return "".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() + "\n" for row in cells)


def formatted(records: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Records as the titles and rows of a table for people."""

    def shown(name: str, value: object) -> str:
        if value is None:
            return "-"
        if not isinstance(value, float):
            return str(value)
        if name in ("p", "p_holm", "ratio"):
            return f"{value:.3g}"
        return amount(value) if name in ("tokens", "seconds", "speed") else percent(value)

    titles = columns(records)
    return titles, [[shown(name, record.get(name)) for name in titles] for record in records]


FLIPS_TOLD = 20  # in the terminal; the page and --rows problem have them all


def comparison_text(told: Comparison) -> str:
    """A comparison for the terminal."""
    found, name = told.difference, told.name
    lines = [f"WARNING: {warning}" for warning in told.warnings]
    lines += [f"{'A':<11} {label(told.before)}: {standing(told.before)}"]
    lines += [f"{name:<11} {label(told.after)}: {standing(told.after)}"]
    if len(told.pairs) < max(len(told.before.problems), len(told.after.problems)):
        means = " and ".join(map(percent, told.means))
        lines += [f"{'compared':<11} {len(told.pairs)} problems, on which the mean scores are {means}"]
    interval = f"95 % interval {points_span(*found.interval)}"
    lines += [f"{f'{name} − A':<11} {points(found.mean)}"]
    lines += [f"{'on these':<11} {these_text(told)}"]
    lines += [f"{'on new':<11} {interval}; {p_values(told)} ({found.test})"]
    smallest = [
        f"about {points(each.detectable, sign=False)} on {question}{whole_text(each)}"
        for question, each in (("these problems", told.these), ("new problems", found))
        if each is not None and each.detectable is not None
    ]
    lines += [f"{'detectable':<11} {' and '.join(smallest)}, with a power of 80 %"] if smallest else []
    lines += [f"{'verdict':<11} {verdict_on_these(told)} {verdict(told)}"]
    others = len(told.changed) - len(told.flipped)
    others_too = f", {others}{' more' * bool(told.flipped)} with another score" if others else ""
    lost, gained = told.lost_and_gained
    both = f" ({lost} lost, {gained} gained)" if told.flipped else ""
    lines += [f"{'flipped':<11} {len(told.flipped) or 'none'} of {len(told.pairs)} problems{both}{others_too}"]
    lines += [flip_text(told, pair) for pair in told.flipped[:FLIPS_TOLD]]
    if len(told.flipped) > FLIPS_TOLD:
        lines += [
            f"{'':11} and {len(told.flipped) - FLIPS_TOLD} more: --rows problem, or --output for a page, has them"
        ]
    return "\n".join(lines) + "\n"


def whole_text(found: Difference) -> str:
    """What is detectable where whole problems are lost, if that is much more than where a part of each is."""
    whole, evenly = found.detectable_whole, found.detectable
    if whole is None or evenly is None or whole < 1.2 * evenly:
        return ""
    return f" (about {points(whole, sign=False)} where whole problems are lost)"


def these_text(told: Comparison) -> str:
    """Interval and test of a comparison on these very problems."""
    if told.these is None:
        return "as on new problems: one sample of each says nothing of its chance"
    p = p_text(told.these.p)
    adjusted = f", {p_text(told.these_p_adjusted).removeprefix('p = ')} after Holm"
    p += adjusted * (told.these_p_adjusted != told.these.p)
    return f"95 % interval {points_span(*told.these.interval)}; {p} ({told.these.test})"


def flip_text(told: Comparison, pair: Pair) -> str:
    """A problem that flipped with the answers of both runs, for the terminal."""
    direction = "lost" if pair.after < pair.before else "gained"
    answers = " -> ".join(answers_text(run, pair.problem) for run in (told.before, told.after))
    expected = told.before.by_problem[pair.problem][0].expected
    return f"{'':11} {direction:<6} {one_line(pair.problem, 24)}: expected {expected}; {answers}"


def standing(run: Run) -> str:
    """The headline of a run in a line."""
    general = run.summary["intervals"]["on_new_problems"]
    interval = f", 95 % interval {span(general['low'], general['high'])} on new problems" if general else ""
    of = f"({run.summary['counts']['correct']} of {run.summary['scored']})"
    return f"{percent(run.summary['accuracy'])} {of}{interval}, {run.size}"


# ---- command line ---------------------------------------------------------------------------------------


def write(path: Path | None, pieces: Iterable[str]) -> None:
    """Write the text to `path` at once, so that whoever opens it finds the old or the new one, or to stdout for None.

    What is no regular file, such as a pipe, is written to as it is. Raises ReportError.
    """
    if path is None:
        sys.stdout.writelines(pieces)
        return
    target = Path(os.path.realpath(path))
    special = target.exists() and not target.is_file()
    # Always the same for a file, so that what a process leaves that is killed within the moment of writing is replaced.
    name = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:8]
    scratch = target if special else target.with_name(f".llama-eval-report-{name}.tmp")
    text = "".join(pieces)
    try:
        if not special:
            scratch.unlink(missing_ok=True)  # so that no link is followed
        with open(scratch, "w" if special else "x", encoding="utf-8", errors="replace", newline="\n") as file:
            file.write(text)
        if not special:
            os.replace(scratch, target)
    except OSError as error:
        raise ReportError(f"cannot write {path}: {error.strerror}") from None
    finally:
        if not special:
            with contextlib.suppress(OSError):
                os.unlink(scratch)


def check_output(path: Path | None, states: Iterable[Path], page: bool) -> None:
    """Raise UsageError unless a report may be written to `path`: never over a run, a page only over a page."""
    if path is None or not path.is_file():
        return
    reserved = {os.path.realpath(state) + end for state in states for end in ("", ".journal")}
    try:
        with open(path, "rb") as file:
            begun = file.read(2000)
    except OSError as error:
        raise ReportError(f"cannot read {path}: {error.strerror}") from None
    if os.path.realpath(path) in reserved or begun.lstrip()[:1] == b"{":
        raise UsageError(f"{path} holds a run, which a report must not replace: name another --output")
    if page and b'name="generator" content="llama-eval-report' not in begun:
        raise UsageError(f"{path} exists and is not a report: name another --output")


def report(state: Path, output: Path, reload_seconds: float | None = None) -> Run:
    """Write the page of the run in `state`, which loads itself again while the run goes on; returns the run."""
    run = read_run(state)
    if has_formulas(run) and formula_converter() is None:
        print("latex2mathml is not installed: mathematics is shown as its source", file=sys.stderr)
    write(output, run_page(run, reload_seconds if run.summary["counts"]["pending"] else None))
    return run


def has_formulas(run: Run) -> bool:
    """Whether a question of the run has mathematics in it."""
    return any(any(formulas(samples[0].question)) for samples in run.by_problem.values())


def watch(state: Path, output: Path, seconds: float) -> None:
    """Write the page again whenever the state has been saved, until every task of the run is finished."""
    seen: tuple[int, ...] = (0,)
    clock, changed = threading.Event(), time.monotonic()
    while True:
        began = time.monotonic()
        stamp = stamp_of(state)
        if stamp != seen:
            changed = began
            if stamp and written_again(state, output, seconds):
                return
            if not stamp:
                print(f"waiting for {state}", flush=True)
        elif began - changed > QUIET_SECONDS:
            changed = began
            print(f"{state} has not been saved for a while: has the run stopped? Ctrl-C ends this", flush=True)
        seen = stamp
        # A page of many long responses takes seconds to write, which must not take a core away from the run.
        clock.wait(max(seconds, 10 * (time.monotonic() - began)))


QUIET_SECONDS = 600.0  # after which a watched run may have stopped


def written_again(state: Path, output: Path, seconds: float) -> bool:
    """Write the page of a run that goes on, and say so; returns whether the run is finished."""
    try:
        run = report(state, output, seconds)
    except ReportError as error:
        print(f"{error}; trying again when it changes", file=sys.stderr, flush=True)
        return False
    done = len(run.samples) - int(run.summary["counts"]["pending"])
    print(f"{output}: {done} of {len(run.samples)} tasks, accuracy {percent(run.summary['accuracy'])}", flush=True)
    return done == len(run.samples)


def stamp_of(path: Path) -> tuple[int, ...]:
    """A mark that changes whenever the file at `path` is replaced; nothing where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def emit(args: argparse.Namespace, records: Sequence[dict[str, Any]], tables: Sequence[Table]) -> None:
    """Write what is asked for: `records` as CSV, or `tables` in Markdown or as text."""
    form = as_markdown if args.markdown else as_text
    text = as_csv(records) if args.csv else "\n".join(form(*table) for table in tables)
    write(args.output, [text])
    if args.output:
        print(one_line(args.output, 1000))


def seconds_of(text: str) -> float:
    """A number of seconds, for a person to wait."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0.1 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0.1 to 86400")
    return seconds


def percentage(text: str) -> Fraction:
    """A number from 0 to 100, with or without a percent sign, as a proportion."""
    written = text.strip().removesuffix("%").strip()
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,9})?|\.[0-9]{1,9}", written) or Fraction(written) > 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no percentage from 0 to 100")
    return Fraction(written) / 100


def reference(text: str) -> Fraction:
    """A published accuracy in percent."""
    value = percentage(text)
    if not text.strip().endswith("%") and value <= Fraction(1, 100):
        raise argparse.ArgumentTypeError(f"{text!r} is a share or very little: write percent, such as 87.3")
    if not value:
        raise argparse.ArgumentTypeError("0 is no score to be held against")
    return value


def margin(text: str) -> Fraction:
    """A number of points of accuracy, as a proportion."""
    value = percentage(text)
    if 0 < value < Fraction(1, 1000):
        raise argparse.ArgumentTypeError(f"{text!r} is a share or very little: write points, such as 3")
    return value


def relative(text: str) -> Fraction:
    """A share of something, which has to be written with its percent sign."""
    if not text.strip().endswith("%"):
        raise argparse.ArgumentTypeError(f"{text!r}: a share of the reference is written like 5%")
    return percentage(text)


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError instead of printing the whole usage."""
        raise UsageError(f"{message}; --help tells what there is")


def build_parser(comparing: bool = False) -> Parser:
    """The parser of `compare`, or of everything else."""
    others = (
        "compare A.json B.json ... compares runs, plan A.json --detect 3 says what finds a loss; see their own --help"
    )
    epilog = None if comparing else f"llama-eval-report.py {others}"
    description = (
        "Tell whether a run is worse than another one on the same problems."
        if comparing
        else "Show a run as one HTML page, or several runs as a table, newest first."
    )
    name = "llama-eval-report.py" + " compare" * comparing
    parser = Parser(prog=name, description=description, epilog=epilog, allow_abbrev=False)
    add = parser.add_argument
    states = "the state of a run, as llama-eval.py writes it"
    add("states", type=Path, nargs="+", metavar="STATE.json", help=states + "; the first is A" * comparing)
    output = "where to: a page, unless --csv or --markdown is given"
    add("-o", "--output", type=Path, metavar="FILE", help=output + ("" if comparing else " (default: STATE.html)"))
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="write a table as CSV, to stdout or --output")
    form.add_argument("--markdown", action="store_true", help="write a table in Markdown, to stdout or --output")
    rows = ["run", "problem"] if comparing else ["run", "problem", "task"]
    add("--rows", choices=rows, default="run", help="what a row of the table is (default: run)")
    if comparing:
        worse = "exit with status 4 when a run is worse than A by more than so many points, beyond doubt"
        add("--threshold", type=margin, metavar="POINTS", help=worse)
        which = "the question that --threshold decides: these very problems, or new ones of the kind (default: these)"
        add("--threshold-on", choices=("these", "new"), help=which)
        add("--reference", type=reference, metavar="PERCENT", help="hold each run against a published accuracy")
        add(
            "--tolerance",
            type=relative,
            metavar="SHARE",
            help="of the reference that may be missed, like 5%% (default: 0%%)",
        )
    else:
        again = "write the page again whenever the run has been saved, until it is finished (default: every 5 s)"
        add("--watch", type=seconds_of, nargs="?", const=5.0, metavar="SECONDS", help=again)
    add("--version", action="version", version=f"llama-eval-report {VERSION}")
    return parser


def plan_parser() -> Parser:
    """The parser of `plan`."""
    description = "Say how many samples it takes to find a loss, from a run like the one it is to be held against."
    parser = Parser(prog="llama-eval-report.py plan", description=description, allow_abbrev=False)
    parser.add_argument("state", type=Path, metavar="STATE.json", help="the state of a run, as llama-eval.py writes it")
    lost = "the loss to be found, in points of accuracy"
    parser.add_argument("--detect", type=margin, metavar="POINTS", required=True, help=lost)
    return parser


def plan_run(args: argparse.Namespace) -> int:
    """Print the plan for a loss; returns the exit status."""
    run = read_run(args.state)
    print(printable(plan_text(run, plan(run, float(args.detect)))), end="")
    return 0


def show(args: argparse.Namespace) -> int:
    """Write the page of a run, or the table of one or several; returns the exit status."""
    tabular = args.csv or args.markdown
    if args.watch and (tabular or len(args.states) > 1):
        raise UsageError("--watch is for the page of one run")
    if args.output and len(args.states) > 1 and not tabular:
        raise UsageError("a page shows one run: name one state, or --csv, --markdown or compare for several")
    check_form(args)
    if tabular or len(args.states) > 1:
        runs = sorted(map(read_run, args.states), key=lambda run: as_time(run.created) or 0, reverse=True)
        makers: dict[str, Callable[[Run], list[dict[str, Any]]]] = {
            "run": lambda run: [run_record(run)],
            "problem": problem_records,
            "task": task_records,
        }
        records = [record for run in runs for record in makers[args.rows](run)]
        emit(args, records, [run_rows(runs) if args.rows == "run" else formatted(records)])
        return 0
    state = args.states[0]
    output = args.output or state.with_suffix(".html")
    check_output(output, args.states, page=True)
    if args.watch:
        watch(state, output, args.watch)
    else:
        report(state, output)
        print(one_line(output, 1000))
    return 0


def compare_runs(args: argparse.Namespace) -> int:
    """Compare the runs with the first one, or hold them against a reference; returns the exit status."""
    check_comparison(args)
    runs = [read_run(state) for state in args.states]
    comparisons = compare_all(runs)
    claims = []
    if args.reference is not None:
        claims = [claim(run, args.reference, args.tolerance or Fraction(0)) for run in runs]
    if args.csv or args.markdown:
        emit(args, *comparison_table(args, comparisons, claims))
    else:
        if args.output:  # first, since who reads what is printed may have seen enough before its end
            write(args.output, comparison_page(runs, comparisons, claims))
        for told in comparisons:
            print(printable(comparison_text(told)))
        for entry in claims:
            print(printable(f"{'reference':<11} {label(entry.run)}: {claim_text(entry)}\n"))
        print(as_text(*run_rows(runs)), end="")
        if args.output:
            print(one_line(args.output, 1000))
    return guard(args, comparisons, claims)


def comparison_table(
    args: argparse.Namespace, comparisons: Sequence[Comparison], claims: Sequence[Claim]
) -> tuple[list[dict[str, Any]], list[Table]]:
    """What is asked for, as records for programs and as tables for people: problems, or comparisons and claims."""
    if args.rows == "problem":
        records = [record for told in comparisons for record in pair_records(told)]
        return records, [formatted(records)]
    records = [comparison_record(told) for told in comparisons] + [claim_record(told) for told in claims]
    tables = [comparison_rows(comparisons)] if comparisons else []
    return records, tables + ([claim_rows(claims)] if claims else [])


def check_form(args: argparse.Namespace) -> None:
    """Check that the form of the output and the names fit each other; raises UsageError."""
    tabular = args.csv or args.markdown
    if args.rows != "run" and not tabular and (args.output or len(args.states) == 1 or "threshold" in args):
        raise UsageError("--rows is for a table: add --csv or --markdown")
    for path in args.states:
        if not path.name:
            raise UsageError(f"{path} is no file: name the state of a run")
    if args.output == Path("-"):
        if not tabular:
            raise UsageError("a page goes to a file: name one with --output")
        args.output = None
    check_output(args.output, args.states, page=not tabular)


def check_comparison(args: argparse.Namespace) -> None:
    """Check that there is something to be compared; raises UsageError."""
    if len(args.states) < (1 if args.reference is not None else 2):
        raise UsageError("name two states or more: A.json B.json")
    if args.tolerance is not None and args.reference is None:
        raise UsageError("--tolerance is a share of --reference, which is missing")
    if args.threshold_on is not None and args.threshold is None:
        raise UsageError("--threshold-on says what --threshold decides, which is missing")
    if args.rows == "problem" and len(args.states) < 2:
        raise UsageError("--rows problem compares problems: name two states or more")
    check_form(args)


def compare_all(runs: Sequence[Run]) -> list[Comparison]:
    """Each run against the first, with p-values adjusted for their number."""
    others = runs[1:]
    comparisons = [compare(runs[0], run, name, len(others)) for run, name in zip(others, names(), strict=False)]
    adjusted = holm([told.difference.p for told in comparisons])
    these = holm([told.these_p_adjusted for told in comparisons])
    both = zip(comparisons, adjusted, these, strict=True)
    return [replace(told, p_adjusted=p, these_p_adjusted=q) for told, p, q in both]


def guard(args: argparse.Namespace, comparisons: Sequence[Comparison], claims: Sequence[Claim]) -> int:
    """The exit status: 4 when a run is beyond doubt worse than it may be, else 0."""
    bad = 0
    if args.threshold is not None:
        limit, question = points(float(args.threshold), sign=False), args.threshold_on or "these"
        doubts = holm([beyond(told.pairs, args.threshold, question) for told in comparisons])
        for told, doubt in zip(comparisons, doubts, strict=True):
            if doubt < 1 - CONFIDENCE:
                where = f"on {question} problems"
                text = f"{told.name} is worse than A by more than {limit} {where}, beyond doubt: {told.after.path}"
                print(text, file=sys.stderr)
                bad = 4
    for entry in claims:
        if entry.supported is False:
            print(f"{entry.run.path} misses the reference beyond doubt", file=sys.stderr)
            bad = 4
    return bad


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the whole process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=stream.encoding if stream.isatty() else "utf-8", errors="replace")
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has SIGHUP
            signal.signal(number, lambda number, _: sys.exit(128 + number))  # takes a half-written file away
    try:
        comparing, planning = argv[:1] == ["compare"], argv[:1] == ["plan"]
        args = (plan_parser() if planning else build_parser(comparing)).parse_args(argv[comparing or planning :])
        code = plan_run(args) if planning else compare_runs(args) if comparing else show(args)
        sys.stdout.flush()
        return code
    except ReportError as error:
        print(f"llama-eval-report: error: {one_line(error, 1000)}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what it still holds would fail once more
        if isinstance(error, BrokenPipeError):  # the reader, such as head, has seen enough
            return 0
        print(f"llama-eval-report: error: cannot write to stdout: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
