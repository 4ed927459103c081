"""The simulator as a process: what it says on the wire, on its console, and about bad input."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from conftest import Server, StartSimulator

from scripts import DEADLINE, REPO, SHARED, SIMULATOR

ANSWERS = {
    "How many three-digit numbers have a digit sum of 5?": 15,
    "A rectangle has area $48$ and perimeter $28$. What is the product of its sides' lengths and its perimeter?": 1344,
    "Find the remainder when $7^{100}$ is divided by $50$.": 1,
    "In how many ways can six people sit at a round table if two of them refuse to be neighbours?": 72,
    "A fair die is rolled three times; the probability of rising numbers is $\\frac{m}{n}$. Find $m + n$.": 59,
    "What is the largest prime factor of $2^{12} - 1$?": 13,
    "The sides of a triangle are 13, 14 and 15 long. What is its area in unit squares?": 84,
    "Compute the sum of all positive integers below 100 that are multiples of neither 2 nor 3.": 1633,
    "How many zeros end the decimal expansion of the factorial of 125?": 31,
    "Two circles of radius 25 have centres 14 apart. How long is the chord they share?": 48,
}
QUESTIONS = list(ANSWERS)


def write_questions(path: Path, answers: dict[str, int]) -> Path:
    rows = [{"id": f"q{number}", "question": text, "answer": n} for number, (text, n) in enumerate(answers.items())]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def questions_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("data") / "own.jsonl", ANSWERS)


@pytest.fixture(scope="module")
def server(start_module_simulator: StartSimulator, questions_file: Path) -> Server:
    """A simulator that is always right, shared by the tests that do not care how often they ask."""
    return start_module_simulator("--dataset", questions_file, "--success-rate", 1)


def post(server: Server, body: object, path: str = "/v1/chat/completions") -> requests.Response:
    return requests.post(server.url + path, json=body, timeout=DEADLINE)


def body_of(question: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"Solve this.\n\n{question}"}], **fields}


def ask(server: Server, question: str, **fields: Any) -> Any:
    response = post(server, body_of(question, **fields))
    assert response.status_code == 200, response.text
    return response.json()


def content_of(reply: Any) -> str:
    return str(reply["choices"][0]["message"]["content"])


def answer_of(reply: Any) -> int:
    (number,) = re.findall(r"-?\d+", content_of(reply))
    return int(number)


def raw_request(
    server: Server, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, Any, bytes]:
    """Status, headers and body of a request sent as it is."""
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=DEADLINE)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def run_to_its_end(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A simulator that is expected not to start, or only to print its help."""
    command = [sys.executable, str(SIMULATOR), *map(str, arguments)]
    environment = {**os.environ, **(env or {})}
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", env=environment, timeout=DEADLINE, check=False
    )


# ---- starting and stopping -------------------------------------------------------------------------


def test_the_banner_tells_url_rate_and_questions(server: Server) -> None:
    assert re.fullmatch(
        r"=== llama-server-simulator ===\n"
        r"Server running on http://localhost:[1-9]\d*\n"
        r"Success rate: 1\.0\n"
        r"Questions loaded: 10 \(own 10\)\n",
        server.banner,
    )


