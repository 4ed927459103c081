#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "flask>=3.0",
#     "datasets>=3.0",
#     "python-Levenshtein>=0.25",
# ]
# ///
"""Pretends to be llama.cpp's llama-server, for testing evaluators without a model.

    python llama-server-simulator.py --success-rate 0.8
    python llama-server-simulator.py --dataset practice --port 0

The start banner with the URL goes to stdout, one line for every decision to stderr; no file is
written. A chat request is searched for a known question, which is answered rightly or wrongly (the
expected answer plus one) at exactly the success rate; anything else gets an error reply. What else it can
do, be slow, think, loop, judge, and fail in many ways, is in docs/simulator.md.

Sections: vocabulary, messages, questions, matching, outcomes, faults, texts, requests, slots, replies, simulator,
HTTP, command line.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import heapq
import hmac
import io
import itertools
import json
import math
import os
import queue
import random
import re
import resource
import select
import signal
import socket
import socketserver
import string
import struct
import sys
import threading
import time
import traceback
import unicodedata
import urllib.error
import urllib.parse
import urllib.request
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from email.errors import FirstHeaderLineIsContinuationDefect, MissingHeaderBodySeparatorDefect
from fractions import Fraction
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler
from itertools import repeat
from pathlib import Path
from ssl import SSLError
from statistics import NormalDist
from typing import Any, NoReturn

import flask
import Levenshtein
from werkzeug.exceptions import HTTPException as HTTPError

PROGRAM = "llama-server-simulator"
PRACTICE = Path(__file__).resolve().parent / "data" / "practice.jsonl"

# ---- vocabulary -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """A known question with its expected answer, a canonical integer string."""

    dataset: str
    id: str
    text: str
    answer: str

    @property
    def name(self) -> str:
        """Dataset and id, like `aime2025/I-1`."""
        return f"{self.dataset}/{self.id}"


@dataclass(frozen=True)
class Match:
    """The known question a prompt asks: found `exact`, by its `letters`, or by `levenshtein` distance."""

    question: Question
    how: str
    distance: float


@dataclass(frozen=True)
class Miss:
    """No known question is near enough, or `rival`, with another answer, is about as near as the closest."""

    distance: float
    closest: Question | None = None
    rival: Question | None = None


@dataclass(frozen=True)
class Answers:
    """Settings of the model: the rates are shares of its replies."""

    success_rate: float
    success_mode: str
    truncate_rate: float
    no_answer_rate: float
    loop_rate: float
    wrong_answer: str
    judge_error_rate: float
    answer_format: str
    reasoning: str
    tokens: int
    match_threshold: float
    unmatched: str | None  # the text of the reply to a prompt without a known question; None for an error


@dataclass(frozen=True)
class Speed:
    """Settings of its slots and their speed; times are in seconds, the context of a slot in tokens."""

    ttft: float
    tokens_per_second: float
    jitter: float
    slots: int
    slot_context: int
    load_time: float


@dataclass(frozen=True)
class Serving:
    """Settings of its server."""

    alias: str
    keys: tuple[str, ...]
    metrics: bool
    slots_endpoint: bool
    kv_unified: bool
    interrupts: bool


@dataclass(frozen=True)
class Failing:
    """Settings of its faults: the share of each kind, and how many attempts at a question fail at first."""

    shares: tuple[tuple[str, float], ...]
    first: int


@dataclass(frozen=True)
class Settings:
    """The behaviour of the simulator, as its options have it; docs/options.md explains them one by one."""

    seed: int
    answers: Answers
    speed: Speed
    server: Serving
    faults: Failing


@dataclass(frozen=True)
class Delivery:
    """One answer given to one question: the number-th one, counted from 0, and its outcome."""

    question: Question
    number: int
    outcome: str  # one of VERDICTS
    answer: str | None
    epoch: int = 0  # how often all had been forgotten before


@dataclass(frozen=True)
class Prompt:
    """The prompt of a request: the user's texts, last one first; these and the system's; all as the model reads it."""

    user_texts: Sequence[str]
    text: str
    rendered: str
    tokens: int


@dataclass(frozen=True)
class ChatRequest:
    """The parts of a request for completions that matter. `limit` is in tokens, None for no limit."""

    prompts: Sequence[Prompt]
    choices: int  # for each prompt
    stream: bool
    include_usage: bool
    limit: int | None
    schema: Any  # the JSON schema that replies have to satisfy; None for free text
    thinking: bool
    parses_thoughts: bool  # into reasoning_content; otherwise they stay in the content
    top_logprobs: int | None  # None where no log-probabilities are asked for
    progress: bool
    timings_per_token: bool
    verbose: bool
    sampling: Mapping[str, Any]
    is_chat: bool = True


@dataclass(frozen=True)
class Choice:
    """One choice of a reply: its tokens, each with the field it belongs to, and the right verdict on it."""

    fields: Sequence[tuple[str, str]]
    finish_reason: str
    completion_tokens: int
    prompt_tokens: int
    verdict: str | None
    delivery: Delivery | None = None
    entry: dict[str, Any] | None = None  # in the log

    def text(self, field: str) -> str:
        """The text in the tokens of one field."""
        return "".join(piece for name, piece in self.fields if name == field)

    def length(self, count: int) -> int:
        """The characters of the first `count` tokens."""
        return sum(len(piece) for _, piece in self.fields[:count])


Row = tuple[str, Mapping[str, Any]]  # where it stands, for messages, and its fields

# ---- messages -------------------------------------------------------------------------------------------


class SimulatorError(Exception):
    """The simulator cannot start."""

    exit_code = 1


class UsageError(SimulatorError):
    """The command line makes no sense."""

    exit_code = 2


class RequestError(Exception):
    """A request that gets an error reply instead of an answer."""

    def __init__(
        self, status: int, kind: str, message: str, detail: str = "", more: Mapping[str, Any] | None = None
    ) -> None:
        """Take the HTTP status, llama-server's error type, its message, words for the log only, and more fields."""
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.more = more or {}

    def body(self) -> dict[str, Any]:
        """The error as JSON has it."""
        return {"error": {"code": self.status, "message": str(self), "type": self.kind, **self.more}}


class ServerError(RequestError):
    """A request that gets an error of the server itself, before a handler has seen it."""

    def body(self) -> dict[str, Any]:
        """The error as JSON has it: its keys stand in another order."""
        return {"error": {"message": str(self), "type": self.kind, "code": self.status}}


class HangupError(Exception):
    """The connection is to end at once, orderly or with a reset."""

    def __init__(self, reset: bool = False) -> None:
        """Take whether the client is to find the connection reset."""
        super().__init__("the connection ends")
        self.reset = reset


class BadRequestError(Exception):
    """The client has sent something that is no HTTP request."""


def invalid(message: str) -> RequestError:
    """The error for a request that is JSON but not acceptable."""
    return RequestError(400, "invalid_request_error", message)


def quoted(text: object, limit: int = 60) -> str:
    """Something from outside as it may stand in a message or a log line: cut, escaped and quoted."""
    plain = str(text)
    return repr(plain if len(plain) <= limit else plain[: limit - 1] + "…")


def shown(name: str) -> str:
    """A name from outside: as it is if it is harmless, else quoted."""
    return name if re.fullmatch(r"[\w./#-]{1,80}", name, re.ASCII) else quoted(name)


def one_line(text: object) -> str:
    """The text without line breaks, which a library's message may hold, and with control characters escaped."""
    line = " ".join(str(text).split())
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in line)


def log(line: str) -> None:
    """Write a line to stderr in one system call, so that lines of different threads never mix."""
    with contextlib.suppress(OSError):
        os.write(2, (line + "\n").encode("utf-8", "backslashreplace"))


# ---- questions ------------------------------------------------------------------------------------------

DEGREES = re.compile(r"(?:\^?\{?\\circ\}?|°|\\degree)$")
WRAPPED = re.compile(r"^\\(?:text|mathrm|mathbf|textbf|boxed)\{(.*)\}$")
ZERO_DECIMALS = re.compile(r"\.0*$")
# A thousand digits are more than any answer has and fewer than int() refuses to read.
INTEGER = re.compile(r"[+-]?(?:[0-9]{1,1000}|[0-9]{1,3}(?:,[0-9]{3}){1,300})")


def canonical_answer(raw: object) -> str | None:
    r"""The integer in a dataset's answer field as a plain string, or None if it is not one.

    `336^\circ` is 336 and `025` is 25, as real AIME rows have them; `1,024` is 1024. Of an answer of GSM8K, which
    shows its work, only what follows the `####` counts.
    """
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        return None
    if isinstance(raw, float):
        return str(int(raw)) if raw.is_integer() else None
    text = str(raw).rpartition("####")[2]
    text = WRAPPED.sub(r"\1", text.strip().strip("$").strip()).replace("{,}", ",").replace("\N{MINUS SIGN}", "-")
    text = ZERO_DECIMALS.sub("", DEGREES.sub("", text).strip())
    return str(int(text.replace(",", ""))) if INTEGER.fullmatch(text) else None


HUB_ANSWER_SECONDS = 4.0


def hub_rows(path: str, config: str | None, split: str) -> Iterator[Row]:
    """Rows of a Hugging Face dataset: from its cache without touching the network, else from the hub.

    AI-MO/aimo-validation-aime: {"id": 0, "problem": "Quadratic polynomials ...", "answer": "116", ...}
    """
    try:
        import datasets  # noqa: PLC0415  # heavy: half a second that a local file should not cost
    except ImportError as error:
        raise SimulatorError(f"{path} needs the package 'datasets': pip install datasets") from error
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    label = " ".join(filter(None, (path, config)))
    try:
        rows = cached_dataset(path, config, split)
    except (OSError, ValueError, LookupError, AttributeError) as reason:
        cache = f"the cache {datasets.config.HF_DATASETS_CACHE} does not hold it ({one_line(reason)})"
        rows = downloaded_dataset(path, config, split, f"cannot load {label}: {cache}")
    for number, fields in enumerate(rows, 1):
        yield f"{label} row {number}", fields


def cached_dataset(path: str, config: str | None, split: str) -> Any:
    """A dataset from the local cache. Raises one of several built-in exceptions if it is not there whole.

    `datasets.load_dataset` asks the hub first and, without a network, retries for 20 seconds before it looks here.
    """
    from datasets.packaged_modules.cache.cache import Cache  # noqa: PLC0415

    name = path.rsplit("/", maxsplit=1)[-1]
    builder = Cache(repo_id=path, dataset_name=name, config_name=config, version="auto", hash="auto")
    return builder.as_dataset(split=split)


def downloaded_dataset(path: str, config: str | None, split: str, problem: str) -> Any:
    """A dataset from the hub; raises SimulatorError, beginning with the `problem` so far, if that fails."""
    import datasets  # noqa: PLC0415

    endpoint = datasets.config.HF_ENDPOINT
    advice = "use --dataset practice or a local FILE.jsonl"
    if datasets.config.HF_HUB_OFFLINE:
        raise SimulatorError(f"{problem} and HF_HUB_OFFLINE forbids asking the hub; {advice}")
    if not is_up(endpoint):
        raise SimulatorError(f"{problem} and {endpoint} does not answer; {advice}")
    log(f"loading {path} from {endpoint}")
    try:
        return datasets.load_dataset(path, config, split=split)
    except Exception as error:  # the library passes on whatever its HTTP and Arrow layers raise
        raise SimulatorError(f"{problem} and {endpoint} says: {one_line(error)}; {advice}") from error


def is_up(url: str) -> bool:
    """Whether a web server answers there soon. Asked in a thread, since no time limit covers name lookup."""
    outcome: queue.Queue[bool] = queue.Queue()
    threading.Thread(target=lambda: outcome.put(probe(url)), daemon=True).start()
    try:
        return outcome.get(timeout=HUB_ANSWER_SECONDS)
    except queue.Empty:
        return False


def probe(url: str) -> bool:
    """Whether a HEAD request reaches a server that is not itself in trouble."""
    try:
        request = urllib.request.Request(url, method="HEAD")  # noqa: S310  # the user's own HF_ENDPOINT
        with urllib.request.urlopen(request, timeout=HUB_ANSWER_SECONDS):  # noqa: S310
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500 and error.code != 429  # at those the library would wait and ask again
    except urllib.error.URLError as error:
        # Python on macOS may know no certificates where the hub's own client brings some.
        return isinstance(error.reason, SSLError)
    except (OSError, ValueError, HTTPException):
        return False


HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
# Where the datasets with a name of their own are on the hub: repository, configuration, split.
HUB_DATASETS = {
    "aime": ("AI-MO/aimo-validation-aime", None, "train"),
    "aime2026": ("MathArena/aime_2026", None, "train"),
    "gsm8k": ("openai/gsm8k", "main", "test"),
}
NAMED_DATASETS = ("aime", "aime2025", "aime2026", "gsm8k", "practice")
KNOWN_DATASETS = f"{', '.join(NAMED_DATASETS)}, a FILE.jsonl, or a Hugging Face name org/name"


def parse_datasets(text: str) -> list[str]:
    """The names in a comma-separated `--dataset`; raises UsageError for one that cannot be a dataset."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        known = name in NAMED_DATASETS or is_file_name(name)
        if not known and (not HUB_NAME.fullmatch(name) or os.path.exists(name)):
            raise UsageError(f"unknown dataset {quoted(name)}; known are {KNOWN_DATASETS}")
    titles = Counter(dataset_title(name) for name in names)
    for title, count in titles.items():
        if count > 1:
            raise UsageError(f"dataset {quoted(title)} is named {count} times in --dataset")
    return names


def dataset_title(name: str) -> str:
    """The name of a dataset in question names: that of a file is its stem, so that its folder does not matter."""
    return Path(name).stem if is_file_name(name) else name


def is_file_name(name: str) -> bool:
    """Whether a dataset is named by its file: by the usual ending, or because there is such a file."""
    return name.endswith(".jsonl") or os.path.isfile(name)


def load_datasets(names: Sequence[str], split: str) -> list[Question]:
    """All questions of the datasets, in order; `split` is for Hugging Face names only."""
    return [question for name in names for question in load_dataset(name, split)]


def load_dataset(name: str, split: str) -> list[Question]:
    """The questions of one dataset; raises SimulatorError if there are none or one is unusable."""
    questions: dict[str, Question] = {}
    places: dict[str, str] = {}
    for number, (where, fields) in enumerate(dataset_rows(name, split), 1):
        question = read_question(dataset_title(name), number, where, fields)
        if question.id in questions:
            raise SimulatorError(f"{where}: the id {quoted(question.id)} is taken by {places[question.id]}")
        questions[question.id] = question
        places[question.id] = where
    if not questions:
        raise SimulatorError(f"dataset {quoted(name, 200)} holds no questions")
    return list(questions.values())


def dataset_rows(name: str, split: str) -> Iterator[Row]:
    """The rows of one dataset."""
    if name in HUB_DATASETS:
        return hub_rows(*HUB_DATASETS[name])
    if name == "aime2025":
        return aime2025_rows()
    if name == "practice":
        return jsonl_rows(PRACTICE)
    return jsonl_rows(Path(name)) if is_file_name(name) else hub_rows(name, None, split)


def read_question(title: str, number: int, where: str, fields: Mapping[str, Any]) -> Question:
    """A row as a question; its id is its number in the dataset, counted from 1, unless it has one."""
    text = fields.get("question", fields.get("problem"))
    if not isinstance(text, str) or not text.strip():
        raise SimulatorError(f"{where}: no text under 'question' or 'problem'")
    if fields.get("answer") is None:
        raise SimulatorError(f"{where}: no answer")
    answer = canonical_answer(fields["answer"])
    if answer is None:
        raise SimulatorError(f"{where}: the answer {quoted(fields['answer'])} is not an integer")
    identity = number if fields.get("id") is None else fields["id"]
    if isinstance(identity, bool) or not isinstance(identity, int | str) or identity == "":
        raise SimulatorError(f"{where}: the id {quoted(identity)} is neither text nor an integer")
    return Question(title, str(identity), text, answer)


def jsonl_rows(path: Path) -> Iterator[Row]:
    """Rows of a JSONL file; `id` may be missing, and `problem` may stand for `question`.

    {"id": "7", "question": "What is $6 \\cdot 7$?", "answer": "42"}
    """
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise SimulatorError(f"cannot read {quoted(path, 200)}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            fields = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise SimulatorError(f"{where}: not UTF-8 text") from error
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise SimulatorError(f"{where}: not valid JSON ({reason})") from error
        if not isinstance(fields, dict):
            raise SimulatorError(f"{where}: not a JSON object")
        yield where, fields


def aime2025_rows() -> Iterator[Row]:
    r"""Both halves of AIME 2025, with the ids I-1 to I-15 and II-1 to II-15 they lack on the hub.

    {"question": "Suppose $ \\triangle ABC $ has angles ...", "answer": "336^\\circ"}
    """
    for part in ("I", "II"):
        rows = hub_rows("opencompass/AIME2025", f"AIME2025-{part}", "test")
        for number, (where, fields) in enumerate(rows, 1):
            yield where, {**fields, "id": f"{part}-{number}"}


# ---- matching -------------------------------------------------------------------------------------------

# AIME questions nearest to each other are 0.32 apart, and 10 % noise moves one by at most 0.2.
MARGIN = 0.05
# A shorter text says too little for an inexact match: 6*7 and 6-7 differ in one character.
INEXACT_LENGTH = 24
# The letters of a question that is mostly LaTeX are few, and resemble those of many others.
LETTERS_SHARE = 0.5
WINDOW = 32
STRIDE = 8
GRAM = 4
# So many entries of an index are looked at, those of the rarest grams first: they tell most.
ENTRIES = 10_000
CANDIDATES = 8
# So many runs of sentences are compared with a question; a text of short lines has far more of them.
MOST_RUNS = 4000
# An inexact search reads no more than this of a message: it is the slow one.
INEXACT_READS = 20_000

LATEX_COMMAND = re.compile(r"\\(?:begin|end)\{[^}]*\}|\\[a-zA-Z]+")
BETWEEN_NUMBERS = re.compile(r"(?<=[0-9])\s+(?=[0-9])")
PIECE_END = re.compile(r"\n+|(?<=[.?!:])\s+")


def squash(text: str) -> str:
    """The text in lower case without white space and dollar signs, so that typesetting it anew changes nothing.

    Between two numbers a space stays, lest they become one.
    """
    folded = unicodedata.normalize("NFKC", text).lower().replace("$", "")
    return "".join(BETWEEN_NUMBERS.sub("\0", folded).split()).replace("\0", " ")


def letters(text: str) -> str:
    """Its letters and digits only, LaTeX commands dropped, so that stripping LaTeX changes nothing."""
    folded = LATEX_COMMAND.sub(" ", unicodedata.normalize("NFKC", text)).lower()
    return "".join(character for character in folded if character.isalnum())


def grams(text: str) -> set[str]:
    """All runs of GRAM characters in a text."""
    return {text[start : start + GRAM] for start in range(len(text) - GRAM + 1)}


def within_number(text: str, place: int) -> bool:
    """Whether text cut at that place would be cut within a number: `6*7` is no part of `6*75`."""
    return 0 < place < len(text) and text[place - 1].isdigit() and text[place].isdigit()


class Substrings:
    """Finds which of many texts occur in another, in time that hardly depends on how many they are.

    Every text is filed under the windows at its first STRIDE places, so that wherever it stands in the other text,
    one of them begins at a multiple of STRIDE there. Texts that are too short for that are filed under their whole.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        """File the texts; empty ones occur nowhere."""
        self.texts = texts
        self.windows: dict[str, list[tuple[int, int]]] = defaultdict(list)  # of number and place
        self.short: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for number, text in enumerate(texts):
            if len(text) >= WINDOW + STRIDE - 1:
                for place in range(STRIDE):
                    self.windows[text[place : place + WINDOW]].append((number, place))
            elif text:
                self.short[len(text)][text].append(number)

    def inside(self, other: str) -> dict[int, int]:
        """The numbers of the texts that occur in `other`, each with the place where it ends for the last time."""
        found = {}
        for start in range(0, len(other) - WINDOW + 1, STRIDE):
            for number, place in self.windows.get(other[start : start + WINDOW], ()):
                if start >= place and self.stands_at(number, other, start - place):
                    found[number] = start - place + len(self.texts[number])
        for length, filed in self.short.items():
            for start in range(len(other) - length + 1):
                for number in filed.get(other[start : start + length], ()):
                    if self.stands_at(number, other, start):
                        found[number] = start + length
        return found

    def stands_at(self, number: int, other: str, start: int) -> bool:
        """Whether a text stands at that place of `other`, and not with half a number at one of its ends."""
        text = self.texts[number]
        if not other.startswith(text, start):
            return False
        return not within_number(other, start) and not within_number(other, start + len(text))


