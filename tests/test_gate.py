"""A gate: a run that looks at itself after 2, 4, 8, ... samples and stops as soon as its rule is decided."""

import html
import json
import sys

import pytest

from scripts import completion, expected, right, run_eval, run_report

SAMPLES = 8


def share_right(wrong_ones):
    """The reply of a server that is wrong about so many of the 30 problems, each time."""
    wrong = set()

    def reply(method, path, body):
        if method != "POST":
            return 404, b""
        answer = expected(body)
        if answer in wrong or len(wrong) < wrong_ones:
            wrong.add(answer)
            return 200, completion('{"answer": -1}')
        return right(method, path, body)

    return reply


def gated(server, folder, rule, *more, output="run.json"):
    options = ["--endpoint", server.url, "--dataset", "practice", "--samples", SAMPLES, "--output", output]
    done = run_eval(*options, "--until", rule, "--quiet", *more, cwd=folder)
    return done, json.loads((folder / output).read_text("utf-8"))


@pytest.mark.parametrize("case", [(0, 60, "PASS", 0, 1), (20, 85, "FAIL", 4, 1), (3, 90, "UNDECIDED", 5, 3)])
def test_a_gate_stops_as_soon_as_it_is_sure(fake_server, tmp_path, case):
    wrong, bar, decision, code, looks = case
    server = fake_server(share_right(wrong))
    done, state = gated(server, tmp_path, f"accuracy >= {bar}")
    assert (done.returncode, done.stderr) == (code, "")
    samples = 2**looks
    assert len(server.prompts()) == 30 * samples
    until = state["until"]
    assert (until["rule"], until["decision"]) == (f"accuracy >= {bar}", decision)
    assert [look["samples"] for look in until["looks"]] == [2, 4, 8][:looks]
    assert done.stdout.count("look ") == looks
    assert f"decision  {decision} after {samples} samples of each problem: accuracy >= {bar}" in done.stdout
    assert run_report("run.json", cwd=tmp_path).returncode == 0
    page = html.unescape((tmp_path / "run.html").read_text("utf-8"))
    assert f"gate: accuracy >= {bar}" in page
    assert f"2 samples: {state['until']['looks'][0]['value']:.1%}".replace("%", " %") in page


def test_a_gate_is_continued_by_resume_with_the_same_rule_and_no_other(fake_server, tmp_path):
    server = fake_server(share_right(20))
    _, first = gated(server, tmp_path, "accuracy >= 85")
    asked = len(server.prompts())
    done, again = gated(server, tmp_path, "accuracy >= 85", "--resume")
    assert (done.returncode, len(server.prompts())) == (4, asked)
    assert again["until"] == first["until"]
    done, _ = gated(server, tmp_path, "accuracy >= 20", "--resume")
    assert (done.returncode, "cannot resume with another rule" in done.stderr) == (1, True)
    options = ["--endpoint", server.url, "--dataset", "practice", "--samples", SAMPLES, "--output", "run.json"]
    done = run_eval(*options, "--resume", cwd=tmp_path)
    assert (done.returncode, len(server.prompts())) == (0, 30 * SAMPLES)


@pytest.mark.parametrize(("wrong", "decision", "code"), [(2, "PASS", 0), (15, "FAIL", 4)])
def test_a_gate_holds_a_run_against_another(fake_server, tmp_path, wrong, decision, code):
    base = fake_server(share_right(2))
    options = ["--endpoint", base.url, "--dataset", "practice", "--samples", 4, "--output", "base.json"]
    assert run_eval(*options, cwd=tmp_path).returncode == 0
    done, state = gated(fake_server(share_right(wrong)), tmp_path, "not worse than base.json by 10")
    assert (done.returncode, state["until"]["decision"]) == (code, decision)


def test_a_gate_can_be_graded_by_a_command(fake_server, tmp_path):
    """Which is not closed between two looks."""
    script = "import json, sys; task = json.load(sys.stdin); sys.exit(task['answer'] != task['expected'])"
    (tmp_path / "grader.py").write_text(script)
    command = f"{sys.executable} grader.py"
    done, state = gated(
        fake_server(share_right(3)), tmp_path, "accuracy >= 90", "--grader", "cli", "--grader-cmd", command
    )
    assert (done.returncode, len(state["until"]["looks"])) == (5, 3)
    assert state["summary"]["counts"]["correct"] == 27 * SAMPLES


@pytest.mark.parametrize(
    "rule",
    ["accuracy > 85", "accuracy >= 101", "accuracy >= x", "accuracy >= 1.2.3", "not worse than by 3", "", "better"],
)
def test_a_rule_that_is_none_is_refused(tmp_path, rule):
    options = ["--endpoint", "http://localhost:1", "--dataset", "practice", "--samples", 4, "--until", rule]
    done = run_eval(*options, cwd=tmp_path)
    assert (done.returncode, "is neither 'accuracy >= 85' nor" in done.stderr) == (2, True)


def test_a_gate_needs_two_samples(tmp_path):
    options = ["--endpoint", "http://localhost:1", "--dataset", "practice", "--until", "accuracy >= 85"]
    done = run_eval(*options, cwd=tmp_path)
    assert (done.returncode, "--samples of 2 or more" in done.stderr) == (2, True)


def test_a_base_that_is_not_there_is_told_before_anything_is_asked_or_written(fake_server, tmp_path):
    server = fake_server(right)
    options = ["--endpoint", server.url, "--dataset", "practice", "--samples", 4, "--output", "run.json"]
    done = run_eval(*options, "--until", "not worse than missing.json by 3", cwd=tmp_path)
    assert (done.returncode, "cannot read missing.json" in done.stderr) == (1, True)
    assert (server.requests, list(tmp_path.iterdir())) == ([], [])