def test_once_the_banner_is_out_requests_are_answered(start_simulator: StartSimulator, questions_file: Path) -> None:
    fresh = start_simulator("--dataset", questions_file)
    assert requests.get(fresh.url + "/health", timeout=DEADLINE).json() == {"status": "ok"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_quietly(start_simulator: StartSimulator, questions_file: Path, number: int) -> None:
    fresh = start_simulator("--dataset", questions_file)
    fresh.process.send_signal(number)
    assert fresh.process.wait(DEADLINE) == 0
    assert fresh.log() == ""


def test_a_signal_stops_it_quietly_in_the_middle_of_work(start_simulator: StartSimulator, questions_file: Path) -> None:
    busy = start_simulator("--dataset", questions_file)

    def ask_on(_: int) -> None:
        while busy.process.poll() is None:
            try:
                ask(busy, QUESTIONS[0])
            except requests.RequestException:
                return

    with ThreadPoolExecutor(8) as pool:
        clients = pool.map(ask_on, range(8))
        ask(busy, QUESTIONS[1])
        busy.process.terminate()
        assert busy.process.wait(DEADLINE) == 0
        list(clients)
    assert re.fullmatch(r"(own/q[01] (right|wrong): .*\n)+", busy.log())


def test_the_host_can_be_an_ipv6_address(start_simulator: StartSimulator, questions_file: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"this machine has no IPv6: {error}")
    six = start_simulator("--dataset", questions_file, "--host", "::1")
    assert six.url.startswith("http://[::1]:")
    assert requests.get(six.url + "/health", timeout=DEADLINE).ok


# ---- routes ----------------------------------------------------------------------------------------


def test_props_and_models_tell_what_an_evaluator_asks_for(server: Server) -> None:
    props = requests.get(server.url + "/props", timeout=DEADLINE).json()
    assert (props["total_slots"], props["default_generation_settings"]["n_ctx"]) == (4, 32768)
    (model,) = requests.get(server.url + "/v1/models", timeout=DEADLINE).json()["data"]
    assert model["id"] == props["model_alias"] == ask(server, QUESTIONS[0], model="another")["model"] == "simulator"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/v1"),
        ("GET", "/health/"),
        ("GET", "/v1//models"),
        ("POST", "/health"),
        ("DELETE", "/props"),
        ("GET", "/v1/chat/completions"),
        ("POST", "/v1/chat/completions/"),
        ("PUT", "/v1/models"),
        ("GET", "/static/x"),
    ],
)
def test_unknown_routes_and_wrong_methods_are_not_found(server: Server, method: str, path: str) -> None:
    status, headers, body = raw_request(server, method, path, b"{}" if method != "GET" else None)
    assert status == 404
    assert headers["Content-Type"] == "application/json; charset=utf-8"
    assert body == b'{"error":{"message":"File Not Found","type":"not_found_error","code":404}}'


def test_every_reply_names_llama_cpp_as_its_server(server: Server) -> None:
    for method, path, body in (
        ("GET", "/health", None),
        ("HEAD", "/health", None),
        ("GET", "/nowhere", None),
        ("POST", "/v1/chat/completions", b"{"),
        ("POST", "/v1/chat/completions", json.dumps(body_of(QUESTIONS[0], stream=True)).encode()),
    ):
        assert raw_request(server, method, path, body)[1].get_all("Server") == ["llama.cpp"]


def test_the_query_string_and_the_content_type_do_not_matter(server: Server) -> None:
    body = json.dumps(body_of(QUESTIONS[0])).encode()
    for kind in ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain", ""):
        headers = {"Content-Type": kind} if kind else {}
        assert raw_request(server, "POST", "/v1/chat/completions?x=1", body, **headers)[0] == 200


# ---- chat ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/chat/completions"])
def test_at_rate_1_every_answer_is_the_expected_one(server: Server, path: str) -> None:
    for question, answer in ANSWERS.items():
        reply = post(server, body_of(question), path).json()
        assert content_of(reply) == f"The answer is \\boxed{{{answer}}}."
        assert reply["choices"][0]["finish_reason"] == "stop"


def test_at_rate_0_every_answer_is_one_more(start_simulator: StartSimulator, questions_file: Path) -> None:
    wrong = start_simulator("--dataset", questions_file, "--success-rate", 0)
    assert [answer_of(ask(wrong, question)) for question in QUESTIONS] == [n + 1 for n in ANSWERS.values()]


def test_a_prompt_that_asks_for_json_gets_a_sentence_and_json(server: Server) -> None:
    prompt = QUESTIONS[1] + '\nReply with a JSON object: {"answer": <integer>}'
    sentence, last = content_of(ask(server, prompt)).split("\n")
    assert sentence.endswith(".")
    assert json.loads(last) == {"answer": 1344}


def test_a_system_message_that_asks_for_json_counts_too(server: Server) -> None:
    messages = [{"role": "system", "content": 'Use the key "answer".'}, *body_of(QUESTIONS[1])["messages"]]
    assert content_of(post(server, {"messages": messages}).json()).endswith('\n{"answer": 1344}')


