#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "requests>=2.32",
#     "urllib3>=2.2",               # its own engine: reads a stream as it comes
#     "flask>=3.0",                 # with python-Levenshtein, for the simulator behind --simulate
#     "datasets>=3.0",
#     "python-Levenshtein>=0.25",
#     "tqdm>=4.66",
#     "jinja2>=3.1",                # with latex2mathml, for the page that --report has written
#     "latex2mathml>=3.77",
# ]
# ///
"""Measure how well a model behind llama-server, or any OpenAI-style server, answers AIME 2025.

    python llama-eval.py --endpoint http://localhost:8033 --threads 4
    python llama-eval.py --simulate --dataset practice        # no server, no network: see it work

Every finished task is printed as it completes and added to a journal; the whole run is kept in one JSON file
(--output), written atomically as the run goes on. From both --resume continues. Exit status: 0 every task graded,
1 could not run, 2 bad usage, 3 finished but some tasks have no verdict; 4 and 5 with --until: surely broken, undecided;
129, 130 and 143 stopped by SIGHUP, Ctrl-C and SIGTERM.

Sections: vocabulary, texts and errors, answers, datasets, client, graders, statistics, state, pool, console,
siblings, runs, command line.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import fcntl
import functools
import hashlib
import heapq
import http.client
import io
import itertools
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
import socket
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from operator import attrgetter
from pathlib import Path
from statistics import NormalDist
from types import FrameType
from typing import IO, Any, ClassVar, NamedTuple, NoReturn, TextIO, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import quote, urlsplit

try:
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.exceptions import HTTPError
except ImportError as error:  # --help does without
    MISSING: str | None = str(error)
else:
    MISSING = None

VERSION = "0.1.0"
SCHEMA_VERSION = 3  # 1 had the texts of a problem in all of its tasks, 2 had them in `problems`
HERE = Path(__file__).resolve().parent

# ---- vocabulary -----------------------------------------------------------------------------------------

LOOP = "loop"  # the finish reason of a response that was stopped because it only repeated itself
CUT_OFF = ("length", LOOP)  # the finish reasons of responses that are not complete

# The statuses of a task. The scored ones are the denominator of the accuracy; the others await a resume: not finished,
# a response without a verdict because the grader failed, no response after all retries.
SCORED = ("correct", "incorrect", "no_answer", "truncated")
STATUSES = ("pending", *SCORED, "ungraded", "error")


@dataclass(frozen=True)
class Problem:
    """One question of a dataset; `expected` is an integer in canonical form, such as "16" or "-4", or a letter.

    A letter is the right option of a multiple choice. Where the options were shuffled, `order` tells how: the
    first one shown is number order[0] of the dataset's own, counted from 0.
    """

    id: str
    question: str
    expected: str
    order: list[int] | None = None


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
    order: list[int] | None = None


@dataclass(frozen=True)
class Prompt:
    """The prompt of a run: `template` holds {question}, `system` is a message before it, if any.

    `schema` is the JSON schema that the server is asked to hold the response to, if any.
    """

    answer_format: str
    template: str
    system: str | None = None
    schema: dict[str, Any] | None = None


@dataclass(frozen=True)
class Sampling:
    """The sampling parameters of a run. None is not sent, so that the server's own default applies."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    extra_body: dict[str, Any] = field(default_factory=dict)


DEFAULT_THREADS = 4
STALL_SECONDS = 600.0  # a prompt takes its time on a CPU
WHOLE_REPLY_SECONDS = 3600.0  # all of which is silence without streaming


@dataclass(frozen=True)
class Options:
    """The command line: a field for each option, with its default.

    Times are in seconds. Of `threads`, None is as many as the server has slots; `prompt_file` is the text in that file,
    `report` an empty path for a name of its own.
    """

    endpoint: tuple[str, ...] = ()
    threads: tuple[int | None, ...] = (DEFAULT_THREADS,)
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    simulate: float | None = None
    dataset: str = "aime2025"
    limit: int | None = None
    shard: tuple[int, int] = (1, 1)
    samples: int = 1
    until: str | None = None
    shuffle: bool = True
    system_prompt: str | None = None
    prompt_file: str | None = None
    answer_format: str = "json"
    grader: str = "regex"
    judge_endpoint: str | None = None
    judge_model: str | None = None
    judge_api_key: str | None = field(default=None, repr=False)
    grader_cmd: str | None = None
    grader_threads: int = 4
    grader_timeout: float = 300.0
    grader_retries: int = 3
    regrade: Path | None = None
    sampling: Sampling = field(default_factory=Sampling)
    output: Path | None = None
    merge: tuple[Path, ...] = ()
    report: Path | None = None
    resume: bool = False
    overwrite: bool = False
    dump_interval: float = 10.0
    stall_timeout: float | None = None
    request_timeout: float = math.inf
    max_retries: int = 6
    give_up_after: float = 600.0
    stream: bool = True
    loop_stop: bool = True
    verbose: bool = False
    quiet: bool = False

    @property
    def silence(self) -> float:
        """For how long a request may be silent: between two tokens, or without streaming until the whole reply."""
        return self.stall_timeout or (STALL_SECONDS if self.stream else WHOLE_REPLY_SECONDS)


@dataclass(frozen=True)
class Response:
    """The answer of a server to one task. None stands for anything that it did not tell, or did not stream.

    `seconds` are those of the request, of which it waited `queue_seconds` before the server began with it.
    `tokens_counted` says that the completion tokens are the pieces of the stream, which the server gave no number of.
    `finish_reason` is the server's, or "loop" where the response was stopped because it only repeated itself.
    """

    content: str
    reasoning: str
    finish_reason: str | None
    model: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    tokens_per_second: float | None
    seconds: float
    tokens_counted: bool = False
    first_token_seconds: float | None = None
    queue_seconds: float | None = None


@dataclass(frozen=True)
class Grade:
    """A verdict, one of SCORED or "ungraded" where the grader itself failed, and how it came about.

    `answer` is the model's answer as it was understood, `method` how it was found, `confident` whether that leaves
    no doubt; `explanation` and `review`, which says why a person should look at it, are for people. `prompt` is
    what a judge was asked, `reply` what a judge or a command gave back; `rule` is the grade by the rules of text,
    where another grader had the last word.
    """

    verdict: str
    answer: str | None
    method: str
    grader: str
    confident: bool = True
    explanation: str = ""
    review: str | None = None
    prompt: str | None = None
    reply: str | None = None
    rule: Grade | None = None


@dataclass(frozen=True)
class TaskState:
    """The state of a task; times are ISO 8601 in UTC, `attempts` counts requests, `error` is for people.

    `partial` is what had arrived of a response that then failed, the longest if several did. A task that has a response
    does not count the attempts that failed because a whole endpoint did.
    """

    status: str = "pending"
    grade: Grade | None = None
    response: Response | None = None
    endpoint: str | None = None
    attempts: int = 0
    error: str | None = None
    started: str | None = None
    finished: str | None = None
    partial: Response | None = None


@dataclass(frozen=True)
class Endpoint:
    """One server: base URL without /v1, its number of threads, and its description of itself, if any.

    `rejects_schema` is set once it has refused a response_format, which it is then not sent any more.
    """

    url: str
    threads: int
    models: list[dict[str, Any]] = field(default_factory=list)
    props: dict[str, Any] | None = None
    rejects_schema: bool = False


@dataclass
class EvalState:
    """One run: the model, the settings, every task, and its state."""

    id: str
    dataset: dict[str, str]
    prompt: Prompt
    sampling: Sampling
    grader: dict[str, Any]
    model: str | None
    tasks: list[Task]
    task_states: dict[str, TaskState]
    loop_stop: bool = True  # whether a response that only repeats itself is stopped
    until: dict[str, Any] | None = None  # the rule of a gate, its looks at the run so far, and its decision
    endpoints: list[Endpoint] = field(default_factory=list)
    created: str = ""
    updated: str = ""
    tool: dict[str, str] = field(default_factory=lambda: {"name": "llama-eval", "version": VERSION})

    def open_tasks(self) -> list[Task]:
        """The tasks still without a verdict, in the order in which they are to be run."""
        return [t for t in self.tasks if self.task_states[t.id].status not in SCORED]


# ---- texts and errors -----------------------------------------------------------------------------------


def one_line(text: object, width: int = 160) -> str:
    """`text` fit for a line of a terminal: no control characters, white space folded, at most `width` long."""
    printable = "".join(c if c.isprintable() else " " for c in str(text)[: 4 * width])
    folded = " ".join(printable.split())
    return folded if len(folded) <= width else folded[: width - 3] + "..."


def printable(text: str) -> str:
    """`text` for a terminal, in lines: what comes from a file or a server may hold sequences that control one."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


Json = TypeVar("Json", str, "dict[str, Any]", "list[Any]")
Reply = TypeVar("Reply")


def typed(value: object, kind: type[Json]) -> Json:
    """`value` where it is of the `kind` it should be, else an empty one: a null content is "", say."""
    return value if isinstance(value, kind) else kind()


SECRET_LENGTH = 8  # a shorter key is a placeholder such as "none"; blanking it out would damage answers


def redact(value: Any, *secrets: str | None) -> Any:
    """`value`, text or parsed JSON, with "[api key]" in the place of each of the `secrets`."""
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, "[api key]") if secret and len(secret) >= SECRET_LENGTH else value
        return value
    if isinstance(value, dict):
        return {redact(name, *secrets): redact(entry, *secrets) for name, entry in value.items()}
    return [redact(entry, *secrets) for entry in value] if isinstance(value, list) else value


def encodable(text: str) -> str:
    """`text` with a question mark for each lone surrogate, which JSON can smuggle in but UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def fill(template: str, **values: str) -> str:
    """`template` with each {name} replaced; other braces, of which LaTeX and JSON are full, stay as they are."""
    return re.sub(r"\{(" + "|".join(values) + r")\}", lambda name: values[name[1]], template)


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


class UnreachableError(EndpointError):
    """No server answers at an endpoint."""


class LoadingError(UnreachableError):
    """A server is there, but not ready yet."""


class NoEndpointError(EndpointError):
    """No endpoint has been in service for too long."""

    exit_code = 3


class GraderError(EvalError):
    """A grader cannot be used for this run."""


class RequestError(Exception):
    """One request got no usable reply; `classify` says what to do about it.

    `status` is that of the reply, if there was one, `retry_after` are the seconds that the server asks to wait,
    `partial` is the part of the response that had arrived.
    """

    def __init__(self, message: str = "", status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = 0.0
        self.partial: Response | None = None


class StaleError(RequestError):
    """The server had closed the connection that a request was sent on."""


class ContextOverflowError(RequestError):
    """The prompt does not fit the context of the server."""


class ReplyError(RequestError):
    """A reply came, but it is no chat completion, or not a whole one."""


class CrowdedError(RequestError):
    """The requests that a server works on at the same time do not fit the context that they share."""


class DeadlineError(RequestError):
    """A request took longer than it may in all, though the server may have been at work on it."""


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP arrived; not an Exception, so that no handler on the way takes it for a failure."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


# ---- answers --------------------------------------------------------------------------------------------
#
# Pure text rules. A response is read once, as a list of statements: objects, boxes, announcements and the last line,
# each with its place and its value, if it has one of the kind asked for. One rule chooses among them: the last of the
# surest that has. Every pattern runs in linear time, because a response can be a megabyte of anything.

LETTERS = "ABCDEFGHIJ"  # of the options of a multiple choice
MAX_ANSWER = 2000  # characters; a longer "answer" is an essay, not a number

UNICODE_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")  # of JSON
INVISIBLE = re.compile(r"[\u200b-\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
FOREIGN_DIGIT = re.compile(r"[^\D0-9]")
WIDE: dict[int, int | str] = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # the full-width forms of ASCII
WIDE |= {ord("−"): "-", ord("﹣"): "-", ord("।"): "."}
SIGN = re.compile(r"(?<![\w)\]}])[\u2010-\u2013](?=\}?[0-9])")  # the dashes that stand for a minus
DIGIT_GAP = re.compile(
    r"(?<=[0-9])(?:['’_٬\u2005\u2007\u2009]|(?:\{,\}|,?(?:\\[,:;! ]|[~\u00a0\u202f])+))(?=[0-9]{3}(?![0-9]))"
)
# What LaTeX and Markdown dress a text with, and what has no bearing on the value of a number.
LAYOUT = re.compile(
    r"\\(?:(?:text|f)?color(?:box)?|[hv]space|[hv]?phantom)\*?\s*\{[^{}]*\}|\\(?:rule|fontsize)(?:\s*\{[^{}]*\}){2}"
    r"|\\(?:begin|end)\s*\{[^{}]*\}(?:\{[^{}]*\})?"
    r"|\\(?:math|text)(?:rm|bf|it|sf|tt|up|normal|md|sc)?\*?(?![a-zA-Z])"
    r"|\\(?:bf|rm|it|bfseries|tiny|scriptsize|footnotesize|small|normalsize|large|Large|LARGE|huge|Huge|operatorname"
    r"|boldsymbol|bm|boxed|fbox|framebox|mbox|hbox|emph|underline|mathop|limits|ensuremath|centering|noindent|strut"
    r"|mathstrut|selectfont)\*?(?![a-zA-Z])"
    r"|(?<![\w)])[*_]+(?=\S)|(?<=\S)[*_]+(?![\w({\\])"
)
DRESS = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|scriptstyle|quad|qquad|hfill|degree|circ|checkmark|textdollar"
    r"|pounds|euro|[bB]igg?[lr]?|begingroup|endgroup)(?![a-zA-Z])|\\[,;:!()\[\] ]|\^(?=\s*(?:st|nd|rd|th)\b)"
    r"|(?:\^\s*(?:\\circ|°|∘)|°)(?:\s*[CF](?![a-zA-Z]))?|\\?[%$&]"
    r"""|[~`€£¥₹₽₩"“”✓✅]"""
)
PAIRS = ("()", "[]", "<>", "「」", "【】", "《》", "«»")  # brackets that can stand around an answer
MODULUS = re.compile(r"(?:\\p?mod\s*\{?\s*[0-9]+\s*\}?|\\bmod\s*[0-9]+|\(\s*mod\s*[0-9]+\s*\))\s*$")
ASIDE = re.compile(r"\((?![^()]*\b(?:or|and)\b)[^()\d]*\)\s*$")  # such as "(minutes)"
NUMBER_WORD = (
    r"(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w{3,5}teen|twenty|thirty|forty|fifty|sixty"
    r"|seventy|eighty|ninety|hundred|thousand|million)"
)
IN_WORDS = re.compile(rf"^\s*{NUMBER_WORD}(?:[-\s]+(?:and\s+)?{NUMBER_WORD})*\s*(?=\()", re.IGNORECASE)
LEAD_IN = re.compile(
    r"^\s*(?:\(?[A-E]\)[\s.:]*(?=[-0-9(]))?(?:(?:approximately|about|roughly|exactly|the\s+(?:integer|number))\s)?",
    re.IGNORECASE,
)
THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
# What says that the text on its right is the text on its left: signs, arrows, words, and the colon after a word.
EQUALITY = re.compile(
    r"(?<![!<>])=|\\(?:approx|equiv|[a-zA-Z]*(?:arrow|to)|implies|iff|therefore)(?![a-zA-Z])|[≈≡→➜⇒⟹∴]"
    r"|\b(?:is|are|equals?)\b|(?<=[^\W\d_)])\s*:(?=\s|$)"
)
UNEQUAL = re.compile(r"\\(?:not|neq?)(?![a-zA-Z])|=/=|[≠≢]")
# Left of an equation: that it holds under a condition only, or that more than one thing is said.
CONDITION = re.compile(r"\b(?:if|when|where|for|because|since|as)\b")
SEVERAL = re.compile(r"[,;<>]|[.!?]\s|\b(?:and|or)\b|" + CONDITION.pattern)
# The same between two equality signs: a variable after a value, as in "m = 25, n = 8", and not in "m = 2 + n = 8".
NEXT_EQUATION = re.compile(r"[^-+*/^(·×=_\s](?:\s+|\s*\\)[a-zA-Z]\s*$")
BRACKETED = re.compile(r"\([^()]*\)")
INTEGER = re.compile(
    r"(?P<integer>[-+]?\s*(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}"
    r"|[0-9]{1,3}(?: [0-9]{3})+))(?:\.0*|\s*(?:st|nd|rd|th)\b)?"
    r"(?:\s*(?P<unit>(?:[a-zA-Z]{3,}|(?:cm|mm|km|ft|in|yd|mi|kg|mg|lb|oz|ml|sq|hr)(?![a-zA-Z])|(?<=\s)[mgsL](?![a-zA-Z])"
    r"|(?![a-zA-Z])[^\W\d_]+)[²³]?(?:[\s/.-]+[^\W\d_]+)*(?:\s*\^\s*[23])?))?"
)
# A word after a number that makes it another number, or one of several.
NOT_A_UNIT = re.compile(
    r"\b(?:to|if|when|unless|but|not|pi|sqrt|root|mod|modulo|times|plus|minus|over|by|point|divided|multiplied"
    r"|squared|cubed|raised|more|less|fewer|log|ln|sin|cos|tan|exp|half|halves|thirds?|quarters?|fifths?|sixths?"
    r"|sevenths?|eighths?|ninths?|(?:ten|hundred|thousand|million)?ths?|dozens?|hundred|thousand|million|billion|trillion"
    r"|lakhs?|crores?|mil|mille|tausend|millionen|тысяч\w?|миллион\w*|factorial|choose)\b"
    rf"|^(?:or|and|o|ou|oder|und|et|y|или|и)\b|\b(?:or|and)\s+(?:{NUMBER_WORD}|\w)\b"
    r"|(?<![a-zA-Z])[¹²³]|(?<![\u0370-\u03ff])[\u0370-\u03ff]{1,2}(?![\u0370-\u03ff])"
    r"|[¼-¾\u2070-\u209f\u2150-\u218f百千万亿億만억的吗或和]|または",
    re.IGNORECASE,
)
HEDGE = re.compile(
    r"\b(?:or|either|oder|ou|или|atau|lub|veya|hoặc|أو|या)\b|\\(?:lor|vee)(?![a-zA-Z])|或|または|또는", re.IGNORECASE
)
NUMBER = re.compile(r"(?<![a-zA-Z0-9_.])-?[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?")

OPTION_WORD = re.compile(
    r"^\s*(?:X\s*[=:]|(?:the|it|final|correct|right|best|my|answer|option|choice|letter|is|would|must|has to|be"
    r"|therefore|thus|hence|so|that|la|(?:we|I)\s+(?:choose|select|pick)|选项?)\b[\s:,]*|[→➜⇒∴]\s*|选项?)*",
    re.IGNORECASE,
)
# A letter alone, or before the text of its option, the reason for it, or a script that sets no spaces.
OPTION = re.compile(
    r"[(\[]?\s*(?P<letter>[A-J])\s*(?:[)\].:]*|(?:[)\]][).:,]?|[.:])(?:\s|(?<=:)(?=[^\x00-\x7f]))(?P<text>.*)"
    r"|[)\]]?(?P<script>(?:です|だ|입니다|이다|है)(?=[。,、]|$).*|[。、].*|,(?=[^\x00-\x7f]).*)"
    r"|[)\]]?(?:\s[-–—]\s|;\s|,\s(?!.*(?<!\w)[A-J](?!\w))|\s+\()(?P<aside>.*)"
    r"|[)\]]?,?\s(?:i\.e\.|(?:because|since|as(?!\s+well)|which|due|for|given|not|rather|instead)\b).*)",
    re.DOTALL,
)
LONE_LETTER = re.compile(r"(?<![a-zA-Z0-9_\\-])[(\[]?([A-J])(?![a-zA-Z0-9_]|['’-]\w)")
CHOSEN = re.compile(
    r"\W*(?:(?:therefore|thus|hence|so|clearly|we conclude|correction)(?:\s+that)?[,:]?\s+)?(?:the\s+)?(?:correct\s+)?"
    r"(?:(?:option|choice|answer)\s+)?[(*]*(?P<letter>[A-J])[)*]*\s+is\s+(?:the\s+)?(?:correct|right|best)"
    r"(?:\s+(?:answer|option|choice|one))?[.!*\s]*",
    re.IGNORECASE,
)
# Words after a letter that take it back: another letter, its label, or a denial.
ANOTHER_OPTION = re.compile(
    r"\s*(?:(?:[,/&。、]|(?:or|and|oder|und|et|ou|y|o|и|или)\b|和|或)\s*)+[(\[]?[A-HJ](?:[)\].:,]|\s*$)"
    r"|\s*(?:[(\[]?[A-HJ][)\]](?!\w)|[A-HJ]\s*$)|(?!not\b).*[\s(;,][A-HJ][):]\s"
    r"|\s*(?:is\s+)?(?:not|no|wrong|false|incorrect)\b(?!\s+[(\[]?[A-J]\b)",
    re.DOTALL | re.IGNORECASE,
)


def ascii_text(text: str) -> str:
    """`text` with the digits, signs and full-width forms of every script in ASCII, and no invisible characters."""
    text = UNICODE_ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), text)
    if text.isascii():
        return text
    text = FOREIGN_DIGIT.sub(lambda digit: str(int(digit[0])), INVISIBLE.sub("", text))
    return SIGN.sub("-", text.translate(WIDE))


def plain(text: str, gap: str = " ") -> str:
    """`text` without what LaTeX and Markdown dress its parts with: fonts, sizes, colours, dollars, spacing, braces.

    A `gap` is where a font or a brace was.
    """
    text = LAYOUT.sub(gap, DIGIT_GAP.sub("", text.replace("\\\\", "\\").replace("{,}", ",")))
    return DRESS.sub(" ", text.replace("}{", " / ").replace("{", gap).replace("}", gap))


def unwrapped(text: str) -> str:
    """`text` without the brackets that stand around all of it, up to three deep."""
    text = text.strip()
    for pair in PAIRS * 3:
        inside = text[1:-1]
        if len(text) > 1 and text[0] + text[-1] == pair and inside.find(pair[0]) <= inside.find(pair[1]):
            text = inside.strip()
    return text


def parse_integer(text: str) -> str | None:
    """The integer that all of `text` stands for, in canonical form ("16" for "016"), or None.

    Peels what LaTeX and prose put around a number: fonts, colours, $, degree signs, spacing, thousands
    separators, ".0", trailing units, the left side of an equation. The rest must be one integer.
    """
    if len(text) > MAX_ANSWER or text.count("{") != text.count("}") or UNEQUAL.search(text):
        return None
    text = IN_WORDS.sub("", plain(ascii_text(text)).rstrip(" .,。"))
    text = re.sub(r"(?<=\s)!+\s*$", "", ASIDE.sub(" ", MODULUS.sub(" ", text)))
    *left, text = EQUALITY.split(text)
    valued = [part for part in left if len(left) > 1 or CONDITION.search(part) or re.search(r"\d", part)]
    several = any(SEVERAL.search(BRACKETED.sub("", THOUSANDS.sub("", part))) for part in valued)
    if several or any(NEXT_EQUATION.search(part) for part in left[1:]):
        return None
    match = INTEGER.fullmatch(unwrapped(LEAD_IN.sub("", text, count=1).strip().rstrip(" .")))
    if not match or (match["unit"] and NOT_A_UNIT.search(match["unit"])):
        return None
    return canonical(match["integer"])


def canonical(integer: str) -> str:
    """An integer without separators of thousands, plus sign and leading zeros."""
    digits = integer.replace(",", "").replace(" ", "").lstrip("+")
    magnitude = digits.lstrip("-").lstrip("0") or "0"
    return f"-{magnitude}" if digits.startswith("-") and magnitude != "0" else magnitude


def parse_letter(text: str) -> str | None:
    """The letter of the option that all of `text` names, such as "B" for "(b)" or "Option B: the proton", or None."""
    if len(text) > MAX_ANSWER or text.count("{") != text.count("}"):
        return None
    text, before = plain(ascii_text(text), gap=""), ""
    while text != before:
        before, text = text, unwrapped(OPTION_WORD.sub("", text, count=1).strip(" ."))
    text = text.upper() if len(text.strip("()[]. ")) == 1 else text
    option = OPTION.fullmatch(text)
    if not option or ANOTHER_OPTION.match(option["text"] or option["script"] or option["aside"] or ""):
        return None
    return option["letter"]


# A model's tag, in the brackets that are in use, which says by its name what it parts; one in backticks is only
# mentioned. A channel's name stands behind it. What is left of the tags of harmony without their brackets counts, too.
TAG = re.compile(
    r"<\|channel\|?>\s*(?P<channel>[a-z]+)[^<\n]{0,40}(?:<\|constrain\|>[^<]{0,40})?(?:<\|message\|>)?"
    r"|<(?<!`<)(?:\|(?P<piped>/?[a-zA-Z][\w:-]{0,40})\|?|(?P<angle>/?[a-zA-Z][\w:-]{0,40}\|?))>"
    r"|◁(?<!`◁)(?P<triangle>/?\w{1,40})▷"
    r"|\[(?<!`\[)(?P<square>/?(?:THINK|THOUGHT|BEGIN|START|END)[A-Z_ ]{0,40})\]"
    r"|(?:\A\s*|assistant)(?P<bare>analysis|commentary)(?=[^\W_a-z]|[^\w\s:,.;'-])|(?P<final>assistantfinal)"
)
THOUGHT = re.compile(
    r"think|thought|reason|analysis|commentary|inner|monolog|scratch|reflect|ponder|deliberat|cot(?![a-z])",
    re.IGNORECASE,
)
RESPONSE = re.compile(r"response|^final$|^assistantfinal$", re.IGNORECASE)
CLOSING = re.compile(r"^/|(?:^|[_\s-])(?:end|suffix|stop|close)(?:$|[_\s-])|\|$", re.IGNORECASE)
MESSAGE_ENDS = ("end", "start", "return", "channel")
STEPS = re.compile(r"\s*Here are my reasoning steps:")  # Apriel's; what ends them is a tag
# An element at the beginning whose name nobody here knows: reasoning, if it has an end and more follows.
LEADING_ELEMENT = re.compile(
    r"\s*(?P<bracket>[<\[])(?!(?:answer|response|final|solution|result|output)\b)(?P<name>[\w:-]{3,40})[>\]]"
)


