"""The two scripts together, as processes: the accuracy that comes out is the rate that went in."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import DEADLINE, EVAL, load, run_eval, tasks_of

llama_eval = load(EVAL)


def check_run(folder, done, problems, correct):
    """The console and the state file of a finished run agree on `correct` of `problems`."""
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    verdicts = [re.match(r" *\d+/\d+ +(\S+)#0 +(correct|not correct) ", line) for line in lines]
    shown = {found[1]: found[2] for found in verdicts if found}
    assert len(shown) == problems
    assert list(shown.values()).count("correct") == correct
    (path,) = folder.glob("*.json")
    state = json.loads(path.read_text("utf-8"))
    summary, percent = state["summary"], f"{100 * correct / problems:.1f} %"
    assert summary["counts"]["correct"] == correct
    assert summary["counts"]["incorrect"] == problems - correct
    assert summary["accuracy"] == correct / problems
    interval = summary["intervals"]["on_new_problems"]
    low, high = (f"{100 * interval[end]:.1f} %" for end in ("low", "high"))
    assert (
        f"accuracy  {percent}  ({correct} of {problems}), 95 % interval {low} to {high} on new problems" in done.stdout
    )
    assert done.stdout.count("95 % interval") == 1
    assert summary["intervals"]["on_these_problems"] is None
    for task in tasks_of(state):
        result = state["task_states"][task["id"]]
        assert (result["status"] == "correct") == (result["grade"]["answer"] == task["expected"])
        assert shown[task["problem"]] == ("correct" if result["status"] == "correct" else "not correct")
    return state


@pytest.mark.parametrize(("rate", "correct"), [(1, 30), (0.8, 24), (0, 0)])
def test_aime_2025_by_the_two_default_command_lines(start_simulator, aime_cache, tmp_path, rate, correct):
    environment = {"HF_DATASETS_CACHE": str(aime_cache)}
    server = start_simulator("--success-rate", rate, env=environment)
    assert "Questions loaded: 120" in server.banner
    done = run_eval("--endpoint", server.url, "--threads", 4, cwd=tmp_path, env=environment)
    state = check_run(tmp_path, done, 30, correct)
    ids = [f"{part}-{number}" for part in ("I", "II") for number in range(1, 16)]
    assert [task["problem"] for task in state["tasks"]] == ids
    expected = {task["problem"]: task["expected"] for task in tasks_of(state)}
    assert expected["II-5"] == "336"
    assert all(re.fullmatch(r"0|[1-9]\d{0,2}", answer) for answer in expected.values())
    assert state["dataset"]["name"] == "aime2025"
    assert state["dataset"]["source"] == "opencompass/AIME2025"


def test_a_cached_dataset_is_loaded_without_asking_the_hub(fake_server, start_simulator, aime_cache, tmp_path):
    hub = fake_server(lambda method, path, body: (404, b""))
    environment = {"HF_DATASETS_CACHE": str(aime_cache), "HF_ENDPOINT": hub.url}
    server = start_simulator("--success-rate", 1, env=environment)
    done = run_eval("--endpoint", server.url, cwd=tmp_path, env=environment)
    assert "100.0 %  (30 of 30)" in done.stdout
    assert hub.requests == []


def test_aime_2022_to_2024(start_simulator, aime_cache, tmp_path):
    environment = {"HF_DATASETS_CACHE": str(aime_cache), "HF_HUB_OFFLINE": "1"}
    server = start_simulator("--success-rate", 0.8, env=environment)
    options = ("--dataset", "aime", "--threads", 8, "--answer-format", "boxed")
    done = run_eval("--endpoint", server.url, *options, cwd=tmp_path, env=environment)
    check_run(tmp_path, done, 90, 72)


def test_gsm8k(aime_cache, tmp_path):
    environment = {"HF_DATASETS_CACHE": str(aime_cache), "HF_HUB_OFFLINE": "1"}
    done = run_eval("--simulate", 0.8, "--dataset", "gsm8k", "--threads", 8, cwd=tmp_path, env=environment)
    check_run(tmp_path, done, 1319, 1055)


@pytest.mark.parametrize("answer_format", sorted(llama_eval.ANSWER_FORMATS))
@pytest.mark.parametrize(("rate", "correct"), [(1, 30), (0.8, 24), (0, 0)])
def test_the_practice_set(start_simulator, tmp_path, rate, correct, answer_format):
    server = start_simulator("--success-rate", rate, "--dataset", "practice")
    options = ("--dataset", "practice", "--threads", 4, "--answer-format", answer_format)
    done = run_eval("--endpoint", server.url, *options, cwd=tmp_path)
    state = check_run(tmp_path, done, 30, correct)
    assert state["model"] == "simulator"
    (endpoint,) = state["endpoints"]
    assert (endpoint["url"], endpoint["threads"]) == (server.url, 4)
    assert endpoint["props"]["total_slots"] == 4
    method = "boxed" if answer_format == "boxed" else "json"
    assert [result["grade"]["method"] for result in state["task_states"].values()] == [method] * 30


def test_every_pass_over_the_problems_is_right_at_the_rate(start_simulator, tmp_path):
    server = start_simulator("--success-rate", 0.7, "--dataset", "practice")
    done = run_eval("--endpoint", server.url, "--dataset", "practice", "--samples", 4, "--threads", 8, cwd=tmp_path)
    assert "70.0 %  (84 of 120)" in done.stdout


@pytest.mark.parametrize(("given", "accuracy"), [([], "80.0 %  (24 of 30)"), (["1"], "100.0 %  (30 of 30)")])
def test_simulate_needs_no_server_and_leaves_none_behind(tmp_path, given, accuracy):
    done = run_eval("--dataset", "practice", "--output", "run.json", "--simulate", *given, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert accuracy in done.stdout
    url = llama_eval.load_state(Path(tmp_path / "run.json"), pytest.fail).endpoints[0].url
    with pytest.raises(llama_eval.RequestError, match="refused"):
        llama_eval.Client(url, None, llama_eval.Options(stall_timeout=5)).get("/health")


def test_a_simulated_server_has_a_slot_for_each_thread(tmp_path):
    done = run_eval("--dataset", "practice", "--simulate", "--threads", 16, cwd=tmp_path)
    assert "simulator, 16 threads, 16 slots" in done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr


def test_simulate_knows_a_dataset_of_ones_own(tmp_path):
    rows = [
        {"question": f"What is ${n}$ plus ${n}$, written out at some length?", "answer": 2 * n} for n in range(10, 20)
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run_eval("--dataset", "mine.jsonl", "--simulate", "0.5", cwd=tmp_path)
    assert "50.0 %  (5 of 10)" in done.stdout


def test_a_simulator_that_cannot_start_is_one_line(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"question": "?", "answer": 1}\n')
    script = shutil.copy(EVAL, tmp_path)  # with no simulator beside it
    command = [sys.executable, script, "--dataset", "mine.jsonl", "--simulate"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "the simulator did not start" in done.stderr