@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
def test_a_response_format_gets_json_alone(server: Server, kind: str) -> None:
    assert content_of(ask(server, QUESTIONS[1], response_format={"type": kind})) == '{"answer": 1344}'


def test_the_content_may_come_in_parts(server: Server) -> None:
    half = len(QUESTIONS[3]) // 2
    parts = [{"type": "text", "text": text} for text in (QUESTIONS[3][:half], QUESTIONS[3][half:])]
    assert answer_of(post(server, {"messages": [{"role": "user", "content": parts}]}).json()) == 72


def test_the_last_question_of_the_user_is_answered(server: Server) -> None:
    dialogue = [
        {"role": "system", "content": QUESTIONS[4]},
        {"role": "user", "content": QUESTIONS[5]},
        {"role": "assistant", "content": QUESTIONS[6]},
        {"role": "user", "content": QUESTIONS[7]},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "Are you sure?"},
    ]
    assert answer_of(post(server, {"messages": dialogue}).json()) == ANSWERS[QUESTIONS[7]]


def test_usage_and_timings_count_the_same_tokens(server: Server) -> None:
    reply = ask(server, QUESTIONS[0])
    usage, timings = reply["usage"], reply["timings"]
    assert usage["prompt_tokens"] == timings["prompt_n"] > 10
    assert usage["completion_tokens"] == timings["predicted_n"] > 5
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert timings["prompt_per_second"] == pytest.approx(1000 * timings["prompt_n"] / timings["prompt_ms"])
    assert timings["predicted_per_second"] == pytest.approx(
        1000 * (timings["predicted_n"] - 1) / timings["predicted_ms"]
    )


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n_predict"])
def test_a_reply_over_the_limit_is_cut(server: Server, name: str) -> None:
    reply = ask(server, QUESTIONS[0], **{name: 3})
    assert content_of(reply) == "The answer"
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == reply["timings"]["predicted_n"] == 3


def test_one_token_is_the_least_and_its_speed_is_0(server: Server) -> None:
    reply = ask(server, QUESTIONS[0], max_tokens=0)
    assert content_of(reply) == "The"
    assert reply["timings"]["predicted_per_second"] == reply["timings"]["predicted_per_token_ms"] == 0


def test_ids_are_fresh(server: Server) -> None:
    assert len({ask(server, QUESTIONS[0])["id"] for _ in range(20)}) == 20


# ---- streams ---------------------------------------------------------------------------------------


def events_of(server: Server, question: str, **fields: Any) -> list[Any]:
    """The JSON chunks of a stream, whose form is checked on the way."""
    response = post(server, body_of(question, stream=True, **fields))
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/event-stream"
    assert response.text.endswith("\n\ndata: [DONE]\n\n")
    *chunks, done = response.text.removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]"
    return [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]


def test_a_stream_adds_up_to_the_plain_reply(server: Server) -> None:
    for prompt in (QUESTIONS[1], QUESTIONS[1] + ' Use {"answer": 1}.'):
        deltas = [chunk["choices"][0]["delta"] for chunk in events_of(server, prompt)]
        assert "".join(delta.get("content") or "" for delta in deltas) == content_of(ask(server, prompt))


def test_a_stream_goes_through_the_stages_of_the_real_one(server: Server) -> None:
    first, *middle, last = events_of(server, QUESTIONS[0])
    keys = ["choices", "created", "id", "model", "system_fingerprint", "object"]
    assert list(first) == keys
    assert first["choices"] == [{"finish_reason": None, "index": 0, "delta": {"role": "assistant", "content": None}}]
    for chunk in middle:
        assert list(chunk) == keys
        assert list(chunk["choices"][0]["delta"]) == ["content"]
        assert chunk["id"] == first["id"]
    assert list(last) == [*keys, "timings"]
    assert last["choices"] == [{"finish_reason": "stop", "index": 0, "delta": {}}]


