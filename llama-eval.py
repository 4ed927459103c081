#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "requests>=2.31",
#     "flask>=3.0",                 # with python-Levenshtein: what the simulator behind --simulate runs on
#     "datasets>=3.0",
#     "python-Levenshtein>=0.25",
#     "tqdm>=4.66",
# ]
# ///
"""Measure how well a model behind llama-server, or any OpenAI-style server, answers AIME 2025.

    python llama-eval.py --endpoint http://localhost:8033 --threads 4
    python llama-eval.py --simulate --dataset practice        # no server, no network: see it work

Every finished task is printed as it completes; the whole run is kept in one JSON file (--output), written
atomically as the run goes on, from which --resume continues. Exit status: 0 every task graded, 1 could not
run, 2 bad usage, 3 finished but some tasks have no verdict, 129, 130 and 143 stopped by SIGHUP, Ctrl-C and SIGTERM.

Sections: prompts, vocabulary, errors, answers, graders, datasets, endpoints, preflight, statistics,
state on disk, processor, console, simulator, evaluation, command line.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import math
import os
import queue
import random
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO, TypeVar
from urllib.parse import urlsplit

try:
    import requests
    from urllib3.exceptions import HTTPError
except ImportError as error:
    sys.exit(f"llama-eval: error: {error}: pip install -r requirements.txt")

VERSION = "0.1.0"
SCHEMA_VERSION = 1
HERE = Path(__file__).resolve().parent

# ---- prompts --------------------------------------------------------------------------------------------

# One instruction, after the question: models follow what they read last. JSON is the default because a
# program reads it without guessing; `boxed` is what most published AIME figures were measured with. Neither
# example can be taken for an answer when a model copies it.
PROMPTS = {
    "json": (
        "{question}\n\n"
        "Think it through step by step. The answer is an integer N. Finish with a line that holds nothing but "
        'this JSON object, with your answer in the place of N: {"answer": N}'
    ),
    "boxed": (
        "{question}\n\nThink it through step by step. The answer is an integer. Finish with your answer in \\boxed{}."
    ),
}

# ---- vocabulary -----------------------------------------------------------------------------------------

# What a task can be. The scored ones are the denominator of the accuracy; the others await a resume: not finished,
# a response without a verdict because the grader failed, no response after all retries.
SCORED = ("correct", "incorrect", "no_answer", "truncated")
STATUSES = ("pending", *SCORED, "ungraded", "error")


@dataclass(frozen=True)
class Problem:
    """One question of a dataset; `expected` is an integer in canonical form, such as "16" or "-4"."""

    id: str
    question: str
    expected: str


@dataclass(frozen=True)
class Dataset:
    """A list of problems with where it came from; `sha256` is over ids, questions and expected answers."""

    name: str
    source: str
    sha256: str
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Task:
    """One sample of one problem; `id` reads dataset/problem#sample, such as "aime2025/I-1#0"."""

    id: str
    problem: str
    sample: int
    question: str
    expected: str


@dataclass(frozen=True)
class Prompt:
    """How a question is put: `template` holds {question} once, `system` is a message before it, if any."""

    answer_format: str
    template: str
    system: str | None = None


@dataclass(frozen=True)
class Sampling:
    """How the model samples. What is None is not sent, so that the server's own default applies."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    extra_body: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Response:
    """What a server answered to one task. Counts and speed are None where the server did not say."""

    content: str
    reasoning: str
    finish_reason: str | None
    model: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    tokens_per_second: float | None
    seconds: float


@dataclass(frozen=True)
class Grade:
    """A verdict (one of SCORED), the answer it is about as it was understood, and how that was found.

    `review` says why a person should look at it, if so.
    """

    verdict: str
    answer: str | None
    method: str
    grader: str
    review: str | None = None


@dataclass(frozen=True)
class TaskState:
    """What happened to a task; times are ISO 8601 in UTC, `attempts` counts requests, `error` is for people."""

    status: str = "pending"
    grade: Grade | None = None
    response: Response | None = None
    endpoint: str | None = None
    attempts: int = 0
    error: str | None = None
    started: str | None = None
    finished: str | None = None


@dataclass(frozen=True)
class Endpoint:
    """One server: base URL without /v1, its number of threads, and what it said of itself, if anything."""

    url: str
    threads: int
    models: list[dict[str, Any]] = field(default_factory=list)
    props: dict[str, Any] | None = None


@dataclass
class EvalState:
    """One run: what is asked of which model and how, every task, and what became of it."""

    id: str
    dataset: dict[str, str]
    prompt: Prompt
    sampling: Sampling
    grader: dict[str, Any]
    model: str | None
    tasks: list[Task]
    task_states: dict[str, TaskState]
    endpoints: list[Endpoint] = field(default_factory=list)
    created: str = ""
    updated: str = ""
    tool: dict[str, str] = field(default_factory=lambda: {"name": "llama-eval", "version": VERSION})

    def open_tasks(self) -> list[Task]:
        """The tasks still without a verdict, in the order in which they are to be run."""
        return [t for t in self.tasks if self.task_states[t.id].status not in SCORED]


# ---- errors ---------------------------------------------------------------------------------------------


def one_line(text: object, width: int = 160) -> str:
    """`text` fit for a line of a terminal: no control characters, white space folded, at most `width` long."""
    printable = "".join(c if c.isprintable() else " " for c in str(text)[: 4 * width])
    folded = " ".join(printable.split())
    return folded if len(folded) <= width else folded[: width - 3] + "..."


class EvalError(Exception):
    """The run cannot go on; the message is one line that says what to do."""

    exit_code = 1


class UsageError(EvalError):
    """The command line makes no sense."""

    exit_code = 2


class DatasetError(EvalError):
    """A dataset cannot be read, or one of its rows cannot be used."""


class StateError(EvalError):
    """A state file cannot be read, written or continued."""


class EndpointError(EvalError):
    """An endpoint cannot be used for this run."""


class RequestError(Exception):
    """One request got no usable reply; `retryable` says whether the same request may succeed later."""

    def __init__(self, message: str, retryable: bool, status: int | None = None) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.status = status


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP arrived; not an Exception, so that no handler on the way takes it for a failure."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


# ---- answers --------------------------------------------------------------------------------------------
#
# Pure text rules: what in a response is the answer, and which integer it is. Every pattern is written to
# run in linear time, because a response can be a megabyte of anything.

INVISIBLE = re.compile(r"[\u200b-\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
FOREIGN_DIGIT = re.compile(r"[^\D0-9]")
MAX_ANSWER = 2000  # characters; a longer "answer" is an essay, not a number

# What LaTeX and prose put around a number.
COLOUR = re.compile(r"\\(?:text)?color\s*\{[^{}]*\}")
WRAPPERS = re.compile(
    r"\\(?:text|math)(?:rm|bf|it|sf|tt|up|normal)?(?![a-zA-Z])|\\(?:bf|rm|it|large|Large|huge|Huge)(?![a-zA-Z])"
    r"|\\(?:operatorname|boldsymbol|bm|boxed|fbox|framebox|mbox|emph|underline)\*?(?![a-zA-Z])"
)
DIGIT_GAP = re.compile(r"(?<=[0-9,])(?:\\[,:;! ]|[~\u00a0\u202f])+(?=[0-9]{3}(?![0-9]))")
IGNORABLE = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|quad|qquad|degree)(?![a-zA-Z])|\\[,;:!()\[\] ]"
    r"|\^\s*(?:\{\s*)?(?:\\circ|°|∘)(?:\s*\})?|\\circ(?![a-zA-Z])|\\?[%$]|[°~*`]"
)
MODULUS = re.compile(r"(?:\\p?mod\s*\{?\s*[0-9]+\s*\}?|\\bmod\s*[0-9]+|\(\s*mod\s*[0-9]+\s*\))\s*$")
LEAD_IN = re.compile(
    r"^\s*(?:\(?[A-E]\)[\s.:]*(?=[-−0-9(])|(?:(?:the|final|our)\s+)*answer\s*(?:is\b)?[:\s]*)?"
    r"(?:(?:approximately|about|roughly|exactly)\s)?",
    re.IGNORECASE,
)
THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
EQUALITY = re.compile(r"(?<![!<>])=|\\(?:approx|equiv)(?![a-zA-Z])|[≈≡]")
# What shows, left of an equation, that more than one thing is said.
SEVERAL = re.compile(r"[,;<>]|[.!?]\s|\b(?:and|or|if|when|where|for|because|since|as)\b")
SYSTEM = re.compile(
    r"=.*(?:\\q?quad|\\\\\s|\\\\(?=[a-zA-Z]\s*=)).*=", re.DOTALL
)  # equations beside or below each other
BRACKETED = re.compile(r"\([^()]*\)")
INTEGER = re.compile(
    r"(?P<integer>[-+−]?\s*(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+))(?:\.0*|\s*(?:st|nd|rd|th)\b)?"
    r"(?:\s*(?P<unit>(?:(?<=\s)(?:[a-zA-Z]{3,}|cm|mm|km|ft|in|yd|mi|kg|mg|ml|sq|hr|[mgsL])|(?![a-zA-Z])[^\W\d_]+)"
    r"(?:[\s/.-]+[^\W\d_]+)*(?:\s*\^\s*[23])?))?"
)
# A word after a number that makes it another number, or one of several.
NOT_A_UNIT = re.compile(
    r"\b(?:or|and|to|if|when|unless|but|not|pi|sqrt|mod|modulo|times|plus|minus|over|by|point|divided|multiplied|squared"
    r"|cubed|log|ln|sin|cos|tan|exp|half|halves|thirds?|quarters?|fifths?|(?:ten|hundred|thousand|million)ths?"
    r"|dozens?|hundred|thousand|million|billion|trillion|factorial|choose|o|ou|oder|und|et|y|или|и|或|和|または)\b"
    r"|[\u0370-\u03ff¹²³¼-¾\u2070-\u209f\u2150-\u218f百千万亿億]",
    re.IGNORECASE,
)
HEDGE = re.compile(r"\b(?:or|either|oder|ou|или)\b|或|または", re.IGNORECASE)
LIST_WORD = re.compile(r"(?:or|and|oder|ou|o|und|et|y|или|и)\b|或|和|または", re.IGNORECASE)
NUMBER = re.compile(r"(?<![a-zA-Z0-9_.])[-−]?[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?")

BOX_TOKEN = re.compile(
    r"(?P<box>(?<![a-zA-Z])(?:boxed|fbox|framebox)\s*(?:\[[^\]\n]{0,40}\]\s*){0,2})\{|(?<=\\)(?:boxed|fbox|framebox)\s*"
    r"(?P<bare>[-−]?[0-9]+(?:,[0-9]{3})*)(?![\w\\]|\s*[,./^!+*_-]\s*[\d{])|\\[{}]|(?P<open>\{)|(?P<close>\})"
)
# What stands in a box when a model repeats its instructions.
PLACEHOLDER = re.compile(
    r"\s*(?:\\text\s*\{)?[\s<\[]*(?:(?:your|the|final|integer|numerical)\s+)*"
    r"(?:answer|number|integer|result|value|N|X|\?+|_+|\.{2,}|…|\\l?c?dots)?(?:\s+here)?[\s>\]]*\}?\s*",
    re.IGNORECASE,
)
OBJECT_START = re.compile(r'\{\s*"')
MAX_OBJECTS = 100  # how many JSON objects, from the end, are tried: each try may read on to the end
PADDED = re.compile(r'("answer"\s*:\s*-?)0+(?=[0-9])')  # {"answer": 016} is no JSON, but how AIME writes 16
BACKSLASH = re.compile(r'\\(?:u(?=[0-9a-fA-F]{4})|["\\/n])|\\')
# Numbers stay text: int() of a long digit string is quadratic. Not strict: models put raw line breaks into strings.
TRAILING_COMMA = re.compile(r",\s*(?=[}\]])")
DECODER = json.JSONDecoder(parse_int=str, parse_float=str, strict=False)

MARKER = re.compile(
    r"""answer[*_"'”’]*\s*(?:is\b|:|=|：|[–—-]\s)|answer[*_]*[ \t]*\n|<answer>|答案[*_]*\s*(?:是|为|為)?[:：]?""",
    re.IGNORECASE,
)
MAX_MARKERS = 100
MARKED_LENGTH = 300  # characters after a marker that may hold its answer
FILLER = re.compile(r"(?:(?:therefore|thus|then|hence|indeed|simply|just|equal to|now|given by)\b[,:\s]*)+", re.I)
TAG = re.compile(r"</?[a-zA-Z][^<>]{0,80}>|<\|[a-z_]{1,40}\|>")
# The integer a sentence gives before it goes on: what follows must not make it a part of something else.
LEADING_INTEGER = re.compile(
    r"""(?P<integer>[-−]?[0-9]+(?:,[0-9]{3})*)["'”’)\]}_]*"""
    r"""(?:[^\w+/^=<>\\·×(–-]*$|\s*[.!]\s+(?=\D)|[。！（]|(?P<pause>[,;:]\s|[，；：、]|\s[(—–-]\s?)?\s*(?P<word>[^\W\d_]+))"""
)
SENTENCE_END = re.compile(r"(?<=[0-9)}$*°])[.!][*_]*\s+(?=[^\W\d_])")
LIST_ITEM = re.compile(r"1[.)]\s+[^\W\d_]")  # the first of the steps to "find the answer:", say
BULLET = re.compile(r"(?:[-–—•+]\s+)+")