def final_part(content: str, whole: bool = True) -> str | None:
    """The text after the model's reasoning, or None when the reasoning was never closed."""
    begin, end, thinking = 0, len(content), not whole and STEPS.match(content) is not None
    element = LEADING_ELEMENT.match(content)
    if element:
        close = f"{element['bracket']}/{content[element.start('name') : element.end()]}"
        at = content.find(close) + len(close)
        begin = at if at >= len(close) and re.search(r"\w", content[at : at + MAX_ANSWER]) else 0
    final = False
    for tag in TAG.finditer(content, begin):
        name = next(filter(None, tag.groups()))
        closes, thought, over = CLOSING.search(name), THOUGHT.search(name), name.strip("|") in MESSAGE_ENDS
        if RESPONSE.search(name) and not closes:
            begin, end, thinking, final = tag.end(), len(content), False, True
        elif RESPONSE.search(name) or (final and (thought or over)):
            end = min(end, tag.start())
        elif (thought and closes) or (thinking and over):
            begin, thinking = tag.end(), False
        elif thought:
            thinking = True
    return None if thinking else content[begin:end]


# A box or an object that opens, the key of an answer, or a brace.
TOKEN = re.compile(
    r"(?P<box>(?<![a-zA-Z])(?:boxed|fbox|framebox)\s*(?:\[[^\]\n]{0,40}\]\s*){0,2})\{|(?<=\\)(?:boxed|fbox|framebox)\s*"
    r"(?P<bare>-?[0-9]+(?:,[0-9]{3})*)(?=[.,;]?\s*(?:\$|\\[)\]]|\n|$)|[.,;]\s+[a-zA-Z])"
    r"""|(?P<key>(?P<escaped>\\)?["'](?i:answer)\\?["']\s*:\s*)|\\[{}]|(?P<open>\{)|(?P<close>\})"""
)
# The value of a key, alone or as the only one of a list or an object; a number, word or equation needs no quotes.
VALUE = re.compile(
    r"""(?P<within>(?:[\[{\s]|/\*[^*]{0,200}\*/|//[^\n]{0,200}\n)*(?:["'][^"'{}\[\]:]{0,40}["']\s*:\s*)?)"""
    r"""(?:"(?P<string>(?:[^"\\]|\\.){0,2000})"|'(?P<single>[^'\n]{0,2000})'|(?P<word>(?:[^,}\]\n"'/#]|,(?=[0-9]{3}(?![0-9]))|/(?![/*])){1,2000}?))\s*"""
    r"""(?P<end>,(?=\s*(?:["'}\]/#]|[a-zA-Z_]+\s*:|\Z))|\\?[}\]]|\n|//|/\*|#|\Z)""",
    re.DOTALL,
)
ESCAPE = re.compile(r'\\(["\\/n])')
# The content of a box or an object when a model repeats its instructions.
PLACEHOLDER = re.compile(
    r"\s*(?:\\text\s*\{)?[\s<\[]*(?:(?:your|the|final|integer|numerical)\s+)*"
    r"(?:answer|number|integer|string|result|value|null|N|X|\?+|_+|\.{2,}|…|\\l?c?dots)?(?:\s+here)?[\s>\]]*\}?\s*",
    re.IGNORECASE,
)
MAX_HEDGE_WORDS = 3  # such as "or possibly"


def is_placeholder(text: str) -> bool:
    """Whether an answer is the placeholder of the instructions, or nothing."""
    return len(text) <= MAX_ANSWER and PLACEHOLDER.fullmatch(" ".join(text.split())) is not None


def value_at(text: str, start: int, end: int) -> str:
    """The value of the key of a JSON object that ends at `start`, as text, "…" for none.

    Where it is no string, number or equation, alone or as the only one of a list or an object, all that there is up to
    the `end` of the object.
    """
    value = VALUE.match(text, start)
    several = value and re.search(r"[\[{]", value["within"]) and value["end"] == ","
    given = next(value[name] for name in ("string", "single", "word") if value[name] is not None) if value else ""
    if not value or several or given.count("{") != given.count("}"):
        return text[start:end].strip()
    if value["word"] and re.fullmatch(r"\s*(?!null\b)\w{2,}\s*", given) and not re.search(r"\d", given):
        return "…"  # true, say, or the name of a variable
    return ESCAPE.sub(lambda escape: "\n" if escape[1] == "n" else escape[1], given).strip()


def closed(text: str, whole: bool) -> Iterator[tuple[int, int, str, str]]:
    """The boxes and the JSON objects with an answer, as they close: begin, end, method and content of each.

    One that is never closed is no answer, and neither is a part of it, nor are bare digits at the end of a text that
    is not `whole`.
    """
    stack: list[list[Any]] = []  # of the braces that are open: what begins there, its place, that of its key's value
    for token in TOKEN.finditer(text):
        if token["bare"] and (whole or text[token.end() : token.end() + MAX_ANSWER].strip(".,; ")):
            yield token.start(), token.end(), "boxed", token["bare"]
        elif token["box"] is not None or token["open"]:
            stack.append(["boxed" if token["box"] is not None else None, token.end(), None])
        elif token["key"] and stack:
            stack[-1][2] = token.end() if whole or not token["escaped"] else None
        elif token["key"] and whole:
            yield token.start(), token.end(), "json", value_at(text, token.end(), token.end())
        elif token["close"] and stack:
            box, start, key = stack.pop()
            if key is not None:
                yield start, token.end(), "json", value_at(text, key, token.start())
            elif box:
                yield start, token.end(), box, text[start : token.start()]


def enclosed(text: str, whole: bool, placeholders: bool = False) -> list[tuple[int, int, str, str]]:
    """The boxes and the JSON objects with an answer, in order, with begin, end, method and content of each.

    Of those within another only the outer one counts, boxes joined by "or" are one; `placeholders` only if asked for.
    """
    found: list[tuple[int, int, str, str]] = []
    for begin, end, method, content in closed(text, whole):
        if not placeholders and is_placeholder(content):
            continue
        while found and found[-1][0] > begin:
            found.pop()
        if method == "boxed" and found and joined_by_or(text[found[-1][1] : begin][:100]):
            first, _, _, other = found.pop()
            found.append((first, end, method, f"{other} or {content}"))
        else:
            found.append((begin, end, method, content))
    return found


def joined_by_or(text: str) -> bool:
    """Whether the text between two boxes offers the second as an alternative to the first."""
    words = [word for word in re.findall(r"[^\W\d_]+", text) if word not in ("boxed", "fbox", "framebox", "text")]
    return 0 < len(words) <= MAX_HEDGE_WORDS and any(HEDGE.fullmatch(word) for word in words)


# The words for an answer in languages with and without Latin letters, and what joins them to it.
ANSWER_WORD = r"answer|antwort|r[ée]ponse|respuesta|resposta|risposta|antwoord|svar|cevap|odpowied[źz]|jawaban"
FOREIGN_ANSWER = r"ответ|відповідь|答案|答え|解答|正解|정답|उत्तर|উত্তর|الجواب|الإجابة|جواب|پاسخ|תשובה|คำตอบ"
MARKER = re.compile(
    rf"""(?<!["'])(?:{ANSWER_WORD})[*_"'”’\\]*(?:\s*\([^()\n]{{1,60}}\))?"""
    r"(?:\s(?:to|for)\s[^.:!?\n]{1,80}?\s)?"
    r"[*_]*\s*(?:(?:is|of|(?:must|should|would|has to) be)\b|(?:\w{1,12}\s)?(?:ist|lautet|est|es|é|è|jest|är|adalah)\b"
    r"|[:=|→➜]|[–—-]\s)"
    rf"|(?:{ANSWER_WORD})[*_]*[ \t]*\n|\bans[.:]\s|<answer[^<>]{{0,40}}>"
    rf"|(?:(?:{FOREIGN_ANSWER})[*_】\]]*|[答답](?=[:은]))\s*(?:应该|应当|应)?"
    r"(?:(?:是|为|為|等于|は|은|는|है|:|=)\s*:?|[–—-]\s|(?=\W{0,4}(?:[0-9选]|[A-J](?![a-z])))|[ \t]*\n)"
    r"|^####\s*(?=\W{0,3}(?:[0-9][0-9,.]*|[A-J])(?:\s(?-i:[a-z])\w*){0,2}\W*$)",
    re.IGNORECASE | re.MULTILINE,
)
OPTION_MARKER = re.compile(
    MARKER.pattern + r"|(?:option|choice|letter)[*_]*\s*(?:is\b|:)|选择|选项是|故选|因此选",
    re.IGNORECASE | re.MULTILINE,
)
MAX_MARKERS = 100
MARKED_LENGTH = 300  # characters after a marker that may hold its answer
FILLER = re.compile(
    r"(?:(?:therefore|thus|then|hence|indeed|simply|just|clearly|actually|equal to|now|given by|also|somit|donc"
    r"|entonces|quindi)\b[,:\s]*)+",
    re.IGNORECASE,
)
# Words before "the answer" where it is yet to come.
SEARCHING = re.compile(
    r"\b(?:find|get|reach|determine|compute|calculate|obtain|derive)\s+(?:the|our|an|its)\s+(?:final\s+|correct\s+)?$",
    re.IGNORECASE,
)
# Words before "the answer" where it is a wrong one, that of others, only a part of what is told, or a supposition.
MISTAKEN = re.compile(
    r"\b(?:wrong|incorrect|mistaken|false|previous|earlier|naive)\s+(?:final\s+)?$|\bof\s+(?:the|our|this)\s+$"
    r"|\b(?:people|students|some|others?|many)\s+(?:\w+\s+){0,3}$|\b(?:if\b|for\s+\w\s*=)[^.!?\n]*$",
    re.IGNORECASE,
)
# Words that take an answer back: within its line, and right after an object or a box.
WITHDRAWN = re.compile(
    r"(?:(?<=[0-9)}$*`])|(?<=\b[A-J]))(?i:[\s,;—–-]*(?:(?:but|which|that|this|it|is|was)\s+)*(?:wrong|incorrect|no"
    r"|not\s+(?:right|correct|valid))\b)|[.!?][*_]*\s+(?i:wait|hmm|no,|actually,)"
)
TAKEN_BACK = re.compile(
    r"[\s$*_)}\]\\.,;:!`—–-]*(?:(?:but|no|wait|oh|oops|sorry|hmm+|that|this|it|is|was)\b[\s,.!…:—-]+)*"
    r"(?:wrong|incorrect|not\s+(?:right|correct|valid)|correction|scratch\s+that|I\s+(?:have\s+to|must)\s+correct)\b"
    r"(?=\s*(?:[.,;:!)…—–-]|$|(?:because|since|as|for|myself|this|that|it)\b))",  # and not "Incorrect options: ..."
    re.IGNORECASE,
)
STRUCK = re.compile(r"~~[^~\n]*~~")
TOKENS = re.compile(r"<(?![A-J]>)/?[a-zA-Z][^<>]{0,80}>|<\|[^<>|\s]{1,40}\|>|\[/[A-Z]{1,20}\]")
NOTE = re.compile(r"(?<=[0-9$*°})`.])\s+\((?!\s*(?:or|oder|ou)\b)[^()]*\)")  # after a number, such as "(see above)"
# Where the statement of an answer ends.
CLAUSE_END = re.compile(
    r"(?<=[0-9)}$*°`])[.!][*_]*\s+(?=[^\W\d_])|[.!]\s+(?=[A-Z])|,?\s+(?:since|because|as|which|where|given|so|but)\b"
    r"|\s+\|\s|(?<=[0-9]):\s|(?<=[0-9])(?:。|[,;](?=[^\x00-\x7f]))|(?<=[0-9])\.\s+(?=[0-9][^.]*=)|\s+out\s+of\b|\s[✅✓✔]"
    r"|,\s+(?:i\.e\.|(?:by|from|using|via|obtained|found|not)\b)|,?\s+and\s+(?:we|the|this|it|that)\b"
    r"|,\s*['\"][a-z_]+['\"]\s*:",
    re.IGNORECASE,
)
# The integer a clause begins with, unless the text after it makes it a part of something else.
LEADING_INTEGER = re.compile(
    r"""(?P<integer>-?[0-9]+(?:,[0-9]{3})*)(?![0-9a-zA-Z])["'”’)\]}_]*(?:[^\w+/^=<>\\·×(–-]*$"""
    r"""|\s*[.!]\s+(?=\D)|。|(?P<pause>[,;:]\s|[,;:](?=[^\x00-\x7f])|、|\s?[(—–-]\s?)?\s*(?P<word>[^\W\d_]+)(?!\())"""
)
MARKUP = "_*:。# \t\r“”\"'"
BULLET = re.compile(r"\A(?:(?:[-–—•+]|\(?1[.)](?=\s+\W*(?:[0-9]|[A-J]\b)))\s+)+")
# The ways in which an answer is found or missed, each with its meaning.
METHODS = {
    "json": "the last JSON object with an answer",
    "boxed": "the last box that is closed",
    "marker": "what follows the last words that announce an answer",
    "last number": "a guess: the last number of the last line",
    "last letter": "a guess: the option that the last line names",
    "none": "no answer was found",
    "cut": "the response was cut off before it gave an answer",
    "loop": "the response was stopped because it only repeated itself, before it gave an answer",
    "hedged": "the response offers several answers to choose from",
    "unfinished thinking": "the response ends before the model's reasoning does",
    "judge": "what the judge read as the final answer",
    "judge found none": "the judge found no final answer",
    "command": "what the command made of it",
}


@dataclass(frozen=True)
class Found:
    """An answer as the model wrote it, None for none, how it was found or missed, and the doubt about it, if any."""

    answer: str | None
    method: str
    doubt: str = ""


@dataclass(frozen=True)
class Statement:
    """A part of a response that gives an answer, or tries to: its place, what it says, and how much that counts for.

    `rank` is 3 for an object, a box or an announcement that say one thing, or offer several to choose from; 2 for the
    end of a sentence that begins as an announcement; 1 for a guess at the last line; 0 where there is no value.
    """

    place: int
    end: int
    found: Found
    rank: int


def offered_integers(text: str) -> set[str] | None:
    """The integers that a text offers with "or" to choose from, "" for one that is none; None when it offers none."""
    parts = HEDGE.split(text.replace("{", " ").replace("}", " "))
    return {parse_integer(part.strip(" ,;")) or "" for part in parts} if len(parts) > 1 else None


def offered_letters(text: str) -> set[str] | None:
    """The options that a text names, when it names more than one; None otherwise."""
    letters = LONE_LETTER.findall(text)
    return set(letters) if len(letters) > 1 else None


def unless_hedged(answer: str, method: str, kind: Kind) -> Found:
    """`answer`, unless it offers different values to choose from; the same one twice is no hedge."""
    offered = kind.offered(answer[:MAX_ANSWER]) if kind.parse(answer) is None else None
    if offered is None:
        return Found(answer, method)
    return Found(offered.pop(), method) if len(offered) == 1 and "" not in offered else Found(None, "hedged")


def announcements(text: str, whole: bool, kind: Kind) -> Iterator[Statement]:
    """What follows the explicit markers of a text: "the answer is", "Answer:", "答案是"."""
    end = text.rstrip(MARKUP)[-MARKED_LENGTH:]
    for marker in list(kind.marker.finditer(text))[-MAX_MARKERS:]:
        line, beside = marked_line(text, marker, kind)
        # A line at the end of a text that is cut off may be cut off within a number.
        if not line or not (whole or not end.endswith(line) or CLAUSE_END.search(line)):
            continue
        found = kind.read_marked(line, beside)
        rank = 3 if not found.doubt else 2 if found.answer else 0
        yield Statement(marker.start(), text.find(line[-20:], marker.end()) + len(line[-20:]), found, rank)


def marked_line(text: str, marker: re.Match[str], kind: Kind) -> tuple[str, bool]:
    """The text that a marker points at: the rest of its line, or the next one with a word; "" where it has none.

    And whether it stands beside the marker.
    """
    following = text[marker.end() : marker.end() + MARKED_LENGTH]
    rest, *more = TOKENS.sub(" ", STRUCK.sub("", following)).split("\n")
    rest, before = rest.strip(MARKUP), text[max(0, marker.start() - MARKED_LENGTH) : marker.start()]
    beside = bool(rest)
    if not rest:
        searching = SEARCHING.search(before)
        lines = (BULLET.sub("", line.strip(MARKUP + ">")) for line in more)
        rest = "" if searching else next((line for line in lines if re.search(r"\w", line)), "")
    rest = FILLER.sub("", rest, count=1)
    return ("" if MISTAKEN.search(before) or not kind.value.search(rest) else rest), beside


CONCLUSION = re.compile(r"\b(?:so|thus|hence|therefore|then|giving|gives|making|makes)\b", re.IGNORECASE)


def sentence(line: str) -> str:
    """The first sentence of a line."""
    return re.split(r"(?<=[.!?。])[*_)]*\s+(?=[^\W\d_])", line, maxsplit=1)[0]


UNREAD = Found(None, "none", "no answer was found")
INFERRED = "the answer was read from the end of a sentence"
# Before the number of a clause.
PROSE = re.compile(r"\W*(?!answer\b|the (?:integer|number)\b)[^\W\d_]{2,}\s+[^\W\d_]{2,}\b\D*[0-9]", re.IGNORECASE)


def marked_integer(line: str, beside: bool) -> Found:
    """The answer in the line after a marker: its first clause as a whole, or the one integer that begins that.

    Else, less sure, the one that ends its first sentence, if the line stands `beside` the marker.
    """
    line = NOTE.sub("", line)
    clause = CLAUSE_END.split(line, maxsplit=1)[0]
    if WITHDRAWN.search(line):
        return UNREAD
    if HEDGE.search(clause):
        return unless_hedged(clause, "marker", INTEGERS)
    if parse_integer(clause) is not None:
        return Found(clause, "marker", "" if not PROSE.match(clause) else INFERRED)
    bare = LEAD_IN.sub("", DRESS.sub(" ", clause), count=1).strip()
    leading = LEADING_INTEGER.match(bare)
    if leading and not any(c.isdigit() for c in bare[leading.end("integer") :]):
        word = leading["word"] or ""
        other = (not leading["pause"] and NOT_A_UNIT.match(word)) or (word.isascii() and len(word) == 1)
        return UNREAD if other else Found(leading["integer"], "marker")
    *premises, concluded = CONCLUSION.split(sentence(line))
    if premises and beside and parse_integer(concluded) is not None:
        return Found(concluded, "marker", INFERRED)
    last = last_integer(concluded) if beside and len(NUMBER.findall(plain(concluded))) == 1 else None
    return Found(last, "marker", INFERRED) if last else UNREAD


def marked_letter(line: str, beside: bool) -> Found:
    """The answer in the line after a marker, which must begin with the letter of an option."""
    line = line if "{" in line else line.rstrip("\"'”’} ")
    if WITHDRAWN.search(line):
        return UNREAD
    if parse_letter(line):
        return Found(line, "marker")
    hedged = HEDGE.search(line) and len(offered_letters(line) or ()) > 1
    return Found(None, "hedged") if hedged else UNREAD


# Text allowed before a number that ends a response: none, an arrow or equality, or a word that does not change it.
LEADING_UP = re.compile(
    r"(?:^|(?<![<>!])=|[≈≡→➜⇒⟹∴|#]|(?<![0-9 ]):|\([A-E]\)|[^\W\d_],"
    r"|\\(?:approx|equiv|[a-zA-Z]*(?:arrow|to)|implies|iff|therefore)"
    r"|\b(?:total\s+of|(?:comes?|amounts?|sums?)\s+to|(?:should|must|will|would|to)\s+be)|(?<![\w\\])(?!(?:times|plus|minus|by|over|choose|of|log|ln|not|be|in|mod|least|most|than|step|case|twice|double|triple|with|on|below|above|under|within|to|equation|sin|cos|tan|maybe|perhaps|possibly|or"
    r"|and|either|sqrt|root|negative)\s*$)[^\W\d_]{1,40})\s*$",
    re.IGNORECASE,
)
DENIED = re.compile(
    r"(?:\b(?:not|never|nor|cannot)|n['’]t)\s+(?:\w+\s+){0,3}$|\b(?:wrong|incorrect)\s+\w+(?:\s+is\b|:)?\s*$",
    re.IGNORECASE,
)
ENDING = re.compile(r"\s*(?:\$?\\(?:black)?square\$?|\bQED\b|[∎■□])[.\s]*$|[\s.$|]+$", re.IGNORECASE)


def last_integer(line: str) -> str | None:
    """The last number of a line, if it is an integer and nothing around it makes it a part of something else."""
    line = MODULUS.sub("", ENDING.sub("", STRUCK.sub("", line)))
    line = plain(line) if line.count("{") == line.count("}") else ""
    last = next(reversed(list(NUMBER.finditer(line))), None)
    if last is None or parse_integer(line[last.start() :]) is None or HEDGE.search(line):
        return None
    before = line[: last.start()]
    return last[0] if LEADING_UP.search(before) and not DENIED.search(before) else None


def last_number(text: str) -> str | None:
    """The number that ends the last line of a text, as `last_integer` reads it."""
    lines = (line.lstrip("> ") for line in reversed(text.split("\n")))
    return last_integer(next((line for line in lines if re.search(r"\w", ENDING.sub("", line))), ""))


def last_letter(text: str) -> str | None:
    """The letter of the option that is all of the last line, unless the line before it names one too, as lists do."""
    lines = [BULLET.sub("", line.strip(" >")) for line in text.split("\n") if re.search(r"\w", line)][-2:]
    chosen = CHOSEN.fullmatch(lines[-1]) if lines else None
    letters = [parse_letter(line) for line in lines]
    return chosen["letter"].upper() if chosen else letters[-1] if letters and not any(letters[:-1]) else None


@dataclass(frozen=True)
class Kind:
    """A kind of answer: how it is asked for, and the rules that are its own.

    `expected` gives the canonical form of a data set's answer, None for one of another kind; `parse` that of a text
    which is one answer, `offered` the answers of one that offers several, `last` the one that may stand at the end of a
    text; `marker` announces an answer, `value` is a line that can hold one, and `read_marked` takes it from there.
    `instructions`, by answer format, come after the question: models follow what they read last, and no example in them
    can be taken for an answer by a model that copies it. `judged` names the answer to a judge; one that is `numeric`
    stands in a response in digits.
    """

    name: str
    instructions: dict[str, str]
    schema: dict[str, Any]
    judged: str
    numeric: bool
    last_method: str
    expected: Callable[[str], str | None]
    parse: Callable[[str], str | None]
    offered: Callable[[str], set[str] | None]
    marker: re.Pattern[str]
    value: re.Pattern[str]
    read_marked: Callable[[str, bool], Found]
    last: Callable[[str], str | None]