class Neighbours:
    """Finds which of many texts are nearest to some span of another text, by Levenshtein distance."""

    def __init__(self, texts: Sequence[str], threshold: float) -> None:
        """File the texts by their grams; empty ones are near to nothing."""
        self.texts = texts
        self.threshold = threshold
        self.sizes: list[int] = []  # how many grams each text has
        self.filed: dict[str, list[int]] = defaultdict(list)
        for number, text in enumerate(texts):
            members = grams(text)
            self.sizes.append(len(members))
            for gram in members:
                self.filed[gram].append(number)

    def distances(self, pieces: Sequence[str]) -> dict[int, float]:
        """The distance, 0 to 1, of the CANDIDATES that share most grams with the pieces of a text."""
        whole, ends = "".join(pieces), piece_ends(pieces)
        shared: Counter[int] = Counter()
        room = ENTRIES
        for entries in sorted((self.filed[gram] for gram in grams(whole) if gram in self.filed), key=len):
            shared.update(entries)
            room -= len(entries)
            if room < 0:
                break
        shares = [(count / self.sizes[number], -number) for number, count in shared.items()]
        nearest = [-number for _, number in heapq.nlargest(CANDIDATES, shares)]
        return {number: span_distance(self.texts[number], whole, ends, self.threshold) for number in nearest}


def piece_ends(pieces: Iterable[str]) -> list[int]:
    """The places at which pieces meet once they are joined, from 0 to the length of the whole."""
    ends = [0]
    for piece in pieces:
        if piece:
            ends.append(ends[-1] + len(piece))
    return ends


def span_distance(wanted: str, whole: str, ends: Sequence[int], threshold: float) -> float:
    """The least distance of `wanted` to a run of pieces of about its length, over the longer's length.

    A run of another length is further than the threshold whatever it says; 1 if there is no other.
    """
    least = 1.0
    ends = thinned(ends, len(wanted))
    for start in ends:
        low = bisect_left(ends, start + len(wanted) * (1 - threshold))
        high = bisect_right(ends, start + len(wanted) / (1 - threshold))
        for end in ends[low:high]:
            longer = max(len(wanted), end - start)
            cutoff = math.floor(least * longer)
            edits = Levenshtein.distance(wanted, whole[start:end], score_cutoff=cutoff)
            least = min(least, edits / longer)
    return least


def thinned(ends: Sequence[int], length: int) -> Sequence[int]:
    """The ends, or so many of them that not too many runs of about that length lie between two of them."""
    gap = 0
    while len(ends) * (len(ends) * length / max(1, ends[-1])) > MOST_RUNS:
        gap = max(2 * gap, length // 50, 1)
        kept = [0]
        for end in ends:
            if end - kept[-1] >= gap:
                kept.append(end)
        ends = kept
    return ends


def unless_short(text: str, length: float) -> str:
    """The text, or nothing if it is shorter than that."""
    return text if len(text) >= length else ""


class Matcher:
    """Finds the known question that a prompt asks, or says how near the closest one is."""

    def __init__(self, questions: Sequence[Question], threshold: float) -> None:
        """Prepare the search; takes about a second for 5000 questions."""
        self.questions = questions
        self.threshold = threshold
        squashed = [squash(question.text) for question in questions]
        lettered = [unless_short(letters(question.text), INEXACT_LENGTH) for question in questions]
        shares = [
            unless_short(text, LETTERS_SHARE * len(whole)) for text, whole in zip(lettered, squashed, strict=True)
        ]
        self.squashed = Substrings(squashed)
        self.lettered = Substrings(lettered)
        self.near_squashed = Neighbours([unless_short(text, INEXACT_LENGTH) for text in squashed], threshold)
        self.near_lettered = Neighbours(shares, threshold)

    def find(self, texts: Iterable[str]) -> Match | Miss:
        """The question in the first of the texts that holds one."""
        nearest = Miss(1.0)
        for text in texts:
            found = self.find_in(text)
            if isinstance(found, Match):
                return found
            nearest = min(nearest, found, key=lambda miss: miss.distance)
        return nearest

    def find_in(self, text: str) -> Match | Miss:
        """The question in one text: verbatim, else by its letters, else the nearest."""
        exact = self.last(self.squashed, squash(text))
        if exact is not None:
            return Match(exact, "exact", 0.0)
        alike = self.last(self.lettered, letters(text))
        if alike is not None:
            return Match(alike, "letters", 0.0)
        return self.nearest(text[:INEXACT_READS])

    def last(self, substrings: Substrings, text: str) -> Question | None:
        """The question that ends last in the text, after examples; the longest, if several end there.

        None also if two that are the same have different answers.
        """
        ends = substrings.inside(text)
        places = {number: (end, len(substrings.texts[number])) for number, end in ends.items()}
        best = [self.questions[number] for number in sorted(places) if places[number] == max(places.values())]
        return best[0] if len({question.answer for question in best}) == 1 else None

    def nearest(self, text: str) -> Match | Miss:
        """The question least far from a span of the text, unless too far or hardly nearer than another."""
        pieces = PIECE_END.split(text)
        distances = self.near_squashed.distances([squash(piece) for piece in pieces])
        for number, distance in self.near_lettered.distances([letters(piece) for piece in pieces]).items():
            distances[number] = min(distance, distances.get(number, 1.0))
        ranked = sorted((distance, number) for number, distance in distances.items())
        if not ranked:
            return Miss(1.0)
        distance, best = ranked[0][0], self.questions[ranked[0][1]]
        if distance > self.threshold:
            return Miss(distance, best)
        for other_distance, number in ranked:
            if self.questions[number].answer != best.answer and other_distance < distance + MARGIN:
                return Miss(distance, best, self.questions[number])
        return Match(best, "levenshtein", distance)


# ---- outcomes -------------------------------------------------------------------------------------------


def digest(seed: int, *key: object) -> bytes:
    """32 bytes that depend on nothing but the seed and the key."""
    text = "\0".join(map(str, (seed, *key)))
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).digest()


def draw(seed: int, *key: object) -> float:
    """A number from 0 to 1, below 1, that depends on nothing but the seed and the key."""
    return (int.from_bytes(digest(seed, *key)[:8], "big") >> 11) / 2**53


def log_normal(sigma: float, seed: int, *key: object) -> float:
    """A factor of median 1 whose logarithm has the standard deviation `sigma`."""
    return math.exp(sigma * NormalDist().inv_cdf(max(draw(seed, *key), 2**-53))) if sigma else 1.0


# The outcomes of an answer, each with the verdict of a perfect evaluator.
VERDICTS = {
    "right": "correct",
    "wrong": "incorrect",
    "no_answer": "no_answer",
    "truncated": "truncated",
    "loop": "truncated",
}
COUNTED = ("correct", "incorrect", "no_answer", "truncated")
WRONG_ANSWERS = ("plus-one", "minus-one", "reversed", "random")


def wrong_answer(answer: str, kind: str, chance: float) -> str:
    """An answer that is not the expected one: off by one, its digits reversed, or any from 0 to 999."""
    number = int(answer)
    sign = -1 if number < 0 else 1
    guess = {
        "plus-one": number + 1,
        "minus-one": number - 1,
        "reversed": sign * int(str(abs(number))[::-1]),
        "random": int(chance * 1000),
    }[kind]
    return str(guess if guess != number else number + 1)


def decimal(rate: float) -> Fraction:
    """The rate as it was written: in binary 0.145 of 100 would be a little under 14.5."""
    return Fraction(repr(rate))


def count_of(rate: Fraction, total: int) -> int:
    """The number of questions that a rate of `total` is: halves are rounded up."""
    return math.floor(rate * total + Fraction(1, 2))


def cumulative_shares(settings: Settings) -> dict[str, Fraction]:
    """Each outcome with its share and those before it; the rest is wrong answers."""
    rates = {
        "right": settings.answers.success_rate,
        "truncated": settings.answers.truncate_rate,
        "no_answer": settings.answers.no_answer_rate,
        "loop": settings.answers.loop_rate,
    }
    return dict(zip(rates, itertools.accumulate(map(decimal, rates.values())), strict=True))


def ranking(questions: Iterable[Question], seed: int) -> dict[Question, int]:
    """The questions of one dataset numbered from 0 in an order that depends on the seed and their ids only."""
    drawn = sorted(questions, key=lambda question: digest(seed, question.dataset, question.id))
    return {question: rank for rank, question in enumerate(drawn)}


def place_in_pass(rank: int, number: int, right: int, total: int) -> int:
    """The place of a question's number-th delivery among the `total` of a pass, of which the first are right.

    Each delivery shifts the ranks by the count of those that are not right, so every full pass over the dataset
    has exactly `right` right answers, and the others move on to other questions in the next pass.
    """
    return (rank + number * (total - right)) % total


class Deliveries:
    """Decides the outcome of each answer, and counts those that have reached their client.

    In `exact` mode every pass over a dataset has exactly the asked shares, in any order of requests.
    """

    def __init__(self, questions: Sequence[Question], settings: Settings) -> None:
        """Rank each dataset's questions; nothing is drawn later."""
        self.settings = settings
        self.by_dataset: dict[str, list[Question]] = defaultdict(list)
        for question in questions:
            self.by_dataset[question.dataset].append(question)
        self.shares = cumulative_shares(settings)
        self.ranks: dict[Question, int] = {}
        self.counts: dict[str, dict[str, int]] = {}  # for each dataset the shares as numbers of its questions
        for name, members in self.by_dataset.items():
            self.ranks.update(ranking(members, settings.seed))
            self.counts[name] = {outcome: count_of(upto, len(members)) for outcome, upto in self.shares.items()}
        self.lock = threading.Lock()
        self.epoch = -1
        self.reset()

    def reset(self) -> None:
        """Forget all deliveries, also those on their way."""
        with self.lock:
            self.epoch += 1
            self.taken: Counter[Question] = Counter()
            self.returned: dict[Question, list[int]] = defaultdict(list)  # numbers of lost deliveries, a heap
            self.settled: dict[Question, dict[int, str]] = defaultdict(dict)  # the verdict on each delivery

    def take(self, question: Question) -> Delivery:
        """The next answer to a question: the first one that nobody has got."""
        with self.lock:
            if self.returned[question]:
                number = heapq.heappop(self.returned[question])
            else:
                number = self.taken[question]
                self.taken[question] += 1
            epoch = self.epoch
        outcome = self.outcome(question, number)
        answer: str | None = question.answer if outcome == "right" else None
        if outcome == "wrong":
            chance = draw(self.settings.seed, "wrong", question.name, number)
            answer = wrong_answer(question.answer, self.settings.answers.wrong_answer, chance)
        return Delivery(question, number, outcome, answer, epoch)

    def outcome(self, question: Question, number: int) -> str:
        """The outcome of a question's number-th delivery."""
        if self.settings.answers.success_mode == "random":
            chance = draw(self.settings.seed, "success", question.name, number)
            return next((outcome for outcome, upto in self.shares.items() if chance < upto), "wrong")
        counts, total = self.counts[question.dataset], len(self.by_dataset[question.dataset])
        place = place_in_pass(self.ranks[question], number, counts["right"], total)
        return next((outcome for outcome, upto in counts.items() if place < upto), "wrong")

    def settle(self, delivery: Delivery, verdict: str | None) -> None:
        """Count a delivery that has reached its client, with the right verdict on it; None gives it back."""
        with self.lock:
            if delivery.epoch != self.epoch:
                return
            if verdict is None:
                self.settled[delivery.question].pop(delivery.number, None)
                heapq.heappush(self.returned[delivery.question], delivery.number)
            else:
                self.settled[delivery.question][delivery.number] = verdict

    def expected(self) -> dict[str, Any]:
        """The counts that a perfect evaluator must report of all that has been delivered."""
        with self.lock:
            settled = {question: dict(numbered) for question, numbered in self.settled.items() if numbered}
        datasets = {
            name: tally(verdict for question in members for verdict in settled.get(question, {}).values())
            for name, members in self.by_dataset.items()
        }
        whole = tally(verdict for numbered in settled.values() for verdict in numbered.values())
        by_question = {question.name: [numbered[n] for n in sorted(numbered)] for question, numbered in settled.items()}
        return {**whole, "datasets": datasets, "pass": self.one_pass(), "questions": by_question}

    def one_pass(self) -> dict[str, Any] | None:
        """The counts of a first pass over each dataset, unless the draws are random or a limit cuts it short."""
        if self.settings.answers.success_mode == "random":
            return None
        return {
            name: tally(VERDICTS[self.outcome(question, 0)] for question in members)
            for name, members in self.by_dataset.items()
        }


def tally(verdicts: Iterable[str]) -> dict[str, Any]:
    """The verdicts counted, with the accuracy, which is None where there are none."""
    counts = Counter(verdicts)
    total = sum(counts.values())
    named = {name: counts[name] for name in COUNTED}
    return {"accuracy": counts["correct"] / total if total else None, **named, "deliveries": total}


