"""Where the problems come from, and what happens when they cannot be had."""

import json
import time

import pytest

from scripts import EVAL, REPO, load, run_eval

llama_eval = load(EVAL)


def write(path, *rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_the_practice_set_has_thirty_problems_with_integer_answers():
    dataset = llama_eval.load_dataset("practice")
    assert len(dataset.problems) == 30
    assert all(0 <= int(problem.expected) <= 999 for problem in dataset.problems)


def test_a_file_may_call_the_question_problem_and_needs_no_ids(tmp_path):
    rows = [
        {"question": "a?", "answer": 16},
        {"problem": "b?", "answer": "336^\\circ"},
        {"id": 7, "question": "c?", "answer": "007"},
    ]
    dataset = llama_eval.load_dataset(write(tmp_path / "mine.jsonl", *rows))
    assert [(p.id, p.question, p.expected) for p in dataset.problems] == [
        ("1", "a?", "16"),
        ("2", "b?", "336"),
        ("7", "c?", "7"),
    ]
    assert dataset.name == "mine"


def test_blank_lines_a_byte_order_mark_and_windows_line_ends_are_no_problems(tmp_path):
    path = tmp_path / "dos.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"question": "a?", "answer": 1}\r\n\r\n{"question": "\xc3\xa4?", "answer": 2}')
    assert [p.question for p in llama_eval.load_dataset(str(path)).problems] == ["a?", "ä?"]


def test_the_checksum_follows_the_rows_and_not_the_file(tmp_path):
    one = llama_eval.load_dataset(write(tmp_path / "a.jsonl", {"id": "x", "question": "a?", "answer": "016"}))
    same = llama_eval.load_dataset(write(tmp_path / "b.jsonl", "\n", {"answer": 16, "problem": "a?", "id": "x"}))
    other = llama_eval.load_dataset(write(tmp_path / "c.jsonl", {"id": "x", "question": "a?", "answer": 17}))
    assert one.sha256 == same.sha256 != other.sha256


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (['{"question": "a?", "answer": 1}\n', "{not json\n"], "line 2: not JSON"),
        (['{"question": "a?", "answer": 1}\n', "[1, 2]\n"], "line 2: not a JSON object"),
        (['{"question": "a?", "answer": 1}\n', '{"question": "b?"}\n'], "line 2: no 'answer'"),
        (['{"question": "a?", "answer": null}\n'], "line 1: no 'answer'"),
        (['{"question": "a?", "answer": true}\n'], "line 1: no 'answer'"),
        (['{"question": "a?", "answer": "one half"}\n'], "line 1: the answer 'one half' is not an integer"),
        (['{"question": "a?", "answer": 0.5}\n'], "line 1: the answer '0.5' is not an integer"),
        (['{"answer": 1}\n'], "line 1: no 'question'"),
        (['{"question": " ", "answer": 1}\n'], "line 1: no 'question'"),
        (
            ['{"id": 1, "question": "a?", "answer": 1}\n', '{"id": "1", "question": "b?", "answer": 2}\n'],
            "'1' occurs twice",
        ),
        ([], "is empty"),
        (["\n", "  \n"], "is empty"),
        (["[" * 100_000 + "\n"], "line 1: not JSON"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_place(tmp_path, lines, complaint):
    path = write(tmp_path / "bad.jsonl", *lines)
    with pytest.raises(llama_eval.DatasetError, match=complaint) as error:
        llama_eval.load_dataset(path)
    assert "bad.jsonl" in str(error.value)


def test_bytes_that_are_not_utf8_are_refused_with_the_line(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"question": "a?", "answer": 1}\n{"question": "\xe4?", "answer": 2}\n')
    with pytest.raises(llama_eval.DatasetError, match="line 2: not JSON in UTF-8"):
        llama_eval.load_dataset(str(path))


def test_an_unknown_dataset_is_bad_usage_and_the_known_ones_are_listed(tmp_path):
    done = run_eval("--simulate", "--dataset", "aime1999", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert all(name in done.stderr for name in ("aime1999", "aime2025", "aime", "practice", "FILE.jsonl"))


def test_a_missing_file_is_one_line(tmp_path):
    done = run_eval("--simulate", "--dataset", "gone.jsonl", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        1,
        "llama-eval: error: cannot read the dataset gone.jsonl: No such file or directory\n",
    )


@pytest.mark.parametrize(
    "offline", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}], ids=["offline", "no hub"]
)
def test_a_hub_dataset_out_of_reach_is_one_line_in_a_few_seconds(tmp_path, offline):
    started = time.monotonic()
    done = run_eval("--simulate", cwd=tmp_path, env={"HF_DATASETS_CACHE": str(tmp_path / "cache"), **offline})
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    said = "HF_HUB_OFFLINE is set" if "HF_HUB_OFFLINE" in offline else "http://127.0.0.1:9 does not answer"
    for words in ("opencompass/AIME2025", str(tmp_path / "cache"), said, "--dataset practice", "FILE.jsonl"):
        assert words in done.stderr
    assert time.monotonic() - started < 30  # seconds; it takes one or two unless the machine is very busy


def test_only_a_hub_dataset_imports_the_datasets_library(tmp_path):
    (tmp_path / "datasets.py").write_text("raise SystemExit('datasets was imported')")
    done = run_eval("--help", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0
    done = run_eval(
        "--dataset", "practice", "--endpoint", "http://127.0.0.1:9", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}
    )
    assert "cannot be used" in done.stderr
    done = run_eval("--endpoint", "http://127.0.0.1:9", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert "datasets was imported" in done.stderr


def test_the_practice_set_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert llama_eval.load_dataset("practice").source == "data/practice.jsonl"
    assert (REPO / "data/practice.jsonl").is_file()