def object_schema(**properties: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of an object with just these properties, in this order."""
    names = list(properties)
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def option_letter(text: str) -> str | None:
    """A text that is the letter of an option and nothing else; None for another."""
    return text if len(text) == 1 and text in LETTERS else None


# JSON is the default because a program reads it without guessing; `schema` leaves room for the steps, which a model
# held to JSON from its first token could not write otherwise; `boxed` is how most published AIME figures were measured.
ANSWER_FORMATS = ("json", "schema", "boxed")
INTEGERS = Kind(
    name="integer",
    instructions={
        "json": (
            "Think it through step by step. The answer is an integer N. Finish with a line that holds nothing but "
            'this JSON object, with your answer in the place of N: {"answer": N}'
        ),
        "schema": (
            'Reply with nothing but a JSON object like {"reasoning": "...", "answer": N}: '
            "first think it through step by step, then give your answer, which is an integer, in the place of N."
        ),
        "boxed": "Think it through step by step. The answer is an integer. Finish with your answer in \\boxed{}.",
    },
    schema=object_schema(reasoning={"type": "string"}, answer={"type": "integer"}),
    judged="that answer, an integer in digits,",
    numeric=True,
    last_method="last number",
    expected=parse_integer,
    parse=parse_integer,
    offered=offered_integers,
    marker=MARKER,
    value=re.compile(r"\d"),
    read_marked=marked_integer,
    last=last_number,
)
OPTIONS = Kind(
    name="letter",
    instructions={
        "json": (
            "Think it through step by step. Exactly one option is right. Finish with a line that holds nothing but "
            'this JSON object, with the letter of that option in the place of X: {"answer": "X"}'
        ),
        "schema": (
            'Reply with nothing but a JSON object like {"reasoning": "...", "answer": "X"}: '
            "first think it through step by step, then give the letter of the one right option in the place of X."
        ),
        "boxed": "Think it through step by step. Exactly one option is right. Finish with its letter in \\boxed{}.",
    },
    schema=object_schema(reasoning={"type": "string"}, answer={"type": "string", "enum": list(LETTERS)}),
    judged="the letter of the option that it chooses",
    numeric=False,
    last_method="last letter",
    expected=option_letter,
    parse=parse_letter,
    offered=offered_letters,
    marker=OPTION_MARKER,
    value=LONE_LETTER,
    read_marked=marked_letter,
    last=last_letter,
)
KINDS = (INTEGERS, OPTIONS)


def kind_of(expected: str) -> Kind:
    """The kind of answer that an expected one is; raises StateError for none of them."""
    for kind in KINDS:
        if kind.expected(expected):
            return kind
    raise StateError(f"the expected answer {one_line(expected, 40)!r} is of no kind that this llama-eval knows")


def statements(text: str, whole: bool, kind: Kind) -> Iterator[Statement]:
    """What a text without reasoning says of its answer, in no order."""
    spans = enclosed(text, whole)
    begun, after = [begin for begin, _, _, _ in spans], spans[-1][1] if spans else 0
    for begin, end, method, answer in spans:
        if not TAKEN_BACK.match(text, end):
            found = unless_hedged(answer, method, kind)
            valued = found.answer is None or kind.parse(found.answer) is not None
            yield Statement(begin, end, found, 3 if valued else 0)
    for statement in announcements(text, whole, kind):
        within = bisect.bisect(begun, statement.place) - 1
        if within < 0 or statement.place >= spans[within][1]:
            after = max(after, statement.end)
            yield statement
    last = kind.last(TOKENS.sub(" ", text[max(after, len(text) - MAX_ANSWER) :])) if whole else None
    if last:
        yield Statement(len(text), len(text), Found(last, kind.last_method, METHODS[kind.last_method]), 1)


def find_answer(content: str, finish_reason: str | None = "stop", kind: Kind = INTEGERS) -> Found:
    """The answer that the model gave: the last of the statements that count most.

    `content` is the message without separate reasoning.
    """
    whole = finish_reason not in CUT_OFF
    text = final_part(content, whole)
    if text is None:
        return Found(None, "unfinished thinking")
    said = sorted(statements(ascii_text(text), whole, kind), key=attrgetter("place"))
    best = max(
        reversed(said), key=lambda said: (said.rank, said.rank > 0 or said.found.answer is not None), default=None
    )
    if not best or best.found.method == "none":
        return UNREAD if whole else Found(None, "cut", METHODS["cut"])
    if len({kind.parse(other.found.answer) for other in said if other.rank == 3 and other.found.answer}) > 1:
        return replace(best.found, doubt="the response gives another answer as well")
    return best.found


# ---- datasets -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HubDataset:
    """A dataset on the Hugging Face hub: `parts` are (configuration, prefix of the problem ids).

    `gated` ones are given only to those who have agreed to their terms and show a token.
    """

    repo: str
    split: str
    parts: tuple[tuple[str | None, str], ...]
    gated: bool = False


HUB_DATASETS = {
    "aime2025": HubDataset("opencompass/AIME2025", "test", (("AIME2025-I", "I-"), ("AIME2025-II", "II-"))),
    "aime2026": HubDataset("MathArena/aime_2026", "train", ((None, ""),)),
    "aime": HubDataset("AI-MO/aimo-validation-aime", "train", ((None, ""),)),
    "gsm8k": HubDataset("openai/gsm8k", "test", (("main", ""),)),
    "gpqa": HubDataset("Idavidrein/gpqa", "train", (("gpqa_diamond", ""),), gated=True),
}
PRACTICE = HERE / "data" / "practice.jsonl"
KNOWN_DATASETS = (*HUB_DATASETS, "practice")
HUB_PROBE_SECONDS = 3.0  # a hub that does not answer within this is not waited for


def load_dataset(name: str, seed: int | None = 0) -> Dataset:
    """The dataset called `name`: one of KNOWN_DATASETS, or the path of a JSONL file.

    `seed` shuffles the options of multiple choices; None keeps the order of the dataset.

    Raises UsageError for an unknown name and DatasetError for one that cannot be loaded.
    """
    if name in HUB_DATASETS:
        hub = HUB_DATASETS[name]
        return make_dataset(name, hub.repo, hub_problems(name, hub, seed))
    if name == "practice":
        return make_dataset(name, "data/practice.jsonl", file_problems(PRACTICE, seed))
    if not (name.endswith(".jsonl") or os.path.isfile(name)):
        known = ", ".join(KNOWN_DATASETS)
        raise UsageError(f"unknown dataset '{name}': use one of {known}, or the path of a FILE.jsonl")
    return make_dataset(os.fsencode(Path(name).stem).decode("utf-8", "replace"), name, file_problems(Path(name), seed))


def make_dataset(name: str, source: str, problems: Iterable[Problem]) -> Dataset:
    """A Dataset of `problems`, whose ids must be unique and whose answers of one kind."""
    unique: dict[str, Problem] = {}
    for problem in problems:
        if problem.id in unique:
            raise DatasetError(f"{source}: the id '{problem.id}' occurs twice; give each problem its own")
        unique[problem.id] = problem
    kinds = sorted({kind_of(problem.expected).name for problem in unique.values()})
    if len(kinds) > 1:
        raise DatasetError(f"{source}: some answers are {kinds[0]}s and some are {kinds[1]}s; make two datasets of it")
    rows = json.dumps([[p.id, p.question, p.expected] for p in unique.values()])
    return Dataset(name, source, hashlib.sha256(rows.encode()).hexdigest(), tuple(unique.values()))


def make_problem(row: object, default_id: str, where: str, seed: int | None) -> Problem:
    """A Problem from a row such as {"id": 0, "problem": "Find $x$ ...", "answer": "025"}.

    The question may be called `question` or `problem`, the answer stand after "####" as in GSM8K, and a multiple
    choice have its `options` in a list, or be a row of GPQA. `where` names the row in the DatasetError.
    """
    if not isinstance(row, dict):
        raise DatasetError(f"{where}: not a JSON object with a question and an answer")
    right_first = "Correct Answer" in row
    if right_first and seed is None:
        raise DatasetError(f"{where}: its right option stands first, so its options have to be shuffled")
    row = gpqa_row(row) if right_first else row
    question, answer = row.get("question", row.get("problem")), row.get("answer")
    if not isinstance(question, str) or not question.strip():
        raise DatasetError(f"{where}: no 'question' (or 'problem') text")
    if answer is None or isinstance(answer, bool) or not isinstance(answer, (str, int, float)):
        raise DatasetError(f"{where}: no 'answer'")
    identifier = encodable(default_id if row.get("id") is None else str(row["id"]))
    options = row.get("options", row.get("choices"))
    if options is not None and not isinstance(answer, str):
        raise DatasetError(f"{where}: the answer {answer} may be an option or its number; give its letter or its text")
    question, answer = encodable(question), str(answer).rpartition("####")[2].strip()
    if options is not None:
        texts, right = read_options(options, answer, where)
        kept = seed is None or (not right_first and any(map(REFERRING.search, texts)))
        order = list(range(len(texts))) if kept else shuffled(len(texts), f"{seed} {identifier}")
        lines = [f"{letter}) {texts[i]}" for letter, i in zip(LETTERS, order, strict=False)]
        return Problem(identifier, "\n".join([question.strip(), "", *lines]), LETTERS[order.index(right)], order)
    expected = next(filter(None, (kind.expected(answer) for kind in KINDS)), None)
    if not expected:
        raise DatasetError(f"{where}: the answer {answer[:40]!r} is not an integer")
    return Problem(identifier, question, expected)


def gpqa_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of GPQA, {"Question": ..., "Correct Answer": ..., "Incorrect Answer 1": ..., ...}, in our own terms."""
    columns = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
    return {"question": row.get("Question"), "options": [row.get(column) for column in columns], "answer": "A"}


LABEL = re.compile(r"\s*[(\[]?(?P<letter>[A-Ja-j])(?:[)\]][.:]?|[.:](?=\s))\s*")
# An option that refers to others, by letter or place, is true only where they stand.
REFERRING = re.compile(
    r"\b(?:all|none|both|neither|any|some|each|most|one|two|three)\s+of\s+(?:the\s+)?(?:above|below|these|those|other|others"
    r"|options|following|preceding|previous|statements)\b|\b(?:above|below|preceding|previous)\b"
    r"|\b(?:options?|choices?|answers?|both|neither|either|only|not|nor|except)\s+\(?[A-J]\b"
    r"|\(?\b[A-J]\)?\s*(?:,|&|and|or|nor)\s*\(?[A-J]\b"
)


def read_options(options: object, answer: str, where: str) -> tuple[list[str], int]:
    """The options of a multiple choice and the number of the right one, which `answer` gives by letter or text.

    Labels of their own, in order, are taken off: they would contradict the letters that the options are shown with.
    """
    given = [encodable(text.strip()) for text in typed(options, list) if isinstance(text, str)]
    if not 2 <= len(given) == len(typed(options, list)) <= len(LETTERS):
        raise DatasetError(f"{where}: the options are not a list of 2 to {len(LETTERS)} texts")
    labels = [label["letter"].upper() if (label := LABEL.match(text)) else "" for text in given]
    labelled = labels == list(LETTERS[: len(given)])
    if all(labels) and not labelled and len(set(labels)) > 1:
        raise DatasetError(f"{where}: the options have labels that are not in order")
    texts = [LABEL.sub("", text, count=1) if labelled else text for text in given]
    if len({" ".join(text.split()) for text in texts}) < len(texts):
        raise DatasetError(f"{where}: two options are the same")
    meant = {i for i, text in enumerate(texts) if answer in (text, given[i], LETTERS[i])}
    if len(meant) != 1:
        which = "more than one option" if meant else "neither the letter nor the text of an option"
        raise DatasetError(f"{where}: the answer {answer[:40]!r} is {which}")
    return texts, meant.pop()


def shuffled(count: int, key: str) -> list[int]:
    """The numbers from 0 up to `count` in an order that `key` decides."""
    # By hashes, not by `random`, so that every version of Python shuffles alike.
    return sorted(range(count), key=lambda i: hashlib.sha256(f"{key} {i}".encode()).digest())


def file_problems(path: Path, seed: int | None) -> Iterator[Problem]:
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
            yield make_problem(row, str(number), where, seed)


def hub_problems(name: str, hub: HubDataset, seed: int | None) -> Iterator[Problem]:
    """The problems of a hub dataset; rows look like {"question": "Find ...", "answer": "70"}."""
    for config, prefix in hub.parts:
        for number, row in enumerate(hub_rows(name, hub, config), 1):
            where = f"{hub.repo} {config or ''} row {number}"
            yield make_problem(row, f"{prefix}{number}", where, seed)


def hub_rows(name: str, hub: HubDataset, config: str | None) -> Iterator[dict[str, Any]]:
    """The rows of one configuration: from the cache of the `datasets` library, else from the hub."""
    import datasets  # noqa: PLC0415 - takes a second and 150 MB, which local files need not pay
    from huggingface_hub import get_token  # noqa: PLC0415

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
    elif hub.gated and not get_token():
        tried += f" and it needs a token: accept its terms at {endpoint}/datasets/{hub.repo}, then set HF_TOKEN"
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


# ---- client ---------------------------------------------------------------------------------------------
#
# From a request to its Response: a Client sends it, a Transcript collects the reply, the Watchdog ends requests that
# take too long, and `classify` names the remedy for a failure.

# The finish reasons, of whatever server, that mean that a response was cut off, and that there is none.
CUT_REASON = re.compile(r"length|max|limit|trunc|budget|overflow|window|incomplete", re.IGNORECASE)
NO_RESPONSE = re.compile(
    r"error|abort|cancel|fail|insufficient|overload|interrupt|unavailable|time_?out|filter|safety|recitation|block|prohibit|malformed",
    re.IGNORECASE,
)
LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")  # one that ends what has arrived may be half of another
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
REPLY_LIMIT = 1 << 26  # bytes of a reply, or of a line in a stream; no honest one has as many
READ_SIZE = 1 << 16
RETRY_AFTER_LIMIT = 600.0  # seconds; a server that asks for more is asked again all the same

NOW, LATER, DOWN, GONE, NEVER = "now", "later", "down", "gone", "never"
# The remedy for a failure is in the first row that fits it: send the request again NOW or LATER; the endpoint is DOWN
# for a while, or GONE for this run; or this endpoint will NEVER take this request. `served` says whether the endpoint
# has taken any: a path or key that it refuses from the start, it refuses to every task.
FAULTS: tuple[tuple[Callable[[Exception, bool], bool], str], ...] = (
    (lambda error, served: isinstance(error, StaleError), NOW),
    (lambda error, served: isinstance(error, UnreachableError), DOWN),
    (lambda error, served: isinstance(error, EndpointError), GONE),
    (lambda error, served: status_of(error) == 401 or (status_of(error) in (403, 404) and not served), GONE),
    (lambda error, served: status_of(error) in (None, 200, 408, 425, 429), LATER),
    (lambda error, served: status_of(error) in range(500, 600) and status_of(error) not in (501, 505), LATER),
    (lambda error, served: True, NEVER),
)


def classify(error: Exception, served: bool = True) -> str:
    """The remedy for a failed request, or a failed look at a server: NOW, LATER, DOWN, GONE or NEVER."""
    return next(remedy for fits, remedy in FAULTS if fits(error, served))


def status_of(error: Exception) -> int | None:
    """The HTTP status of the reply that an error is about, if there was a reply."""
    return error.status if isinstance(error, RequestError) else None


# A response that ends in so many copies of one block, and in so many characters of them, will not get out of it.
# Matrices of zeros, residues of a recurrence and decimals of a fraction repeat themselves for less, and come to an end.
LOOP_TIMES = 20
LOOP_LENGTH = 16_000
LOOP_REACH = 80_000  # characters at the end that are looked at: blocks of up to a LOOP_TIMES-th of that are found
LOOP_PROBE = 32
LOOP_STEP = 500  # characters between two looks


def loop_block(text: str) -> int | None:
    """The length of the block that `text` repeats over and over to its end; None where it does no such thing."""
    start = len(text) - LOOP_PROBE
    place = text.rfind(text[start:], 0, -1) if start > 0 else -1
    while place >= 0:
        block = start - place
        size = max(LOOP_TIMES * block, LOOP_LENGTH)
        if size > len(text):
            return None
        if text[-size:-block] == text[block - size :]:
            return block
        place = text.rfind(text[start:], 0, place + LOOP_PROBE - 1)
    return None


class Transcript:
    """Collects the reply to one chat completion request, streamed or whole, and makes the Response of it.

    A stream is events of "data:" lines, which a blank line ends, as the standard has it; one that is whole with its
    first line is taken at once. A reply without such lines is one JSON object.
    Where an event has a `delta`, that object has a `message`; they are read by the same rules.
    """

    def __init__(self, stop_loops: bool, redact: Callable[[Any], Any] = lambda value: value) -> None:
        self.stop_loops = stop_loops
        self.redact = redact
        self.unread = bytearray()  # the last line, as far as it has arrived
        self.event: list[str] = []  # the lines of the last event, as far as they have arrived
        self.body = bytearray()  # the lines of a reply that is no stream
        self.streamed = False
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.tokens = 0  # the number of their pieces
        self.known: dict[str, Any] = {}  # everything beside the text: finish_reason, model, usage, ...
        self.done = False
        self.loop: int | None = None  # the length of the block that the text repeats
        self.recent = ""  # the end of the text
        self.unlooked = 0  # characters since the last look for a loop

    def add(self, data: bytes) -> bool:
        """Take the next piece of the reply; returns whether no more of it is wanted. Raises RequestError."""
        self.unread += data
        if b"\n" in data or b"\r" in data:
            *lines, unread = LINE_END.split(bytes(self.unread))
            self.unread = bytearray(unread)
            for line in lines:
                self._line(line)
        if len(self.unread) + len(self.body) > REPLY_LIMIT:
            raise ReplyError(f"the reply is longer than {REPLY_LIMIT} bytes")
        return self.loop is not None

    def _line(self, line: bytes) -> None:
        if not (self.streamed or self.body):
            line = line.removeprefix(BYTE_ORDER_MARK)
        if line[:5] in (b"data:", b"data"):
            self.streamed = True
            text = line[5:].decode("utf-8", "replace").strip()
            value = None if self.event else parsed(text)
            if value is not None or text == "[DONE]":
                self.take(text, value)
            elif text:
                self.event.append(text)
        elif line.startswith(b"error:"):  # of older llama-servers
            text = line[6:].decode("utf-8", "replace").strip()
            raise failed(200, self.redact({"error": parsed(text) or text}), self.redact(text))
        elif not line:
            text, self.event = "\n".join(self.event), []
            if text:
                self.take(text, parsed(text))
        elif not self.streamed and not line.startswith(b":"):  # which is a comment
            self.body += line + b"\n"

    def end(self) -> None:
        """Take note that nothing more comes; raises RequestError where something is missing."""
        if self.streamed:
            with contextlib.suppress(RequestError):  # of an event that is cut off
                self.add(b"\n\n")
        if not self.streamed:
            text = (self.body + self.unread).decode("utf-8-sig", "replace")
            self.take(text, parsed(text))
        elif self.loop is None and not (self.done or self.known.get("finish_reason")):
            raise ReplyError("the stream ended without a finish_reason or [DONE]")
        if not (self.tokens or self.known.keys() & {"message", "finish_reason", "error"}):
            raise ReplyError(f"the reply is no chat completion: {one_line(self.redact(self.known))}")

    def take(self, text: str, value: Any) -> None:
        """Take an event, or a whole completion, and the JSON in it, if any; raises RequestError for an error in it."""
        if text == "[DONE]":
            self.done = True
            return
        if value is None and not self.streamed:
            raise ReplyError(f"the reply is not JSON: {one_line(self.redact(text))!r}")
        if isinstance(value, dict) and value.get("error"):
            code = typed(value["error"], dict).get("code")
            status = code if isinstance(code, int) and 400 <= code < 600 else 200
            raise failed(status, self.redact(value), self.redact(text))
        try:
            for choice in value["choices"][:1] if value.get("choices") else ():
                whole = "message" in choice
                part = choice["message"] if whole else choice.get("delta") or {}
                reasoning = typed(part.get("reasoning_content") or part.get("reasoning"), str)
                bare = whole and not reasoning and reason_to_finish(choice.get("finish_reason")) != "length"
                content = message_text(part["content"] if bare else part.get("content"))
                self._say(reasoning, content)
                self.known |= {name: choice[name] for name in ("finish_reason", "error", "message") if choice.get(name)}
        except (TypeError, KeyError, AttributeError):
            place = "the stream holds" if self.streamed else "the reply is"
            raise ReplyError(f"{place} no chat completion: {one_line(self.redact(text))!r}") from None
        self.known |= {name: value[name] for name in ("model", "usage", "timings") if value.get(name)}

    def _say(self, reasoning: str, content: str) -> None:
        """Take a piece of the text; servers send one for each token, as a rule."""
        self.reasoning += [reasoning] if reasoning else []
        self.content += [content] if content else []
        self.tokens = len(self.content) + len(self.reasoning)
        new = reasoning + content if self.stop_loops and self.streamed else ""
        while new:  # a look after every LOOP_STEP characters, however they come
            step = LOOP_STEP - self.unlooked
            self.recent, self.unlooked = self.recent + new[:step], self.unlooked + len(new[:step])
            new = new[step:]
            if self.unlooked == LOOP_STEP:
                self.recent, self.unlooked = self.recent[-LOOP_REACH:], 0
                self.loop = self.loop or loop_block(self.recent)

    def response(self, call: Call, partial: bool = False) -> Response:
        """The Response as far as it has arrived by `call`; raises RequestError where the server says that it gave up.

        Of a `partial` one nothing is asked.
        """
        finish_reason = None if partial else reason_to_finish(self.known.get("finish_reason"))
        failure = self.known.get("error") or (finish_reason if NO_RESPONSE.search(finish_reason or "") else None)
        if failure and not partial:
            raise RequestError(f"the server gave up ({one_line(self.redact(failure))})")
        usage, timings = typed(self.known.get("usage"), dict), typed(self.known.get("timings"), dict)
        seconds = (call.ended or call.heard) - call.started
        tokens = as_count(usage.get("completion_tokens", timings.get("predicted_n")))
        counted = tokens is None and self.streamed and self.tokens > 0
        tokens = self.tokens if counted else tokens
        speed, generating = as_number(timings.get("predicted_per_second")), seconds - (call.first_token or 0)
        if speed is None and tokens is not None and generating > 0:
            speed = tokens / generating
        working = [as_number(timings.get(name)) for name in ("prompt_ms", "predicted_ms")]
        waited = seconds - sum(ms / 1000 for ms in working if ms is not None)
        return Response(
            content=self.redact(joined(self.content)),
            reasoning=self.redact(joined(self.reasoning)),
            finish_reason=LOOP if self.loop and not self.done and not partial else finish_reason,
            model=typed(self.redact(self.known.get("model")), str) or None,
            prompt_tokens=as_count(usage.get("prompt_tokens", timings.get("prompt_n"))),
            completion_tokens=tokens,
            tokens_per_second=speed,
            seconds=round(seconds, 3),
            tokens_counted=counted,
            first_token_seconds=None if call.first_token is None else round(call.first_token, 3),
            queue_seconds=None if None in working else round(max(0.0, waited), 3),
        )


def reason_to_finish(said: Any) -> str | None:
    """A server's finish reason, by whatever name and in whatever case; "length" for all by which a response is cut."""
    reason = typed(said.get("type") or said.get("reason") if isinstance(said, dict) else said, str).lower()
    return "length" if CUT_REASON.search(reason) else reason or None


def joined(pieces: list[str]) -> str:
    """The text in `pieces`, of which some servers cut a character in two as JSON escapes it."""
    text = "".join(pieces)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def message_text(content: Any) -> str:
    """The text of a message's content: null, text, or a list of parts; raises TypeError for anything else."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise TypeError("content is neither text nor parts")
    return "".join(typed(part.get("text"), str) for part in content)


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


MAX_DEPTH = 100  # of JSON; what redacts and writes it goes down level by level
JSON = json.JSONDecoder(parse_constant=lambda _: None, parse_float=finite_or_none)  # made once: that takes its time


def parsed(text: str) -> Any:
    """The JSON value at the start of a text that a server wrote; None for none, or one that is nested absurdly deep."""
    try:
        value = JSON.raw_decode(text.lstrip())[0]
    except (ValueError, RecursionError):
        return None
    return value if text.count("{") + text.count("[") <= MAX_DEPTH or depth(value) <= MAX_DEPTH else None


def depth(value: Any) -> int:
    """How deep lists and objects are nested in a JSON value."""
    levels, level = 0, [value]
    while level := [entry for entry in level if isinstance(entry, (dict, list))]:
        levels += 1
        level = [entry for holder in level for entry in (holder.values() if isinstance(holder, dict) else holder)]
    return levels


# In the words of llama-server, vLLM, SGLang, OpenAI, LM Studio, TGI, exllama, Gemini and Anthropic. Too large a
# max_tokens is a fault of the command line.
COMPLAINTS: tuple[tuple[re.Pattern[str], type[RequestError]], ...] = (
    (re.compile(r"context size has been exceeded", re.IGNORECASE), CrowdedError),
    (
        re.compile(
            r"^(?!.*max_(?:completion_)?tokens\W.{0,40}too large).*(?:context[ _](?:length|size|window)|exceed_context"
            r"|context the overflows|maximum input length|max(?:imum)?\W?_?seq|prompt is too long|input token count"
            r"|inputs?\W.{0,20}must have less)",
            re.IGNORECASE | re.DOTALL,
        ),
        ContextOverflowError,
    ),
)


def failed(status: int, payload: Any, text: str) -> RequestError:
    """The error that a reply tells of: `payload` is the JSON in `text`, None for none."""
    error = payload.get("error") if isinstance(payload, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    said = one_line(message or error or text) or "nothing more"
    kind = next((kind for pattern, kind in COMPLAINTS if pattern.search(text)), RequestError)
    return kind(f"HTTP {status}: {said}", status)


def seconds_to_wait(retry_after: str | None) -> float:
    """The pause that a Retry-After header asks for, in seconds or as a date, within reason; 0 for none."""
    try:
        seconds = float(retry_after or 0)
    except ValueError:
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            seconds = parsedate_to_datetime(str(retry_after)).timestamp() - time.time()
            return max(0.0, min(seconds, RETRY_AFTER_LIMIT))
        return 0.0
    return max(0.0, min(seconds, RETRY_AFTER_LIMIT)) if math.isfinite(seconds) else 0.0


class Call:
    """One request that is on its way to a server, with its times; `failure` is why it was ended from outside."""

    def __init__(self, server: str, options: Options) -> None:
        self.server = server
        self.options = options
        self.socket: socket.socket | None = None
        self.started = self.heard = time.monotonic()
        self.first_token: float | None = None  # seconds from the start
        self.ended: float | None = None
        self.failure: RequestError | None = None

    def due(self, server_heard: float) -> float:
        """The time to end it unless something more is heard of it; `server_heard` is when its server last sent a token.

        Before its first token, a request may be waiting for a slot while the server works on others. Once all of the
        response is there, the rest of the reply is read only so that the connection can be used again.
        """
        if self.ended:
            return self.ended + LINGER_SECONDS
        waiting = self.options.stream and self.first_token is None
        heard = max(self.heard, server_heard) if waiting else self.heard
        return min(self.started + self.options.request_timeout, heard + self.options.silence)

    def end(self, failure: RequestError) -> None:
        """Break the connection off, which ends any wait for it, whatever it waits for."""
        self.failure = self.failure or failure
        if self.socket is not None:
            beneath = getattr(self.socket, "socket", self.socket)  # of TLS within the TLS of a proxy
            with contextlib.suppress(OSError):
                socket.socket.shutdown(beneath, socket.SHUT_RDWR)  # of TLS, too


class Watchdog:
    """Ends the requests that are overdue. A time-out on the socket would not: a byte now and then satisfies it."""

    def __init__(self) -> None:
        self.calls: set[Call] = set()
        self.heard: dict[str, float] = {}  # by server, when it last sent a token
        self.changed = threading.Condition()  # of a lock that its owner may take again
        self.next_look = math.inf
        self.thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to watch, unless that has begun."""
        with self.changed:
            if self.thread is None:
                thread = threading.Thread(target=self._watch, daemon=True)
                thread.start()
                self.thread = thread

    @contextlib.contextmanager
    def watching(self, call: Call) -> Iterator[None]:
        """Watch over `call` for the length of the block."""
        with self.changed:
            self.calls.add(call)
            self.start()
            if call.due(0) < self.next_look:
                self.changed.notify()
        try:
            yield
        finally:
            with self.changed:
                self.calls.discard(call)

    def complete(self, call: Call) -> None:
        """Note that all of a response has arrived."""
        with self.changed:
            call.ended = time.monotonic()
            self.changed.notify()

    def end_all(self) -> None:
        """End every request, overdue or not."""
        with self.changed:
            for call in self.calls:
                call.end(RequestError("stopped"))

    def _watch(self) -> None:
        with self.changed:
            while True:
                now = time.monotonic()
                self.next_look = math.inf
                for call in self.calls:
                    due = call.due(self.heard.get(call.server, 0.0))
                    if due > now:
                        self.next_look = min(self.next_look, due)
                    elif now >= call.started + call.options.request_timeout:
                        call.end(DeadlineError(f"no complete answer within {call.options.request_timeout:g} s"))
                    else:
                        call.end(RequestError(f"no sign of life for {call.options.silence:g} s"))
                self.changed.wait(None if self.next_look == math.inf else self.next_look - now)


WATCHDOG = Watchdog()  # for all the requests of the process

# A host that is switched off says nothing any more: the system is to ask it after a minute, and four times more.
KEEP_ALIVE = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)] + [
    (socket.IPPROTO_TCP, getattr(socket, name), value)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPALIVE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))
    if hasattr(socket, name)
]


class FinalReply(http.client.HTTPResponse):
    """The reply to a request, without the interim ones, such as 103, that may come before it.

    The standard library skips 100 alone: taken for the reply, any other would leave the real one to the next request.
    """

    def _read_status(self) -> tuple[str, int, str]:
        status: tuple[str, int, str] = super()._read_status()  # type: ignore[misc]
        for _ in range(MAX_INTERIM):
            if not 100 < status[1] < 200 or status[1] == http.HTTPStatus.SWITCHING_PROTOCOLS:
                return status
            http.client.parse_headers(self.fp)
            status = super()._read_status()  # type: ignore[misc]
        raise http.client.HTTPException("more interim replies than any server sends")


