"""Faults of servers and networks, from a server that is scripted down to the bytes, and their outcome."""

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from scripts import (
    ANSWERS,
    DEADLINE,
    DONE,
    EVAL,
    STREAM,
    HangupError,
    answer,
    answer_stream,
    chunk,
    completion,
    delta,
    event,
    http,
    load,
    run_eval,
    streamed,
)

llama_eval = load(EVAL)
QUESTION = {"messages": [{"role": "user", "content": next(iter(ANSWERS))}]}
OVERFLOW = "request (3017 tokens) exceeds the available context size (1024 tokens), try increasing it"


def states_of(folder: Path, name="run.json"):
    return json.loads((folder / name).read_text("utf-8"))["task_states"]


def send(data):
    """An act: send this, and leave the connection open."""
    return lambda connection, body: connection.sendall(data)


def send_and_close(data):
    def act(connection, body):
        connection.sendall(data)
        raise HangupError

    return act


def send_and_reset(data):
    def act(connection, body):
        connection.sendall(data)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise HangupError

    return act


def as_json(value):
    return json.dumps(value).encode()


SHORT_BODY = b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"choices": ['
TEXT = delta("so far ") + delta("so good")

WHOLE_FAULTS = {  # what is wrong with a reply of any kind, the act, what is said of it
    "closed before the reply": (send_and_close(b""), "closed connection|Connection reset"),
    "reset before the reply": (send_and_reset(b""), "Connection reset"),
    "no HTTP": (send_and_close(b"ceci n'est pas HTTP\r\n\r\n"), "ceci"),
    "cut in the head": (send_and_close(b"HTTP/1.1 200 OK\r\nConte"), "no chat|not JSON|broke off|closed"),
    "cut in the body": (send_and_close(SHORT_BODY), "broke off"),
    "reset in the body": (send_and_reset(SHORT_BODY), "broke off|reset"),
    "cut in a chunk": (send_and_close(STREAM.replace(b"event-stream", b"plain") + b'20\r\n{"cho'), "broke off"),
    "cut JSON": (send(http(b'{"choices": [{"message"')), "not JSON"),
    "HTML": (send(http(b"<html>Welcome</html>", Content_Type="text/html")), "not JSON: '<html>"),
    "nothing": (send(http(b"")), "not JSON"),
    "bad compression": (send(http(b"no gzip", Content_Encoding="gzip")), "broke off"),
    "error with status 200": (send(http(as_json({"error": {"message": "overloaded"}}))), "HTTP 200: overloaded"),
    "no choices": (send(http(as_json({"choices": []}))), "no chat completion"),
    "no message": (send(http(as_json({"choices": [{"message": None}]}))), "no chat completion"),
    **{
        f"HTTP {status}": (send(http(as_json({"error": {"message": "later"}}), status=status)), f"HTTP {status}: later")
        for status in (408, 425, 429, 500, 502, 503, 504, 520, 529)
    },
    "HTML with 502": (send(http(b"<h1>Bad Gateway</h1>", status=502)), "HTTP 502: <h1>Bad Gateway</h1>"),
}
STREAM_FAULTS = {
    "closed in the middle": (send_and_close(STREAM + chunk(TEXT)), "broke off"),
    "reset in the middle": (send_and_reset(STREAM + chunk(TEXT)), "broke off|reset"),
    "cut in an event": (send_and_close(STREAM + chunk(TEXT) + chunk(delta("!")[:30])), "broke off"),
    "ended in an event": (send(streamed(TEXT, delta("!")[:30])), r"ended without a finish_reason"),
    "no end": (send(streamed(TEXT)), r"ended without a finish_reason or \[DONE\]"),
    "error event": (send(streamed(TEXT, event(error={"code": 500, "message": "out of memory"}))), "out of memory"),
    "no JSON in an event": (send(streamed(TEXT, b"data: {nonsense\n\n")), "no chat completion: '{nonsense"),
    "another kind of event": (send(streamed(TEXT, b"data: [1, 2]\n\n")), "no chat completion"),
    "choices of another kind": (send(streamed(TEXT, event(choices=["x"]))), "no chat completion"),
    "content of another kind": (send(streamed(TEXT, delta(5))), "no chat completion"),
    "given up by the server": (send(streamed(TEXT, delta(finish_reason="error"), DONE)), "gave up"),
}
EMPTY_STREAMS = {
    "no events": (send(streamed()), "not JSON"),
    "only [DONE]": (send(streamed(DONE)), "no chat completion"),
    "only usage": (send(streamed(event(choices=[], usage={"completion_tokens": 1}), DONE)), "no chat completion"),
    "a role and no more": (send(streamed(delta(role="assistant"), DONE)), "no chat completion"),
}


def client(server, api_key=None, **limits):
    return llama_eval.Client(server.url, api_key, llama_eval.Options(**{"stall_timeout": DEADLINE, **limits}))


def cases(faults):
    return [pytest.param(act, message, id=name) for name, (act, message) in faults.items()]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("act", "message"), cases(WHOLE_FAULTS))