@dataclass(frozen=True)
class Found:
    """An answer as the model wrote it, None where there is none, and how it was found or missed."""

    answer: str | None
    method: str
    confident: bool = True


def parse_integer(text: str) -> str | None:
    """The integer that all of `text` stands for, in canonical form ("16" for "016"), or None.

    Peels what LaTeX and prose put around a number: fonts, colours, $, degree signs, spacing, thousands
    commas, ".0", trailing units, the left side of an equation. What is left must be one integer.
    """
    if len(text) > MAX_ANSWER or text.count("{") != text.count("}") or SYSTEM.search(text):
        return None
    text = DIGIT_GAP.sub("", ascii_digits(text).replace("{,}", ",").replace("\\\\", "\\"))
    for pattern in (COLOUR, WRAPPERS, MODULUS, IGNORABLE):
        text = pattern.sub(" ", text)
    *left, text = EQUALITY.split(text.replace("{", " ").replace("}", " "))
    if any(SEVERAL.search(BRACKETED.sub("", THOUSANDS.sub("", part))) for part in left):
        return None
    text = LEAD_IN.sub("", text, count=1).strip().rstrip(" .")
    match = INTEGER.fullmatch(text[1:-1].strip() if text.startswith("(") and text.endswith(")") else text)
    if not match or (match["unit"] and NOT_A_UNIT.search(match["unit"])):
        return None
    return canonical(match["integer"])


def ascii_digits(text: str) -> str:
    """`text` without invisible characters and with the decimal digits of every script as 0 to 9."""
    return FOREIGN_DIGIT.sub(lambda digit: str(int(digit[0])), INVISIBLE.sub("", text))


def canonical(integer: str) -> str:
    """An integer without thousands commas, plus sign and leading zeros."""
    digits = integer.replace(",", "").replace("−", "-").replace(" ", "").lstrip("+")
    magnitude = digits.lstrip("-").lstrip("0") or "0"
    return f"-{magnitude}" if digits.startswith("-") and magnitude != "0" else magnitude


def final_part(content: str) -> str | None:
    """What follows the model's reasoning, or None when the reasoning was never closed."""
    closed, opened = content.rfind("</think>"), content.rfind("<think>")
    if opened > closed:
        return None
    content = content[closed + len("</think>") :] if closed >= 0 else content
    if "<|channel|>" not in content:
        return content
    _, final, content = content.rpartition("<|channel|>final<|message|>")
    return content if final else None


def json_answer(text: str) -> str | None:
    """The value of "answer" in the last complete JSON object that has one, as text; None when it says nothing."""
    text = BACKSLASH.sub(lambda escape: escape[0] if len(escape[0]) > 1 else r"\\", text)
    text = TRAILING_COMMA.sub("", PADDED.sub(r"\1", text))
    answer, end = None, 0
    for start in [match.start() for match in OBJECT_START.finditer(text)][-MAX_OBJECTS:]:
        if start < end:
            continue  # within the object before
        try:
            value, end = DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        given = [found for found in answers_within(value) if not (isinstance(found, str) and is_placeholder(found))]
        answer = given[-1] if given else answer
    return answer if answer is None or isinstance(answer, str) else json.dumps(answer)


def is_placeholder(text: str) -> bool:
    """Whether an answer is what the instructions have in its place."""
    return len(text) <= MAX_ANSWER and PLACEHOLDER.fullmatch(" ".join(text.split())) is not None


def answers_within(value: Any) -> list[Any]:
    """The values of "answer" in an object, or if it has none, in those it holds."""
    found, todo = [], [value]
    while todo:
        value = todo.pop()
        if isinstance(value, dict) and "answer" in value:
            found.append(value["answer"])
        else:
            todo += value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return found[::-1]


def boxed_answer(text: str, whole: bool) -> str | None:
    """The content of the last box that is closed and holds more than a placeholder, or None.

    A box closed later counts as later, so of nested boxes the outer one is taken; a box that is never closed
    is no answer, and neither is a part of it, nor bare digits at the end of a text that is not `whole`.
    """
    boxes: list[tuple[int, int]] = []
    stack: list[tuple[bool, int]] = []
    for token in BOX_TOKEN.finditer(text):
        if token["bare"] and (whole or token.end() < len(text)):
            boxes.append(token.span("bare"))
        elif token["box"] is not None or token["open"]:
            stack.append((token["box"] is not None, token.end()))
        elif token["close"] and stack:
            is_box, start = stack.pop()
            if is_box:
                boxes.append((start, token.start()))
    boxes = [(a, b) for a, b in boxes if b - a > MAX_ANSWER or not is_placeholder(text[a:b])]
    if len(boxes) > 1 and joined_by_or(text[boxes[-2][1] : boxes[-1][0]][:100]):
        return text[boxes[-2][0] : boxes[-1][1]]
    return text[slice(*boxes[-1])] if boxes else None


def joined_by_or(text: str) -> bool:
    """Whether what stands between two boxes offers the second as an alternative to the first."""
    words = [word for word in re.findall(r"[^\W\d_]+", text) if word not in ("boxed", "fbox", "framebox", "text")]
    return bool(words) and all(HEDGE.fullmatch(word) for word in words)


def unless_hedged(answer: str, method: str) -> Found:
    """`answer`, unless it offers different numbers to choose from; the same one twice is no hedge."""
    if parse_integer(answer) is not None or not HEDGE.search(answer[:MAX_ANSWER]):
        return Found(answer, method)
    numbers = {canonical(number) for number in NUMBER.findall(answer[:MAX_ANSWER])}
    return Found(numbers.pop(), method) if len(numbers) == 1 else Found(None, "hedged")