MAX_INTERIM = 100


def adapter(connecting: Callable[[socket.socket | None], None]) -> HTTPAdapter:
    """A transport of `requests` that tells of the socket of each connection once it is made, and of None before."""

    class Adapter(HTTPAdapter):
        def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
            pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
            kind = type(pool).ConnectionCls
            if pool.ConnectionCls is kind:

                class Connection(kind):  # type: ignore[misc, valid-type]
                    response_class = FinalReply

                    def connect(self) -> None:
                        connecting(None)
                        super().connect()
                        for option in KEEP_ALIVE:
                            self.sock.setsockopt(*option)
                        connecting(self.sock)

                pool.ConnectionCls = Connection
            return pool

    return Adapter(pool_maxsize=1)


def pieces(reply: requests.Response) -> Iterator[bytes]:
    """The body of a reply as it arrives: by chunks where the server sends such, else in reads of any size."""
    if reply.raw.chunked:
        yield from reply.raw.read_chunked(decode_content=True)
    while piece := reply.raw.read1(READ_SIZE, decode_content=True):
        yield piece


def root_cause(error: BaseException) -> str:
    """The innermost reason of an error, such as "Connection refused"."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def response_format(schema: dict[str, Any]) -> dict[str, Any]:
    """The part of a request that has the server hold the response to a JSON schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


CONNECT_SECONDS = 10.0
CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")  # where the environment may name some
LINGER_SECONDS = 1.0
PART_REFUSED = frozenset({400, 415, 422, 501})  # how servers refuse a part of a request that they do not know


def refuses_part(error: RequestError, schema: dict[str, Any] | None) -> bool:
    """Whether a server refuses a part of the request; some break over a `schema` that they cannot follow."""
    about_schema = re.search(r"schema|response_format|grammar", str(error), re.IGNORECASE)
    return error.status in PART_REFUSED or (error.status == 500 and schema is not None and about_schema is not None)


COMPLETIONS = "/chat/completions"


def api_prefixes(base_url: str) -> tuple[str, ...]:
    """What comes between a base URL and the paths of the API, in the order in which it is tried."""
    path = urlsplit(base_url).path
    if path.endswith(COMPLETIONS) or re.search(r"/v[0-9]+[a-z0-9]*$", path):
        return ("",)
    return ("/v1", "") if path else ("/v1",)


class Client:
    """Sends requests to one server, over a connection that it keeps; for use by one thread."""

    def __init__(self, base_url: str, api_key: str | None, options: Options) -> None:
        self.base_url = base_url
        self.root = base_url.removesuffix(COMPLETIONS)
        self.prefixes = api_prefixes(base_url)
        self.api_key = api_key
        self.options = options
        self.on_first_token: Callable[[], None] = lambda: None
        self.received = 0  # tokens, of all responses
        self.rejects_schema = False
        self.asks_usage = options.stream
        self.call = Call(base_url, options)
        self.socket: socket.socket | None = None
        self.fresh = False  # whether the connection was made for the present request
        self.prepared: dict[str, tuple[requests.PreparedRequest, Any]] = {}
        self.session = requests.Session()
        self.session.headers["Accept-Encoding"] = "identity"  # a compressed stream comes in lumps
        self.session.auth = self._authorize  # a callable, so that no .netrc entry replaces the header
        self.session.get_redirect_target = lambda _: None  # type: ignore # nor is the body of one read
        # A server on this machine is not behind the proxy that the environment may name.
        self.session.trust_env = urlsplit(base_url).hostname not in ("localhost", "127.0.0.1", "::1")
        self.session.verify = next(filter(None, map(os.environ.get, CERTIFICATES)), True)
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, adapter(self._connecting))

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.api_key:
            request.headers["Authorization"] = f"Bearer {self.api_key}"
        return request

    def _connecting(self, connection: socket.socket | None) -> None:
        self.socket = self.call.socket = connection
        self.fresh = True
        if self.call.failure:
            self.call.end(self.call.failure)

    def close(self) -> None:
        """Close its connections."""
        self.session.close()

    def redact(self, value: Any) -> Any:
        """`value` without the API key, which a server may send back in an error."""
        return redact(value, self.api_key)

    def models(self) -> Any:
        """What the API lists as its models; raises RequestError."""
        return self._within_api("/models", self.get)

    def _within_api(self, path: str, ask: Callable[[str], Reply]) -> Reply:
        """What `ask` gives for a `path` of the API, which is where it is found first; raises RequestError."""
        first: RequestError | None = None
        for prefix in self.prefixes:
            try:
                reply = ask(prefix + path)
                self.prefixes = (prefix,)
                return reply
            except RequestError as error:
                if error.status != http.HTTPStatus.NOT_FOUND:
                    self.prefixes = (prefix,) if error.status else self.prefixes
                    raise
                first = first or error
        tried = " and ".join(self.root + prefix + path for prefix in self.prefixes)
        raise RequestError(f"{first} (tried {tried})", http.HTTPStatus.NOT_FOUND)

    def get(self, path: str) -> Any:
        """The JSON that GET `path` gives; raises RequestError."""
        probing = replace(self.options, stall_timeout=PROBE_SECONDS, request_timeout=PROBE_SECONDS, stream=False)
        self.call, body = Call(self.base_url, probing), bytearray()

        def take(piece: bytes) -> bool:
            body.extend(piece)
            return len(body) > REPLY_LIMIT

        self._exchange("GET", path, None, take)
        text = self.redact(body.decode("utf-8-sig", "replace"))
        value = self.redact(parsed(text))
        if value is None:
            raise RequestError(f"the reply is not JSON: {one_line(text)!r}", 200)
        if isinstance(value, dict) and value.get("error"):
            raise failed(200, value, text)
        return value

    def complete(self, body: dict[str, Any], schema: dict[str, Any] | None = None) -> Response:
        """The server's Response to one chat completion request; raises RequestError, with the part that had arrived.

        The server is asked to hold the response to the JSON `schema`, but not any more once it has refused that.
        """
        held = None if self.rejects_schema else schema
        try:
            return self._within_api(COMPLETIONS, lambda path: self._complete(path, body, held))
        except RequestError as error:
            if not refuses_part(error, held) or isinstance(error, ContextOverflowError):
                raise
            if self.asks_usage and "stream_options" in str(error):
                self.asks_usage = False
                return self.complete(body, schema)
            if held is None:
                raise
        response = self._complete(
            self.prefixes[0] + COMPLETIONS, body, None
        )  # fails as well if the request has any other fault
        self.rejects_schema = True
        return response

    def _complete(self, path: str, body: dict[str, Any], schema: dict[str, Any] | None) -> Response:
        body = {**body, "response_format": response_format(schema)} if schema else body
        body = {**body, "stream": True} if self.options.stream else body
        body = {**body, "stream_options": {"include_usage": True}} if self.asks_usage else body
        self.call = Call(self.base_url, self.options)
        transcript = Transcript(self.options.loop_stop, self.redact)

        def take(piece: bytes) -> bool:
            tokens = transcript.tokens
            enough = not transcript.done and transcript.add(piece)
            self.received += transcript.tokens - tokens
            if transcript.tokens > tokens:  # neither a ping nor an empty piece, by which a server says that it waits
                self.call.heard = WATCHDOG.heard[self.base_url] = time.monotonic()
            if transcript.tokens and self.call.first_token is None:
                self.call.first_token = self.call.heard - self.call.started
                self.on_first_token()
            if transcript.done and not self.call.ended:
                WATCHDOG.complete(self.call)
            return enough

        try:
            self._exchange("POST", path, body, take)
            transcript.end()
            return transcript.response(self.call)
        except RequestError as error:
            error.partial = transcript.response(self.call, partial=True) if transcript.tokens else None
            raise

    def _exchange(self, method: str, path: str, body: dict[str, Any] | None, take: Callable[[bytes], bool]) -> None:
        """Send one request, and give the reply in pieces to `take` until that has enough; raises RequestError."""
        reply = None
        with WATCHDOG.watching(self.call):
            try:
                with self._send(method, path, body) as reply:
                    if reply.status_code != 200:
                        raise self._refusal(reply)
                    for piece in pieces(reply):
                        if take(piece):
                            break
            except requests.ConnectTimeout:
                raise RequestError(f"no connection within {CONNECT_SECONDS:g} s") from None
            except (requests.RequestException, HTTPError, OSError, ValueError) as error:  # not all of them are its own
                if not self.call.ended:
                    broken = "the reply broke off" if reply is not None else one_line(self.redact(root_cause(error)))
                    raise self.call.failure or RequestError(broken) from None
        if self.call.failure and not self.call.ended:  # without a stated length it looks like an end
            raise self.call.failure
        self.call.ended = self.call.ended or time.monotonic()

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> requests.Response:
        """Send one request; gives the head of the reply. A connection that went stale is replaced by a new one."""
        request, settings = self._prepared(method, path)
        if body is not None:
            request.body = json.dumps(body).encode()
            request.headers["Content-Length"] = str(len(request.body))
        while True:
            self.call.socket, self.fresh, sent = self.socket, False, time.monotonic()
            try:
                # A followed redirect turns a POST into a GET, and may carry the key elsewhere. The time-out is for
                # connecting; the watchdog sees to the rest.
                return self.session.send(request, allow_redirects=False, timeout=(CONNECT_SECONDS, None), **settings)
            except requests.ConnectionError as error:
                # A server closes idle connections, and may do so just as a request arrives: that is nobody's failure.
                stale = not (self.fresh or self.call.failure) and time.monotonic() - sent <= LINGER_SECONDS
                if classify(StaleError() if stale else error) != NOW:
                    raise

    def _prepared(self, method: str, path: str) -> tuple[requests.PreparedRequest, Any]:
        """A request without its body, and how it is to be sent: the same each time, so made once."""
        if path not in self.prepared:
            headers = {"Content-Type": "application/json"} if method == "POST" else None
            request = self.session.prepare_request(requests.Request(method, self.root + path, headers=headers))
            settings = self.session.merge_environment_settings(request.url, {}, True, None, None)
            self.prepared[path] = request, settings
        return self.prepared[path]

    def _refusal(self, reply: requests.Response) -> RequestError:
        """The error that a reply with another status than 200 is."""
        if reply.is_redirect:
            location = one_line(self.redact(reply.headers["Location"]))
            return RequestError(f"it redirects to {location}: give that instead", reply.status_code)
        data = bytearray()
        for piece in pieces(reply):
            data += piece
            if len(data) > REPLY_LIMIT:
                break
        text = self.redact(data.decode("utf-8-sig", "replace"))
        error = failed(reply.status_code, self.redact(parsed(text)), text)
        error.retry_after = seconds_to_wait(reply.headers.get("Retry-After"))
        return error


BACKOFF_SECONDS = 0.5  # doubles with each attempt; the wait is a random part of it, so that clients spread
BACKOFF_LIMIT = 30.0


def backoff(attempt: int) -> float:
    """Seconds to wait after failed attempt 1, 2, ...: exponential with full jitter."""
    return random.uniform(0, min(BACKOFF_LIMIT, BACKOFF_SECONDS * 2 ** min(attempt - 1, 10)))


def asker(url: str, api_key: str | None, options: Options) -> Ask:
    """A function that sends chat completion requests to one server, from any thread, retrying those that fail."""
    own, never = threading.local(), threading.Event()

    def ask(body: dict[str, Any], schema: dict[str, Any]) -> Response:
        if not hasattr(own, "client"):
            own.client = Client(url, api_key, options)
        client: Client = own.client
        attempt = 0
        while True:
            attempt += 1
            try:
                return client.complete(body, schema)
            except RequestError as error:
                if classify(error) != LATER or attempt > options.max_retries:
                    raise
                never.wait(min(max(backoff(attempt), error.retry_after), options.request_timeout))

    return ask


MAX_THREADS = 1000
PROBE_SECONDS = 10.0
OUT_OF_ORDER = frozenset({502, 503, 504})  # from a proxy without its server, or from a server that is loading
LOADING_POLL_SECONDS = 0.5


def preflight(
    urls: Sequence[str], options: Options, model: str | None, say: Callable[[str], None]
) -> tuple[list[Endpoint], dict[str, UnreachableError]]:
    """The endpoints as they describe themselves, and by URL the trouble with those that are not there yet.

    While none is there but one is loading its model, that is waited for, as long as the options have it. Raises
    EndpointError when none can be used, or one of them not at all.
    """
    patience = options.give_up_after
    deadline, announced = time.monotonic() + patience, False
    while True:
        endpoints: list[Endpoint] = []
        troubles: dict[str, UnreachableError] = {}
        for url, number in zip(urls, options.threads, strict=True):
            try:
                endpoints.append(look_at(url, number, options.api_key, model))
            except UnreachableError as trouble:
                endpoints.append(Endpoint(url, number or DEFAULT_THREADS))
                troubles[url] = trouble
        loading: list[UnreachableError] = [t for t in troubles.values() if isinstance(t, LoadingError)]
        if len(troubles) < len(urls):
            return endpoints, troubles
        if not loading or time.monotonic() > deadline:
            failed = loading or list(troubles.values())
            raise type(failed[0])("; ".join(map(str, failed)))
        if not announced:
            say(f"{loading[0]}; waiting for up to {patience:.0f} s")
        announced = True
        time.sleep(LOADING_POLL_SECONDS)


def look_at(
    url: str, threads: int | None, api_key: str | None, model: str | None, key_variable: str = "LLAMA_API_KEY"
) -> Endpoint:
    """The server at `url` as it describes itself now; raises EndpointError when it cannot be used.

    Without a number of threads it gets as many as it has slots. /health, /props and, with a `model`, /v1/models are
    optional: only a llama-server has all three.
    """
    with contextlib.closing(Client(url, api_key, Options())) as client:
        try:
            client.get("/health")
        except RequestError as error:
            if error.status is None:
                raise UnreachableError(f"{url} cannot be used: {error} (is the server running there?)") from None
            if error.status == http.HTTPStatus.SERVICE_UNAVAILABLE:
                raise LoadingError(f"{url} is loading its model") from None
            if error.status in OUT_OF_ORDER:
                raise UnreachableError(f"{url} cannot be used: {error}") from None
        listed = typed(typed(optional(client, client.models, None if model else key_variable), dict).get("data"), list)
        models = [entry for entry in listed if isinstance(entry, dict) and model_names(entry)]
        named = f"?model={quote(model, safe='')}" if model and len(models) > 1 else ""  # of a server with several
        props = typed(optional(client, lambda: client.get(f"/props{named}")), dict)
    slots = min(as_count(props.get("total_slots")) or DEFAULT_THREADS, MAX_THREADS)
    return Endpoint(url, threads or slots, models, props or None)


def optional(client: Client, ask: Callable[[], Any], key_variable: str | None = None) -> Any:
    """What `ask` gives, None where a server does not offer it.

    With the variable that holds the API key, a refusal of that, a redirect or silence is an EndpointError.
    """
    try:
        return ask()
    except RequestError as error:
        if key_variable and error.status in (401, 403):
            advice = f"give the right one in {key_variable}"
            raise EndpointError(f"{client.base_url} refuses the API key ({error}): {advice}") from None
        if key_variable and (error.status is None or 300 <= error.status < 400):
            kind = UnreachableError if error.status is None else EndpointError
            raise kind(f"{client.base_url} cannot be used: {error}") from None
        return None


def model_names(entry: dict[str, Any]) -> list[str]:
    """The names that a model of /v1/models answers to: its id, then its aliases."""
    names = [entry.get("id"), *typed(entry.get("aliases"), list)]
    return [name for name in names if isinstance(name, str) and name]


def choose_model(wanted: str | None, endpoints: list[Endpoint], option: str = "--model") -> str | None:
    """The model to ask for: `wanted`, else the one that every endpoint serves; None when none of them says.

    Raises EndpointError when there is a choice, or when an endpoint serves another model: llama-server answers
    with the model it has, whatever it is asked for.
    """
    for endpoint in endpoints:
        distinct = dict.fromkeys(model_names(entry)[0] for entry in endpoint.models)
        listed = ", ".join(map(one_line, list(distinct)[:8]))
        if wanted is None and len(distinct) > 1:
            raise EndpointError(f"{endpoint.url} serves several models: choose one with {option}: {listed}")
        if wanted is None and endpoint.models:
            wanted = model_names(endpoint.models[0])[0]
        if endpoint.models and not any(wanted in model_names(entry) for entry in endpoint.models):
            raise EndpointError(f"{endpoint.url} does not serve the model '{wanted}' but {listed}")
    return wanted


def serving(endpoint: Endpoint, model: str | None) -> Endpoint:
    """`endpoint` with its description of the model of the run, without those of others."""
    return replace(endpoint, models=[entry for entry in endpoint.models if model in model_names(entry)][:1])


def describe(endpoint: Endpoint) -> str:
    """One line on an endpoint: its model, threads, slots, context and build, as far as it tells."""
    props = endpoint.props or {}
    slots, context = as_count(props.get("total_slots")), context_size(endpoint)
    parts = [one_line(model_names(entry)[0]) for entry in endpoint.models[:1]] or ["model unknown"]
    parts += [f"{endpoint.threads} thread{'s' * (endpoint.threads > 1)}"]
    parts += [f"{slots} slots"] if slots else []
    parts += [f"{context} tokens of context per slot"] if context else []
    parts += [f"build {one_line(props['build_info'])}"] if props.get("build_info") else []
    return f"{endpoint.url}: {', '.join(parts)}"


def misfits(endpoint: Endpoint, max_tokens: int | None, prompt_tokens: int) -> list[str]:
    """Warnings, one line each, of demands of the run that the endpoint cannot meet."""
    slots, context = as_count((endpoint.props or {}).get("total_slots")), context_size(endpoint)
    warnings = []
    if slots and endpoint.threads > slots:
        warnings.append(f"{endpoint.threads - slots} of {endpoint.threads} threads will always wait for a slot")
    if context and prompt_tokens + (max_tokens or 0) >= context:
        answer = f" and --max-tokens {max_tokens}" if max_tokens else ""
        needs = f"prompts of about {prompt_tokens} tokens{answer}"
        warnings.append(f"{needs} do not fit its context of {context} per slot: raise -c or lower -np")
    return [f"WARNING: {endpoint.url}: {warning}" for warning in warnings]


def context_size(endpoint: Endpoint) -> int | None:
    """Tokens that one slot can hold, prompt included, where the server says."""
    return as_count(typed((endpoint.props or {}).get("default_generation_settings"), dict).get("n_ctx"))


CHARACTERS_PER_TOKEN = 3  # at least, of English with mathematics in it


def longest_prompt(state: EvalState) -> int:
    """About how many tokens the longest prompt of a run has."""
    question = max(len(task.question) for task in state.tasks)
    return (question + len(state.prompt.template) + len(state.prompt.system or "")) // CHARACTERS_PER_TOKEN


# ---- graders --------------------------------------------------------------------------------------------


class Grader(ABC):
    """Turns a task and its response into a Grade; `threads` of them may ask it to at the same time.

    `settings` determine its verdicts, and are kept with the run.
    """

    name: str
    needs: ClassVar[dict[str, str]] = {}  # the options that it must be given, each with a description
    instant = False  # whether a run that is stopped can wait for it
    settings: dict[str, Any]

    def __init__(self, options: Options) -> None:
        self.threads = options.grader_threads

    @abstractmethod
    def grade(self, task: Task, response: Response) -> Grade:
        """The verdict on `response`; "ungraded" with the reason as `explanation` where the grader itself fails."""

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """End at once everything that the grader has running outside of this process."""


class RegexGrader(Grader):
    """Grades by the text rules above: the answer found must be the expected one."""

    name = "regex"
    instant = True

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.threads = 1
        self.settings = {"name": self.name}

    def grade(self, task: Task, response: Response) -> Grade:
        """Correct, incorrect, or truncated / no_answer where the response holds no answer."""
        kind = kind_of(task.expected)
        found = find_answer(response.content, response.finish_reason, kind)
        return grade_found(found, task, response, self.name)


def grade_found(found: Found, task: Task, response: Response, grader: str) -> Grade:
    """The Grade of an answer found in a response: correct when it stands for the expected one."""
    answer = kind_of(task.expected).parse(found.answer) if found.answer is not None else None
    if found.answer is None:
        verdict = "truncated" if response.finish_reason in CUT_OFF else "no_answer"
        found = replace(found, method="loop") if response.finish_reason == LOOP else found
    else:
        verdict = "correct" if answer == task.expected else "incorrect"
    return Grade(
        verdict=verdict,
        answer=answer or found.answer,
        method=found.method,
        grader=grader,
        confident=not found.doubt,
        explanation=METHODS[found.method],
        review=review_note(verdict, found, task, response),
    )


def review_note(verdict: str, found: Found, task: Task, response: Response) -> str | None:
    """Why a person should look at a verdict, if there is a reason to."""
    if verdict != "correct" and stands_in(task.expected, response.content):
        return "the expected number stands in the response, but was not found to be its answer"
    if verdict in ("no_answer", "truncated"):
        return METHODS[found.method]
    if found.answer is not None and kind_of(task.expected).parse(found.answer) is None:
        return f"the answer that was found is no {kind_of(task.expected).name}"
    return (found.doubt or None) if found.answer is not None else None


def stands_in(number: str, content: str) -> bool:
    """Whether an integer equal to `number` stands in the answering part of a response."""
    numbers = NUMBER.findall(ascii_text(final_part(content) or ""))
    return any("." not in written and canonical(written) == number for written in numbers)


# The judge is shown no expected answer, so that it can only read the response, not wish it right.
JUDGE_PROMPT = """\
Below are a question and a response to it. Which answer does the response give as its final one?

<question>
{question}
</question>

<response>
{response}
</response>

Do not solve the question, and do not correct the response: report its answer even if you think that it is wrong. \
Reply with nothing but this JSON object: {"answer": "..."}, with {kind} in the place of the dots. Where the \
response gives no final answer, or leaves several to choose from, reply with {"answer": null}."""
JUDGED_LENGTH = 20_000  # characters, the last ones, that a judge is shown of a response: answers stand at the end
JUDGE_SCHEMA = object_schema(answer={"type": ["string", "null"]})
UNSEEN = "the answer that the judge read does not stand in the response in digits"
NO_ANSWER = frozenset({"", "null", "none", "no answer", "no final answer", "not given", "n/a"})
Ask = Callable[[dict[str, Any], dict[str, Any]], Response]  # sends a request with a JSON schema; raises RequestError


class JudgeGrader(Grader):
    """Has a model read the answer out of each response, and compares that; the model never sees the expected one."""

    name = "llm"
    needs: ClassVar = {"judge_endpoint": "--judge-endpoint URL: the server that judges"}

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.rule = RegexGrader(options)
        self.ask = asker(
            str(options.judge_endpoint),
            options.judge_api_key,
            replace(
                options,
                stall_timeout=options.grader_timeout,
                request_timeout=options.grader_timeout,
                max_retries=options.grader_retries,
                loop_stop=True,
            ),
        )
        model = encodable(options.judge_model) if options.judge_model else None
        self.settings = {"name": self.name, "judge_model": model, "judge_prompt": JUDGE_PROMPT}

    def grade(self, task: Task, response: Response) -> Grade:
        """The verdict on the answer that the judge read; the grade by rule where it has nothing to read."""
        return self.judged(task, response, self.rule.grade(task, response))

    def judged(self, task: Task, response: Response, rule: Grade) -> Grade:
        """The judge's Grade, with the one by `rule` beside it."""
        text = answering_part(response)
        if not text:
            return rule
        kind = kind_of(task.expected)
        prompt = fill(JUDGE_PROMPT, question=task.question, response=text, kind=kind.judged)
        try:
            reply = self.ask(judge_request(prompt, self.settings["judge_model"]), JUDGE_SCHEMA)
        except RequestError as error:
            return ungraded(JudgeGrader.name, f"the judge gave no reply: {error}", prompt=prompt, rule=rule)
        said: dict[str, Any] = {"prompt": prompt, "reply": reply.content, "rule": rule}
        found = read_judgement(reply, kind)
        if found is None:
            reason = f"the judge's reply holds no answer to read: {one_line(reply.content)!r}"
            return ungraded(JudgeGrader.name, reason, **said)
        grade = replace(grade_found(found, task, response, JudgeGrader.name), **said)
        if found.answer is None or not kind.numeric or stands_in(str(grade.answer), text):
            return grade
        return replace(grade, confident=False, review=UNSEEN)


class CascadeGrader(JudgeGrader):
    """Grades by rule, and asks the judge only about responses in which the rule found no confident answer."""

    name = "cascade"

    def grade(self, task: Task, response: Response) -> Grade:
        """The grade by rule if that is sure of it, else the judge's."""
        rule = self.rule.grade(task, response)
        return rule if rule.confident else self.judged(task, response, rule)


def ungraded(grader: str, reason: str, **more: Any) -> Grade:
    """The Grade of a response on which the grader failed to give a verdict."""
    return Grade("ungraded", None, "none", grader, confident=False, explanation=reason, **more)


def answering_part(response: Response) -> str:
    """The part of a response that a judge is shown: without its reasoning, and the word at which it was cut off."""
    text = (final_part(response.content) or "").strip()
    if response.finish_reason in CUT_OFF:
        text = text[: -len(text.split()[-1])].rstrip() if text else ""
    return text if len(text) <= JUDGED_LENGTH else "[...] " + text[-JUDGED_LENGTH:]


JUDGE_TOKENS = 8192  # that a judge may think and say; the answer itself takes a few


def judge_request(prompt: str, model: str | None) -> dict[str, Any]:
    """The chat completion request that puts `prompt` to a judge."""
    body = {"messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": JUDGE_TOKENS}
    return {**({"model": model} if model else {}), **body}


def read_judgement(reply: Response, kind: Kind) -> Found | None:
    """The answer in a judge's reply, {"answer": ...} or bare, or its word that there is none; else None."""
    text = (final_part(reply.content) or "").strip()
    given = [answer for *_, method, answer in enclosed(text, whole=True, placeholders=True) if method == "json"]
    answer = given[-1] if given else "" if reply.finish_reason in CUT_OFF else text
    if given and answer.lower().removesuffix(".") in NO_ANSWER:
        return Found(None, "judge found none")
    if is_placeholder(answer):
        return None
    # Words are no answer: neither "unknown", nor "twelve", which would count as a wrong one.
    readable = kind.parse(answer) is not None or (given and kind.value.search(answer))
    return unless_hedged(answer, "judge", kind) if readable else None


