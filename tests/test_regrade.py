"""Grading the responses of a run again, without asking for them again."""

import json
import os
import subprocess
import sys

import pytest

from scripts import EVAL, completion, load, run_eval

llama_eval = load(EVAL)
PROBLEMS = [{"id": name, "question": f"What is {name}?", "answer": 500 + i} for i, name in enumerate("abcd")]
REPLIES = {"a": '{"answer": 500}', "b": '{"answer": 7}', "c": "It is 502 if I am right!", "d": '{"answer": 7}'}


def name_in(body):
    return next(name for name in REPLIES if f"What is {name}?" in body["messages"][-1]["content"])


def solve(method, path, body):
    return (200, completion(REPLIES[name_in(body)])) if method == "POST" else (404, b"")


@pytest.fixture
def finished(fake_server, tmp_path):
    """A folder with the finished run run.json: a is correct, b and d are incorrect, c is without an answer."""
    (tmp_path / "abcd.jsonl").write_text("".join(json.dumps(p) + "\n" for p in PROBLEMS), encoding="utf-8")
    options = ["--dataset", "abcd.jsonl", "--output", "run.json", "--seed", 1]
    done = run_eval("--endpoint", fake_server(solve).url, *options, cwd=tmp_path)
    assert "1 correct, 2 incorrect, 1 no_answer" in done.stdout
    return tmp_path


def judge_of(fake_server, answers):
    def answer(method, path, body):
        return (200, completion(json.dumps({"answer": answers[name_in(body)]}))) if method == "POST" else (404, b"")

    return fake_server(answer)


def verdicts(path):
    return {task[-3]: s["status"] for task, s in json.loads(path.read_text("utf-8"))["task_states"].items()}


def test_the_same_grader_changes_nothing(finished):
    before = json.loads((finished / "run.json").read_text("utf-8"))
    done = run_eval("--regrade", "run.json", cwd=finished)
    assert (done.returncode, done.stderr) == (0, "")
    assert "changed   0 of 4 verdicts" in done.stdout
    assert "->" not in done.stdout
    after = json.loads((finished / "run.json").read_text("utf-8"))
    assert before["updated"] < after["updated"]
    for changing in ("updated", "journal"):
        del before[changing], after[changing]
    assert before == after


def test_another_grader_says_which_verdicts_it_changes(finished, fake_server):
    judging = judge_of(fake_server, {"a": "500", "b": "501", "c": "502", "d": None})
    done = run_eval("--regrade", "run.json", "--grader", "llm", "--judge-endpoint", judging.url, cwd=finished)
    assert done.returncode == 0
    changes = sorted(line for line in done.stdout.splitlines() if "->" in line)
    assert changes == [
        "b#0       incorrect -> correct  answered 501, expected 501; what the judge read as the final answer",
        "c#0       no_answer -> correct  answered 502, expected 502; what the judge read as the final answer",
        "d#0       incorrect -> no_answer  the judge found no final answer",
    ]
    assert "changed   3 of 4 verdicts" in done.stdout
    assert "accuracy  75.0 %" in done.stdout
    state = json.loads((finished / "run.json").read_text("utf-8"))
    assert state["grader"]["name"] == "llm"
    assert state["summary"]["accuracy"] == 0.75
    assert state["task_states"]["abcd/a#0"]["response"]["content"] == REPLIES["a"]
    assert verdicts(finished / "run.json") == {"a": "correct", "b": "correct", "c": "correct", "d": "no_answer"}


def test_with_an_output_the_run_itself_stays_as_it_is(finished):
    before = (finished / "run.json").read_bytes()
    command = f"{sys.executable} -c 'raise SystemExit(0)'"
    options = ["--regrade", "run.json", "--grader", "cli", "--grader-cmd", command, "--output", "new.json"]
    done = run_eval(*options, cwd=finished)
    assert "state     new.json" in done.stdout
    assert (finished / "run.json").read_bytes() == before
    assert set(verdicts(finished / "new.json").values()) == {"correct"}
    again = run_eval(*options, cwd=finished)
    assert (again.returncode, "the output new.json exists" in again.stderr) == (1, True)
    assert run_eval(*options, "--overwrite", cwd=finished).returncode == 0


