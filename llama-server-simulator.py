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
expected answer plus one) at exactly the success rate; anything else gets an error reply.

Sections: vocabulary, errors and messages, answers, questions, hub, matching, success, chat requests,
chat replies, identity, simulator, HTTP, command line.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import json
import math
import os
import queue
import re
import secrets
import signal
import socket
import string
import sys
import threading
import time
import unicodedata
import urllib.error
import urllib.request
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from typing import Any, NoReturn

import flask
import Levenshtein
from werkzeug.exceptions import HTTPException as HTTPError
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

PROGRAM = "llama-server-simulator"
PRACTICE = Path(__file__).resolve().parent / "data" / "practice.jsonl"

# ---- vocabulary ------------------------------------------------------------------------------------


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
class Delivery:
    """One answer given to one question: the number-th one, counted from 0."""

    number: int
    right: bool
    answer: str


@dataclass(frozen=True)
class ChatRequest:
    """What matters of a chat request. `limit` is in tokens, None for no limit."""

    user_texts: Sequence[str]
    prompt: str
    stream: bool
    include_usage: bool
    limit: int | None
    json_only: bool


@dataclass(frozen=True)
class Reply:
    """A finished reply: the pieces of text it is streamed in, and what it cost in tokens and milliseconds."""

    pieces: Sequence[str]
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    prompt_ms: float


# ---- errors and messages ---------------------------------------------------------------------------


class SimulatorError(Exception):
    """The simulator cannot start."""

    exit_code = 1


class UsageError(SimulatorError):
    """The command line makes no sense."""

    exit_code = 2


class DatasetError(SimulatorError):
    """A dataset cannot be read, or holds a row that cannot be used."""


class AddressError(SimulatorError):
    """The server cannot listen where it was told to."""


class RequestError(Exception):
    """A request that gets an error reply instead of an answer."""

    def __init__(self, status: int, kind: str, message: str, detail: str = "") -> None:
        """Take the HTTP status, llama-server's error type, its message, and what only the log should add."""
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.detail = detail


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


# ---- answers ---------------------------------------------------------------------------------------

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


def wrong_answer(answer: str) -> str:
    """The expected answer plus one: never right, and easy to recognise in a report."""
    return str(int(answer) + 1)


# ---- questions -------------------------------------------------------------------------------------

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
# Where the datasets with a name of their own are on the hub: repository, configuration, split.
HUB_DATASETS = {
    "aime": ("AI-MO/aimo-validation-aime", None, "train"),
    "aime2026": ("MathArena/aime_2026", None, "train"),
    "gsm8k": ("openai/gsm8k", "main", "test"),
}
NAMED_DATASETS = ("aime", "aime2025", "aime2026", "gsm8k", "practice")
KNOWN_DATASETS = f"{', '.join(NAMED_DATASETS)}, a FILE.jsonl, or a Hugging Face name org/name"

Row = tuple[str, Mapping[str, Any]]  # where it stands, for messages, and its fields


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
    """What a dataset is called in question names: a file by its stem, so that its folder does not matter."""
    return Path(name).stem if is_file_name(name) else name


def is_file_name(name: str) -> bool:
    """Whether a dataset is named by its file: by the usual ending, or because there is such a file."""
    return name.endswith(".jsonl") or os.path.isfile(name)


def load_datasets(names: Sequence[str], split: str) -> list[Question]:
    """All questions of the datasets, in order; `split` is for Hugging Face names only."""
    return [question for name in names for question in load_dataset(name, split)]


def load_dataset(name: str, split: str) -> list[Question]:
    """The questions of one dataset; raises DatasetError if there are none or one is unusable."""
    questions: dict[str, Question] = {}
    places: dict[str, str] = {}
    for number, (where, fields) in enumerate(dataset_rows(name, split), 1):
        question = read_question(dataset_title(name), number, where, fields)
        if question.id in questions:
            raise DatasetError(f"{where}: the id {quoted(question.id)} is taken by {places[question.id]}")
        questions[question.id] = question
        places[question.id] = where
    if not questions:
        raise DatasetError(f"dataset {quoted(name, 200)} holds no questions")
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
        raise DatasetError(f"{where}: no text under 'question' or 'problem'")
    if fields.get("answer") is None:
        raise DatasetError(f"{where}: no answer")
    answer = canonical_answer(fields["answer"])
    if answer is None:
        raise DatasetError(f"{where}: the answer {quoted(fields['answer'])} is not an integer")
    identity = number if fields.get("id") is None else fields["id"]
    if isinstance(identity, bool) or not isinstance(identity, int | str) or identity == "":
        raise DatasetError(f"{where}: the id {quoted(identity)} is neither text nor an integer")
    return Question(title, str(identity), text, answer)