# ---- faults ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """A way in which the reply to a chat request goes wrong; with no field but `told`, it is a reply as it should be.

    A `status` makes it a reply of its own, with these `headers` and this `body`: an error, or a page of HTML. `end` is
    the end of the connection, "close", "reset", or "hang" for nothing at all, before the reply or `midway` in it; a
    stream may end midway with an `event`, too. `choices` and `content` say whether there are any, `marked` puts bytes
    before the text that are not UTF-8, `done` ends a stream as it should be, `pause` is in seconds before each byte.
    After one that is `delivered` a client has, or may have, its answer; any other loses the reply.
    """

    told: str = ""
    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    body: dict[str, Any] | str = ""
    end: str | None = None
    midway: bool = False
    event: str = ""
    choices: bool = True
    content: bool = True
    marked: bool = False
    done: bool = True
    pause: float = 0.0
    delivered: bool = False
    only_streams: bool = False

    @property
    def generates(self) -> bool:
        """Whether a reply has to be written for it."""
        return self.status is None and (self.end is None or self.midway)


def error_status(status: int, kind: str, message: str, told: str, *headers: tuple[str, str]) -> Fault:
    """A fault that is an error of the server itself."""
    return Fault(told, status, headers, ServerError(status, kind, message).body())


def page_status(status: int, title: str, told: str) -> Fault:
    """A fault that is a page of HTML, as proxies have it."""
    title = f"{status} {title}"
    page = f"<html>\n<head><title>{title}</title></head>\n<body><center><h1>{title}</h1></center></body>\n</html>\n"
    return Fault(told, status, body=page)


DRIP_SECONDS = 0.2
FAILURE = RequestError(500, "server_error", "simulated: an error").body()
BROKEN = RequestError(500, "server_error", "simulated: the server has failed in mid-stream").body()
CUT_EVENT = 'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"con'
SOUND = Fault(delivered=True)
FAULTS = {
    "400": error_status(
        400, "invalid_request_error", "simulated: this request is not acceptable", "HTTP 400, invalid request"
    ),
    "401": error_status(401, "authentication_error", "Invalid API Key", "HTTP 401, invalid API key"),
    "404": error_status(404, "not_found_error", "File Not Found", "HTTP 404, as from another server"),
    "408": error_status(408, "server_error", "simulated: the request took too long", "HTTP 408, request timeout"),
    "429": error_status(
        429,
        "rate_limit_error",
        "simulated: too many requests",
        "HTTP 429 with Retry-After: 1, as proxies have it",
        ("Retry-After", "1"),
    ),
    "500": error_status(500, "server_error", "simulated: the server has failed", "HTTP 500, server error"),
    "502": page_status(502, "Bad Gateway", "HTTP 502 with a page of HTML, as from a proxy"),
    "503": error_status(503, "unavailable_error", "Loading model", "HTTP 503, loading model"),
    "504": page_status(504, "Gateway Time-out", "HTTP 504, gateway timeout"),
    "close": Fault("the connection is closed before the reply", end="close"),
    "reset": Fault("the connection is reset before the reply", end="reset"),
    "reset-body": Fault("the connection is reset in the middle of the reply", end="reset", midway=True),
    "short-body": Fault("the connection is closed in the middle of the reply", end="close", midway=True),
    "cut-json": Fault("the reply ends in the middle of its JSON", midway=True, event=CUT_EVENT),
    "hang": Fault("nothing ever comes", end="hang"),
    "drip": Fault("the reply comes at five bytes a second", pause=DRIP_SECONDS, delivered=True),
    "error-200": Fault("an error object with status 200", 200, body=FAILURE),
    "no-choices": Fault("`choices` is empty", choices=False),
    "null-content": Fault("`content` is null: the reply arrives, and holds no answer", content=False, delivered=True),
    "bad-utf8": Fault(
        "bytes that are not UTF-8 before the text: the reply arrives, and its answer can be read",
        marked=True,
        delivered=True,
    ),
    "no-done": Fault("a stream without its `[DONE]`, but whole", done=False, delivered=True, only_streams=True),
    "stream-error": Fault(
        "an error event in the middle of a stream; a whole reply is left alone",
        midway=True,
        event=f"data: {json.dumps(BROKEN, separators=(',', ':'))}\n\n",
        only_streams=True,
    ),
}


class Faults:
    """Decides which request fails, and how: by the seed, the question and the number of the attempt at it."""

    def __init__(self, settings: Settings) -> None:
        """Start counting the attempts."""
        self.settings = settings
        self.lock = threading.Lock()
        self.attempts: Counter[str] = Counter()

    def reset(self) -> None:
        """Forget all attempts."""
        with self.lock:
            self.attempts.clear()

    def next(self, name: str, stream: bool) -> tuple[int, str | None]:
        """The number of this attempt at a question, counted from 0, and the fault that strikes it, if any."""
        with self.lock:
            attempt = self.attempts[name]
            self.attempts[name] += 1
        kind = self.kind(name, attempt)
        return attempt, None if kind and FAULTS[kind].only_streams and not stream else kind

    def kind(self, name: str, attempt: int) -> str | None:
        """The fault that strikes an attempt, if any."""
        faults = self.settings.faults.shares
        if attempt < self.settings.faults.first:
            return faults[attempt % len(faults)][0] if faults else "503"
        chance = draw(self.settings.seed, "fault", name, attempt)
        for kind, rate in faults:
            if chance < rate:
                return kind
            chance -= rate
        return None


# ---- texts ----------------------------------------------------------------------------------------------

# The text of the simulated model is cut into tokens of up to four characters, or a whole number, with the white
# space before it: about as many as a real model would need.
PIECE = re.compile(r"</?think>|\s?(?:[0-9]+|(?:(?!</?think>)[^\s0-9]){1,4})|\s{1,4}")

# Its prompts are counted by the vocabulary of the small model that llama-server was observed with: the bytes,
# eight merges in the order of their ranks, and special tokens. That is nearly a token for each character.
MERGES = ("th", "in", "er", "an", "on", "the", "ing", "and")
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
SPECIAL = re.compile("(" + "|".join(map(re.escape, SPECIALS)) + ")")
FIRST_MERGE = 256
FIRST_SPECIAL = FIRST_MERGE + len(MERGES)
VOCABULARY = 288


def pieces_of(text: str) -> list[str]:
    """The text cut into the tokens in which the model writes it."""
    return PIECE.findall(text)


def tokenize(text: str) -> list[int]:
    """The ids of the tokens in which the model reads a text."""
    ids: list[int] = []
    for part in SPECIAL.split(text):
        if part in SPECIALS:
            ids.append(FIRST_SPECIAL + SPECIALS.index(part))
            continue
        # Each byte is a character, and each merge one whose code is its id.
        merged = part.encode("utf-8", "replace").decode("latin-1")
        for number, merge in enumerate(MERGES):
            whole = chr(FIRST_MERGE + MERGES.index(merge[:-1])) if merge[:-1] in MERGES else merge[:-1]
            merged = merged.replace(whole + merge[-1], chr(FIRST_MERGE + number))
        ids.extend(map(ord, merged))
    return ids


def token_bytes(token: int) -> bytes:
    """The bytes that a token stands for; none for an id that is none."""
    if 0 <= token < FIRST_MERGE:
        return bytes([token])
    words = (*MERGES, *SPECIALS)
    place = token - FIRST_MERGE
    return words[place].encode() if 0 <= place < len(words) else b""


SCHEMA_TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
SCHEMA_DEPTH = 64
MOST_ITEMS = 1000
MOST_CHARACTERS = 100_000
# Which property holds the answer, or the verdict: one of that very name, else one whose name ends like it, else the
# first of a type that is hardly meant for anything else, else any.
EVERY_KIND = frozenset(SCHEMA_TYPES) | {"enum"}
ANSWER_PLACES = (
    (r"(?:final_?|extracted_?)*ans(?:wer)?s?", EVERY_KIND),
    (r".*(?:answers?|results?|solution|value)", EVERY_KIND),
    (r".*", frozenset({"integer", "number", "enum"})),
    (r".*", EVERY_KIND),
)
VERDICT_PLACES = (
    (r"(?:is_?)?(?:correct|right)|verdict|grade|judge?ment|score", EVERY_KIND),
    (r".*(?:correct|verdict|grade|score)", EVERY_KIND),
    (r".*", frozenset({"boolean", "enum"})),
    (r".*", EVERY_KIND),
)
POSITIVE = re.compile(
    r"correct|right|yes|true|c|a|pass|match(?:es)?|equivalent|equal|same|passed|acceptable|1", re.IGNORECASE
)
MOST_STEPS = 20_000


class DeadEndError(Exception):
    """A schema leads back to itself here."""


def schema_error(path: str, problem: str) -> RequestError:
    """The error for a schema that llama-server could make no grammar of."""
    start = "Unable to generate parser for this template. Automatic parser generation failed: JSON schema error at"
    return invalid(f"{start} {path}: {problem}")


def check_schema(schema: Any, path: str = "#", depth: int = 0) -> None:
    """Raise RequestError unless a JSON schema, and all that it holds, is one that can be written by."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise schema_error(path, "not a schema")
    if depth > SCHEMA_DEPTH:
        raise schema_error(path, "nested too deeply")
    types = schema.get("type", [])
    for kind in types if isinstance(types, list) else [types]:
        if kind not in SCHEMA_TYPES:
            raise schema_error(path, f"unrecognized type {kind}")
    for key, allows in KEYWORDS.items():
        if key in schema and not allows(schema[key]):
            raise schema_error(path, f"{key} cannot be {quoted(schema[key])}")
    for key, part in subschemas(schema):
        check_schema(part, f"{path}/{key}", depth + 1)


def is_number(value: Any) -> bool:
    """Whether JSON holds a number here, and none too large to reckon with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 10**300


def at_most(limit: float) -> Callable[[Any], bool]:
    """Whether a value is a count up to a limit."""
    return lambda value: is_number(value) and not value < 0 and not value > limit


# The types that the values of a schema's keywords have to have.
KEYWORDS: dict[str, Callable[[Any], bool]] = {
    "minItems": at_most(MOST_ITEMS),
    "minLength": at_most(MOST_CHARACTERS),
    **dict.fromkeys(("maxItems", "maxLength"), at_most(math.inf)),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), is_number),
    **dict.fromkeys(
        ("required", "enum", "anyOf", "oneOf", "allOf", "prefixItems"), lambda value: isinstance(value, list)
    ),
    "properties": lambda value: isinstance(value, dict),
}


def subschemas(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The schemas within a schema, each with its path."""
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        yield from ((f"{key}/{number}", part) for number, part in enumerate(schema.get(key, [])))
    for key in ("properties", "$defs", "definitions"):
        parts = schema.get(key)
        yield from ((f"{key}/{name}", part) for name, part in (parts.items() if isinstance(parts, dict) else ()))
    if "items" in schema:
        yield "items", schema["items"]


def merged(parts: Iterable[Any]) -> dict[str, Any]:
    """One schema that asks for what all the parts ask for; of demands that exclude each other, the last counts."""
    whole: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items() if isinstance(part, dict) else ():
            if key == "properties":
                known = whole.get(key, {})
                whole[key] = {**known, **{name: merged((known.get(name), one)) for name, one in value.items()}}
            elif key == "required":
                whole[key] = [*whole.get(key, []), *value]
            elif key in ("minimum", "exclusiveMinimum", "minLength", "minItems"):
                whole[key] = max(value, whole.get(key, value))
            elif key in ("maximum", "exclusiveMaximum", "maxLength", "maxItems"):
                whole[key] = min(value, whole.get(key, value))
            else:
                whole[key] = value
    return whole


def without(schema: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """The schema without some of its keywords."""
    return {key: value for key, value in schema.items() if key not in keys}


class SchemaWriter:
    """Writes a JSON value that satisfies a schema, with an answer in the place that is meant for one.

    Known are type, enum, const, anyOf, oneOf, allOf, $ref within the schema, properties, required, prefixItems, items,
    minItems, maxItems, minLength, maxLength and the bounds of numbers; what else a schema asks for is not looked at.
    """

    def __init__(self, schema: Any, answer: str | bool | None, prose: str, avoid: str | None = None) -> None:
        """Take a checked schema, the answer (None for none, a boolean for a verdict), prose, an answer to avoid."""
        self.root = schema
        self.avoid = avoid
        self.answer = answer
        self.prose = prose
        self.names = ""  # a pattern of the names of properties that may hold the answer
        self.kinds = EVERY_KIND  # and their types
        self.placed = False
        self.steps = 0
        self.open: list[str] = []  # the references that are being followed

    def write(self) -> str:
        """The value as JSON. `placed` then says whether the answer is in it. Raises RequestError for an endless one."""
        value: Any = None
        for names, kinds in VERDICT_PLACES if isinstance(self.answer, bool) else ANSWER_PLACES:
            self.names, self.kinds = names, kinds
            try:
                value = self.value(self.root, "")
            except DeadEndError:
                raise schema_error("#", "no value of it has an end") from None
            if self.placed:
                break
        return json.dumps(value, ensure_ascii=False)

    def value(self, schema: Any, name: str) -> Any:
        """A value for a schema, which is that of the property `name`."""
        if isinstance(schema, bool) or not schema:
            schema = (
                {"type": ["integer", "string", "null"]} if name else {"type": "object", "properties": {"answer": {}}}
            )
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise schema_error("#", "too complex")
        if "$ref" in schema:
            return self.referenced(schema, name)
        for key in ("anyOf", "oneOf"):
            if schema.get(key):
                rest = without(schema, key)
                return self.alternative([self.joined(rest, part) if rest else part for part in schema[key]], name)
        if schema.get("allOf"):
            return self.value(self.joined(without(schema, "allOf"), *schema["allOf"]), name)
        if "const" in schema or schema.get("enum"):
            return self.member([schema["const"]] if "const" in schema else schema["enum"], name)
        return self.typed_value(schema, name)

    def target(self, reference: str) -> Any:
        """The part of the schema that a `#/...` reference points to."""
        found: Any = self.root
        for step in filter(None, reference.removeprefix("#").split("/")):
            key: Any = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and re.fullmatch("[0-9]{1,9}", key, re.ASCII):
                found = dict(enumerate(found))
                key = int(key)
            found = found.get(key) if isinstance(found, dict) else None
        if not isinstance(found, dict | bool):
            raise schema_error("#", f"cannot resolve {quoted(reference)}")
        check_schema(found, reference)
        return found

    def referenced(self, schema: Mapping[str, Any], name: str) -> Any:
        """A value for the target of a reference, together with the keywords beside it."""
        reference = str(schema["$ref"])
        found, rest = self.target(reference), without(schema, "$ref", "$defs", "definitions")
        if reference in self.open:
            raise DeadEndError
        self.open.append(reference)
        try:
            return self.value(merged((found, rest)) if rest else found, name)
        finally:
            self.open.pop()

    def joined(self, *parts: Any) -> dict[str, Any]:
        """One schema for several, of which some may be references."""
        plain = [
            merged((self.target(str(part["$ref"])), without(part, "$ref")))
            if isinstance(part, dict) and "$ref" in part and str(part["$ref"]) not in self.open
            else part
            for part in parts
        ]
        return merged(plain)

    def alternative(self, schemas: Sequence[Any], name: str) -> Any:
        """A value for the first of several schemas that takes the answer, else for the first that has an end."""
        values, already = [], self.placed
        for schema in schemas:
            try:
                values.append(self.value(schema, name))
            except DeadEndError:
                self.placed = already
                continue
            if self.placed and not already:
                return values[-1]
        if not values:
            raise DeadEndError
        return values[0]

    def member(self, members: Sequence[Any], name: str) -> Any:
        """The one of the members that is the answer, else the first of them."""
        for member in members:
            if isinstance(self.answer, bool) and isinstance(member, str | int):
                same = bool(POSITIVE.fullmatch(str(member))) is self.answer
            elif is_number(member) and isinstance(self.answer, str):
                same = re.fullmatch("-?[0-9]{1,1000}", self.answer) is not None and member == int(self.answer)
            else:
                same = member is None if self.answer is None else str(member) == self.answer
            if same and self.take("enum", name):
                return member
        others = [member for member in members if str(member) != self.avoid]
        return (others or members)[0]

    def typed_value(self, schema: Mapping[str, Any], name: str) -> Any:
        """A value of the type that the schema names."""
        by_keys = "object" if "properties" in schema else "array" if "items" in schema else "string"
        types = schema.get("type") or by_keys
        names = types if isinstance(types, list) else [types]
        for kind in names:
            if self.can_say(kind, schema) and self.take(kind, name):
                return self.answer_value(kind, schema)
        if names[0] == "object":
            return self.object_value(schema)
        if names[0] == "array":
            return self.array_value(schema, name)
        return self.filler(names[0], schema)

    def object_value(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """An object with all the properties that the schema names, but for those that have no end."""
        required = schema.get("required", ())
        parts = {**schema.get("properties", {})}
        parts.update({key: {} for key in map(str, required) if key not in parts})
        values = {}
        for key, part in parts.items():
            placed = self.placed
            try:
                values[key] = self.value(part, key)
            except DeadEndError:
                if key in required:
                    raise
                self.placed = placed
        return values

    def array_value(self, schema: Mapping[str, Any], name: str) -> list[Any]:
        """An array with the items that the schema demands, or with one, unless that has no end."""
        parts, least = list(schema.get("prefixItems", ())), int(schema.get("minItems", 0))
        wanted = int(min(max(least, 1), schema.get("maxItems", math.inf)))
        parts = [*parts, *[schema.get("items", True)] * (wanted - len(parts))][: max(wanted, least)]
        placed = self.placed
        try:
            return [self.value(part, name or "item") for part in parts]
        except DeadEndError:
            if least:
                raise
            self.placed = placed
            return []

    def can_say(self, kind: str, schema: Mapping[str, Any]) -> bool:
        """Whether a value of a simple type can be the answer."""
        if self.answer is None:
            return kind == "null"
        if isinstance(self.answer, bool) and kind not in ("integer", "number"):
            text = str(self.answer_value(kind, schema))
        else:
            text = str(int(self.answer)) if isinstance(self.answer, bool) else self.answer
        if kind == "string":
            return bool(schema.get("minLength", 0) <= len(text) <= schema.get("maxLength", math.inf))
        if kind == "boolean" or isinstance(self.answer, bool):
            return isinstance(self.answer, bool) and kind in ("boolean", "integer", "number")
        low, high = number_bounds(schema)
        whole = kind in ("integer", "number") and re.fullmatch(r"-?[0-9]{1,1000}", text)
        return bool(whole) and low <= int(text) <= high

    def answer_value(self, kind: str, schema: Mapping[str, Any]) -> str | int | bool | None:
        """The answer as a value of a type that can say it."""
        if isinstance(self.answer, bool) and kind in ("integer", "number"):
            low, high = number_bounds(schema)
            best, worst = (high if math.isfinite(high) else 1), (low if math.isfinite(low) else 0)
            return int(best if self.answer else worst)
        if isinstance(self.answer, bool) and kind == "string":
            return "correct" if self.answer else "incorrect"
        return int(self.answer) if kind in ("integer", "number") and self.answer is not None else self.answer

    def filler(self, kind: str, schema: Mapping[str, Any]) -> Any:
        """A value of a simple type that the schema allows."""
        if kind == "string":
            low, high = int(schema.get("minLength", 0)), int(min(schema.get("maxLength", math.inf), MOST_CHARACTERS))
            return self.prose[:high].ljust(low, ".")
        if kind not in ("integer", "number"):
            return {"null": None, "boolean": False}[kind]
        least, greatest = number_bounds(schema)
        if kind == "number" and not least <= 0 <= greatest:
            return middle(schema)
        number = int(min(max(0, least), greatest))
        return number if str(number) != self.avoid or number + 1 > greatest else number + 1

    def take(self, kind: str, name: str) -> bool:
        """Whether the answer belongs in the property `name` of that type; it has one place only."""
        if self.placed or kind not in self.kinds or not re.fullmatch(self.names, name, re.IGNORECASE):
            return False
        self.placed = True
        return True


def number_bounds(schema: Mapping[str, Any]) -> tuple[float, float]:
    """The least and the greatest integer that a schema of a number allows."""
    low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    low = math.ceil(low) if math.isfinite(low) else low
    high = math.floor(high) if math.isfinite(high) else high
    if "exclusiveMinimum" in schema:
        low = max(low, math.floor(schema["exclusiveMinimum"]) + 1)
    if "exclusiveMaximum" in schema:
        high = min(high, math.ceil(schema["exclusiveMaximum"]) - 1)
    return low, high


def middle(schema: Mapping[str, Any]) -> float:
    """A number well within the bounds of a schema."""
    low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf))
    high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf))
    if math.isfinite(low) and math.isfinite(high):
        return float(low / 2 + high / 2)
    return float(low + 1 if math.isfinite(low) else high - 1)


ANSWER_FORMATS = ("auto", "plain", "boxed", "bold", "json", "sentence", "mixed")
SENTENCES = {
    "plain": "{}",
    "boxed": "The answer is \\boxed{{{}}}.",
    "bold": "The answer is **{}**.",
    "json": '{{"answer": {}}}',
    "sentence": "So the answer is {}.",
}
GIVING_UP = "I was not able to settle this question, and would rather give no number than guess one."
LOOPING = " Wait, let me go over that once more: the same terms cancel, and the same case is left."
THOUGHT_TOKENS = 40  # of a thought, where no length is asked for
# The numbers that a model thinks of on the way: a grader that reads its thoughts is led astray.
THOUGHTS = (
    " Suppose that it were {}; then {} would have to divide the total, and it does not.",
    " Maybe the answer is {}? No, that leaves {} cases over.",
    " Let me try \\boxed{{{}}} against the case of {}: it fails.",
    ' With {} on one side and {} on the other nothing fits, so {{"answer": {}}} is out.',
    " The answer is {}... no, I have counted {} of them twice.",
)
STEPS = (
    " Step {}: the terms pair up, which leaves {} of them.",
    " There are {} cases of the first kind and {} of the second.",
    " Modulo {} the left side is {}, and the right side has to be, too.",
)


def sentences(templates: Sequence[str], chance: random.Random, avoid: Collection[str]) -> Iterator[str]:
    """Endless talk, with numbers in it that are not to be `avoid`ed; each sentence begins with a space."""
    while True:
        numbers: list[int] = []
        while len(numbers) < 3:
            number = chance.randrange(2, 1000)
            if str(number) not in avoid:
                numbers.append(number)
        yield chance.choice(templates).format(*numbers)


def of_length(talk: Iterable[str], count: int) -> str:
    """So much of the talk that it is `count` tokens."""
    pieces: list[str] = []
    for sentence in talk:
        if len(pieces) >= count:
            break
        pieces += pieces_of(sentence)
    return "".join(pieces[: max(0, count)])


ANSWER_LINE = re.compile(r"\b(answer:) ?\$?answer\b", re.IGNORECASE)  # as prompts show the last line that they want


def answer_text(wishes: str, answer: str, answer_format: str, chance: random.Random) -> str:
    """The sentence that gives the answer; `auto` is the format that the prompt asks for."""
    if answer_format == "mixed":
        answer_format = chance.choice(sorted(SENTENCES))
    if answer_format == "auto":
        if '"answer"' in wishes:
            return "Here is the answer as JSON.\n" + SENTENCES["json"].format(answer)
        line = ANSWER_LINE.search(wishes)
        if line:
            return f"That settles it.\n{line[1]} {answer}"
        answer_format = "boxed"
    return SENTENCES[answer_format].format(answer)


