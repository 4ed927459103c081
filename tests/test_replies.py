"""Streams of server-sent events: what is read out of them, and the loops that responses get into."""

import functools
import gzip
import json
import re
import socket
import threading
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts import (
    ANSWERS,
    DEADLINE,
    DONE,
    EVAL,
    SHARED,
    STREAM,
    HangupError,
    answer,
    answer_stream,
    chunk,
    delta,
    event,
    http,
    load,
    run_eval,
    streamed,
)

llama_eval = load(EVAL)
STOP = delta(finish_reason="stop")
REAL_RESPONSES = SHARED / "data" / "real_responses.jsonl"


def complete(server, api_key=None, **limits):
    limits = llama_eval.Options(**{"stall_timeout": DEADLINE, **limits})
    return llama_eval.Client(server.url, api_key, limits).complete({})


def replying(data):
    return lambda connection, body: connection.sendall(data)


def test_a_stream_is_the_same_response_as_a_whole_reply(socket_server):
    usage = event(choices=[], usage={"prompt_tokens": 9, "completion_tokens": 5})
    timings = {"predicted_n": 5, "predicted_per_second": 45.5, "prompt_ms": 0.5, "predicted_ms": 1.5}
    last = json.loads(STOP[6:]) | {"timings": timings}
    pieces = delta(role="assistant") + delta(reasoning_content="Hm, ") + delta(reasoning_content="so") + delta("7")
    server = socket_server(replying(streamed(pieces, delta("0"), event(**last), usage, DONE)))
    response = complete(server)
    assert (response.content, response.reasoning, response.finish_reason) == ("70", "Hm, so", "stop")
    assert (response.model, response.prompt_tokens, response.completion_tokens) == ("tiny", 9, 5)
    assert (response.tokens_counted, response.tokens_per_second) == (False, 45.5)
    assert 0 <= response.first_token_seconds <= response.seconds
    assert 0 <= response.queue_seconds <= response.seconds
    assert server.bodies[0]["stream_options"] == {"include_usage": True}


def test_what_a_stream_does_not_tell_is_counted_and_marked_or_left_out(socket_server):
    response = complete(socket_server(replying(streamed(delta("7"), delta("0"), STOP, DONE))))
    assert (response.completion_tokens, response.tokens_counted, response.prompt_tokens) == (2, True, None)
    assert response.queue_seconds is None
    task = llama_eval.Task("d/1#0", "1", 0, "?", "70")
    grade = llama_eval.RegexGrader(llama_eval.Options()).grade(task, response)
    line = llama_eval.task_line(task, llama_eval.TaskState("correct", grade, response), 1, 1)
    assert "    ~2 tok" in line


EVENTS = delta("so ") + delta("70") + STOP
VARIANTS = {
    "in one chunk": streamed(EVENTS + DONE),
    "a byte a chunk": STREAM + b"".join(chunk(bytes([byte])) for byte in EVENTS + DONE) + chunk(),
    "no space after data:": streamed(EVENTS.replace(b"data: ", b"data:"), DONE.replace(b": ", b":")),
    "CR LF": streamed((EVENTS + DONE).replace(b"\n", b"\r\n")),
    "pings, comments, other fields": streamed(b":\n\n", b": hi\n\nevent: x\nid: 4\n", EVENTS, b"retry: 5\n\n", DONE),
    "no newline at the end": streamed(EVENTS, DONE.strip()),
    "the end of the connection as the end": STREAM.replace(b"Transfer-Encoding: chunked\r\n", b"") + EVENTS + DONE,
    "no content type": http(EVENTS + DONE),
    "plain text": http(EVENTS + DONE, Content_Type="text/plain"),
    "pings before anything, no content type": http(b":\n\n" + EVENTS + DONE),
    "nothing after [DONE]": STREAM + chunk(EVENTS + DONE),
    "more choices": streamed(EVENTS, event(choices=[]), event(choices=None), DONE),
    "no index": streamed(EVENTS.replace(b'"index": 0, ', b""), DONE),
    "null error": streamed(EVENTS, event(choices=[], error=None), DONE),
    "a whole reply all the same": http(
        json.dumps({"choices": [{"message": {"content": "so 70"}, "finish_reason": "stop"}]}).encode()
    ),
}