SCRIPT_NAME = re.compile(r"[^-{].*\.(?:py|sh|js|ts|rb|pl|lua|php|R)")
DRAIN_SECONDS = 1.0  # in which a command that was killed has ended
OUTPUT_LENGTH = 100_000  # bytes, the last ones, that are kept of the output of a command
OUTPUT_LIMIT = 1 << 26  # bytes; a command that prints more is ended
OUTPUT_LOOK_SECONDS = 0.1  # between two looks at how much it has printed
PYTHON_CRASH = "Traceback (most recent call last):"


class CommandGrader(Grader):
    """Has a command of the user's grade each response: it gets the task as JSON and answers by its exit status."""

    name = "cli"
    needs: ClassVar = {"grader_cmd": "--grader-cmd COMMAND: what grades a response"}

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.rule = RegexGrader(options)
        self.secrets = (options.api_key, options.judge_api_key)
        command = options.grader_cmd or ""
        self.words = parse_command(command)
        self.timeout = options.grader_timeout
        self.settings = {"name": self.name, "command": redact(encodable(command), *self.secrets)}
        self.lock = threading.Lock()
        self.closed = False
        self.running: set[subprocess.Popen[bytes]] = set()

    def grade(self, task: Task, response: Response) -> Grade:
        """Correct for exit status 0, incorrect for 1, ungraded for everything else."""
        rule = self.rule.grade(task, response)
        if response.finish_reason == "length" and response.completion_tokens == 0:
            return rule  # the prompt did not fit the context: there is nothing to grade
        given = (rule.answer or "")[:MAX_ANSWER]  # an argument can only be so long
        words = [fill(word, answer=given, expected=task.expected) for word in self.words]
        try:
            status, output, errors = self._run(words, command_input(task, response, rule.answer))
        except (OSError, ValueError) as error:  # ValueError: an answer with a null byte cannot be an argument
            return ungraded(self.name, f"the command cannot be started: {one_line(error)}", rule=rule)
        said = command_output(output)
        failure = command_failure(status, said, errors)
        reply = output[-MAX_ANSWER:] or None
        if failure:
            return ungraded(self.name, failure, reply=reply, rule=rule)
        answer = said.get("answer", rule.answer)
        return Grade(
            verdict="incorrect" if status else "correct",
            answer=answer if answer is None or isinstance(answer, str) else json.dumps(answer),
            method="command",
            grader=self.name,
            explanation=one_line(said.get("explanation") or METHODS["command"], 500),
            reply=reply,
            rule=rule,
        )

    def _run(self, words: list[str], given: str) -> tuple[int | str, str, str]:
        """The exit status, or why it was ended, and the ends of both outputs of one run of the command."""
        with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            stdin.write(given.encode())
            stdin.seek(0)
            process = self._start(words, stdin, stdout, stderr)
            status = wait_for(process, self.timeout, stdout, stderr)
            end_group(process)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(DRAIN_SECONDS)
            with self.lock:
                self.running.discard(process)
            output, errors = (redact(end_of(file), *self.secrets) for file in (stdout, stderr))
        return status, output, errors

    def _start(self, words: list[str], *streams: IO[bytes]) -> subprocess.Popen[bytes]:
        """The command, running in a process group of its own, so that the processes it starts can be ended with it."""
        with self.lock:
            if self.closed:
                raise OSError("the run was stopped")
            stdin, stdout, stderr = streams
            harmless = {name: value for name, value in os.environ.items() if not SECRET_VARIABLE.search(name)}
            process = subprocess.Popen(
                words, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True, env=harmless
            )
            self.running.add(process)
        return process

    def close(self) -> None:
        """End the commands that are still running, and start no more."""
        with self.lock:
            self.closed = True
            for process in self.running:
                end_group(process)


def wait_for(process: subprocess.Popen[bytes], timeout: float, *outputs: IO[bytes]) -> int | str:
    """The exit status of a command, or the reason why it must be ended: too long, or too much printed."""
    until = time.monotonic() + timeout
    while (left := until - time.monotonic()) > 0:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(min(left, OUTPUT_LOOK_SECONDS))
        if any(os.fstat(output.fileno()).st_size > OUTPUT_LIMIT for output in outputs):
            return f"the command printed more than {OUTPUT_LIMIT >> 20} MiB"
    return f"the command took longer than {timeout:g} s"


def end_of(file: IO[bytes]) -> str:
    """The end of the output that a command has printed into a file."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - OUTPUT_LENGTH))
    return file.read().decode("utf-8", "replace")


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a command and the processes it has started, as far as they are still running."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


PLACED = re.compile(r"\{(?:answer|expected)\}")
CODE_OPTION = re.compile(r"-[a-z]*[ce]|--eval|--command")  # of interpreters, before a program
SECRET_VARIABLE = re.compile(r"API_?KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)


def parse_command(command: str) -> list[str]:
    """The words of a command line, split as a shell would; raises UsageError, or GraderError when it cannot run."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--grader-cmd cannot be split into words: {error}") from None
    if not words:
        raise UsageError("--grader-cmd is empty: give the command that grades a response")
    if any(PLACED.search(word) and not PLACED.fullmatch(word) for word in words) or any(
        PLACED.fullmatch(word) and CODE_OPTION.fullmatch(before) for before, word in itertools.pairwise(words)
    ):
        advice = (
            "a shell would run what the model wrote: give it as a whole argument, or read the JSON on standard input"
        )
        raise UsageError(f"--grader-cmd has a placeholder within an argument, or as a program; {advice}")
    program = words[0]
    if shutil.which(program) is None:
        hint = f"; write ./{program}" if os.path.isfile(program) and os.sep not in program else ""
        hint = f"; chmod +x {program}" if os.path.isfile(program) and os.sep in program else hint
        raise GraderError(f"the grader command '{program}' cannot be run: there is no such executable{hint}")
    if len(words) > 1 and SCRIPT_NAME.fullmatch(words[1]) and not os.path.isfile(words[1]):
        raise GraderError(f"the grader command cannot be run: there is no script '{words[1]}'")
    if os.sep in program and is_bare_script(program):
        raise GraderError(
            f"the grader command '{program}' cannot be run: its first line must name an interpreter, as #!"
        )
    return words


def is_bare_script(path: str) -> bool:
    """Whether an executable file is text without the line that names its interpreter."""
    with open(path, "rb") as file:
        start = file.read(100)
    return not start.startswith(b"#!") and b"\0" not in start and start.isascii()


def command_input(task: Task, response: Response, answer: str | None) -> str:
    """The standard input of a grader command: one JSON object, in ASCII."""
    return json.dumps(
        {
            "task_id": task.id,
            "dataset": task.id.removesuffix(f"/{task.problem}#{task.sample}"),
            "question": task.question,
            "expected": task.expected,
            "answer": answer,
            "response": response.content,
            "reasoning": response.reasoning,
            "finish_reason": response.finish_reason,
        }
    )


def command_output(output: str) -> dict[str, Any]:
    """The JSON object that a grader command has printed, as its whole output or last line; else an empty one."""
    for text in (output, output.rstrip().rpartition("\n")[2]):
        with contextlib.suppress(ValueError, RecursionError):
            return typed(json.loads(text), dict)
    return {}


def command_failure(status: int | str, said: dict[str, Any], errors: str) -> str | None:
    """Why one run of a grader command is no verdict, with the end of its stderr; None if it is one."""
    if isinstance(status, str):
        reason = status
    elif status < 0:
        reason = f"the command was ended by signal {-status}"
    elif status > 1:
        reason = f"the command ended with status {status}"
    elif status == 1 and PYTHON_CRASH in errors and "correct" not in said:
        reason = "the command crashed"  # Python's exit status for that is 1, too
    elif said.get("correct", not status) is not (not status):
        reason = f'the command contradicts itself: status {status}, but "correct": {json.dumps(said["correct"])}'
    else:
        return None
    return f"{reason}: {one_line(errors.strip()[-150:])}" if errors.strip() else reason


GRADERS: dict[str, type[Grader]] = {
    kind.name: kind for kind in (RegexGrader, JudgeGrader, CommandGrader, CascadeGrader)
}


# ---- statistics -----------------------------------------------------------------------------------------

# The reasons behind the intervals are in Miller 2024, "Adding Error Bars to Evals", arXiv 2411.00640, and in Bowyer et
# al. 2025, arXiv 2503.01747: samples of one problem are not independent, and few problems are too few for the normal
# approximation.
COVERAGE = 0.95
QUANTILE = (1 + COVERAGE) / 2  # of a distribution, at the upper end of an interval that covers so much


class Tally(NamedTuple):
    """The number of samples of one problem with a verdict, and of the correct ones among them."""

    correct: int
    scored: int


@dataclass(frozen=True)
class Interval:
    """The 95 % confidence interval of a proportion, the method behind it, and its effective number of trials."""

    low: float
    high: float
    method: str
    effective: float | None = None


def normal_quantile(probability: float) -> float:
    """The value below which a standard normal variable lies with this probability, between 0 and 1."""
    return NormalDist().inv_cdf(probability)


@functools.cache
def t_quantile(probability: float, freedom: int) -> float:
    """The value below which Student's t with `freedom` >= 1 degrees lies with this probability, between 0 and 1.

    Newton's method from the normal quantile, which lies nearer to 0: where t > 0 the distribution function is
    concave, so that each step ends short of the solution and nearer to it.
    """
    if probability < 0.5:
        return -t_quantile(1 - probability, freedom)
    log_peak = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
    t, step = normal_quantile(probability), math.inf
    while step > 1e-13 * t:
        density = math.exp(log_peak - (freedom + 1) / 2 * math.log1p(t * t / freedom))
        step = (probability - 0.5 - t_probability(t, freedom) / 2) / density
        t += step
    return t


def t_probability(t: float, freedom: int) -> float:
    """The probability that Student's t lies between -t and t (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    squared = math.cos(angle) ** 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for number in range(2 + odd, freedom + 1, 2):
        total += term
        term *= squared * (number - 1) / number
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def wilson_interval(proportion: float, n: float, quantile: float | None = None) -> tuple[float, float]:
    """The score interval of a proportion seen in `n` trials, at 95 % unless at another quantile.

    Wilson 1927, JASA 22:209. `n` need not be whole; it is where the trials are not independent.
    """
    z = normal_quantile(QUANTILE) if quantile is None else quantile
    denominator = 1 + z**2 / n
    centre = (proportion + z**2 / (2 * n)) / denominator
    half = z / denominator * math.sqrt(proportion * (1 - proportion) / n + z**2 / (4 * n * n))
    return max(0.0, min(proportion, centre - half)), min(1.0, max(proportion, centre + half))


PSEUDO = 0.2  # problems that are taken to be all right beside those of a run, and as many all wrong


def new_problems_interval(tallies: Sequence[Tally]) -> Interval:
    """The interval of the accuracy on new problems of the kind; `tallies` of the problems with a verdict, at least one.

    Wilson's interval at an effective sample size, with Student's t for the number of problems: samples of a problem are
    not independent. The variance between problems is estimated as if PSEUDO more of them had been all right and as many
    all wrong, because in a run with hardly any mistake the spread is seen too seldom; the centre stays where it is. So
    the interval covers what it says near 100 %, too (benchmarks/coverage.py). It is never narrower than the one on
    these problems. With one sample of each problem it is plain Wilson.
    """
    n, scored = len(tallies), sum(tally.scored for tally in tallies)
    p = sum(tally.correct for tally in tallies) / scored
    problems = f"{n} problem{'s' * (n > 1)}"
    if n in (scored, 1):
        return Interval(*wilson_interval(p, n), f"Wilson, n = {problems}")
    scores = [tally.correct / tally.scored for tally in tallies]
    number = n + 2 * PSEUDO
    mean = (math.fsum(scores) + PSEUDO) / number
    spread = math.fsum((score - mean) ** 2 for score in scores) + PSEUDO * ((1 - mean) ** 2 + mean**2)
    # With unequal numbers of samples the accuracy leans on a few: Kish's factor, 1 for equal ones.
    uneven = n * sum(tally.scored**2 for tally in tallies) / scored**2
    effective = n * mean * (1 - mean) * number / spread / uneven
    again = these_problems_interval(tallies)
    effective = min(max(effective, n / uneven), scored, again.effective if again and again.effective else scored)
    freedom = min(n - 1, scored - n)
    method = f"clustered by problem: Wilson, n_eff = {effective:.1f}, Student's t, df = {freedom}"
    return Interval(*wilson_interval(p, effective, t_quantile(QUANTILE, freedom)), method, effective)


def these_problems_interval(tallies: Sequence[Tally]) -> Interval | None:
    """The interval of the accuracy of new samples of the same problems; None where no problem has two samples.

    Wilson's interval at the effective sample size p (1 - p) / SE^2, with Student's t. SE comes from the variance within
    the problems, whose unbiased estimate is s (1 - s) / (m - 1) for a score s of m samples; those with one sample are
    taken to vary like the others. It is no less than that of one sample in all: a problem that came out the same
    each time may still come out another way.
    """
    scored = sum(tally.scored for tally in tallies)
    freedom = sum(tally.scored - 1 for tally in tallies)
    if not freedom:
        return None
    p = sum(tally.correct for tally in tallies) / scored
    sums = [(t.scored, t.correct * (t.scored - t.correct) / (t.scored - 1)) for t in tallies if t.scored > 1]
    within = sum(total for _, total in sums) * scored / sum(samples for samples, _ in sums)
    variance = max(within, 1.0) / scored**2
    effective = p * (1 - p) / variance if 0 < p < 1 else float(scored)
    method = f"within problems: Wilson, n_eff = {effective:.1f}, Student's t, df = {freedom}"
    return Interval(*wilson_interval(p, effective, t_quantile(QUANTILE, freedom)), method, effective)


def pass_at(tallies: Sequence[Tally], j: int) -> tuple[float, int] | None:
    """The mean chance that one of `j` samples is correct, and the number of problems with so many, or None.

    1 - C(m - c, j) / C(m, j) for c correct of m samples is its unbiased estimate (Chen et al. 2021, arXiv 2107.03374).
    """
    chances = [1 - math.comb(t.scored - t.correct, j) / math.comb(t.scored, j) for t in tallies if t.scored >= j]
    return (math.fsum(chances) / len(chances), len(chances)) if chances else None


def majority_score(votes: Iterable[tuple[str | None, bool]]) -> float | None:
    """The share of the most frequent answer's samples that are correct; of several most frequent ones their mean.

    `votes` are answer and verdict of the samples of one problem. A sample without an answer has no vote, but None is
    returned where one was found correct nevertheless: its vote is unknown.
    """
    verdicts: dict[str, list[bool]] = {}
    for answer, correct in votes:
        if answer is not None:
            verdicts.setdefault(answer, []).append(correct)
        elif correct:
            return None
    most = max(map(len, verdicts.values()), default=0)
    top = [sum(given) / most for given in verdicts.values() if len(given) == most]
    return sum(top) / len(top) if top else 0.0


def powers_up_to(k: int) -> list[int]:
    """1, 2, 4, ..., and `k` itself."""
    return [*(2**power for power in range(k.bit_length()) if 2**power < k), k]


TEXTS = ("question", "expected", "order")  # of a problem: in the file they stand in its first task


def problem_scores(state: EvalState) -> list[dict[str, Any]]:
    """Each problem of a run with its score, Wilson's interval of that, and the answers of its samples.

    `score` and `interval`, of the samples with a verdict, and `majority` are None where there is none yet.
    """
    samples: dict[str, list[Task]] = {}
    for task in state.tasks:
        samples.setdefault(task.problem, []).append(task)
    table = []
    for problem, tasks in samples.items():
        results = [state.task_states[task.id] for task in tasks]
        scored = [result for result in results if result.status in SCORED]
        tally = Tally(sum(result.status == "correct" for result in scored), len(scored))
        votes = [(result.grade.answer if result.grade else None, result.status == "correct") for result in scored]
        answers = Counter(answer for answer, _ in votes if answer is not None)
        entry: dict[str, Any] = {"problem": problem, "samples": len(results), **tally._asdict()}
        entry["score"] = tally.correct / tally.scored if scored else None
        entry["interval"] = wilson_interval(entry["score"], tally.scored) if scored else None
        entry["answers"] = answers.most_common()
        entry["majority"] = majority_score(votes) if scored else None
        table.append(entry)
    return table


def sample_scores(table: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures over several samples of each problem, from the `problem_scores` of a run.

    Only problems with a verdict count, those with at least j samples in pass@j. `maj_at_k` is None where an answer
    is not known.
    """
    k = max(entry["samples"] for entry in table)
    scored = [entry for entry in table if entry["scored"]]
    tallies = [Tally(entry["correct"], entry["scored"]) for entry in scored]
    passes = {j: pass_at(tallies, j) for j in powers_up_to(k)}
    majorities = [entry["majority"] for entry in scored]
    known = majorities and None not in majorities
    return {
        "k": k,
        "problems": len(table),
        "problems_short_of_k": sum(entry["scored"] < k for entry in table),
        "avg_at_k": math.fsum(entry["score"] for entry in scored) / len(scored) if scored else None,
        "pass_at": [{"j": j, "score": known[0], "problems": known[1]} for j, known in passes.items() if known],
        "maj_at_k": math.fsum(majorities) / len(majorities) if known else None,
    }