def test_a_stream_with_usage_ends_in_a_chunk_without_choices(server: Server) -> None:
    *_, finish, last = events_of(server, QUESTIONS[0], stream_options={"include_usage": True})
    assert "timings" not in finish
    assert list(last)[-2:] == ["usage", "timings"]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == last["timings"]["predicted_n"]


def test_a_stream_is_cut_at_the_limit(server: Server) -> None:
    chunks = events_of(server, QUESTIONS[0], max_tokens=2)
    assert len(chunks) == 4
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


# ---- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("content", ["What is the capital of France, and how many people live there?", "", None])
def test_an_unknown_question_gets_an_error_and_no_answer(server: Server, content: str | None, stream: bool) -> None:
    response = post(server, {"messages": [{"role": "user", "content": content}], "stream": stream})
    assert response.status_code == 400
    (error,) = response.json().values()
    assert list(error) == ["code", "message", "type"]
    assert (error["code"], error["type"]) == (400, "invalid_request_error")
    assert re.fullmatch(
        r"the prompt matches none of the 10 known questions \(closest distance [01]\.\d\d, accepted up to 0\.30\)",
        error["message"],
    )


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"messages": [', b"\xff\xfe", b'{"messages": NaN}', b"[" * 100_000, b"1" * 5000, b"{} {}"]
)
def test_what_is_not_json_is_a_server_error(server: Server, body: bytes) -> None:
    status, _, reply = raw_request(server, "POST", "/v1/chat/completions", body)
    error = json.loads(reply)["error"]
    assert (status, error["code"], error["type"]) == (500, 500, "server_error")
    assert error["message"].startswith("[json.exception.parse_error.101] parse error at line 1, column ")


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "'messages' is required"),
        ([], 400, "'messages' is required"),
        ("x", 400, "'messages' is required"),
        ({"messages": None}, 400, "Expected 'messages' to be an array"),
        ({"messages": "hi"}, 400, "Expected 'messages' to be an array"),
        ({"messages": [{"role": "user", "content": 5}]}, 400, "Expected 'content' to be a string or an array"),
        ({"messages": [{"role": "user", "content": [{"type": "foo"}]}]}, 400, "unsupported content[].type"),
        ({"messages": [{"role": "user", "content": ["foo"]}]}, 400, "unsupported content[].type"),
        (
            {"messages": [{"content": "x"}]},
            500,
            'Failed to parse messages: Missing \'role\' in message: {"content":"x"}',
        ),
        ({"messages": ["x"]}, 400, "All non-assistant messages must contain 'content'"),
        ({"messages": [{"role": "user"}]}, 400, "All non-assistant messages must contain 'content'"),
        ({"messages": [7]}, 400, "All non-assistant messages must contain 'content'"),
        (
            {"messages": [{"role": "assistant"}]},
            400,
            "Assistant message must contain either 'content' or 'tool_calls'!",
        ),
        (
            {"messages": [{"role": "user", "content": "x"}], "n": 0},
            400,
            "Field 'n': Value must be between 1 <= value <= 4, but got 0",
        ),
        (
            {"messages": [{"role": "user", "content": "x"}], "n": 5},
            400,
            "Field 'n': Value must be between 1 <= value <= 4, but got 5",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            500,
            "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
        ),
        (
            body_of("x", stream="yes"),
            400,
            "Field 'stream': [json.exception.type_error.302] type must be boolean, but is string",
        ),
        (
            body_of("x", max_tokens="9"),
            400,
            "Field 'max_tokens': [json.exception.type_error.302] type must be number, but is string",
        ),
        (
            body_of("x", max_tokens=-2),
            400,
            "Field 'max_tokens': Value must be between -1 <= value <= 2147483647, but got -2",
        ),
    ],
)
def test_a_bad_request_is_refused_in_the_words_of_the_real_server(
    server: Server, body: object, status: int, message: str
) -> None:
    response = post(server, body)
    kind = "server_error" if status == 500 else "invalid_request_error"
    assert response.status_code == status
    assert response.json() == {"error": {"code": status, "message": message, "type": kind}}