def marked_answer(text: str, whole: bool) -> Found | None:
    """What the last explicit marker ("the answer is", "Answer:", "答案是") with a number after it points at."""
    for marker in reversed(list(MARKER.finditer(text))[-MAX_MARKERS:]):
        lines = text[marker.end() : marker.end() + MARKED_LENGTH].split("\n")
        line = next((line for line in lines if any(c.isdigit() for c in line)), "")
        line = FILLER.sub("", BULLET.sub("", TAG.sub(" ", line).strip("_*:：。#> \t\r“”\"'"), count=1), count=1)
        if line and not LIST_ITEM.match(line):
            cut = not whole and text.rstrip().endswith(line)
            return Found(None, "cut") if cut else read_marked(line)
    return None


def read_marked(line: str) -> Found:
    """The answer in the line after a marker: all of it, or the integer that it begins with."""
    if HEDGE.search(line):
        return unless_hedged(line, "marker")
    line = SENTENCE_END.split(line, maxsplit=1)[0]
    if parse_integer(line) is not None:
        return Found(line, "marker")
    leading = LEADING_INTEGER.match(LEAD_IN.sub("", IGNORABLE.sub(" ", line), count=1).strip())
    if not leading:
        return Found(None, "none")
    word = leading["word"] or ""
    other = LIST_WORD.match(word) if leading["pause"] else NOT_A_UNIT.match(word) or (word.isascii() and len(word) == 1)
    return Found(None, "none") if other else Found(leading["integer"], "marker")


def last_number(text: str) -> str | None:
    """The last number of the last line, if it is an integer that is not a part of something else."""
    line = text.rstrip().rsplit("\n", 1)[-1][-MAX_ANSWER:]
    last = max(NUMBER.finditer(line), key=lambda number: number.start(), default=None)
    if last is None or parse_integer(last[0]) is None:
        return None
    before, after = line[: last.start()].rstrip(" $*_(,"), line[last.end() :].lstrip(" $*_)")
    part = (
        before.endswith(tuple("/^+*×·<>{\\-–"))
        or LIST_WORD.fullmatch(before.rpartition(" ")[2])
        or after.startswith(tuple("/^+*×·=<>{\\!~-–"))
        or NOT_A_UNIT.match(after)
        or re.match(r"[a-zA-Z]", line[last.end() :])
    )
    return None if part else last[0]


def find_answer(content: str, answer_format: str, finish_reason: str | None = "stop") -> Found:
    """What the model gave as its answer, by the strongest of the rules that finds one.

    `content` is the message without separate reasoning; `answer_format` is what the prompt asked for.
    """
    text = final_part(content)
    if text is None:
        return Found(None, "unfinished thinking")
    text, whole = ascii_digits(text), finish_reason != "length"
    answer = json_answer(text) if answer_format == "json" else None
    if answer is not None:
        return unless_hedged(answer, "json")
    answer = boxed_answer(text, whole)
    if answer is not None:
        return unless_hedged(answer, "boxed")
    marked = marked_answer(text, whole)
    if marked is not None:
        return marked
    number = last_number(TAG.sub(" ", text[-MAX_ANSWER:])) if whole else None
    return Found(number, "last number", confident=False) if number else Found(None, "none" if whole else "cut")


# ---- graders --------------------------------------------------------------------------------------------


class Grader(ABC):
    """Turns a task and its response into a Grade."""

    name: str

    @abstractmethod
    def grade(self, task: Task, response: Response) -> Grade:
        """The verdict on `response`."""


class RegexGrader(Grader):
    """Grades by the text rules above: the answer found must be the expected integer."""

    name = "regex"

    def __init__(self, answer_format: str) -> None:
        self.answer_format = answer_format

    def grade(self, task: Task, response: Response) -> Grade:
        """Correct, incorrect, or truncated / no_answer where the response holds no answer."""
        found = find_answer(response.content, self.answer_format, response.finish_reason)
        integer = parse_integer(found.answer) if found.answer is not None else None
        if found.answer is None:
            verdict = "truncated" if response.finish_reason == "length" else "no_answer"
        else:
            verdict = "correct" if integer == task.expected else "incorrect"
        review = None if found.confident else "the answer is a guess: the last number of the response"
        if verdict != "correct" and stands_in(task.expected, response.content):
            review = "the expected number stands in the response, but was not found to be its answer"
        return Grade(verdict, integer or found.answer, found.method, self.name, review)


def stands_in(expected: str, content: str) -> bool:
    """Whether a number equal to `expected` stands in the answering part of a response."""
    numbers = NUMBER.findall(ascii_digits(final_part(content) or ""))
    return any("." not in number and canonical(number) == expected for number in numbers)


# ---- datasets -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HubDataset:
    """A dataset on the Hugging Face hub: `parts` are (configuration, prefix of the problem ids)."""

    repo: str
    split: str
    parts: tuple[tuple[str | None, str], ...]


HUB_DATASETS = {
    "aime2025": HubDataset("opencompass/AIME2025", "test", (("AIME2025-I", "I-"), ("AIME2025-II", "II-"))),
    "aime": HubDataset("AI-MO/aimo-validation-aime", "train", ((None, ""),)),
}
PRACTICE = HERE / "data" / "practice.jsonl"
KNOWN_DATASETS = (*HUB_DATASETS, "practice")
HUB_PROBE_SECONDS = 3.0  # a hub that does not answer within this is not waited for


def load_dataset(name: str) -> Dataset:
    """The dataset called `name`: one of KNOWN_DATASETS, or the path of a JSONL file.

    Raises UsageError for an unknown name and DatasetError for one that cannot be loaded.
    """
    if name in HUB_DATASETS:
        hub = HUB_DATASETS[name]
        return make_dataset(name, hub.repo, hub_problems(name, hub))
    if name == "practice":
        return make_dataset(name, "data/practice.jsonl", file_problems(PRACTICE))
    if not (name.endswith(".jsonl") or os.path.isfile(name)):
        known = ", ".join(KNOWN_DATASETS)
        raise UsageError(f"unknown dataset '{name}': use one of {known}, or the path of a FILE.jsonl")
    return make_dataset(os.fsencode(Path(name).stem).decode("utf-8", "replace"), name, file_problems(Path(name)))


def make_dataset(name: str, source: str, problems: Iterable[Problem]) -> Dataset:
    """A Dataset of `problems`, whose ids must be unique."""
    unique: dict[str, Problem] = {}
    for problem in problems:
        if problem.id in unique:
            raise DatasetError(f"{source}: the id '{problem.id}' occurs twice; give each problem its own")
        unique[problem.id] = problem
    rows = json.dumps([[p.id, p.question, p.expected] for p in unique.values()])
    return Dataset(name, source, hashlib.sha256(rows.encode()).hexdigest(), tuple(unique.values()))


def make_problem(row: object, default_id: str, where: str) -> Problem:
    """A Problem from a row such as {"id": 0, "problem": "Find $x$ ...", "answer": "025"}.

    The question may be called `question` or `problem`; `where` names the row in the DatasetError.
    """
    if not isinstance(row, dict):
        raise DatasetError(f"{where}: not a JSON object with a question and an answer")
    question, answer = row.get("question", row.get("problem")), row.get("answer")
    if not isinstance(question, str) or not question.strip():
        raise DatasetError(f"{where}: no 'question' (or 'problem') text")
    if answer is None or isinstance(answer, bool) or not isinstance(answer, (str, int, float)):
        raise DatasetError(f"{where}: no 'answer'")
    expected = parse_integer(str(answer))
    if expected is None:
        raise DatasetError(f"{where}: the answer {str(answer)[:40]!r} is not an integer")
    identifier = default_id if row.get("id") is None else str(row["id"])
    return Problem(encodable(identifier), encodable(question), expected)