def summarize(state: EvalState, table: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """The numbers of a run, the same for console, file and report; proportions from 0 to 1.

    `table` are its `problem_scores`, for those who have them already.
    """
    counts = Counter(state.task_states[task.id].status for task in state.tasks)
    table = problem_scores(state) if table is None else table
    tallies = [Tally(entry["correct"], entry["scored"]) for entry in table if entry["scored"]]
    scored = sum(tally.scored for tally in tallies)
    total, missing = len(state.tasks), len(state.tasks) - scored
    responses = [s.response for s in state.task_states.values() if s.response]
    grades = [s.grade for s in state.task_states.values() if s.grade and s.status in SCORED]
    doubly = [grade for grade in grades if grade.rule]
    generated = [r.completion_tokens for r in responses if r.completion_tokens is not None]
    return {
        "counts": {status: counts[status] for status in STATUSES},
        "tasks": total,
        "scored": scored,
        "accuracy": counts["correct"] / scored if scored else None,
        "intervals": {
            "on_new_problems": new_problems_interval(tallies) if scored else None,
            "on_these_problems": these_problems_interval(tallies) if scored else None,
        },
        "range": (counts["correct"] / total, (counts["correct"] + missing) / total),
        **sample_scores(table),
        "graded_by": dict(Counter(grade.grader for grade in grades)),
        "graded_by_rule_too": len(doubly),
        "same_verdict_by_rule": sum(grade.verdict == grade.rule.verdict for grade in doubly if grade.rule),
        "responses": len(responses),
        "responses_with_token_counts": len(generated),
        "prompt_tokens": sum(r.prompt_tokens or 0 for r in responses),
        "completion_tokens": sum(generated),
    }


def review_list(state: EvalState) -> list[dict[str, str]]:
    """The tasks that a person should look at, each with the reason."""
    grades = ((task.id, state.task_states[task.id].grade) for task in state.tasks)
    reasons = (
        (name, grade.explanation if grade.verdict == "ungraded" else grade.review) for name, grade in grades if grade
    )
    return [{"task": name, "reason": reason} for name, reason in reasons if reason]


# ---- state ----------------------------------------------------------------------------------------------

GRADER_SETTINGS = frozenset({"grader", "judge model", "judge prompt", "command"})
DUMP_SHARE = 0.02  # of the run's time at the most goes into writing the state


def new_run(dataset: Dataset, prompt: Prompt, sampling: Sampling, samples: int, part: slice = slice(None)) -> EvalState:
    """A run of a part of the problems, all pending, breadth first: a run that is stopped has still asked evenly."""
    tasks = [
        Task(f"{dataset.name}/{p.id}#{sample}", p.id, sample, p.question, p.expected, p.order)
        for sample in range(samples)
        for p in dataset.problems[part]
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
    """`new` with the results of `previous`; more samples or problems are fine, other settings a StateError."""
    check_settings(previous, new, "cannot resume with other settings", "--regrade grades what is there in another way")
    dropped = len(previous.task_states.keys() - new.task_states.keys())
    if dropped:
        advice = "give its --samples, --limit and --shard"
        raise StateError(f"cannot resume with less: {dropped} tasks of the run would be left out; {advice}")
    new.task_states.update(previous.task_states)
    new.id, new.created = previous.id, previous.created
    new.model, new.endpoints, new.until = previous.model, previous.endpoints, previous.until
    new.grader = merged(previous.grader, new.grader)
    return new


def merged(previous: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The settings of a grader, with those of before where none are asked for now."""
    return {name: previous.get(name) if value is None else value for name, value in new.items()}


def check_settings(previous: EvalState, new: EvalState, complaint: str, advice: str) -> None:
    """Raise StateError, which lists the differences, unless both runs ask for the same results.

    It begins with `complaint`; `advice` is for where their graders differ.
    """
    before, now = settings(previous), settings(new)
    scored = [result for result in previous.task_states.values() if result.status in SCORED]
    judged = any(result.grade and result.grade.prompt for result in scored)
    known = {"judge model"} if before.get("judge model") is None and not judged else set()  # it was out of reach
    known |= {name for name in ("model", "judge model") if now.get(name) is None}  # the one that is served will do
    changed = [name for name, old in before.items() if old != now.get(name) and name not in known]
    if changed:
        differences = (f"{n} was {brief(before[n])}, is now {brief(now.get(n))}" for n in changed)
        hint = f"; {advice}" if GRADER_SETTINGS & set(changed) else ""
        raise StateError(f"{complaint}: {'; '.join(differences)}{hint}")


def brief(value: Any) -> str:
    """A setting as a few words of JSON."""
    return one_line(json.dumps(value), 60)


def progress(result: TaskState) -> int:
    """The stage of a task, as a number: not asked, asked in vain, answered, graded."""
    return ("pending", "error", "ungraded").index(result.status) if result.status not in SCORED else 3


def join(whole: EvalState, part: EvalState, path: Path) -> None:
    """Add the tasks of `part` to `whole`; raises StateError when both have a verdict on the same one."""
    known = {task.id: task for task in whole.tasks}
    for task in part.tasks:
        result = part.task_states[task.id]
        before = whole.task_states.get(task.id, TaskState())
        if before.status in SCORED and result.status in SCORED and before != result:
            raise StateError(f"{path} has another answer to {task.id}: parts of a run must not overlap")
        if task.id not in known:
            whole.tasks.append(task)
        if before.status not in SCORED and progress(result) >= progress(before):
            whole.task_states[task.id] = result
    whole.grader = merged(part.grader, whole.grader)
    urls = {endpoint.url for endpoint in whole.endpoints}
    whole.endpoints += [endpoint for endpoint in part.endpoints if endpoint.url not in urls]


def settings(state: EvalState) -> dict[str, Any]:
    """The settings that determine the results of a run, by the names that a person knows."""
    return {
        "dataset": state.dataset["name"],
        "dataset rows (sha256)": state.dataset["sha256"],
        "model": state.model,
        **{f"prompt {name}": value for name, value in vars(state.prompt).items()},
        **vars(state.sampling),
        "loop stop": state.loop_stop,
        **{"grader" if name == "name" else name.replace("_", " "): value for name, value in state.grader.items()},
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


def load_dump(path: Path) -> tuple[EvalState, str | None]:
    """The EvalState in the file at `path`, and the name of its journal; raises StateError for none, or a newer one."""
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
        settings(state), summarize(state)  # which touch the parts that a file made by hand may have wrong
        return state, data.get("journal")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StateError(f"{path} is not a state of llama-eval: {type(error).__name__} {error}") from None


@functools.cache
def reader(kind: Any) -> Callable[[Any], Any]:
    """A function that reads a value of JSON as a `kind`, which is a dataclass or a type that one of its fields has.

    A dataclass takes the fields that it knows, and leaves missing ones to their defaults: so files of older and newer
    versions can be read. The function raises TypeError for a value of another type, or a missing field without default.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return lambda value: value
    if type(None) in arguments:
        read = reader(next(argument for argument in arguments if argument is not type(None)))
        return lambda value: None if value is None else read(value)
    if origin is list:
        read = reader(arguments[0])
        return lambda value: [read(entry) for entry in checked(value, list)]
    if origin is dict:
        read = reader(arguments[1])
        return lambda value: {name: read(entry) for name, entry in checked(value, dict).items()}
    if is_dataclass(kind):
        return functools.partial(read_record, kind, get_type_hints(kind))
    return lambda value: checked(value, kind)


def read_record(kind: Any, hints: dict[str, Any], value: Any) -> Any:
    """A dataclass from a JSON object; `hints` are the types of its fields."""
    given, name = {}, ""
    checked(value, dict)
    try:
        for name in hints.keys() & value.keys():
            given[name] = reader(hints[name])(value[name])
    except TypeError as error:
        raise TypeError(f"its {name}: {error}") from None
    try:
        return kind(**given)
    except TypeError as error:  # "... missing 1 required positional argument: 'id'"
        raise TypeError(f"it lacks {str(error).partition(': ')[2]}") from None


def checked(value: Any, kind: type) -> Any:
    """`value`, if it is of this `kind`; raises TypeError."""
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{brief(value)} is no {kind.__name__}")
    return value


def state_from_json(data: dict[str, Any]) -> EvalState:
    """The EvalState that `state_to_json` wrote; raises KeyError, TypeError or ValueError on anything else."""
    texts: dict[str, dict[str, Any]] = {}
    for entry in [*data.get("problems", ()), *data["tasks"]]:
        texts.setdefault(entry["problem"], {}).update((name, entry[name]) for name in TEXTS if name in entry)
    tasks = [{**texts[task["problem"]], **task} for task in data["tasks"]]
    state: EvalState = reader(EvalState)({**data, "tasks": tasks})
    if not tasks:
        raise ValueError("it has no tasks")
    checked(state.grader["name"], str)
    state.task_states = {task.id: known(state.task_states[task.id]) for task in state.tasks}
    return state


def known(result: TaskState) -> TaskState:
    """`result`, if its status is one of STATUSES; raises ValueError."""
    if result.status not in STATUSES:
        raise ValueError(f"has the unknown status {result.status!r}")
    return result


def state_to_json(state: EvalState, journal: str) -> Iterator[str]:
    """The pieces of the state file: a header to read, then one line a problem, a task and a task state."""
    table = problem_scores(state)
    header = {name: value for name, value in vars(state).items() if name not in ("tasks", "task_states")}
    header = {"schema_version": SCHEMA_VERSION, "journal": journal, **header, "summary": summarize(state, table)}
    header["review"] = review_list(state)
    first = {task.problem: task for task in reversed(state.tasks)}
    tasks = (
        {name: value for name, value in vars(task).items() if name not in TEXTS or task is first[task.problem]}
        for task in state.tasks
    )
    results = (f"{to_json(task_id)}: {to_json(result)}" for task_id, result in state.task_states.items())
    yield json.dumps(header, default=vars, ensure_ascii=False, indent=1).removesuffix("\n}")
    yield from (',\n "problems": [\n  ', ",\n  ".join(map(to_json, table)), "\n ]")
    yield from (',\n "tasks": [\n  ', ",\n  ".join(map(to_json, tasks)), "\n ]")
    yield ',\n "task_states": {\n  '
    for number, result in enumerate(results):
        yield ",\n  " if number else ""
        yield result
    yield "\n }\n}\n"


def to_json(value: Any) -> str:
    """A value in one line of JSON, dataclasses as objects."""
    return json.dumps(value, default=vars, ensure_ascii=False)


def write_atomically(path: Path, pieces: Iterable[str]) -> None:
    """Write the text to `path` so that it holds the old or the new text at every instant, whatever happens.

    Lone surrogates, which JSON can smuggle in but UTF-8 cannot hold, become question marks.
    """
    target = os.path.realpath(path)
    # Always the same for a file, so that a leftover of a crash is replaced.
    name = hashlib.sha256(os.fsencode(os.path.basename(target))).hexdigest()[:8]
    scratch = os.path.join(os.path.dirname(target), f".llama-eval-{name}.tmp")
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch)
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # so it is no link that is followed
        with open(descriptor, "w", encoding="utf-8", errors="replace", newline="\n") as file:
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
    """The file of a run, and beside it a journal of the tasks that have finished since it was written last.

    `record` appends one line to the journal, `save` writes the whole state and empties the journal. Both are for the
    length of a `with` block, in which no other process can have it.
    """

    def __init__(self, path: Path, interval: float) -> None:
        self.path = path
        self.journal_path = journal_of(path)
        self.interval = interval
        self.next_dump = 0.0
        self.name = ""  # of the journal; a new one for each dump, so that no line can be taken for another dump's
        self.journal = -1
        self.reserve = -1  # a descriptor to write the state with when no other is left

    def __enter__(self) -> StateFile:
        """Take the lock; raises StateError when another process has it."""
        self.journal = open_locked(self.journal_path)
        self.reserve = os.open(os.devnull, os.O_RDONLY)
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the lock, and remove a journal that is not needed any more."""
        with contextlib.suppress(OSError):
            if not self.behind:
                os.unlink(self.journal_path)
        os.close(self.journal)
        self._release_reserve()

    def _release_reserve(self) -> None:
        if self.reserve >= 0:
            os.close(self.reserve)
        self.reserve = -1

    def record(self, state: EvalState, task: Task) -> None:
        """Note the state of `task` in the journal; raises StateError."""
        entry = {"journal": self.name, "task": task.id, "state": state.task_states[task.id]}
        line = (to_json(entry) + "\n").encode("utf-8", "replace")
        size = os.fstat(self.journal).st_size
        try:
            while line:
                line = line[os.write(self.journal, line) :]
        except OSError as error:
            os.ftruncate(self.journal, size)
            raise StateError(f"cannot write the journal {self.journal_path}: {error.strerror}") from None

    @property
    def due(self) -> bool:
        """Whether the last dump is long enough ago."""
        return time.monotonic() >= self.next_dump

    @property
    def behind(self) -> bool:
        """Whether the journal has results that the file has not."""
        return os.fstat(self.journal).st_size > 0

    def save(self, state: EvalState) -> None:
        """Write `state` now; raises StateError."""
        started, name = time.monotonic(), secrets.token_hex(4)
        state.updated = timestamp()
        self._release_reserve()
        try:
            write_atomically(self.path, state_to_json(state, name))
            self.name = name
            os.ftruncate(self.journal, 0)
        finally:
            with contextlib.suppress(OSError):
                self.reserve = os.open(os.devnull, os.O_RDONLY)
            ended = time.monotonic()
            self.next_dump = ended + max(self.interval, (ended - started) / DUMP_SHARE)

    def become(self, path: Path) -> None:
        """Replace the run by the one in the file at `path`, which is gone then; raises StateError."""
        try:
            os.replace(path, self.path)
        except OSError as error:
            raise StateError(f"cannot replace {self.path} by {path}: {error.strerror}") from None
        os.ftruncate(self.journal, 0)


def keep_aside(journal: Path, warn: Callable[[str], None]) -> None:
    """Copy a journal that is about to be emptied, though nothing else has its results, and say so."""
    kept = Path(f"{journal}.{secrets.token_hex(4)}")
    try:
        shutil.copyfile(journal, kept)
    except OSError as error:
        raise StateError(f"cannot keep {journal}, which is of another run: {error.strerror}: move it away") from None
    warn(f"WARNING: {journal} is of another run, or of another copy of this one: it is kept as {kept}")


def journal_of(path: Path) -> Path:
    """The journal of the run in the file at `path`."""
    return Path(f"{os.path.realpath(path)}.journal")


def open_locked(path: Path) -> int:
    """A descriptor to append to the file at `path` with, locked against other processes; raises StateError."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise StateError(f"cannot write the journal {path}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            owner = str(path).removesuffix(".journal")
            raise StateError(
                f"another llama-eval is at work on {owner}: wait for it, or name another --output"
            ) from None
        except OSError:  # some network file systems have no locks
            return descriptor
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)  # whoever had the lock has removed the file meanwhile


def load_state(path: Path, warn: Callable[[str], None]) -> EvalState:
    """The EvalState in the file at `path` and its journal; calls `warn` with a line on damage to the latter."""
    state, name = load_dump(path)
    journal, names = journal_of(path), {task.id: task.id for task in state.tasks}
    try:
        *lines, torn = journal.read_bytes().split(b"\n")
    except FileNotFoundError:
        return state
    except OSError as error:
        raise StateError(f"cannot read {journal}: {error.strerror}") from None
    if torn:
        warn(f"WARNING: {journal}: its last line is torn, as a crash leaves it, and is dropped")
    foreign = False
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            result = known(reader(TaskState)(entry["state"]))
            if entry["journal"] == name:
                state.task_states[names[entry["task"]]] = result
            elif state.task_states.get(entry["task"]) != result:  # it is not of an earlier dump that this one includes
                foreign = True
        except (ValueError, KeyError, TypeError, RecursionError):
            warn(f"WARNING: {journal}, line {number}: it cannot be read, and is skipped")
    if foreign:
        keep_aside(journal, warn)
    return state


# ---- pool -----------------------------------------------------------------------------------------------
#
# The work and the workers: the Pool knows the endpoints and the open tasks, each Worker asks one endpoint.

DOUBTFUL = 5  # tasks in a row that fail at a server before the fault is taken to be the server's
MAX_TRIES = 20  # times that a task is sent besides its retries, whoever was to blame: some bound always ends a run
MAX_LOSSES = 10  # times that a server may break down over a task before the fault is taken to be the task's
PROBE_AFTER = 0.5  # seconds until a server that is out of service is looked at; doubles each time
PROBE_LIMIT = 30.0
RETRY_AFTER_OUTAGE = 60.0  # a server that asks for more time is looked at all the same


@dataclass(eq=False)
class Attempt:
    """A task on its way through the endpoints: how often it was sent, failed itself, and lost its endpoint.

    `shared` says whether its endpoint had others in hand at the same time; `excused` that it was told of already that
    these were too many.
    """

    task: Task
    tries: int = 0
    failures: int = 0
    losses: int = 0
    shared: bool = False
    excused: bool = False
    started: str | None = None
    endpoint: str | None = None
    error: str | None = None
    partial: Response | None = None


@dataclass(eq=False)
class Service:
    """An endpoint as it serves: "up", or "down" after a fault, or then on "trial" with a single task.

    `tester` is the thread that looks at it and tries it. `suspects` are the tasks that have failed since it last
    completed one: their failures count once it completes another, which shows that the fault was not its own.
    It is sent no more than `limit` tasks at a time; `gives_reasons` says whether its streams end with a finish reason,
    None where that is not known yet.
    """

    endpoint: Endpoint
    status: str = "up"
    running: set[Attempt] = field(default_factory=set)
    limit: float = math.inf
    gives_reasons: bool | None = None
    proven: bool = False  # by a usable reply
    served: bool = False  # something, since it was last out
    answers_by_name: bool = False  # its responses have had a name that /v1/models has, too
    suspects: list[Attempt] = field(default_factory=list)
    outages: int = 0  # since it last completed something
    retry_at: float = 0.0
    tester: int | None = None


class Pool:
    """The tasks that are still to be done, and the endpoints that do them; for the threads of all of these.

    An endpoint that breaks down is sent nothing but a look at it now and then, and is let back in with a single
    task. Its other tasks go to the other endpoints. `tell` is given a line on each such event, to print unless it
    is empty, and an EndpointError once no endpoint is left for good.
    """

    def __init__(self, services: list[Service], max_retries: int, tell: Callable[[str | EndpointError], None]) -> None:
        self.services = list(services)  # those that are gone for good are taken out
        self.max_retries = max_retries
        self.tell = tell
        self.changed = threading.Condition()
        self.ready: deque[Attempt] = deque()
        self.later: list[tuple[float, int, Attempt]] = []  # a heap: when, a number that no two share, what
        self.left = 0
        self.out_since: float | None = None  # when the last one broke down
        self.reason = ""
        self.stopped = False

    def put(self, task: Task) -> None:
        """Add a task."""
        with self.changed:
            self.ready.append(Attempt(task))
            self.left += 1
            self.changed.notify_all()

    def hold(self, more: bool) -> None:
        """Keep the workers waiting for `more` tasks where there are none, or no longer."""
        with self.changed:
            self.left += 1 if more else -1
            self.changed.notify_all()

    def take(self, service: Service) -> Attempt | Service | None:
        """Wait for something to do: a task, or the service itself, which is to be looked at; None at the end."""
        me = threading.get_ident()
        with self.changed:
            while self.left and not self.stopped and service in self.services:
                now, wake = time.monotonic(), None
                while self.later and self.later[0][0] <= now:
                    self.ready.appendleft(heapq.heappop(self.later)[2])
                if service.status == "down" and service.tester is None:
                    wake = service.retry_at
                    if wake <= now:
                        service.tester = me
                        return service
                elif service.status == "up" or (service.status == "trial" and service.tester == me):
                    if self.ready and len(service.running) < service.limit:
                        return self._give(service, self.ready.popleft())
                    wake = self.later[0][0] if self.later else None
                self.changed.wait(wake and wake - now)
            return None

    def _give(self, service: Service, attempt: Attempt) -> Attempt:
        attempt.tries += 1
        attempt.shared, attempt.excused = bool(service.running), False
        for other in service.running:
            other.shared = True
        service.running.add(attempt)
        return attempt

    def is_whole(self, service: Service, attempt: Attempt, response: Response) -> bool:
        """Whether a response is complete as far as its finish reason tells.

        Some servers never give one. Others end a response without one, for another request that has come.
        """
        with self.changed:
            if response.finish_reason:
                service.gives_reasons = True
            elif service.gives_reasons is None and not attempt.shared:
                service.gives_reasons, service.limit = False, math.inf
            return bool(response.finish_reason) or service.gives_reasons is False

    def alive(self, service: Service) -> None:
        """Note that an endpoint has sent a token."""
        with self.changed:
            if service.status != "up" and service in self.services:
                service.status, service.tester = "up", None
                self.out_since = None
                self.changed.notify_all()

    def complete(self, service: Service, attempt: Attempt) -> None:
        """Note that an endpoint has completed a task."""
        self.alive(service)
        with self.changed:
            self._release(service, attempt)
            service.proven = True
            if service.outages:
                self.tell(f"{service.endpoint.url} is back in service")
            service.served, service.outages = True, 0
            for suspect in service.suspects:
                suspect.failures += 1
            service.suspects.clear()
            self._settle()

    def fail(self, service: Service, attempt: Attempt, error: Exception, remedy: str) -> bool:
        """Note that a request failed, with its remedy by `classify`; returns whether that ends its task."""
        with self.changed:
            if attempt.tries > MAX_TRIES + self.max_retries:
                self._release(service, attempt)
                self._settle()
                return True
            if isinstance(error, CrowdedError):
                self._thin_out(service, attempt, error)
                return self._put_back(attempt)
            self._release(service, attempt)
            if remedy == GONE:
                self._dismiss(service, str(error))
                return self._put_back(attempt)
            if remedy == DOWN:
                attempt.losses += 1
                self._take_out(service, error)
                return self._put_back(attempt)
            if isinstance(error, DeadlineError):  # the server was at work, but not fast enough
                attempt.failures += 1
            elif service.status != "down":
                service.suspects.append(attempt)
            return self._refused(service, attempt, error) if remedy == NEVER else self._missed(service, attempt, error)

    def _release(self, service: Service, attempt: Attempt) -> None:
        service.running.discard(attempt)
        self.changed.notify_all()

    def _thin_out(self, service: Service, attempt: Attempt, error: Exception) -> None:
        """Send an endpoint that cannot work on so many requests at a time half as many."""
        if not attempt.excused:
            if service.limit == math.inf:
                advice = "it is sent fewer from now on (--threads 1 does so from the start)"
                self.tell(
                    f"WARNING: {service.endpoint.url} cannot work on so many requests at a time: {error}; {advice}"
                )
            service.limit = max(1, len(service.running) // 2)
            for other in service.running:  # which fail for the same reason
                other.excused = True
        self._release(service, attempt)

    def _refused(self, service: Service, attempt: Attempt, error: Exception) -> bool:
        """Pass a refused task on to another server; one that refuses task after task is the wrong one to ask."""
        if len(set(service.suspects)) >= DOUBTFUL:
            self._dismiss(service, f"{service.endpoint.url} refuses one task after the other ({error})")
            return self._put_back(attempt)
        others = sum(other is not service for other in self.services)
        return self._try_again(attempt, min(others, self.max_retries), BACKOFF_SECONDS)

    def _missed(self, service: Service, attempt: Attempt, error: Exception) -> bool:
        """Weigh a failure at a server that is there: chance, the task's fault, or after several tasks the server's."""
        pause = backoff(self.failures(attempt))
        if service.status == "trial" and self._alone(service):  # nobody else to ask: so it may be the task
            attempt.failures, service.outages = self.failures(attempt), 1  # so that there is not much of a pause
            self._take_out(service, error)
            return self._try_again(attempt, self.max_retries, pause)
        doubtful = len(set(service.suspects)) >= (2 if service.outages else DOUBTFUL)
        if service.status == "up" and not doubtful:
            return self._try_again(attempt, self.max_retries, max(pause, waiting_time(error)))
        self._take_out(service, error)
        return self._put_back(attempt)

    def failures(self, attempt: Attempt) -> int:
        """The number of times that a task has failed itself, as far as is known now."""
        with self.changed:
            return attempt.failures + sum(service.suspects.count(attempt) for service in self.services)

    def _try_again(self, attempt: Attempt, max_retries: int, wait: float) -> bool:
        """Put back a task that failed, to be taken after a while; returns whether it has failed too often for that."""
        failures = self.failures(attempt)
        if failures > max_retries:
            self._settle()
            return True
        name = f"{attempt.task.problem}#{attempt.task.sample}"
        self.tell(f"{name} is tried again, for the {ordinal(attempt.tries)} time: {attempt.error}")
        heapq.heappush(self.later, (time.monotonic() + wait, random.getrandbits(64), attempt))
        self.changed.notify_all()
        return False

    def _put_back(self, attempt: Attempt) -> bool:
        """Put back a task that lost its server; returns whether that has happened too often."""
        if attempt.losses > MAX_LOSSES:
            attempt.error = f"servers broke down {attempt.losses} times over it, the last time: {attempt.error}"
            self._settle()
            return True
        # Once may be chance; if it was not, the others should have had their turn before.
        (self.ready.append if attempt.losses > 1 else self.ready.appendleft)(attempt)
        self.changed.notify_all()
        return False

    def looked_at(self, service: Service, trouble: Exception | None) -> None:
        """Note the outcome of a look at an endpoint that is down: it can be tried unless in `trouble`."""
        with self.changed:
            if service.status != "down" or service.tester != threading.get_ident():
                return  # a request that was still on its way has shown more
            if trouble is None:
                service.status = "trial"
            elif classify(trouble) == GONE:
                self._dismiss(service, str(trouble))
            else:
                self._take_out(service, trouble)
            self.changed.notify_all()

    def dismiss(self, service: Service, reason: str, attempt: Attempt) -> None:
        """Take an endpoint out for good; its task goes to the others."""
        with self.changed:
            self._release(service, attempt)
            self._dismiss(service, reason)
            self._put_back(attempt)

    def _dismiss(self, service: Service, reason: str) -> None:
        if service in self.services:
            self.services.remove(service)
            hint = "set the key, the model or the URL right, and resume"
            last = not self.services
            self.tell(EndpointError(f"{reason}: {hint}") if last else f"WARNING: {reason}; going on without it")
        self._note_outage(reason)
        self.changed.notify_all()

    def outage(self) -> float | None:
        """Seconds for which no endpoint has been in service; None while there is one, or one is tried.

        One that sends tokens is, even where it is not sent anything new.
        """
        with self.changed:
            if self.out_since is None or not all(service.status == "down" for service in self.services):
                return None
            heard = (WATCHDOG.heard.get(service.endpoint.url, 0.0) for service in self.services)
            return time.monotonic() - max([self.out_since, *heard])

    def stop(self) -> list[Attempt]:
        """Give out no more tasks; returns those that have been tried and put back."""
        with self.changed:
            self.stopped = True
            self.changed.notify_all()
            return [attempt for attempt in (*self.ready, *(entry[2] for entry in self.later)) if attempt.started]

    def unfinished(self, attempt: Attempt) -> TaskState:
        """The state of a task that has been tried, but is not done with."""
        known = {name: getattr(attempt, name) for name in ("endpoint", "error", "started", "partial")}
        return TaskState(attempts=self.failures(attempt) + attempt.losses, **known)

    def _settle(self) -> None:
        self.left -= 1
        if not self.left:
            self.changed.notify_all()

    def _alone(self, service: Service) -> bool:
        return not any(other.status == "up" for other in self.services if other is not service)

    def _take_out(self, service: Service, error: Exception) -> None:
        """Send an endpoint nothing for a while, unless it is out already. Its suspects are not to blame."""
        if (service.status == "down" and service.tester is None) or service not in self.services:
            return
        service.suspects.clear()
        service.status, service.served, service.tester = "down", False, None
        service.outages += 1
        pause = min(PROBE_LIMIT, PROBE_AFTER * 2 ** min(service.outages - 1, 10)) * random.uniform(0.5, 1)
        service.retry_at = time.monotonic() + max(pause, min(waiting_time(error), RETRY_AFTER_OUTAGE))
        self._note_outage(str(error))
        follows = "it is looked at again now and then"
        if not service.proven and isinstance(error, ReplyError):
            follows += "; none of its replies could be used so far: try --no-stream, if it does not stream"
        if not self._alone(service):
            follows = "what it was working on goes to the others"
        text = f"WARNING: {service.endpoint.url} is out of service: {error}; {follows}"
        self.tell(text if service.outages == 1 else "")
        self.changed.notify_all()

    def _note_outage(self, reason: str) -> None:
        self.reason = reason
        if self.out_since is None and not any(service.status == "up" for service in self.services):
            self.out_since = time.monotonic()


def waiting_time(error: Exception) -> float:
    """The seconds that a server asks to wait before the next request."""
    return error.retry_after if isinstance(error, RequestError) else 0.0


def ordinal(number: int) -> str:
    """1 as "1st", and so on."""
    return f"{number}" + ("th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th"))


NOTHING = Response("", "", "length", None, None, 0, None, 0.0)


@dataclass(frozen=True)
class Notice:
    """A line for the person who runs this, if any, and an endpoint's new description of itself, if any."""

    text: str
    endpoint: Endpoint | None = None


Finished = tuple[Task, TaskState]
Handover = Finished | Notice | BaseException


class Worker(threading.Thread):
    """One thread of an endpoint: takes tasks until there are none, and looks after the endpoint when it is down.

    The outcome of each is passed to `hand_over`; an unforeseen error, too.
    """

    def __init__(
        self, service: Service, client: Client, pool: Pool, state: EvalState, hand_over: Callable[[Handover], None]
    ) -> None:
        super().__init__(daemon=True)  # so that a stopped run does not wait for answers that nobody will read
        self.service = service
        self.client = client
        self.pool = pool
        self.state = state
        self.hand_over = hand_over
        client.on_first_token = lambda: pool.alive(service)
        client.rejects_schema = service.endpoint.rejects_schema

    def run(self) -> None:
        """Work until there is nothing left to do."""
        try:
            while (item := self.pool.take(self.service)) is not None:
                if isinstance(item, Service):
                    self._look()
                    continue
                result = self._ask(item)
                if self.client.rejects_schema and not self.service.endpoint.rejects_schema:
                    self._tell_of_refusal()
                if result is not None:
                    self.hand_over((item.task, result))
        except BaseException as error:  # noqa: BLE001 - passed on, not handled
            self.hand_over(error)

    def _tell_of_refusal(self) -> None:
        self.service.endpoint = replace(self.service.endpoint, rejects_schema=True)
        text = "refuses response_format: its answers are only asked to follow the JSON schema"
        self.hand_over(Notice(f"WARNING: {self.service.endpoint.url} {text}", self.service.endpoint))

    def _ask(self, attempt: Attempt) -> TaskState | None:
        """One request: a task's response, or an error if that was the last attempt; None if others are to follow."""
        attempt.started, attempt.endpoint = attempt.started or timestamp(), self.client.base_url
        try:
            schema = self.state.prompt.schema
            response, reason = self.client.complete(request_body(attempt.task, self.state), schema), None
            if self.client.options.stream and not self.pool.is_whole(self.service, attempt, response):
                kind = CrowdedError if attempt.shared else RequestError
                return self._failed(attempt, kind("the stream ended without a finish_reason"))
        except (ContextOverflowError, CrowdedError) as error:  # cut off, maybe before its first token
            if isinstance(error, CrowdedError) and attempt.shared:
                return self._failed(attempt, error)
            response, reason = replace(error.partial or NOTHING, finish_reason="length"), str(error)
        except RequestError as error:
            return self._failed(attempt, error)
        if self._is_another_model(response):
            now = f"now answers as '{one_line(response.model, 60)}', which is not the model of this run"
            self.pool.dismiss(self.service, f"{self.client.base_url} {now}", attempt)
            return None
        self.pool.complete(self.service, attempt)
        done = replace(self.pool.unfinished(attempt), attempts=self.pool.failures(attempt) + 1, partial=None)
        return replace(done, status="ungraded", response=response, error=reason, finished=timestamp())

    def _failed(self, attempt: Attempt, error: RequestError) -> TaskState | None:
        """The state of a task whose request failed, if that was its last attempt; otherwise it has been put back."""
        attempt.partial = max(attempt.partial, error.partial, key=lambda partial: len(text_of(partial)))
        if self.pool.stopped:
            return self.pool.unfinished(attempt)
        attempt.error = str(error)
        fault, remedy = self._fault(error)
        final = self.pool.fail(self.service, attempt, fault, remedy)
        return replace(self.pool.unfinished(attempt), status="error", finished=timestamp()) if final else None

    def _fault(self, error: RequestError) -> tuple[Exception, str]:
        """The fault behind a failed request and its remedy, after a look at the server unless that is clear."""
        remedy = classify(error, self.service.served)
        if remedy == GONE:
            return EndpointError(f"{self.client.base_url} refuses the requests ({error})"), remedy
        if remedy == LATER:
            try:  # it may have restarted, with another model
                self._look_at_endpoint()
            except EndpointError as trouble:
                remedy = classify(trouble)
                return (trouble if remedy == GONE else error), remedy
        return error, remedy

    def _is_another_model(self, response: Response) -> bool:
        """Remember whether the endpoint answers by a name that it lists; whether it did, and does so no more."""
        names = [name for entry in self.service.endpoint.models for name in model_names(entry)]
        self.service.answers_by_name |= response.model in names
        return self.service.answers_by_name and response.model is not None and response.model not in names

    def _look_at_endpoint(self) -> Endpoint:
        """The endpoint as it describes itself now; raises EndpointError unless it serves the model of the run."""
        known = self.service.endpoint
        found = look_at(known.url, known.threads, self.client.api_key, self.state.model)
        choose_model(self.state.model, [found])
        return found

    def _look(self) -> None:
        """Find out whether the endpoint, which is down, can be used again."""
        known = self.service.endpoint
        try:
            found = self._look_at_endpoint()
        except EndpointError as trouble:
            self.pool.looked_at(self.service, trouble)
            return
        found = replace(serving(found, self.state.model), rejects_schema=known.rejects_schema)
        found = replace(found, models=found.models or known.models, props=found.props or known.props)
        self.service.endpoint = found
        description = describe(found)
        self.hand_over(Notice("" if description == describe(known) else description, found))
        self.pool.looked_at(self.service, None)


def text_of(response: Response | None) -> str:
    """All that a model wrote, if anything."""
    return response.reasoning + response.content if response else ""


def request_body(task: Task, state: EvalState) -> dict[str, Any]:
    """The chat completion request for one task, the same whenever and wherever it is sent."""
    messages = [{"role": "system", "content": state.prompt.system}] if state.prompt.system else []
    messages.append({"role": "user", "content": fill(state.prompt.template, question=task.question)})
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


WORD_SECONDS = 60.0  # between two words on waiting for an endpoint
LEAVE_SECONDS = 1.0  # for the threads to hand over their results when a run is stopped
TICK_SECONDS = 1.0
Report = Callable[[Task, TaskState], None]
Tick = Callable[[int, int], None]


class Processor:
    """Fans the open tasks of a run out over its endpoints, grades the responses, and dumps as it goes.

    Worker threads share one backlog, so that a faster endpoint takes more of it; others grade, so that a slow grader
    holds up no endpoint. They return values; only the thread that calls `process` changes the state, writes and
    prints. Without services, the tasks that have a response are graded and the others left alone. With `more` the
    tasks are those that it gives, and once they are done those that it gives then, until there are none.
    """

    def __init__(
        self,
        services: list[Service],
        grader: Grader,
        options: Options,
        more: Callable[[], list[Task]] | None = None,
    ) -> None:
        self.more = more
        self.services = services
        self.grader = grader
        self.options = options
        self.answered: queue.SimpleQueue[tuple[Task, TaskState, Response] | None] = queue.SimpleQueue()
        self.done: queue.SimpleQueue[Handover] = queue.SimpleQueue()
        # The same results as in `done`: a signal may fall between taking one from there and entering it.
        self.finished: dict[str, TaskState] = {}
        self.pool = Pool(services, options.max_retries, self._tell)
        self.workers: list[Worker] = []
        self.next_word = 0.0  # the time of the next word on an outage
        self.next_tick = 0.0

    def _tell(self, news: str | EndpointError) -> None:
        self.done.put(Notice(news) if isinstance(news, str) else news)

    def _hand_over(self, item: Handover) -> None:
        """Pass a result to the owner, and a response to the graders; for any thread."""
        if isinstance(item, tuple):
            task, result = item
            self.finished[task.id] = result
            if result.response and not result.grade:
                self.answered.put((task, result, result.response))
        self.done.put(item)

    def process(
        self,
        state: EvalState,
        file: StateFile,
        report: Report,
        warn: Callable[[str], None],
        tick: Tick | None = None,
    ) -> None:
        """Run every open task of `state` to its end. However it ends, finished tasks are in `state` and on disk.

        Calls `report` with each task as it finishes, `warn` with a line on each fault beside them, and `tick` every
        second with the number of tasks under way and of the tokens that have come. Raises NoEndpointError when no
        endpoint has been in service for too long.
        """
        try:
            more = self.more
            tasks = more() if more else state.open_tasks()
            remaining = self._start(state, tasks, waiting=more is not None) if tasks else 0
            while remaining:
                item = self._next(warn, tick)
                if isinstance(item, Notice):
                    self._note(item, state, warn)
                    continue
                task, result = item
                self._absorb(task, result, state, file, warn)
                if result.grade or not result.response:
                    remaining -= 1
                    report(task, result)
                if more and not remaining:
                    remaining = self._queue(state, more())
            if more and tasks:
                self.pool.hold(more=False)
            self._finish(state, file)
        except BaseException:  # a signal may also arrive in the middle of finishing
            self._finish(state, file)
            raise

    def _queue(self, state: EvalState, tasks: list[Task]) -> int:
        """Queue tasks to be asked or only graded; returns their number, without those that nobody can be asked."""
        queued = 0
        for task in tasks:
            result = state.task_states[task.id]
            if result.response:
                self.answered.put((task, result, result.response))
            elif self.services:
                self.pool.put(task)
            queued += bool(result.response or self.services)
        return queued

    def _start(self, state: EvalState, tasks: list[Task], waiting: bool) -> int:
        """Queue tasks and start the threads that work on them and those to come; returns the number of tasks."""
        if waiting:
            self.pool.hold(more=True)
        queued = self._queue(state, tasks)
        asked = self.pool.left
        graded = queued if waiting else queued - asked
        seats = self._seats()[: max(asked, len(self.services)) if asked else 0]
        graders = min(self.grader.threads, asked + graded)
        try:
            WATCHDOG.start()
            for _ in range(graders):
                threading.Thread(target=self._grade, daemon=True).start()
            for service in seats:
                client = Client(service.endpoint.url, self.options.api_key, self.options)
                worker = Worker(service, client, self.pool, state, self._hand_over)
                worker.start()
                self.workers.append(worker)
        except RuntimeError as error:  # the system has no more threads to give
            if len(self.workers) < len(self.services):
                raise EvalError(f"{error}: give fewer --threads, or raise the limit of processes (ulimit -u)") from None
            self._tell(f"WARNING: {error}: going on with {len(self.workers)} of {len(seats)}")
        return queued

    def _next(self, warn: Callable[[str], None], tick: Tick | None) -> Finished | Notice:
        """The next thing that a thread hands over; raises its error, and NoEndpointError after too long an outage."""
        while True:
            outage, now = self.pool.outage(), time.monotonic()
            if tick and now >= self.next_tick:
                under_way = sum(len(service.running) for service in self.services)
                tick(under_way, sum(worker.client.received for worker in self.workers))
                self.next_tick = now + TICK_SECONDS
            due = [self.next_tick] if tick else []
            if outage is not None:
                due.append(min(self.next_word, now + self.options.give_up_after - outage))
            try:
                item = self.done.get(timeout=max(0.0, min(due) - now) if due else None)
            except queue.Empty:
                if outage is not None and time.monotonic() >= due[-1]:
                    self._tell_of_outage(warn)
                continue
            if isinstance(item, BaseException):
                raise item
            return item

    def _tell_of_outage(self, warn: Callable[[str], None]) -> None:
        """Say for how long there has been no endpoint; raises NoEndpointError if that is too long."""
        outage = self.pool.outage()
        if outage is None:
            return
        if outage >= self.options.give_up_after:
            reason = f"no endpoint has been in service for {outage:.0f} s (the last: {self.pool.reason})"
            raise NoEndpointError(f"{reason}: resume when one is")
        left = f"giving up in {self.options.give_up_after - outage:.0f} s unless one comes back"
        warn(f"WARNING: no endpoint is in service, {left}: {self.pool.reason}")
        self.next_word = time.monotonic() + WORD_SECONDS

    def _note(self, notice: Notice, state: EvalState, warn: Callable[[str], None]) -> None:
        """Print a notice, and enter an endpoint's new description of itself into the state, unless that is known."""
        if notice.endpoint:
            if notice.endpoint in state.endpoints:
                return
            state.endpoints = [notice.endpoint if e.url == notice.endpoint.url else e for e in state.endpoints]
        if notice.text:
            warn(notice.text)

    def _absorb(
        self, task: Task, result: TaskState, state: EvalState, file: StateFile, warn: Callable[[str], None]
    ) -> None:
        """Enter the result of one task into the state and the journal; raises StateError when the disk is full."""
        state.task_states[task.id] = result
        if result.grade or not (result.response and self.grader.instant):  # else its grade is about to follow
            file.record(state, task)
        if file.due:
            try:
                file.save(state)
            except StateError as error:
                warn(f"WARNING: {error}; trying again later")

    def _finish(self, state: EvalState, file: StateFile) -> None:
        """Save everything that has finished, looked at or not, and break off the rest."""
        given_back = self.pool.stop()
        WATCHDOG.end_all()
        self.grader.close()
        for _ in range(self.grader.threads):
            self.answered.put(None)
        until = time.monotonic() + LEAVE_SECONDS
        for worker in filter(threading.Thread.is_alive, self.workers):  # a signal may come before all have started
            worker.join(max(0.0, until - time.monotonic()))
        state.task_states.update({attempt.task.id: self.pool.unfinished(attempt) for attempt in given_back})
        state.task_states.update(self.finished.copy())
        for task in state.tasks:
            result = state.task_states[task.id]
            if self.grader.instant and result.response and not result.grade:
                state.task_states[task.id] = graded(result, self.grader.grade(task, result.response))
        file.save(state)

    def _seats(self) -> list[Service]:
        """A service for each thread, dealt out in turn, so that a few tasks still use every endpoint."""
        rounds = max((service.endpoint.threads for service in self.services), default=0)
        return [s for turn in range(rounds) for s in self.services if turn < s.endpoint.threads]

    def _grade(self) -> None:
        """One thread that grades: takes responses for as long as the run lasts."""
        try:
            while (item := self.answered.get()) and not self.pool.stopped:
                task, result, response = item
                grade = self.grader.grade(task, response)
                if grade.verdict != "ungraded" or not self.pool.stopped:  # stopping makes a grader fail
                    self._hand_over((task, graded(result, grade)))
        except BaseException as error:  # noqa: BLE001 - an unforeseen one, which the owner raises
            self._hand_over(error)


def graded(result: TaskState, grade: Grade) -> TaskState:
    """A task with its grade."""
    return replace(result, status=grade.verdict, grade=grade)


# ---- console --------------------------------------------------------------------------------------------


def task_line(task: Task, result: TaskState, number: int, total: int) -> str:
    """One finished task in one line: verdict, answer, tokens, tokens/s, seconds, endpoint."""
    verdict = result.status if result.status in ("correct", "ungraded", "error") else "not correct"
    start = f"{number:>{len(str(total))}}/{total}  {one_line(f'{task.problem}#{task.sample}', 24):<9} {verdict:<11}"
    where = (result.endpoint or "").removeprefix("http://")
    response = result.response
    if response is None:
        return f"{start}  {one_line(result.error)}, {result.attempts} attempt{'s' * (result.attempts != 1)}  {where}"
    if result.status == "ungraded":
        return f"{start}  {one_line(result.grade.explanation) if result.grade else 'not graded yet'}"
    answer = result.grade.answer if result.grade else None
    ending = "loop" if response.finish_reason == LOOP else result.status.replace("_", " ")
    shown = one_line(answer, 24) if answer is not None else ending
    counted = "~" * response.tokens_counted
    tokens = "-" if response.completion_tokens is None else f"{counted}{response.completion_tokens}"
    speed = "-" if response.tokens_per_second is None else f"{response.tokens_per_second:.1f}"
    return f"{start}  {shown:<9} {tokens:>6} tok {speed:>8} tok/s {response.seconds:>7.1f} s  {where}"


def change_line(task: Task, before: TaskState, after: TaskState) -> str:
    """A verdict that is another one than before."""
    start = f"{one_line(f'{task.problem}#{task.sample}', 24):<9} {before.status} -> {after.status}"
    if after.grade is None:
        return start
    answered = f"answered {one_line(after.grade.answer, 24)}, expected {task.expected}; " if after.grade.answer else ""
    return f"{start}  {answered}{one_line(after.grade.explanation)}"


def comparison_line(task: Task, result: TaskState) -> str:
    """The model's answer against the expected one, and how it was found."""
    grade, response = result.grade, result.response
    if grade is None or response is None:
        return f"    no response, expected {task.expected}"
    if grade.answer is not None:
        return f"    answered {one_line(grade.answer)}, expected {task.expected} (found by: {grade.method})"
    if grade.verdict == "ungraded":
        return f"    not graded, expected {task.expected}"
    ending = one_line(response.content[-300:] or response.reasoning[-300:])
    return f"    no answer ({grade.method}), expected {task.expected}; the response ends: {ending!r}"


def percent(proportion: float) -> str:
    """0.8 as "80.0 %"; what is not all or nothing is not rounded to that: 0.9999 is "99.9 %"."""
    shown = round(100 * proportion, 1)
    if shown == round(proportion) * 100 and 0 < proportion < 1:
        shown = 99.9 if shown else 0.1
    return f"{shown:.1f} %"


def headline(summary: dict[str, Any]) -> str:
    """The accuracy with its intervals, and the range it could still fall in while verdicts are missing."""
    if summary["accuracy"] is None:
        return "none: no task has a verdict yet"
    line = f"{percent(summary['accuracy'])}  ({summary['counts']['correct']} of {summary['scored']})"
    line += f", 95 % interval {interval_text(summary['intervals']['on_new_problems'])} on new problems"
    again = summary["intervals"]["on_these_problems"]
    line += f"\n{'':10}95 % interval {interval_text(again)} on these problems" if again else ""
    low, high = summary["range"]
    still = f"\n{'':10}between {percent(low)} and {percent(high)} once every task has a verdict"
    return line + (still if summary["scored"] < summary["tasks"] else "")


def interval_text(interval: Interval) -> str:
    """An interval as "62.7 % to 90.5 %"."""
    return f"{percent(interval.low)} to {percent(interval.high)}"


def samples_text(summary: dict[str, Any]) -> str:
    """The figures over several samples of each problem: pass@1 and so on, maj@k, and how many problems have fewer."""
    k, problems = summary["k"], summary["problems"]
    figures = [f"avg@{k} {percent(summary['avg_at_k'])}"] if summary["avg_at_k"] is not None else []
    for entry in summary["pass_at"]:
        few = f" (of {entry['problems']})" if entry["problems"] < problems else ""
        figures.append(f"pass@{entry['j']} {percent(entry['score'])}{few}")
    figures += [f"maj@{k} {percent(summary['maj_at_k'])}"] if summary["maj_at_k"] is not None else []
    short = summary["problems_short_of_k"]
    return ", ".join(figures) + (f"; {short} of {problems} problems have fewer than {k} verdicts" if short else "")


def graders_text(summary: dict[str, Any]) -> str:
    """The number of verdicts by each grader, and how often the rules of text came to the same one."""
    text = ", ".join(f"{count} by {name}" for name, count in sorted(summary["graded_by"].items())) or "none"
    both = summary["graded_by_rule_too"]
    return f"{text}; the rules of text agree with {summary['same_verdict_by_rule']} of {both}" if both else text


def review_text(state: EvalState) -> str:
    """The tasks that a person should look at, one line each."""
    entries = review_list(state)
    lines = [f"          {one_line(e['task'].partition('/')[2], 24):<9} {e['reason']}" for e in entries]
    return "\n".join([f"review    {len(entries) or 'no'} task{'s' * (len(entries) != 1)} to look at", *lines])


def summary_text(state: EvalState, seconds: float, path: Path, more: dict[str, str]) -> str:
    """The end of a run: headline, counts by status, graders, tokens, time, the file, and `more` rows by their names."""
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
        "samples": samples_text(summary),
        "grading": graders_text(summary),
        "tokens": tokens_text(summary),
        "time": f"{seconds:.1f} s",
        "state": str(path),
        **more,
    }
    if state.grader["name"] == RegexGrader.name:
        del rows["grading"]
    if samples == 1 or summary["accuracy"] is None:
        del rows["samples"]
    return "\n".join(f"{name:<9} {text}" for name, text in rows.items())


