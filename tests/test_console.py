"""The console, as a person sees it."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from scripts import DEADLINE, EVAL, completion, held_back, load, run_eval

llama_eval = load(EVAL)

TASK = llama_eval.Task("aime2025/I-1#0", "I-1", 0, "?", "70")


def result(status, answer=None, method="boxed", **changes):
    values = {
        "content": "so it is", "reasoning": "", "finish_reason": "stop", "model": "m", "prompt_tokens": 50,
        "completion_tokens": 1234, "tokens_per_second": 45.25, "seconds": 27.3,
    }  # fmt: skip
    response = llama_eval.Response(**{**values, **changes})
    grade = llama_eval.Grade(status, answer, method, "regex")
    return llama_eval.TaskState(status, grade, response, "http://localhost:8033", 1)


@pytest.mark.parametrize(
    ("task_state", "words"),
    [
        (result("correct", "70"), r" 3/30  I-1#0 +correct +70 +1234 tok +45\.2 tok/s +27\.3 s  localhost:8033"),
        (result("incorrect", "71"), r" 3/30  I-1#0 +not correct +71 +1234 tok"),
        (result("no_answer"), r"not correct +no answer +1234 tok"),
        (result("truncated"), r"not correct +truncated +1234 tok"),
        (result("correct", "70", completion_tokens=None, tokens_per_second=None), r"correct +70 +- tok +- tok/s"),
        (
            llama_eval.TaskState(
                "ungraded",
                llama_eval.Grade("ungraded", None, "none", "llm", explanation="no judge"),
                result("correct").response,
            ),
            r" 3/30  I-1#0 +ungraded +no judge$",
        ),
        (
            llama_eval.TaskState("error", endpoint="http://h", attempts=4, error="HTTP 500: no"),
            r"error +HTTP 500: no, 4 attempts  h",
        ),
    ],
)
def test_a_finished_task_is_one_line(task_state, words):
    line = llama_eval.task_line(TASK, task_state, 3, 30)
    assert re.search(words, line), line
    assert "\n" not in line


def test_the_answer_is_shown_against_what_was_expected():
    assert (
        llama_eval.comparison_line(TASK, result("incorrect", "71")).strip()
        == "answered 71, expected 70 (found by: boxed)"
    )
    assert "expected 70; the response ends: 'so it is'" in llama_eval.comparison_line(
        TASK, result("no_answer", method="none")
    )


def test_model_output_cannot_move_the_cursor_or_fill_the_screen():
    hostile = "\x1b[2J\x1b]0;title\x07\r\n\u202e" + "9" * 100_000
    line = llama_eval.task_line(TASK, result("incorrect", hostile), 1, 1)
    detail = llama_eval.comparison_line(TASK, result("no_answer", content=hostile))
    assert (line + detail).isprintable()
    assert len(line + detail) < 500


def serve(content):
    def reply(method, path, body):
        return (200, completion(content)) if method == "POST" else (404, b"")

    return reply


def test_plain_lines_when_not_a_terminal(fake_server, tmp_path):
    server = fake_server(serve('{"answer": 96}'))
    options = ("--endpoint", server.url, "--dataset", "practice", "--limit", 2)
    plain = run_eval(*options, "--threads", 1, cwd=tmp_path).stdout.splitlines()
    assert re.match(r"1/2  P-1#0 +correct +96 ", plain[1])
    assert re.match(r"2/2  P-2#0 +not correct +96 ", plain[2])
    summary = [line.split()[0] for line in plain[3:]]
    assert summary == ["run", "accuracy", "counts", "tokens", "time", "state", "extend"]
    assert "50.0 %  (1 of 2), 95 % interval 9.5 % to 90.5 % on new problems" in plain[4]
    assert not any("\x1b" in line or "\r" in line for line in plain)


def test_verbose_shows_the_comparison_and_quiet_shows_the_summary_only(fake_server, tmp_path):
    server = fake_server(serve('{"answer": 96}'))
    options = ("--endpoint", server.url, "--dataset", "practice", "--limit", 2)
    verbose = run_eval(*options, "--verbose", "--output", "v.json", cwd=tmp_path).stdout
    quiet = run_eval(*options, "--quiet", "--output", "q.json", cwd=tmp_path).stdout
    assert "answered 96, expected 100 (found by: json)" in verbose
    assert "P-1#0" not in quiet
    assert "accuracy  50.0 %" in quiet


def on_a_terminal(url, tmp_path):
    """All that a run of two problems shows on a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    options = ["--endpoint", url, "--dataset", "practice", "--limit", "2", "--output", "run.json"]
    process = subprocess.Popen([sys.executable, EVAL, *options], cwd=tmp_path, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # how Linux says that the other end is closed
            piece = b""
        if not piece:
            break
        shown += piece
    os.close(ours)
    assert process.wait(DEADLINE) == 0
    return shown.decode()


def test_the_bar_moves_while_no_task_finishes(start_simulator, tmp_path):
    simulator = start_simulator(
        *("--dataset", "practice", "--success-rate", 1, "--tokens", 600, "--tokens-per-second", 200, "--jitter", 0)
    )
    text = on_a_terminal(simulator.url, tmp_path)
    moments = re.findall(r"0/2 \[(\d\d:\d\d)<.*?, 2 under way, (\d+) tok, (\d+) tok/s", text)
    assert len({elapsed for elapsed, _, _ in moments}) >= 2
    tokens = [int(count) for _, count, _ in moments]
    assert tokens == sorted(tokens)
    assert len(set(tokens)) >= 2


def test_a_terminal_gets_a_bar_below_the_lines(fake_server, tmp_path):
    text = on_a_terminal(fake_server(serve('{"answer": 96}')).url, tmp_path)
    assert "2/2 [" in text
    assert "accuracy 50.0 %, 0 errors" in text
    assert re.search(r"P-1#0 +correct", text)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_terminal_encoding_will_do(fake_server, tmp_path, encoding):
    server = fake_server(serve("答案 é ∑ \ud800 {}"))
    path = tmp_path / "ü.jsonl"
    path.write_text('{"id": "数", "question": "¿?", "answer": 1}\n', encoding="utf-8")
    command = [
        sys.executable,
        EVAL,
        "--endpoint",
        server.url,
        "--dataset",
        path.name,
        "--verbose",
        "--output",
        "run.json",
    ]
    env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, timeout=DEADLINE)
    assert done.returncode == 0, done.stderr
    state = llama_eval.load_state(Path(tmp_path / "run.json"), pytest.fail)
    assert state.task_states["ü/数#0"].response.content == "答案 é ∑ \ufffd {}"


