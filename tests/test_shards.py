"""One run in several parts, and the parts joined."""

import json

import pytest

from scripts import ANSWERS, EVAL, expected, load, right, run_eval

llama_eval = load(EVAL)


def part(server, folder, number, of, *more, output=None):
    options = ["--endpoint", server.url, "--dataset", "practice", "--shard", f"{number}/{of}", "--seed", 1]
    return run_eval(*options, "--output", output or f"part{number}.json", *more, cwd=folder)


def state_of(path):
    return json.loads(path.read_text("utf-8"))


def test_parts_make_the_whole_and_are_the_requests_of_a_whole_run(fake_server, tmp_path):
    whole, parts = fake_server(right), fake_server(right)
    run_eval("--endpoint", whole.url, "--dataset", "practice", "--samples", 2, "--seed", 1, cwd=tmp_path)
    for number in (1, 2, 3, 4):
        done = part(parts, tmp_path, number, 4, "--samples", 2)
        assert done.returncode == 0
    sizes = [len(state_of(tmp_path / f"part{number}.json")["tasks"]) for number in (1, 2, 3, 4)]
    assert sizes == [16, 16, 14, 14]
    assert sorted(map(json.dumps, whole.prompts())) == sorted(map(json.dumps, parts.prompts()))
    names = [f"part{number}.json" for number in (1, 2, 3, 4)]
    done = run_eval("--merge", *names, "-o", "all.json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "run       practice, 30 problems x 2 samples" in done.stdout
    assert "accuracy  100.0 %  (60 of 60)" in done.stdout
    state = state_of(tmp_path / "all.json")
    assert len(state["tasks"]) == len(state["task_states"]) == 60
    assert [task["sample"] for task in state["tasks"]] == [0] * 30 + [1] * 30


def test_a_merged_run_can_be_resumed_and_extended_as_a_whole(fake_server, tmp_path):
    server = fake_server(right)
    part(server, tmp_path, 1, 2)
    part(server, tmp_path, 2, 2, "--limit", 20)
    run_eval("--merge", "part1.json", "part2.json", "--output", "all.json", cwd=tmp_path)
    server.requests.clear()
    options = ["--endpoint", server.url, "--dataset", "practice", "--seed", 1, "--output", "all.json", "--resume"]
    done = run_eval(*options, cwd=tmp_path)
    assert "30 correct" in done.stdout
    assert sorted(map(expected, server.prompts())) == sorted(list(ANSWERS.values())[21::2])


def test_a_part_that_was_stopped_is_joined_with_what_it_has_and_with_its_journal(fake_server, tmp_path):
    server = fake_server(right)
    part(server, tmp_path, 1, 2)
    part(server, tmp_path, 2, 2)
    path = tmp_path / "part2.json"
    data = state_of(path)
    task, done = next(iter(data["task_states"].items()))
    data["task_states"] = {
        name: {**s, "status": "pending", "grade": None, "response": None} for name, s in data["task_states"].items()
    }
    path.write_text(json.dumps(data), encoding="utf-8")
    line = json.dumps({"journal": data["journal"], "task": task, "state": done})
    (tmp_path / "part2.json.journal").write_text(line + "\n", encoding="utf-8")
    merged = run_eval("--merge", "part1.json", "part2.json", "--output", "all.json", cwd=tmp_path)
    assert merged.returncode == 3
    assert "16 correct" in merged.stdout
    assert "14 pending" in merged.stdout


def test_the_same_part_twice_is_no_harm_but_two_answers_to_one_task_are_refused(fake_server, tmp_path):
    server = fake_server(right)
    part(server, tmp_path, 1, 2)
    part(server, tmp_path, 1, 2, output="again.json")
    done = run_eval("--merge", "part1.json", "part1.json", "--output", "all.json", cwd=tmp_path)
    assert "15 correct" in done.stdout
    done = run_eval("--merge", "part1.json", "again.json", "--output", "two.json", cwd=tmp_path)
    assert done.returncode == 1
    assert "again.json has another answer to practice/P-1#0: parts of a run must not overlap" in done.stderr
    assert not (tmp_path / "two.json").exists()


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (["--temperature", 1], "temperature was null, is now 1.0"),
        (["--answer-format", "boxed"], "prompt answer_format"),
        (["--system-prompt", "Hm."], "prompt system"),
    ],
)
def test_parts_of_different_runs_are_refused_with_the_difference(fake_server, tmp_path, options, difference):
    server = fake_server(right)
    part(server, tmp_path, 1, 2)
    part(server, tmp_path, 2, 2, *options)
    done = run_eval("--merge", "part1.json", "part2.json", "--output", "all.json", cwd=tmp_path)
    assert done.returncode == 1
    assert "part2.json is no part of the same run as part1.json: " in done.stderr
    assert difference in done.stderr


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--shard", "0/2"], "'0/2' is not a part I/N"),
        (["--shard", "3/2"], "'3/2' is not a part I/N"),
        (["--shard", "half"], "'half' is not a part I/N"),
        (["--dataset", "practice", "--shard", "31/40"], "--shard 31/40 has none of the 30 problems"),
        (["--merge", "a.json"], "--merge needs the --output FILE"),
        (["--merge", "a.json", "--output", "b.json", "--threads", "4"], "--threads means nothing with --merge"),
    ],
)
def test_bad_usage_of_parts(tmp_path, options, complaint):
    server = [] if "--merge" in options else ["--endpoint", "http://127.0.0.1:9"]
    done = run_eval(*server, *options, cwd=tmp_path)
    assert done.returncode == 2
    assert complaint in done.stderr


def test_a_merge_does_not_write_over_a_run(fake_server, tmp_path):
    part(fake_server(right), tmp_path, 1, 2)
    before = (tmp_path / "part1.json").read_bytes()
    done = run_eval("--merge", "part1.json", "--output", "part1.json", cwd=tmp_path)
    assert (done.returncode, "the output part1.json exists" in done.stderr) == (1, True)
    assert (tmp_path / "part1.json").read_bytes() == before


@pytest.mark.parametrize("order", [("early.json", "late.json"), ("late.json", "early.json")])
def test_the_further_of_two_copies_of_a_task_counts(fake_server, tmp_path, order):
    part(fake_server(right), tmp_path, 1, 1, "--limit", 3, output="late.json")
    data = state_of(tmp_path / "late.json")
    steps = ["error", "pending", "ungraded"]
    for step, result in zip(steps, data["task_states"].values(), strict=True):
        result.update(status=step, grade=None, response=result["response"] if step == "ungraded" else None)
    (tmp_path / "early.json").write_text(json.dumps(data), encoding="utf-8")
    run_eval("--merge", *order, "--output", "all.json", cwd=tmp_path)
    assert state_of(tmp_path / "all.json")["summary"]["counts"]["correct"] == 3
    blank = {
        **data,
        "task_states": {t: {**s, "status": "pending", "response": None} for t, s in data["task_states"].items()},
    }
    (tmp_path / "blank.json").write_text(json.dumps(blank), encoding="utf-8")
    run_eval("--merge", "early.json", "blank.json", "--output", "two.json", cwd=tmp_path)
    assert state_of(tmp_path / "two.json")["task_states"] == data["task_states"]