@pytest.mark.parametrize("data", VARIANTS.values(), ids=VARIANTS.keys())
def test_streams_are_read_as_servers_write_them(socket_server, data):
    def act(connection, body):
        connection.sendall(data)
        if b"chunked" not in data and b"Length" not in data:
            raise HangupError

    response = complete(socket_server(act))
    assert (response.content, response.finish_reason) == ("so 70", "stop")


WHOLE = json.dumps({"choices": [{"message": {"content": "so 70"}, "finish_reason": "stop"}]}).encode()
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BODIES = {
    "one chunk": chunk(WHOLE) + chunk(),
    "a byte a chunk": b"".join(chunk(bytes([byte])) for byte in WHOLE) + chunk(),
    "extensions": b"5;name=value\r\n%s\r\n%x; a\r\n%s\r\n0;x\r\n\r\n" % (WHOLE[:5], len(WHOLE) - 5, WHOLE[5:]),
    "leading zeros, capitals": b"000%X\r\n%s\r\n000\r\n\r\n" % (len(WHOLE), WHOLE),
    "trailers": chunk(WHOLE) + b"0\r\nX-Checksum: 1\r\nX-More: 2\r\n\r\n",
    "line ends within": chunk(b"\r\n\r\n" + WHOLE + b"\r\n\r\n0\r\n\r\n".replace(b"0", b" ")) + chunk(),
    "long": chunk(b" " * 300_000 + WHOLE) + chunk(),
}


@pytest.mark.parametrize("size", [1, 7, 10**6])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_chunks_are_read_however_they_are_cut_and_the_connection_is_used_again(socket_server, body, size):
    size = max(size, len(body) // 2000)

    def act(connection, _):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(CHUNKED + body), size):
            connection.sendall((CHUNKED + body)[start : start + size])

    server = socket_server(act)
    client = llama_eval.Client(server.url, None, llama_eval.Options(stall_timeout=DEADLINE))
    assert [client.complete({}).content for _ in range(3)] == ["so 70"] * 3
    assert len(server.connections) == 1


@pytest.mark.parametrize("size", [b"-5", b"x", b"", b"0x10", b"1_0", b"5 5"])
def test_a_chunk_of_no_size_is_a_broken_reply(socket_server, size):
    server = socket_server(replying(CHUNKED + size + b"\r\n" + WHOLE + b"\r\n0\r\n\r\n"))
    with pytest.raises(llama_eval.RequestError, match="the reply broke off"):
        complete(server)


def test_an_error_that_calls_itself_a_stream_is_told(socket_server):
    data = streamed(json.dumps({"error": {"message": "out of memory"}}).encode())
    with pytest.raises(llama_eval.RequestError, match="HTTP 200: out of memory"):
        complete(socket_server(replying(data)))


def test_a_chunk_that_does_not_come_to_its_end_ends_in_silence(socket_server):
    server = socket_server(replying(CHUNKED + b"123456789\r\n" + WHOLE + b"\r\n0\r\n\r\n"))
    with pytest.raises(llama_eval.RequestError, match=r"no sign of life for 0\.3 s"):
        complete(server, stall_timeout=0.3)


@given(st.lists(st.text(max_size=5), max_size=40), st.data())
def test_however_a_stream_is_cut_into_pieces_it_says_the_same(texts, data):
    events = b"".join(delta(text) for text in texts) + STOP + DONE
    transcript = llama_eval.Transcript(stop_loops=False)
    while events:
        size = data.draw(st.integers(1, len(events)))
        transcript.add(events[:size])
        events = events[size:]
    transcript.end()
    response = transcript.response(llama_eval.Call("http://0", llama_eval.Options()))
    assert response.content == llama_eval.joined(texts)
    assert transcript.tokens == sum(map(bool, texts))


@pytest.mark.parametrize("size", [1, 10, 10_000])
def test_a_compressed_stream_is_read(socket_server, size):
    packed = gzip.compress(EVENTS + DONE)
    head = STREAM.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
    chunks = b"".join(chunk(packed[start : start + size]) for start in range(0, len(packed), size))
    assert complete(socket_server(replying(head + chunks + chunk()))).content == "so 70"


