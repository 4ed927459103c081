"""Grading by a command of the user's: what it is given, what its exit status means, and what can go wrong."""

import json
import os
import re
import resource
import select
import signal
import stat
import subprocess
import sys

import pytest

from scripts import DEADLINE, EVAL, REPO, load, right, run_eval

llama_eval = load(EVAL)
TASK = llama_eval.Task("d/1#0", "1", 0, "What is $6 \\cdot 7$?", "42")


def response(content, finish_reason="stop", reasoning="hm"):
    return llama_eval.Response(content, reasoning, finish_reason, None, None, None, None, 1.0)


def script(path, body, interpreter=sys.executable):
    """An executable file of Python with `body`."""
    path.write_text(f"#!{interpreter}\nimport json, os, sys, time\n{body}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def grader_of(command, timeout=DEADLINE, **more):
    options = llama_eval.Options(grader_cmd=command, grader_timeout=timeout, **more)
    return llama_eval.CommandGrader(options)


def grade(command, content='{"answer": 42}', timeout=DEADLINE, **more):
    return grader_of(command, timeout, **more).grade(TASK, response(content))


@pytest.mark.parametrize(
    ("body", "verdict", "explanation"),
    [
        ("sys.exit(0)", "correct", "what the command made of it"),
        ("sys.exit(1)", "incorrect", "what the command made of it"),
        ("sys.exit(2)", "ungraded", "the command ended with status 2"),
        ("print('no such model', file=sys.stderr); sys.exit(127)", "ungraded", "status 127: no such model"),
        ("os.kill(os.getpid(), 9)", "ungraded", "the command was ended by signal 9"),
        ("raise KeyError('x')", "ungraded", "the command crashed: .*KeyError: 'x'"),
        ("print('Traceback seen', file=sys.stderr); sys.exit(1)", "incorrect", "what the command made of it"),
        ('print(\'{"explanation": "as it is"}\')', "correct", "as it is"),
        ('print(\'{"correct": false, "explanation": "off by one"}\'); sys.exit(1)', "incorrect", "off by one"),
        ("print('{\"correct\": false}')", "ungraded", 'contradicts itself: status 0, but "correct": false'),
        ("print('{\"correct\": true}'); sys.exit(1)", "ungraded", 'contradicts itself: status 1, but "correct": true'),
        ("print('{\"correct\": 1}')", "ungraded", "contradicts itself"),
        ("print('loading'); print('{\"explanation\": \"the last line counts\"}')", "correct", "the last line counts"),
        ("print('[1, 2]')", "correct", "what the command made of it"),
        ("print('not JSON {')", "correct", "what the command made of it"),
        ("sys.stdout.buffer.write(b'\\xff\\xfe')", "correct", "what the command made of it"),
    ],
)
def test_the_exit_status_is_the_verdict(tmp_path, body, verdict, explanation):
    given = grade(script(tmp_path / "grader", body))
    assert given.verdict == verdict
    assert re.search(explanation, given.explanation), given.explanation
    assert (given.grader, given.rule.verdict) == ("cli", "correct")


def test_the_command_gets_the_task_as_one_json_object(tmp_path):
    body = f"json.dump(json.load(sys.stdin), open({str(tmp_path / 'seen.json')!r}, 'w'))"
    grade(script(tmp_path / "grader", body), 'So \u0204 it is.\n{"answer": "042"}')
    assert json.loads((tmp_path / "seen.json").read_text("utf-8")) == {
        "task_id": "d/1#0", "dataset": "d", "question": "What is $6 \\cdot 7$?", "expected": "42", "answer": "42",
        "response": 'So \u0204 it is.\n{"answer": "042"}', "reasoning": "hm", "finish_reason": "stop",
    }  # fmt: skip


def test_the_answer_of_the_command_is_kept_with_what_it_printed(tmp_path):
    given = grade(script(tmp_path / "grader", "print('{\"answer\": 43}'); sys.exit(1)"))
    assert (given.verdict, given.answer, given.reply) == ("incorrect", "43", '{"answer": 43}\n')


def test_answer_and_expected_are_put_into_the_arguments_and_no_shell_reads_them(tmp_path):
    body = "sys.exit(0 if sys.argv[1:] == ['{expected}; touch pwned', '42', 'two words', '*'] else 1)"
    command = script(tmp_path / "grader", body) + " {answer} {expected} 'two words' *"
    assert grade(command, '{"answer": "{expected}; touch pwned"}').verdict == "correct"
    assert not (tmp_path / "pwned").exists()


def test_without_an_answer_there_is_an_empty_argument_and_null(tmp_path):
    body = "sys.exit(0 if sys.argv[1:] == [''] and json.load(sys.stdin)['answer'] is None else 1)"
    assert grade(script(tmp_path / "grader", body) + " {answer}", "I do not know.").verdict == "correct"


@pytest.mark.parametrize("answer", ["\\u0000", "\\ud800", "x" * 500_000])
def test_an_answer_that_no_argument_can_hold_does_not_end_the_run(tmp_path, answer):
    command = script(tmp_path / "grader", "sys.exit(1)") + " {answer}"
    assert grade(command, f'{{"answer": "{answer}"}}').verdict in ("incorrect", "ungraded")


def test_a_command_that_hangs_is_ended_with_what_it_has_started(tmp_path):
    alive = held_open(tmp_path / "alive")
    child = f"os.execv({sys.executable!r}, [{sys.executable!r}, '-c', 'import time; time.sleep(600)'])"
    body = f"fd = os.open({str(tmp_path / 'alive')!r}, os.O_WRONLY); os.set_inheritable(fd, True); pid = os.fork()\n"
    body += f"if not pid: {child}\nprint('still here', file=sys.stderr, flush=True)\ntime.sleep(600)"
    given = grade(script(tmp_path / "grader", body), timeout=2)
    assert (given.verdict, given.explanation) == ("ungraded", "the command took longer than 2 s: still here")
    assert is_let_go(alive)


def test_what_a_command_leaves_running_holds_up_nothing_and_is_ended(tmp_path):
    """A time-out here would also hide what the command has said."""
    alive = held_open(tmp_path / "alive")
    # The shell itself opens the pipe that tells of its children, or one might be ended before it has.
    command = f'sh -c \'exec 3> {tmp_path / "alive"}; sleep 600 & sleep 600 & echo "{{\\"answer\\": 7}}"; exit 1\''
    given = grade(command)
    assert (given.verdict, given.answer) == ("incorrect", "7")
    assert is_let_go(alive)


def test_a_command_that_never_stops_talking_is_ended_and_takes_little_memory(tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    given = grade("yes")
    assert given.explanation == "the command printed more than 64 MiB"
    assert len(given.reply) <= llama_eval.MAX_ANSWER
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 100_000_000


def test_no_command_is_started_once_the_grader_is_closed(tmp_path):
    grader = grader_of("true")
    grader.close()
    given = grader.grade(TASK, response('{"answer": 42}'))
    assert (given.verdict, given.explanation) == ("ungraded", "the command cannot be started: the run was stopped")


def test_a_key_in_the_command_is_not_stored(tmp_path):
    grader = grader_of("true --key sk-secret-key", api_key="sk-secret-key")
    assert grader.settings["command"] == "true --key [api key]"


def held_open(path):
    """The reading end of a new pipe at `path`, which processes can hold open to show that they are alive."""
    os.mkfifo(path)
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


def is_let_go(pipe):
    """Whether every process that held `pipe` open has ended, soon enough; closes it."""
    try:
        while select.select([pipe], [], [], DEADLINE)[0]:
            if not os.read(pipe, 100):
                return True
        return False
    finally:
        os.close(pipe)


def test_a_prompt_that_did_not_fit_the_context_is_not_for_a_command_to_grade():
    grader = grader_of("true")
    nothing = llama_eval.Response("", "", "length", None, None, 0, None, 0.0)
    assert grader.grade(TASK, nothing).verdict == "truncated"


def test_a_command_that_reads_nothing_is_no_failure(tmp_path):
    assert grade("true", "x" * 1_000_000).verdict == "correct"
    assert grade("false", "x" * 1_000_000).verdict == "incorrect"


def test_keys_are_taken_out_of_what_a_command_says(tmp_path):
    body = "print('key sk-secret-secret', file=sys.stderr); print('sk-secret-secret'); sys.exit(3)"
    given = grade(script(tmp_path / "grader", body), judge_api_key="sk-secret-secret")
    assert "[api key]" in given.explanation
    assert "sk-secret" not in f"{given}"


def run(server, folder, command, *more, **options):
    arguments = ["--endpoint", server.url, "--dataset", "practice", "--output", "run.json"]
    return run_eval(*arguments, "--grader", "cli", "--grader-cmd", command, *more, cwd=folder, **options)


def test_a_run_graded_by_a_relative_command_runs_it_once_per_response(fake_server, tmp_path):
    script(tmp_path / "grader.py", "open('seen', 'a').write('x'); sys.exit(0)")
    done = run(fake_server(right), tmp_path, "./grader.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "seen").read_text("utf-8") == "x" * 30
    assert "grading   30 by cli; the rules of text agree with 30 of 30" in done.stdout
    state = json.loads((tmp_path / "run.json").read_text("utf-8"))
    assert state["grader"] == {"name": "cli", "command": "./grader.py"}
    assert state["summary"]["counts"]["correct"] == 30


def test_a_command_that_fails_leaves_tasks_ungraded_and_a_resume_grades_them_without_asking_again(
    fake_server, tmp_path
):
    server = fake_server(right)
    script(tmp_path / "grader.py", "print('out of order', file=sys.stderr); sys.exit(0 if os.path.exists('ok') else 9)")
    done = run(server, tmp_path, "./grader.py", "--limit", 5)
    assert done.returncode == 3
    assert "5 ungraded" in done.stdout
    assert "ungraded     the command ended with status 9: out of order" in done.stdout
    assert "accuracy  none: no task has a verdict yet" in done.stdout
    (tmp_path / "ok").touch()
    again = run(server, tmp_path, "./grader.py", "--limit", 5, "--resume")
    assert again.returncode == 0
    assert "5 correct" in again.stdout
    assert len(server.prompts()) == 5


@pytest.mark.parametrize(
    ("command", "status", "complaint"),
    [
        ("./missing.py", 1, "the grader command './missing.py' cannot be run: there is no such executable"),
        ("./plain.py", 1, "cannot be run: there is no such executable; chmod +x ./plain.py"),
        ("plain.py", 1, "cannot be run: there is no such executable; write ./plain.py"),
        ("no-such-command-anywhere", 1, "cannot be run"),
        (f"{sys.executable} missing.py", 1, "there is no script 'missing.py'"),
        ("./bare.sh", 1, "cannot be run: its first line must name an interpreter, as #!"),
        ("'unbalanced", 2, "--grader-cmd cannot be split into words"),
        ("", 2, "--grader-cmd is empty"),
    ],
)
def test_a_command_that_cannot_run_is_found_out_before_the_first_request(
    fake_server, tmp_path, command, status, complaint
):
    (tmp_path / "plain.py").write_text("", encoding="utf-8")
    (tmp_path / "bare.sh").write_text("exit 0\n", encoding="utf-8")
    (tmp_path / "bare.sh").chmod(0o755)
    server = fake_server(right)
    done = run(server, tmp_path, command)
    assert done.returncode == status
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
    assert server.requests == []
    assert not (tmp_path / "run.json").exists()


def test_ctrl_c_ends_the_commands_too(fake_server, tmp_path):
    alive = held_open(tmp_path / "alive")
    script(tmp_path / "grader.py", "pipe = open('alive', 'w'); pipe.write('x'); pipe.flush(); time.sleep(600)")
    arguments = ["--endpoint", fake_server(right).url, "--dataset", "practice", "--limit", "1", "--output", "run.json"]
    command = [sys.executable, EVAL, *arguments, "--grader", "cli", "--grader-cmd", "./grader.py"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        started = False
        while not started:  # before the grader opens the pipe, it reads as if it had been closed
            started = bool(select.select([alive], [], [], DEADLINE)[0] and os.read(alive, 1))
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        output = process.stdout.read().decode()
    assert process.returncode == 130
    assert "1 ungraded" in output
    assert is_let_go(alive)
    (state,) = json.loads((tmp_path / "run.json").read_text("utf-8"))["task_states"].values()
    assert (state["status"], bool(state["response"])) == ("ungraded", True)


@pytest.mark.parametrize(
    ("answer", "expected", "status"),
    [("42", "42", 0), ("43", "42", 0), ("44", "42", 1), (None, "42", 1), ("x", "42", 1), ("B", "B", 0), ("A", "B", 1)],
)
def test_the_example_grader_follows_the_protocol(answer, expected, status):
    task = json.dumps({"answer": answer, "expected": expected})
    command = [REPO / "examples" / "near-grader.py", "1"]
    done = subprocess.run(command, input=task, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert (done.returncode, done.stderr) == (status, "")
    assert json.loads(done.stdout)["correct"] is (status == 0)


@pytest.mark.parametrize(
    ("task", "tolerance"), [("not JSON", ["1"]), ("{}", ["1"]), ("[]", ["1"]), ("{}", []), ("{}", ["x"])]
)
def test_the_example_grader_calls_no_answer_wrong_when_it_fails(task, tolerance):
    command = [REPO / "examples" / "near-grader.py", *tolerance]
    done = subprocess.run(command, input=task, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("cannot grade this task: ")


def test_the_example_grader_grades_a_run(fake_server, tmp_path):
    done = run(fake_server(right), tmp_path, f"{REPO / 'examples' / 'near-grader.py'} 0")
    assert "30 correct" in done.stdout


@pytest.mark.parametrize(
    "command",
    ["sh -c 'test {answer} = 5'", "sh -c {answer}", "python3 -c {expected}", "bash -ec {answer}", "true x{answer}"],
)
def test_a_placeholder_is_a_whole_argument_and_no_program(tmp_path, command):
    options = ["--endpoint", "http://localhost:1", "--dataset", "practice", "--grader", "cli", "--grader-cmd", command]
    done = run_eval(*options, cwd=tmp_path)
    assert (done.returncode, "read the JSON on standard input" in done.stderr) == (2, True)


def test_a_command_is_given_no_keys(tmp_path, monkeypatch):
    for name in ("LLAMA_API_KEY", "OPENAI_API_KEY", "JUDGE_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, "sk-secret-secret")
    body = "print(json.dumps({'explanation': ' '.join([*os.environ, *os.environ.values()])[-400:]}))"
    told = grade(script(tmp_path / "grader", body)).explanation
    assert told
    assert not re.search("sk-secret|API_KEY|HF_TOKEN", told)