def encodable(text: str) -> str:
    """`text` with a question mark for each lone surrogate, which JSON can smuggle in but UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def file_problems(path: Path) -> Iterator[Problem]:
    """The problems of a JSONL file, one object a line; a problem without an id is called by its line number."""
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise DatasetError(f"cannot read the dataset {path}: {error.strerror}") from None
    if not any(line.strip() for line in lines):
        raise DatasetError(f"the dataset {path} is empty: each line must hold an object with a question and an answer")
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                row = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                reason = getattr(error, "msg", error)
                raise DatasetError(f"{where}: not JSON in UTF-8 ({reason})") from None
            yield make_problem(row, str(number), where)


def hub_problems(name: str, hub: HubDataset) -> Iterator[Problem]:
    """The problems of a hub dataset; rows look like {"question": "Find ...", "answer": "70"}."""
    for config, prefix in hub.parts:
        for number, row in enumerate(hub_rows(name, hub, config), 1):
            where = f"{hub.repo} {config or ''} row {number}"
            yield make_problem(row, f"{prefix}{number}", where)


def hub_rows(name: str, hub: HubDataset, config: str | None) -> Iterator[dict[str, Any]]:
    """The rows of one configuration: from the cache of the `datasets` library, else from the hub."""
    import datasets  # noqa: PLC0415 - takes a second and 150 MB, which local files need not pay

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    offline = datasets.config.HF_HUB_OFFLINE
    tried = f"it is not in the cache {datasets.config.HF_DATASETS_CACHE}"
    try:
        datasets.config.HF_HUB_OFFLINE = True  # looks in the cache only, where the library would ask the hub first
        with contextlib.suppress(Exception):  # whatever a cache can be missing, the hub is asked next
            return iter(datasets.load_dataset(hub.repo, config, split=hub.split))
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
    endpoint = datasets.config.HF_ENDPOINT
    if offline:
        tried += " and HF_HUB_OFFLINE is set"
    elif not hub_answers(endpoint):
        tried += f" and {endpoint} does not answer"
    else:
        try:
            return iter(datasets.load_dataset(hub.repo, config, split=hub.split))
        except Exception as error:  # noqa: BLE001 - the library passes on whatever its many parts raise
            tried += f" and {endpoint} gave {type(error).__name__}: {one_line(error)}"
    raise DatasetError(f"cannot load {name} ({hub.repo}): {tried}; use --dataset practice or a local FILE.jsonl")


def hub_answers(endpoint: str) -> bool:
    """Whether the hub says anything within HUB_PROBE_SECONDS; the library itself would retry for minutes."""
    answered = threading.Event()

    def probe() -> None:
        with contextlib.suppress(requests.RequestException):
            status = requests.head(endpoint, timeout=HUB_PROBE_SECONDS).status_code
            if status < 500 and status != 429:  # at these the library would ask again and again
                answered.set()

    # In a thread of its own, because no time-out of a request covers the look-up of the host's name.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(HUB_PROBE_SECONDS)
    return answered.is_set()


# ---- endpoints ------------------------------------------------------------------------------------------

CONNECT_SECONDS = 10.0
PROBE_SECONDS = 10.0
RETRYABLE_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
LOADING_SECONDS = 600.0
LOADING_POLL_SECONDS = 0.5
NO_RESPONSE = frozenset({"error", "abort", "cancelled", "content_filter"})  # finish reasons of servers, not models
SECRET_LENGTH = 8  # a shorter key is a placeholder such as "none"; blanking it out would damage answers


def parse_endpoint(text: str) -> str:
    """The base URL of a server, without a trailing slash or the path of its API; raises UsageError for no URL."""
    if set(text) & set("@?#"):  # where secrets hide, so it is not repeated either
        raise UsageError("--endpoint takes a bare URL, like http://localhost:8033: give the key by LLAMA_API_KEY")
    try:
        url = urlsplit(text.strip())
        valid = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise UsageError(f"--endpoint '{text}' is not a URL: write it like http://localhost:8033")
    path = url.path.rstrip("/").removesuffix("/chat/completions").removesuffix("/v1").rstrip("/")
    return f"{url.scheme}://{url.netloc}{path}"


class Client:
    """Talks to one server over connections of its own; for use by one thread."""

    def __init__(self, base_url: str, api_key: str | None, timeout: float) -> None:
        self.base_url = base_url
        self.api_key = api_key
        self.timeout = timeout
        self.session = requests.Session()
        self.session.auth = self._authorize  # a callable, so that no .netrc entry replaces the header
        # What runs on this machine is not behind the proxy that the environment may name.
        self.session.trust_env = urlsplit(base_url).hostname not in ("localhost", "127.0.0.1", "::1")

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.api_key:
            request.headers["Authorization"] = f"Bearer {self.api_key}"
        return request

    def get(self, path: str) -> Any:
        """The JSON that GET `path` gives; raises RequestError."""
        return self._request("GET", path, None, PROBE_SECONDS)

    def complete(self, body: dict[str, Any]) -> Response:
        """The server's Response to one chat completion request; raises RequestError."""
        started = time.monotonic()
        reply = self._request("POST", "/v1/chat/completions", body, self.timeout)
        return read_completion(reply, time.monotonic() - started)

    def _request(self, method: str, path: str, body: dict[str, Any] | None, timeout: float) -> Any:
        try:
            reply = self.session.request(
                method,
                self.base_url + path,
                json=body,
                timeout=(CONNECT_SECONDS, timeout),
                allow_redirects=False,  # a followed POST becomes a GET, and may carry the key elsewhere
            )
        except requests.ConnectTimeout:
            raise RequestError(f"no connection within {CONNECT_SECONDS:g} s", retryable=True) from None
        except requests.Timeout:
            raise RequestError(f"no answer within {timeout:g} s", retryable=True) from None
        except requests.exceptions.ChunkedEncodingError:
            raise RequestError("the reply broke off", retryable=True) from None
        except (requests.RequestException, HTTPError, ValueError) as error:  # not all of them are its own
            raise RequestError(root_cause(error), retryable=True) from None
        if reply.is_redirect:
            location = self.redact(one_line(reply.headers["Location"]))
            raise RequestError(f"it redirects to {location}: give that as --endpoint", False, reply.status_code)
        text = self.redact(reply.content.decode("utf-8-sig", "replace"))
        try:
            payload = self.redact(json.loads(text, parse_constant=lambda _: None, parse_float=finite_or_none))
        except (ValueError, RecursionError):
            payload = None
        return checked_reply(reply.status_code, payload, text)

    def redact(self, value: Any) -> Any:
        """`value`, text or parsed JSON, without the API key, which a server may send back in an error."""
        if not self.api_key or len(self.api_key) < SECRET_LENGTH:
            return value
        if isinstance(value, str):
            return value.replace(self.api_key, "[api key]")
        if isinstance(value, dict):
            return {self.redact(name): self.redact(entry) for name, entry in value.items()}
        return [self.redact(entry) for entry in value] if isinstance(value, list) else value


Json = TypeVar("Json", str, "dict[str, Any]", "list[Any]")


def typed(value: object, kind: type[Json]) -> Json:
    """`value` where it is of the `kind` it should be, else an empty one: a null content is "", say."""
    return value if isinstance(value, kind) else kind()


def as_number(value: object) -> float | None:
    """`value` where it is a number that a sane server may report, else None."""
    sane = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 2**53
    return float(value) if sane else None  # type: ignore[arg-type]


def as_count(value: object) -> int | None:
    """`value` where it is a number of tokens, slots or the like, else None."""
    return int(value) if isinstance(value, int) and as_number(value) is not None else None


def finite_or_none(text: str) -> float | None:
    """The number in `text`; None for one that JSON can write but not hold, such as 1e999."""
    return float(text) if math.isfinite(float(text)) else None


def root_cause(error: BaseException) -> str:
    """The innermost reason of an error in one line, such as "Connection refused"."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return one_line(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def checked_reply(status: int, payload: Any, text: str) -> Any:
    """`payload`, the JSON in `text`; raises RequestError for an error status, an error in it, or None for no JSON."""
    error = payload.get("error") if isinstance(payload, dict) else None
    if status == 200 and payload is None:
        raise RequestError(f"the reply is not JSON: {one_line(text)!r}", True, status)
    if status == 200 and not error:
        return payload
    message = error.get("message") if isinstance(error, dict) else error
    said = one_line(message or text) or "nothing more"
    raise RequestError(f"HTTP {status}: {said}", status == 200 or status in RETRYABLE_STATUS, status)


def read_completion(payload: Any, seconds: float) -> Response:
    """The Response in a chat completion object, of which only choices[0].message with a content is required."""
    try:
        choice = payload["choices"][0]
        message, failure = choice["message"], choice.get("error")
        reasoning = message.get("reasoning_content") or message.get("reasoning")
        content = message_text(message.get("content") if reasoning else message["content"])
    except (TypeError, KeyError, IndexError, AttributeError):
        raise RequestError(f"the reply is no chat completion: {one_line(payload)}", retryable=True) from None
    finish_reason = typed(choice.get("finish_reason"), str) or None
    if failure or finish_reason in NO_RESPONSE:
        raise RequestError(f"the server gave up ({one_line(failure or finish_reason)})", retryable=True)
    usage, timings = typed(payload.get("usage"), dict), typed(payload.get("timings"), dict)
    tokens = as_count(usage.get("completion_tokens", timings.get("predicted_n")))
    speed = as_number(timings.get("predicted_per_second"))
    if speed is None and tokens is not None and seconds > 0:
        speed = tokens / seconds
    return Response(
        content=content,
        reasoning=typed(reasoning, str),
        finish_reason=finish_reason,
        model=typed(payload.get("model"), str) or None,
        prompt_tokens=as_count(usage.get("prompt_tokens", timings.get("prompt_n"))),
        completion_tokens=tokens,
        tokens_per_second=speed,
        seconds=round(seconds, 3),
    )


def message_text(content: Any) -> str:
    """The text of a message's content: null, text, or a list of parts; raises TypeError for anything else."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise TypeError("content is neither text nor parts")
    return "".join(typed(part.get("text"), str) for part in content)


# ---- preflight ------------------------------------------------------------------------------------------


def preflight(url: str, threads: int, api_key: str | None, say: Callable[[str], None]) -> Endpoint:
    """What the server at `url` says of itself, once it is up; raises EndpointError when it cannot be used.

    A model still being loaded is waited for. /health, /v1/models and /props are each optional: only a
    llama-server has all three.
    """
    client = Client(url, api_key, PROBE_SECONDS)
    wait_until_loaded(client, say)
    listed = typed(typed(ask(client, "/v1/models"), dict).get("data"), list)
    models = [entry for entry in listed if isinstance(entry, dict) and model_names(entry)]
    return Endpoint(url, threads, models, typed(ask(client, "/props"), dict) or None)


def wait_until_loaded(client: Client, say: Callable[[str], None]) -> None:
    """Return once /health no longer answers 503, as llama-server does while it loads its model."""
    deadline, told = time.monotonic() + LOADING_SECONDS, False
    while is_loading(client):
        if time.monotonic() > deadline:
            raise EndpointError(f"{client.base_url} is still loading its model: start again when it is ready")
        if not told:
            say(f"{client.base_url} is loading its model; waiting for up to {LOADING_SECONDS:.0f} s")
        told = True
        time.sleep(LOADING_POLL_SECONDS)


def is_loading(client: Client) -> bool:
    """Whether the server is up but not ready; raises EndpointError when it is not up."""
    try:
        client.get("/health")
    except RequestError as error:
        refuse_unusable(client, error)
        return error.status == 503
    return False


