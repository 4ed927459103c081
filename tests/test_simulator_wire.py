"""The simulator beside what was recorded of llama-server: the same requests, and what a client sees of the replies.

Each recording tells the options its server was started with, and holds a request and the reply to it. Compared are
the status, the headers, the keys of JSON in their order and the types of their values, the text of errors, and the
kinds of events in a stream. The recordings without a reply hold figures of behaviour, for the tests of serving.
"""

from __future__ import annotations

import http.client
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import Server, StartSimulator

from scripts import DEADLINE

RECORDINGS = {
    path.stem: json.loads(path.read_text("utf-8")) for path in (Path(__file__).parent / "recordings").iterdir()
}
REPLIES = {name: record for name, record in RECORDINGS.items() if "response" in record}
# What the models of the recordings say to any question.
MODELS = {
    "tiny-chain.gguf": "The answer is \\boxed{42}.",
    "tiny-think.gguf": "<think>Maybe it is 17, no 23</think>The answer is \\boxed{42}.",
    "tiny.gguf": "and so on",
}
TAKEN_OVER = {"-c", "-np", "--alias", "--api-key"}
LEFT_OUT = {"-m", "--host", "--port", "--chat-template-file"}
# What a server tells of its slots depends on what it has done before.
FRESH = {"get_slots_idle"}
BUSY = {"get_slots_busy", "get_slots_fail_on_no_slot", "get_health_busy"}
# Headers whose value is of the moment.
MOMENTARY = {"content-length", "process-start-time-unix"}


def options_of(record: dict[str, Any]) -> tuple[str, ...]:
    """The simulator's options that stand for those of the recorded server."""
    options, given = [], iter(record["server_args"])
    for name in given:
        if name in TAKEN_OVER:
            options += [name, next(given)]
        elif name == "--reasoning-format":
            options += ["--reasoning", "inline" if next(given) == "none" else "field"]
        elif name in LEFT_OUT:
            next(given)
        elif name != "--jinja":
            options.append(name)
    return (*options, "--dataset", "practice", "--unmatched", "fixed:" + MODELS[record["model"]])


@pytest.fixture(scope="module")
def simulators(start_module_simulator: StartSimulator) -> Any:
    """The simulator with these options, which has been asked before unless it is wanted fresh; each is started once."""
    running: dict[tuple[Any, ...], Server] = {}

    def simulator(options: tuple[str, ...], state: str = "") -> Server:
        if (options, state) not in running:
            slow = ("--tokens", "1000000", "--tokens-per-second", "50") if state == "busy" else ()
            running[options, state] = start_module_simulator(*options, *slow)
        return running[options, state]

    return simulator


def exchange(server: Server, request: dict[str, Any]) -> tuple[int, dict[str, str], str]:
    """Status, headers and body of the reply to a recorded request."""
    address = urlsplit(server.url)
    raw = request["raw"].encode("latin-1") if "raw" in request else None
    if raw is None and request["body"] is not None:
        raw = json.dumps(request["body"]).encode()
    headers = {
        name: value for name, value in request["headers"].items() if name.lower() not in ("host", "content-length")
    }
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=DEADLINE)
    try:
        connection.request(request["method"], request["path"], raw, headers)
        reply = connection.getresponse()
        return reply.status, {n.lower(): v for n, v in reply.getheaders()}, reply.read().decode("utf-8", "replace")
    finally:
        connection.close()


def recorded(record: dict[str, Any]) -> tuple[int, dict[str, str], str]:
    """Status, headers and body of a recorded reply."""
    reply = record["response"]
    body = "".join(chunk for _, chunk in reply["chunks"]) if "chunks" in reply else reply.get("body") or ""
    return reply["status"], {name.lower(): value for name, value in reply["headers"]}, body


def shape(value: Any) -> Any:
    """The keys of JSON in their order, and the types of what they hold; of a list, that of its first member."""
    if isinstance(value, dict):
        return [(key, shape(member)) for key, member in value.items()]
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def events(stream: str) -> list[Any]:
    """The shapes of the events of a stream in their order, runs of the same one as one."""
    found: list[Any] = []
    for event in stream.split("\n\n"):
        data = event.removeprefix("data: ")
        kind: Any = data
        if data.startswith("{"):
            content = json.loads(data)
            reasons = [choice["finish_reason"] for choice in content.get("choices", ())]
            kind = (shape(content), reasons)
        if kind and kind not in found[-1:]:
            found.append(kind)
    return found


def view(status: int, headers: dict[str, str], body: str) -> dict[str, Any]:
    """The part of a reply that is the same each time, as a client sees it."""
    named = {name: None if name in MOMENTARY else value for name, value in headers.items()}
    seen: dict[str, Any] = {"status": status, "headers": named}
    if headers.get("content-type") == "text/event-stream":
        return {**seen, "events": events(body)}
    try:
        content = json.loads(body)
    except ValueError:
        return {**seen, "text": re.sub(r"[\d.e+-]+$", "N", body, flags=re.MULTILINE)}
    failed = isinstance(content, dict) and "error" in content
    return {**seen, "error" if failed else "shape": content["error"] if failed else shape(content)}


@pytest.mark.parametrize("name", sorted(set(REPLIES) - BUSY - FRESH))
def test_a_reply_looks_like_the_recorded_one(simulators: Any, name: str) -> None:
    record = REPLIES[name]
    server = simulators(options_of(record))
    if name == "get_slots_after":  # each of its slots has worked
        both = {"messages": [{"role": "user", "content": "x"}], "n": 2}
        exchange(server, {"method": "POST", "path": "/v1/chat/completions", "headers": {}, "body": both})
    assert view(*exchange(server, record["request"])) == view(*recorded(record))


@pytest.mark.parametrize("name", sorted(FRESH))
def test_a_fresh_server_looks_like_the_recorded_one(simulators: Any, name: str) -> None:
    record = REPLIES[name]
    assert view(*exchange(simulators(options_of(record), "fresh"), record["request"])) == view(*recorded(record))


@pytest.mark.parametrize("name", sorted(BUSY))
def test_a_busy_server_looks_like_the_recorded_one(simulators: Any, name: str) -> None:
    record = REPLIES[name]
    server = simulators(tuple(options_of(record)), "busy")
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=DEADLINE)
    question = json.loads((Path(__file__).parents[1] / "data" / "practice.jsonl").read_text("utf-8").splitlines()[0])
    body = {"messages": [{"role": "user", "content": question["question"]}], "stream": True}
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    stream = connection.getresponse()
    try:
        assert stream.readline().startswith(b"data: "), "the one slot is busy"
        assert view(*exchange(server, record["request"])) == view(*recorded(record))
    finally:
        stream.close()
        connection.close()


def test_every_recording_with_a_reply_is_compared() -> None:
    assert len(REPLIES) > 90
    assert set(REPLIES) > FRESH | BUSY