def test_a_refusal_takes_nothing_from_the_rate(start_simulator: StartSimulator, questions_file: Path) -> None:
    half = start_simulator("--dataset", questions_file, "--success-rate", 0.5)
    right = 0
    for question, answer in ANSWERS.items():
        assert post(half, body_of("Something else entirely?")).status_code == 400
        right += answer_of(ask(half, question)) == answer
    assert right == 5


# ---- the log ---------------------------------------------------------------------------------------


def test_every_decision_is_one_line(start_simulator: StartSimulator, questions_file: Path) -> None:
    fresh = start_simulator("--dataset", questions_file, "--success-rate", 0)
    requests.get(fresh.url + "/health", timeout=DEADLINE)
    ask(fresh, QUESTIONS[2])
    ask(fresh, QUESTIONS[4].replace("\\frac", ""))
    ask(fresh, QUESTIONS[3].replace("people", "persons"), stream_options={})
    post(fresh, body_of("What is the capital of France?"))
    post(fresh, {})
    assert re.fullmatch(
        r"own/q2 wrong: answered 2 \(exact, distance 0\.00, delivery 0, attempt 0\)\n"
        r"own/q4 wrong: answered 60 \(letters, distance 0\.00, delivery 0, attempt 0\)\n"
        r"own/q3 wrong: answered 73 \(levenshtein, distance 0\.0[1-9], delivery 0, attempt 0\)\n"
        r"refused 400: 'the prompt matches none of the 10 known questions \(closest distance [01]\.\d\d, "
        r"accepted up to 0\.30\)'; closest own/q\d, asked 'Solve this\.\\n\\nWhat is the capital of France\?'\n"
        r'refused 400: "\'messages\' is required"\n',
        fresh.log(),
    )


def test_a_client_cannot_write_into_the_log(start_simulator: StartSimulator, tmp_path: Path) -> None:
    row = {"id": "7\nown/8 right", "question": QUESTIONS[0], "answer": 1}
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    fresh = start_simulator("--dataset", path)
    post(fresh, body_of("\x1b[2J\rown/8 right: answered 9\n\u202e \ud800" * 50))
    ask(fresh, QUESTIONS[0])
    assert all(character == "\n" or character.isprintable() for character in fresh.log())
    assert len(fresh.log().splitlines()) == 2
    assert all(len(line) < 300 for line in fresh.log().splitlines())


# ---- many at once ----------------------------------------------------------------------------------


def test_64_requests_at_once_are_all_answered(server: Server) -> None:
    together = threading.Barrier(64)

    def one(number: int) -> bool:
        question = QUESTIONS[number % len(QUESTIONS)]
        together.wait(DEADLINE)
        return answer_of(ask(server, question)) == ANSWERS[question]

    with ThreadPoolExecutor(64) as pool:
        assert list(pool.map(one, range(64))) == [True] * 64


def test_every_pass_has_the_exact_rate_whatever_order_requests_come_in(
    start_simulator: StartSimulator, tmp_path: Path
) -> None:
    names = {"large": dict(list(ANSWERS.items())[:7]), "small": dict(list(ANSWERS.items())[7:])}
    paths = [write_questions(tmp_path / f"{name}.jsonl", answers) for name, answers in names.items()]
    fresh = start_simulator("--dataset", ",".join(map(str, paths)), "--success-rate", 0.8)
    assert fresh.banner.endswith("Questions loaded: 10 (large 7, small 3)\n")
    for number in range(3):
        order = random.Random(number).sample(QUESTIONS, len(QUESTIONS))
        with ThreadPoolExecutor(10) as pool:
            replies = dict(zip(order, pool.map(lambda question: answer_of(ask(fresh, question)), order), strict=True))
        for answers, right in ((names["large"], 6), (names["small"], 2)):
            assert sum(replies[question] == answer for question, answer in answers.items()) == right


def test_the_seed_decides_whatever_order_requests_come_in(
    start_simulator: StartSimulator, questions_file: Path
) -> None:
    def answers(seed: int, order: list[str]) -> dict[str, list[int]]:
        fresh = start_simulator("--dataset", questions_file, "--success-rate", 0.5, "--seed", seed)
        given: dict[str, list[int]] = {}
        for question in order:
            given.setdefault(question, []).append(answer_of(ask(fresh, question)))
        return given

    twice = QUESTIONS * 2
    assert answers(7, twice) == answers(7, random.Random(1).sample(twice, len(twice)))
    assert answers(7, twice) != answers(8, twice)


