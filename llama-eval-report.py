#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = [
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

Sections: runs, figures, differences, verdicts, numbers as text, markup, mathematics, charts, compressed texts, style,
unpacking, script, page, run page, comparison page, tables, files, command line.
"""

from __future__ import annotations

import argparse
import base64
import bisect
import bz2
import contextlib
import csv
import functools
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
from typing import Any, NamedTuple, NoReturn
from urllib.parse import quote
from xml.etree import ElementTree

VERSION = "0.1.0"
SCHEMA_VERSION = 2  # the newest form of the state file that is understood

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
    """What was asked for cannot be done."""

    exit_code = 1


class UsageError(ReportError):
    """The command line asks for something that makes no sense."""

    exit_code = 2


# ---- runs -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One task and what became of it. Seconds are those of the request, times are seconds since 1970.

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
    """A run as its state file has it; `summary`, `problems` and `review` are what llama-eval.py made of it.

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
    sampling: dict[str, Any]
    grader: dict[str, Any]
    endpoints: list[dict[str, Any]]
    summary: dict[str, Any]
    problems: list[dict[str, Any]]
    review: list[dict[str, str]]
    samples: list[Sample]
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
    asked = {entry["problem"]: entry for entry in data["problems"]}  # older files repeat the question in each task
    samples = [
        sample_of({**asked.get(task["problem"], {}), **task}, data["task_states"][task["id"]]) for task in data["tasks"]
    ]
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
        sampling=dict(data["sampling"]),
        grader=dict(data["grader"]),
        endpoints=[dict(endpoint) for endpoint in data["endpoints"]],
        summary=summary,
        problems=problems,
        review=[{"task": str(entry["task"]), "reason": str(entry["reason"])} for entry in data["review"]],
        samples=samples,
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
    """How many finished tasks the journal of the state at `path` has that the state has not."""
    try:
        lines = Path(f"{os.path.realpath(path)}.journal").read_bytes().split(b"\n")[:-1]
    except OSError:
        return 0
    prefix = json.dumps({"journal": name}).removesuffix("}").encode()
    return sum(line.startswith(prefix) for line in lines)


# ---- figures --------------------------------------------------------------------------------------------


def summary_of(data: dict[str, Any]) -> dict[str, Any]:
    """The figures of a run, each of the kind that it should be; raises KeyError, TypeError or ValueError."""
    intervals = {kind: data["intervals"][kind] for kind in ("generalisation", "resampling")}
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
    """Raise ReportError unless the figures count what the tasks say."""
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


# ---- differences ----------------------------------------------------------------------------------------

CONFIDENCE = 0.95
POWER = 0.8
EXACT_WORK = 2e9  # bytes that may be moved for the exact distribution of the test, which takes about a second
FEWEST = 6  # problems at the least have to differ in one direction for the test to reach 5 %
FLIPS = 20_000  # of all signs, where it would take more


class Pair(NamedTuple):
    """One problem in two runs: the share of correct samples in each, and the variance of the difference from sampling.

    The latter is None where a run has one sample of it.
    """

    problem: str
    before: Fraction
    after: Fraction
    noise: Fraction | None = None


@dataclass(frozen=True)
class Difference:
    """How much better run B is than run A, in proportions: the mean over problems of the difference in score.

    `low` and `high` are the ends of its 95 % interval, `p` comes from the `test`; `detectable` is about the smallest
    difference that such a comparison finds with a power of 80 %, None where that cannot be told, and
    `detectable_twice` the one with twice the samples.
    """

    mean: float
    low: float
    high: float
    p: float
    test: str
    detectable: float | None
    detectable_twice: float | None


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
    """How B differs from A, from the scores of at least one problem, of `k` samples each at the most.

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
    return Difference(mean, low, high, p, "McNemar's exact test" if exact and k == 1 else name, found, twice)


class Design(NamedTuple):
    """How many problems with how many samples each are compared, in how many comparisons."""

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


def beyond(pairs: Sequence[Pair], margin: Fraction) -> float:
    """The p-value of "B is not worse than A by more than `margin`", 1 where the interval does not say so either."""
    values = [pair.after - pair.before + margin for pair in pairs]
    return sign_flip_test(values)[0] if mean_interval(values)[2] < 0 else 1.0


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979, Scandinavian Journal of Statistics 6:65), in the same order."""
    adjusted, running = [0.0] * len(values), 0.0
    for rank, at in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        running = max(running, min(1.0, (len(values) - rank) * values[at]))
        adjusted[at] = running
    return adjusted


# ---- verdicts -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Run B against run A: the problems that both have verdicts on, what came of them, and what to beware of."""

    before: Run
    after: Run
    pairs: list[Pair]
    difference: Difference
    warnings: list[str]
    p_adjusted: float
    name: str = "B"

    @property
    def shown(self) -> bool:
        """Whether there is a difference beyond doubt: the interval and the test agree that it is not 0."""
        return self.p_adjusted < 1 - CONFIDENCE and not self.difference.low <= 0 <= self.difference.high

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
    return Comparison(before, after, pairs, found, misgivings(before, after, name), found.p, name)


def pair_of(name: str, before: dict[str, Any], after: dict[str, Any]) -> Pair:
    """A problem in two runs, from what each says of it."""
    shares = [Fraction(entry["correct"], entry["scored"]) for entry in (before, after)]
    more = [entry["scored"] - 1 for entry in (before, after)]
    noise = sum((s * (1 - s) / m for s, m in zip(shares, more, strict=True)), Fraction(0)) if all(more) else None
    return Pair(name, shares[0], shares[1], noise)


def misgivings(before: Run, after: Run, called: str) -> list[str]:
    """What makes two runs less comparable, a sentence each."""
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
    """What the servers of a run did by their own settings, where the run did not ask for another."""
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
    """How the settings of two runs' servers differ, a sentence each; not their builds, which may be the point."""
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


def verdict(told: Comparison) -> str:
    """What a comparison says, in a sentence or two."""
    found = told.difference
    if told.shown:
        return f"{told.name} is {'worse' if found.mean < 0 else 'better'} than A."
    says = "No difference is shown, which does not mean that there is none"
    if found.detectable is None:
        return f"{says}: so few problems cannot show one."
    if found.p < 1 - CONFIDENCE <= told.p_adjusted and not found.low <= 0 <= found.high:
        return f"{says}: taken by itself the comparison shows one, among so many it is not beyond doubt."
    if not found.low <= 0 <= found.high or told.p_adjusted < 1 - CONFIDENCE:
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
    interval: tuple[float, float]
    kind: str


def claim(run: Run, reference: Fraction, tolerance: Fraction) -> Claim:
    """Hold the accuracy of `run` against `reference`, both proportions; raises ReportError where it has none.

    A reference score is of the same problems, so the resampling interval is the one that counts. With one sample of
    each problem it is not known, and the generalisation interval, which is wider, takes its place.
    """
    summary = run.summary
    if not summary["scored"]:
        raise ReportError(f"{run.path} cannot be held against a reference: none of its tasks has a verdict")
    kind = "resampling" if summary["intervals"]["resampling"] else "generalisation"
    low, high = (summary["intervals"][kind][end] for end in ("low", "high"))
    bar, correct, total = reference * (1 - tolerance), summary["counts"]["correct"], summary["tasks"]
    accuracy, missing = Fraction(correct, summary["scored"]), total - summary["scored"]
    passed = accuracy >= bar
    decided = Fraction(correct, total) >= bar or Fraction(correct + missing, total) < bar or not missing
    supported = None if not decided else True if low >= bar else False if high < bar else None
    ratio = float(accuracy / reference)
    return Claim(run, float(reference), float(bar), ratio, passed if decided else None, supported, (low, high), kind)