def test_an_end_that_arrives_in_two_parts_is_an_end(socket_server):
    def act(connection, body):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(STREAM + chunk(EVENTS + DONE[:9]))
        threading.Event().wait(0.1)
        connection.sendall(chunk(DONE[9:]))

    assert complete(socket_server(act), stall_timeout=5).content == "so 70"


def test_a_character_that_is_cut_in_two_is_put_together(socket_server):
    data = streamed(delta("\ud83d"), delta("\ude00 70 \ud83d"), STOP, DONE)
    assert complete(socket_server(replying(data))).content == "\U0001f600 70 \ufffd"


def test_the_key_is_taken_out_of_a_stream_that_has_it_in_pieces(socket_server):
    data = streamed(delta("you sent sk-1234"), delta("567890"), STOP, DONE)
    assert complete(socket_server(replying(data)), api_key="sk-1234567890").content == "you sent [api key]"
    broken = streamed(delta("you sent sk-1234"), delta("567890"))
    with pytest.raises(llama_eval.RequestError) as error:
        complete(socket_server(replying(broken)), api_key="sk-1234567890")
    assert error.value.partial.content == "you sent [api key]"


@pytest.mark.parametrize("answer_format", ["json", "schema"])
def test_a_server_that_knows_no_stream_options_is_asked_without(socket_server, tmp_path, answer_format):
    def act(connection, body):
        if "stream_options" in body:
            error = {"message": "Unrecognized request argument supplied: stream_options"}
            connection.sendall(http(json.dumps({"error": error}).encode(), status=400))
        else:
            answer(connection, body)

    server = socket_server(act)
    options = ["--endpoint", server.url, "--dataset", "practice", "--threads", 1, "--answer-format", answer_format]
    done = run_eval(*options, cwd=tmp_path)
    assert "30 correct" in done.stdout
    assert sum("stream_options" in body for body in server.bodies) == 1, "and is not asked with them again"
    assert "refuses response_format" not in done.stdout


def test_a_reply_without_end_is_given_up(socket_server, monkeypatch):
    monkeypatch.setattr(llama_eval, "REPLY_LIMIT", 100_000)

    def act(connection, body):
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"x" * 10_000)

    with pytest.raises(llama_eval.RequestError, match="longer than 100000 bytes"):
        complete(socket_server(act))


LOOP = "Wait, let me check this again: 3 + 4 = 7, so the sum of all of them is 70. Hmm, but that is not right. "


@pytest.mark.parametrize("block", ["a", "0, ", LOOP, LOOP * 3 + "No. ", "x" * 3999 + "y"])
@pytest.mark.parametrize("start", ["", "Let me think. " + LOOP[7:40]])
@pytest.mark.parametrize("cut", [0, 1, 50])
def test_a_text_that_repeats_one_block_to_its_end_is_a_loop(block, start, cut):
    text = start + block * (90_000 // len(block))
    text = text[: len(text) - cut][-llama_eval.LOOP_REACH :]
    found = llama_eval.loop_block(text)
    assert found is not None
    assert len(block) % found == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a" * 15_000,
        LOOP * 19,
        LOOP * 150,
        LOOP * 400 + "That is it. " * 3,
        "".join(f"Step {n}: " + LOOP for n in range(300)),
        "\n".join(f"{n} | {n * n} | {n**3} |" for n in range(2000)),
        " ".join(f"{n:b}" for n in range(4000)),
        json.dumps([[0] * 40] * 100),
        "0." + "142857" * 2000,
        ", ".join(str(pow(3, n, 41)) for n in range(4000)),
        "    for (int i = 0; i < n; i++) { sum += a[i]; }\n" * 200,
    ],
)
def test_a_text_that_goes_on_is_no_loop(text):
    assert llama_eval.loop_block(text[-llama_eval.LOOP_REACH :]) is None