def sample_count(state: EvalState) -> int:
    """The number of samples of each problem in a run."""
    return max(task.sample for task in state.tasks) + 1


def tokens_text(summary: dict[str, Any]) -> str:
    """The tokens of a run, as far as the servers counted them."""
    counted, responses = summary["responses_with_token_counts"], summary["responses"]
    if not counted:
        return "not told by the server"
    text = f"{summary['completion_tokens']} generated"
    text += f" from {summary['prompt_tokens']} of prompt" if summary["prompt_tokens"] else ""
    return text if counted == responses else f"{text}, told for {counted} of {responses} responses"


def announce(text: str) -> None:
    """Print a line before there is a run to print."""
    with contextlib.suppress(OSError):
        print(printable(text), flush=True)


SPEED_TICKS = 10  # over which the speed on the bar is measured


class Console:
    """Prints a run to stdout: plain lines, and on a terminal a progress bar below them."""

    def __init__(self, state: EvalState, options: Options) -> None:
        self.state = state
        self.before: dict[str, TaskState] = {}  # of tasks that are graded again, where only changes are of interest
        self.verbose = options.verbose
        self.quiet = options.quiet
        self.counts = Counter(s.status for s in state.task_states.values() if s.status in SCORED)
        self.bar: Any = None
        self.flow = ""
        self.moments: deque[tuple[float, int]] = deque(maxlen=SPEED_TICKS)  # and the tokens that had come by then

    def say(self, text: str) -> None:
        """Print `text` above the bar, at once."""
        with self._surviving():
            if self.bar is None:
                print(printable(text), flush=True)
            else:
                self.bar.write(printable(text), file=sys.stdout)

    def note(self, text: str) -> None:
        """Print `text` unless only the outcome is wanted."""
        if not self.quiet:
            self.say(text)

    def warn(self, text: str) -> None:
        """Print an event beside the tasks: one that is no warning only unless just the outcome is wanted."""
        (self.say if text.startswith("WARNING") else self.note)(text)

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

    def tick(self, under_way: int, tokens: int) -> None:
        """Move the bar: the time, the tasks under way, the tokens that have come, and their speed of late."""
        self.moments.append((time.monotonic(), tokens))
        (begun, before), (now, _) = self.moments[0], self.moments[-1]
        speed = (tokens - before) / (now - begun) if now > begun else 0.0
        self.flow = f", {under_way} under way, {tokens} tok, {speed:.0f} tok/s"
        self._move(0)

    def task(self, task: Task, result: TaskState) -> None:
        """Show one finished task."""
        self.counts[result.status] += 1
        self._move(1)
        before = self.before.get(task.id)
        if before is None:
            self.note(task_line(task, result, self.counts.total(), len(self.state.tasks)))
        elif before.status != result.status:
            self.note(change_line(task, before, result))
        if self.verbose and (before is None or before.status != result.status):
            self.say(comparison_line(task, result))

    def _move(self, tasks: int) -> None:
        with self._surviving():
            if self.bar is not None:
                scored = sum(self.counts[status] for status in SCORED)
                accuracy = percent(self.counts["correct"] / scored) if scored else "-"
                self.bar.set_postfix_str(
                    f"accuracy {accuracy}, {self.counts['error']} errors{self.flow}", refresh=False
                )
                self.bar.update(tasks)
                if not tasks:
                    self.bar.refresh()

    def close(self) -> None:
        """Take the bar off the terminal."""
        with self._surviving():
            if self.bar is not None:
                self.bar.close()
        self.bar = None


# ---- siblings -------------------------------------------------------------------------------------------

SIMULATOR = HERE / "llama-server-simulator.py"
SIMULATOR_START_SECONDS = 60.0  # it may have to import and read a hub dataset first


@contextlib.contextmanager
def simulator(rate: float, dataset: str, threads: int | None) -> Iterator[str]:
    """The URL of a simulator that knows `dataset`, on a free port for the length of the block, with enough slots."""
    # Its standard input is a pipe that closes with this process, however that ends.
    command = [sys.executable, str(SIMULATOR), "--host", "127.0.0.1", "--port", "0", "--exit-with-stdin"]
    command += ["--success-rate", str(rate), "--dataset", dataset, *(["--slots", str(threads)] if threads else [])]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True, encoding="utf-8")
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


REPORTER = HERE / "llama-eval-report.py"
NO_REPORT = "none: "
REPORT_SECONDS = 600.0  # that it may take to write the page


def check_page(options: Options, state: Path) -> None:
    """Raise UsageError when --report would write over something that is no report."""
    if options.report is None:
        return
    page = page_of(options, state)
    if os.path.realpath(page) == os.path.realpath(state):
        raise UsageError(f"--report {page} is the state of the run itself: name another file")
    if not page.exists():
        return
    try:
        with open(page, "rb") as file:
            begun = file.read(2000)
    except OSError as error:
        raise UsageError(f"{page} cannot be replaced: {error.strerror}: name another file with --report") from None
    if b"llama-eval-report" not in begun:
        raise UsageError(f"{page} exists and is not a report: name another file with --report")


def page_of(options: Options, state: Path) -> Path:
    """The place at which --report has the page of the run in the file at `state` written."""
    return options.report if options.report and options.report.name else state.with_suffix(".html")


def report_row(options: Options, state: Path, end: BaseException | None) -> dict[str, str]:
    """Have the page of the run in the file at `state` written if one is asked for; returns the row that says so.

    A run that somebody has stopped gets none: they are waiting for it to end.
    """
    if options.report is None or isinstance(end, Interrupted):
        return {}
    page = page_of(options, state)
    command = [sys.executable, os.fspath(REPORTER), os.fspath(state.absolute()), "--output", os.fspath(page.absolute())]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=REPORT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {"report": f"{NO_REPORT}{REPORTER.name} took longer than {REPORT_SECONDS:g} s"}
    except OSError as error:
        return {"report": f"{NO_REPORT}{REPORTER.name} cannot be started: {error.strerror}"}
    except Interrupted as interruption:
        return {"report": f"{NO_REPORT}stopped by {signal.Signals(interruption.signum).name}"}
    complaint = one_line(done.stderr.decode("utf-8", "replace"), 300)
    if done.returncode:
        return {"report": f"{NO_REPORT}{complaint or f'{REPORTER.name} ended with status {done.returncode}'}"}
    return {"report": f"{page}{f' ({complaint})' if complaint else ''}"}


# ---- runs -----------------------------------------------------------------------------------------------


def plan(options: Options, dataset: Dataset, grader: Grader) -> EvalState:
    """The run that the command line describes, none of it done yet."""
    kind = kind_of(dataset.problems[0].expected)
    template = options.prompt_file or "{question}\n\n" + kind.instructions[options.answer_format]
    schema = kind.schema if options.answer_format == "schema" else None
    prompt = Prompt(options.answer_format, template, options.system_prompt, schema)
    number, shards = options.shard
    part = slice(number - 1, options.limit or len(dataset.problems), shards)
    run = new_run(dataset, prompt, options.sampling, options.samples, part)
    if not run.tasks:
        raise UsageError(f"--shard {number}/{shards} has none of the {len(dataset.problems[: options.limit])} problems")
    run.model, run.grader, run.loop_stop = options.model, grader.settings, options.loop_stop
    return run


def needs_endpoints(state: EvalState) -> bool:
    """Whether a task of the run still waits for its response."""
    return any(state.task_states[task.id].response is None for task in state.open_tasks())


@contextlib.contextmanager
def connected(options: Options, state: EvalState, console: Console) -> Iterator[list[Service]]:
    """The endpoints, for the length of the block, which serve the model of the `state` that they are described in.

    There are none where the run needs none: where all that is left to do is to grade.
    """
    if options.regrade or not needs_endpoints(state):
        yield []
        return
    with contextlib.ExitStack() as stack:
        urls = list(options.endpoint)
        if options.simulate is not None:
            urls = [stack.enter_context(simulator(options.simulate, options.dataset, options.threads[0]))]
        if not urls:
            raise UsageError("name a server with --endpoint URL, or have one simulated with --simulate")
        endpoints, troubles = preflight(urls, options, state.model, console.say)
        state.model = choose_model(state.model, endpoints)
        state.endpoints = [serving(endpoint, state.model) for endpoint in endpoints]
        for endpoint in state.endpoints:
            if endpoint.url in troubles:
                console.say(f"WARNING: {troubles[endpoint.url]}; starting without it")
            else:
                console.note(describe(endpoint))
            for warning in misfits(endpoint, options.sampling.max_tokens, longest_prompt(state)):
                console.say(warning)
        yield [Service(e, "down", outages=1) if e.url in troubles else Service(e) for e in state.endpoints]


def find_judge(url: str, options: Options, state: EvalState, console: Console, required: bool) -> None:
    """Settle in `state` which model judges; raises EndpointError when the judge cannot be used.

    Unless it is `required` at once, a judge out of reach is only warned of: the responses can be graded later.
    """
    try:
        judge = look_at(
            url, options.grader_threads, options.judge_api_key, state.grader["judge_model"], "JUDGE_API_KEY"
        )
    except UnreachableError as error:
        if required:
            raise
        console.say(f"WARNING: the judge {error}; what it cannot grade waits for --resume")
        return
    state.grader["judge_model"] = choose_model(state.grader["judge_model"], [judge], "--judge-model")
    console.note(f"judge {describe(judge)}")


GATE_ERROR = 0.05  # the chance of a wrong decision in all looks together
GATE_RULE = re.compile(
    r"\s*(?:accuracy\s*>=\s*(?P<bar>[0-9.]+)|not worse than (?P<base>.+) by (?P<margin>[0-9.]+))\s*%?\s*"
)
PASS, FAIL, UNDECIDED = "PASS", "FAIL", "UNDECIDED"
GATE_STATUS = {PASS: 0, FAIL: 4, UNDECIDED: 5}


def gate_rule(text: str) -> str:
    """A rule for --until; raises ArgumentTypeError for none."""
    found = GATE_RULE.fullmatch(text)
    number = found and (found["bar"] or found["margin"])
    if not (number and re.fullmatch(r"[0-9]+(\.[0-9]+)?", number) and float(number) <= 100):
        raise argparse.ArgumentTypeError(f"'{text}' is neither 'accuracy >= 85' nor 'not worse than BASE.json by 3'")
    return text.strip()


class Gate:
    """Decides a rule on a run while that goes on: it looks after 2, 4, 8, ... samples of every problem.

    Each look compares an interval on these problems with the bar. The chance of error is shared out evenly over the
    looks (Bonferroni), which holds however they depend on each other: so it is at most GATE_ERROR in all.
    """

    def __init__(self, rule: str, state: EvalState, say: Callable[[str], None]) -> None:
        found = GATE_RULE.fullmatch(rule)
        assert found  # noqa: S101 - `gate_rule` has seen to it
        self.state = state
        self.say = say
        samples = sample_count(state)
        self.looks = [look for look in powers_up_to(samples) if look > 1]
        self.bar = float(found["bar"] or 0) / 100
        self.margin = float(found["margin"] or 0) / 100
        self.base = base_tallies(Path(found["base"]), state) if found["base"] else None
        self.given: set[str] = set()
        self.told: list[dict[str, Any]] = []
        state.until = {"rule": rule, "looks": self.told, "decision": None}

    def more(self) -> list[Task]:
        """The tasks that are to be done before the next look; none once the rule is decided, or no look is left."""
        for look in self.looks[len(self.told) :]:
            tasks = [task for task in self.state.open_tasks() if task.sample < look and task.id not in self.given]
            if tasks:
                self.given |= {task.id for task in tasks}
                return tasks
            decision = self.look(look)
            if decision != UNDECIDED or look == self.looks[-1]:
                self.state.until = {**(self.state.until or {}), "decision": decision}
                return []
        return []

    def look(self, samples: int) -> str:
        """The decision after so many samples of every problem, which is told and kept."""
        tallies = tallies_of(self.state, samples)
        quantile = 1 - GATE_ERROR / 2 / len(self.looks)
        value, low, high = (
            accuracy_within(tallies, quantile) if self.base is None else difference_within(self.base, tallies, quantile)
        )
        bar = self.bar if self.base is None else -self.margin
        decision = PASS if low >= bar else FAIL if high < bar else UNDECIDED
        self.told.append({"samples": samples, "value": value, "low": low, "high": high, "decision": decision})
        what = "accuracy" if self.base is None else "difference"
        number, level = f"look {len(self.told)} of {len(self.looks)}", percent(2 * quantile - 1)
        interval = f"{percent(low)} to {percent(high)}"
        self.say(f"{number}: {samples} samples, {what} {percent(value)}, {level} interval {interval}: {decision}")
        return decision