def ask(client: Client, path: str) -> Any:
    """What GET `path` gives, or None from a server that does not offer it."""
    try:
        return client.get(path)
    except RequestError as error:
        refuse_unusable(client, error)
        if error.status == 401 or (error.status == 403 and path == "/v1/models"):
            hint = "set LLAMA_API_KEY or give --api-key"
            raise EndpointError(f"{client.base_url} refuses the API key ({error}): {hint}") from None
        return None


def refuse_unusable(client: Client, error: RequestError) -> None:
    """Raise EndpointError when `error` says that the server is out of reach or elsewhere."""
    if error.status is None:
        hint = "is the server running there? (--simulate needs none)"
        raise EndpointError(f"{client.base_url} cannot be used: {error}; {hint}") from None
    if 300 <= error.status < 400:
        raise EndpointError(f"{client.base_url} cannot be used: {error}") from None


def model_names(entry: dict[str, Any]) -> list[str]:
    """The names that a model of /v1/models answers to: its id, then its aliases."""
    names = [entry.get("id"), *typed(entry.get("aliases"), list)]
    return [name for name in names if isinstance(name, str) and name]


def choose_model(wanted: str | None, endpoints: list[Endpoint]) -> str | None:
    """The model to ask for: `wanted`, else the one that every endpoint serves; None when none of them says.

    Raises EndpointError when there is a choice, or when an endpoint serves another model: llama-server answers
    with the model it has, whatever it is asked for.
    """
    for endpoint in endpoints:
        listed = ", ".join(one_line(model_names(entry)[0]) for entry in endpoint.models[:8])
        if wanted is None and len(endpoint.models) > 1:
            raise EndpointError(f"{endpoint.url} serves several models: choose one with --model: {listed}")
        if wanted is None and endpoint.models:
            wanted = model_names(endpoint.models[0])[0]
        if endpoint.models and not any(wanted in model_names(entry) for entry in endpoint.models):
            raise EndpointError(f"{endpoint.url} does not serve the model '{wanted}' but {listed}")
    return wanted


def describe(endpoint: Endpoint) -> str:
    """One line on an endpoint: its model, threads, slots, context and build, as far as it tells."""
    props = endpoint.props or {}
    slots, context = as_count(props.get("total_slots")), context_size(endpoint)
    parts = [one_line(model_names(entry)[0]) for entry in endpoint.models[:1]] or ["no list of models"]
    parts += [f"{endpoint.threads} thread{'s' * (endpoint.threads > 1)}"]
    parts += [f"{slots} slots"] if slots else []
    parts += [f"{context} tokens of context per slot"] if context else []
    parts += [f"build {one_line(props['build_info'])}"] if props.get("build_info") else []
    return f"{endpoint.url}: {', '.join(parts)}"


def misfits(endpoint: Endpoint, max_tokens: int | None) -> list[str]:
    """Warnings, one line each, of what the run asks for and the endpoint cannot give."""
    slots, context = as_count((endpoint.props or {}).get("total_slots")), context_size(endpoint)
    warnings = []
    if slots and endpoint.threads > slots:
        warnings.append(f"{endpoint.threads - slots} of {endpoint.threads} threads will always wait for a slot")
    if context and max_tokens and max_tokens >= context:
        warnings.append(f"--max-tokens {max_tokens} and a prompt do not fit its context: raise -c or lower -np")
    return [f"WARNING: {endpoint.url}: {warning}" for warning in warnings]


def context_size(endpoint: Endpoint) -> int | None:
    """Tokens that one slot can hold, prompt included, where the server says."""
    return as_count(typed((endpoint.props or {}).get("default_generation_settings"), dict).get("n_ctx"))


# ---- statistics -----------------------------------------------------------------------------------------

Z95 = 1.959963984540054  # the 97.5 % quantile of the normal distribution


def wilson_interval(proportion: float, n: float) -> tuple[float, float]:
    """The 95 % score interval of a proportion seen in n trials (Wilson 1927, JASA 22:209)."""
    denominator = 1 + Z95**2 / n
    centre = (proportion + Z95**2 / (2 * n)) / denominator
    half = Z95 / denominator * math.sqrt(proportion * (1 - proportion) / n + Z95**2 / (4 * n * n))
    return max(0.0, min(proportion, centre - half)), min(1.0, max(proportion, centre + half))


def summarize(state: EvalState) -> dict[str, Any]:
    """The numbers of a run, the same for console and file; proportions from 0 to 1.

    Samples of one problem are not independent, so the interval counts problems, not samples: it is Wilson's at
    n = (sum m)^2 / sum m^2 problems, m the scored samples of each, which is their number when all have as many
    (Kish 1965, Survey Sampling). With more than one sample it is wider than it need be.
    """
    counts = Counter(state.task_states[task.id].status for task in state.tasks)
    per_problem = Counter(task.problem for task in state.tasks if state.task_states[task.id].status in SCORED)
    scored = per_problem.total()
    problems = scored**2 / sum(m * m for m in per_problem.values()) if scored else 0.0
    accuracy = counts["correct"] / scored if scored else None
    total, missing = len(state.tasks), len(state.tasks) - scored
    responses = [s.response for s in state.task_states.values() if s.response]
    generated = [r.completion_tokens for r in responses if r.completion_tokens is not None]
    return {
        "counts": {status: counts[status] for status in STATUSES},
        "tasks": total,
        "scored": scored,
        "accuracy": accuracy,
        "interval": wilson_interval(accuracy, problems) if accuracy is not None else None,
        "interval_method": f"Wilson, 95 %, n = {problems:.4g} problems",
        "range": (counts["correct"] / total, (counts["correct"] + missing) / total),
        "responses": len(responses),
        "responses_with_token_counts": len(generated),
        "prompt_tokens": sum(r.prompt_tokens or 0 for r in responses),
        "completion_tokens": sum(generated),
    }


# ---- state on disk --------------------------------------------------------------------------------------

DUMP_SHARE = 0.02  # of the run's time at the most goes into writing the state


def new_run(dataset: Dataset, prompt: Prompt, sampling: Sampling, samples: int, limit: int | None) -> EvalState:
    """A run with all its tasks pending, breadth first: a run that is stopped has still asked evenly."""
    tasks = [
        Task(f"{dataset.name}/{p.id}#{sample}", p.id, sample, p.question, p.expected)
        for sample in range(samples)
        for p in dataset.problems[:limit]
    ]
    return EvalState(
        id=f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}",
        dataset={"name": dataset.name, "source": dataset.source, "sha256": dataset.sha256},
        prompt=prompt,
        sampling=sampling,
        grader={"name": RegexGrader.name},
        model=None,
        tasks=tasks,
        task_states={task.id: TaskState() for task in tasks},
        created=timestamp(),
    )


