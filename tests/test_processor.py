"""Runs against real local servers: fan-out, retries, dumps, resume, signals."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager

import pytest

from scripts import ANSWERS, DEADLINE, EVAL, busy_at_first, expected, load, right, run_eval, tasks_of

llama_eval = load(EVAL)


def state_of(folder):
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text("utf-8"))


def test_every_task_is_asked_once_and_the_state_holds_every_answer(fake_server, tmp_path):
    server = fake_server(right)
    done = run_eval("--endpoint", server.url, "--threads", 4, "--dataset", "practice", "--samples", 2, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    asked = Counter(body["messages"][-1]["content"] for body in server.prompts())
    assert set(asked.values()) == {2}
    assert len(asked) == 30
    state = state_of(tmp_path)
    assert state["summary"]["accuracy"] == 1.0
    assert {s["status"] for s in state["task_states"].values()} == {"correct"}
    one = state["task_states"]["practice/P-1#1"]
    assert one["grade"]["answer"] == ANSWERS[tasks_of(state)[0]["question"]]
    assert one["response"]["content"]
    assert one["attempts"] == 1
    assert one["endpoint"] == server.url
    assert one["started"] <= one["finished"]


def test_the_first_sample_of_every_problem_comes_before_the_second_of_any(fake_server, tmp_path):
    server = fake_server(right)
    run_eval(
        "--endpoint", server.url, "--threads", 1, "--dataset", "practice", "--samples", 2, "--limit", 5, cwd=tmp_path
    )
    prompts = [body["messages"][-1]["content"] for body in server.prompts()]
    assert prompts[:5] == prompts[5:]
    assert len(set(prompts)) == 5


def test_threads_work_at_the_same_time_and_no_more_than_asked(fake_server, tmp_path):
    together, lock, running, most = threading.Barrier(6, timeout=DEADLINE), threading.Lock(), set(), []

    def reply(method, path, body):
        if method == "GET":
            return 404, b""
        with lock:
            running.add(threading.get_ident())
            most.append(len(running))
        together.wait()
        with lock:
            running.discard(threading.get_ident())
        return right(method, path, body)

    server = fake_server(reply)
    done = run_eval("--endpoint", server.url, "--threads", 6, "--dataset", "practice", cwd=tmp_path)
    assert "30 correct" in done.stdout
    assert max(most) == 6


def test_endpoints_share_the_tasks_each_with_its_own_threads(fake_server, tmp_path):
    together = threading.Barrier(3, timeout=DEADLINE)

    def reply(method, path, body):
        if method == "POST":
            together.wait()
        return right(method, path, body)

    one, two = fake_server(reply), fake_server(reply)
    done = run_eval(
        "--endpoint", f"{one.url},{two.url}", "--threads", "1,2", "--dataset", "practice", "--limit", 12, cwd=tmp_path
    )
    assert "12 correct" in done.stdout
    assert (len(one.prompts()), len(two.prompts())) == (4, 8)


@pytest.mark.parametrize(("slots", "threads"), [(6, 6), (None, 4), (0, 4), ("many", 4)])
def test_automatic_threads_are_the_slots_that_the_server_reports(fake_server, tmp_path, slots, threads):
    together = threading.Barrier(threads, timeout=DEADLINE)

    def reply(method, path, body):
        if path == "/props" and slots is not None:
            return 200, {"total_slots": slots}
        if method == "POST":
            together.wait()
        return right(method, path, body)

    server = fake_server(reply)
    options = ["--dataset", "practice", "--limit", 2 * threads, "--threads", "auto", "--output", "run.json"]
    done = run_eval("--endpoint", server.url, *options, cwd=tmp_path)
    assert f"{2 * threads} correct" in done.stdout
    assert f", {threads} threads" in done.stdout
    assert state_of(tmp_path)["endpoints"][0]["threads"] == threads


def test_a_request_carries_what_was_asked_for_and_nothing_else(fake_server, tmp_path):
    server = fake_server(right)
    run_eval("--endpoint", server.url, "--dataset", "practice", "--limit", 1, "--output", "plain.json", cwd=tmp_path)
    run_eval(
        "--endpoint", server.url, "--dataset", "practice", "--limit", 1, "--output", "full.json",
        "--temperature", 0.6, "--top-k", 20, "--top-p", 0.95, "--min-p", 0, "--n_predict", 512, "--seed", 7,
        "--system-prompt", "Be brief.", "--answer-format", "boxed", "--extra-body", '{"reasoning_effort": "high"}',
        cwd=tmp_path,
    )  # fmt: skip
    options = ("--output", "whole.json", "--no-stream")
    run_eval("--endpoint", server.url, "--dataset", "practice", "--limit", 1, *options, cwd=tmp_path)
    plain, full, whole = server.prompts()
    assert set(whole) == {"messages"}
    assert set(plain) == {"messages", "stream", "stream_options"}
    assert (plain["stream"], plain["stream_options"]) == (True, {"include_usage": True})
    assert full.pop("messages")[0] == {"role": "system", "content": "Be brief."}
    seed = full.pop("seed")
    assert 0 <= seed < 2**31
    del full["stream"], full["stream_options"]
    assert full == {
        "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.0, "max_tokens": 512, "reasoning_effort": "high",
    }  # fmt: skip
    sampling = json.loads((tmp_path / "full.json").read_text("utf-8"))["sampling"]
    assert (sampling["seed"], sampling["extra_body"]) == (7, {"reasoning_effort": "high"})


def test_every_task_has_a_seed_of_its_own_that_does_not_depend_on_the_run(fake_server, tmp_path):
    server = fake_server(right)
    for output in ("a.json", "b.json"):
        options = ("--dataset", "practice", "--samples", 3, "--limit", 4, "--seed", 1, "--output", output)
        run_eval("--endpoint", server.url, *options, cwd=tmp_path)
    seeds = [body["seed"] for body in server.prompts()]
    assert len(set(seeds)) == 12
    assert sorted(seeds[:12]) == sorted(seeds[12:])


def test_a_server_that_asks_to_wait_is_given_the_time(fake_server, tmp_path):
    moments = []

    def reply(method, path, body):
        if method == "GET":
            return 404, b""
        moments.append(time.monotonic())
        if len(moments) == 1:
            return 429, {"error": {"message": "slow down"}}, {"Retry-After": "1"}
        return right(method, path, body)

    server = fake_server(reply)
    done = run_eval("--endpoint", server.url, "--dataset", "practice", "--limit", 1, cwd=tmp_path)
    assert "1 correct" in done.stdout
    assert moments[1] - moments[0] >= 1


def test_a_prompt_that_does_not_fit_the_context_is_truncated_and_not_asked_again(fake_server, tmp_path):
    error = {"code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": 3017, "n_ctx": 1024}
    error["message"] = "request (3017 tokens) exceeds the available context size (1024 tokens), try increasing it"
    server = fake_server(lambda method, path, body: (400, {"error": error}) if method == "POST" else (404, b""))
    options = ["--endpoint", server.url, "--dataset", "practice", "--limit", 2, "--output", "run.json"]
    for answer_format in ("json", "schema"):
        server.requests.clear()
        done = run_eval(*options, "--answer-format", answer_format, "--overwrite", cwd=tmp_path)
        assert done.returncode == 0
        assert "2 truncated" in done.stdout
        assert len(server.prompts()) == 2
    state = json.loads((tmp_path / "run.json").read_text("utf-8"))
    assert {s["error"] for s in state["task_states"].values()} == {f"HTTP 400: {error['message']}"}


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_server_that_refuses_its_first_request_stops_the_run(fake_server, tmp_path, status):
    refusal = {"error": {"message": "no such model"}}
    server = fake_server(lambda method, path, body: (status, refusal) if method == "POST" else (200, {}))
    done = run_eval("--endpoint", server.url, "--dataset", "practice", "--threads", 1, cwd=tmp_path)
    assert done.returncode == 1
    place = f" (tried {server.url}/v1/chat/completions)" if status == 404 else ""
    refused = f"{server.url} refuses the requests (HTTP {status}: no such model{place}): set the key, the model"
    assert refused in done.stderr
    assert len(server.prompts()) == 1


def test_one_question_that_is_refused_is_one_error(fake_server, tmp_path):
    """As a filter in front of the server does it."""
    last = list(ANSWERS.values())[2]

    def reply(method, path, body):
        if method == "POST" and expected(body) == last:
            return 403, {"error": {"message": "flagged"}}
        return right(method, path, body)

    options = ["--endpoint", fake_server(reply).url, "--dataset", "practice", "--limit", 5, "--threads", 1]
    done = run_eval(*options, cwd=tmp_path)
    assert done.returncode == 3
    assert "4 correct" in done.stdout
    assert "HTTP 403: flagged" in done.stdout


def test_a_key_that_is_refused_in_the_middle_stops_the_run_at_once(fake_server, tmp_path):
    asked = []

    def reply(method, path, body):
        if method == "POST":
            asked.append(path)
        if len(asked) > 2:
            return 401, {"error": {"message": "Invalid API Key"}}
        return right(method, path, body)

    server = fake_server(reply)
    options = ["--endpoint", server.url, "--dataset", "practice", "--threads", 1, "--output", "run.json"]
    done = run_eval(*options, cwd=tmp_path)
    assert done.returncode == 1
    assert f"{server.url} refuses the requests (HTTP 401: Invalid API Key): set the key, the model" in done.stderr
    assert done.stderr.count("\n") == 1
    assert len(asked) == 3
    assert "2 correct" in done.stdout
    assert "28 pending" in done.stdout
    assert re.search(r"^resume .* --output run.json --resume$", done.stdout, re.MULTILINE)


def test_a_fault_that_passes_costs_nothing_but_another_attempt(fake_server, tmp_path):
    server = fake_server(busy_at_first())
    done = run_eval("--endpoint", server.url, "--dataset", "practice", "--limit", 4, cwd=tmp_path)
    assert done.returncode == 0
    assert "4 correct" in done.stdout
    assert {s["attempts"] for s in state_of(tmp_path)["task_states"].values()} == {2}


def test_what_fails_for_good_is_an_error_and_never_a_wrong_answer(fake_server, tmp_path):
    broken = {list(ANSWERS.values())[1]}

    def reply(method, path, body):
        if method == "POST" and expected(body) in broken:
            return 400, {"error": {"message": "the server's own words"}}
        return right(method, path, body)

    server = fake_server(reply)
    options = ["--endpoint", server.url, "--dataset", "practice", "--limit", 4, "--output", "run.json"]
    done = run_eval(*options, cwd=tmp_path)
    assert done.returncode == 3
    assert "the server's own words" in done.stdout
    assert "100.0 %  (3 of 3)" in done.stdout
    assert "between 75.0 % and 100.0 %" in done.stdout
    assert "3 correct, 0 incorrect, 0 no_answer, 0 truncated, 0 ungraded, 1 error" in done.stdout
    assert len(server.prompts()) == 4

    broken.clear()
    done = run_eval(*options, "--resume", cwd=tmp_path)
    assert done.returncode == 0
    assert "4 correct" in done.stdout
    assert len(server.prompts()) == 5


def test_retries_are_bounded(fake_server, tmp_path):
    server = fake_server(lambda method, path, body: (500 if method == "POST" else 404, b""))
    done = run_eval("--endpoint", server.url, "--dataset", "practice", "--limit", 1, "--max-retries", 2, cwd=tmp_path)
    assert done.returncode == 3
    assert len(server.prompts()) == 3
    assert "3 attempts" in done.stdout


def test_a_finished_run_resumed_asks_nobody_and_says_so(fake_server, tmp_path):
    server = fake_server(right)
    options = ["--endpoint", server.url, "--dataset", "practice", "--limit", 2, "--output", "run.json"]
    run_eval(*options, cwd=tmp_path)
    before = len(server.requests)
    done = run_eval(*options, "--resume", cwd=tmp_path)
    assert done.returncode == 0
    assert "nothing to do" in done.stdout
    assert len(server.requests) == before


def test_the_printed_command_extends_the_run(fake_server, tmp_path):
    server = fake_server(right)
    done = run_eval(
        "--endpoint",
        server.url,
        "--dataset",
        "practice",
        "--limit",
        2,
        "--output",
        "run.json",
        "--overwrite",
        cwd=tmp_path,
    )
    command = re.search(r"^extend +(.*)$", done.stdout, re.MULTILINE)
    assert command
    again = subprocess.run(
        ["/bin/sh", "-c", command[1]], cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE
    )
    assert again.returncode == 0, again.stderr
    assert "2 problems x 2 samples" in again.stdout
    assert len(server.prompts()) == 4


def test_a_resume_with_another_model_is_refused_and_leaves_the_file_alone(fake_server, tmp_path):
    def serving(name):
        def reply(method, path, body):
            return (200, {"data": [{"id": name}]}) if path == "/v1/models" else right(method, path, body)

        return fake_server(reply)

    options = ["--dataset", "practice", "--output", "run.json", "--endpoint"]
    run_eval(*options, serving("q8").url, "--limit", 1, cwd=tmp_path)
    before = (tmp_path / "run.json").read_bytes()
    done = run_eval(*options, serving("q4").url, "--limit", 2, "--resume", cwd=tmp_path)
    assert done.returncode == 1
    assert "does not serve the model 'q8' but q4" in done.stderr
    assert (tmp_path / "run.json").read_bytes() == before


def test_an_unreachable_server_does_not_touch_a_run_that_was_to_be_replaced(fake_server, tmp_path):
    (tmp_path / "run.json").write_text("precious")
    done = run_eval(
        "--endpoint", "http://127.0.0.1:9", "--dataset", "practice", "--output", "run.json", "--overwrite", cwd=tmp_path
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "http://127.0.0.1:9 cannot be used: Connection refused" in done.stderr
    assert (tmp_path / "run.json").read_text() == "precious"


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_saves_the_run_and_prints_how_to_go_on(fake_server, tmp_path, signum, status):
    third_asked, over = threading.Event(), threading.Event()
    asked = []

    def reply(method, path, body):
        if method == "POST":
            asked.append(path)
            if len(asked) > 2:
                third_asked.set()
                over.wait(DEADLINE)
        return right(method, path, body)

    server = fake_server(reply)
    options = ["--endpoint", server.url, "--threads", "1", "--dataset", "practice", "--output", "run.json"]
    with subprocess.Popen(
        [sys.executable, EVAL, *options], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert third_asked.wait(DEADLINE)
        process.send_signal(signum)
        stdout, stderr = process.communicate(timeout=DEADLINE)
    over.set()
    assert (process.returncode, stderr) == (status, f"llama-eval: stopped by {signal.Signals(signum).name}\n")
    assert "28 pending" in stdout
    assert re.search(r"^resume .* --output run.json --resume$", stdout, re.MULTILINE)
    assert state_of(tmp_path)["summary"]["counts"]["correct"] == 2
    done = run_eval(*options, "--resume", cwd=tmp_path)
    assert "30 correct" in done.stdout


def test_the_state_is_dumped_while_the_run_goes_on(fake_server, tmp_path):
    dumped = threading.Event()

    def reply(method, path, body):
        if method == "POST" and json.loads((tmp_path / "run.json").read_text("utf-8"))["summary"]["scored"]:
            dumped.set()
        dumped.wait(0.2)  # a server that takes its time, so that the run outlasts the interval many times over
        return right(method, path, body)

    options = ["--dataset", "practice", "--samples", "10", "--dump-interval", "0", "--output", "run.json", "--quiet"]
    command = [sys.executable, EVAL, "--endpoint", fake_server(reply).url, *options]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        seen = dumped.wait(DEADLINE)
        process.terminate()
    assert seen


def test_the_api_key_is_used_but_written_nowhere(fake_server, tmp_path):
    key = "sk-a-secret-of-some-length"

    def reply(method, path, body):
        if path == "/props":
            return 200, {"api_key": key, "total_slots": 1}
        if method == "POST" and expected(body) == next(iter(ANSWERS.values())):
            return 400, {"error": {"message": f"you sent {key}"}}
        return right(method, path, body)

    server = fake_server(reply)
    options = ["--endpoint", server.url, "--dataset", "practice", "--limit", 3, "--verbose"]
    done = run_eval(*options, cwd=tmp_path, env={"LLAMA_API_KEY": key})
    flagged = run_eval(*options, "--api-key", key, "--output", "flag.json", cwd=tmp_path)
    assert done.returncode == flagged.returncode == 3
    assert {headers.get("Authorization") for _, _, headers, _ in server.requests} == {f"Bearer {key}"}
    written = [path.read_text("utf-8") for path in tmp_path.iterdir()]
    assert len(written) == 2
    for text in (*written, done.stdout, done.stderr, flagged.stdout, flagged.stderr):
        assert key not in text


def test_a_reader_that_goes_away_does_not_stop_the_run(fake_server, tmp_path):
    server = fake_server(right)
    read, write = os.pipe()
    os.close(read)
    options = ["--endpoint", server.url, "--dataset", "practice", "--output", "run.json"]
    command = [sys.executable, EVAL, *options]
    process = subprocess.run(command, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, timeout=DEADLINE)
    os.close(write)
    assert (process.returncode, process.stderr) == (0, b"")
    assert state_of(tmp_path)["summary"]["counts"]["correct"] == 30


def test_a_bug_in_a_worker_ends_the_run_loudly_and_saves_it(fake_server, tmp_path):
    class BrokenGrader(llama_eval.Grader):
        name = "broken"

        def grade(self, task, response):
            raise ZeroDivisionError("a bug")

    server = fake_server(right)
    with three_tasks(tmp_path) as (state, file), pytest.raises(ZeroDivisionError):
        processor(server, BrokenGrader(llama_eval.Options())).process(state, file, ignore, print)
    states = state_of(tmp_path)["task_states"].values()
    assert {s["status"] for s in states} <= {"pending", "ungraded"}
    assert any(s["response"] and not s["grade"] for s in states), "the response is kept, to be graded later"


def ignore(task, result):
    """A report that nobody reads."""


@contextmanager
def three_tasks(folder):
    """A run of three tasks, and its file."""
    dataset, prompt = llama_eval.load_dataset("practice"), llama_eval.Prompt("json", "{question}")
    state = llama_eval.new_run(dataset, prompt, llama_eval.Sampling(), 1, slice(3))
    with llama_eval.StateFile(folder / "run.json", 3600) as file:
        file.save(state)
        yield state, file


def processor(server, grader=None):
    grader = grader or llama_eval.RegexGrader(llama_eval.Options())
    service = llama_eval.Service(llama_eval.Endpoint(server.url, 2))
    return llama_eval.Processor([service], grader, llama_eval.Options(stall_timeout=60))


def test_what_has_finished_is_saved_even_if_nobody_has_read_the_output_yet(fake_server, tmp_path):
    """A reader that has stopped reading (a pager, Ctrl-S) stops the printing, but nothing else."""
    answered = threading.Semaphore(0)

    def reply(method, path, body):
        if method == "POST":
            answered.release()
        return right(method, path, body)

    options = ["--dataset", "practice", "--samples", "40", "--threads", "2", "--verbose", "--output", "run.json"]
    command = [sys.executable, EVAL, "--endpoint", fake_server(reply).url, *options]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as process:
        for _ in range(1200):
            assert answered.acquire(timeout=DEADLINE)
        process.terminate()
        output = process.stdout.read().decode()
    assert process.wait(DEADLINE) == 143
    saved = state_of(tmp_path)["summary"]["counts"]["correct"]
    assert saved >= 1198  # the last two replies may still have been on their way
    assert f" {saved} correct," in output


def test_a_signal_while_the_state_is_saved_for_the_last_time_loses_nothing(tmp_path, monkeypatch, fake_server):
    with three_tasks(tmp_path) as (state, file):
        save, saves = file.save, []

        def interrupted_save(state):
            saves.append(state.open_tasks())
            if len(saves) == 1:
                raise llama_eval.Interrupted(signal.SIGTERM)
            save(state)

        monkeypatch.setattr(file, "save", interrupted_save)
        with pytest.raises(llama_eval.Interrupted):
            processor(fake_server(right)).process(state, file, ignore, print)
        assert saves == [[], []]
    assert state_of(tmp_path)["summary"]["counts"]["correct"] == 3


def test_a_dump_that_fails_is_told_and_does_not_stop_the_run_which_has_its_journal(
    tmp_path, monkeypatch, fake_server, capsys
):
    with three_tasks(tmp_path) as (state, file):
        save, failures = file.save, []

        def fail(state):
            failures.append(state)
            if len(failures) > 3:
                return save(state)
            raise llama_eval.StateError("cannot write the state run.json: No space left on device")

        file.next_dump = 0.0
        monkeypatch.setattr(file, "save", fail)
        processor(fake_server(right)).process(state, file, ignore, print)
    assert capsys.readouterr().out.count("WARNING: cannot write the state run.json: No space left") == 3
    assert state_of(tmp_path)["summary"]["counts"]["correct"] == 3


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_behind_stdout_does_not_stop_the_run(fake_server, tmp_path):
    command = [sys.executable, EVAL, "--endpoint", fake_server(right).url, "--dataset", "practice"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, timeout=DEADLINE)
    assert (done.returncode, done.stderr) == (0, b"")
    assert state_of(tmp_path)["summary"]["counts"]["correct"] == 30


def test_runs_that_start_together_do_not_share_a_file(fake_server, tmp_path):
    server = fake_server(right)
    command = [sys.executable, EVAL, "--endpoint", server.url, "--dataset", "practice", "--limit", "2"]
    runs = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [run.wait(DEADLINE) for run in runs] == [0, 0, 0]
    assert len(list(tmp_path.glob("practice-*.json"))) == 3