def read_back(value: Any, expected: str) -> str:
    """The verdict on a JSON value, of which the property counts that is named most like an answer."""
    leaves = list(named_leaves(value, ""))
    for names, kinds in ANSWER_PLACES:
        for name, leaf in leaves:
            simple = leaf is None or is_number(leaf) or isinstance(leaf, str)
            if (
                not simple
                or not re.fullmatch(names, name, re.IGNORECASE)
                or (kinds != EVERY_KIND and not is_number(leaf))
            ):
                continue
            if leaf is None:
                return "no_answer"
            if is_number(leaf):
                return "correct" if leaf == int(expected) else "incorrect"
            if re.fullmatch("-?[0-9]{1,1000}", leaf):
                return "correct" if int(leaf) == int(expected) else "incorrect"
    return "no_answer"


def named_leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The simple values within a JSON value, each with the name of its property."""
    if isinstance(value, dict):
        for key, member in value.items():
            yield from named_leaves(member, key)
    elif isinstance(value, list):
        for member in value:
            yield from named_leaves(member, name)
    else:
        yield name, value


class Author:
    """Makes up the reply to one delivery, as text with its thoughts between `<think>` and `</think>`."""

    def __init__(self, request: ChatRequest, delivery: Delivery, settings: Settings, room: int, wishes: str) -> None:
        """Take the outcome, the room for the reply in tokens, and the words that ask for a format."""
        self.request = request
        self.wishes = wishes
        self.settings = settings
        self.room = room
        self.delivery = delivery
        key = (settings.seed, delivery.question.name, delivery.number)
        self.chance = random.Random("/".join(map(str, key)))
        self.length = min(room + 1, round(settings.answers.tokens * log_normal(settings.speed.jitter, *key, "tokens")))
        self.thinks = request.thinking and settings.answers.reasoning != "none"
        if request.schema is not None and not request.parses_thoughts:
            self.thinks = False  # thoughts would not be JSON

    def text(self) -> tuple[str, str]:
        """The reply if nothing cuts it short, and the right verdict on it."""
        outcome = self.delivery.outcome
        if outcome in ("truncated", "loop"):
            return self.endless(repeat(LOOPING) if outcome == "loop" else self.talk()), "truncated"
        if self.request.schema is not None:
            return self.structured(self.padding(0) if not self.thinks else "")
        answer = self.delivery.answer
        final = GIVING_UP
        if answer is not None:
            final = answer_text(self.wishes, answer, self.settings.answers.answer_format, self.chance)
        return self.before(len(pieces_of(final))) + final, VERDICTS[outcome]

    def talk(self) -> Iterator[str]:
        """Thoughts, or steps of a solution, that hold neither the answer given nor the expected one."""
        avoid = {self.delivery.question.answer, self.delivery.answer or ""}
        return sentences(THOUGHTS if self.thinks else STEPS, self.chance, avoid)

    def padding(self, final: int) -> str:
        """As much talk as brings a reply with a `final` part of so many tokens to the length that is asked for."""
        tags = 2 if self.thinks else 0
        least = THOUGHT_TOKENS if self.thinks and not self.settings.answers.tokens else 0
        return of_length(self.talk(), max(least, self.length - final - tags - 1)).lstrip()

    def before(self, final: int) -> str:
        """The text before a `final` part of so many tokens."""
        if self.thinks:
            return f"<think>{self.padding(final)}</think>"
        padding = self.padding(final + 1)
        return f"{padding}\n\n" if padding else ""

    def endless(self, talk: Iterator[str]) -> str:
        """More talk than there is room for."""
        if self.thinks:
            return "<think>" + of_length(talk, self.room + 1).lstrip()
        if self.request.schema is None:
            return of_length(talk, self.room + 1).lstrip()
        prose = of_length(talk, self.room + 1).lstrip()
        text = SchemaWriter(self.request.schema, None, prose).write()
        return text if len(pieces_of(text)) > self.room else "{" + " \n" * (2 * self.room + 2)  # between fields

    def structured(self, prose: str) -> tuple[str, str]:
        """A reply that satisfies the request's JSON schema, and the right verdict on it.

        A schema may leave no way to give no answer, or no room for one: then another one is given, or none.
        """
        delivery, wanted = self.delivery, VERDICTS[self.delivery.outcome]
        expected = delivery.question.answer
        tries = [delivery.answer]
        if wanted != "correct":
            tries += [str(int(expected) + step) for step in (1, -1, 2, -2, 3, -3)]
        for answer in tries:
            avoid = None if answer == expected else expected
            text = SchemaWriter(self.request.schema, answer, prose or "Worked out step by step.", avoid).write()
            verdict = read_back(json.loads(text), expected)
            if verdict == wanted or (verdict == "incorrect" and answer != delivery.answer):
                break
        thoughts = f"<think>{self.padding(len(pieces_of(text)))}</think>" if self.thinks else ""
        return thoughts + text, verdict


SUBJECTS = (
    "(?:response|prediction|submission)(?: [0-9]+)?|answer to (?:grade|judge|evaluate)|"
    "(?:student|model|candidate|assistant|generated|predicted|submitted|given|proposed|ai|llm)(?:['\u2019]s)?"
    "(?: \\w+){0,2} (?:response|answer|solution|output|prediction)"
)
RESPONSE_TAGS = (
    "response",
    "model_response",
    "model_answer",
    "student_response",
    "student_answer",
    "submission",
    "prediction",
)
# Prompts to solvers name these, too, as the place for an answer.
WEAK_TAGS = ("output", "solution", "answer")
RESPONSE_LABEL = re.compile(
    rf"^[^\w\n]*(?:the )?(?:{SUBJECTS}|expression 2)(?:[^\w\n:]*:[*\s]*|\])|^#+ (?:the )?(?:{SUBJECTS})[^\S\n]*$"
    r"|^[^\n]*\bfollowing (?:\w+ ){0,2}(?:response|solution|output|text)[^\w\n:]*:[^\S\n]*$",
    re.IGNORECASE | re.MULTILINE,
)
REFERENCE_LABEL = (
    r"(?:expected|reference|correct|gold(?:en)?|ground[- ]?truth|target|true|expert|criterion|rubric|expression(?= 1))"
    r"[ _]?(?:answer|solution|target|1)?[^\w\n]{0,3}[:>]"
)
RESPONSE_END = re.compile(
    r"\n[^\S\n]*(?:={3,}|\*{4,}|\[\w[^\]\n]{0,40}\]:|\[(?:begin|end)\b|<\w)"
    rf"|\n[^\w\n]{{0,4}}(?:the )?{REFERENCE_LABEL}"
    r"|\n[^\S\n]*(?:judge|reply|respond|is the|does the)\b"
    r"|\n[^\S\n]*\n(?:please|return|provide|your|just|grade|decide|assess|rate)\b",
    re.IGNORECASE,
)
WEAK_END = re.compile(r"\n[^\S\n]*(?:-{3,}|#)")  # responses hold such lines, too
REFERENCE = re.compile(REFERENCE_LABEL + r"[*\s]{0,4}([^\n]{1,60})", re.IGNORECASE)
JUDGING = re.compile(
    r"\bextract(?:ing)?\b|\bjudg|\bverdict|\bevaluator\b|\brubric\b|\bwhich answer does\b"
    r"|\bare the (?:two )?(?:answers|responses)\b"
    r"|\bgrad(?:e (?:the|this|a|it)|e:|er|ing)\b|\bgrade:|\ba grade\b"
    r"|\b(?:is|does) (?:the|this) (?:[\w'\u2019]+ ){0,2}(?:response|answer|solution|prediction|submission)\b"
    r"|\b(?:compare|evaluate|assess|check|verify|score|mark|decide|determine)\b[^.\n]{0,60}"
    r"\b(?:response|answers?|solution|prediction|submission)\b",
    re.IGNORECASE,
)
ASKS_FOR_VERDICT = re.compile(
    r"correct\W+or\W+(?:incorrect|not)|right\W+or\W+wrong|yes\W+(?:or|/)\W+no|true\W+or\W+false|\bgrade:|\bverdict"
    r"|\bincorrect\b|\"(?:is_)?correct\"|\brubric\b|\bwhether\b[^.\n]{0,40}\bequivalent\b",
    re.IGNORECASE,
)
# The words in which a verdict is asked for, and those in which it is given, good and bad.
VERDICT_WORDS = (
    (r"(?i:judge?ment: yes)", *(f"Reasoning: The answers are compared.\nJudgement: {word}" for word in ("Yes", "No"))),
    ("extracted_final_answer", *(f"extracted_final_answer: {{read}}\ncorrect: {word}" for word in ("yes", "no"))),
    (r"(?i:\bgrade:)", "The two answers are compared.\n\nGRADE: C", "The two answers are compared.\n\nGRADE: I"),
    (r"(?i:\bA\b\W{1,3}correct\b.{0,200}?\bB\b\W{1,3}incorrect\b)", "A", "B"),
    (r"YES\W+(?:or|/)\W+NO", "YES", "NO"),
    (r"(?i:yes\W+(?:or|/)\W+no)", "yes", "no"),
    (r"(?i:true\W+or\W+false)", "true", "false"),
    (r"(?i:right\W+or\W+wrong)", "right", "wrong"),
    ("INCORRECT", "CORRECT", "INCORRECT"),
    ("", "correct", "incorrect"),
)
EXAMPLE_FIELD = re.compile(r'\{\s*"(\w+)"\s*:\s*("?)')
WORDS_FOR_NONE = re.compile(r"\b(?:no|not|without|unclear|unable)\b[^.\n]{0,100}?['\"]([A-Za-z][^'\"\n]{0,30})['\"]")
NUMBER = r"(-?[0-9][0-9,]*)(?:\.0+)?(?![0-9/]|\.[0-9])"
GIVEN_ANSWER = re.compile(
    rf"\\boxed\{{\s*\$?(?:\\(?:text|mathrm|mathbf|textbf)\{{)?\s*{NUMBER}"
    rf"|\"answer\"\s*:\s*\"?{NUMBER}|\*\*\s*{NUMBER}\s*\*\*"
    rf"|answer[^\w\n-]{{0,8}}(?:(?:is|are|therefore|thus|then|equals)[^\w\n-]{{1,8}}){{0,3}}{NUMBER}|\A[^\w-]*{NUMBER}\W*\Z",
    re.IGNORECASE,
)
CLOSING_NUMBER = re.compile(rf"(?:\bis|\bare|=)[^\w\n-]{{1,8}}{NUMBER}[^\w\n]*\Z", re.IGNORECASE)


@dataclass(frozen=True)
class Judging:
    """The matter before a judge: a response, maybe a reference answer, and the instruction around them."""

    response: str
    reference: str | None
    instruction: str


# After the examples of a prompt comes its own matter.
TASK_BEGINS = re.compile(r"^[^\w\n]*your task\b", re.IGNORECASE | re.MULTILINE)


def read_judging(text: str) -> Judging | None:
    """The parts of a prompt that asks to judge a response or to extract its answer; None for any other prompt."""
    begins = max((found.end() for found in TASK_BEGINS.finditer(text)), default=0)
    found = response_place(text[begins:])
    if found is None:
        return None
    start, end = begins + found[0], begins + found[1]
    response, around = text[start:end], f"{text[:start]}\n{text[end:]}"
    if not JUDGING.search(around):
        return None
    references = (reference_answer(found[1]) for found in REFERENCE.finditer(f"{text[begins:start]}\n{text[end:]}"))
    return Judging(response, next(filter(None, references), None), around)


def reference_answer(text: str) -> str | None:
    """The integer right after the label of a reference answer, or in the sentence there."""
    found = re.match(r"[^\w-]{0,4}(?:\\boxed\{)?(-?[0-9](?:[0-9]|,|\{,\})*)", text)
    return canonical_answer(found[1].rstrip(",")) if found else canonical_answer(text) or given_answer(text)


def response_place(text: str) -> tuple[int, int] | None:
    """The place of a response in a prompt: between tags, else from a label to the end of its part."""
    small = text.lower() if text.isascii() else text  # of other letters the length may change
    for tag in (*RESPONSE_TAGS, *WEAK_TAGS):
        end = small.rfind(f"</{tag}>")
        examples = len(re.findall(rf"</{tag}>\s*<rubric>", small)) > 1  # before the one to be judged
        start = (small.rfind if examples else small.find)(f"<{tag}>", 0, max(end, 0)) + len(tag) + 2
        if len(tag) + 2 <= start <= end and re.search("[0-9]" if tag in WEAK_TAGS else r"\S", text[start:end]):
            return start, end
    for label in RESPONSE_LABEL.finditer(text):
        ending = RESPONSE_END.search(text, label.end())
        end = ending.start() if ending else len(text)
        weak = list(WEAK_END.finditer(text, label.end(), end))
        if weak and not ending and JUDGING.search(text, weak[-1].start()):
            end = weak[-1].start()
        if text[label.end() : end].strip():
            return label.end(), end
    return None


def given_answer(response: str) -> str | None:
    """The answer that a response gives last, outside its thoughts; None if it gives none."""
    said = response.rpartition("</think>")[2]
    if "<think>" in said:
        return None
    closing = CLOSING_NUMBER.search(said.rstrip().rpartition("\n")[2])
    answers = list(GIVEN_ANSWER.finditer(said)) or ([closing] if closing else [])
    if not answers:
        return None
    number = next(group for group in answers[-1].groups() if group).rstrip(",").replace(",", "")
    return str(int(number)) if len(number) <= 1000 else None


def judgement(judging: Judging, truth: str | None, schema: Any, mistaken: bool) -> str:
    """A judge's reply in the shape it is asked for; a `mistaken` one misreads the answer, or errs in its verdict."""
    if schema == {} and example_field(judging.instruction):
        schema = None  # any object will do, and the prompt shows one
    read = given_answer(judging.response)
    reference = judging.reference or truth
    if reference is not None and ASKS_FOR_VERDICT.search(judging.instruction):
        verdict = (read == reference) is not mistaken
        return verdict_text(judging.instruction, read, verdict, schema)
    if mistaken:
        read = wrong_answer(read or "0", "plus-one", 0.0)
    return extraction_text(judging.instruction, read, schema)


def verdict_text(instruction: str, read: str | None, verdict: bool, schema: Any) -> str:
    """A verdict as a judge is asked to write it."""
    if schema is not None:
        return SchemaWriter(schema, verdict, "Compared the two answers.").write()
    example = example_verdict(instruction, verdict)
    if example is not None:
        return json.dumps(example)
    field = example_field(instruction)
    if field is not None:
        name, in_quotes = field
        return json.dumps({name: ("correct" if verdict else "incorrect") if in_quotes else verdict})
    shape = next(words for pattern, *words in VERDICT_WORDS if re.search(pattern, instruction, re.DOTALL))
    return shape[0 if verdict else 1].format(read=read)


def extraction_text(instruction: str, read: str | None, schema: Any) -> str:
    """The answer that was read as a judge is asked to write it."""
    if schema is not None:
        return SchemaWriter(schema, read, "Read from the response.").write()
    field = example_field(instruction)
    if field is not None:
        name, in_quotes = field
        return json.dumps({name: read if in_quotes or read is None else int(read)})
    if read is not None:
        return read
    words = WORDS_FOR_NONE.search(instruction)
    return words[1] if words else "no answer"


def example_verdict(instruction: str, verdict: bool) -> dict[str, Any] | None:
    """The first JSON object with a true or false in it that an instruction shows, with a `verdict` in that place."""
    for found in EXAMPLE_OBJECT.finditer(instruction):
        with contextlib.suppress(ValueError):
            example = json.loads(found[0])
            if any(isinstance(value, bool) for value in example.values()):
                told: dict[type, Any] = {bool: verdict, float: float(verdict), int: int(verdict)}
                return {name: told.get(type(value), "Compared the two answers.") for name, value in example.items()}
    return None


EXAMPLE_OBJECT = re.compile(r'\{\s*"\w+"[^{}]{1,500}\}')


def example_field(instruction: str) -> tuple[str, bool] | None:
    """The field of the first JSON object that an instruction shows, and whether its value stands in quotes."""
    found = EXAMPLE_FIELD.search(instruction)
    return (found[1], bool(found[2])) if found else None


# ---- requests -------------------------------------------------------------------------------------------