def timestamp() -> str:
    """The time in UTC, to the millisecond, in ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def continue_run(previous: EvalState, new: EvalState) -> EvalState:
    """`new` with what `previous` has done; more samples or problems are fine, other settings a StateError."""
    old_settings, new_settings = settings(previous), settings(new)
    changed = [
        f"{name} was {one_line(json.dumps(old), 60)}, is now {one_line(json.dumps(new_settings[name]), 60)}"
        for name, old in old_settings.items()
        if old != new_settings[name] and (name != "model" or new.model)  # without --model it is what is served
    ]
    if changed:
        raise StateError(f"cannot resume with other settings: {'; '.join(changed)}")
    dropped = len(previous.task_states.keys() - new.task_states.keys())
    if dropped:
        raise StateError(
            f"cannot resume with less: {dropped} tasks of the run would be left out; give its --samples and --limit"
        )
    new.task_states.update(previous.task_states)
    new.id, new.created = previous.id, previous.created
    new.model, new.endpoints = previous.model, previous.endpoints
    return new


def settings(state: EvalState) -> dict[str, Any]:
    """What determines the results of a run, by the name a person knows it by."""
    return {
        "dataset": state.dataset["name"],
        "dataset rows (sha256)": state.dataset["sha256"],
        "model": state.model,
        **{f"prompt {name}": value for name, value in vars(state.prompt).items()},
        **vars(state.sampling),
        "grader": state.grader,
    }


def check_output(path: Path, resume: bool, overwrite: bool) -> None:
    """Raise StateError unless `path` can take the state of this run, as the flags have it."""
    exists, target = os.path.exists(path), os.path.realpath(path)
    if exists and not os.path.isfile(path):
        raise StateError(f"the output {path} is not a file: name one with --output")
    if not os.path.isdir(os.path.dirname(target)):
        raise StateError(f"the folder of the output {path} does not exist: make it, or name another --output")
    if not os.access(os.path.dirname(target), os.W_OK | os.X_OK):
        raise StateError(f"the folder of the output {path} is not writable: name another --output")
    if exists and not (resume or overwrite):
        raise StateError(f"the output {path} exists: add --resume to continue it, --overwrite to replace it")
    if resume and not exists:
        raise StateError(f"there is no {path} to resume: start without --resume")


def load_state(path: Path) -> EvalState:
    """The EvalState in the file at `path`; raises StateError when there is none, or a newer one."""
    try:
        data = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise StateError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise StateError(f"{path} is not a state of llama-eval: it is not JSON") from None
    schema = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise StateError(f"{path} is not a state of llama-eval: it has no schema_version")
    if schema > SCHEMA_VERSION:
        raise StateError(f"{path} was written by a newer llama-eval (schema {schema}; this is {SCHEMA_VERSION})")
    try:
        state = state_from_json(data)
        settings(state), summarize(state)  # which touch what a file made by hand may have wrong
        return state
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StateError(f"{path} is not a state of llama-eval: {type(error).__name__} {error}") from None


def state_from_json(data: dict[str, Any]) -> EvalState:
    """The EvalState that `state_to_json` wrote; raises KeyError, TypeError or ValueError on anything else."""
    tasks = [Task(**task) for task in data["tasks"]]
    if not tasks:
        raise ValueError("it has no tasks")
    kept: dict[str, Any] = {
        "prompt": Prompt(**data["prompt"]),
        "sampling": Sampling(**data["sampling"]),
        "endpoints": [Endpoint(**endpoint) for endpoint in data["endpoints"]],
        "tasks": tasks,
        "task_states": {task.id: task_state_from_json(data["task_states"][task.id]) for task in tasks},
    }
    return EvalState(**{entry.name: kept.get(entry.name, data[entry.name]) for entry in fields(EvalState)})


def task_state_from_json(data: dict[str, Any]) -> TaskState:
    """One entry of task_states as a TaskState."""
    if data["status"] not in STATUSES:
        raise ValueError(f"has the unknown status {data['status']!r}")
    grade = Grade(**data["grade"]) if data["grade"] else None
    response = Response(**data["response"]) if data["response"] else None
    return TaskState(**{**data, "grade": grade, "response": response})


def state_to_json(state: EvalState) -> Iterator[str]:
    """The lines of the state file: a header to read, then one line a task and one line a task state."""
    header = {name: value for name, value in vars(state).items() if name not in ("tasks", "task_states")}
    header = {"schema_version": SCHEMA_VERSION, **header, "summary": summarize(state)}
    yield json.dumps(header, default=vars, ensure_ascii=False, indent=1).removesuffix("\n}")
    yield ',\n "tasks": [\n  '
    yield ",\n  ".join(json.dumps(task, default=vars, ensure_ascii=False) for task in state.tasks)
    yield '\n ],\n "task_states": {\n  '
    for number, (task_id, task_state) in enumerate(state.task_states.items()):
        yield ",\n  " if number else ""
        yield f"{json.dumps(task_id, ensure_ascii=False)}: {json.dumps(task_state, default=vars, ensure_ascii=False)}"
    yield "\n }\n}\n"


def write_atomically(path: Path, pieces: Iterable[str]) -> None:
    """Write the text to `path` so that it holds the old or the new text at every instant, whatever happens.

    Lone surrogates, which JSON can smuggle in but UTF-8 cannot hold, become question marks.
    """
    target = os.path.realpath(path)
    scratch = os.path.join(os.path.dirname(target), f".llama-eval-{secrets.token_hex(8)}.tmp")
    try:
        with open(scratch, "w", encoding="utf-8", errors="replace", newline="\n") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        if os.path.exists(target):
            shutil.copymode(target, scratch)
        os.replace(scratch, target)
    except OSError as error:
        raise StateError(f"cannot write the state {path}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(scratch)


class StateFile:
    """Keeps the file of a run up to date: `record` after each finished task, `save` when it must be whole."""

    def __init__(self, path: Path, interval: float) -> None:
        self.path = path
        self.interval = interval
        self.next_dump = 0.0

    def record(self, state: EvalState, task: Task) -> None:
        """Take note that `task` is finished: write `state` if the last dump is long enough ago."""
        if time.monotonic() >= self.next_dump:
            self.save(state)

    def save(self, state: EvalState) -> None:
        """Write `state` now; raises StateError."""
        started = time.monotonic()
        state.updated = timestamp()
        try:
            write_atomically(self.path, state_to_json(state))
        finally:
            ended = time.monotonic()
            self.next_dump = ended + max(self.interval, (ended - started) / DUMP_SHARE)


# ---- processor ------------------------------------------------------------------------------------------

BACKOFF_SECONDS = 0.5  # doubles with each attempt; the wait is a random part of it, so that clients spread
BACKOFF_LIMIT = 30.0

Finished = tuple[Task, TaskState]
Report = Callable[[Task, TaskState], None]


@dataclass(frozen=True)
class Limits:
    """How long one request may take, in seconds, and how often a failed one is sent again."""

    request_timeout: float
    max_retries: int


class Processor:
    """Fans the open tasks of a run out over its endpoints, grades the responses, and dumps as it goes.

    Worker threads share one queue, so that a faster endpoint takes more of it. They return values; only the
    thread that calls `process` changes the state, writes and prints.
    """

    def __init__(self, endpoints: list[Endpoint], grader: Grader, api_key: str | None, limits: Limits) -> None:
        self.endpoints = endpoints
        self.grader = grader
        self.api_key = api_key
        self.limits = limits
        self.stop = threading.Event()
        # What `done` has carried, too: a signal may fall between taking a result from there and entering it.
        self.finished: dict[str, TaskState] = {}

    def process(self, state: EvalState, file: StateFile, report: Report, warn: Callable[[str], None]) -> None:
        """Run every open task of `state` to its end. However it ends, what had finished is in `state` and on disk.

        Calls `report` with each task as it finishes, and `warn` with a line on what went wrong beside them.
        """
        tasks = state.open_tasks()
        todo: queue.SimpleQueue[Task] = queue.SimpleQueue()
        done: queue.SimpleQueue[Finished | BaseException] = queue.SimpleQueue()
        for task in tasks:
            todo.put(task)
        try:
            for endpoint in self._seats()[: len(tasks)]:
                # Daemons, so that a stopped run does not wait for answers that nobody will read.
                threading.Thread(target=self._work, args=(endpoint, state, todo, done), daemon=True).start()
            for _ in tasks:
                item = done.get()
                if isinstance(item, BaseException):
                    raise item
                self._absorb(item, state, file, warn)
                report(*item)
            self._finish(state, file)
        except BaseException:  # a signal may also arrive in the middle of finishing
            self._finish(state, file)
            raise

    def _absorb(self, item: Finished, state: EvalState, file: StateFile, warn: Callable[[str], None]) -> None:
        """Enter one finished task into the state and the file."""
        task, result = item
        state.task_states[task.id] = result
        try:
            file.record(state, task)
        except StateError as error:
            warn(f"WARNING: {error}; trying again later")

    def _finish(self, state: EvalState, file: StateFile) -> None:
        """Save everything that has finished, also what was not looked at yet."""
        self.stop.set()
        state.task_states.update(self.finished.copy())
        file.save(state)

    def _seats(self) -> list[Endpoint]:
        """An endpoint for each thread, dealt out in turn, so that a few tasks still use every endpoint."""
        rounds = max(endpoint.threads for endpoint in self.endpoints)
        return [e for turn in range(rounds) for e in self.endpoints if turn < e.threads]

    def _work(
        self,
        endpoint: Endpoint,
        state: EvalState,
        todo: queue.SimpleQueue[Task],
        done: queue.SimpleQueue[Finished | BaseException],
    ) -> None:
        """One thread: takes tasks until there are none. An unforeseen error goes to the owner, who raises it."""
        try:
            client = Client(endpoint.url, self.api_key, self.limits.request_timeout)
            while not self.stop.is_set():
                task = todo.get_nowait()
                result = self._run(task, client, request_body(task, state))
                if result is not None:
                    self.finished[task.id] = result
                    done.put((task, result))
        except queue.Empty:
            pass
        except BaseException as error:  # noqa: BLE001 - passed on, not handled
            done.put(error)

    def _run(self, task: Task, client: Client, body: dict[str, Any]) -> TaskState | None:
        """What becomes of one task: graded, or an error once no attempt is left; None when the run is stopped."""
        started, attempt = timestamp(), 0
        while True:
            attempt += 1
            outcome: dict[str, Any] = {"endpoint": client.base_url, "attempts": attempt, "started": started}
            try:
                response = client.complete(body)
            except RequestError as error:
                if not error.retryable or attempt > self.limits.max_retries:
                    return TaskState("error", error=str(error), finished=timestamp(), **outcome)
                if self.stop.wait(backoff(attempt)):
                    return None
            else:
                grade = self.grader.grade(task, response)
                return TaskState(grade.verdict, grade, response, finished=timestamp(), **outcome)


def backoff(attempt: int) -> float:
    """Seconds to wait after failed attempt 1, 2, ...: exponential with full jitter."""
    return random.uniform(0, min(BACKOFF_LIMIT, BACKOFF_SECONDS * 2 ** min(attempt - 1, 10)))


def request_body(task: Task, state: EvalState) -> dict[str, Any]:
    """The chat completion request for one task, the same whenever and wherever it is sent."""
    messages = [{"role": "system", "content": state.prompt.system}] if state.prompt.system else []
    # Replaced, not formatted: questions and templates are full of LaTeX braces.
    messages.append({"role": "user", "content": state.prompt.template.replace("{question}", task.question)})
    sampling = {name: value for name, value in vars(state.sampling).items() if value is not None}
    extra_body = sampling.pop("extra_body")
    if state.sampling.seed is not None:
        sampling["seed"] = task_seed(state.sampling.seed, task.id)
    model = {"model": state.model} if state.model else {}
    return {**model, "messages": messages, **sampling, **extra_body}


def task_seed(run_seed: int, task_id: str) -> int:
    """A seed of 31 bits for each task: with one seed for all, the samples of a problem would be copies."""
    digest = hashlib.sha256(f"{run_seed} {task_id}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


# ---- console --------------------------------------------------------------------------------------------


def task_line(task: Task, result: TaskState, number: int, total: int) -> str:
    """One finished task in one line: verdict, answer, tokens, tokens/s, seconds, endpoint."""
    verdict = result.status if result.status in ("correct", "ungraded", "error") else "not correct"
    start = f"{number:>{len(str(total))}}/{total}  {one_line(f'{task.problem}#{task.sample}', 24):<9} {verdict:<11}"
    where = (result.endpoint or "").removeprefix("http://")
    response = result.response
    if response is None:
        return f"{start}  {one_line(result.error)}, {result.attempts} attempts  {where}"
    answer = result.grade.answer if result.grade else None
    shown = one_line(answer, 24) if answer is not None else result.status.replace("_", " ")
    tokens = "-" if response.completion_tokens is None else response.completion_tokens
    speed = "-" if response.tokens_per_second is None else f"{response.tokens_per_second:.1f}"
    return f"{start}  {shown:<9} {tokens:>6} tok {speed:>8} tok/s {response.seconds:>7.1f} s  {where}"


def comparison_line(task: Task, result: TaskState) -> str:
    """What the model answered against what was expected, and how the answer was found."""
    grade, response = result.grade, result.response
    if grade is None or response is None:
        return f"    no response, expected {task.expected}"
    if grade.answer is not None:
        return f"    answered {one_line(grade.answer)}, expected {task.expected} (found by: {grade.method})"
    ending = one_line(response.content[-300:] or response.reasoning[-300:])
    return f"    no answer ({grade.method}), expected {task.expected}; the response ends: {ending!r}"


def percent(proportion: float) -> str:
    """0.8 as "80.0 %"."""
    return f"{100 * proportion:.1f} %"


def headline(summary: dict[str, Any]) -> str:
    """The accuracy with its interval, and the range it could still fall in while verdicts are missing."""
    if summary["accuracy"] is None:
        return "none: no task has a verdict yet"
    low, high = summary["range"]
    still = f"; between {percent(low)} and {percent(high)} once every task has a verdict"
    interval = " to ".join(map(percent, summary["interval"]))
    line = f"{percent(summary['accuracy'])}  ({summary['counts']['correct']} of {summary['scored']})"
    line += f", 95 % interval {interval}"
    return line + (still if summary["scored"] < summary["tasks"] else "")


def summary_text(state: EvalState, seconds: float, path: Path, next_step: tuple[str, str]) -> str:
    """The end of a run: headline, counts by status, tokens, time, the file, and what to do next by which command."""
    summary = summarize(state)
    problems = len({task.problem for task in state.tasks})
    samples = sample_count(state)
    size = f"{problems} problem{'s' * (problems > 1)} x {samples} sample{'s' * (samples > 1)}"
    model = f", model {one_line(state.model)}" if state.model else ""
    counts = dict(summary["counts"])
    if not counts["pending"]:
        del counts["pending"]
    rows = {
        "run": f"{state.dataset['name']}, {size}{model}",
        "accuracy": headline(summary),
        "counts": ", ".join(f"{count} {status}" for status, count in counts.items()),
        "tokens": tokens_text(summary),
        "time": f"{seconds:.1f} s",
        "state": str(path),
        next_step[0]: next_step[1],
    }
    return "\n".join(f"{name:<9} {text}" for name, text in rows.items())


def sample_count(state: EvalState) -> int:
    """How many samples of each problem a run has."""
    return max(task.sample for task in state.tasks) + 1


def tokens_text(summary: dict[str, Any]) -> str:
    """The tokens of a run, as far as the servers told them."""
    told, responses = summary["responses_with_token_counts"], summary["responses"]
    if not told:
        return "not told by the server"
    text = f"{summary['completion_tokens']} generated from {summary['prompt_tokens']} of prompt"
    return text if told == responses else f"{text}, told for {told} of {responses} responses"


class Console:
    """Prints a run to stdout: plain lines, and on a terminal a progress bar below them."""

    def __init__(self, state: EvalState, verbose: bool, quiet: bool) -> None:
        self.state = state
        self.verbose = verbose
        self.quiet = quiet
        self.counts = Counter(s.status for s in state.task_states.values() if s.status in SCORED)
        self.bar: Any = None

    def say(self, text: str) -> None:
        """Print `text` above the bar, at once."""
        with self._surviving():
            if self.bar is None:
                print(text, flush=True)
            else:
                self.bar.write(text, file=sys.stdout)

    def note(self, text: str) -> None:
        """Print `text` unless only the outcome is wanted."""
        if not self.quiet:
            self.say(text)

    @contextlib.contextmanager
    def _surviving(self) -> Iterator[None]:
        """Go on in silence when stdout fails: a run does not end because its reader or terminal has gone."""
        try:
            yield
        except OSError:
            self.bar = None
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def start(self) -> None:
        """Show the bar, if stdout is a terminal."""
        if sys.stdout.isatty():
            from tqdm import tqdm  # noqa: PLC0415 - only a terminal needs it

            total, done = len(self.state.tasks), self.counts.total()
            self.bar = tqdm(total=total, initial=done, file=sys.stdout, unit="task", dynamic_ncols=True)

    def task(self, task: Task, result: TaskState) -> None:
        """Show one finished task."""
        self.counts[result.status] += 1
        with self._surviving():
            if self.bar is not None:
                scored = sum(self.counts[status] for status in SCORED)
                accuracy = percent(self.counts["correct"] / scored) if scored else "-"
                self.bar.set_postfix_str(f"accuracy {accuracy}, {self.counts['error']} errors", refresh=False)
                self.bar.update()
        self.note(task_line(task, result, self.counts.total(), len(self.state.tasks)))
        if self.verbose:
            self.say(comparison_line(task, result))

    def close(self) -> None:
        """Take the bar off the terminal."""
        with self._surviving():
            if self.bar is not None:
                self.bar.close()
        self.bar = None


# ---- simulator ------------------------------------------------------------------------------------------

SIMULATOR = HERE / "llama-server-simulator.py"
SIMULATOR_START_SECONDS = 60.0  # it may have to import and read a hub dataset first


@contextlib.contextmanager
def simulator(rate: float, dataset: str) -> Iterator[str]:
    """The URL of a simulator that knows `dataset`, running on a free port for the length of the block."""
    command = [sys.executable, str(SIMULATOR), "--host", "127.0.0.1", "--port", "0"]
    command += ["--success-rate", str(rate), "--dataset", dataset]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8")
        give_up = threading.Timer(SIMULATOR_START_SECONDS, process.kill)
        give_up.start()
        try:
            url = simulator_url(process, log)
            give_up.cancel()
            yield url
        finally:
            give_up.cancel()
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)


def simulator_url(process: subprocess.Popen[str], log: TextIO) -> str:
    """The URL in the banner that a starting simulator prints; raises EndpointError if it ends instead."""
    for line in process.stdout or ():
        found = re.search(r"https?://\S+", line)
        if found:
            return found[0]
    log.seek(0)
    reason = next(reversed(log.read().splitlines()), "it said nothing")
    raise EndpointError(f"the simulator did not start: {one_line(reason)}")


# ---- evaluation -----------------------------------------------------------------------------------------


def plan(args: argparse.Namespace, dataset: Dataset) -> EvalState:
    """The run that the command line describes, none of it done yet."""
    prompt = Prompt(args.answer_format, PROMPTS[args.answer_format], args.system_prompt)
    names = [entry.name for entry in fields(Sampling)]
    sampling = Sampling(**{name: getattr(args, name) for name in names})
    run = new_run(dataset, prompt, sampling, args.samples, args.limit)
    run.model = args.model
    return run


@contextlib.contextmanager
def connected(args: argparse.Namespace, state: EvalState, console: Console) -> Iterator[None]:
    """Within the block the endpoints are up, described in `state`, and serve its model."""
    with contextlib.ExitStack() as stack:
        urls = args.endpoint
        if args.simulate is not None:
            urls = [stack.enter_context(simulator(args.simulate, args.dataset))]
        endpoints = [preflight(url, n, args.api_key, console.say) for url, n in zip(urls, args.threads, strict=True)]
        state.model = choose_model(state.model, endpoints)
        state.endpoints = [
            replace(e, models=[entry for entry in e.models if state.model in model_names(entry)]) for e in endpoints
        ]
        for endpoint in state.endpoints:
            console.note(describe(endpoint))
            for warning in misfits(endpoint, args.max_tokens):
                console.say(warning)
        yield


def run_open_tasks(args: argparse.Namespace, state: EvalState, output: Path, console: Console) -> BaseException | None:
    """Run what is open in `state`; returns what cut it short, Interrupted or StateError, if anything did."""
    with connected(args, state, console):
        file = StateFile(output, args.dump_interval)
        file.save(state)  # a place that cannot be written is found out before the first request
        limits = Limits(args.request_timeout, args.max_retries)
        processor = Processor(state.endpoints, RegexGrader(args.answer_format), args.api_key, limits)
        try:
            console.start()
            processor.process(state, file, console.task, console.say)
        except (Interrupted, StateError) as end:
            return end
        finally:
            console.close()
    return None


def evaluate(args: argparse.Namespace, argv: list[str]) -> int:
    """Run what the command line asks for; returns the exit status."""
    started = time.monotonic()
    dataset = load_dataset(args.dataset)
    state = plan(args, dataset)
    output = args.output or Path(f"{dataset.name}-{state.id}.json")
    check_output(output, args.resume, args.overwrite)
    if args.resume:
        state = continue_run(load_state(output), state)
    console = Console(state, args.verbose, args.quiet)
    end = None
    if state.open_tasks():
        end = run_open_tasks(args, state, output, console)
    else:
        console.say("nothing to do: every task of this run has its verdict")
    console.say(summary_text(state, time.monotonic() - started, output, next_step(state, argv, output)))
    if end:
        raise end
    return 3 if state.open_tasks() else 0


def next_step(state: EvalState, argv: list[str], output: Path) -> tuple[str, str]:
    """What a person may want to do with a run, and the command that does it."""
    if state.open_tasks():
        return "resume", resume_command(argv, output)
    return "extend", resume_command(argv, output, samples=2 * sample_count(state))


def resume_command(argv: list[str], output: Path, samples: int | None = None) -> str:
    """The command that continues the run in `output`: the one that was given, less the key, plus --resume."""
    dropped = {"--output", "--api-key", *(["--samples"] if samples else [])}
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        if word in dropped:
            next(words, None)
        elif word.split("=")[0] not in {*dropped, "--resume", "--overwrite"}:
            kept.append(word)
    more = ["--samples", str(samples)] if samples else []
    python = os.path.relpath(sys.executable)
    interpreter = sys.executable if python.startswith("..") else python
    command = shlex.join([interpreter, sys.argv[0], *kept, *more, "--output", str(output), "--resume"])
    flagged = any(word.split("=")[0] == "--api-key" for word in argv)
    return f"LLAMA_API_KEY=... {command}" if flagged else command


# ---- command line ---------------------------------------------------------------------------------------

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{message} (see --help)")

    def parse(self, argv: list[str]) -> argparse.Namespace:
        """The options in `argv`; what is not one is named without its value, which may be a secret."""
        args, rest = self.parse_known_args(argv)
        if rest:
            unknown = [word.split("=")[0] for word in rest if word.startswith("-")]
            self.error(f"unknown option {unknown[0]}" if unknown else "an argument that belongs to no option")
        return args


def whole_number(minimum: int, maximum: int = 10**9) -> Callable[[str], int]:
    """A parser of integers between `minimum` and `maximum`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,18}", text) or not minimum <= int(text) <= maximum:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from {minimum} to {maximum}")
        return int(text)

    return parse