# ---- datasets --------------------------------------------------------------------------------------


@pytest.fixture
def unreachable() -> Iterator[str]:
    """The URL of a port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a port where connections are taken and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def garbled() -> Iterator[str]:
    """The URL of a server that does not speak HTTP."""

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(b"220 mail ready\r\n")

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as other:
        threading.Thread(target=other.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{other.server_address[1]}"
        other.shutdown()


@pytest.fixture
def refusing() -> Iterator[str]:
    """The URL of a server that gives every request the status 401."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name that http.server looks for
            self.send_response(401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as hub:
        threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{hub.server_port}"
        hub.shutdown()


@pytest.mark.parametrize("offline", [{"HF_HUB_OFFLINE": "1"}, {}], ids=["offline", "online"])
def test_the_aime_sets_come_from_the_cache_without_a_network(
    start_simulator: StartSimulator, aime_cache: Path, silent: str, offline: dict[str, str]
) -> None:
    env = {"HF_DATASETS_CACHE": str(aime_cache), "HF_ENDPOINT": silent, **offline}
    fresh = start_simulator("--success-rate", 1, env=env)
    assert fresh.banner.endswith("Questions loaded: 120 (aime 90, aime2025 30)\n")
    rows = (SHARED / "data" / "aime2025-II.jsonl").read_text(encoding="utf-8").splitlines()
    assert answer_of(ask(fresh, json.loads(rows[4])["question"])) == 336
    assert fresh.log() == "aime2025/II-5 right: answered 336 (exact, distance 0.00, delivery 0, attempt 0)\n"


def test_a_hub_dataset_in_the_cache_is_read_with_the_split_asked_for(
    start_simulator: StartSimulator, aime_cache: Path, unreachable: str
) -> None:
    env = {"HF_DATASETS_CACHE": str(aime_cache), "HF_ENDPOINT": unreachable}
    name = "AI-MO/aimo-validation-aime"
    assert "(AI-MO/aimo-validation-aime 90)" in start_simulator("--dataset", name, env=env).banner
    other = run_to_its_end("--dataset", name, "--dataset-split", "test", env=env)
    assert other.returncode == 1
    assert 'Unknown split "test". Should be one of [' in other.stderr


@pytest.mark.parametrize("hub", ["unreachable", "silent", "garbled"])
def test_without_cache_and_hub_it_ends_soon_and_says_what_to_do(
    request: pytest.FixtureRequest, tmp_path: Path, hub: str
) -> None:
    endpoint = request.getfixturevalue(hub)
    start = time.monotonic()
    run = run_to_its_end(env={"HF_DATASETS_CACHE": str(tmp_path), "HF_ENDPOINT": endpoint})
    assert time.monotonic() - start < 20
    assert (run.returncode, run.stdout) == (1, "")
    assert re.fullmatch(
        rf"llama-server-simulator: error: cannot load AI-MO/aimo-validation-aime: the cache {tmp_path} does not hold "
        rf"it \(.*\) and {endpoint} does not answer; use --dataset practice or a local FILE\.jsonl\n",
        run.stderr,
    )


def test_offline_the_hub_is_not_asked(tmp_path: Path) -> None:
    run = run_to_its_end("--dataset", "org/name", env={"HF_DATASETS_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"})
    assert run.returncode == 1
    assert "HF_HUB_OFFLINE forbids asking the hub; use --dataset practice" in run.stderr


def test_a_hub_that_refuses_is_quoted_in_one_line(refusing: str, tmp_path: Path) -> None:
    run = run_to_its_end("--dataset", "org/name", env={"HF_DATASETS_CACHE": str(tmp_path), "HF_ENDPOINT": refusing})
    progress, complaint = run.stderr.splitlines()
    assert (run.returncode, progress) == (1, f"loading org/name from {refusing}")
    assert complaint.startswith("llama-server-simulator: error: cannot load org/name: ")
    assert complaint.endswith("; use --dataset practice or a local FILE.jsonl")


def test_a_file_may_have_problems_and_no_ids(start_simulator: StartSimulator, tmp_path: Path) -> None:
    path = tmp_path / "plain.jsonl"
    lines = [json.dumps({"problem": text, "answer": str(n)}) for text, n in ANSWERS.items()]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(lines).encode())
    fresh = start_simulator("--dataset", path, "--success-rate", 1)
    assert answer_of(ask(fresh, QUESTIONS[3])) == 72
    assert fresh.log().startswith("plain/4 right")