def test_a_broken_reply_is_an_error_that_is_worth_another_try(socket_server, act, message, stream):
    with pytest.raises(llama_eval.RequestError, match=message) as error:
        client(socket_server(act), stream=stream).complete({})
    assert llama_eval.classify(error.value) == llama_eval.LATER
    assert error.value.partial is None
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("act", "message"), cases(STREAM_FAULTS))
def test_what_arrived_of_a_broken_stream_comes_with_the_error(socket_server, act, message):
    with pytest.raises(llama_eval.RequestError, match=message) as error:
        client(socket_server(act)).complete({})
    assert llama_eval.classify(error.value) == llama_eval.LATER
    assert error.value.partial.content == "so far so good"
    assert (error.value.partial.completion_tokens, error.value.partial.tokens_counted) == (2, True)
    assert error.value.partial.finish_reason is None


@pytest.mark.parametrize(("act", "message"), cases(EMPTY_STREAMS))
def test_a_stream_without_text_or_an_end_is_no_response(socket_server, act, message):
    with pytest.raises(llama_eval.RequestError, match=message) as error:
        client(socket_server(act)).complete({})
    assert llama_eval.classify(error.value) == llama_eval.LATER


KEY = "sk-1234567890"
ECHOES = {
    "error event": send(streamed(TEXT, event(error={"message": f"bad key {KEY}"}))),
    "error event with a code": send(streamed(TEXT, event(error={"message": f"bad key {KEY}", "code": 401}))),
    "broken event": send(streamed(TEXT, f"data: bad key {KEY}\n\n".encode())),
    "no HTTP": send_and_close(f"bad key {KEY}\r\n\r\n".encode()),
    "body": send(http(f"bad key {KEY}".encode(), status=400)),
}


@pytest.mark.parametrize("act", ECHOES.values(), ids=ECHOES.keys())
def test_the_key_is_taken_out_of_every_error(socket_server, act):
    with pytest.raises(llama_eval.RequestError) as error:
        client(socket_server(act), KEY).complete({})
    assert "[api key]" in str(error.value)
    assert KEY not in str(error.value)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_refusal_is_final_and_has_the_words_of_the_server(socket_server, status, stream):
    server = socket_server(send(http(as_json({"error": {"message": "not with me"}}), status=status)))
    with pytest.raises(llama_eval.RequestError, match=f"HTTP {status}: not with me") as error:
        client(server, stream=stream).complete({})
    assert llama_eval.classify(error.value) != llama_eval.LATER