BUILD = "b9999-simulator"
DEFAULT_SLOTS = 4
MODEL_CONTEXT = 32768
MODEL_META = {
    "vocab_type": 2,
    "n_vocab": VOCABULARY,
    "n_ctx": MODEL_CONTEXT,
    "n_ctx_train": MODEL_CONTEXT,
    "n_embd": 2048,
    "n_params": 1720574976,
    "size": 1828372480,
    "ftype": "Q8_0",
}
# The numbers are 32-bit floats in the server, which is how they look when it prints them.
SAMPLING_DEFAULTS = {
    "seed": 4294967295,
    "temperature": 0.800000011920929,
    "dynatemp_range": 0.0,
    "dynatemp_exponent": 1.0,
    "top_k": 40,
    "top_p": 0.949999988079071,
    "min_p": 0.05000000074505806,
    "top_n_sigma": -1.0,
    "xtc_probability": 0.0,
    "xtc_threshold": 0.10000000149011612,
    "typical_p": 1.0,
    "repeat_last_n": 64,
    "repeat_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "dry_multiplier": 0.0,
    "dry_base": 1.75,
    "dry_allowed_length": 2,
    "dry_penalty_last_n": 64,
    "mirostat": 0,
    "mirostat_tau": 5.0,
    "mirostat_eta": 0.10000000149011612,
    "adaptive_target": -1.0,
    "adaptive_decay": 0.8999999761581421,
    "max_tokens": -1,
    "n_predict": -1,
    "n_keep": 0,
    "n_discard": 0,
    "ignore_eos": False,
    "stream": False,
    "n_probs": 0,
    "min_keep": 0,
    "chat_format": "Content-only",
    "reasoning_format": "none",
    "reasoning_in_content": False,
    "generation_prompt": "",
    "samplers": [
        "penalties",
        "dry",
        "top_n_sigma",
        "top_k",
        "typ_p",
        "top_p",
        "min_p",
        "xtc",
        "temperature",
    ],
    "speculative.types": "none",
    "timings_per_token": False,
    "post_sampling_probs": False,
    "backend_sampling": False,
    "lora": [],
}
# Fields that a verbose reply shows besides, each after the field it is named by.
VERBOSE_SETTINGS: dict[str, dict[str, Any]] = {
    "dry_penalty_last_n": {"dry_sequence_breakers": ["\n", ":", '"', "*"]},
    "adaptive_decay": {"stop": []},
    "stream": {"logit_bias": []},
    "min_keep": {"grammar": "", "grammar_lazy": False, "grammar_triggers": [], "preserved_tokens": []},
}
CHAT_TEMPLATE = (
    "{%- for m in messages -%}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
TEMPLATE_CAPABILITIES = {
    "supports_object_arguments": False,
    "supports_parallel_tool_calls": False,
    "supports_preserve_reasoning": False,
    "supports_reasoning_effort": False,
    "supports_string_content": True,
    "supports_system_role": True,
    "supports_tool_calls": False,
    "supports_tools": False,
    "supports_typed_content": False,
}


def generation_settings(request: ChatRequest) -> dict[str, Any]:
    """The sampling parameters as a verbose reply shows them."""
    settings: dict[str, Any] = {}
    for name, value in request.sampling.items():
        settings.update({name: value, **VERBOSE_SETTINGS.get(name, {})})
    return settings


def props(settings: Settings) -> dict[str, Any]:
    """The reply to `GET /props`: the settings of the server."""
    return {
        "default_generation_settings": {"params": SAMPLING_DEFAULTS, "n_ctx": settings.speed.slot_context},
        "total_slots": settings.speed.slots,
        "model_alias": settings.server.alias,
        "model_ftype": MODEL_META["ftype"],
        "model_path": "models/simulator.gguf",
        "modalities": {"vision": False, "video": False, "audio": False},
        "media_marker": "<__media__>",
        "endpoint_slots": settings.server.slots_endpoint,
        "endpoint_props": False,
        "endpoint_metrics": settings.server.metrics,
        "ui": False,
        "ui_settings": {},
        "chat_template": CHAT_TEMPLATE,
        "chat_template_caps": TEMPLATE_CAPABILITIES,
        "bos_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "build_info": BUILD,
        "is_sleeping": False,
        "cors_proxy_enabled": False,
    }


def models(settings: Settings) -> dict[str, Any]:
    """The reply to `GET /v1/models`: one model, once in Ollama's words and once in OpenAI's."""
    details = {
        "parent_model": "",
        "format": "gguf",
        "family": "",
        "families": [""],
        "parameter_size": "",
        "quantization_level": "",
    }
    ollama = {
        "name": settings.server.alias,
        "model": settings.server.alias,
        "modified_at": "",
        "size": "",
        "digest": "",
        "type": "model",
        "description": "",
        "tags": [""],
        "capabilities": ["completion"],
        "parameters": "",
        "details": details,
    }
    openai = {
        "id": settings.server.alias,
        "aliases": [settings.server.alias],
        "tags": [],
        "object": "model",
        "created": int(time.time()),
        "owned_by": "llamacpp",
        "meta": {**MODEL_META, "n_ctx": settings.speed.slot_context},
    }
    return {"models": [ollama], "object": "list", "data": [openai]}


LIMIT_FIELDS = ("max_tokens", "max_completion_tokens", "n_predict")
JSON_TYPES = {str: "string", bool: "boolean", list: "array", dict: "object", int: "number", float: "number"}
FLAGS = ("stream", "return_progress", "timings_per_token", "verbose", "logprobs", "ignore_eos", "cache_prompt")
REASONING_FORMATS = ("none", "auto", "deepseek", "deepseek-legacy")
TOOL_CHOICES = ("auto", "none", "required")


def read_chat(raw: bytes, settings: Settings) -> ChatRequest:
    """A chat request from the body of a POST; raises RequestError as llama-server words it."""
    body = read_object(raw)
    if "messages" not in body:
        raise invalid("'messages' is required")
    if not isinstance(body["messages"], list):
        raise invalid("Expected 'messages' to be an array")
    texts = [message_text(message) for message in body["messages"]]
    wishes = "\n".join(text for role, text in texts if role != "assistant")
    user_texts = [text for role, text in reversed(texts) if role == "user"]
    prompt = make_prompt(user_texts, wishes, chat_prompt(texts))
    return read_options(body, [prompt], settings)


def read_text_completion(raw: bytes, settings: Settings) -> ChatRequest:
    """A request to `/v1/completions`, whose prompts carry no chat template."""
    body = read_object(raw)
    if "prompt" not in body:
        raise invalid("[json.exception.out_of_range.403] key 'prompt' not found")
    prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
    if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise invalid('"prompt" must be a string or a list of strings')
    made = [make_prompt([prompt], prompt, prompt) for prompt in prompts]
    return replace(read_options(body, made, settings), is_chat=False, thinking=False, parses_thoughts=False)


def read_object(raw: bytes) -> dict[str, Any]:
    """The JSON object of a request body; other JSON counts as an object without fields."""
    body = read_json(raw)
    return body if isinstance(body, dict) else {}


EMPTY_INPUT = "attempting to parse an empty input; check that your input string or stream contains the expected JSON"
# The part of JSON that the library was reading, and what it expected there, by Python's words for the fault.
EXPECTED = {
    "Expecting value": ("value", "'[', '{', or a literal"),
    "Expecting property name enclosed in double quotes": ("object key", "string literal"),
    "Illegal trailing comma before end of object": ("object key", "string literal"),
    "Illegal trailing comma before end of array": ("value", "'[', '{', or a literal"),
    "Expecting ':' delimiter": ("object separator", "':'"),
    "Extra data": ("value", "end of input"),
}


def complaint(error: json.JSONDecodeError) -> tuple[int, str]:
    """The number of characters that the JSON library of llama-server has read of what it stumbles over, and its words.

    As nlohmann::json 3.12 has them.
    """
    text, at = error.doc, error.pos
    if not text:
        return 1, EMPTY_INPUT
    if error.msg.startswith(("Unterminated string", "Invalid control character")):
        start = text.rfind('"', 0, at + 1)
        return (
            len(text) - at + 1,
            f"syntax error while parsing value - invalid string: missing closing quote; last read: '{text[start:]}'",
        )
    opened = "object" if text.rfind("{", 0, at) > text.rfind("[", 0, at) else "array"
    part, expected = EXPECTED.get(error.msg, (opened, "'}'" if opened == "object" else "']'"))
    if error.msg.startswith("Illegal trailing comma"):
        at = next(place for place in range(at + 1, len(text)) if not text[place].isspace())
    rest = text[at:].lstrip()
    if not rest:
        return len(text) - at + 1, f"syntax error while parsing {part} - unexpected end of input; expected {expected}"
    if rest[0] in "{}[]:,":
        return 1, f"syntax error while parsing {part} - unexpected '{rest[0]}'; expected {expected}"
    if rest[0] in '"-0123456789':
        kind = "string literal" if rest[0] == '"' else "number literal"
        return 1, f"syntax error while parsing {part} - unexpected {kind}; expected {expected}"
    literal = next((word for word in ("true", "false", "null") if word[0] == rest[0]), rest[0])
    same = next((place for place, pair in enumerate(zip(literal, rest, strict=False)) if pair[0] != pair[1]), 0)
    # Its memory of what it has read begins with the last string or number.
    since = max((token.start() for token in JSON_TOKEN.finditer(text, 0, at)), default=0)
    read = text[since : len(text) - len(rest) + same + 1]
    more = f"; expected {expected}" if error.msg != "Expecting value" else ""
    return same + 1, f"syntax error while parsing {part} - invalid literal; last read: '{read}'{more}"


JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*')


def read_json(raw: bytes) -> Any:
    """The JSON value of a request body; one that is none is the server's fault to llama-server."""
    try:
        return json.loads(raw.decode("utf-8"), parse_constant=refuse_constant, parse_float=finite)
    except json.JSONDecodeError as error:
        read, problem = complaint(error)
        place = f"line {error.lineno}, column {error.colno + read - 1}"
    except UnicodeDecodeError as error:
        line, column = raw.count(b"\n", 0, error.start) + 1, error.start - raw.rfind(b"\n", 0, error.start)
        place = f"line {line}, column {column}"
        last_read = raw[raw.rfind(b'"', 0, error.start) : error.start].decode("utf-8", "replace") + "\ufffd"
        problem = f"syntax error while parsing value - invalid string: ill-formed UTF-8 byte; last read: '{last_read}'"
    except (ValueError, RecursionError) as error:
        place, problem = "line 1, column 1", f"syntax error while parsing value - {one_line(error)}"
    message = f"[json.exception.parse_error.101] parse error at {place}: {problem}"
    raise RequestError(500, "server_error", message)


def finite(text: str) -> float:
    """The number in a text; JSON can write some that are too large for one."""
    if math.isinf(float(text)):
        raise ValueError(f"number overflow parsing '{text}'")
    return float(text)


def refuse_constant(name: str) -> NoReturn:
    """Python reads NaN and Infinity, which are not JSON."""
    raise ValueError(f"invalid literal; last read: '{name}'")


def message_text(message: Any) -> tuple[str, str]:
    """Role and text of a message, whose content is text, null, or a list of text parts."""
    fields = message if isinstance(message, dict) else {}
    if "content" not in fields and fields.get("role") != "assistant":
        raise invalid("All non-assistant messages must contain 'content'")
    if "content" not in fields and "tool_calls" not in fields:
        raise invalid("Assistant message must contain either 'content' or 'tool_calls'!")
    if not isinstance(message.get("role"), str):
        shown = json.dumps(message, separators=(",", ":"))[:200]
        raise RequestError(500, "server_error", f"Failed to parse messages: Missing 'role' in message: {shown}")
    content = message.get("content")
    if content is None or isinstance(content, str):
        return message["role"], content or ""
    if not isinstance(content, list):
        raise invalid("Expected 'content' to be a string or an array")
    return message["role"], "\n".join(part_text(part) for part in content)


def part_text(part: Any) -> str:
    """The text of one part of a message's content."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "image_url":
        hint = "hint: if this is unexpected, you may need to provide the mmproj"
        raise RequestError(500, "server_error", f"image input is not supported - {hint}")
    if kind != "text" or not isinstance(part.get("text"), str):
        raise invalid("unsupported content[].type")
    return str(part["text"])


def chat_prompt(texts: Sequence[tuple[str, str]]) -> str:
    """The messages as the chat template renders them."""
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in texts) + "<|im_start|>assistant\n"


def make_prompt(user_texts: Sequence[str], wishes: str, rendered: str) -> Prompt:
    """A prompt with its tokens counted."""
    return Prompt(user_texts, wishes, rendered, max(1, len(tokenize(rendered))))


def read_options(body: Mapping[str, Any], prompts: Sequence[Prompt], settings: Settings) -> ChatRequest:
    """All of a request but its prompts."""
    check_types(body)
    thinking = read_thinking(body.get("chat_template_kwargs"))
    if body.get("reasoning_format") not in (None, *REASONING_FORMATS):
        raise RequestError(500, "server_error", f"Unknown reasoning format: {body['reasoning_format']}")
    choice = body.get("tool_choice")
    if choice is not None and not isinstance(choice, dict) and choice not in TOOL_CHOICES:
        raise invalid(f"Invalid tool_choice: {choice}")
    if body.get("top_logprobs") and not body.get("logprobs"):
        raise invalid("top_logprobs requires logprobs to be set to true")
    schema, options = read_schema(body), body.get("stream_options")
    unparsed = body.get("reasoning_format", "none" if settings.answers.reasoning == "inline" else None) == "none"
    choices = read_number(body, "n", 1, settings.speed.slots) or 1
    if choices > settings.speed.slots:
        raise invalid("n_cmpl cannot be greater than the number of slots, please increase -np")
    limit = read_limit(body)
    return ChatRequest(
        prompts=prompts,
        choices=choices,
        stream=bool(body.get("stream")),
        include_usage=isinstance(options, dict) and bool(options.get("include_usage")),
        limit=limit,
        schema=schema,
        thinking=thinking,
        parses_thoughts=thinking and not unparsed,
        top_logprobs=(read_number(body, "top_logprobs", 0, 2147483647) or 0) if body.get("logprobs") else None,
        progress=bool(body.get("return_progress")),
        timings_per_token=bool(body.get("timings_per_token")),
        verbose=bool(body.get("verbose")),
        sampling=sampling_shown(body, limit, unparsed),
    )


def check_types(body: Mapping[str, Any]) -> None:
    """Raise RequestError for a sampling parameter or flag of another type than it has by default."""
    for name, value in body.items():
        default = False if name in FLAGS else SAMPLING_DEFAULTS.get(name)
        if value is None or not isinstance(default, bool | int | float):
            continue
        wanted, found = JSON_TYPES[type(default)], JSON_TYPES[type(value)]
        if wanted != found:
            text = f"[json.exception.type_error.302] type must be {wanted}, but is {found}"
            raise invalid(f"Field '{name}': {text}")


def read_number(body: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    """A whole number within bounds; None for a field that is missing or null."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        found = JSON_TYPES[type(value)]
        raise invalid(f"Field '{name}': [json.exception.type_error.302] type must be number, but is {found}")
    if not low <= value <= high:
        raise invalid(f"Field '{name}': Value must be between {low} <= value <= {high}, but got {value}")
    return int(value)


def read_limit(body: Mapping[str, Any]) -> int | None:
    """The token limit: of its three names the last in the body wins, and -1 means none."""
    limit = None
    for name in body:
        if name in LIMIT_FIELDS and body[name] is not None:
            limit = read_number(body, name, -1, 2147483647)
    return None if limit == -1 else limit


def read_thinking(template_options: Any) -> bool:
    """Whether the chat template lets the model think, as it does unless it is told not to."""
    wanted = template_options.get("enable_thinking") if isinstance(template_options, dict) else None
    if isinstance(wanted, str):
        raise invalid('invalid type for "enable_thinking" (expected boolean, got string)')
    return wanted is not False


def read_schema(body: Mapping[str, Any]) -> Any:
    """The JSON schema that the reply has to satisfy; None for free text. Grammars are checked, but not enforced."""
    grammar, wanted = body.get("grammar"), body.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind not in (None, "text", "json_object", "json_schema"):
        message = f'response_format type must be one of "text" or "json_object", but got: {kind}'
        raise invalid(message)
    schema = body.get("json_schema")
    if isinstance(wanted, dict) and kind == "json_object":
        schema = wanted.get("schema", {})
    if isinstance(wanted, dict) and kind == "json_schema":
        named = wanted.get("json_schema") or {}
        schema = named.get("schema", {}) if isinstance(named, dict) else named
    if grammar and schema is not None:
        raise RequestError(500, "server_error", "Cannot use both json_schema and grammar")
    if grammar and not is_grammar(str(grammar)):
        raise invalid("Failed to initialize samplers: failed to parse grammar")
    if schema is not None:
        check_schema(schema)
        SchemaWriter(schema, None, "").write()  # raises RequestError where references lead nowhere
    return schema


def is_grammar(text: str) -> bool:
    """Whether a text may be a GBNF grammar: a root, closed brackets, no rule that is used but not defined."""
    bare = re.sub(r'"(?:\\.|[^"\\\n])*(?:"|$)|\[(?:\\.|[^\]\\\n])*(?:\]|$)|#[^\n]*', " ", text, flags=re.MULTILINE)
    definition = re.compile(r"^[^\S\n]*([\w-]+)[^\S\n]*::=", re.MULTILINE)
    defined = set(definition.findall(bare))
    used = set(re.findall(r"[A-Za-z][\w-]*", definition.sub("", bare)))
    return "root" in defined and used <= defined and bare.count("(") == bare.count(")")


def sampling_shown(body: Mapping[str, Any], limit: int | None, unparsed: bool) -> dict[str, Any]:
    """The sampling parameters of a request as `/slots` shows them."""
    given = {name: value for name, value in body.items() if name in SAMPLING_DEFAULTS and value is not None}
    shown_limit = -1 if limit is None else limit
    return {
        **SAMPLING_DEFAULTS,
        **given,
        "max_tokens": shown_limit,
        "n_predict": shown_limit,
        "chat_format": "peg-native",
        "reasoning_format": "none" if unparsed else "deepseek",
        "generation_prompt": "<|im_start|>assistant\n",
    }


# ---- slots ----------------------------------------------------------------------------------------------

CROWD_CHECK_SECONDS = 0.02  # between looks at how full a shared context is
LEFT_CHECK_SECONDS = 1.0  # between looks at whether a client that waits for a slot is still there


class Slots:
    """The server's slots, and the queue of those who wait for one: first come, first served."""

    def __init__(self, count: int, context: int | None) -> None:
        """All slots are free. They may share a context of so many tokens."""
        self.context = context
        self.jobs: list[Job | None] = [None] * count  # the job in each slot, or the last that was
        self.free = deque(reversed(range(count)))  # the first is the one that has been free for longest
        self.lock = threading.Lock()
        self.queue: deque[Job] = deque()

    @contextlib.contextmanager
    def held(self, job: Job, has_left: Callable[[], bool]) -> Iterator[None]:
        """Hold a slot for each choice of a job, or all; raises HangupError if the client leaves while it waits."""
        with self.lock:
            self.queue.append(job)
            self._serve()
        try:
            while not job.granted.wait(LEFT_CHECK_SECONDS):
                if has_left():
                    raise HangupError
            job.started = time.perf_counter()
            yield
        finally:
            with self.lock:
                if job in self.queue:
                    self.queue.remove(job)
                self.free += job.slots
                self._serve()

    def busy(self) -> set[Job]:
        """The jobs that are at work."""
        return {job for job, busy in self.states() if job is not None and busy}

    def crowd(self) -> None:
        """Fail all jobs at work once they have filled the context that they share."""
        busy = self.busy() if self.context else set()
        if self.context and sum(job.tokens() for job in busy) > self.context:
            for job in busy:
                job.failure = RequestError(500, "server_error", "Context size has been exceeded.")

    def _serve(self) -> None:
        """Give free slots to the first in the queue. The lock is held."""
        while self.queue:
            count = min(len(self.queue[0].choices), len(self.jobs))
            if len(self.free) < count:
                return
            job = self.queue.popleft()
            job.slots = [self.free.popleft() for _ in range(count)]
            for number in job.slots:
                self.jobs[number] = job
            job.granted.set()

    def states(self) -> list[tuple[Job | None, bool]]:
        """The job of each slot, and whether it is busy with it."""
        with self.lock:
            free = set(self.free)
            return [(job, number not in free) for number, job in enumerate(self.jobs)]

    def counts(self) -> tuple[int, int]:
        """The numbers of busy slots and of waiting requests."""
        with self.lock:
            return len(self.jobs) - len(self.free), len(self.queue)


JOB_NUMBERS = itertools.count()


class Job:
    """The work on one request: its choices, its fault, its pace, and its progress."""

    def __init__(
        self, request: ChatRequest, choices: Sequence[Choice], fault: Fault, first: float, step: float
    ) -> None:
        """Take the seconds to the first token, and from each to the next, counted from the time a slot is there."""
        self.request = request
        self.choices = choices
        self.fault = fault
        self.first = first
        self.step = step
        self.number = next(JOB_NUMBERS)
        self.granted = threading.Event()
        self.slots: list[int] = []
        self.started = 0.0
        self.first_token: float | None = None
        self.prompt_ms = 0.001
        self.sent = 0  # tokens
        self.broken = False  # by its fault
        self.interrupted = False  # by another request
        self.failure: RequestError | None = None  # of the server, over this and others

    def prompt_is_read(self) -> None:
        """The first token is there."""
        self.first_token = time.perf_counter()
        self.prompt_ms = milliseconds(self.first_token - self.started)

    @property
    def total(self) -> int:
        """The number of tokens of its longest choice."""
        return max(choice.completion_tokens for choice in self.choices)

    def due(self, number: int) -> float:
        """The time at which the number-th token is there, counted from 0, as a value of `perf_counter`."""
        first = self.started + self.first if self.first_token is None else self.first_token
        return first + number * self.step

    def decoded(self) -> int:
        """The number of tokens there by now."""
        if self.first_token is None:
            return 0
        elapsed = time.perf_counter() - self.first_token
        return min(self.total, 1 + int(elapsed / self.step)) if self.step else self.total

    def tokens(self) -> int:
        """The number of tokens that it holds in the context by now."""
        decoded = self.decoded()
        return sum(choice.prompt_tokens + min(decoded, choice.completion_tokens) for choice in self.choices)

    def predicted_seconds(self) -> float:
        """The time since the first token."""
        return time.perf_counter() - (self.first_token or self.started)


def milliseconds(seconds: float) -> float:
    """A time in the server's resolution, and never 0."""
    return max(0.001, round(seconds * 1000, 3))


def slot_view(number: int, job: Job | None, busy: bool, context: int) -> dict[str, Any]:
    """A slot as `GET /slots` shows it: one that has never worked has little to tell."""
    view = {"id": number, "n_ctx": context, "speculative": False, "is_processing": busy}
    if job is None:
        return view
    limit = job.request.limit
    decoded = job.decoded() if busy else 0
    prompt = job.choices[0].prompt_tokens
    next_token = {
        "has_next_token": busy,
        "has_new_line": False,
        "n_remain": limit - decoded if busy and limit is not None else -1,
        "n_decoded": decoded,
    }
    return {
        **view,
        "id_task": job.number,
        "n_prompt_tokens": prompt + decoded,
        "n_prompt_tokens_processed": prompt if busy else 0,
        "n_prompt_tokens_cache": 0,
        "params": job.request.sampling,
        "next_token": [next_token],
    }


# ---- replies --------------------------------------------------------------------------------------------

# A mark for bytes that no UTF-8 has, until the text is encoded: characters that no text has.
BAD_MARK, BAD_BYTES = "\ue0ff\ue0fe\n", b"\xff\xfe\\n"
MARK_BYTES = BAD_MARK.replace("\n", "\\n").encode()  # as JSON has it


def fields_of(pieces: Sequence[str], parses_thoughts: bool) -> list[tuple[str, str]]:
    """Each token with the field of the message that it belongs to; tags that are parsed away belong to none."""
    if not parses_thoughts or not pieces or pieces[0] != "<think>":
        return [("content", piece) for piece in pieces]
    end = pieces.index("</think>") if "</think>" in pieces else len(pieces)
    fields = [("", "<think>"), *(("reasoning_content", piece) for piece in pieces[1:end])]
    return fields + [("", piece) for piece in pieces[end : end + 1]] + [("content", p) for p in pieces[end + 1 :]]


def make_choice(text: str, verdict: str | None, room: int, request: ChatRequest, prompt: Prompt) -> Choice:
    """A text cut to the tokens that there is room for, of which one is the end. A cut text holds no whole answer."""
    pieces = pieces_of(text)
    finish_reason, tokens = "stop", len(pieces) + 1
    if len(pieces) >= room:
        if verdict is not None and (len(pieces) > room or verdict == "no_answer"):
            verdict = "truncated"
        pieces = pieces[:room]
        finish_reason, tokens = "length", room
    return Choice(fields_of(pieces, request.parses_thoughts), finish_reason, tokens, prompt.tokens, verdict)


def usage(choice: Choice) -> dict[str, Any]:
    """The token counts of a choice."""
    return {
        "completion_tokens": choice.completion_tokens,
        "prompt_tokens": choice.prompt_tokens,
        "total_tokens": choice.prompt_tokens + choice.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def timings(job: Job, choice: Choice, count: int) -> dict[str, Any]:
    """The speed at which `count` tokens came. The first token comes with the prompt, so n tokens are n - 1 steps."""
    steps = count - 1
    predicted_ms = milliseconds(job.predicted_seconds())
    return {
        "cache_n": 0,
        "prompt_n": choice.prompt_tokens,
        "prompt_ms": job.prompt_ms,
        "prompt_per_token_ms": job.prompt_ms / choice.prompt_tokens,
        "prompt_per_second": choice.prompt_tokens / job.prompt_ms * 1000,
        "predicted_n": count,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": predicted_ms / steps if steps else 0.0,
        "predicted_per_second": steps / predicted_ms * 1000,
    }


def completion_id() -> str:
    """A fresh id like `chatcmpl-xfsr7RKKfu4ZsUZYbJvP3Ul6QwlcgWq1`."""
    return "chatcmpl-" + "".join(random.choices(string.ascii_letters + string.digits, k=32))


def logprobs(pieces: Iterable[str], top: int) -> dict[str, Any]:
    """The log-probabilities of tokens: the model is sure of each, and finds the zero byte next likely."""
    content = []
    for piece in pieces:
        raw = piece.encode("utf-8", "replace")
        likely = {"id": FIRST_MERGE + len(raw), "token": piece, "bytes": list(raw), "logprob": 0.0}
        unlikely = {"id": 0, "token": "\0", "bytes": [0], "logprob": -59.913787841796875}
        content.append({**likely, "top_logprobs": [likely, unlikely][:top]})
    return {"content": content}


def message_of(job: Job, choice: Choice) -> dict[str, Any]:
    """The message of a choice."""
    content = choice.text("content")
    if not job.fault.content:
        return {"role": "assistant", "content": None}
    reasoning = choice.text("reasoning_content")
    if job.fault.marked:
        content = BAD_MARK + content
    return {"role": "assistant", "content": content, **({"reasoning_content": reasoning} if reasoning else {})}


def whole_choice(job: Job, index: int) -> dict[str, Any]:
    """A choice as it stands in a reply that is not streamed."""
    choice, top = job.choices[index], job.request.top_logprobs
    if not job.request.is_chat:
        text = message_of(job, choice)["content"]
        return {"text": text, "index": index, "logprobs": None, "finish_reason": choice.finish_reason}
    whole = {"finish_reason": choice.finish_reason, "index": index, "message": message_of(job, choice)}
    if top is not None:
        whole["logprobs"] = logprobs((piece for _, piece in choice.fields), top)
    return whole


def completion(job: Job, alias: str) -> dict[str, Any]:
    """The whole reply as one JSON object."""
    first = job.choices[0]
    timing = timings(job, first, first.completion_tokens)
    return {
        "choices": [whole_choice(job, index) for index in range(len(job.choices) if job.fault.choices else 0)],
        "created": int(time.time()),
        "model": alias,
        "system_fingerprint": BUILD,
        "object": "chat.completion" if job.request.is_chat else "text_completion",
        "usage": usage(first),
        "id": completion_id(),
        **({"__verbose": verbose_view(job, alias, timing)} if job.request.verbose else {}),
        "timings": timing,
    }


def verbose_view(job: Job, alias: str, timing: Mapping[str, Any]) -> dict[str, Any]:
    """The server's own view of a reply, for those who ask for it."""
    choice, prompt = job.choices[0], job.request.prompts[0]
    return {
        "index": 0,
        "content": choice.text("reasoning_content") + choice.text("content"),
        "tokens": [],
        "id_slot": job.slots[0],
        "stop": True,
        "model": alias,
        "tokens_predicted": choice.completion_tokens,
        "tokens_evaluated": choice.prompt_tokens,
        "generation_settings": generation_settings(job.request),
        "prompt": prompt.rendered,
        "has_new_line": "\n" in choice.text("content"),
        "truncated": False,
        "stop_type": "limit" if choice.finish_reason == "length" else "eos",
        "stopping_word": "",
        "tokens_cached": choice.prompt_tokens + choice.completion_tokens - 1,
        "timings": timing,
    }


def compact_json(value: object) -> str:
    """JSON as llama-server writes it: no spaces, keys in their given order, text unescaped."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def encoded(text: str) -> bytes:
    """The text in UTF-8, with the bytes in it that a mark stands for; half a character becomes `?`."""
    return text.encode("utf-8", "replace").replace(MARK_BYTES, BAD_BYTES)


class Stream:
    """Writes the server-sent events of one reply."""

    def __init__(self, job: Job, alias: str) -> None:
        """Prepare the part that is the same in each event."""
        self.job = job
        self.request = job.request
        created, name = int(time.time()), completion_id()
        kind = {"system_fingerprint": BUILD, "object": "chat.completion.chunk"}
        self.before: dict[str, Any] = {"created": created, "id": name, "model": alias, **kind}
        self.after: dict[str, Any] = {}
        if not self.request.is_chat:
            self.before = {"created": created, "model": alias, **kind, "object": "text_completion"}
            self.after = {"id": name}
        self.frame = compact_json(self.before)[1:-1]

    def event(self, choice: Mapping[str, Any] | None, **more: Any) -> str:
        """One event with a choice in it, or with none."""
        choices = [] if choice is None or not self.job.fault.choices else [choice]
        usage_first = {"usage": more.pop("usage")} if "usage" in more else {}
        return f"data: {compact_json({'choices': choices, **self.before, **usage_first, **self.after, **more})}\n\n"

    def delta(self, index: int, delta: Mapping[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        """A choice that adds to its message, or to its text."""
        if self.request.is_chat:
            return {"finish_reason": finish_reason, "index": index, "delta": delta}
        return {"text": delta.get("content", ""), "index": index, "logprobs": None, "finish_reason": finish_reason}

    def token(self, index: int, number: int) -> Iterator[str]:
        """The events of a choice's number-th token: mostly one, and none for a tag that is parsed away."""
        choice, chat = self.job.choices[index], self.request.is_chat
        if number == 0 and chat:
            if self.request.progress:
                yield from self.progress(index, choice)
            yield self.event(self.delta(index, {"role": "assistant", "content": None}))
        if number == 0 and self.job.fault.marked:
            yield self.event(self.delta(index, {"content": BAD_MARK}))
        if number < len(choice.fields) and self.job.fault.content:
            yield from self.piece(index, number, *choice.fields[number])
        if number == choice.completion_tokens - 1:
            yield self.last(index, choice)

    def piece(self, index: int, number: int, field: str, piece: str) -> Iterator[str]:
        """The event of one token of text."""
        if not field:
            return
        plain = self.request.top_logprobs is None and not self.request.timings_per_token and self.request.is_chat
        if plain and self.job.fault.choices:  # the same as below, without building it anew for each token
            text = json.dumps(piece, ensure_ascii=False)
            start = f'{{"choices":[{{"finish_reason":null,"index":{index},"delta":{{"{field}":{text}}}}}],'
            yield f"data: {start}{self.frame}}}\n\n"
            return
        part = self.delta(index, {field: piece})
        if self.request.top_logprobs is not None and self.request.is_chat:
            part["logprobs"] = logprobs([piece], self.request.top_logprobs)
        more = {}
        if self.request.timings_per_token:
            more["timings"] = timings(self.job, self.job.choices[index], number + 1)
        yield self.event(part, **more)

    def progress(self, index: int, choice: Choice) -> Iterator[str]:
        """The events that tell how far the prompt is read: not at all, and all of it."""
        role = self.delta(index, {"role": "assistant", "content": None})
        for processed, spent in ((0, 0), (choice.prompt_tokens, round(self.job.prompt_ms))):
            told = {"total": choice.prompt_tokens, "cache": 0, "processed": processed, "time_ms": spent}
            yield self.event(role, prompt_progress=told)

    def last(self, index: int, choice: Choice) -> str:
        """The last event of a choice; it carries the timings, unless an event with the usage is to follow."""
        more: dict[str, Any] = {}
        if not self.request.is_chat:
            more["usage"] = usage(choice)
        if not (self.request.include_usage and self.request.is_chat):
            more["timings"] = timings(self.job, choice, choice.completion_tokens)
        return self.event(self.delta(index, {}, choice.finish_reason), **more)

    def ending(self) -> bytes:
        """The events after the last choice's last one; none for a stream that has broken off."""
        if self.job.fault.midway or self.job.failure:
            return b""
        if self.job.interrupted:
            return b"data: [DONE]\n\n"
        first, told = self.job.choices[0], ""
        if self.request.include_usage and self.request.is_chat:
            timing = timings(self.job, first, first.completion_tokens)
            told = self.event(None, usage=usage(first), timings=timing)
        return encoded(told + "data: [DONE]\n\n" if self.job.fault.done else told)

    def tokens(self, start: int, stop: int) -> str:
        """The events of all choices from one token to another. The first choice is the last in each round."""
        order = [*range(1, len(self.job.choices)), 0]
        return "".join(event for number in range(start, stop) for index in order for event in self.token(index, number))


# Name, kind and meaning of each metric; those that nothing counts are 0.
METRICS = (
    ("prompt_tokens_total", "counter", "Number of prompt tokens processed, excluding cached tokens"),
    ("prompt_tokens_cached_total", "counter", "Number of prompt tokens reused from the cache"),
    ("prompt_seconds_total", "counter", "Total time spent processing prompts"),
    ("tokens_predicted_total", "counter", "Number of generation tokens processed"),
    ("tokens_predicted_seconds_total", "counter", "Total time spent generating tokens"),
    (
        "n_decode_total",
        "counter",
        "Total number of llama_decode() calls, excluding speculative decoding and multimodal decoding",
    ),
    ("n_tokens_max", "counter", "Largest observed sequence length (prompt + generation)"),
    ("spec_decode_num_draft_tokens_total", "counter", "Speculative: Total draft tokens generated"),
    (
        "spec_decode_num_accepted_tokens_total",
        "counter",
        "Speculative: Total draft tokens accepted by the target model",
    ),
    ("spec_decode_num_drafts_total", "counter", "Speculative: Total speculative decoding verification steps"),
    ("prompt_tokens_seconds", "gauge", "Average prompt throughput in tokens/s"),
    ("predicted_tokens_seconds", "gauge", "Average generation throughput in tokens/s"),
    ("requests_processing", "gauge", "Number of requests processing"),
    ("requests_deferred", "gauge", "Number of requests deferred"),
    ("n_busy_slots_per_decode", "gauge", "Average number of busy slots per llama_decode() call"),
)


class Metrics:
    """The work of the server so far, in numbers."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.lock = threading.Lock()
        self.start_time = int(time.time())
        self.reset()

    def reset(self) -> None:
        """Forget all."""
        self.totals: dict[str, float] = defaultdict(float)

    def count(self, job: Job) -> None:
        """Add a job that is done."""
        with self.lock:
            totals = self.totals
            totals["prompt_seconds_total"] += job.prompt_ms / 1000
            totals["tokens_predicted_seconds_total"] += job.predicted_seconds()
            totals["n_decode_total"] += job.total
            for choice in job.choices:
                totals["prompt_tokens_total"] += choice.prompt_tokens
                totals["tokens_predicted_total"] += choice.completion_tokens
                totals["n_tokens_max"] = max(totals["n_tokens_max"], choice.prompt_tokens + choice.completion_tokens)

    def text(self, busy: int, waiting: int) -> str:
        """The metrics in the text format of Prometheus."""
        with self.lock:
            values = defaultdict(float, self.totals)

        def ratio(total: str, over: str) -> float:
            return values[total] / values[over] if values[over] else 0

        values["prompt_tokens_seconds"] = ratio("prompt_tokens_total", "prompt_seconds_total")
        values["predicted_tokens_seconds"] = ratio("tokens_predicted_total", "tokens_predicted_seconds_total")
        values["n_busy_slots_per_decode"] = ratio("tokens_predicted_total", "n_decode_total")
        values.update(requests_processing=busy, requests_deferred=waiting)
        return "".join(
            f"# HELP llamacpp:{name} {meaning}\n# TYPE llamacpp:{name} {kind}\nllamacpp:{name} {values[name]:.6g}\n"
            for name, kind, meaning in METRICS
        )


# ---- simulator ------------------------------------------------------------------------------------------

LOG_LENGTH = 20_000
ENOUGH_OF_A_LOOP = 3000  # characters, after which a client that leaves has seen what it is


@dataclass(frozen=True)
class Asked:
    """The request in a prompt: a name to count its attempts by, the match, and the matter to judge, if any."""

    name: str
    match: Match | Miss
    judging: Judging | None


class Simulator:
    """Finds the question in a request, decides how to answer it, and counts the deliveries."""

    def __init__(self, questions: Sequence[Question], settings: Settings) -> None:
        """Take the known questions, and how to behave."""
        self.questions = questions
        self.settings = settings
        self.matcher = Matcher(questions, settings.answers.match_threshold)
        self.deliveries = Deliveries(questions, settings)
        self.faults = Faults(settings)
        self.slots = Slots(settings.speed.slots, settings.speed.slot_context if settings.server.kv_unified else None)
        self.metrics = Metrics()
        self.entries: deque[dict[str, Any]] = deque(maxlen=LOG_LENGTH)

    def reset(self) -> None:
        """Begin anew: with the first delivery, the first attempt, an empty log."""
        for part in (self.deliveries, self.faults, self.metrics):
            part.reset()
        self.entries.clear()

    def job(self, request: ChatRequest) -> Job:
        """The work on a request; raises RequestError if it asks no known question."""
        context = self.settings.speed.slot_context
        for prompt in request.prompts:
            if prompt.tokens >= context:
                raise context_error(prompt.tokens, context)
        asked = [self.asked(prompt) for prompt in request.prompts]
        attempt, name = self.faults.next(asked[0].name, request.stream)
        fault = FAULTS[name] if name else SOUND
        choices: list[Choice] = []
        for prompt, what in zip(request.prompts, asked, strict=True):
            entry = {"attempt": attempt, "fault": name, **match_view(what.match)}
            if not fault.generates:
                self.record({"role": "none", **entry, "decision": "lost", "answer": None, "verdict": "lost"})
                continue
            choices += [self.choice(request, prompt, what, entry) for _ in range(request.choices)]
        return Job(request, choices, fault, *self.pace(asked[0].name, attempt))

    def asked(self, prompt: Prompt) -> Asked:
        """The request in a prompt; raises RequestError if that is nothing known."""
        match = self.matcher.find(prompt.user_texts)
        judging = read_judging(prompt.text)
        if judging is not None and isinstance(match, Match) and self.asks_after(prompt.text, match.question):
            judging = None
        if judging is None:
            if isinstance(match, Match):
                return Asked(match.question.name, match, None)
            if self.settings.answers.unmatched is None:
                raise self.refusal(prompt, match)
        return Asked(digest(0, prompt.rendered).hex()[:16], match, judging)

    def asks_after(self, text: str, question: Question) -> bool:
        """Whether a question comes only after an apparent response: then that is an example of one."""
        place = response_place(text)
        if place is None:
            return False
        before, after = self.matcher.find([text[: place[0]]]), self.matcher.find([text[place[0] :]])
        return [isinstance(part, Match) and part.question == question for part in (before, after)] == [False, True]

    def choice(self, request: ChatRequest, prompt: Prompt, asked: Asked, entry: Mapping[str, Any]) -> Choice:
        """One reply to a prompt."""
        if asked.judging is not None:
            return self.judge(request, prompt, asked.judging, asked.match, entry)
        if isinstance(asked.match, Match):
            return self.solve(request, prompt, asked.match.question, entry)
        return self.fixed(request, prompt, entry)

    def pace(self, name: str, attempt: int) -> tuple[float, float]:
        """The seconds to the first token of an attempt at a question, and from each to the next."""
        speed, key = self.settings.speed, (self.settings.seed, name, attempt)
        first = speed.ttft * log_normal(speed.jitter, *key, "ttft")
        rate = speed.tokens_per_second * log_normal(speed.jitter, *key, "speed")
        return first, 1 / rate if rate else 0.0

    def room(self, request: ChatRequest, prompt: Prompt) -> int:
        """The number of tokens that a reply may have: even a limit of 0 leaves one."""
        left = self.settings.speed.slot_context - prompt.tokens
        return max(1, left if request.limit is None else min(left, request.limit))

    def solve(self, request: ChatRequest, prompt: Prompt, question: Question, entry: Mapping[str, Any]) -> Choice:
        """An answer to a known question."""
        delivery = self.deliveries.take(question)
        room = self.room(request, prompt)
        try:
            text, verdict = Author(request, delivery, self.settings, room, prompt.text).text()
        except RequestError:  # of a schema that is too complex
            self.deliveries.settle(delivery, None)
            raise
        choice = make_choice(text, verdict, room, request, prompt)
        decided = {"decision": delivery.outcome, "answer": delivery.answer, "delivery": delivery.number}
        record = self.record({"role": "solver", **entry, **decided, "verdict": None})
        return replace(choice, delivery=delivery, entry=record)

    def judge(
        self, request: ChatRequest, prompt: Prompt, judging: Judging, match: Match | Miss, entry: Mapping[str, Any]
    ) -> Choice:
        """A judge's reply. The same prompt gets the same one."""
        truth = match.question.answer if isinstance(match, Match) else None
        mistaken = draw(self.settings.seed, "judge", prompt.rendered) < self.settings.answers.judge_error_rate
        text = judgement(judging, truth, request.schema, mistaken)
        self.record(
            {"role": "judge", **entry, "decision": "wrong" if mistaken else "right", "answer": text, "verdict": None}
        )
        return make_choice(text, None, self.room(request, prompt), request, prompt)

    def fixed(self, request: ChatRequest, prompt: Prompt, entry: Mapping[str, Any]) -> Choice:
        """The reply to a prompt without a known question."""
        text = self.settings.answers.unmatched or ""
        if request.schema is not None:
            text = SchemaWriter(request.schema, text, text).write()
        self.record({"role": "fixed", **entry, "decision": "fixed", "answer": None, "verdict": None})
        return make_choice(text, None, self.room(request, prompt), request, prompt)

    def record(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Log a decision: a line on stderr, and an entry of the log that can be asked for."""
        self.entries.append(entry)
        log(decision_line(entry))
        return entry

    def settle(self, job: Job, reached: bool) -> None:
        """Count the deliveries of a job, or give them back if its client has not got them.

        A loop counts once its client has seen enough of it to leave.
        """
        for choice in job.choices:
            delivery = choice.delivery
            if delivery is None or choice.entry is None or choice.entry["verdict"] == "lost":
                continue
            looped = delivery.outcome == "loop" and choice.length(job.sent) >= ENOUGH_OF_A_LOOP
            turned_away = looped and not reached and not job.broken  # before any fault could strike
            whole = reached and job.fault.delivered and not (job.failure or job.interrupted)
            lost = not turned_away and not whole
            verdict = choice.verdict
            if not job.fault.content:
                verdict = "truncated" if choice.finish_reason == "length" else "no_answer"
            self.deliveries.settle(delivery, None if lost else verdict)
            choice.entry["verdict"] = "lost" if lost else verdict

    def refusal(self, prompt: Prompt, miss: Miss) -> RequestError:
        """The error for a prompt without an answer."""
        texts = prompt.user_texts
        closest = shown(miss.closest.name) if miss.closest else "none"
        detail = f"; closest {closest}, asked {quoted(texts[0] if texts else '')}"
        known = f"{len(self.questions)} known questions"
        if miss.closest is not None and miss.rival is not None:
            pair = f"{shown(miss.closest.name)} and {shown(miss.rival.name)}"
            message = f"the prompt is too close to both {pair} of the {known} (distance {miss.distance:.2f})"
        else:
            accepted = f"accepted up to {self.settings.answers.match_threshold:.2f}"
            distances = f"closest distance {miss.distance:.2f}, {accepted}"
            message = f"the prompt matches none of the {known} ({distances})"
        self.entries.append(
            {"role": "none", **match_view(miss), "decision": "refused", "answer": None, "verdict": None}
        )
        return RequestError(400, "invalid_request_error", message, detail)


def match_view(match: Match | Miss) -> dict[str, Any]:
    """The fields of the log on a match."""
    if isinstance(match, Match):
        return {"question": match.question.name, "matched_by": match.how, "distance": round(match.distance, 4)}
    return {"question": None, "matched_by": None, "distance": round(match.distance, 4)}


def decision_line(entry: Mapping[str, Any]) -> str:
    """The log line of a decision."""
    asked = shown(entry["question"]) if entry["question"] else "unknown question"
    decision = entry["decision"] if entry["role"] in ("solver", "none") else f"{entry['role']} {entry['decision']}"
    answered = f": answered {shown(entry['answer'])}" if entry["answer"] is not None else ""
    details = [entry["matched_by"] or "no match", f"distance {entry['distance']:.2f}"]
    details += [f"{name} {entry[name]}" for name in ("delivery", "attempt", "fault") if entry.get(name) is not None]
    return f"{asked} {decision}{answered} ({', '.join(details)})"


def context_error(tokens: int, context: int) -> RequestError:
    """The error for a prompt that does not fit."""
    problem = f"request ({tokens} tokens) exceeds the available context size ({context} tokens), try increasing it"
    more = {"n_prompt_tokens": tokens, "n_ctx": context}
    return RequestError(400, "exceed_context_size_error", problem, more=more)


# ---- HTTP -----------------------------------------------------------------------------------------------

KEEP_ALIVE_REQUESTS = 100
KEEP_ALIVE_SECONDS = 5.0
TRANSFER_SECONDS = 600.0  # for a client to send the rest of a request, or to take in more of a reply
HEAD_LIMIT = 1 << 16
BODY_LIMIT = 1 << 26
CONTROL = re.compile(r"[\0-\x08\n-\x1f\x7f]")
BODY_FIELDS = frozenset({"CONTENT_TYPE", "CONTENT_LENGTH"})
NO_FIELD = (FirstHeaderLineIsContinuationDefect, MissingHeaderBodySeparatorDefect)  # of lines of a head


class Connection(BaseHTTPRequestHandler):
    """One connection: reads requests, has the application answer them, writes its replies."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16  # so that a head leaves with the first of its body
    server: HttpServer

    def handle(self) -> None:
        """Serve the requests of one connection, as many as it may carry."""
        self.poll = select.poll()
        self.poll.register(self.connection, select.POLLIN)
        try:
            for left in reversed(range(KEEP_ALIVE_REQUESTS)):
                environ = self.read_request()
                if environ is None or not self.respond(environ, last=left == 0):
                    return
        except HangupError as end:
            if end.reset:  # close() then sends no FIN, but a reset
                with contextlib.suppress(OSError):
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
        except BadRequestError as error:
            log(f"refused 400: {error}")
            with contextlib.suppress(OSError):
                self.refuse()
        except OSError:
            pass  # the client is gone, or too slow

    def refuse(self) -> None:
        """Say that this is no request. The rest of it is read: left unread, it would undo the reply."""
        line = "HTTP/1.1 400 Bad Request\r\nServer: llama.cpp\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        self.connection.sendall(line.encode())
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(KEEP_ALIVE_SECONDS)
        for _ in range(BODY_LIMIT // HEAD_LIMIT):
            if not self.connection.recv(HEAD_LIMIT):
                return

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Raise BadRequestError: `parse_request` calls this for everything that is no request."""
        raise BadRequestError(f"{code}: {message or explain}")

    def handle_expect_100(self) -> bool:
        """Tell a client that waits for it to go on."""
        super().handle_expect_100()
        self.wfile.flush()
        return True

    def has_left(self) -> bool:
        """Whether the client has closed the connection, or its half of it."""
        return self.wait(0)

    def wait(self, seconds: float) -> bool:
        """Wait, at most until the client leaves; returns whether it has left."""
        deadline = time.monotonic() + seconds
        while True:
            remaining = deadline - time.monotonic()
            if self.poll.poll(max(0.0, remaining) * 1000):
                try:
                    if not self.connection.recv(1, socket.MSG_PEEK):
                        return True
                except OSError:
                    return True
                time.sleep(max(0.0, deadline - time.monotonic()))  # it has sent its next request ahead
            if remaining <= 0 or deadline <= time.monotonic():
                return False

    def read_request(self) -> dict[str, Any] | None:
        """The next request as WSGI has it; None when no more comes. Raises BadRequestError and OSError."""
        if self.connection.gettimeout() != KEEP_ALIVE_SECONDS:
            self.connection.settimeout(KEEP_ALIVE_SECONDS)
        try:
            begun = self.rfile.peek()  # type: ignore[attr-defined]
        except TimeoutError:
            return None
        if not begun:
            return None
        if not begun.endswith(b"\r\n\r\n"):  # there is more to come, or a body, which takes its time
            self.connection.settimeout(TRANSFER_SECONDS)
        self.raw_requestline = self.take_line()
        while self.raw_requestline == b"\r\n":
            self.raw_requestline = self.take_line()
        if not self.parse_request() or self.request_version not in ("HTTP/1.0", "HTTP/1.1"):
            raise BadRequestError(f"{quoted(self.requestline)} is no HTTP request")
        broken = any(isinstance(defect, NO_FIELD) for defect in self.headers.defects)
        if broken or any(CONTROL.search(value) for value in self.headers.values()):
            raise BadRequestError("a line of the head is no header field")
        body = self.read_body()
        path, _, query = re.sub(r"^https?://[^/?]*", "", self.path).partition("?")
        environ = {
            **self.server.base_environ,
            "REQUEST_METHOD": self.command,
            "PATH_INFO": urllib.parse.unquote_to_bytes(path).decode("latin-1"),
            "QUERY_STRING": urllib.parse.quote(query, safe=string.printable, encoding="latin-1"),
            "SERVER_PROTOCOL": self.request_version,
            "simulator.connection": self,
        }
        for name, value in self.headers.items():
            key = name.upper().replace("-", "_")
            environ[key if key in BODY_FIELDS else "HTTP_" + key] = value.strip()
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        return {**environ, "CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body)}

    def read_body(self) -> bytes:
        """The body of a request, if it has one."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            return self.read_chunks()
        length = self.headers.get("Content-Length") or "0"
        if not re.fullmatch(r"[0-9]{1,12}", length, re.ASCII):
            raise BadRequestError(f"Content-Length is {quoted(length)}")
        return self.take(int(length))

    def read_chunks(self) -> bytes:
        """A body that comes in chunks."""
        body = bytearray()
        while True:
            size = re.match(rb"\s*([0-9a-f]{1,8})\s*(?:;|$)", self.take_line(), re.IGNORECASE)
            if size is None or len(body) > BODY_LIMIT:
                raise BadRequestError("a chunk of a body has no sane size")
            if not int(size[1], 16):
                while self.take_line() != b"\r\n":
                    pass  # trailers
                return bytes(body)
            body += self.take(int(size[1], 16))
            self.take_line()

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if count > BODY_LIMIT:
            raise BadRequestError(f"a body of {count} bytes is too long")
        taken = self.rfile.read(count)
        if len(taken) < count:
            raise BadRequestError("the body of a request is cut short")
        return taken

    def take_line(self) -> bytes:
        """The next line."""
        line = self.rfile.readline(HEAD_LIMIT + 1)
        if not line.endswith(b"\n"):
            raise BadRequestError("a line of a request is cut short, or too long")
        return line

    def respond(self, environ: dict[str, Any], last: bool) -> bool:
        """Answer a request; returns whether the connection stays open. Raises HangupError and OSError."""
        started: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], _exc_info: object = None) -> Any:
            started[:] = [status, headers]
            return None

        body = self.server.app(environ, start_response)
        try:
            items = iter(body)
            first = next(items, b"")
            status, headers = started
            sized = any(name.lower() == "content-length" for name, _ in headers)
            modern = environ["SERVER_PROTOCOL"] == "HTTP/1.1"
            stays = modern and not (last or self.close_connection or status[0] in "45")
            self.send_head(environ, status, headers, stays, chunked=modern and not sized)
            frame = as_chunk if modern and not sized else bytes
            if environ["REQUEST_METHOD"] == "HEAD":
                self.wfile.flush()
                return stays
            for item in itertools.chain([first], items):
                self.wfile.write(frame(item))
                self.wfile.flush()
            if modern and not sized:
                self.wfile.write(b"0\r\n\r\n")
                self.wfile.flush()
            return stays
        finally:
            body.close()  # type: ignore[attr-defined]  # of the generator, which frees its slot

    def send_head(
        self, environ: Mapping[str, Any], status: str, headers: Iterable[tuple[str, str]], stays: bool, chunked: bool
    ) -> None:
        """Write the head of a reply, with the fields that llama-server gives to each."""
        code, _, reason = status.partition(" ")
        self.send_response_only(int(code), reason)
        lines = [("Server", "llama.cpp"), ("Access-Control-Allow-Origin", environ.get("HTTP_ORIGIN", "")), *headers]
        lines += [("Transfer-Encoding", "chunked")] if chunked else []
        keep = ("Keep-Alive", f"timeout={KEEP_ALIVE_SECONDS:.0f}, max={KEEP_ALIVE_REQUESTS}")
        lines.append(keep if stays else ("Connection", "close"))
        lines += [("Accept-Ranges", "bytes")] if environ["REQUEST_METHOD"] == "HEAD" else []
        for name, value in lines:
            self.send_header(name, value)
        self.end_headers()


def as_chunk(data: bytes) -> bytes:
    """The data as a chunk of a body; nothing for none, which would be the end."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


class HttpServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Serves a WSGI application with one thread for each connection."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, bound: socket.socket, app: flask.Flask) -> None:
        """Take a socket that listens."""
        super().__init__(bound.getsockname()[:2], Connection, bind_and_activate=False)
        self.socket.close()
        self.socket = bound
        self.port = bound.getsockname()[1]
        self.app = app
        self.base_environ = {
            "SERVER_NAME": str(bound.getsockname()[0]),
            "SERVER_PORT": str(self.port),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log an error that no handler has foreseen."""
        log(f"internal error: {traceback.format_exc()}")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at the address, at a free port for port 0; raises SimulatorError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            other = port + 1 if port < 65535 else port - 1
            advice = f"try --port {other}, or --port 0 for any free one"
            raise SimulatorError(f"port {port} of {host} is in use; {advice}") from error
        reason = str(getattr(error, "strerror", None) or error).partition(" (while")[0]
        raise SimulatorError(f"cannot listen on {quoted(host)} port {port}: {reason}") from error


# Tokens that are written in one go where they come faster than they can be sent one by one.
BATCH = 256
PING_SECONDS = 30.0
HANG_SECONDS = 3600.0


def json_response(value: object, status: int = 200) -> flask.Response:
    """A JSON reply with the content type llama-server gives it."""
    return flask.Response(encoded(compact_json(value)), status, content_type="application/json; charset=utf-8")


def fault_response(fault: Fault, connection: Connection) -> flask.Response:
    """The reply of a fault that needs no completion; raises HangupError for one that is the end of the connection."""
    if fault.status is None:
        if fault.end == "hang":
            connection.wait(HANG_SECONDS)
        raise HangupError(reset=fault.end == "reset")
    if isinstance(fault.body, str):
        return flask.Response(fault.body, fault.status, fault.headers, content_type="text/html")
    response = json_response(fault.body, fault.status)
    response.headers.extend(fault.headers)
    return response


def paced(job: Job, slots: Slots, connection: Connection) -> Iterator[tuple[int, int] | None]:
    """The tokens of a job as they come due, as ranges; None for a sign of life while none does.

    Raises HangupError when the client leaves. It ends early where the job fails or is interrupted.
    """
    position = 0
    while position < job.total:
        slots.crowd()
        if job.failure or job.interrupted:
            return
        remaining = job.due(position) - time.perf_counter()
        if remaining > 0:
            if connection.wait(min(remaining, PING_SECONDS)):
                raise HangupError
            if remaining > PING_SECONDS and position:
                yield None
            continue
        if position == 0:
            job.prompt_is_read()
        upto = min(max(job.decoded(), position + 1), position + BATCH)
        yield position, upto
        position = upto


def streamed(stream: Stream, job: Job, simulator: Simulator, connection: Connection) -> Iterator[bytes]:
    """The bytes of a streamed reply but for its ending, as its fault has them."""
    middle = job.total // 2 if job.fault.midway else job.total
    with simulator.slots.held(job, connection.has_left):
        for part in paced(job, simulator.slots, connection):
            if part is None:
                yield b":\n\n"
                continue
            start, stop = part
            yield encoded(stream.tokens(start, min(stop, middle)))
            job.sent = stop
            if stop > middle:
                job.broken = True
                if job.fault.end:
                    raise HangupError(reset=job.fault.end == "reset")
                yield encoded(job.fault.event)
                return
        if job.failure:
            yield encoded(f"data: {compact_json(job.failure.body())}\n\n")
            return
        simulator.metrics.count(job)


def chat_response(simulator: Simulator, request: ChatRequest, connection: Connection) -> flask.Response:
    """The reply to a chat request, whole or as a stream, as its fault has it."""
    job = simulator.job(request)
    if simulator.settings.server.interrupts:
        for other in simulator.slots.busy():
            other.interrupted = other.request.stream
    if not job.fault.generates:
        return fault_response(job.fault, connection)
    if request.stream:
        stream = Stream(job, simulator.settings.server.alias)
        body = delivered(job, simulator, connection, streamed(stream, job, simulator, connection), stream.ending)
        body = dripping(body, job.fault.pause, connection) if job.fault.pause else body
        return flask.Response(body, content_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
    return whole_response(job, simulator, connection)


def whole_response(job: Job, simulator: Simulator, connection: Connection) -> flask.Response:
    """A reply that is not streamed. A client that leaves does not end the work on it, as in llama-server."""
    try:
        with simulator.slots.held(job, connection.has_left):
            sleep_until(job.due(0))
            job.prompt_is_read()
            while simulator.slots.context and time.perf_counter() < job.due(job.total - 1) and not job.failure:
                sleep_until(min(job.due(job.total - 1), time.perf_counter() + CROWD_CHECK_SECONDS))
                simulator.slots.crowd()
            sleep_until(job.due(job.total - 1) if not job.failure else 0)
            data = encoded(compact_json(completion(job, simulator.settings.server.alias)))
            simulator.metrics.count(job)
    except HangupError:
        simulator.settle(job, reached=False)
        raise
    if job.failure:
        simulator.settle(job, reached=False)
        raise job.failure
    if job.fault.event:
        data = data[: len(data) // 2]
    body = delivered(job, simulator, connection, first_half(data, job.fault), lambda: data)
    body = dripping(body, job.fault.pause, connection) if job.fault.pause else body
    response = flask.Response(body, content_type="application/json; charset=utf-8")
    response.content_length = len(data)
    return response


def sleep_until(due: float) -> None:
    """Wait for a value of `perf_counter`. Even a wait of no time at all would cost some."""
    remaining = due - time.perf_counter()
    if remaining > 0:
        time.sleep(remaining)


def first_half(data: bytes, fault: Fault) -> Iterator[bytes]:
    """Half of a reply, after which the connection ends, if the fault is of that kind; else nothing."""
    if fault.end:
        yield data[: len(data) // 2]
        raise HangupError(reset=fault.end == "reset")


def delivered(
    job: Job, simulator: Simulator, connection: Connection, body: Iterator[bytes], ending: Callable[[], bytes]
) -> Iterator[bytes]:
    """The body and its ending. The job is settled in between, so that who has read all finds it counted."""
    reached = False
    try:
        yield from body
        if connection.has_left():
            raise HangupError
        if not job.fault.pause:
            simulator.settle(job, reached=True)
        yield ending()
        simulator.settle(job, reached=True)
        reached = True
    finally:
        if not reached:
            simulator.settle(job, reached=False)


def dripping(body: Iterator[bytes], pause: float, connection: Connection) -> Iterator[bytes]:
    """The body byte by byte, slowly."""
    with contextlib.closing(body):  # type: ignore[type-var]
        for data in body:
            for place in range(len(data)):
                if connection.wait(pause):
                    raise HangupError
                yield data[place : place + 1]


def hung_up(error: HangupError) -> flask.Response:
    """A reply that raises the error once more, for the connection, as soon as it is to be written."""

    def nothing() -> Iterator[bytes]:
        raise error
        yield b""

    return flask.Response(nothing())


CORS = {
    "Access-Control-Allow-Credentials": "true",
    "Access-Control-Allow-Methods": "GET, POST, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": "*",
}
PUBLIC = frozenset({"/health", "/v1/health"})


def check_key(settings: Settings) -> None:
    """Raise RequestError unless a request that needs a key has one."""
    if not settings.server.keys or flask.request.path in PUBLIC:
        return
    given = flask.request.headers.get("Authorization", "") or flask.request.headers.get("X-Api-Key", "")
    sent = given.removeprefix("Bearer ").encode("latin-1")  # the bytes as they have come
    known = [hmac.compare_digest(sent, key.encode()) for key in settings.server.keys]
    if not any(known):
        raise ServerError(401, "authentication_error", "Invalid API Key")


def check_origin() -> None:
    """Raise RequestError for a request that a page of another server has a browser send."""
    origin = flask.request.headers.get("Origin")
    if origin and urllib.parse.urlsplit(origin).netloc != flask.request.host:
        raise RequestError(403, "permission_error", f"not for pages of {one_line(origin)[:100]}")


def build_app(simulator: Simulator) -> flask.Flask:
    """The web application: its routes and error replies."""
    settings = simulator.settings
    ready = time.monotonic() + settings.speed.load_time
    app = flask.Flask(PROGRAM, static_folder=None)
    app.url_map.merge_slashes = False
    app.register_error_handler(HTTPError, http_error_response)
    app.register_error_handler(RequestError, refused)
    app.register_error_handler(HangupError, hung_up)

    @app.before_request
    def before() -> flask.Response | None:
        if flask.request.method == "OPTIONS":
            return flask.Response("", headers=CORS, content_type="text/html")
        check_key(settings)
        if time.monotonic() < ready:
            raise ServerError(503, "unavailable_error", "Loading model")
        return None

    add_server_routes(app, simulator)
    add_generation_routes(app, simulator)
    return app


def refused(error: RequestError) -> flask.Response:
    """The reply to a request that cannot be answered."""
    if not isinstance(error, ServerError):
        log(f"refused {error.status}: {quoted(error, 200)}{error.detail}")
    return json_response(error.body(), error.status)


def http_error_response(error: HTTPError) -> flask.Response:
    """llama-server knows no 405: a wrong method is a path that is not there."""
    if error.code in (404, 405):
        return refused(ServerError(404, "not_found_error", "File Not Found"))
    body = RequestError(error.code or 500, "server_error", error.description or "internal error").body()
    return json_response(body, error.code or 500)


def add_server_routes(app: flask.Flask, simulator: Simulator) -> None:
    """The routes on which llama-server describes itself, and those on which the simulator does."""
    settings = simulator.settings

    def add(told: Callable[[], Any], *paths: str) -> None:
        for path in paths:
            app.add_url_rule(path, path, lambda: json_response(told()), methods=["GET"])

    add(lambda: {"status": "ok"}, "/health", "/v1/health")
    add(lambda: props(settings), "/props")
    add(lambda: models(settings), "/models", "/v1/models")
    add(simulator.deliveries.expected, "/simulator/expected")
    add(lambda: list(simulator.entries), "/simulator/log")

    @app.post("/props")
    def change_props_route() -> flask.Response:
        raise unsupported("changing global properties", "--props")

    @app.post("/simulator/reset")
    def reset_route() -> flask.Response:
        check_origin()
        simulator.reset()
        return json_response({"status": "ok"})

    @app.get("/slots")
    def slots_route() -> flask.Response:
        if not settings.server.slots_endpoint:
            raise unsupported("slots endpoint", "--slots")
        if flask.request.args.get("fail_on_no_slot") and simulator.slots.counts()[0] == settings.speed.slots:
            raise RequestError(503, "unavailable_error", "no slot available")
        states, context = simulator.slots.states(), settings.speed.slot_context
        return json_response([slot_view(number, *state, context) for number, state in enumerate(states)])

    @app.get("/metrics")
    def metrics_route() -> flask.Response:
        if not settings.server.metrics:
            raise unsupported("metrics endpoint", "--metrics")
        started = {"Process-Start-Time-Unix": str(simulator.metrics.start_time)}
        text = simulator.metrics.text(*simulator.slots.counts())
        return flask.Response(text, headers=started, content_type="text/plain; version=0.0.4")


def unsupported(what: str, option: str) -> RequestError:
    """The error for a route that the server was not started with."""
    return RequestError(501, "not_supported_error", f"This server does not support {what}. Start it with `{option}`")


def add_generation_routes(app: flask.Flask, simulator: Simulator) -> None:
    """The routes that take a prompt."""
    settings = simulator.settings

    @app.post("/chat/completions")
    @app.post("/v1/chat/completions")
    def chat_route() -> flask.Response:
        return chat_response(simulator, read_chat(flask.request.get_data(), settings), current_connection())

    @app.post("/v1/completions")
    def completions_route() -> flask.Response:
        return chat_response(simulator, read_text_completion(flask.request.get_data(), settings), current_connection())

    @app.post("/chat/completions/input_tokens")
    @app.post("/v1/chat/completions/input_tokens")
    def input_tokens_route() -> flask.Response:
        count = read_chat(flask.request.get_data(), settings).prompts[0].tokens
        return json_response({"input_tokens": count, "object": "response.input_tokens"})

    @app.post("/apply-template")
    def template_route() -> flask.Response:
        return json_response({"prompt": read_chat(flask.request.get_data(), settings).prompts[0].rendered})

    @app.post("/tokenize")
    def tokenize_route() -> flask.Response:
        body = read_object(flask.request.get_data())
        tokens: list[Any] = tokenize(str(body.get("content", "")))
        if body.get("with_pieces"):
            tokens = [{"id": token, "piece": token_piece(token)} for token in tokens]
        return json_response({"tokens": tokens})

    @app.post("/detokenize")
    def detokenize_route() -> flask.Response:
        tokens = read_object(flask.request.get_data()).get("tokens", [])
        known = [token_bytes(token) for token in tokens if isinstance(token, int)] if isinstance(tokens, list) else []
        return json_response({"content": b"".join(known).decode("utf-8", "replace")})


def current_connection() -> Connection:
    """The connection over which the current request has come."""
    connection: Connection = flask.request.environ["simulator.connection"]
    return connection


def token_piece(token: int) -> str | list[int]:
    """A token as text, or as bytes where it is only a part of a character."""
    raw = token_bytes(token)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return list(raw)


# ---- command line ---------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """A parser whose error is an exception, so that every bad input ends in one line and in one place."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError with the message."""
        raise UsageError(message)


def number_between(low: float, high: float) -> Callable[[str], float]:
    """A parser of numbers within bounds."""

    def parse(text: str) -> float:
        with contextlib.suppress(ValueError):
            if low <= float(text) <= high:
                return float(text)
        raise argparse.ArgumentTypeError(f"must be a number from {low:g} to {high:g}, not {quoted(text)}")

    return parse


def whole_between(low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers within bounds."""

    def parse(text: str) -> int:
        if re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) and low <= int(text) <= high:
            return int(text)
        raise argparse.ArgumentTypeError(f"must be a number from {low} to {high}, not {quoted(text)}")

    return parse


share = number_between(0, 1)


def host_name(text: str) -> str:
    """An address to listen on; an empty one would be all of them."""
    if not text.strip() or not text.isprintable():
        raise argparse.ArgumentTypeError(f"must be an address, not {quoted(text)}")
    return text


def unmatched_reply(text: str) -> str | None:
    """The text in `fixed:TEXT`; None for `error`."""
    if text == "error":
        return None
    kind, colon, reply = text.partition(":")
    if kind != "fixed" or not colon:
        raise argparse.ArgumentTypeError(f"must be error or fixed:TEXT, not {quoted(text)}")
    return reply


def fault_list(text: str) -> tuple[tuple[str, float], ...]:
    """The kinds and rates in `KIND:RATE[,...]`."""
    faults = []
    for item in text.split(","):
        kind, colon, rate = (part.strip() for part in item.partition(":"))
        if kind not in FAULTS or not colon:
            known = ", ".join(FAULTS)
            raise argparse.ArgumentTypeError(f"{quoted(item)} is not KIND:RATE with one of the kinds {known}")
        faults.append((kind, share(rate)))
    if math.fsum(rate for _, rate in faults) > 1 + 1e-9:
        raise argparse.ArgumentTypeError(f"the rates of {quoted(text)} sum to more than 1")
    return tuple(faults)


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds their defaults to the options that have one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if isinstance(action.default, bool | tuple | None) else super()._get_help_string(action)


def build_parser() -> Parser:
    """The command line, in the groups that --help shows."""
    parser = Parser(
        prog=PROGRAM,
        allow_abbrev=False,
        description="Pretends to be llama.cpp's llama-server, for testing evaluators without a model.",
        formatter_class=Formatter,
    )
    add_question_options(parser.add_argument_group("what it knows").add_argument)
    add_success_options(parser.add_argument_group("how often it is right").add_argument)
    add_model_options(parser.add_argument_group("how its model answers").add_argument)
    add_speed_options(parser.add_argument_group("how fast it is").add_argument)
    add_server_options(parser.add_argument_group("how it serves").add_argument)
    add_fault_options(parser.add_argument_group("what goes wrong").add_argument)
    return parser


def add_question_options(add: Callable[..., Any]) -> None:
    """The questions that it knows."""
    known = f"comma-separated list of datasets: {KNOWN_DATASETS}"
    add("--dataset", metavar="NAMES", default="aime,aime2025", help=known)
    split = (
        "split of the datasets given by their Hugging Face name; the others have only one, which is read in any case"
    )
    add("--dataset-split", metavar="SPLIT", default="train", help=split)
    near = "Levenshtein distance, over the longer length, up to which a part of a prompt is a known question"
    add("--match-threshold", type=number_between(0, 0.9), metavar="DISTANCE", default=0.3, help=near)
    other = "what a prompt without a known question gets: error, or the text in fixed:TEXT"
    add("--unmatched", type=unmatched_reply, metavar="REPLY", default="error", help=other)


def add_success_options(add: Callable[..., Any]) -> None:
    """The shares of right, wrong and missing answers."""
    add("--seed", type=int, default=0, help="decides all that is left to chance")
    right = (
        "share of right answers, 0 to 1: of a dataset's N questions exactly RATE*N, halves rounded up, are answered "
        "rightly in each pass over it"
    )
    add("--success-rate", type=share, metavar="RATE", default=0.8, help=right)
    mode = "exactly the shares asked for in each pass, or a draw for each answer"
    add("--success-mode", choices=("exact", "random"), default="exact", help=mode)
    rates = {
        "truncate": "cut at the token limit before the answer",
        "no-answer": "complete, and without an answer",
        "loop": "the same sentence again and again, up to the token limit",
    }
    for name, meaning in rates.items():
        add(f"--{name}-rate", type=share, metavar="RATE", default=0.0, help=f"share of replies that are {meaning}")
    wrong = "what is answered instead of the right answer; never that itself"
    add("--wrong-answer", choices=WRONG_ANSWERS, default="plus-one", help=wrong)
    misjudged = "share of the prompts to a judge that are judged wrongly"
    add("--judge-error-rate", type=share, metavar="RATE", default=0.0, help=misjudged)


def add_model_options(add: Callable[..., Any]) -> None:
    """The text of replies."""
    written = "how an answer is written; auto: JSON to prompts that ask for it, else boxed; mixed: any of the others"
    add("--answer-format", choices=ANSWER_FORMATS, default="auto", help=written)
    thinks = "whether the model thinks first: in reasoning_content, or between <think> and </think> in the content"
    add("--reasoning", choices=("none", "field", "inline"), default="none", help=thinks)
    long = "length of replies, filled with thoughts or steps; 0: no longer than the answer needs"
    add("--tokens", type=whole_between(0, 10_000_000), metavar="N", default=0, help=long)


def add_speed_options(add: Callable[..., Any]) -> None:
    """Latency and slots."""
    seconds: dict[str, Any] = {"type": number_between(0, 86400), "metavar": "SECONDS", "default": 0.0}
    add("--ttft", **seconds, help="time to the first token")
    fast = "speed of each slot; 0: no limit"
    add("--tokens-per-second", type=number_between(0, 1e6), metavar="N", default=0.0, help=fast)
    spread = "spread of --ttft, --tokens-per-second and --tokens: the standard deviation of their logarithms"
    add("--jitter", type=number_between(0, 3), metavar="SIGMA", default=0.0, help=spread)
    names, slots = ("-np", "--parallel", "--slots"), whole_between(1, 10_000)
    busy = "requests that are worked on at a time; the others wait (default: 4)"
    add(*names, dest="slots", nargs="?", type=slots, metavar="N", help=busy)
    context = f"context in tokens, which the slots of -np share; 0: {MODEL_CONTEXT} for each slot"
    add("-c", "--ctx-size", type=whole_between(0, 10_000_000), metavar="N", default=0, help=context)
    add("--load-time", **seconds, help="how long it says that it loads its model")


def add_server_options(add: Callable[..., Any]) -> None:
    """Options that llama-server has, too."""
    add("--host", type=host_name, default="localhost", help="address to listen on")
    add("--port", type=whole_between(0, 65535), default=8033, help="port to listen on; 0 picks a free one")
    add("--alias", metavar="NAME", default="simulator", help="name of the model")
    keys = "comma-separated keys, of which requests need one; a command line can be read by others on the machine"
    add("--api-key", metavar="KEYS", help=keys)
    add("--api-key-file", metavar="FILE", help="file with such keys, one in each line")
    add("--metrics", action="store_true", help="offer GET /metrics")
    add("--no-slots", action="store_true", help="offer no GET /slots")
    unified = "the slots share one context, and fail together when they have filled it"
    add("--kv-unified", action="store_true", help=unified)
    piped = "end when standard input does, as it does with the process that holds the other end of a pipe"
    add("--exit-with-stdin", action="store_true", help=piped)
    interrupts = "a new request ends the streams that are under way, as in the server of llama-cpp-python"
    add("--interrupt-requests", action="store_true", help=interrupts)


def add_fault_options(add: Callable[..., Any]) -> None:
    """The faults."""
    kinds = "; ".join(f"{kind}: {fault.told}" for kind, fault in FAULTS.items())
    shares = f"shares of the attempts that fail, and how: {kinds}"
    add("--fault", type=fault_list, metavar="KIND:RATE[,...]", default=(), help=shares)
    first = "the first N attempts at each question fail, in the ways of --fault in turn, or with 503"
    add("--fault-first", type=whole_between(0, 1000), metavar="N", default=0, help=first)


def read_settings(options: argparse.Namespace) -> Settings:
    """The options that decide how the simulator behaves; raises UsageError if they contradict each other."""
    rates = ("success_rate", "truncate_rate", "no_answer_rate", "loop_rate")
    if sum(decimal(getattr(options, name)) for name in rates) > 1:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in rates)
        raise UsageError(f"{names} sum to more than 1")
    slots = options.slots or DEFAULT_SLOTS
    context = options.ctx_size or MODEL_CONTEXT
    if options.ctx_size and options.slots and not options.kv_unified:
        context = max(1, context // slots)
    keys = [key.strip() for key in (options.api_key or "").split(",") if key.strip()]
    if options.api_key_file:
        keys += read_keys(Path(options.api_key_file))
    if options.api_key is not None and not keys:
        raise UsageError("--api-key holds no key")
    speed = {"ttft", "tokens_per_second", "jitter", "load_time"}
    return Settings(
        seed=options.seed,
        answers=Answers(**{name: getattr(options, name) for name in Answers.__annotations__}),
        speed=Speed(slots=slots, slot_context=context, **{name: getattr(options, name) for name in speed}),
        server=Serving(
            options.alias,
            tuple(keys),
            options.metrics,
            slots_endpoint=not options.no_slots,
            kv_unified=options.kv_unified,
            interrupts=options.interrupt_requests,
        ),
        faults=Failing(options.fault, options.fault_first),
    )


def read_keys(path: Path) -> list[str]:
    """The keys in a file, one in each line; raises UsageError."""
    try:
        keys = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the keys in {quoted(path, 200)}: {getattr(error, 'strerror', error)}") from error
    if not keys:
        raise UsageError(f"{quoted(path, 200)} holds no key")
    return keys


MANY_FILES = 10_240


def banner(url: str, rate: float, questions: Sequence[Question]) -> str:
    """The lines that are printed once requests can come."""
    counts = Counter(question.dataset for question in questions)
    parts = ", ".join(f"{shown(name)} {count}" for name, count in counts.items())
    return (
        f"=== {PROGRAM} ===\nServer running on {url}\nSuccess rate: {rate}\n"
        f"Questions loaded: {len(questions)} ({parts})"
    )


def allow_many_files() -> None:
    """Let the process have as many connections as the system permits: macOS begins with 256 files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, MANY_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def exit_with_stdin() -> None:
    """End the process once nothing more can come from standard input."""
    while os.read(0, 4096):
        pass
    os._exit(0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    for descriptor in range(3):  # a connection must not get the number of a console that is closed
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: os._exit(0))  # at once: unwinding makes the threads at work complain
    try:
        options = build_parser().parse_args(argv)
        settings = read_settings(options)
        allow_many_files()
        questions = load_datasets(parse_datasets(options.dataset), options.dataset_split)
        server = HttpServer(listen(options.host, options.port), build_app(Simulator(questions, settings)))
    except SimulatorError as error:
        log(f"{PROGRAM}: error: {one_line(error)}")
        return error.exit_code
    if options.exit_with_stdin:
        threading.Thread(target=exit_with_stdin, daemon=True).start()
    host = f"[{options.host}]" if ":" in options.host else options.host
    try:
        print(banner(f"http://{host}:{server.port}", settings.answers.success_rate, questions), flush=True)
    except OSError as error:
        log(f"{PROGRAM}: error: cannot print the URL: {error.strerror}")
        os._exit(1)  # without another try to print it
    server.serve_forever(poll_interval=0.1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