def test_the_practice_set_needs_no_network(start_simulator: StartSimulator) -> None:
    if not (REPO / "data" / "practice.jsonl").is_file():
        pytest.skip("there is no data/practice.jsonl")
    fresh = start_simulator("--dataset", "practice")
    assert re.search(r"Questions loaded: (\d+) \(practice \1\)", fresh.banner)


# ---- bad input -------------------------------------------------------------------------------------


def complaint_of(*arguments: object) -> tuple[int, str]:
    """Exit code and message of a start that must fail with one line."""
    run = run_to_its_end(*arguments)
    assert run.stdout == ""
    match = re.fullmatch(r"llama-server-simulator: error: (.+)\n", run.stderr)
    assert match, run.stderr
    return run.returncode, match[1]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        *((("--success-rate", rate), "from 0 to 1") for rate in ("-0.1", "1.1", "nan", "inf", "most", "")),
        *((("--port", port), "from 0 to 65535") for port in ("-1", "65536", "x", "8O33", "")),
        (("--seed", "x"), "--seed"),
        (("--dataset", "nope"), "unknown dataset 'nope'; known are aime, aime2025, aime2026, gsm8k, practice"),
        (("--dataset", ""), "unknown dataset ''"),
        (("--dataset", "practice,"), "unknown dataset ''"),
        (("--dataset", "practice,practice"), "dataset 'practice' is named 2 times"),
        (("--dataset", "a\nb"), "unknown dataset"),
        (("--success", "0.5"), "unrecognized arguments"),
        (("extra",), "unrecognized arguments"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(arguments: tuple[str, ...], complaint: str) -> None:
    code, message = complaint_of(*arguments)
    assert code == 2
    assert complaint in message


GOOD = '{"id": "a", "question": "Why?", "answer": 1}\n'


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "'bad.jsonl' holds no questions"),
        (b"\n \n", "'bad.jsonl' holds no questions"),
        (f"{GOOD}{{bad\n".encode(), "bad.jsonl:2: not valid JSON"),
        (f"{GOOD}\n[1]\n".encode(), "bad.jsonl:3: not a JSON object"),
        (f"{GOOD}{GOOD}".encode(), "bad.jsonl:2: the id 'a' is taken by bad.jsonl:1"),
        (GOOD.encode().replace(b"Why", b"Wh\xff"), "bad.jsonl:1: not UTF-8 text"),
        (b'{"question": "Why?"}\n', "bad.jsonl:1: no answer"),
        (b'{"question": "Why?", "answer": null}\n', "bad.jsonl:1: no answer"),
        (b'{"question": "Why?", "answer": "because"}\n', "bad.jsonl:1: the answer 'because' is not an integer"),
        (b'{"question": "Why?", "answer": ""}\n', "bad.jsonl:1: the answer '' is not an integer"),
        (b'{"answer": 1}\n', "bad.jsonl:1: no text under 'question' or 'problem'"),
        (b'{"question": " ", "answer": 1}\n', "bad.jsonl:1: no text under 'question' or 'problem'"),
        (b'{"question": 5, "answer": 1}\n', "bad.jsonl:1: no text under 'question' or 'problem'"),
        (b'{"question": "Why?", "answer": 1, "id": [1]}\n', "bad.jsonl:1: the id '[1]' is neither text nor an integer"),
        (b"[" * 100_000, "bad.jsonl:1: not valid JSON"),
    ],
)
def test_a_bad_file_is_one_line_with_its_place_and_exit_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes, complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.jsonl").write_bytes(content)
    code, message = complaint_of("--dataset", "bad.jsonl")
    assert code == 1
    assert complaint in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    code, message = complaint_of("--dataset", tmp_path / "none.jsonl")
    assert (code, message) == (1, f"cannot read '{tmp_path / 'none.jsonl'}': No such file or directory")