@given(st.text(max_size=40), st.text("ab ", min_size=1, max_size=60), st.integers(1, 1000))
def test_only_a_block_that_is_there_often_enough_is_found(start, block, times):
    text = start + block * times
    found = llama_eval.loop_block(text)
    if found:
        size = max(llama_eval.LOOP_TIMES * found, llama_eval.LOOP_LENGTH)
        assert text[-size:] == (text[-found:] * (size // found + 1))[-size:]
    else:
        assert len(block) * times < llama_eval.LOOP_LENGTH + len(block)


@pytest.fixture(scope="module")
def real_texts():
    if not REAL_RESPONSES.is_file():
        pytest.skip(f"the real responses are not at hand: there is no {REAL_RESPONSES}")
    return [json.loads(line)["response_tail"] for line in REAL_RESPONSES.read_text("utf-8").splitlines()]


@cache
@functools.cache
def longest_repetition(text, times):
    """The longest stretch anywhere in `text` that is one block `times` times or more, in bytes."""
    data, longest = text.encode(), 0
    number = int.from_bytes(data, "big")
    for block in range(1, len(data) // times + 1):
        differences = (number ^ (number >> 8 * block)).to_bytes(len(data), "big")[block:]
        same = max(map(len, re.findall(rb"\0+", differences)), default=0)  # as the byte that is one block before
        longest = max(longest, same + block if same >= (times - 1) * block else 0)
    return longest


@pytest.mark.slow
def test_the_rule_fires_on_the_real_responses_that_loop_and_on_nothing_near_the_others(real_texts):
    """Two of them do no more than repeat themselves; in the others it never comes near, wherever they are cut off."""
    looping = [text for text in real_texts if longest_repetition(text, 3) >= 2000]
    assert len(looping) == 2
    for text in looping:  # of which only the last 3000 characters are at hand
        block = text[-731:] if longest_repetition(text, 8) < 2900 else text[-369:]
        assert llama_eval.loop_block(text + block * 45) == len(block)
        assert llama_eval.loop_block(text + block * 5) is None
    others = [text for text in real_texts if text not in looping]
    assert max(longest_repetition(text, 3) for text in others) < llama_eval.LOOP_LENGTH / 500


def endless(closed):
    """An act: a response that gets into a loop and stays there; the client's leaving is noted."""

    def act(connection, body):
        connection.sendall(STREAM + chunk(delta("Let me see. ")))
        try:
            for _ in range(20_000):
                connection.sendall(chunk(delta("Wait, ")) + chunk(delta("no. ")))
        except OSError:
            closed.append(connection)
            raise
        connection.sendall(chunk(delta(finish_reason="length")) + chunk(DONE) + chunk())

    return act


def test_a_response_that_only_repeats_itself_is_stopped_and_truncated(socket_server, tmp_path):
    closed = []
    server = socket_server(endless(closed))
    options = ["--endpoint", server.url, "--dataset", "practice", "--limit", 2, "--output", "run.json"]
    done = run_eval(*options, cwd=tmp_path)
    assert done.returncode == 0
    assert "2 truncated" in done.stdout
    assert done.stdout.count(" not correct  loop ") == 2
    assert len(closed) == 2
    assert len(server.bodies) == 2
    for state in json.loads((tmp_path / "run.json").read_text("utf-8"))["task_states"].values():
        assert state["grade"]["explanation"].startswith("the response was stopped because it only repeated itself")
        assert state["grade"]["review"] == state["grade"]["explanation"]
        assert state["response"]["finish_reason"] == "loop"
        assert state["response"]["tokens_counted"]
        assert 3200 < state["response"]["completion_tokens"] < 30_000
        assert state["response"]["content"].startswith("Let me see. Wait, no. Wait, no. ")

    done = run_eval(*options, "--no-loop-stop", "--overwrite", cwd=tmp_path)
    assert "2 truncated" in done.stdout
    for state in json.loads((tmp_path / "run.json").read_text("utf-8"))["task_states"].values():
        assert (state["grade"]["method"], state["response"]["finish_reason"]) == ("cut", "length")
        assert state["response"]["completion_tokens"] == 40_001


def test_an_answer_that_is_given_over_and_over_is_an_answer(socket_server, tmp_path):
    def act(connection, body):
        found = next(value for question, value in ANSWERS.items() if question in body["messages"][-1]["content"])
        connection.sendall(STREAM)
        for _ in range(5000):
            connection.sendall(chunk(delta(f"The answer is \\boxed{{{found}}}. ")))

    server = socket_server(act)
    options = ["--endpoint", server.url, "--dataset", "practice", "--limit", 2, "--answer-format", "boxed"]
    assert "2 correct" in run_eval(*options, cwd=tmp_path).stdout


def test_the_practice_answers_are_read_from_a_stream(socket_server, tmp_path):
    server = socket_server(lambda connection, body: connection.sendall(answer_stream(body)))
    done = run_eval("--endpoint", server.url, "--dataset", "practice", "--output", "run.json", cwd=tmp_path)
    assert "30 correct" in done.stdout
    assert "90 generated from 270 of prompt" in done.stdout


def test_what_comes_after_a_repetition_that_ends_counts(socket_server, tmp_path):
    matrix = "[" + ", ".join(["0"] * 12) + "],\n"

    def patient(connection, body):
        pieces = [chunk(delta(matrix)) for _ in range(400)]
        connection.sendall(STREAM + b"".join(pieces) + answer_stream(body)[len(STREAM) :])

    server = socket_server(patient)
    done = run_eval("--endpoint", server.url, "--dataset", "practice", "--limit", 2, cwd=tmp_path)
    assert "2 correct" in done.stdout


def test_whether_loops_are_stopped_is_a_setting_of_the_run(socket_server, tmp_path):
    server = socket_server(answer)
    options = ["--endpoint", server.url, "--dataset", "practice", "--limit", 1, "--output", "run.json"]
    assert run_eval(*options, cwd=tmp_path).returncode == 0
    done = run_eval(*options, "--samples", 2, "--no-loop-stop", "--resume", cwd=tmp_path)
    assert (done.returncode, "loop stop was true, is now false" in done.stderr) == (1, True)


WORDS = '{"answer": 70}'
BY_THE_STANDARD = {
    "empty data": b"data:\n\n" + delta(WORDS) + b"data: \n\n" + STOP + DONE,
    "data without a colon": b"data\n\n" + delta(WORDS) + STOP + DONE,
    "a byte order mark": b"\xef\xbb\xbf" + delta(WORDS) + STOP + DONE,
    "several lines of data": delta(WORDS).replace(b', "', b',\ndata: "') + STOP + DONE,
    "comments and other fields": b": hello\nretry: 3\n\nid: 1\nevent: message\n"
    + delta(WORDS)
    + b":\n\n"
    + STOP
    + DONE,
    "carriage returns": (delta(WORDS) + STOP + DONE).replace(b"\n", b"\r"),
    "both": (delta(WORDS) + STOP + DONE).replace(b"\n", b"\r\n"),
    "no blank lines": (delta(WORDS) + STOP + DONE).replace(b"\n\n", b"\n"),
    "no space": (delta(WORDS) + STOP + DONE).replace(b"data: ", b"data:"),
    "no [DONE]": delta(WORDS) + STOP,
    "no [DONE], but the usage": delta(WORDS) + STOP + event(choices=[], usage={"completion_tokens": 6}),
    "no finish_reason": delta(WORDS) + DONE,
    "no key for it": event(choices=[{"index": 0, "delta": {"content": WORDS}}]) + DONE,
    "a message instead of a delta": event(choices=[{"message": {"content": WORDS}, "finish_reason": "stop"}]) + DONE,
}


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("data", BY_THE_STANDARD.values(), ids=BY_THE_STANDARD)
def test_events_are_read_as_the_standard_has_them(data, size):
    transcript = llama_eval.Transcript(stop_loops=True)
    for start in range(0, len(data), size):
        transcript.add(data[start : start + size])
    transcript.end()
    response = transcript.response(llama_eval.Call("", llama_eval.Options()))
    assert response.content == WORDS


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        ("MAX_TOKENS", "truncated"),
        ("model_length", "truncated"),
        ("Length", "truncated"),
        ({"type": "length"}, "truncated"),
        ("token_limit", "truncated"),
        ("STOP", "correct"),
        ("eos_token", "correct"),
        ({"type": "stop"}, "correct"),
        ("insufficient_system_resource", "error"),
        ("ABORTED", "error"),
        ("SAFETY", "error"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_a_finish_reason_is_understood_by_whatever_name(socket_server, tmp_path, reason, status, stream):
    whole = {"choices": [{"index": 0, "message": {"content": "So it is 70"}, "finish_reason": reason}]}
    reply = streamed(delta("So it is 70"), delta(finish_reason=reason), DONE)
    server = socket_server(replying(reply if stream else http(json.dumps(whole).encode())))
    (tmp_path / "d.jsonl").write_text('{"question": "?", "answer": 70}\n')
    options = ["--endpoint", server.url, "--dataset", "d.jsonl", "--max-retries", 0, "--output", "run.json"]
    run_eval(*options, *([] if stream else ["--no-stream"]), cwd=tmp_path)
    (state,) = json.loads((tmp_path / "run.json").read_text("utf-8"))["task_states"].values()
    assert state["status"] == status


def test_interim_replies_are_skipped(socket_server, tmp_path):
    """Each response belongs to its task, though 103 and others come before it on the same connection."""

    def act(connection, body):
        connection.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n")
        answer(connection, body)

    for mode in ([], ["--no-stream"]):
        server = socket_server(act)
        options = ["--endpoint", server.url, "--dataset", "practice", "--threads", 2, "--limit", 12]
        done = run_eval(*options, *mode, cwd=tmp_path)
        assert "12 correct" in done.stdout


def test_json_that_is_nested_absurdly_deep_is_no_reply_and_no_crash(socket_server, tmp_path):
    deep = json.loads("[" * 500 + "]" * 500)
    whole = json.dumps({"choices": [{"message": {"content": deep}}]}).encode()
    failure = http(json.dumps({"error": deep}).encode(), 500)
    replies = iter([streamed(event(choices=[{"delta": {"content": deep}}])), failure, http(whole)])

    def act(connection, body):
        reply = next(replies, None)
        connection.sendall(reply) if reply else answer(connection, body)

    server = socket_server(act, get=replying(http(json.dumps({"a": deep}).encode())))
    options = ["--endpoint", server.url, "--dataset", "practice", "--limit", 1, "--threads", 1, "--output", "run.json"]
    done = run_eval(*options, cwd=tmp_path)
    assert (done.returncode, done.stderr, "1 correct" in done.stdout) == (0, "", True)


def test_the_words_of_an_older_llama_server_are_not_lost(socket_server):
    line = b'error: {"code": 400, "message": "the slot is gone", "type": "invalid_request_error"}\n\n'
    with pytest.raises(llama_eval.RequestError, match="the slot is gone"):
        complete(socket_server(replying(streamed(delta("7"), line))))


OVERFLOWS = [
    "This model's maximum context length is 4096 tokens. However, your messages resulted in 5000 tokens.",
    "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
    "Trying to keep the first 5000 tokens when context the overflows. However, the model is loaded with 4096 tokens",
    "request (5000 tokens) exceeds the available context size (4096 tokens), try increasing it",
    "Prompt exceeds max sequence length",
    "prompt is too long: 5000 tokens > 4096 maximum",
]


@pytest.mark.parametrize("words", OVERFLOWS)
def test_a_prompt_that_does_not_fit_is_truncated_in_the_words_of_whatever_server(socket_server, words):
    server = socket_server(replying(http(json.dumps({"error": {"message": words}}).encode(), 400)))
    with pytest.raises(llama_eval.ContextOverflowError, match="HTTP 400"):
        complete(server)


def test_too_large_a_max_tokens_is_a_fault_of_the_command_line(socket_server):
    words = "max_tokens is too large: 5000. This model's maximum context length is 4096 tokens"
    server = socket_server(replying(http(json.dumps({"error": {"message": words}}).encode(), 400)))
    with pytest.raises(llama_eval.RequestError) as error:
        complete(server)
    assert not isinstance(error.value, llama_eval.ContextOverflowError)
