"""The simulator's own server: connections and their limits, slots and their queue, what it costs to leave."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from conftest import Server, StartSimulator

from scripts import ANSWERS, DEADLINE

RECORDINGS = Path(__file__).parent / "recordings"
QUESTIONS = list(ANSWERS)
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


def chat_bytes(question: str = QUESTIONS[0], **fields: Any) -> bytes:
    body = json.dumps({"messages": [{"role": "user", "content": question}], **fields}).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


class Wire:
    """A connection that sends bytes as they are and reads replies one by one."""

    def __init__(self, server: Server) -> None:
        address = urlsplit(server.url)
        self.socket = socket.create_connection((str(address.hostname), address.port or 0), timeout=DEADLINE)
        self.file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the next reply."""
        status = int(self.file.readline().split()[1])
        lines = (line.decode("latin-1").rstrip("\r\n") for line in iter(self.file.readline, b"\r\n"))
        return status, {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

    def reply(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next reply, which has a Content-Length."""
        status, headers = self.head()
        return status, headers, self.file.read(int(headers.get("content-length", 0)))

    def ask(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        self.send(data)
        return self.reply()

    def at_end(self) -> bool:
        """Whether the server has closed the connection, once it has said something or closed."""
        try:
            return self.file.read(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.file.close()
        self.socket.close()


@pytest.fixture
def wire() -> Iterator[Callable[[Server], Wire]]:
    with contextlib.ExitStack() as opened:

        def connect(server: Server) -> Wire:
            connection = Wire(server)
            opened.callback(connection.close)
            return connection

        yield connect


@pytest.fixture(scope="module")
def server(start_module_simulator: StartSimulator) -> Server:
    return start_module_simulator("--dataset", "practice", "--success-rate", 1)


def get(server: Server, path: str) -> Any:
    return requests.get(server.url + path, timeout=DEADLINE).json()


def busy_slots(server: Server) -> int:
    return sum(slot["is_processing"] for slot in get(server, "/slots"))


def wait_for(condition: Callable[[], bool]) -> float:
    """Wait until a condition holds; gives the seconds that it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < DEADLINE
        time.sleep(0.002)
    return time.monotonic() - start


# ---- connections -----------------------------------------------------------------------------------


def test_a_connection_carries_as_many_requests_as_recorded(server: Server, wire: Callable[[Server], Wire]) -> None:
    recording = json.loads((RECORDINGS / "keepalive_limits.json").read_text("utf-8"))
    connection = wire(server)
    for number in range(1, recording["requests_on_one_connection"] + 1):
        status, headers, body = connection.ask(HEALTH)
        assert (status, json.loads(body)) == (200, {"status": "ok"})
        told = recording["headers_of_response"].get(str(number))
        if told:
            assert headers == {name.lower(): value for name, value in told}
    assert connection.at_end()


def test_an_idle_connection_is_closed_after_as_long_as_recorded(server: Server, wire: Callable[[Server], Wire]) -> None:
    recording = json.loads((RECORDINGS / "keepalive_limits.json").read_text("utf-8"))
    connection = wire(server)
    connection.ask(HEALTH)
    start = time.monotonic()
    assert connection.at_end()
    assert recording["idle_close"] == ["fin", pytest.approx(time.monotonic() - start, abs=0.9)]


def test_requests_sent_ahead_are_answered_in_their_order(server: Server, wire: Callable[[Server], Wire]) -> None:
    connection = wire(server)
    connection.send(HEALTH + chat_bytes() + chat_bytes(stream=False, max_tokens=2) + HEALTH)
    replies = [json.loads(connection.reply()[2]) for _ in range(4)]
    assert [reply.get("status") for reply in replies] == ["ok", None, None, "ok"]
    assert [reply["usage"]["completion_tokens"] > 2 for reply in replies[1:3]] == [True, False]


def test_a_request_may_come_in_pieces(server: Server, wire: Callable[[Server], Wire]) -> None:
    connection, request = wire(server), chat_bytes()
    for place in range(0, len(request), 50):
        connection.send(request[place : place + 50])
    assert connection.reply()[0] == 200


def test_a_body_may_come_in_chunks(server: Server, wire: Callable[[Server], Wire]) -> None:
    head, _, body = chat_bytes().partition(b"\r\n\r\n")
    head = re.sub(rb"Content-Length: \d+", b"Transfer-Encoding: chunked", head)
    chunks = b"".join(b"%x;note=1\r\n%b\r\n" % (len(part), part) for part in (body[:7], body[7:]))
    connection = wire(server)
    assert connection.ask(head + b"\r\n\r\n" + chunks + b"0\r\nTrailer: x\r\n\r\n")[0] == 200
    assert connection.ask(HEALTH)[0] == 200


def test_a_client_that_waits_to_be_told_to_go_on_is(server: Server, wire: Callable[[Server], Wire]) -> None:
    head, _, body = chat_bytes().partition(b"\r\n\r\n")
    connection = wire(server)
    connection.send(head + b"\r\nExpect: 100-continue\r\n\r\n")
    assert connection.head()[0] == 100
    assert connection.ask(body)[0] == 200


@pytest.mark.parametrize(
    "request_line",
    [
        b"nonsense\r\n\r\n",
        b"GET /health\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST /health HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        b"POST /health HTTP/1.1\r\nContent-Length: 999999999999\r\n\r\n",
        b"POST /health HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_no_request_gets_a_400_and_the_end(
    server: Server, wire: Callable[[Server], Wire], request_line: bytes
) -> None:
    connection = wire(server)
    connection.send(request_line)
    assert connection.reply()[0] == 400
    assert connection.at_end()
    assert get(server, "/health") == {"status": "ok"}


def test_an_old_client_gets_a_reply_without_chunks(server: Server, wire: Callable[[Server], Wire]) -> None:
    connection = wire(server)
    connection.send(chat_bytes(stream=True).replace(b"HTTP/1.1", b"HTTP/1.0"))
    status, headers = connection.head()
    assert (status, headers["connection"], "transfer-encoding" in headers) == (200, "close", False)
    assert connection.file.read().endswith(b"data: [DONE]\n\n")


def test_a_request_that_is_cut_short_is_no_harm(server: Server, wire: Callable[[Server], Wire]) -> None:
    wire(server).send(chat_bytes()[:-9])
    wire(server).send(b"POST")
    assert get(server, "/health") == {"status": "ok"}


def test_256_requests_are_worked_on_at_a_time(start_simulator: StartSimulator) -> None:
    server = start_simulator("--dataset", "practice", "--slots", 256, "--ttft", 600)
    with contextlib.ExitStack() as opened:
        connections = [opened.enter_context(contextlib.closing(Wire(server))) for _ in range(256)]
        for connection in connections:
            connection.send(chat_bytes(stream=True))
        wait_for(lambda: busy_slots(server) == 256)
    wait_for(lambda: busy_slots(server) == 0)


# ---- slots -----------------------------------------------------------------------------------------


def test_requests_wait_for_a_slot_in_the_order_in_which_they_come(
    start_simulator: StartSimulator, wire: Callable[[Server], Wire]
) -> None:
    server = start_simulator("--dataset", "practice", "-np", 1, "--ttft", 2, "--metrics")
    finished: list[int] = []
    timings = {}

    def read(number: int, connection: Wire) -> None:
        timings[number] = json.loads(connection.reply()[2])["timings"]
        finished.append(number)

    threads = []
    for number in range(4):
        connection = wire(server)
        connection.send(chat_bytes(QUESTIONS[number]))
        wait_for(lambda: busy_slots(server) == 1)  # the first has the slot
        wait_for(lambda number=number: f"requests_deferred {number}\n" in metrics(server))  # type: ignore[misc]
        threads.append(threading.Thread(target=read, args=(number, connection)))
        threads[-1].start()
        assert get(server, "/health") == {"status": "ok"}
    for thread in threads:
        thread.join(DEADLINE)
    assert finished == [0, 1, 2, 3]
    for timing in timings.values():  # which leave out the wait
        assert 2000 <= timing["prompt_ms"] < 4000


def metrics(server: Server) -> str:
    return requests.get(server.url + "/metrics", timeout=DEADLINE).text


def test_a_client_that_leaves_a_stream_frees_its_slot_at_once(
    start_simulator: StartSimulator, wire: Callable[[Server], Wire]
) -> None:
    server = start_simulator("--dataset", "practice", "-np", 1, "--tokens", 5000, "--tokens-per-second", 0.05)
    for leave in (socket.SHUT_WR, socket.SHUT_RDWR):
        connection = wire(server)
        connection.send(chat_bytes(stream=True))
        assert connection.head()[0] == 200
        assert busy_slots(server) == 1
        connection.socket.shutdown(leave)
        assert wait_for(lambda: busy_slots(server) == 0) < 10  # half the time before the next token is due


def test_a_client_that_leaves_before_the_first_token_frees_its_slot_too(
    start_simulator: StartSimulator, wire: Callable[[Server], Wire]
) -> None:
    server = start_simulator("--dataset", "practice", "-np", 1, "--ttft", 600)
    first, second = wire(server), wire(server)
    first.send(chat_bytes(stream=True))
    wait_for(lambda: busy_slots(server) == 1)
    second.send(chat_bytes(stream=True))
    second.close()
    first.close()
    wait_for(lambda: busy_slots(server) == 0)


def test_a_client_that_leaves_a_whole_reply_keeps_its_slot_until_it_is_done(
    start_simulator: StartSimulator, wire: Callable[[Server], Wire]
) -> None:
    server = start_simulator("--dataset", "practice", "-np", 1, "--ttft", 1)
    connection = wire(server)
    start = time.monotonic()
    connection.send(chat_bytes())
    wait_for(lambda: busy_slots(server) == 1)
    connection.close()
    wait_for(lambda: busy_slots(server) == 0)
    assert time.monotonic() - start >= 1
    wait_for(lambda: get(server, "/simulator/log")[0]["verdict"] == "lost")
    assert get(server, "/simulator/expected")["deliveries"] == 0, "nobody has got it"


def test_what_a_client_that_gave_up_did_not_get_is_given_to_the_next(
    start_simulator: StartSimulator, wire: Callable[[Server], Wire]
) -> None:
    server = start_simulator("--dataset", "practice", "-np", 1, "--ttft", 0.5)
    for stream in (False, True):
        gone = wire(server)
        gone.send(chat_bytes(stream=stream))
        wait_for(lambda: busy_slots(server) == 1)
        gone.close()
        wait_for(lambda: get(server, "/simulator/log")[-1]["verdict"] == "lost")
    assert wire(server).ask(chat_bytes())[0] == 200
    assert [entry["delivery"] for entry in get(server, "/simulator/log")] == [0, 0, 0]


def test_more_prompts_than_slots_wait_for_all_of_them(start_simulator: StartSimulator) -> None:
    server = start_simulator("--dataset", "practice", "-np", 2, "--success-rate", 1)
    body = {"prompt": QUESTIONS[:5], "n": 2}
    reply = requests.post(server.url + "/v1/completions", json=body, timeout=DEADLINE).json()
    texts = [choice["text"] for choice in reply["choices"]]
    assert texts == [f"The answer is \\boxed{{{ANSWERS[question]}}}." for question in QUESTIONS[:5] for _ in range(2)]
    assert busy_slots(server) == 0


def test_slots_tell_what_they_work_on(start_simulator: StartSimulator, wire: Callable[[Server], Wire]) -> None:
    server = start_simulator("--dataset", "practice", "-np", 2, "-c", 8192, "--ttft", 600)
    wire(server).send(chat_bytes(max_tokens=7, temperature=0.25))
    wait_for(lambda: busy_slots(server) == 1)
    (slot,) = [slot for slot in get(server, "/slots") if slot["is_processing"]]
    assert (slot["n_ctx"], slot["params"]["max_tokens"], slot["params"]["temperature"]) == (4096, 7, 0.25)
    assert slot["next_token"] == [{"has_next_token": True, "has_new_line": False, "n_remain": 7, "n_decoded": 0}]


def test_the_model_loads_for_as_long_as_it_is_told_to(
    start_simulator: StartSimulator, wire: Callable[[Server], Wire]
) -> None:
    server = start_simulator("--dataset", "practice", "--load-time", 4, "--api-key", "k")
    recording = json.loads((RECORDINGS / "loading_503.json").read_text("utf-8"))
    key = {"Authorization": "Bearer k"}
    for seen in recording["first_seen"]:
        if seen["response"].get("status"):
            method, path = seen["request"].split()
            reply = requests.request(method, server.url + path, headers=key, timeout=DEADLINE)
            assert (reply.status_code, reply.text) == (seen["response"]["status"], seen["response"]["body"])
    assert requests.get(server.url + "/health", timeout=DEADLINE).status_code == 503
    wait_for(lambda: requests.get(server.url + "/health", timeout=DEADLINE).status_code == 200)
    assert requests.get(server.url + "/v1/models", headers=key, timeout=DEADLINE).status_code == 200


# ---- time ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_counts_timings_and_the_time_that_passed_agree(
    start_simulator: StartSimulator, wire: Callable[[Server], Wire], stream: bool
) -> None:
    server = start_simulator(
        "--dataset", "practice", "--ttft", 0.3, "--tokens", 50, "--tokens-per-second", 100, "--reasoning", "field"
    )
    body = {"messages": [{"role": "user", "content": QUESTIONS[0]}], "stream": stream}
    body["stream_options"] = {"include_usage": True}
    start = time.monotonic()
    reply = requests.post(server.url + "/v1/chat/completions", json=body, timeout=DEADLINE)
    passed = 1000 * (time.monotonic() - start)
    events = [json.loads(line[6:]) for line in reply.text.split("\n\n") if line.startswith("data: {")]
    last = events[-1] if stream else reply.json()
    timings, usage = last["timings"], last["usage"]
    assert timings["predicted_n"] == usage["completion_tokens"] == 50
    assert timings["prompt_n"] == usage["prompt_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + 50
    assert timings["prompt_ms"] >= 300
    assert timings["predicted_ms"] >= 490
    assert timings["predicted_per_second"] == pytest.approx(49 / timings["predicted_ms"] * 1000)
    assert timings["prompt_ms"] + timings["predicted_ms"] <= passed
    if stream:  # a token for each delta, but for the two tags and the end
        assert sum(bool(set(event["choices"][0]["delta"]) & {"content", "reasoning_content"})
                   for event in events[1:-1]) == 47  # fmt: skip


def test_jitter_is_the_same_for_the_same_seed(start_simulator: StartSimulator) -> None:
    options = ("--dataset", "practice", "--tokens", 200, "--jitter", 0.5, "--seed")

    def lengths(seed: int) -> list[int]:
        server = start_simulator(*options, seed)
        bodies = [{"messages": [{"role": "user", "content": question}]} for question in QUESTIONS[:10]]
        replies = [requests.post(server.url + "/v1/chat/completions", json=body, timeout=DEADLINE) for body in bodies]
        return [reply.json()["usage"]["completion_tokens"] for reply in replies]

    assert lengths(1) == lengths(1) != lengths(2)
    assert len(set(lengths(1))) > 5