def tallies_of(state: EvalState, samples: float = math.inf) -> dict[str, Tally]:
    """By problem, the tally of its first samples with a verdict, where it has at least two."""
    verdicts: dict[str, list[bool]] = {}
    for task in state.tasks:
        status = state.task_states[task.id].status
        if task.sample < samples and status in SCORED:
            verdicts.setdefault(task.problem, []).append(status == "correct")
    return {name: Tally(sum(given), len(given)) for name, given in verdicts.items() if len(given) > 1}


def base_tallies(path: Path, state: EvalState) -> dict[str, Tally]:
    """The tallies of the run in a file on the problems that `state` asks, too; raises StateError for none."""
    base = load_state(path, announce)
    asked = {(task.problem, task.question, task.expected) for task in state.tasks}
    same = {task.problem for task in base.tasks if (task.problem, task.question, task.expected) in asked}
    tallies = {name: tally for name, tally in tallies_of(base).items() if name in same}
    if not tallies:
        raise StateError(f"{path} has no problem of this run with two samples or more: it cannot be compared with")
    return tallies


def accuracy_within(tallies: dict[str, Tally], quantile: float) -> tuple[float, float, float]:
    """The accuracy on these problems and the ends of its interval, up to a quantile."""
    given = list(tallies.values())
    interval = these_problems_interval(given) if given else None
    if interval is None or interval.effective is None:
        return 0.0, 0.0, 1.0
    scored = sum(tally.scored for tally in given)
    p = sum(tally.correct for tally in given) / scored
    return p, *wilson_interval(p, interval.effective, t_quantile(quantile, scored - len(given)))


def difference_within(before: dict[str, Tally], after: dict[str, Tally], quantile: float) -> tuple[float, float, float]:
    """The mean difference of score on the problems of both, and the ends of its interval, up to a quantile."""
    pairs = [(before[name], after[name]) for name in before if name in after]
    if not pairs:
        return 0.0, -1.0, 1.0
    variance = sum(t.correct * (t.scored - t.correct) / t.scored**2 / (t.scored - 1) for pair in pairs for t in pair)
    least = sum(1 / min(tally.scored for tally in side) ** 2 for side in zip(*pairs, strict=True))
    mean = sum(b.correct / b.scored - a.correct / a.scored for a, b in pairs) / len(pairs)
    freedom = sum(tally.scored - 1 for pair in pairs for tally in pair)
    half = t_quantile(quantile, freedom) * math.sqrt(max(variance, least)) / len(pairs)
    return mean, max(-1.0, mean - half), min(1.0, mean + half)


def run_open_tasks(
    options: Options, state: EvalState, grader: Grader, file: StateFile, console: Console
) -> BaseException | None:
    """Run the open tasks of `state`; returns the Interrupted or EvalError that cut it short, if any."""
    more = Gate(options.until, state, console.say).more if options.until else None  # its base may not be there
    with connected(options, state, console) as services:
        if options.judge_endpoint:
            find_judge(options.judge_endpoint, options, state, console, required=not services)
        grader.settings = state.grader
        file.save(state)  # a place that cannot be written is found out before the first request
        processor = Processor(services, grader, options, more)
        try:
            console.start()
            processor.process(state, file, console.task, console.warn, console.tick)
        except (Interrupted, StateError, EndpointError) as end:
            return end
        finally:
            console.close()
    return None


def evaluate(options: Options, argv: list[str]) -> int:
    """Run the evaluation that the command line describes; returns the exit status."""
    started = time.monotonic()
    dataset = load_dataset(options.dataset, (options.sampling.seed or 0) if options.shuffle else None)
    grader = GRADERS[options.grader](options)
    state = plan(options, dataset, grader)
    output = options.output or Path(f"{dataset.name}-{state.id}.json")
    check_output(output, options.resume, options.overwrite)
    check_page(options, output)
    with StateFile(output, options.dump_interval) as file:
        check_output(output, options.resume, options.overwrite)  # another process may have just made it
        if options.resume:
            state = continue_run(load_state(output, announce), state)
            if options.until and state.until and options.until != state.until["rule"]:
                raise StateError(f"cannot resume with another rule: --until was {brief(state.until['rule'])}")
            state.until = state.until if options.until else None
        elif file.behind and not output.exists():
            keep_aside(file.journal_path, announce)
        console = Console(state, options)
        end = None
        if state.open_tasks():
            end = run_open_tasks(options, state, grader, file, console)
        else:
            console.say("nothing to do: every task of this run has its verdict")
            if file.behind:
                file.save(state)
        more = redact(next_step(state, argv, output), options.api_key, options.judge_api_key)
        return conclude(console, output, started, {**report_row(options, output, end), **more}, end)


def regrade(source: Path, options: Options, argv: list[str]) -> int:
    """Grade the responses of the run in the file `source` again, as the command line asks for; returns the exit status.

    In place means that the run is replaced once each of its responses has a new verdict; until then they are
    collected in a file beside it.
    """
    started, output = time.monotonic(), options.output or source
    in_place = os.path.realpath(output) == os.path.realpath(source)
    target = Path(os.path.realpath(source)) if os.path.islink(source) else source
    work = Path(f"{target}.regrading") if in_place else output
    before = load_state(source, announce)
    grader = GRADERS[options.grader](options)
    check_output(work, options.resume, options.overwrite or in_place)
    check_page(options, output)
    with contextlib.ExitStack() as held:
        if in_place:
            original = held.enter_context(StateFile(target, options.dump_interval))
            before = load_state(source, announce)  # now that no other process can change it
        file = held.enter_context(StateFile(work, options.dump_interval))
        state = regrading(before, load_state(work, announce) if options.resume else None, grader)
        console = Console(state, options)
        console.before = before.task_states
        end = run_open_tasks(options, state, grader, file, console)
        left = any(result.status == "ungraded" for result in state.task_states.values())
        if in_place and not left and not end:
            original.become(work)
            work = target
    changed = sum(
        state.task_states[name].status not in ("ungraded", old.status) for name, old in console.before.items()
    )
    more = {"changed": f"{changed} of {len(console.before)} verdicts", **report_row(options, work, end)}
    if left:
        more["resume"] = redact(resume_command(argv, output), options.api_key, options.judge_api_key)
    return conclude(console, work, started, more, end)


def regrading(before: EvalState, begun: EvalState | None, grader: Grader) -> EvalState:
    """The run `before` with its responses ungraded, but for those already `begun`; StateError if by another grader."""
    state = replace(before, grader=grader.settings, task_states=dict(before.task_states))
    if begun:
        check_settings(begun, state, "cannot resume with other settings", "start again without --resume")
        state.grader = merged(begun.grader, grader.settings)
    for name, result in before.task_states.items():
        if result.response:
            done = begun.task_states.get(name) if begun else None
            grade = done.grade if done and done.response == result.response else None  # the run may have gone on
            state.task_states[name] = replace(result, status=grade.verdict if grade else "ungraded", grade=grade)
    return state


def merge(parts: Sequence[Path], output: Path, options: Options) -> int:
    """Join the parts of one run that were evaluated apart, into the file `output`; returns the exit status."""
    started = time.monotonic()
    check_page(options, output)
    whole, *others = (load_state(path, announce) for path in parts)
    for path, part in zip(parts[1:], others, strict=True):
        check_settings(whole, part, f"{path} is no part of the same run as {parts[0]}", "regrade one of them")
        join(whole, part, path)
    # Breadth first again; within a sample the order of the parts is as good as any.
    whole.tasks.sort(key=lambda task: task.sample)
    check_output(output, resume=False, overwrite=options.overwrite)
    with StateFile(output, 0) as file:
        check_output(output, resume=False, overwrite=options.overwrite)
        file.save(whole)
    more = report_row(options, output, None)
    return conclude(Console(whole, options), output, started, more, None)


def conclude(console: Console, output: Path, started: float, more: dict[str, str], end: BaseException | None) -> int:
    """Print the end of a run; returns the exit status, or raises the error that cut it short."""
    state = console.state
    if console.verbose:
        console.say(review_text(state))
    console.say(summary_text(state, time.monotonic() - started, output, more))
    if end:
        raise end
    if state.until and state.until["decision"]:
        return GATE_STATUS[state.until["decision"]]
    return 3 if state.open_tasks() else 1 if more.get("report", "").startswith(NO_REPORT) else 0


def gate_text(until: dict[str, Any]) -> str:
    """The decision of a gate in a line."""
    last = until["looks"][-1]["samples"] if until["looks"] else 0
    return f"{until['decision']} after {last} samples of each problem: {until['rule']}"


def next_step(state: EvalState, argv: list[str], output: Path) -> dict[str, str]:
    """The next thing to do with a run, and the command that does it."""
    if state.until and state.until["decision"]:
        return {"decision": gate_text(state.until)}
    if state.open_tasks():
        return {"resume": resume_command(argv, output)}
    return {"extend": resume_command(argv, output, samples=2 * sample_count(state))}


def resume_command(argv: list[str], output: Path, samples: int | None = None) -> str:
    """The command that continues the run in `output`: the one that was given, less the key, plus --resume."""
    keys = {"--api-key": "LLAMA_API_KEY", "--judge-api-key": "JUDGE_API_KEY"}
    dropped = {"-o", "--output", *keys, *(["--samples"] if samples else [])}
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        if word in dropped:
            next(words, None)
        elif word.split("=")[0] not in {*dropped, "--resume", "--overwrite"}:
            kept.append(word)
    given = {word.split("=")[0] for word in argv}
    more = ["--samples", str(samples)] if samples else []
    python = os.path.relpath(sys.executable)
    interpreter = sys.executable if python.startswith("..") else python
    command = shlex.join([interpreter, sys.argv[0], *kept, *more, "--output", str(output), "--resume"])
    return "".join(f"{variable}=... " for key, variable in keys.items() if key in given) + command


# ---- command line ---------------------------------------------------------------------------------------


def whole_number(minimum: int, maximum: int = 10**9) -> Callable[[str], int]:
    """A parser of integers between `minimum` and `maximum`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,18}", text) or not minimum <= int(text) <= maximum:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from {minimum} to {maximum}")
        return int(text)

    return parse


def parse_endpoint(text: str, option: str = "--endpoint", key: str = "LLAMA_API_KEY") -> str:
    """The base URL of a server, without a trailing slash or /v1; raises UsageError for no URL."""
    if set(text) & set("@?#"):  # where secrets hide, so it is not repeated either
        raise UsageError(f"{option} takes a bare URL, like http://localhost:8033: give the key by {key}")
    try:
        url = urlsplit(text.strip())
        valid = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise UsageError(f"{option} '{text}' is not a URL: write it like http://localhost:8033")
    path = url.path.rstrip("/").removesuffix(f"/v1{COMPLETIONS}").removesuffix("/v1").rstrip("/")
    return f"{url.scheme}://{url.netloc}{path}"


def thread_count(text: str) -> int | None:
    """A number of threads, or None for "auto"."""
    return None if text == "auto" else whole_number(1, MAX_THREADS)(text)


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
    own = SAMPLERS | {"messages", "model", "stream", "stream_options", "n"}
    taken = sorted(value.keys() & (own | {"max_completion_tokens", "n_predict"}))
    if taken:
        raise argparse.ArgumentTypeError(f"'{taken[0]}' is not for --extra-body to set")
    return value


def prompt_template(path: str) -> str:
    """The prompt in a file, for --prompt-file; raises ArgumentTypeError."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig").strip()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot read '{path}': {error.strerror}") from None
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{path}' is not text in UTF-8") from None
    if "{question}" not in text:
        raise argparse.ArgumentTypeError(f"'{path}' has no {{question}} to put the question in the place of")
    return text


def html_file(text: str) -> Path:
    """A file to write a page to, for --report; raises ArgumentTypeError."""
    path = Path(text)
    if path.suffix.lower() not in (".html", ".htm"):
        raise argparse.ArgumentTypeError(f"'{text}' does not end in .html")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"the folder of '{text}' does not exist or is not writable")
    return path


def shard(text: str) -> tuple[int, int]:
    """The I and N of a --shard I/N."""
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"'{text}' is not a part I/N, such as 1/4 to 4/4")
    return int(found[1]), int(found[2])


SAMPLERS = frozenset(entry.name for entry in fields(Sampling))


def comma_list(parse: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """A parser of one or more values with commas between them."""
    return lambda text: [parse(part.strip()) for part in text.split(",")]


# Options of llama.cpp's own tool that have another name, or none, here.
ELSEWHERE = {
    "--n_cases": "give --limit N for the first N problems",
    "--server-name": "an endpoint is called by its URL",
    "--grader-script": "give --grader cli --grader-cmd COMMAND",
}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{message} (see --help)")

    def parse(self, argv: list[str]) -> argparse.Namespace:
        """The options given in `argv`; one that is unknown is named without its value, which may be a secret."""
        given, rest = self.parse_known_args(argv)
        if rest:
            unknown = [word.split("=")[0] for word in rest if word.startswith("-")]
            hint = f": {ELSEWHERE[unknown[0]]}" if unknown and unknown[0] in ELSEWHERE else ""
            self.error(f"unknown option {unknown[0]}{hint}" if unknown else "an argument that belongs to no option")
        return given


def build_parser() -> Parser:
    """The command line, in the groups that --help shows."""
    parser = Parser(
        prog="llama-eval",
        description="Measure how well a model behind llama-server, or any OpenAI-style server, answers AIME 2025.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,  # the defaults are those of Options
    )
    parser.add_argument("--version", action="version", version=f"llama-eval {VERSION}")
    add_where_options(parser.add_argument_group("where").add_argument)
    add_what_options(parser.add_argument_group("what").add_argument)
    add_grading_options(parser.add_argument_group("how the answers are graded").add_argument)
    add_sampling_options(parser.add_argument_group("how the model samples; what is not given is not sent").add_argument)
    add_run_options(parser.add_argument_group("run"))
    return parser


def add_where_options(add: Callable[..., Any]) -> None:
    """The servers."""
    several = "base URL of a server, with or without /v1; several: repeat it, or use commas"
    add("--endpoint", "--server", action="append", metavar="URL", help=several)
    each = f"requests at a time, for every endpoint or for each one; auto: its slots (default: {DEFAULT_THREADS})"
    add("--threads", type=comma_list(thread_count), metavar="N[,N...]|auto", help=each)
    add("--model", metavar="NAME", help="the model to ask for (default: the one that is served)")
    hidden = "better kept in LLAMA_API_KEY or OPENAI_API_KEY, which no list of processes shows"
    add("--api-key", metavar="KEY", help=hidden)
    simulated = "no server at hand: run the simulator beside this script, right at this rate (0.8)"
    add("--simulate", type=real_number(0, 1), nargs="?", const=0.8, metavar="RATE", help=simulated)


def add_what_options(add: Callable[..., Any]) -> None:
    """The questions, how they are put, and how the answers are graded."""
    known = f"{', '.join(KNOWN_DATASETS)}, or objects with question and answer (default: aime2025)"
    add("--dataset", metavar="NAME|FILE.jsonl", help=known)
    add("--limit", type=whole_number(1), metavar="N", help="only the first N problems")
    parts = "only the problems of part I of N, for as many processes or machines; --merge joins them"
    add("--shard", type=shard, metavar="I/N", help=parts)
    add("--samples", type=whole_number(1, 10_000), metavar="K", help="answers to each problem (default: 1)")
    gated = "stop as soon as this is sure: 'accuracy >= 85', or 'not worse than BASE.json by 3'; exit status 0, 4 or 5"
    add("--until", type=gate_rule, metavar="RULE", help=gated)
    kept = "keep the options of multiple choices in the order of the dataset"
    add("--no-shuffle", dest="shuffle", action="store_false", help=kept)
    add("--system-prompt", metavar="TEXT", help="a system message before the question")
    own = "a prompt of one's own, with {question} where the question goes"
    add("--prompt-file", type=prompt_template, metavar="FILE", help=own)
    asked = "what the prompt asks the answer to look like; schema has the server enforce it, too (default: json)"
    add("--answer-format", choices=ANSWER_FORMATS, help=asked)


def add_grading_options(add: Callable[..., Any]) -> None:
    """The grader, and the options that it needs."""
    which = "by rules of text, by a judge, by a command, or by rule and where that is unsure by the judge (regex)"
    add("--grader", "--grader-type", choices=list(GRADERS), help=which)
    add("--judge-endpoint", "--grader-server", metavar="URL", help="base URL of the server that judges")
    add("--judge-model", "--grader-model", metavar="NAME", help="the model that judges (default: the one served)")
    add("--judge-api-key", metavar="KEY", help="better kept in JUDGE_API_KEY")
    command = (
        "reads a task as JSON, exits with 0 for correct and 1 for incorrect; fills in arguments {answer}, {expected}"
    )
    add("--grader-cmd", metavar="COMMAND", help=command)
    add("--grader-threads", type=whole_number(1, 1000), metavar="N", help="gradings at a time (default: 4)")
    timed = "that one request to the judge, or one run of the command, may take (default: 300)"
    add("--grader-timeout", type=real_number(0.001, 1e6), metavar="SECONDS", help=timed)
    retried = "for a request to the judge that failed (default: 3)"
    add("--grader-retries", type=whole_number(0, 1000), metavar="N", help=retried)
    again = "grade the responses in this state again, there or in --output; asks no endpoint"
    add("--regrade", type=Path, metavar="STATE", help=again)


def add_sampling_options(add: Callable[..., Any]) -> None:
    """The options that go into each request beside the messages."""
    add("--temperature", "--temp", type=real_number(0), metavar="T")
    add("--top-k", type=whole_number(0), metavar="N")
    add("--top-p", type=real_number(0, 1), metavar="P")
    add("--min-p", type=real_number(0, 1), metavar="P")
    most = "tokens a response may have, its reasoning included"
    add("--max-tokens", "--n-predict", "--n_predict", type=whole_number(1), metavar="N", help=most)
    seeded = "gives each request a seed of its own, derived from N and the task, and shuffles multiple choices"
    add("--seed", type=whole_number(0, 2**53), metavar="N", help=seeded)
    other = 'anything else for the request, such as \'{"reasoning_effort": "high"}\''
    add("--extra-body", type=json_object, metavar="JSON", help=other)


def add_run_options(group: argparse._ArgumentGroup) -> None:
    """The state file, limits, and how much is printed."""
    add = group.add_argument
    file = "the state of the run (default: a name of its own in this folder)"
    add("-o", "--output", type=Path, metavar="FILE", help=file)
    joined = "join the parts of one run, made with --shard, into --output"
    add("--merge", type=Path, nargs="+", metavar="STATE", help=joined)
    paged = "in the end, write the run as an HTML page (default: the output's name with .html)"
    add("--report", type=html_file, nargs="?", const=Path(), metavar="FILE", help=paged)
    existing = group.add_mutually_exclusive_group().add_argument
    extended = "continue the run in --output; more --samples or a higher --limit extend it"
    existing("--resume", action="store_true", help=extended)
    existing("--overwrite", action="store_true", help="replace the run in --output")
    seconds: dict[str, Any] = {"type": real_number(0.001, 1e6), "metavar": "SECONDS"}
    dumped = "between two writes of the state (default: 10)"
    add("--dump-interval", type=real_number(0, 1e6), metavar="SECONDS", help=dumped)
    silent = f"of silence between two tokens (default: {STALL_SECONDS:g}; for a whole reply: {WHOLE_REPLY_SECONDS:g})"
    add("--stall-timeout", **seconds, help=silent)
    add("--request-timeout", **seconds, help="that one response may take (default: no limit)")
    retried = "for a request that failed (default: 6)"
    add("--max-retries", type=whole_number(0, 1000), metavar="N", help=retried)
    waiting = "to wait for an endpoint when none is in service (default: 600)"
    add("--give-up-after", **seconds, help=waiting)
    add(
        "--no-stream", dest="stream", action="store_false", help="ask for whole replies, not for each token as it comes"
    )
    looping = "let a response that only repeats itself go on to its limit"
    add("--no-loop-stop", dest="loop_stop", action="store_false", help=looping)
    shown = group.add_mutually_exclusive_group().add_argument
    shown("--verbose", action="store_true", help="show each answer against what was expected, and the review list")
    shown("--quiet", action="store_true", help="only the bar, on a terminal, the summary, and warnings")


# The options that mean something beside one that gives the program another task, or how their names begin.
MODES = {
    "merge": ("merge", "output", "overwrite", "report", "verbose", "quiet"),
    "regrade": (
        *("regrade", "output", "overwrite", "resume", "dump_interval", "report", "verbose", "quiet"),
        *("grader", "judge"),
    ),
}


def parse_arguments(argv: list[str]) -> Options:
    """The command line, checked as a whole; raises UsageError."""
    given = vars(build_parser().parse(argv))
    if "report" in given and not REPORTER.exists():
        raise UsageError(f"--report needs {REPORTER.name} beside this script")
    if "merge" in given:
        return check_merge(given)
    if "regrade" in given:
        refuse_all_but("regrade", given, f"--regrade, which only grades what {given['regrade']} holds")
    sampling = Sampling(**{name: given.pop(name) for name in SAMPLERS & given.keys()})
    options = check_grading(check_servers(Options(**given, sampling=sampling)))
    if options.until and options.samples == 1:
        raise UsageError("--until needs --samples of 2 or more: it looks after 2, 4, 8, ... of each problem")
    if options.resume and options.output is None and options.regrade is None:
        raise UsageError("--resume needs the --output FILE of the run to continue")
    forms = {"response_format", "grammar", "json_schema"} & sampling.extra_body.keys()
    if options.answer_format == "schema" and forms:
        raise UsageError(f"--answer-format schema and the {forms.pop()} in --extra-body exclude each other")
    return with_keys(options)


def check_merge(given: dict[str, Any]) -> Options:
    """The options of --merge; raises UsageError."""
    refuse_all_but("merge", given, "--merge, which only joins files")
    if "output" not in given:
        raise UsageError("--merge needs the --output FILE to write")
    return Options(**given)


def refuse_all_but(mode: str, given: dict[str, Any], description: str) -> None:
    """Raise UsageError for an option that means nothing in a mode, which `description` names."""
    for name in given:
        if not name.startswith(MODES[mode]):
            raise UsageError(f"--{name.replace('_', '-')} means nothing with {description}")


def check_servers(options: Options) -> Options:
    """The options with the servers as base URLs, and a number of threads for each; raises UsageError."""
    urls = tuple(parse_endpoint(url) for text in options.endpoint for url in text.split(",") if url.strip())
    if not (urls or options.simulate is not None or options.resume or options.regrade):
        raise UsageError("name a server with --endpoint URL, or have one simulated with --simulate")
    if urls and options.simulate is not None:
        raise UsageError("--endpoint and --simulate exclude each other: the simulator is the server")
    if len(set(urls)) < len(urls):
        raise UsageError("the same --endpoint is given twice: use --threads to send it more requests at a time")
    servers, threads = len(urls) or 1, tuple(options.threads)
    if len(threads) not in (1, servers):
        raise UsageError(f"--threads has {len(threads)} values, endpoints {servers}: give one, or one for each")
    return replace(options, endpoint=urls, threads=threads * servers if len(threads) == 1 else threads)


def check_grading(options: Options) -> Options:
    """The options with the judge as a base URL; raises UsageError for those that the grader lacks or has no use for."""
    needs = GRADERS[options.grader].needs
    for name, description in needs.items():
        if getattr(options, name) is None:
            raise UsageError(f"--grader {options.grader} needs {description}")
    if options.grader_cmd is not None and "grader_cmd" not in needs:
        raise UsageError("--grader-cmd is for --grader cli")
    if "judge_endpoint" not in needs:
        if options.judge_endpoint or options.judge_model or options.judge_api_key:
            raise UsageError("--judge-endpoint, --judge-model and --judge-api-key are for --grader llm and cascade")
        return options
    judge = str(options.judge_endpoint)
    if "," in judge:
        raise UsageError("--judge-endpoint takes one URL: there is one judge")
    return replace(options, judge_endpoint=parse_endpoint(judge, "--judge-endpoint", "JUDGE_API_KEY"))


def with_keys(options: Options) -> Options:
    """The options with the API keys, which may stand in the environment; raises UsageError."""
    key = api_key(options.api_key, "LLAMA_API_KEY", "OPENAI_API_KEY")
    judge_key = api_key(options.judge_api_key, "JUDGE_API_KEY")
    shared = key if options.judge_endpoint in options.endpoint else None
    return replace(options, api_key=key, judge_api_key=judge_key or shared)


def api_key(given: str | None, *variables: str) -> str | None:
    """The key on the command line, else in the first of the environment variables that has one; raises UsageError."""
    key = (given or next(filter(None, map(os.environ.get, variables)), "")).strip()
    if not (key.isascii() and key.isprintable()):
        raise UsageError("the API key holds characters that a request cannot carry")
    return key or None


STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupter:
    """The handler of signals: the first one unwinds to the end of the run, another ends the process at once.

    Not one that comes within a moment: `timeout` and terminals send the same one to a process twice.
    """

    def __init__(self) -> None:
        self.first: float | None = None

    def __call__(self, signum: int, _frame: FrameType | None) -> None:
        """Take a signal."""
        now = time.monotonic()
        if self.first is None:
            self.first = now
            raise Interrupted(signum)
        if now - self.first >= SAME_SIGNAL_SECONDS:
            release_signals()
            os.kill(os.getpid(), signum)


SAME_SIGNAL_SECONDS = 0.5
interrupt = Interrupter()


def release_signals() -> None:
    """Let signals end the process, as they do by default; one that was ignored, as by nohup, stays so."""
    for number in STOPPING:
        if signal.getsignal(number) is interrupt:
            signal.signal(number, signal.SIG_DFL)


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
        options = parse_arguments(argv)
        if MISSING:
            raise EvalError(f"{MISSING}: pip install -r requirements.txt")
        if options.merge and options.output:
            return merge(options.merge, options.output, options)
        return regrade(options.regrade, options, argv) if options.regrade else evaluate(options, argv)
    except EvalError as error:
        complaint, status = f"error: {one_line(error, 1000)}", error.exit_code
    except Interrupted as interruption:
        complaint, status = f"stopped by {signal.Signals(interruption.signum).name}", 128 + interruption.signum
    finally:
        release_signals()
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(f"llama-eval: {complaint}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