@pytest.mark.parametrize("mode", ["--no-stream", "--verbose"])
def test_a_run_survives_every_fault(socket_server, tmp_path, mode):
    """The n-th question meets with the n-th fault at first."""
    faults = {**WHOLE_FAULTS, **(STREAM_FAULTS if mode == "--verbose" else {})}
    acts, seen = [act for act, _ in faults.values()], []
    lock = threading.Lock()

    def act(connection, body):
        question = body["messages"][-1]["content"]
        with lock:
            first = question not in seen
            seen.append(question)
            number = len(set(seen)) - 1
        (acts[number] if first and number < len(acts) else answer)(connection, body)

    server = socket_server(act)
    options = ["--endpoint", server.url, "--dataset", "practice", "--samples", 2, mode, "--output", "run.json"]
    done = run_eval(*options, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "60 correct" in done.stdout
    assert len(server.bodies) >= 60 + min(len(acts), 30)


def test_a_connection_that_the_server_closes_while_it_is_idle_costs_no_attempt(socket_server, tmp_path):
    """As it does after a hundred requests or five seconds, and as the next request is on its way."""
    answered = set()

    def act(connection, body):
        if connection in answered:  # the second request on a connection: closed, as if it had crossed it
            raise HangupError
        answered.add(connection)
        answer(connection, body)

    server = socket_server(act)
    options = ["--endpoint", server.url, "--dataset", "practice", "--max-retries", 0, "--output", "run.json"]
    for mode in ((), ("--no-stream",)):
        done = run_eval(*options, "--overwrite", *mode, cwd=tmp_path)
        assert "30 correct" in done.stdout
        assert {state["attempts"] for state in states_of(tmp_path).values()} == {1}
    assert len(server.bodies) > 60, "it has come to that"


def test_a_connection_is_used_again_and_closed_when_the_server_says_so(socket_server):
    def act(connection, body):
        data = answer_stream(body)
        if len(server.bodies) == 3:
            data = data.replace(b"Content-Type", b"Connection: close\r\nContent-Type")
        connection.sendall(data)

    server = socket_server(act)
    asking = client(server)
    for _ in range(5):
        asking.complete(QUESTION)
    assert len(server.connections) == 2


def test_a_host_that_is_switched_off_is_found_out_by_the_system(socket_server):
    server = socket_server(answer)
    asking = client(server)
    asking.complete(QUESTION)
    assert asking.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def drip(data, over):
    """An act: one byte now and then, each of which is a sign of life to a time-out on the socket."""

    def act(connection, body):
        for byte in data:
            connection.sendall(bytes([byte]))
            if over.wait(0.02):
                raise HangupError

    return act


HEAD = b"HTTP/1.1 200 OK\r\n" + b"X-Padding: y\r\n" * 1000
SLOW = {
    "in the head": HEAD,
    "in the body": b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n" + b" " * 10_000,
    "in a body without length": b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 10_000,
    "in a stream": STREAM + chunk(delta("a")) * 1000,
}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("data", SLOW.values(), ids=SLOW.keys())
def test_a_total_deadline_holds_against_a_server_that_drips(socket_server, data, stream):
    over, started = threading.Event(), time.monotonic()
    with pytest.raises(llama_eval.RequestError, match=r"no complete answer within 0\.3 s") as error:
        client(socket_server(drip(data, over)), request_timeout=0.3, stream=stream).complete({})
    over.set()
    assert llama_eval.classify(error.value) == llama_eval.LATER
    assert 0.3 <= time.monotonic() - started < DEADLINE / 2


def test_a_probe_has_a_deadline_too(socket_server, monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(llama_eval, "PROBE_SECONDS", 0.3)
    server = socket_server(answer, get=drip(HEAD, over))
    with pytest.raises(llama_eval.RequestError, match="no complete answer"):
        client(server).get("/health")
    over.set()


def pause(over, *pieces):
    """An act: send the first of the pieces, then nothing until `over`."""

    def act(connection, body):
        for piece in pieces:
            connection.sendall(piece)
        over.wait(DEADLINE)
        raise HangupError

    return act


@pytest.mark.parametrize("pieces", [(), (STREAM,), (STREAM, chunk(delta("so far"))), (SHORT_BODY,)])
def test_silence_ends_a_request_and_what_arrived_is_kept(socket_server, pieces):
    over = threading.Event()
    with pytest.raises(llama_eval.RequestError, match=r"no sign of life for 0\.3 s") as error:
        client(socket_server(pause(over, *pieces)), stall_timeout=0.3).complete({})
    over.set()
    assert (error.value.partial.content if len(pieces) == 2 else None) == ("so far" if len(pieces) == 2 else None)


def test_pings_are_no_tokens(socket_server):
    over = threading.Event()

    def act(connection, body):
        connection.sendall(STREAM + chunk(delta("so far")))
        while not over.wait(0.05):
            connection.sendall(chunk(b":\n\n"))

    with pytest.raises(llama_eval.RequestError, match="no sign of life"):
        client(socket_server(act), stall_timeout=0.3).complete({})
    over.set()


@pytest.mark.parametrize("piece", [delta(), delta(""), event(choices=[]), event(choices=[], usage={"total_tokens": 1})])
def test_empty_pieces_are_no_tokens(socket_server, piece):
    over = threading.Event()

    def act(connection, body):
        connection.sendall(STREAM + chunk(delta("so far")))
        while not over.wait(0.05):
            connection.sendall(chunk(piece))

    with pytest.raises(llama_eval.RequestError, match="no sign of life"):
        client(socket_server(act), stall_timeout=0.3).complete({})
    over.set()


def test_what_a_server_sends_after_the_end_is_not_waited_for(socket_server):
    over = threading.Event()

    def act(connection, body):
        connection.sendall(STREAM + chunk(delta("70") + delta(finish_reason="stop") + DONE))
        while not over.wait(0.05):
            connection.sendall(chunk(b":\n\n"))

    started = time.monotonic()
    response = client(socket_server(act)).complete({})
    over.set()
    assert (response.content, response.finish_reason) == ("70", "stop")
    assert time.monotonic() - started < DEADLINE / 2
    assert response.seconds < llama_eval.LINGER_SECONDS, "and does not count"


def test_the_body_of_a_redirect_is_not_read(socket_server):
    def act(connection, body):
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere\r\n\r\n")
        while True:
            connection.sendall(b"x" * 100_000)

    with pytest.raises(llama_eval.RequestError, match=r"longer than|redirects to http://elsewhere"):
        client(socket_server(act)).complete({})


def test_tokens_that_keep_coming_are_waited_for_as_long_as_they_do(socket_server):
    def act(connection, body):
        connection.sendall(STREAM)
        for _ in range(20):
            connection.sendall(chunk(delta("a")))
            threading.Event().wait(0.05)
        connection.sendall(chunk(delta(finish_reason="stop")) + chunk(DONE) + chunk())

    response = client(socket_server(act), stall_timeout=0.4).complete({})
    assert response.content == "a" * 20
    assert response.seconds > 0.9


def test_a_request_that_waits_for_a_slot_is_not_taken_for_one_that_is_stalled(socket_server):
    """The server works on one request at a time, and says nothing to the others before their turn."""
    slot = threading.Lock()

    def act(connection, body):
        with slot:
            connection.sendall(STREAM)
            for _ in range(8):
                connection.sendall(chunk(delta("a")))
                threading.Event().wait(0.05)
            connection.sendall(chunk(delta(finish_reason="stop")) + chunk(DONE) + chunk())

    server, answers = socket_server(act), []
    asking = [
        threading.Thread(target=lambda: answers.append(client(server, stall_timeout=0.5).complete({}).content))
        for _ in range(4)
    ]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(DEADLINE)
    assert answers == ["a" * 8] * 4


def test_a_response_that_fails_for_good_leaves_what_had_arrived_in_the_state(socket_server, tmp_path):
    server = socket_server(send_and_close(STREAM + chunk(delta("The answer")) + chunk(delta(" is probably"))))
    options = ["--endpoint", server.url, "--dataset", "practice", "--limit", 1, "--output", "run.json"]
    done = run_eval(*options, "--max-retries", 1, cwd=tmp_path)
    assert done.returncode == 3
    assert "1 error" in done.stdout
    (state,) = states_of(tmp_path).values()
    assert (state["status"], state["response"], state["attempts"]) == ("error", None, 2)
    assert state["partial"]["content"] == "The answer is probably"
    assert state["partial"]["completion_tokens"] == 2
    server.act = answer
    done = run_eval(*options, "--resume", cwd=tmp_path)
    assert "1 correct" in done.stdout
    assert states_of(tmp_path)["practice/P-1#0"]["partial"] is None


def test_a_prompt_that_outgrows_its_context_in_the_middle_is_truncated(socket_server, tmp_path):
    error = event(error={"code": 400, "message": OVERFLOW, "type": "exceed_context_size_error"})
    server = socket_server(send(streamed(delta("Let me think"), error)))
    options = ["--endpoint", server.url, "--dataset", "practice", "--limit", 1, "--output", "run.json"]
    done = run_eval(*options, cwd=tmp_path)
    assert (done.returncode, len(server.bodies)) == (0, 1)
    (state,) = states_of(tmp_path).values()
    assert (state["status"], state["response"]["content"]) == ("truncated", "Let me think")
    assert OVERFLOW in state["error"]


@pytest.mark.parametrize(
    ("finish_reason", "status"), [("length", "truncated"), ("stop", "no_answer"), (None, "no_answer")]
)
@pytest.mark.parametrize("stream", [True, False])
def test_no_content_but_reasoning_is_no_exception(socket_server, tmp_path, finish_reason, status, stream):
    reply = completion(None)
    reply["choices"][0]["finish_reason"] = finish_reason
    reply["choices"][0]["message"]["reasoning_content"] = "It is 70, I think"
    events = streamed(delta(role="assistant"), delta(reasoning_content="It is 70, I think"),
                      delta(finish_reason=finish_reason), DONE)  # fmt: skip
    server = socket_server(send(events if stream else http(as_json(reply))))
    options = ["--endpoint", server.url, "--dataset", "practice", "--limit", 1, "--output", "run.json"]
    done = run_eval(*options, *([] if stream else ["--no-stream"]), "--max-retries", 0, cwd=tmp_path)
    assert done.returncode == 0
    (state,) = states_of(tmp_path).values()
    assert (state["status"], state["response"]["reasoning"]) == (status, "It is 70, I think")


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_frees_the_slots_of_the_server_at_once(socket_server, tmp_path, signum, status):
    writing, left = threading.Semaphore(0), threading.Semaphore(0)

    def act(connection, body):
        connection.sendall(STREAM + chunk(delta("Let me see. ")))
        writing.release()
        connection.settimeout(DEADLINE)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b"", "the client closes the stream"
        left.release()
        raise HangupError

    server = socket_server(act)
    options = ["--endpoint", server.url, "--dataset", "practice", "--threads", 8, "--output", "run.json"]
    command = [sys.executable, str(EVAL), *map(str, options)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            for _ in range(8):
                assert writing.acquire(timeout=DEADLINE)
            process.send_signal(signum)
            started = time.monotonic()
            for _ in range(8):
                assert left.acquire(timeout=DEADLINE)
            stdout, _ = process.communicate(timeout=DEADLINE)
        finally:
            process.kill()
    assert time.monotonic() - started < 2
    assert process.returncode == status
    assert "30 pending" in stdout
    assert "--output run.json --resume" in stdout
    assert len(server.bodies) == 8, "no request was sent after the signal"


def test_a_second_signal_ends_it_on_the_spot(socket_server, tmp_path):
    asked, left = threading.Event(), threading.Event()

    def act(connection, body):
        connection.sendall(STREAM)
        asked.set()
        connection.settimeout(DEADLINE)
        with contextlib.suppress(ConnectionResetError):
            connection.recv(1)
        left.set()
        raise HangupError

    server = socket_server(act)
    options = ["--endpoint", server.url, "--dataset", "practice", "--threads", 1, "--output", "run.json"]
    reading, writing = os.pipe()
    command = [sys.executable, str(EVAL), *map(str, options)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=writing, stderr=writing) as process:
        assert asked.wait(DEADLINE)
        os.set_blocking(writing, False)
        with contextlib.suppress(BlockingIOError):
            while True:  # nobody reads, so that the run cannot end: it has something to say
                os.write(writing, b"x")
        os.set_blocking(writing, True)
        process.terminate()
        assert left.wait(DEADLINE), "the first signal closes the streams"
        assert process.poll() is None
        moment = time.monotonic() + 1.5 * llama_eval.SAME_SIGNAL_SECONDS
        while time.monotonic() < moment:
            process.terminate()  # which for a moment counts as the same signal again
        process.terminate()
        assert process.wait(DEADLINE) == -signal.SIGTERM
    for end in (reading, writing):
        os.close(end)


def test_what_had_arrived_when_a_signal_came_is_kept(socket_server, tmp_path):
    arrived, over = threading.Event(), threading.Event()

    def act(connection, body):
        connection.sendall(STREAM)
        for _ in range(400):  # far more than the system takes in before the client reads any of it
            connection.sendall(chunk(delta("x" * 20_000)))
        arrived.set()
        over.wait(DEADLINE)

    server = socket_server(act)
    options = ["--endpoint", server.url, "--dataset", "practice", "--threads", 1, "--output", "run.json"]
    command = [sys.executable, str(EVAL), *map(str, options), "--no-loop-stop"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert arrived.wait(DEADLINE)
        process.terminate()
        assert "30 pending" in process.communicate(timeout=DEADLINE)[0]
    over.set()
    (partial,) = [state["partial"]["content"] for state in states_of(tmp_path).values() if state["partial"]]
    assert len(partial) >= 20_000
    assert set(partial) == {"x"}