def test_what_a_judge_left_ungraded_is_taken_up_again_by_the_printed_command(finished, fake_server):
    flaky = {"a": "500", "b": True, "c": True, "d": "7"}
    judging = judge_of(fake_server, flaky)
    options = ["--grader", "llm", "--judge-endpoint", judging.url, "--grader-retries", 0]
    done = run_eval("--regrade", "run.json", *options, "--output", "new.json", cwd=finished)
    assert done.returncode == 3
    assert verdicts(finished / "new.json") == {"a": "correct", "b": "ungraded", "c": "ungraded", "d": "incorrect"}
    (command,) = [line.split("llama-eval.py ")[1] for line in done.stdout.splitlines() if line.startswith("resume ")]
    judging.requests.clear()
    flaky.update(b="501", c="502")
    done = run_eval(*command.split(), cwd=finished)
    assert done.returncode == 0
    assert sorted(map(name_in, judging.prompts())) == ["b", "c"]
    assert verdicts(finished / "new.json") == {"a": "correct", "b": "correct", "c": "correct", "d": "incorrect"}


def test_a_run_is_replaced_only_once_every_response_has_its_verdict(finished, fake_server):
    before = (finished / "run.json").read_bytes()
    flaky = {"a": "500", "b": True, "c": True, "d": "7"}
    judging = judge_of(fake_server, flaky)
    options = ["--regrade", "run.json", "--grader", "llm", "--judge-endpoint", judging.url]
    done = run_eval(*options, cwd=finished)
    assert done.returncode == 3
    assert "state     run.json.regrading" in done.stdout
    assert "changed   0 of 4 verdicts" in done.stdout
    assert (finished / "run.json").read_bytes() == before
    assert verdicts(finished / "run.json.regrading")["b"] == "ungraded"
    flaky.update(b="501", c="502")
    judging.requests.clear()
    done = run_eval(*options, "--resume", cwd=finished)
    assert (done.returncode, sorted(map(name_in, judging.prompts()))) == (0, ["b", "c"])
    assert "b#0       incorrect -> correct" in done.stdout
    assert "changed   2 of 4 verdicts" in done.stdout
    assert verdicts(finished / "run.json") == {"a": "correct", "b": "correct", "c": "correct", "d": "incorrect"}
    assert not (finished / "run.json.regrading").exists()


def test_half_a_regrading_is_not_resumed_with_another_grader(finished, fake_server):
    judging = judge_of(fake_server, dict.fromkeys("abcd", True))
    run_eval("--regrade", "run.json", "--grader", "llm", "--judge-endpoint", judging.url, cwd=finished)
    done = run_eval("--regrade", "run.json", "--resume", cwd=finished)
    assert done.returncode == 1
    assert 'grader was "llm", is now "regex"' in done.stderr
    assert "start again without --resume" in done.stderr
    assert run_eval("--regrade", "run.json", cwd=finished).returncode == 0


def test_nothing_to_resume_is_an_error(finished):
    done = run_eval("--regrade", "run.json", "--resume", cwd=finished)
    assert (done.returncode, "there is no run.json.regrading to resume" in done.stderr) == (1, True)


def test_a_signal_in_the_middle_leaves_the_run_as_it_is_and_the_same_command_goes_on(finished, tmp_path):
    """The grader waits for the test at its third response."""
    before = (finished / "run.json").read_bytes()
    os.mkfifo(finished / "reached")
    body = "import os, sys\nfd = os.open('count', os.O_CREAT | os.O_APPEND | os.O_WRONLY); os.write(fd, b'x')\n"
    body += "if os.path.getsize('count') == 3: open('reached', 'w').write('x'); import time; time.sleep(600)\n"
    (finished / "slow.py").write_text(body, encoding="utf-8")
    options = ["--regrade", "run.json", "--grader", "cli", "--grader-threads", "1"]
    options += ["--grader-cmd", f"{sys.executable} slow.py"]
    with subprocess.Popen([sys.executable, EVAL, *options], cwd=finished, stdout=subprocess.PIPE) as process:
        assert (finished / "reached").read_text("utf-8") == "x"
        process.terminate()
        output = process.stdout.read().decode()
    assert process.returncode == 143
    assert "changed   1 of 4 verdicts" in output
    assert (finished / "run.json").read_bytes() == before
    (finished / "reached").unlink()
    done = run_eval(*options, "--resume", cwd=finished)
    assert done.returncode == 0
    assert set(verdicts(finished / "run.json").values()) == {"correct"}
    assert (finished / "count").read_text("utf-8") == "x" * 5, "two were graded before, one was cut off, two are left"