def real_number(minimum: float, maximum: float = math.inf) -> Callable[[str], float]:
    """A parser of finite numbers between `minimum` and `maximum`."""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not (minimum <= number <= maximum and math.isfinite(number)):
            bounds = f"from {minimum:g} up" if maximum == math.inf else f"from {minimum:g} to {maximum:g}"
            raise argparse.ArgumentTypeError(f"'{text}' is not a number {bounds}")
        return number

    return parse


def json_object(text: str) -> dict[str, Any]:
    """The JSON object in `text`, for --extra-body; raises ArgumentTypeError."""
    try:
        value = json.loads(text)
        value = json.loads(encodable(json.dumps(value, allow_nan=False, ensure_ascii=False)))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"'{one_line(text, 60)}' is not a JSON object")
    own = {entry.name for entry in fields(Sampling)} | {"messages", "model", "stream", "n"}
    taken = sorted(value.keys() & (own | {"max_completion_tokens", "n_predict"}))
    if taken:
        raise argparse.ArgumentTypeError(f"'{taken[0]}' is not for --extra-body to set")
    return value


def comma_list(parse: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """A parser of one or more values with commas between them."""
    return lambda text: [parse(part.strip()) for part in text.split(",")]


def build_parser() -> Parser:
    """The command line, in the groups that --help shows."""
    parser = Parser(
        prog="llama-eval",
        description="Measure how well a model behind llama-server, or any OpenAI-style server, answers AIME 2025.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"llama-eval {VERSION}")
    add_where_options(parser.add_argument_group("where").add_argument)
    add_what_options(parser.add_argument_group("what").add_argument)
    add_sampling_options(parser.add_argument_group("how the model samples; what is not given is not sent").add_argument)
    add_run_options(parser.add_argument_group("run"))
    return parser


def add_where_options(add: Callable[..., Any]) -> None:
    """The servers."""
    several = "base URL of a server, with or without /v1; several: repeat it, or use commas"
    add("--endpoint", "--server", action="append", default=[], metavar="URL", help=several)
    each = "requests at a time, for every endpoint or for each one (default: 4)"
    add("--threads", type=comma_list(whole_number(1, 1000)), default=[4], metavar="N[,N...]", help=each)
    add("--model", metavar="NAME", help="the model to ask for (default: the one that is served)")
    hidden = "better kept in LLAMA_API_KEY or OPENAI_API_KEY, which no list of processes shows"
    add("--api-key", metavar="KEY", help=hidden)
    simulated = "no server at hand: run the simulator beside this script, right at this rate (0.8)"
    add("--simulate", type=real_number(0, 1), nargs="?", const=0.8, metavar="RATE", help=simulated)


def add_what_options(add: Callable[..., Any]) -> None:
    """The questions, how they are put, and how the answers are graded."""
    known = f"{', '.join(KNOWN_DATASETS)}, or objects with question and answer (default: aime2025)"
    add("--dataset", default="aime2025", metavar="NAME|FILE.jsonl", help=known)
    add("--limit", type=whole_number(1), metavar="N", help="only the first N problems")
    add("--samples", type=whole_number(1, 10_000), default=1, metavar="K", help="answers to each problem (default: 1)")
    add("--system-prompt", metavar="TEXT", help="a system message before the question")
    asked = "what the prompt asks the answer to look like (default: json)"
    add("--answer-format", choices=sorted(PROMPTS), default="json", help=asked)
    by_rule = "how answers are graded (default: regex, which is by rules of text alone)"
    add("--grader", "--grader-type", choices=[RegexGrader.name], default=RegexGrader.name, help=by_rule)


def add_sampling_options(add: Callable[..., Any]) -> None:
    """What goes into each request beside the messages."""
    add("--temperature", "--temp", type=real_number(0), metavar="T")
    add("--top-k", type=whole_number(0), metavar="N")
    add("--top-p", type=real_number(0, 1), metavar="P")
    add("--min-p", type=real_number(0, 1), metavar="P")
    most = "tokens a response may have, its reasoning included"
    add("--max-tokens", "--n-predict", "--n_predict", type=whole_number(1), metavar="N", help=most)
    seeded = "gives each request a seed of its own, derived from N and the task"
    add("--seed", type=whole_number(0, 2**53), metavar="N", help=seeded)
    other = 'anything else for the request, such as \'{"reasoning_effort": "high"}\''
    add("--extra-body", type=json_object, default={}, metavar="JSON", help=other)


def add_run_options(group: argparse._ArgumentGroup) -> None:
    """The state file, limits, and how much is printed."""
    add = group.add_argument
    add("--output", type=Path, metavar="FILE", help="the state of the run (default: a name of its own in this folder)")
    existing = group.add_mutually_exclusive_group().add_argument
    extended = "continue the run in --output; more --samples or a higher --limit extend it"
    existing("--resume", action="store_true", help=extended)
    existing("--overwrite", action="store_true", help="replace the run in --output")
    dumped, timed = "between two writes of the state (default: 10)", "that one response may take (default: 3600)"
    add("--dump-interval", type=real_number(0, 1e6), default=10.0, metavar="SECONDS", help=dumped)
    add("--request-timeout", type=real_number(0.001, 1e6), default=3600.0, metavar="SECONDS", help=timed)
    add(
        "--max-retries",
        type=whole_number(0, 1000),
        default=3,
        metavar="N",
        help="for a request that failed (default: 3)",
    )
    shown = group.add_mutually_exclusive_group().add_argument
    shown("--verbose", action="store_true", help="show each answer against what was expected")
    shown("--quiet", action="store_true", help="only the bar, on a terminal, the summary, and warnings")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """The command line, checked as a whole; raises UsageError."""
    args = build_parser().parse(argv)
    given = [url for text in args.endpoint for url in text.split(",") if url.strip()]
    args.endpoint = [parse_endpoint(url) for url in given]
    if not args.endpoint and args.simulate is None:
        raise UsageError("name a server with --endpoint URL, or have one simulated with --simulate")
    if args.endpoint and args.simulate is not None:
        raise UsageError("--endpoint and --simulate exclude each other: the simulator is the server")
    if len(set(args.endpoint)) < len(args.endpoint):
        raise UsageError("the same --endpoint is given twice: use --threads to send it more requests at a time")
    servers = len(args.endpoint) or 1
    if len(args.threads) not in (1, servers):
        raise UsageError(f"--threads has {len(args.threads)} values for {servers} endpoints: give one, or one for each")
    args.threads = args.threads * servers if len(args.threads) == 1 else args.threads
    if args.resume and args.output is None:
        raise UsageError("--resume needs the --output FILE of the run to continue")
    args.api_key = args.api_key or os.environ.get("LLAMA_API_KEY") or os.environ.get("OPENAI_API_KEY")
    args.api_key = args.api_key.strip() if args.api_key else None
    args.system_prompt = encodable(args.system_prompt) if args.system_prompt else None
    if args.api_key and not (args.api_key.isascii() and args.api_key.isprintable()):
        raise UsageError("the API key holds characters that a request cannot carry")
    return args


def interrupt(signum: int, _frame: FrameType | None) -> None:
    """On the first signal unwind to the end of the run; a second one ends the process at once."""
    for number in STOPPING:
        if signal.getsignal(number) is interrupt:  # nohup's SIGHUP stays ignored
            signal.signal(number, signal.SIG_DFL)
    raise Interrupted(signum)


def prepare_process() -> None:
    """Make stdout and stderr take any character, and signals end a run in good order."""
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the whole process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may not know every character
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has SIGHUP
            signal.signal(number, interrupt)


def main(argv: list[str] | None = None) -> int:
    """The command `llama-eval`; returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    prepare_process()
    try:
        return evaluate(parse_arguments(argv), argv)
    except EvalError as error:
        complaint, status = f"error: {one_line(error, 1000)}", error.exit_code
    except Interrupted as interruption:
        complaint, status = f"stopped by {signal.Signals(interruption.signum).name}", 128 + interruption.signum
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(f"llama-eval: {complaint}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