def test_a_terminal_that_is_closed_ends_the_run_in_good_order(fake_server, tmp_path):
    reply, asked, closed = held_back()
    ours, theirs = pty.openpty()
    options = ["--endpoint", fake_server(reply).url, "--dataset", "practice", "--output", "run.json"]
    process = subprocess.Popen(
        [sys.executable, EVAL, *options],
        cwd=tmp_path,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    assert asked.wait(DEADLINE)
    os.close(ours)  # output fails from here on; the shell would send the signal
    process.send_signal(signal.SIGHUP)
    assert process.wait(DEADLINE) == 129
    closed.set()
    assert len(llama_eval.load_state(tmp_path / "run.json", pytest.fail).open_tasks()) == 30


def graded(*grades):
    """A run of problems 1, 2, ... with these grades."""
    tasks = [llama_eval.Task(f"d/{i}#0", str(i), 0, "?", "70") for i in range(1, len(grades) + 1)]
    states = {
        t.id: llama_eval.TaskState(g.verdict, g, result("correct").response) for t, g in zip(tasks, grades, strict=True)
    }
    prompt, sampling = llama_eval.Prompt("json", "{question}"), llama_eval.Sampling()
    return llama_eval.EvalState("id", {"name": "d"}, prompt, sampling, {"name": "cascade"}, None, tasks, states)


def test_graders_are_counted_and_compared_with_the_rules():
    rule = llama_eval.Grade("no_answer", None, "none", "regex", confident=False)
    state = graded(
        llama_eval.Grade("correct", "70", "json", "regex"),
        llama_eval.Grade("correct", "70", "judge", "llm", rule=rule),
        llama_eval.Grade("no_answer", None, "judge found none", "llm", rule=rule),
        llama_eval.Grade("ungraded", None, "none", "llm", rule=rule),
    )
    text = llama_eval.graders_text(llama_eval.summarize(state))
    assert text == "2 by llm, 1 by regex; the rules of text agree with 1 of 2"
    failed = graded(llama_eval.Grade("ungraded", None, "none", "llm", rule=rule))
    assert llama_eval.graders_text(llama_eval.summarize(failed)) == "none"


def test_what_a_person_should_look_at_is_listed_with_the_reason():
    state = graded(
        llama_eval.Grade("correct", "70", "json", "regex"),
        llama_eval.Grade("correct", "70", "last number", "regex", confident=False, review="a guess"),
        llama_eval.Grade("no_answer", None, "none", "regex", review="no answer was found"),
    )
    assert llama_eval.review_list(state) == [
        {"task": "d/2#0", "reason": "a guess"},
        {"task": "d/3#0", "reason": "no answer was found"},
    ]
    assert llama_eval.review_text(state).splitlines() == [
        "review    2 tasks to look at",
        "          2#0       a guess",
        "          3#0       no answer was found",
    ]


def test_the_review_list_is_in_the_file_always_and_on_the_screen_with_verbose(fake_server, tmp_path):
    def unsure(method, path, body):
        return (200, completion("So it is 5")) if method == "POST" else (404, b"")

    arguments = ["--endpoint", fake_server(unsure).url, "--dataset", "practice", "--limit", 2, "--output", "run.json"]
    plain = run_eval(*arguments, cwd=tmp_path)
    review = json.loads((tmp_path / "run.json").read_text("utf-8"))["review"]
    reason = "a guess: the last number of the last line"
    assert review == [{"task": f"practice/P-{i}#0", "reason": reason} for i in (1, 2)]
    assert "to look at" not in plain.stdout
    verbose = run_eval(*arguments, "--overwrite", "--verbose", cwd=tmp_path)
    assert "review    2 tasks to look at\n          P-1#0     a guess" in verbose.stdout


def test_what_a_state_holds_cannot_control_the_terminal(fake_server, tmp_path):
    (tmp_path / "d\x1b[2J.jsonl").write_text('{"question": "?", "answer": 1}\n')
    server = fake_server(serve('{"answer": 96}'))
    options = ["--endpoint", server.url, "--dataset", "d\x1b[2J.jsonl", "--output", "a.json"]
    done = run_eval(*options, cwd=tmp_path)
    merged = run_eval("--merge", "a.json", "--output", "b\x1b]0;x.json", cwd=tmp_path)
    graded = run_eval("--regrade", "a.json", "--output", "c.json", cwd=tmp_path)
    assert (done.returncode, merged.returncode, graded.returncode) == (0, 0, 0)
    assert not any("\x1b" in text for run in (done, merged, graded) for text in (run.stdout, run.stderr))


@pytest.mark.parametrize(
    ("option", "hint"), [("--n_cases", "--limit"), ("--grader-script", "--grader-cmd"), ("--server-name", "URL")]
)
def test_options_of_llama_cpps_own_tool_get_a_hint(tmp_path, option, hint):
    done = run_eval("--endpoint", "http://localhost:1", option, "x", cwd=tmp_path)
    assert (done.returncode, hint in done.stderr) == (2, True)