def test_without_its_judge_a_regrading_changes_nothing(finished):
    before = (finished / "run.json").read_bytes()
    done = run_eval("--regrade", "run.json", "--grader", "llm", "--judge-endpoint", "http://127.0.0.1:9", cwd=finished)
    assert done.returncode == 1
    assert "http://127.0.0.1:9 cannot be used" in done.stderr
    assert (finished / "run.json").read_bytes() == before


def test_tasks_without_a_response_stay_as_they_are(finished):
    path = finished / "run.json"
    state = json.loads(path.read_text("utf-8"))
    state["task_states"]["abcd/b#0"] |= {"status": "error", "response": None, "grade": None, "error": "HTTP 500"}
    state["task_states"]["abcd/c#0"] |= {"status": "pending", "response": None, "grade": None}
    path.write_text(json.dumps(state), encoding="utf-8")
    done = run_eval("--regrade", "run.json", cwd=finished)
    assert done.returncode == 3
    assert verdicts(path) == {"a": "correct", "b": "error", "c": "pending", "d": "incorrect"}


def test_a_run_that_was_graded_again_can_be_extended_with_that_grader_only(finished, fake_server):
    judging = judge_of(fake_server, {"a": "500", "b": "501", "c": "502", "d": "7"})
    options = ["--grader", "llm", "--judge-endpoint", judging.url]
    run_eval("--regrade", "run.json", *options, cwd=finished)
    solving = fake_server(solve)
    run = ["--endpoint", solving.url, "--dataset", "abcd.jsonl", "--output", "run.json", "--seed", 1]
    done = run_eval(*run, "--samples", 2, "--resume", cwd=finished)
    assert 'cannot resume with other settings: grader was "llm", is now "regex"' in done.stderr
    assert "--regrade grades what is there in another way" in done.stderr
    done = run_eval(*run, "--samples", 2, "--resume", *options, cwd=finished)
    assert "6 correct, 2 incorrect" in done.stdout
    assert len(solving.prompts()) == 4


@pytest.mark.parametrize(
    "options",
    [["--endpoint", "http://h"], ["--dataset", "aime2025"], ["--temperature", "1"], ["--answer-format", "json"]],
)
def test_options_for_asking_mean_nothing_when_only_grading(finished, options):
    done = run_eval("--regrade", "run.json", *options, cwd=finished)
    assert done.returncode == 2
    assert f"{options[0]} means nothing with --regrade" in done.stderr


def test_what_is_no_state_cannot_be_graded_again(tmp_path):
    (tmp_path / "x.json").write_text("{}", encoding="utf-8")
    assert run_eval("--regrade", "x.json", cwd=tmp_path).returncode == 1
    assert "cannot read missing.json" in run_eval("--regrade", "missing.json", cwd=tmp_path).stderr


def test_verbose_shows_the_answers_behind_a_change(finished):
    command = f"{sys.executable} -c 'raise SystemExit(0)'"
    done = run_eval("--regrade", "run.json", "--grader", "cli", "--grader-cmd", command, "--verbose", cwd=finished)
    assert "    answered 7, expected 501 (found by: command)" in done.stdout
    assert "answered 500" not in done.stdout


def test_a_run_that_has_gone_on_meanwhile_keeps_what_it_has(finished, fake_server):
    """An earlier grade is used where the response is still the same; no task is lost."""
    judging = judge_of(fake_server, {"a": "500", "b": True, "c": "502", "d": "7"})
    options = ["--regrade", "run.json", "--grader", "llm", "--judge-endpoint", judging.url]
    assert run_eval(*options, cwd=finished).returncode == 3
    run = ["--endpoint", fake_server(solve).url, "--dataset", "abcd.jsonl", "--output", "run.json", "--seed", 1]
    assert "2 samples" in run_eval(*run, "--samples", 2, "--resume", cwd=finished).stdout
    judging = judge_of(fake_server, {"a": "500", "b": "501", "c": "502", "d": "7"})
    done = run_eval(*options[:-1], judging.url, "--resume", cwd=finished)
    assert (done.returncode, done.stderr) == (0, "")
    assert "6 correct, 2 incorrect" in done.stdout
    assert sorted(map(name_in, judging.prompts())) == ["a", "b", "b", "c", "d"]


def test_a_link_to_a_run_stays_a_link(finished):
    (finished / "link.json").symlink_to("run.json")
    before = (finished / "run.json").read_bytes()
    done = run_eval("--regrade", "link.json", cwd=finished)
    assert (done.returncode, done.stderr) == (0, "")
    assert (finished / "link.json").is_symlink()
    assert (finished / "run.json").read_bytes() != before