def claim_text(told: Claim) -> str:
    """A claim in a sentence or two."""
    summary = told.run.summary
    text = f"{RESULTS[told.passed]}: {percent(summary['accuracy'])} is {told.ratio:.3f} of the reference "
    text += f"{percent(told.reference)} (at least {percent(told.bar)} is asked for), {told.run.size}"
    if summary["scored"] < summary["tasks"]:
        missing = summary["tasks"] - summary["scored"]
        text += f"; {missing} tasks have no verdict, with them it will be {span(*summary['range'])}"
    interval = f"the 95 % {told.kind} interval, {span(*told.interval)}"
    return f"{text}; {CLAIMS[told.supported]}: {interval}"


RESULTS = {True: "pass", False: "fail", None: "undecided"}
CLAIMS = {True: "supported", False: "ruled out", None: "neither supported nor ruled out"}


# ---- numbers as text ------------------------------------------------------------------------------------


class Amount(str):
    """A number as people read it."""

    __slots__ = ()


def percent(proportion: float | None) -> str:
    """0.8 as "80.0 %"."""
    return "-" if proportion is None else f"{100 * proportion:.1f} %"


def points(proportion: float, sign: bool = True) -> str:
    """-0.058 as "-5.8 points", with a real minus sign."""
    text = f"{100 * proportion:+.1f}" if sign else f"{100 * proportion:.1f}"
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
    """What a person calls a run: its file, and its model."""
    return one_line(run.path.stem, 60) + (f" ({one_line(run.model, 60)})" if run.model else "")


def p_values(told: Comparison) -> str:
    """The p-value of a comparison, and what it is among several."""
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
    """Everything in `content`, one after another; what is not Html is escaped."""
    pieces = []
    for piece in content:
        if isinstance(piece, Html):
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


def table(head: Sequence[Content], rows: Iterable[Iterable[Content]]) -> Html:
    """A table; cells that are numbers are set to the right."""
    return table_of(head, (el("tr", *map(cell, row)) for row in rows))


def table_of(head: Sequence[Content], rows: Iterable[Html]) -> Html:
    """A table whose rows are elements already."""
    titles = el("thead", el("tr", *(el("th", title, scope="col") for title in head)))
    return el("div", el("table", titles, el("tbody", *rows)), class_="wide")


def cell(content: Content) -> Html:
    """A cell of a table."""
    return el("td", content, class_="n" if isinstance(content, Amount) else None)


def facts(pairs: Iterable[tuple[str, Content]]) -> Html:
    """A list of names with their values."""
    return el("dl", *(el("div", el("dt", name), el("dd", value)) for name, value in pairs))


def link_to(task_id: str) -> str:
    """The link that opens a task in the page."""
    return "#" + quote(printable(task_id), safe="/#:,@!$&'()*+;=~", errors="replace")


def badge(status: str, *content: Content) -> Html:
    """A status with its mark and colour."""
    return el("span", el("b", MARKS[status]), " ", *(content or (words(status),)), class_=f"badge {status}")


def words(status: str) -> str:
    """A status as a person reads it."""
    return status.replace("_", " ")


# ---- mathematics ----------------------------------------------------------------------------------------