def test_a_file_name_cannot_upset_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[2J.jsonl"
    path.write_text("{", encoding="utf-8")
    assert complaint_of("--dataset", path)[1].startswith(f"{tmp_path}/a\\x1b[2J.jsonl:1: not valid JSON")


def test_a_port_in_use_is_named_with_a_way_out(server: Server, questions_file: Path) -> None:
    port = urlsplit(server.url).port
    code, message = complaint_of("--dataset", questions_file, "--port", port)
    assert code == 1
    assert re.fullmatch(rf"port {port} of localhost is in use; try --port \d+, or --port 0 for any free one", message)


def test_an_unknown_host_is_named(questions_file: Path) -> None:
    code, message = complaint_of("--dataset", questions_file, "--host", "no such host")
    assert code == 1
    assert message.startswith("cannot listen on 'no such host' port 8033: ")


def test_with_closed_consoles_no_log_line_goes_to_a_client(questions_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = f'exec "{sys.executable}" "{SIMULATOR}" --dataset "{questions_file}" --host 127.0.0.1 --port {port}'
    with subprocess.Popen(["/bin/sh", "-c", f"{command} <&- >&- 2>&-"]) as process:
        try:
            deadline = time.monotonic() + DEADLINE
            while True:
                assert time.monotonic() < deadline
                try:
                    reply = requests.post(
                        f"http://127.0.0.1:{port}/v1/chat/completions", json=body_of(QUESTIONS[0]), timeout=DEADLINE
                    )
                    break
                except requests.ConnectionError:
                    continue
            assert reply.json()["choices"]
        finally:
            process.kill()


def test_a_console_that_cannot_be_written_to_is_named() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    command = [sys.executable, str(SIMULATOR), "--dataset", "practice", "--port", "0"]
    with full.open("w") as stdout:
        run = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=DEADLINE, check=False)
    assert (run.returncode, run.stderr.count("\n")) == (1, 1)
    assert "cannot print the URL: No space left on device" in run.stderr


# ---- documentation ---------------------------------------------------------------------------------


def test_the_help_names_every_option_with_its_default() -> None:
    run = run_to_its_end("--help")
    assert (run.returncode, run.stderr) == (0, "")
    text = " ".join(run.stdout.split())
    for option, default in (
        ("--host", "localhost"),
        ("--port", "8033"),
        ("--success-rate", "0.8"),
        ("--dataset", "aime,aime2025"),
        ("--dataset-split", "train"),
        ("--seed", "0"),
    ):
        assert re.search(rf"{option} [A-Z]+ [^(]*\(default: {re.escape(default)}\)", text), option


def test_the_inline_dependencies_are_lines_of_the_requirements() -> None:
    block = re.search(r"^# /// script\n(?:#.*\n)*?# ///$", SIMULATOR.read_text(encoding="utf-8"), re.MULTILINE)
    assert block
    wanted = Counter(re.findall(r'^#     "(.+)",$', block[0], re.MULTILINE))
    assert set(wanted) == {"flask>=3.0", "datasets>=3.0", "python-Levenshtein>=0.25"}
    assert set(wanted) <= set((REPO / "requirements.txt").read_text(encoding="utf-8").splitlines())


def test_no_page_of_another_origin_resets_it(start_simulator: StartSimulator) -> None:
    server = start_simulator("--dataset", "practice")
    url = server.url + "/simulator/reset"
    assert requests.post(url, headers={"Origin": "http://elsewhere.example"}, timeout=DEADLINE).status_code == 403
    assert requests.post(url, headers={"Origin": server.url}, timeout=DEADLINE).status_code == 200
    assert requests.post(url, timeout=DEADLINE).status_code == 200
