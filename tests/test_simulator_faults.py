"""Faults on demand: the client's view of each, the attempts that they strike, and the deliveries that count."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from conftest import Server, StartSimulator

from scripts import ANSWERS, DEADLINE, SIMULATOR, load

simulator = load(SIMULATOR)
QUESTIONS = list(ANSWERS)
STATUSES = [kind for kind in simulator.FAULTS if kind.isdigit()]
LOSING = [kind for kind in simulator.FAULTS if not simulator.FAULTS[kind].delivered and kind != "hang"]


def post(server: Server, question: str = QUESTIONS[0], **fields: Any) -> requests.Response:
    body = {"messages": [{"role": "user", "content": question}], **fields}
    return requests.post(server.url + "/v1/chat/completions", json=body, timeout=DEADLINE)


def expected(server: Server) -> Any:
    return requests.get(server.url + "/simulator/expected", timeout=DEADLINE).json()


def counts(server: Server) -> tuple[int, int, int, int]:
    told = expected(server)
    return told["correct"], told["incorrect"], told["no_answer"], told["truncated"]


def entries(server: Server) -> Any:
    return requests.get(server.url + "/simulator/log", timeout=DEADLINE).json()


def faulty(start_simulator: StartSimulator, kind: str, *options: object) -> Server:
    """A simulator whose first attempt at each question fails in one way."""
    return start_simulator(
        "--dataset", "practice", "--success-rate", 1, "--fault", f"{kind}:0", "--fault-first", 1, *options
    )


# ---- what a client sees ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STATUSES)
def test_a_status_is_the_reply(start_simulator: StartSimulator, kind: str) -> None:
    server = faulty(start_simulator, kind)
    reply = post(server)
    assert reply.status_code == int(kind)
    assert reply.headers.get("Retry-After") == ("1" if kind == "429" else None)
    if kind in ("502", "504"):
        assert reply.headers["Content-Type"].startswith("text/html")
        assert "<html>" in reply.text
    else:
        assert reply.json()["error"]["code"] == int(kind)
    assert post(server).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("close", requests.ConnectionError),
        ("reset", requests.ConnectionError),
        ("reset-body", (requests.exceptions.ChunkedEncodingError, requests.ConnectionError)),
        ("short-body", requests.exceptions.ChunkedEncodingError),
    ],
)
def test_a_broken_connection_is_what_requests_raises(
    start_simulator: StartSimulator, kind: str, error: Any, stream: bool
) -> None:
    server = faulty(start_simulator, kind)
    with pytest.raises(error) as raised:
        post(server, stream=stream)
    if kind == "close":
        assert "Remote end closed connection without response" in str(raised.value)
    if kind == "reset":
        assert "Connection reset by peer" in str(raised.value)
    assert post(server, stream=stream).status_code == 200
    assert counts(server) == (1, 0, 0, 0)


def test_a_whole_reply_is_spoilt_as_its_fault_says(start_simulator: StartSimulator) -> None:
    kinds = ("cut-json", "error-200", "no-choices", "null-content", "bad-utf8", "no-done")
    server = start_simulator(
        *("--dataset", "practice", "--success-rate", 1, "--fault-first", len(kinds)),
        *("--fault", ",".join(f"{kind}:0" for kind in kinds)),
    )
    cut, error, empty, null, bad, whole = (post(server) for _ in kinds)
    assert {reply.status_code for reply in (cut, error, empty, null, bad, whole)} == {200}
    with pytest.raises(requests.JSONDecodeError):
        cut.json()
    assert int(cut.headers["Content-Length"]) == len(cut.content)
    assert error.json()["error"]["type"] == "server_error"
    assert empty.json()["choices"] == []
    assert null.json()["choices"][0]["message"] == {"role": "assistant", "content": None}
    assert b'"\xff\xfe\\nThe answer is' in bad.content
    assert whole.json()["choices"][0]["message"]["content"].startswith("The answer is")
    assert counts(server) == (2, 0, 1, 0)


def test_a_stream_is_spoilt_as_its_fault_says(start_simulator: StartSimulator) -> None:
    kinds = ("cut-json", "error-200", "no-choices", "null-content", "bad-utf8", "no-done", "stream-error")
    server = start_simulator(
        *("--dataset", "practice", "--success-rate", 1, "--fault-first", len(kinds)),
        *("--fault", ",".join(f"{kind}:0" for kind in kinds)),
    )
    cut, error, empty, null, bad, endless, broken = (post(server, stream=True) for _ in kinds)
    assert not cut.text.endswith("}\n\n")
    assert "[DONE]" not in cut.text
    assert "error" in error.json()
    assert {len(event["choices"]) for event in map(json.loads, events(empty))} == {0}
    assert not any(event["choices"][0]["delta"].get("content") for event in map(json.loads, events(null)))
    assert b"\xff\xfe" in bad.content
    assert json.loads(events(endless)[-1])["choices"][0]["finish_reason"] == "stop"
    assert "[DONE]" not in endless.text
    assert "error" in json.loads(events(broken)[-1])
    assert "[DONE]" not in broken.text
    assert counts(server) == (2, 0, 1, 0)


def events(reply: requests.Response) -> list[str]:
    return [event[6:] for event in reply.text.split("\n\n") if event.startswith("data: {")]


@pytest.mark.parametrize("stream", [False, True])
def test_silence_lasts_until_the_client_leaves(start_simulator: StartSimulator, stream: bool) -> None:
    server = faulty(start_simulator, "hang")
    with pytest.raises(requests.exceptions.ReadTimeout):
        requests.post(
            server.url + "/v1/chat/completions",
            json={"messages": [{"role": "user", "content": QUESTIONS[0]}], "stream": stream},
            timeout=0.5,
        )
    assert post(server, stream=stream).status_code == 200
    assert counts(server) == (1, 0, 0, 0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_drip_counts_if_its_client_has_the_patience(start_simulator: StartSimulator, stream: bool) -> None:
    server = faulty(start_simulator, "drip")
    host, port = server.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=DEADLINE)
    body = json.dumps({"messages": [{"role": "user", "content": QUESTIONS[0]}], "stream": stream})
    start = time.monotonic()
    connection.request("POST", "/v1/chat/completions", body)
    reply = connection.getresponse()
    assert len(reply.read(5)) == 5
    assert time.monotonic() - start >= 0.8
    connection.close()
    reply.close()
    while entries(server)[0]["verdict"] != "lost":
        assert time.monotonic() - start < DEADLINE
    assert post(server, stream=stream).status_code == 200
    assert [entry["delivery"] for entry in entries(server)] == [0, 0], "the first answer was given back"
    assert counts(server) == (1, 0, 0, 0)


@pytest.mark.parametrize("stream", [False, True])
def test_text_completions_have_the_same_faults(start_simulator: StartSimulator, stream: bool) -> None:
    kinds = ("500", "bad-utf8", "no-choices")
    server = start_simulator(
        *("--dataset", "practice", "--success-rate", 1, "--fault-first", len(kinds)),
        *("--fault", ",".join(f"{kind}:0" for kind in kinds)),
    )
    body = {"prompt": QUESTIONS[0], "stream": stream}
    failed, bad, empty = (requests.post(server.url + "/v1/completions", json=body, timeout=DEADLINE) for _ in kinds)
    assert failed.status_code == 500
    assert b'"text":"\xff\xfe\\n' in bad.content
    assert b'"choices":[]' in empty.content
    assert counts(server) == (1, 0, 0, 0)


def test_a_judge_uses_up_no_attempts_of_the_solver(start_simulator: StartSimulator) -> None:
    server = start_simulator("--dataset", "practice", "--fault-first", 1)
    judging = f"Extract the answer.\n\nQuestion: {QUESTIONS[0]}\n\n<response>It is \\boxed{{7}}</response>"
    assert [post(server, judging).status_code for _ in range(2)] == [503, 200]
    assert [post(server).status_code for _ in range(2)] == [503, 200]


def test_null_content_of_a_cut_reply_is_cut(start_simulator: StartSimulator) -> None:
    server = start_simulator("--dataset", "practice", "--fault", "null-content:1", "--success-rate", 1)
    post(server)
    post(server, max_tokens=2)
    assert counts(server) == (0, 0, 1, 1)


# ---- which attempts, and what counts ---------------------------------------------------------------


def test_the_same_seed_fails_the_same_attempts_in_any_order(start_simulator: StartSimulator) -> None:
    options = ("--dataset", "practice", "--fault", "500:0.2,429:0.2", "--seed", 5)

    def statuses(questions: list[str], threads: int) -> Counter[tuple[str, int]]:
        server = start_simulator(*options)
        with ThreadPoolExecutor(threads) as pool:
            replies = pool.map(lambda question: (question, post(server, question).status_code), questions)
            return Counter(replies)

    asked = QUESTIONS * 4
    once = statuses(asked, 1)
    assert once == statuses(asked[::-1], 16)
    total = Counter(status for (_, status), count in once.items() for _ in range(count))
    assert 10 < total[500] < 40
    assert 10 < total[429] < 40


@pytest.mark.parametrize("stream", [False, True])
def test_a_lost_reply_does_not_count_and_the_rate_stays_exact(start_simulator: StartSimulator, stream: bool) -> None:
    kinds = [kind for kind in LOSING if stream or not simulator.FAULTS[kind].only_streams]
    rate = 0.5 / len(kinds)
    faults = ",".join(f"{kind}:{rate:.4f}" for kind in kinds)
    server = start_simulator("--dataset", "practice", "--success-rate", 0.6, "--fault", faults, "--slots", 64)

    def persist(question: str) -> bool:
        """Ask until there is a whole answer; whether it is right."""
        while True:
            with contextlib.suppress(requests.RequestException, ValueError, LookupError):
                reply = post(server, question, stream=stream)
                if reply.status_code != 200 or (stream and "[DONE]" not in reply.text):
                    continue
                text = reply.json()["choices"][0]["message"]["content"] if not stream else stream_text(reply)
                return text == f"The answer is \\boxed{{{ANSWERS[question]}}}."

    with ThreadPoolExecutor(32) as pool:
        right = sum(pool.map(persist, QUESTIONS * 2))
    assert right == 36
    assert counts(server) == (36, 24, 0, 0)
    assert {entry["verdict"] for entry in entries(server) if entry["fault"] is None} == {"correct", "incorrect"}
    assert {entry["verdict"] for entry in entries(server) if entry["fault"] is not None} == {"lost"}


def stream_text(reply: requests.Response) -> str:
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in map(json.loads, events(reply)))


def test_a_loop_from_which_the_client_turns_away_counts_before_its_fault_can_strike(
    start_simulator: StartSimulator,
) -> None:
    server = start_simulator(
        *("--dataset", "practice", "--success-rate", 0, "--loop-rate", 1, "--fault", "no-done:1"),
        *("--tokens-per-second", 20_000),
    )
    body = {"messages": [{"role": "user", "content": QUESTIONS[0]}], "stream": True}
    with requests.post(server.url + "/v1/chat/completions", json=body, stream=True, timeout=DEADLINE) as reply:
        for _ in zip(range(400), reply.iter_content(1 << 12), strict=False):
            pass
    deadline = time.monotonic() + DEADLINE
    while entries(server)[0]["verdict"] is None and time.monotonic() < deadline:
        pass
    assert counts(server) == (0, 0, 0, 1)


def test_without_faults_of_its_own_the_first_attempts_are_refused(start_simulator: StartSimulator) -> None:
    server = start_simulator("--dataset", "practice", "--fault-first", 2)
    assert [post(server).status_code for _ in range(4)] == [503, 503, 200, 200]
    assert [entry["attempt"] for entry in entries(server)] == [0, 1, 2, 3]


def test_other_routes_never_fail(start_simulator: StartSimulator) -> None:
    server = start_simulator("--dataset", "practice", "--fault", "reset:1")
    for path in ("/health", "/v1/models", "/props", "/slots", "/simulator/expected"):
        assert requests.get(server.url + path, timeout=DEADLINE).status_code == 200
    with pytest.raises(requests.ConnectionError):
        post(server)