FORMULA_LENGTH = 3000  # characters; what is longer is shown as its source
FORMULA = re.compile(
    r"\$\$(?P<display>.{1,LENGTH}?)\$\$"
    r"|\\\[(?P<bracket>.{1,LENGTH}?)\\\]"
    r"|\\\((?P<inline>.{1,LENGTH}?)\\\)"
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
    """Whether what stands between two dollar signs is mathematics, rather than two amounts of money.

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
        tree = converter(source.replace("\\allowbreak", ""), display=display)
    except Exception:  # noqa: BLE001 - whatever the library stumbles over, the source can be shown
        return None
    return rebuilt(tree)


@functools.cache
def formula_converter() -> Callable[..., ElementTree.Element] | None:
    """What makes MathML, or None where latex2mathml is not installed."""
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
    """An SVG picture that says what it shows to those who do not see it."""
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


QUESTIONS = {"generalisation": "on new problems like these", "resampling": "on these, asked again"}
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
    """How often which amount of `unit` was taken, a row for each status, all on one scale."""
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
    """When nothing was at work for longer than a minute, as between a run and its resumption."""
    found = []
    until = math.inf
    for sample in sorted(samples, key=lambda sample: sample.started or 0):
        if (sample.started or 0) - until > 60:
            found.append((until, sample.started or 0))
        until = max(sample.finished or 0, until if until < math.inf else 0)
    return found


def timeline(run: Run) -> Html | None:
    """When each task was at work, by endpoint; pauses of the run are left out. None where no times are known."""
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


# ---- compressed texts -----------------------------------------------------------------------------------

# Several texts are compressed as one, samples of a problem side by side: bzip2 sorts up to 900,000 bytes at a time.
# What a browser can unpack by itself, deflate, looks back over 32 KB only and makes up to a quarter more of them.
BLOCK = 880_000


class Shelf:
    """Texts, compressed for a page that unpacks them when they are asked for.

    `put` returns where a text will be; `blocks` are elements to be put at the end of the page.
    """

    def __init__(self) -> None:
        self.groups: list[list[bytes]] = []
        self.room = 0

    def put(self, detail: object) -> dict[str, str]:
        """Add the JSON of `detail`; returns the attributes that tell the page's script where it is."""
        text = json.dumps(detail, ensure_ascii=False).encode("utf-8", "replace")
        if len(text) > self.room:
            self.groups.append([])
            self.room = BLOCK
        self.groups[-1].append(text)
        self.room -= len(text) + 1
        return {"data_block": str(len(self.groups) - 1), "data_line": str(len(self.groups[-1]) - 1)}

    def blocks(self) -> Iterator[Html]:
        """The elements that hold the texts, one for each group of them."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for at, packed in enumerate(pool.map(pack, self.groups)):
                yield Html(f'<script type="application/octet-stream" id="block-{at}">{packed}</script>\n')


def pack(group: list[bytes]) -> str:
    """Texts as the base64 of bzip2, one in a line."""
    return base64.b64encode(bz2.compress(b"\n".join(group), 9)).decode("ascii")


# ---- style ----------------------------------------------------------------------------------------------

# The colours of the statuses are those of Okabe and Ito 2008, "Color Universal Design", which people with any kind of
# colour blindness can tell apart; each status has a mark besides.
STYLE = """
:root { color-scheme: light dark; --ground: #fff; --panel: #f5f6f7; --ink: #1c1e21; --faint: #5c6168; --rule: #d8dbdf;
  --link: #0b57a4; --correct: #009e73; --incorrect: #d55e00; --no_answer: #e69f00; --truncated: #cc79a7;
  --ungraded: #56b4e9; --error: #3d4148; --pending: #c9ccd1; }
@media (prefers-color-scheme: dark) { :root { --ground: #15171a; --panel: #1e2125; --ink: #e4e6e9; --faint: #9aa1a9;
  --rule: #363b42; --link: #7fb8f2; --error: #e4e6e9; --pending: #4a4f57; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 5rem; max-width: 64rem; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.35rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.5rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
a { color: var(--link); } p { margin: .4rem 0; } .faint, dt, .hint { color: var(--faint); }
.headline { font-size: 3rem; line-height: 1.15; font-weight: 650; margin: 1rem 0 .2rem;
  font-variant-numeric: tabular-nums; }
.chart { width: 100%; min-width: 42rem; height: auto; display: block; }
.chart text { fill: var(--ink); font-size: 12px; } .chart text.faint { fill: var(--faint); }
.chart text.strong { font-size: 15px; font-weight: 600; } section { scroll-margin-top: 7rem; }
h1, h2, h3, summary { overflow-wrap: anywhere; } .chart.intervals, .chart.difference { min-width: 28rem; }
td, dd, pre, .badge, summary span { unicode-bidi: isolate; } td.n { text-align: right; padding-right: 1.2rem; }
input::placeholder { color: var(--faint); opacity: 1; }
button.none b { opacity: .5; }
.rule { stroke: var(--rule); } .axis, .whisker { stroke: var(--faint); } .pause { stroke: var(--ink);
  stroke-dasharray: 3 3; }
.accuracy { stroke: var(--ink); stroke-width: 2.5; } .dot { fill: var(--ink); }
.undetectable { fill: var(--pending); } .interval { fill: #0072b2; } .interval.resampling { fill: #56b4e9; }
rect.correct { fill: var(--correct); } rect.incorrect { fill: var(--incorrect); }
rect.no_answer { fill: var(--no_answer); } rect.truncated { fill: var(--truncated); }
rect.ungraded { fill: var(--ungraded); } rect.error { fill: var(--error); } rect.pending { fill: var(--pending); }
.cell, .badge b { color: #000; background: var(--pending); }
.cell.correct, .badge.correct b { background: var(--correct); }
.cell.incorrect, .badge.incorrect b { background: var(--incorrect); }
.cell.no_answer, .badge.no_answer b { background: var(--no_answer); }
.cell.truncated, .badge.truncated b { background: var(--truncated); }
.cell.ungraded, .badge.ungraded b { background: var(--ungraded); }
.cell.error, .badge.error b { background: var(--error); color: var(--ground); }
.cell.pending, .badge.pending b { color: var(--ink); }
.badge { overflow-wrap: anywhere; } .badge b { display: inline-block; width: 1.35em; text-align: center;
  border-radius: .25em; font-weight: 600; }
.controls { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; position: sticky; top: 0; z-index: 1;
  background: var(--ground); padding: .6rem 0; border-bottom: 1px solid var(--rule); }
button, input { font: inherit; color: inherit; background: var(--panel); border: 1px solid var(--rule);
  border-radius: .4rem; padding: .25rem .6rem; } button { cursor: pointer; }
button[aria-pressed=true] { border-color: var(--ink); box-shadow: inset 0 0 0 1px var(--ink); }
input[type=search] { flex: 1 1 12rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(var(--row), 1fr)); gap: .2rem 1rem; }
.k1 { --row: 7rem; } .k8 { --row: 17rem; } .many { --row: 100%; }
.grid div { display: flex; flex-wrap: wrap; align-items: baseline; gap: 2px; }
.grid .cells { display: flex; flex-wrap: wrap; gap: 2px; flex: 1; }
.dense { display: flex; flex-wrap: wrap; gap: 2px; }
.grid .name { flex: 0 0 4.5rem; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; font-size: .85rem; }
.cell { width: 1.35rem; height: 1.35rem; line-height: 1.35rem; text-align: center; border-radius: .25rem;
  text-decoration: none; font-size: .85rem; }
.cell.out { opacity: .15; } a:focus-visible, button:focus-visible { outline: 2px solid var(--link);
  outline-offset: 1px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { font-weight: 600; color: var(--faint); font-size: .85rem; }
dl { margin: 0; display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); gap: .3rem 1.5rem; }
dl div { display: flex; gap: .8rem; min-width: 0; } dt { flex: 0 0 8rem; } dd { margin: 0; overflow-wrap: anywhere;
  min-width: 0; white-space: pre-wrap; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .4rem 0; padding: .7rem .9rem; background: var(--panel);
  border-radius: .4rem; font: 13px/1.5 ui-monospace, monospace; }
details { border-bottom: 1px solid var(--rule); padding: .3rem 0; } summary { cursor: pointer; }
.question { white-space: pre-wrap; overflow-wrap: anywhere; margin: .5rem 0; } math { font-size: 1.08em; }
.long { content-visibility: auto; contain-intrinsic-size: auto 20rem; }
.warning { border-left: .3rem solid var(--incorrect); padding-left: .7rem; }
p.printed { display: none; } .votes { margin-left: .6rem; }
.verdict { font-size: 1.15rem; font-weight: 600; }
dialog { width: min(72rem, 96vw); max-height: 92vh; padding: 0; border: 1px solid var(--rule); border-radius: .6rem;
  background: var(--ground); color: var(--ink); }
dialog::backdrop { background: #0008; }
dialog header { position: sticky; top: 0; display: flex; gap: .5rem; align-items: center; padding: .7rem 1rem;
  background: var(--ground); border-bottom: 1px solid var(--rule); } dialog h2 { margin: 0; flex: 1;
  overflow-wrap: anywhere; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1.5rem; }
.columns > * { min-width: 0; } .body:focus { outline: none; } .body { padding: 0 1rem 1.5rem; }
@media (max-width: 40rem) { .controls { position: static; } section { scroll-margin-top: 0; }
  dl, .columns { grid-template-columns: 1fr; } }
@media print { body { max-width: none; padding: 0; font-size: 11px; } .controls, .hint, dialog { display: none; }
  section, .grid div, svg { break-inside: avoid; } section.long { break-inside: auto; content-visibility: visible; }
  .tasks { display: none; } p.printed { display: block; }
  .chart { min-width: 0; } * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""

# ---- unpacking ------------------------------------------------------------------------------------------

# The format as it is described in Julian Seward's bzip2 and in Wikipedia's article on it; its checksums are not looked
# at, since what it reads is in the same file as the script.
UNPACKING = r"""
function unbzip2(input) {
  let at = 4, held = 0, count = 0; // after "BZh9"
  const bits = (n) => {
    while (count < n) { held = ((held << 8) | input[at++]) >>> 0; count += 8; }
    count -= n;
    const value = (held >>> count) & ((1 << n) - 1);
    held &= (1 << count) - 1;
    return value;
  };
  const pieces = [];
  while (bits(24) === 0x314159) {
    bits(24); bits(16); bits(16); bits(1); // the rest of the mark, the checksum, "randomised"
    pieces.push(unrun(unsort(...entropy(bits, bits(24)))));
  }
  const whole = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let end = 0;
  for (const piece of pieces) { whole.set(piece, end); end += piece.length; }
  return whole;
}

function entropy(bits, origin) {
  const used = [];
  const map = bits(16);
  for (let high = 0; high < 16; high++) {
    if (!(map & (0x8000 >> high))) continue;
    const part = bits(16);
    for (let low = 0; low < 16; low++) if (part & (0x8000 >> low)) used.push(16 * high + low);
  }
  const groups = bits(3), selectors = new Uint8Array(bits(15)), order = [...Array(groups).keys()];
  for (let i = 0; i < selectors.length; i++) {
    let j = 0;
    while (bits(1)) j++;
    order.unshift(...order.splice(j, 1));
    selectors[i] = order[0];
  }
  const symbols = used.length + 2, tables = [];
  for (let group = 0; group < groups; group++) tables.push(huffman(bits, symbols));
  const sorted = new Uint8Array(900000), front = Uint8Array.from(used), end = symbols - 1;
  let size = 0, run = 0, weight = 1;
  for (let i = 0; ; i++) {
    const table = tables[selectors[Math.floor(i / 50)]];
    let length = table.least, code = bits(length);
    while (code > table.limit[length]) { code = (code << 1) | bits(1); length++; }
    const symbol = table.symbols[code - table.first[length]];
    if (symbol < 2) { run += weight << symbol; weight <<= 1; continue; }
    if (run) { sorted.fill(front[0], size, size += run); run = 0; weight = 1; }
    if (symbol === end) return [sorted.subarray(0, size), origin];
    const byte = front[symbol - 1];
    front.copyWithin(1, 0, symbol - 1);
    front[0] = byte;
    sorted[size++] = byte;
  }
}

function huffman(bits, symbols) {
  const lengths = [];
  let length = bits(5);
  for (let i = 0; i < symbols; i++) {
    while (bits(1)) length += bits(1) ? -1 : 1;
    lengths.push(length);
  }
  const table = {least: Math.min(...lengths), limit: [], first: [], symbols: []};
  let code = 0;
  for (let n = table.least; n <= 21; n++) {
    table.first[n] = code - table.symbols.length;
    lengths.forEach((given, symbol) => { if (given === n) table.symbols.push(symbol), code++; });
    table.limit[n] = code - 1;
    code <<= 1;
  }
  return table;
}

function unsort(sorted, origin) {
  const starts = new Int32Array(257), next = new Int32Array(sorted.length), output = new Uint8Array(sorted.length);
  for (const byte of sorted) starts[byte + 1]++;
  for (let byte = 0; byte < 256; byte++) starts[byte + 1] += starts[byte];
  for (let i = 0; i < sorted.length; i++) next[starts[sorted[i]]++] = i;
  for (let i = 0, at = next[origin]; i < output.length; i++, at = next[at]) output[i] = sorted[at];
  return output;
}

function unrun(bytes) { // four equal bytes are followed by how many more there are
  let size = 0, same = 0;
  for (let i = 0; i < bytes.length; i++) {
    if (same === 4) { size += bytes[i]; same = 0; continue; }
    same = same && bytes[i] === bytes[i - 1] ? same + 1 : 1;
    size++;
  }
  const output = new Uint8Array(size);
  same = size = 0;
  for (let i = 0; i < bytes.length; i++) {
    if (same === 4) { output.fill(bytes[i - 1], size, size += bytes[i]); same = 0; continue; }
    same = same && bytes[i] === bytes[i - 1] ? same + 1 : 1;
    output[size++] = bytes[i];
  }
  return output;
}
"""

# ---- script ---------------------------------------------------------------------------------------------

# What is shown of a response goes into the page as textContent only.
SCRIPT = (
    '"use strict";'
    + UNPACKING
    + r"""
const unpacked = new Map(); // the blocks opened last, so that j and k do not unpack one again and again
function details(row) {
  const name = row.dataset.block;
  if (!unpacked.has(name)) {
    const packed = atob(document.getElementById("block-" + name).textContent);
    const bytes = unbzip2(Uint8Array.from(packed, (character) => character.charCodeAt(0)));
    if (unpacked.size > 3) unpacked.delete(unpacked.keys().next().value);
    unpacked.set(name, new TextDecoder().decode(bytes).split("\n"));
  }
  return JSON.parse(unpacked.get(name)[Number(row.dataset.line)]);
}

const rows = [...document.querySelectorAll("[data-block]")], byId = new Map(rows.map((row) => [row.dataset.id, row]));
const dialog = document.querySelector("dialog"), search = document.querySelector("input[type=search]");
const chips = [...document.querySelectorAll("button[data-status]")], cells = [...document.querySelectorAll("a.cell")];
const questions = new Map([...document.querySelectorAll("[data-question]")].map((q) => [q.dataset.question, q]));
const told = new Map(rows.map((row) => // what the search looks at
  [row, [...row.querySelectorAll("td:not(.n, .where)")].map((cell) => cell.textContent).join("\n").toLowerCase()]));
const counter = document.getElementById("shown");
let naming = 0; // browsers allow few changes of the address a second, fewer than a held key makes
let shown = rows, current = null, within = null; // what a search of the texts has found, if there was one

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function filter() {
  const wanted = chips.filter((chip) => chip.getAttribute("aria-pressed") === "true").map((c) => c.dataset.status);
  const text = search ? search.value.trim().toLowerCase() : "";
  const holds = (row) => told.get(row).includes(text)
    || (questions.get(row.dataset.problem)?.textContent.toLowerCase().includes(text) ?? false)
    || (within?.has(row) ?? false);
  shown = rows.filter((row) => (!wanted.length || wanted.includes(row.dataset.status)) && (!text || holds(row)));
  const kept = new Set(shown);
  for (const row of rows) row.hidden = !kept.has(row);
  for (const cell of cells) cell.classList.toggle("out", !kept.has(byId.get(cell.dataset.id)));
  if (counter) counter.textContent = `${shown.length} of ${rows.length} tasks`;
}

async function searchTexts() {
  const text = search.value.trim().toLowerCase(), found = within = new Set();
  let done = 0, paused = performance.now();
  for (const row of text ? rows : []) {
    if (textsOf(row).some((body) => body.toLowerCase().includes(text))) found.add(row);
    done++;
    if (performance.now() - paused < 100) continue;
    counter.textContent = `${done} of ${rows.length} searched`;
    await new Promise((resolve) => { setTimeout(resolve); });
    if (within !== found) return; // something else is searched for by now
    paused = performance.now();
  }
  filter();
}

function textsOf(row) {
  try {
    return details(row).flatMap((told) => told.texts).filter((text) => text[3]).map((text) => text[1]);
  } catch { return []; } // the file is damaged, which opening the task says
}

function column(told) {
  const element = make("div");
  if (told.title) element.append(make("h3", told.title));
  const list = make("dl");
  for (const [name, value] of told.facts) {
    const pair = make("div");
    pair.append(make("dt", name), make("dd", value));
    list.append(pair);
  }
  element.append(list);
  for (const [title, text, open] of told.texts) {
    const part = make("details");
    part.open = open !== "";
    part.append(make("summary", title), make("pre", text));
    element.append(part);
  }
  return element;
}

function open(id) {
  const row = byId.get(id);
  if (!row) return;
  current = row;
  const body = dialog.querySelector(".body");
  body.replaceChildren();
  dialog.querySelector("h2").textContent = id;
  const question = questions.get(row.dataset.problem);
  if (question) {
    const copy = question.cloneNode(true);
    copy.removeAttribute("data-question");
    body.append(copy);
  }
  const columns = make("div", undefined, "columns");
  try {
    columns.append(...details(row).map(column));
  } catch (error) {
    columns.append(make("p", `This task cannot be shown: the file is damaged (${error.message}).`));
  }
  body.append(columns);
  const address = "#" + encodeURI(id);
  clearTimeout(naming);
  if (dialog.open) naming = setTimeout(() => history.replaceState(history.state, "", address), 150);
  else if (location.hash) history.replaceState(history.state, "", address);
  else history.pushState("opened", "", address); // so that the browser's way back closes the task
  if (!dialog.open) dialog.showModal();
  body.focus();
  dialog.scrollTop = 0;
}

function follow(address) {
  let id = address.slice(1);
  try { id = decodeURIComponent(id); } catch { /* it is not encoded */ }
  if (byId.has(id)) open(id);
  else if (dialog.open) dialog.close();
}

function step(by) {
  const at = shown.indexOf(current);
  const next = shown[at < 0 ? 0 : Math.min(Math.max(at + by, 0), shown.length - 1)];
  if (next) open(next.dataset.id);
}

for (const chip of chips) chip.addEventListener("click", () => {
  chip.setAttribute("aria-pressed", String(chip.getAttribute("aria-pressed") !== "true"));
  filter();
});
if (search) search.addEventListener("input", () => { within = null; filter(); });
for (const button of dialog.querySelectorAll("button")) {
  button.addEventListener("click", () => button.dataset.step ? step(Number(button.dataset.step)) : dialog.close());
}
dialog.addEventListener("close", () => {
  clearTimeout(naming);
  if (!location.hash) return;
  if (history.state === "opened") history.back();
  else history.replaceState(null, "", location.pathname + location.search);
});
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
document.addEventListener("click", (event) => { // also when the address names that task already
  const link = event.target.closest("a[href^='#']");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  follow(link.getAttribute("href"));
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === search) {
    if (event.key === "Escape") { search.value = ""; search.blur(); within = null; filter(); }
    if (event.key === "Enter") searchTexts();
    return;
  }
  if (event.key === "j") step(1);
  if (event.key === "k") step(-1);
  if (event.key === "/" && search && !dialog.open) { event.preventDefault(); search.focus(); }
});
window.addEventListener("popstate", () => follow(location.hash));
window.addEventListener("DOMContentLoaded", () => { filter(); follow(location.hash); });

const every = Number(document.body.dataset.watch); // while the run goes on, and nobody is in the middle of something
if (every) setInterval(() => { if (!dialog.open && shown.length === rows.length) location.reload(); }, 1000 * every);
"""
)


# ---- page -----------------------------------------------------------------------------------------------


def page(title: str, content: Content, shelf: Shelf, reload_seconds: float | None = None) -> Iterator[str]:
    """A whole page, piece by piece; with a dialog that shows what is on the `shelf`.

    Its policy allows nothing to be loaded and nothing to run but the one script, whatever else is in the page.
    """
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (STYLE, SCRIPT)]
    policy = f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'"
    policy += "; base-uri 'none'; form-action 'none'"
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="generator", content=f"llama-eval-report {VERSION}"),
        el("title", title),
        el("style", Html(STYLE)),
    )
    yield f'<!doctype html>\n<html lang="en">{head}\n'
    yield f'<body data-watch="{reload_seconds:g}">\n' if reload_seconds else "<body>\n"
    yield markup(content)
    yield el("dialog", dialog_head(), el("div", class_="body", tabindex="-1"), aria_label="A task")
    yield f"\n<script>{SCRIPT}</script>\n"
    yield from shelf.blocks()
    yield "</body></html>\n"


def dialog_head() -> Html:
    """The title of what the dialog shows, and where to go from there."""
    buttons = [
        el("button", "← k", type="button", data_step="-1", aria_label="previous task"),
        el("button", "j →", type="button", data_step="1", aria_label="next task"),
        el("button", "close", type="button"),
    ]
    return el("header", el("h2"), *buttons)


def section(title: str, *content: Content, class_: str | None = None) -> Html:
    """A part of the page with its heading."""
    return el("section", el("h2", title), *content, class_=class_)


def controls(statuses: dict[str, int], total: int) -> Html:
    """What narrows the tasks that are shown: a button for each status, and a search."""
    buttons = [
        el(
            "button",
            badge(status, f"{number} {words(status)}"),
            type="button",
            data_status=status,
            aria_pressed="false",
            class_=None if number else "none",
        )
        for status, number in statuses.items()
        if number or status != "pending"
    ]
    search = el(
        "input",
        type="search",
        placeholder="search (Enter: in responses, too)",
        aria_label="search",
    )
    return el("div", *buttons, search, el("span", f"{total} tasks", id="shown", class_="faint"), class_="controls")


def told_sample(run: Run, sample: Sample, title: str = "") -> dict[str, Any]:
    """What is to be read about a task: facts with their names, and texts with their titles, open or closed."""
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


# ---- run page -------------------------------------------------------------------------------------------


def run_page(run: Run, reload_seconds: float | None = None) -> Iterator[str]:
    """The page of a run."""
    shelf = Shelf()
    tasks = task_table(run, shelf)
    tokens, seconds = (by_status(run, name) for name in ("tokens", "seconds"))
    content = [
        headline(run),
        controls(run.summary["counts"], len(run.samples)),
        section("Every sample", grid(run)),
        section("Problems", accuracy_chart(run)) if run.summary["scored"] else None,
        review(run),
        section("Tokens", histogram("tokens", tokens)) if tokens else None,
        section("Time", histogram("seconds", seconds) if seconds else None, timeline(run)),
        section("Questions and votes", votes(run), class_="long"),
        section("Tasks", tasks, class_="long tasks"),
        section("Settings and provenance", settings(run)),
    ]
    title = f"{run.dataset.get('name')}: {percent(run.summary['accuracy'])}, {label(run)}"
    return page(title, el("main", *content), shelf, reload_seconds)


def by_status(run: Run, name: str) -> dict[str, list[float]]:
    """What the responses of each outcome took of `name`, "tokens" or "seconds", as far as it is known."""
    table: dict[str, list[float]] = {}
    for status in (*SCORED, "ungraded"):
        for sample in run.samples:
            value = getattr(sample, name)
            if sample.status == status and value is not None:
                table.setdefault(status, []).append(value)
    return table


def headline(run: Run) -> Html:
    """The accuracy, how sure it is, and the figures over several samples."""
    summary = run.summary
    said: list[Content] = [el("h1", f"{run.dataset.get('name')}, {run.size}: {label(run)}")]
    said.append(el("p", ", ".join(filter(None, in_short(run))), class_="faint"))
    if summary["accuracy"] is None:
        said.append(el("p", "No task has a verdict yet.", class_="headline"))
    else:
        of = f" {summary['counts']['correct']} of {summary['scored']}"
        said += [el("div", percent(summary["accuracy"]), el("small", of, class_="faint"), class_="headline")]
        said += [interval_chart(summary), el("p", interval_words(summary), class_="faint")]
    if summary["scored"] < summary["tasks"]:
        missing = f"Without a verdict: {summary['tasks'] - summary['scored']} tasks. Once all have one, the accuracy "
        said.append(
            el("p", missing, f"will be between {' and '.join(map(percent, summary['range']))}.", class_="warning")
        )
        why = Counter(
            one_line(s.error or s.grade.get("explanation") or "") for s in run.samples if s.status in UNSCORED
        )
        said += [el("p", f"{times} × {reason}", class_="warning") for reason, times in why.most_common(5) if reason]
    if run.unsaved:
        more = f"Finished, but so far only in the journal: {run.unsaved} more tasks. The run adds them when it saves "
        said.append(el("p", more, "its state, or when it is continued.", class_="warning"))
    counts = [badge(status, f"{number} {words(status)}") for status, number in summary["counts"].items()]
    said.append(el("p", *joined(counts, "  "), class_="printed"))
    if summary["k"] > 1 and summary["avg_at_k"] is not None:
        said.append(el("p", samples_text(summary)))
    return el("header", *said)


def in_short(run: Run) -> list[str]:
    """What was run, in a few words: what the servers loaded, how it was asked, when."""
    loaded = {str(as_object(endpoint.get("props")).get("model_path") or "") for endpoint in run.endpoints}
    kinds = {str(as_object(endpoint.get("props")).get("model_ftype") or "") for endpoint in run.endpoints}
    asked = [f"{name.replace('_', ' ')} {brief(v)}" for name, v in run.sampling.items() if v not in (None, {})]
    return [*sorted(one_line(file.rpartition("/")[2], 80) for file in loaded), *sorted(kinds), *asked, run.created[:10]]


def interval_words(summary: dict[str, Any]) -> str:
    """What the intervals are called, and what for."""
    general = "95 % intervals. Generalisation: where the accuracy on new problems of this kind lies"
    if not summary["intervals"]["resampling"]:
        return f"{general}; how it varies from sample to sample is not known from one sample of each problem."
    return f"{general}. Resampling: where it lies when these very problems are asked again."


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


def joined(pieces: Iterable[Content], between: str) -> list[Content]:
    """`pieces` with `between` them."""
    return [part for piece in pieces for part in (between, piece)][1:]


DENSE = 200  # problems with one sample each, beyond which their names only take up room


def grid(run: Run) -> Html:
    """A row for each problem with a cell for each of its samples, which opens it."""
    k = run.summary["k"]
    if k == 1 and len(run.problems) > DENSE:
        return el(
            "div", *(sample_cell(sample) for samples in run.by_problem.values() for sample in samples), class_="dense"
        )
    rows = []
    for name, samples in run.by_problem.items():
        title = el("span", name, class_="name", title=name)
        rows.append(el("div", title, el("span", *map(sample_cell, samples), class_="cells")))
    return el("div", *rows, class_=f"grid {'k1' if k == 1 else 'k8' if k <= 8 else 'many'}")


def sample_cell(sample: Sample) -> Html:
    """A cell of the grid, with the mark and the colour of its status."""
    answered = f", {one_line(sample.answer, 40)}" if sample.answer else ""
    return el(
        "a",
        MARKS[sample.status],
        href=link_to(sample.id),
        class_=f"cell {sample.status}",
        data_id=sample.id,
        title=f"{sample.id}: {words(sample.status)}{answered}",
    )


def review(run: Run) -> Html | None:
    """The tasks that a person should look at, by the reason why."""
    if not run.review:
        return None
    reasons: dict[str, list[str]] = {}
    for entry in run.review:
        reasons.setdefault(entry["reason"], []).append(entry["task"])
    rows = (
        [el("b", reason), str(len(tasks)), joined([el("a", task, href=link_to(task)) for task in tasks], ", ")]
        for reason, tasks in reasons.items()
    )
    return section(f"To be reviewed ({len(run.review)})", table(("why", "tasks", "which"), rows), class_="review")


def votes(run: Run) -> list[Html]:
    """Each problem: its question, and which answers its samples gave how often."""
    shown = []
    for entry in run.problems:
        samples = run.by_problem[entry["problem"]]
        right = {sample.answer for sample in samples if sample.status == "correct"}
        rows: list[tuple[Html, str]] = [
            (badge("correct" if answer in right else "incorrect", one_line(answer, 200)), str(count))
            for answer, count in entry["answers"]
        ]
        silent = Counter(sample.status for sample in samples if sample.answer is None)
        rows += [(badge(status), str(count)) for status, count in silent.items()]
        short = [el("span", vote, f" × {count}" if count != "1" else None, class_="votes") for vote, count in rows[:6]]
        score = f"{entry['correct']} of {entry['scored']}" if entry["scored"] else "no verdict"
        majority = "" if entry["majority"] is None else f", majority {percent(entry['majority'])}"
        between = f" ({span(*entry['interval'])})" if entry["interval"] else ""
        shown.append(
            el(
                "details",
                el("summary", entry["problem"], el("span", f": {score}{between}{majority}", class_="faint"), short),
                el("div", with_formulas(samples[0].question), class_="question", data_question=entry["problem"]),
                el("p", f"expected {samples[0].expected}"),
                table(("answer", "votes"), rows),
            )
        )
    return shown


def task_table(run: Run, shelf: Shelf) -> Html:
    """A row for each task, problem by problem, whose texts are put on the `shelf`."""
    rows = []
    for samples in run.by_problem.values():
        for sample in samples:
            cells = [
                el("a", sample.id, href=link_to(sample.id)),
                badge(sample.status),
                "-" if sample.answer is None else one_line(sample.answer, 60),
                one_line(sample.expected, 60),
                amount(sample.tokens),
                amount(sample.seconds),
            ]
            known = {"data_id": sample.id, "data_status": sample.status, "data_problem": sample.problem}
            where = el("td", one_line(sample.endpoint, 60), class_="where")
            rows.append(el("tr", *map(cell, cells), where, **known, **shelf.put([told_sample(run, sample)])))
    head = ("task", "status", "answer", "expected", "tokens", "seconds", "endpoint")
    return markup(el("p", HINT, class_="hint"), table_of(head, rows))


HINT = "j and k go to the next and the previous task that is shown, / to the search, Esc closes."


def settings(run: Run) -> list[Content]:
    """Everything that it takes to understand the figures, or to have them again."""
    known: list[tuple[str, Content]] = [
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
    ]
    if all(value in (None, {}) for value in run.sampling.values()):
        known.append(("sampling", "the server's defaults"))
    for endpoint in run.endpoints:
        known.append(("endpoint", f"{endpoint.get('url')}: {endpoint_text(endpoint)}"))
    prompt = str(run.prompt.get("template") or "")
    system = run.prompt.get("system")
    more: list[Content] = [el("h3", "Prompt"), el("pre", "\n", prompt)]
    if system:
        more += [el("h3", "System prompt"), el("pre", "\n", str(system))]
    return [facts(known), *more]


def tokens_text(summary: dict[str, Any]) -> str:
    """The tokens of a run, as far as they are known."""
    told, responses = summary["responses_with_token_counts"], summary["responses"]
    text = f"{amount(summary['completion_tokens'])} generated from {amount(summary['prompt_tokens'])} of prompt"
    return text if told == responses else f"{text}, told for {told} of {responses} responses"


def endpoint_text(endpoint: dict[str, Any]) -> str:
    """What a server said of itself when the run was begun."""
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
    """What a server told, if it is an object; servers that are not llama-server may tell anything."""
    return value if isinstance(value, dict) else {}


# ---- comparison page ------------------------------------------------------------------------------------


def comparison_page(runs: Sequence[Run], comparisons: Sequence[Comparison], claims: Sequence[Claim]) -> Iterator[str]:
    """The page of the comparisons of the first of the runs with the others, and of their claims to a reference."""
    shelf = Shelf()
    changed = {pair.problem for told in comparisons for pair in told.changed}
    tasks = side_by_side(runs, changed, shelf)
    table_tasks = [el("p", HINT, class_="hint"), table_of(("task", "expected", "A", *letters(runs)), tasks)]
    title = f"{', '.join(map(label, runs[1:]))} against {label(runs[0])}"
    title = f"{runs[0].dataset.get('name')}: {title}" if comparisons else f"{label(runs[0])} against the reference"
    content = [
        el("header", el("h1", title)),
        *map(difference_section, comparisons),
        section("Against the reference", table(*claim_rows(claims))) if claims else None,
        section("The runs side by side", runs_table(runs)),
        section("Tasks of the problems that changed", controls({}, len(tasks)), table_tasks) if changed else None,
        section(
            "Questions",
            *map(question_of, [runs[0].by_problem[name][0] for name in runs[0].by_problem if name in changed]),
        )
        if changed
        else None,
        section("Settings", *(el("details", el("summary", label(run)), settings(run)) for run in runs)),
    ]
    return page(title, el("main", *content), shelf)


def runs_table(runs: Sequence[Run]) -> Html:
    """What the runs are and took, a column for each; lines in which they differ are marked."""
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
    marked = ([el("b", name) if len(set(values)) > 1 else name, *map(str, values)] for name, values in lines.items())
    return table(("", "A", *letters(runs)), marked)


def letters(runs: Sequence[Run]) -> list[str]:
    """What all runs but the first are called."""
    return [name for _, name in zip(runs[1:], names(), strict=False)]


def names() -> Iterator[str]:
    """B, C, ..., Z, AA, AB, ... of the runs that are compared with A."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    singles = iter(alphabet[1:])
    longer = itertools.chain.from_iterable(itertools.product(alphabet, repeat=n) for n in itertools.count(2))
    return itertools.chain(singles, map("".join, longer))


def difference_section(told: Comparison) -> Html:
    """One comparison: its verdict, figures and chart, what to beware of, and the problems that flipped."""
    found, name = told.difference, told.name
    figures = facts(
        [
            ("difference", f"{name} − A = {points(found.mean)}"),
            ("mean scores", f"A {percent(told.means[0])}, {name} {percent(told.means[1])}"),
            ("95 % interval", f"{points_span(found.low, found.high)}"),
            ("p-value", f"{p_values(told)} ({found.test})"),
            ("detectable", "-" if found.detectable is None else f"about {points(found.detectable, sign=False)}"),
            ("problems", f"{len(told.pairs)}, of which {len(told.changed)} have another score"),
        ]
    )
    sentence = verdict(told)
    warned = [el("p", warning, class_="warning") for warning in told.warnings]
    heading = f"{name}: {label(told.after)} against A: {label(told.before)}"
    changes: list[Content] = [el("p", "Every problem has the same score in both.")]
    if told.changed:
        title = f"Problems with another score ({len(told.changed)}), of which {len(told.flipped)} flipped"
        rows = (change_row(told, pair) for pair in told.changed)
        changes = [el("h3", title), table(("problem", "expected", "A", name, f"{name} − A", ""), rows)]
    picture = difference_chart(found, name)
    return section(heading, el("p", sentence, class_="verdict"), picture, figures, *warned, *changes)


def change_row(told: Comparison, pair: Pair) -> list[Content]:
    """A problem with the answers that both runs gave, and whether it flipped."""
    lost = pair.after < pair.before
    flipped = badge("incorrect" if lost else "correct", "lost" if lost else "gained") if pair in told.flipped else None
    return [
        el("a", pair.problem, href=link_to(telling_sample(told, pair).id)),
        told.before.by_problem[pair.problem][0].expected,
        f"{percent(float(pair.before))}: {answers_text(told.before, pair.problem)}",
        f"{percent(float(pair.after))}: {answers_text(told.after, pair.problem)}",
        Amount(points(float(pair.after - pair.before))),
        flipped,
    ]


def telling_sample(told: Comparison, pair: Pair) -> Sample:
    """The sample that shows best what became of a problem: the first that changed in its direction."""
    both = zip(told.before.by_problem[pair.problem], told.after.by_problem[pair.problem], strict=False)
    better = "after" if pair.after > pair.before else "before"
    for before, after in both:
        right, wrong = (after, before) if better == "after" else (before, after)
        if right.status == "correct" != wrong.status:
            return before
    return told.before.by_problem[pair.problem][0]


def difference_chart(found: Difference, name: str) -> Html:
    """The difference with its interval, and between which it could not be told from none."""
    reach = max(abs(found.low), abs(found.high), found.detectable or 0, 0.02) * 1.15
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
    marks.append(box((x(found.low), 14), x(found.high) - x(found.low), 14, "interval", "95 % interval"))
    marks += [line(x(0), 2, x(0), 54, "axis"), line(x(found.mean), 10, x(found.mean), 32, "accuracy")]
    description = f"{points(found.mean)}, 95 % interval {points_span(found.low, found.high)}"
    return chart(f"difference-{name}", f"{name} − A in points of accuracy", description, 76, *marks)


def side_by_side(runs: Sequence[Run], changed: set[str], shelf: Shelf) -> list[Html]:
    """A row for each sample of the problems that changed, which opens the responses of all runs side by side."""
    rows = []
    tables = [{(sample.problem, sample.number): sample for sample in run.samples} for run in runs]
    for name in (name for name in runs[0].by_problem if name in changed):
        for number in sorted({number for samples in tables for problem, number in samples if problem == name}):
            found = [samples.get((name, number)) for samples in tables]
            told = [told_sample(run, s, label(run)) for run, s in zip(runs, found, strict=True) if s]
            first = next(s for s in found if s)
            cells: list[Content] = [el("a", first.id, href=link_to(first.id)), first.expected]
            cells += [
                [badge(s.status), f" {one_line(s.answer, 40)}" if s.answer else None] if s else "-" for s in found
            ]
            known = {"data_id": first.id, "data_problem": name}
            rows.append(el("tr", *map(cell, cells), **known, **shelf.put(told)))
    return rows


def question_of(sample: Sample) -> Html:
    """The question of a problem, which the dialog shows, too."""
    shown = el("div", with_formulas(sample.question), class_="question", data_question=sample.problem)
    return el("details", el("summary", sample.problem), shown)


# ---- tables ---------------------------------------------------------------------------------------------


def run_rows(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of a table for people, with one run in a row; tokens, speed and seconds are means."""
    head = "run,model,dataset,size,accuracy,95 % on new problems,95 % on new samples,pass@k,maj@k,no verdict"
    rows = []
    for run in runs:
        summary, told = run.summary, run.summary["intervals"]
        intervals = [span(told[kind]["low"], told[kind]["high"]) if told[kind] else "-" for kind in told]
        several = [pass_at_k(run), summary["maj_at_k"]] if summary["k"] > 1 else [None, None]
        means = [amount(mean_of(getattr(sample, name) for sample in run.samples)) for name in MEANS.values()]
        missing = str(summary["tasks"] - summary["scored"])
        start = [run.path.stem, one_line(run.model, 60), str(run.dataset.get("name")), run.size]
        rows.append([*start, percent(summary["accuracy"]), *intervals, *map(percent, several), missing, *means])
    return [*head.split(","), *MEANS], rows


MEANS = {"tokens/response": "tokens", "tokens/s": "speed", "seconds/response": "seconds"}


def pass_at_k(run: Run) -> float | None:
    """pass@k with all samples, where some problem has so many verdicts."""
    return next((entry["score"] for entry in run.summary["pass_at"] if entry["j"] == run.summary["k"]), None)


def run_record(run: Run) -> dict[str, Any]:
    """A run as a record for programs: proportions from 0 to 1, means over responses, empty where not known."""
    summary = run.summary
    record: dict[str, Any] = {"file": str(run.path), "id": run.id, "created": run.created, "model": run.model}
    record |= {"dataset": run.dataset.get("name"), "problems": summary["problems"], "samples": summary["k"]}
    record["accuracy"] = summary["accuracy"]
    for kind, told in summary["intervals"].items():
        record |= {f"{kind}_{end}": told[end] if told else None for end in ("low", "high")}
    record["avg_at_k"] = summary["avg_at_k"]
    record["pass_at_k"] = pass_at_k(run)
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
    record |= {"difference": found.mean, "low": found.low, "high": found.high, "p": found.p, "test": found.test}
    record |= {"p_holm": told.p_adjusted, "detectable": found.detectable, "flipped": len(told.flipped)}
    return record | {"shown": "yes" if told.shown else "no", "warnings": "; ".join(told.warnings)}


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
    formula = value[:1] in ("=", "+", "-", "@", "\t", "\r") and not re.fullmatch(r"[-+]?[0-9.]+", value)
    return "'" * formula + printable(value)


def as_markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, in which nothing of a cell is markup."""
    lines = [head, ["---"] * len(head), *([escaped(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def escaped(cell: str) -> str:
    """A cell of a Markdown table."""
    return re.sub(r"([\\`*_\[\]|<>&~$#])", r"\\\1", one_line(cell, 200))


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
    interval = f"95 % interval {points_span(found.low, found.high)}"
    lines += [f"{f'{name} − A':<11} {points(found.mean)}, {interval}; {p_values(told)} ({found.test})"]
    if found.detectable is not None:
        lines += [f"{'detectable':<11} about {points(found.detectable, sign=False)} with a power of 80 %"]
    lines += [f"{'verdict':<11} {verdict(told)}"]
    others = len(told.changed) - len(told.flipped)
    others_too = f", {others}{' more' * bool(told.flipped)} with another score" if others else ""
    lines += [f"{'flipped':<11} {len(told.flipped) or 'none'} of {len(told.pairs)} problems{others_too}"]
    lines += [flip_text(told, pair) for pair in told.flipped[:FLIPS_TOLD]]
    if len(told.flipped) > FLIPS_TOLD:
        lines += [
            f"{'':11} and {len(told.flipped) - FLIPS_TOLD} more: --rows problem, or --output for a page, has them"
        ]
    return "\n".join(lines) + "\n"


def flip_text(told: Comparison, pair: Pair) -> str:
    """A problem that flipped with the answers of both runs, for the terminal."""
    direction = "lost" if pair.after < pair.before else "gained"
    answers = " -> ".join(answers_text(run, pair.problem) for run in (told.before, told.after))
    expected = told.before.by_problem[pair.problem][0].expected
    return f"{'':11} {direction:<6} {one_line(pair.problem, 24)}: expected {expected}; {answers}"


def standing(run: Run) -> str:
    """The headline of a run in a line."""
    general = run.summary["intervals"]["generalisation"]
    interval = f", 95 % interval {span(general['low'], general['high'])}" if general else ""
    of = f"({run.summary['counts']['correct']} of {run.summary['scored']})"
    return f"{percent(run.summary['accuracy'])} {of}{interval}, {run.size}"


# ---- files ----------------------------------------------------------------------------------------------


def write(path: Path | None, pieces: Iterable[str]) -> None:
    """Write the text to `path` at once, so that whoever opens it finds the old or the new one, or to stdout for None.

    What is no regular file, such as a pipe, is written to as it is. Raises ReportError.
    """
    if path is None:
        sys.stdout.writelines(pieces)
        return
    target = Path(os.path.realpath(path))
    special = target.exists() and not target.is_file()
    scratch = target if special else target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(scratch, "w", encoding="utf-8", errors="replace", newline="\n") as file:
            file.writelines(pieces)
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
    """What changes whenever the file at `path` is replaced; nothing where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def emit(
    args: argparse.Namespace, records: Sequence[dict[str, Any]], people: tuple[list[str], list[list[str]]]
) -> None:
    """Write a table in the form that is asked for."""
    text = as_csv(records) if args.csv else as_markdown(*people) if args.markdown else as_text(*people)
    write(args.output, [text])
    if args.output:
        print(one_line(args.output, 1000))


# ---- command line ---------------------------------------------------------------------------------------


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
    epilog = None if comparing else "llama-eval-report.py compare A.json B.json ... compares runs; see its own --help"
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
        emit(args, records, run_rows(runs) if args.rows == "run" else formatted(records))
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
            print(comparison_text(told))
        for entry in claims:
            print(f"{'reference':<11} {label(entry.run)}: {claim_text(entry)}\n")
        print(as_text(*run_rows(runs)), end="")
        if args.output:
            print(one_line(args.output, 1000))
    return guard(args, comparisons, claims)


def comparison_table(
    args: argparse.Namespace, comparisons: Sequence[Comparison], claims: Sequence[Claim]
) -> tuple[list[dict[str, Any]], tuple[list[str], list[list[str]]]]:
    """The table that is asked for: of the problems, of the runs against the reference, or of the comparisons."""
    if args.rows == "problem":
        records = [record for told in comparisons for record in pair_records(told)]
    elif claims:
        records = [claim_record(told) for told in claims]
        return records, claim_rows(claims)
    else:
        records = [comparison_record(told) for told in comparisons]
    return records, formatted(records)


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
    if args.rows == "problem" and len(args.states) < 2:
        raise UsageError("--rows problem compares problems: name two states or more")
    check_form(args)


def compare_all(runs: Sequence[Run]) -> list[Comparison]:
    """Each run against the first, with p-values adjusted for their number."""
    others = runs[1:]
    comparisons = [compare(runs[0], run, name, len(others)) for run, name in zip(others, names(), strict=False)]
    adjusted = holm([told.difference.p for told in comparisons])
    return [replace(told, p_adjusted=p) for told, p in zip(comparisons, adjusted, strict=True)]


def guard(args: argparse.Namespace, comparisons: Sequence[Comparison], claims: Sequence[Claim]) -> int:
    """The exit status: 4 when a run is beyond doubt worse than it may be, else 0."""
    bad = 0
    if args.threshold is not None:
        limit = points(float(args.threshold), sign=False)
        doubts = holm([beyond(told.pairs, args.threshold) for told in comparisons])
        for told, doubt in zip(comparisons, doubts, strict=True):
            if doubt < 1 - CONFIDENCE:
                text = f"{told.name} is worse than A by more than {limit}, beyond doubt: {told.after.path}"
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
        comparing = argv[:1] == ["compare"]
        args = build_parser(comparing).parse_args(argv[comparing:])
        code = compare_runs(args) if comparing else show(args)
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