def jsonl_rows(path: Path) -> Iterator[Row]:
    """Rows of a JSONL file; `id` may be missing, and `problem` may stand for `question`.

    {"id": "7", "question": "What is $6 \\cdot 7$?", "answer": "42"}
    """
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise DatasetError(f"cannot read {quoted(path, 200)}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            fields = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DatasetError(f"{where}: not UTF-8 text") from error
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise DatasetError(f"{where}: not valid JSON ({reason})") from error
        if not isinstance(fields, dict):
            raise DatasetError(f"{where}: not a JSON object")
        yield where, fields


def aime2025_rows() -> Iterator[Row]:
    r"""Both halves of AIME 2025, with the ids I-1 to I-15 and II-1 to II-15 they lack on the hub.

    {"question": "Suppose $ \\triangle ABC $ has angles ...", "answer": "336^\\circ"}
    """
    for part in ("I", "II"):
        rows = hub_rows("opencompass/AIME2025", f"AIME2025-{part}", "test")
        for number, (where, fields) in enumerate(rows, 1):
            yield where, {**fields, "id": f"{part}-{number}"}


# ---- hub -------------------------------------------------------------------------------------------

HUB_ANSWER_SECONDS = 4.0


def hub_rows(path: str, config: str | None, split: str) -> Iterator[Row]:
    """Rows of a Hugging Face dataset: from its cache without touching the network, else from the hub.

    AI-MO/aimo-validation-aime: {"id": 0, "problem": "Quadratic polynomials ...", "answer": "116", ...}
    """
    try:
        import datasets  # noqa: PLC0415  # heavy: half a second that a local file should not cost
    except ImportError as error:
        raise DatasetError(f"{path} needs the package 'datasets': pip install datasets") from error
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
    """A dataset from the hub; raises DatasetError, beginning with the `problem` so far, if that fails."""
    import datasets  # noqa: PLC0415

    endpoint = datasets.config.HF_ENDPOINT
    advice = "use --dataset practice or a local FILE.jsonl"
    if datasets.config.HF_HUB_OFFLINE:
        raise DatasetError(f"{problem} and HF_HUB_OFFLINE forbids asking the hub; {advice}")
    if not answers(endpoint):
        raise DatasetError(f"{problem} and {endpoint} does not answer; {advice}")
    log(f"loading {path} from {endpoint}")
    try:
        return datasets.load_dataset(path, config, split=split)
    except Exception as error:  # the library passes on whatever its HTTP and Arrow layers raise
        raise DatasetError(f"{problem} and {endpoint} says: {one_line(error)}; {advice}") from error


def answers(url: str) -> bool:
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


# ---- matching --------------------------------------------------------------------------------------

ACCEPTED_DISTANCE = 0.3
# AIME questions nearest to each other are 0.32 apart, and 10 % noise moves one by at most 0.2.
MARGIN = 0.05
# A shorter text says too little for an inexact match: 6*7 and 6-7 differ in one character.
INEXACT_LENGTH = 24
# The letters of a question that is mostly LaTeX are few, and resemble those of many others.
LETTERS_SHARE = 0.5
WINDOW = 32
GRAM = 4
CANDIDATES = 8
# An inexact search reads no more than this of a message: it is the slow one.
INEXACT_READS = 20_000

LATEX_COMMAND = re.compile(r"\\(?:begin|end)\{[^}]*\}|\\[a-zA-Z]+")
BETWEEN_NUMBERS = re.compile(r"(?<=[0-9])\s+(?=[0-9])")
PIECE_END = re.compile(r"\n+|(?<=[.?!:])\s+")


def squash(text: str) -> str:
    """The text in lower case without white space and dollar signs: what survives being typeset anew.

    Between two numbers a space stays, lest they become one.
    """
    folded = unicodedata.normalize("NFKC", text).lower().replace("$", "")
    return "".join(BETWEEN_NUMBERS.sub("\0", folded).split()).replace("\0", " ")


def letters(text: str) -> str:
    """Its letters and digits only, LaTeX commands dropped: what survives LaTeX being stripped."""
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

    Every text is filed under its first characters; looking up every place of the other text under
    that many characters leaves a handful of comparisons.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        """File the texts; empty ones occur nowhere."""
        self.texts = texts
        self.heads: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for number, text in enumerate(texts):
            if text:
                head = text[:WINDOW]
                self.heads[len(head)][head].append(number)

    def inside(self, other: str) -> set[int]:
        """The numbers of the texts that occur in `other`."""
        found = set()
        for length, filed in self.heads.items():
            for start in range(len(other) - length + 1):
                for number in filed.get(other[start : start + length], ()):
                    if self.stands_at(number, other, start):
                        found.add(number)
        return found

    def stands_at(self, number: int, other: str, start: int) -> bool:
        """Whether a text stands at that place of `other`, and not with half a number at one of its ends."""
        text = self.texts[number]
        if not other.startswith(text, start):
            return False
        return not within_number(other, start) and not within_number(other, start + len(text))


class Neighbours:
    """Finds which of many texts are nearest to some span of another text, by Levenshtein distance."""

    def __init__(self, texts: Sequence[str]) -> None:
        """File the texts by their grams; empty ones are near to nothing."""
        self.texts = texts
        self.grams = [grams(text) for text in texts]
        self.filed: dict[str, list[int]] = defaultdict(list)
        for number, members in enumerate(self.grams):
            for gram in members:
                self.filed[gram].append(number)

    def distances(self, pieces: Sequence[str]) -> dict[int, float]:
        """The distance, 0 to 1, of the CANDIDATES that share most grams with the pieces of a text."""
        whole, ends = "".join(pieces), piece_ends(pieces)
        shared: Counter[int] = Counter()
        for gram in grams(whole):
            shared.update(self.filed.get(gram, ()))
        nearest = sorted(shared, key=lambda number: (-shared[number] / len(self.grams[number]), number))
        return {number: span_distance(self.texts[number], whole, ends) for number in nearest[:CANDIDATES]}


def piece_ends(pieces: Iterable[str]) -> list[int]:
    """Where pieces meet once they are joined, from 0 to the length of the whole."""
    ends = [0]
    for piece in pieces:
        if piece:
            ends.append(ends[-1] + len(piece))
    return ends


def span_distance(wanted: str, whole: str, ends: Sequence[int]) -> float:
    """The least distance of `wanted` to a run of pieces of about its length, over the longer's length.

    A run of another length is further than ACCEPTED_DISTANCE whatever it says; 1 if there is no other.
    """
    least = 1.0
    for start in ends:
        low = bisect_left(ends, start + len(wanted) * (1 - ACCEPTED_DISTANCE))
        high = bisect_right(ends, start + len(wanted) / (1 - ACCEPTED_DISTANCE))
        for end in ends[low:high]:
            longer = max(len(wanted), end - start)
            cutoff = math.floor(least * longer)
            edits = Levenshtein.distance(wanted, whole[start:end], score_cutoff=cutoff)
            least = min(least, edits / longer)
    return least


def unless_short(text: str, length: float) -> str:
    """The text, or nothing if it is shorter than that."""
    return text if len(text) >= length else ""


class Matcher:
    """Finds the known question that a prompt asks, or says how near the closest one is."""

    def __init__(self, questions: Sequence[Question]) -> None:
        """Prepare the search; takes about a second for 5000 questions."""
        self.questions = questions
        squashed = [squash(question.text) for question in questions]
        lettered = [unless_short(letters(question.text), INEXACT_LENGTH) for question in questions]
        shares = [
            unless_short(text, LETTERS_SHARE * len(whole)) for text, whole in zip(lettered, squashed, strict=True)
        ]
        self.squashed = Substrings(squashed)
        self.lettered = Substrings(lettered)
        self.near_squashed = Neighbours([unless_short(text, INEXACT_LENGTH) for text in squashed])
        self.near_lettered = Neighbours(shares)

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
        exact = self.longest(self.squashed, squash(text))
        if exact is not None:
            return Match(exact, "exact", 0.0)
        alike = self.longest(self.lettered, letters(text))
        if alike is not None:
            return Match(alike, "letters", 0.0)
        return self.nearest(text[:INEXACT_READS])

    def longest(self, substrings: Substrings, text: str) -> Question | None:
        """The longest question inside the text; None also if two of that length have different answers."""
        found = substrings.inside(text)
        size = max((len(substrings.texts[number]) for number in found), default=0)
        best = [self.questions[number] for number in sorted(found) if len(substrings.texts[number]) == size]
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
        if distance > ACCEPTED_DISTANCE:
            return Miss(distance, best)
        for other_distance, number in ranked:
            if self.questions[number].answer != best.answer and other_distance < distance + MARGIN:
                return Miss(distance, best, self.questions[number])
        return Match(best, "levenshtein", distance)


# ---- success ---------------------------------------------------------------------------------------


def right_count(rate: float, total: int) -> int:
    """How many of `total` questions are answered rightly in a pass: rate times total, halves rounded up.

    Counted in decimal, as the rate was written: in binary 0.145 of 100 would be a little under 14.5.
    """
    return math.floor(Fraction(repr(rate)) * total + Fraction(1, 2))


def ranking(questions: Iterable[Question], seed: int) -> dict[Question, int]:
    """The questions of one dataset numbered from 0 in an order that depends on the seed and their ids only."""

    def draw(question: Question) -> bytes:
        return hashlib.sha256(f"{seed}\0{question.dataset}\0{question.id}".encode("utf-8", "backslashreplace")).digest()

    return {question: rank for rank, question in enumerate(sorted(questions, key=draw))}


def is_right(rank: int, number: int, right: int, total: int) -> bool:
    """Whether a question's number-th delivery is right.

    Each delivery shifts the ranks by the count of wrong ones, so every full pass over the dataset has
    exactly `right` right answers, and the wrong ones move on to other questions in the next pass.
    """
    return (rank + number * (total - right)) % total < right


class Deliveries:
    """Decides which answers are right: exactly at the rate per dataset and pass, in any order of requests."""

    def __init__(self, questions: Sequence[Question], rate: float, seed: int) -> None:
        """Rank each dataset's questions; nothing is drawn later."""
        by_dataset: dict[str, list[Question]] = defaultdict(list)
        for question in questions:
            by_dataset[question.dataset].append(question)
        self.totals = {name: len(members) for name, members in by_dataset.items()}
        self.rights = {name: right_count(rate, total) for name, total in self.totals.items()}
        self.ranks: dict[Question, int] = {}
        for members in by_dataset.values():
            self.ranks.update(ranking(members, seed))
        self.counts: Counter[Question] = Counter()
        self.lock = threading.Lock()

    def next(self, question: Question) -> Delivery:
        """The next answer to a question."""
        with self.lock:
            number = self.counts[question]
            self.counts[question] += 1
        total, right_ones = self.totals[question.dataset], self.rights[question.dataset]
        right = is_right(self.ranks[question], number, right_ones, total)
        return Delivery(number, right, question.answer if right else wrong_answer(question.answer))


# ---- chat requests ---------------------------------------------------------------------------------

LIMIT_FIELDS = ("max_tokens", "max_completion_tokens", "n_predict")
JSON_TYPES = {str: "string", bool: "boolean", list: "array", dict: "object", int: "number", float: "number"}


def invalid(message: str) -> RequestError:
    """The error for a request that is JSON but not acceptable."""
    return RequestError(400, "invalid_request_error", message)


def read_request(raw: bytes) -> ChatRequest:
    """A chat request from the body of a POST; raises RequestError as llama-server words it."""
    body = read_json(raw)
    if not isinstance(body, dict) or "messages" not in body:
        raise invalid("'messages' is required")
    if not isinstance(body["messages"], list):
        raise invalid("Expected 'messages' to be an array")
    texts = [message_text(message) for message in body["messages"]]
    options, response_format = body.get("stream_options"), body.get("response_format")
    return ChatRequest(
        user_texts=[text for role, text in reversed(texts) if role == "user"],
        prompt="\n".join(text for role, text in texts if role != "assistant"),
        stream=read_flag(body, "stream"),
        include_usage=read_flag(options, "include_usage") if isinstance(options, dict) else False,
        limit=read_limit(body),
        json_only=isinstance(response_format, dict) and response_format.get("type") in ("json_object", "json_schema"),
    )


def read_json(raw: bytes) -> Any:
    """The JSON value of a request body; one that is none is the server's fault to llama-server."""
    try:
        return json.loads(raw.decode("utf-8"), parse_constant=refuse_constant)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        problem = (
            f"syntax error while parsing value - {error.msg}"
            if raw
            else (
                "attempting to parse an empty input; check that your input string or stream contains the expected JSON"
            )
        )
    except UnicodeDecodeError as error:
        place = f"line 1, column {error.start + 1}"
        problem = "syntax error while parsing value - invalid string: ill-formed UTF-8 byte"
    except (ValueError, RecursionError) as error:
        place, problem = "line 1, column 1", f"syntax error while parsing value - {one_line(error)}"
    message = f"[json.exception.parse_error.101] parse error at {place}: {problem}"
    raise RequestError(500, "server_error", message)


def refuse_constant(name: str) -> NoReturn:
    """Python reads NaN and Infinity, which are not JSON."""
    raise ValueError(f"invalid literal; last read: '{name}'")


def message_text(message: Any) -> tuple[str, str]:
    """Role and text of a message, whose content is text, null, or a list of text parts."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
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


def wrong_type(field: str, wanted: str, value: object) -> RequestError:
    """The error for a field of another JSON type than `wanted`."""
    found = JSON_TYPES[type(value)]
    return invalid(f"Field '{field}': [json.exception.type_error.302] type must be {wanted}, but is {found}")


def read_flag(fields: Mapping[str, Any], name: str) -> bool:
    """A boolean field; missing and null mean false."""
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise wrong_type(name, "boolean", value)
    return bool(value)


def read_limit(body: Mapping[str, Any]) -> int | None:
    """The token limit: of its three names the last in the body wins, and -1 means none."""
    limit = None
    for name, value in body.items():
        if name not in LIMIT_FIELDS or value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong_type(name, "number", value)
        if not -1 <= value <= 2147483647:
            bounds = "-1 <= value <= 2147483647"
            raise invalid(f"Field '{name}': Value must be between {bounds}, but got {value}")
        limit = None if int(value) == -1 else int(value)
    return limit


# ---- chat replies ----------------------------------------------------------------------------------

MODEL = "simulator"
BUILD = "b9999-simulator"
TOKEN = re.compile(r"\s*(?:[0-9]+|[^\s0-9]{1,4})|\s+")


def tokens(text: str) -> list[str]:
    """The text cut into tokens: up to four characters, or a whole number, with the space before it."""
    return TOKEN.findall(text)


def reply_text(request: ChatRequest, answer: str) -> str:
    """What the model says. The only integer in it is the answer."""
    if request.json_only:
        return f'{{"answer": {answer}}}'
    if '"answer"' in request.prompt:
        return f'Here is the answer as JSON.\n{{"answer": {answer}}}'
    return f"The answer is \\boxed{{{answer}}}."


def make_reply(request: ChatRequest, answer: str, prompt_ms: float) -> Reply:
    """The reply within the request's limit, which even at 0 leaves one token. The end counts as a token."""
    pieces = tokens(reply_text(request, answer))
    prompt_tokens = max(1, len(tokens(request.prompt)))
    if request.limit is None or request.limit > len(pieces):
        return Reply(pieces, "stop", prompt_tokens, len(pieces) + 1, prompt_ms)
    pieces = pieces[: max(1, request.limit)]
    return Reply(pieces, "length", prompt_tokens, len(pieces), prompt_ms)


def milliseconds_since(start: float) -> float:
    """Time since a `perf_counter` value, in the server's resolution and never 0."""
    return max(0.001, round((time.perf_counter() - start) * 1000, 3))


def usage(reply: Reply) -> dict[str, Any]:
    """The token counts of a reply."""
    return {
        "completion_tokens": reply.completion_tokens,
        "prompt_tokens": reply.prompt_tokens,
        "total_tokens": reply.prompt_tokens + reply.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def timings(reply: Reply, predicted_ms: float) -> dict[str, Any]:
    """The speed of a reply. The first token comes with the prompt, so n tokens are n - 1 steps."""
    steps = reply.completion_tokens - 1
    return {
        "cache_n": 0,
        "prompt_n": reply.prompt_tokens,
        "prompt_ms": reply.prompt_ms,
        "prompt_per_token_ms": reply.prompt_ms / reply.prompt_tokens,
        "prompt_per_second": reply.prompt_tokens / reply.prompt_ms * 1000,
        "predicted_n": reply.completion_tokens,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": predicted_ms / steps if steps else 0.0,
        "predicted_per_second": steps / predicted_ms * 1000,
    }


def completion_id() -> str:
    """A fresh id like `chatcmpl-xfsr7RKKfu4ZsUZYbJvP3Ul6QwlcgWq1`."""
    return "chatcmpl-" + "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(32))


def completion(reply: Reply) -> dict[str, Any]:
    """The whole reply as one JSON object."""
    start = time.perf_counter()
    message = {"role": "assistant", "content": "".join(reply.pieces)}
    return {
        "choices": [{"finish_reason": reply.finish_reason, "index": 0, "message": message}],
        "created": int(time.time()),
        "model": MODEL,
        "system_fingerprint": BUILD,
        "object": "chat.completion",
        "usage": usage(reply),
        "id": completion_id(),
        "timings": timings(reply, milliseconds_since(start)),
    }


def chunks(reply: Reply, include_usage: bool) -> Iterator[dict[str, Any]]:
    """The reply as the JSON objects of a stream; the last one carries the timings."""
    start = time.perf_counter()
    frame = {
        "created": int(time.time()),
        "id": completion_id(),
        "model": MODEL,
        "system_fingerprint": BUILD,
        "object": "chat.completion.chunk",
    }

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        return {"choices": [{"finish_reason": finish_reason, "index": 0, "delta": delta}], **frame}

    yield chunk({"role": "assistant", "content": None})
    for piece in reply.pieces:
        yield chunk({"content": piece})
    last = chunk({}, reply.finish_reason)
    if include_usage:
        yield last
        last = {"choices": [], **frame, "usage": usage(reply)}
    yield {**last, "timings": timings(reply, milliseconds_since(start))}


def event_stream(reply: Reply, include_usage: bool) -> Iterator[str]:
    """The reply as server-sent events."""
    for chunk in chunks(reply, include_usage):
        yield f"data: {compact_json(chunk)}\n\n"
    yield "data: [DONE]\n\n"


def compact_json(value: object) -> str:
    """JSON as llama-server writes it: no spaces, keys in their given order, text unescaped."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


# ---- identity --------------------------------------------------------------------------------------

SLOTS = 4
SLOT_CONTEXT = 32768
MODEL_META = {
    "vocab_type": 2,
    "n_vocab": 151936,
    "n_ctx": SLOT_CONTEXT,
    "n_ctx_train": SLOT_CONTEXT,
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


def props() -> dict[str, Any]:
    """What `GET /props` says: the settings of the server."""
    return {
        "default_generation_settings": {"params": SAMPLING_DEFAULTS, "n_ctx": SLOT_CONTEXT},
        "total_slots": SLOTS,
        "model_alias": MODEL,
        "model_ftype": MODEL_META["ftype"],
        "model_path": "models/simulator.gguf",
        "modalities": {"vision": False, "video": False, "audio": False},
        "media_marker": "<__media__>",
        "endpoint_slots": False,
        "endpoint_props": False,
        "endpoint_metrics": False,
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


def models() -> dict[str, Any]:
    """What `GET /v1/models` says: one model, once in Ollama's words and once in OpenAI's."""
    details = {
        "parent_model": "",
        "format": "gguf",
        "family": "",
        "families": [""],
        "parameter_size": "",
        "quantization_level": "",
    }
    ollama = {
        "name": MODEL,
        "model": MODEL,
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
        "id": MODEL,
        "aliases": [MODEL],
        "tags": [],
        "object": "model",
        "created": int(time.time()),
        "owned_by": "llamacpp",
        "meta": MODEL_META,
    }
    return {"models": [ollama], "object": "list", "data": [openai]}


# ---- simulator -------------------------------------------------------------------------------------


class Simulator:
    """Finds the question in a request, decides how to answer it, and logs that decision."""

    def __init__(self, questions: Sequence[Question], rate: float, seed: int) -> None:
        """Take the known questions, the success rate from 0 to 1 and the seed of the decisions."""
        self.questions = questions
        self.matcher = Matcher(questions)
        self.deliveries = Deliveries(questions, rate, seed)

    def reply(self, request: ChatRequest) -> Reply:
        """The reply to a request; raises RequestError if it asks no known question."""
        start = time.perf_counter()
        match = self.matcher.find(request.user_texts)
        if isinstance(match, Miss):
            closest = shown(match.closest.name) if match.closest else "none"
            asked = quoted(request.user_texts[0] if request.user_texts else "")
            detail = f"; closest {closest}, asked {asked}"
            raise RequestError(400, "invalid_request_error", self.refusal(match), detail)
        delivery = self.deliveries.next(match.question)
        log(decision_line(match, delivery))
        return make_reply(request, delivery.answer, milliseconds_since(start))

    def refusal(self, miss: Miss) -> str:
        """Why there is no answer."""
        known = f"{len(self.questions)} known questions"
        if miss.closest is not None and miss.rival is not None:
            pair = f"{shown(miss.closest.name)} and {shown(miss.rival.name)}"
            return f"the prompt is too close to both {pair} of the {known} (distance {miss.distance:.2f})"
        distances = f"closest distance {miss.distance:.2f}, accepted up to {ACCEPTED_DISTANCE:.2f}"
        return f"the prompt matches none of the {known} ({distances})"


def decision_line(match: Match, delivery: Delivery) -> str:
    """The log line of an answer."""
    verdict = "right" if delivery.right else "wrong"
    found = f"{match.how}, distance {match.distance:.2f}, delivery {delivery.number}"
    return f"{shown(match.question.name)} {verdict}: answered {shown(delivery.answer)} ({found})"


# ---- HTTP ------------------------------------------------------------------------------------------


def json_response(value: object, status: int = 200) -> flask.Response:
    """A JSON reply with the content type llama-server gives it."""
    return flask.Response(compact_json(value), status, content_type="application/json; charset=utf-8")


def error_response(status: int, kind: str, message: str) -> flask.Response:
    """An error reply."""
    return json_response({"error": {"code": status, "message": message, "type": kind}}, status)


def chat_response(simulator: Simulator, raw: bytes) -> flask.Response:
    """The reply to the body of a chat request, whole or as a stream."""
    try:
        request = read_request(raw)
        reply = simulator.reply(request)
    except RequestError as error:
        log(f"refused {error.status}: {quoted(error, 200)}{error.detail}")
        return error_response(error.status, error.kind, str(error))
    if not request.stream:
        return json_response(completion(reply))
    events = event_stream(reply, request.include_usage)
    return flask.Response(events, content_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


def http_error_response(error: HTTPError) -> flask.Response:
    """llama-server knows no 405: a wrong method is a path that is not there."""
    if error.code in (404, 405):
        missing = {"message": "File Not Found", "type": "not_found_error", "code": 404}
        return json_response({"error": missing}, 404)
    return error_response(error.code or 500, "server_error", error.description or "internal error")


def build_app(simulator: Simulator) -> flask.Flask:
    """The web application: its routes and error replies."""
    app = flask.Flask(PROGRAM, static_folder=None)
    app.url_map.merge_slashes = False
    app.register_error_handler(HTTPError, http_error_response)

    @app.get("/health")
    def health_route() -> flask.Response:
        return json_response({"status": "ok"})

    @app.get("/props")
    def props_route() -> flask.Response:
        return json_response(props())

    @app.get("/models")
    @app.get("/v1/models")
    def models_route() -> flask.Response:
        return json_response(models())

    @app.post("/chat/completions")
    @app.post("/v1/chat/completions")
    def chat_route() -> flask.Response:
        return chat_response(simulator, flask.request.get_data())

    return app


class QuietHandler(WSGIRequestHandler):
    """Serves HTTP/1.1 without an access log: the decision lines are the log."""

    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:
        """Say nothing."""

    def version_string(self) -> str:
        """The name in the Server header."""
        return "llama.cpp"


def listen(host: str, port: int, app: flask.Flask) -> BaseWSGIServer:
    """A server bound to the address, a free port for port 0; raises AddressError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        bound = socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            other = port + 1 if port < 65535 else port - 1
            advice = f"try --port {other}, or --port 0 for any free one"
            raise AddressError(f"port {port} of {host} is in use; {advice}") from error
        reason = str(getattr(error, "strerror", None) or error).partition(" (while")[0]
        raise AddressError(f"cannot listen on {quoted(host)} port {port}: {reason}") from error
    with bound:  # the server works on a duplicate of this socket
        return make_server(host, port, app, threaded=True, request_handler=QuietHandler, fd=bound.fileno())


# ---- command line ----------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """A parser whose error is an exception, so that every bad input ends in one line and in one place."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError with the message."""
        raise UsageError(message)


def success_rate(text: str) -> float:
    """A share from 0 to 1."""
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not {quoted(text)}")


def port_number(text: str) -> int:
    """A TCP port, or 0."""
    if re.fullmatch(r"[0-9]{1,5}", text, re.ASCII) and int(text) <= 65535:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be a number from 0 to 65535, not {quoted(text)}")


def build_parser() -> Parser:
    """The command line's options and their defaults."""
    parser = Parser(
        prog=PROGRAM,
        allow_abbrev=False,
        description="Pretends to be llama.cpp's llama-server, for testing evaluators without a model.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--host", default="localhost", help="address to listen on")
    parser.add_argument("--port", type=port_number, default=8033, help="port to listen on; 0 picks a free one")
    parser.add_argument(
        "--success-rate",
        type=success_rate,
        metavar="RATE",
        default=0.8,
        help="share of right answers, 0 to 1: of a dataset's N questions exactly RATE*N, halves rounded "
        "up, are answered rightly in each pass over it",
    )
    parser.add_argument(
        "--dataset",
        metavar="NAMES",
        default="aime,aime2025",
        help=f"comma-separated list of datasets: {KNOWN_DATASETS}",
    )
    parser.add_argument(
        "--dataset-split",
        metavar="SPLIT",
        default="train",
        help="split of the datasets given by their Hugging Face name; the others have only one, "
        "which is read whatever this says",
    )
    parser.add_argument("--seed", type=int, default=0, help="decides which questions are answered wrongly")
    return parser


def banner(url: str, rate: float, questions: Sequence[Question]) -> str:
    """What is printed once requests can come."""
    counts = Counter(question.dataset for question in questions)
    parts = ", ".join(f"{shown(name)} {count}" for name, count in counts.items())
    return (
        f"=== {PROGRAM} ===\nServer running on {url}\nSuccess rate: {rate}\n"
        f"Questions loaded: {len(questions)} ({parts})"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))  # at once: unwinding makes the threads at work complain
    try:
        options = build_parser().parse_args(argv)
        questions = load_datasets(parse_datasets(options.dataset), options.dataset_split)
        simulator = Simulator(questions, options.success_rate, options.seed)
        server = listen(options.host, options.port, build_app(simulator))
    except SimulatorError as error:
        log(f"{PROGRAM}: error: {one_line(error)}")
        return error.exit_code
    host = f"[{options.host}]" if ":" in options.host else options.host
    print(banner(f"http://{host}:{server.port}", options.success_rate, questions), flush=True)
    server.serve_forever(poll_interval=0.1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
