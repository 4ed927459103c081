"""The sources of the problems, and the complaints when they cannot be had."""

import json
import time

import datasets
import pytest
from datasets.arrow_writer import ArrowWriter

from scripts import EVAL, REPO, SHARED, completion, load, run_eval, tasks_of

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


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "a?", "answer": "9 + 9 = <<9+9=18>>18 eggs.\n#### 18"}, "18"),
        ({"question": "a?", "answer": "It costs $1,450.\n#### 1,450"}, "1450"),
        ({"question": "a?", "answer": "#### -10"}, "-10"),
        ({"problem_idx": 1, "problem": "a?", "answer": 277}, "277"),
        ({"question": "a?", "answer": "070"}, "70"),
        ({"question": "a?", "answer": "C"}, "C"),
    ],
)
def test_the_answers_of_each_known_dataset_are_read_as_they_stand_in_its_rows(tmp_path, row, expected):
    (problem,) = llama_eval.load_dataset(write(tmp_path / "one.jsonl", row)).problems
    assert problem.expected == expected


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the GSM8K rows in {SHARED}")
@pytest.mark.parametrize("by_name", [True, False], ids=["from the cache", "as a file"])
def test_a_perfect_model_scores_all_of_gsm8k(fake_server, aime_cache, tmp_path, by_name):
    """It writes each answer as the dataset does, thousands commas and signs included."""
    path = SHARED / "data" / "gsm8k_test.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    golds = {row["question"]: row["answer"].split("#### ")[1] for row in rows}
    assert len(golds) == 1319
    assert sum("," in gold for gold in golds.values()) == 14
    assert sum("-" in gold for gold in golds.values()) == 2

    def perfect(method, path, body):
        if method == "GET":
            return 404, b""
        question = body["messages"][-1]["content"].split("\n\nThink it through")[0]
        return 200, completion(f"Easy.\n#### {golds[question]}" if by_name else f"\\boxed{{{golds[question]}}}")

    dataset = "gsm8k" if by_name else str(path)
    options = ["--endpoint", fake_server(perfect).url, "--dataset", dataset, "--threads", 8, "--quiet"]
    done = run_eval(*options, cwd=tmp_path, env={"HF_DATASETS_CACHE": str(aime_cache)})
    assert (done.returncode, done.stderr) == (0, "")
    assert "accuracy  100.0 %  (1319 of 1319)" in done.stdout


GPQA_ROW = {
    "Question": "Which is the lightest?",
    "Correct Answer": "hydrogen",
    "Incorrect Answer 1": "helium",
    "Incorrect Answer 2": "lithium",
    "Incorrect Answer 3": "carbon\n",
    "Record ID": "rec06pnAkLOr2t2mp",
}
OWN_ROW = {"question": "Which is the lightest?", "options": ["helium", "hydrogen", "lithium", "carbon"], "answer": "B"}


@pytest.mark.parametrize(
    "row", [GPQA_ROW, OWN_ROW, {**OWN_ROW, "answer": "hydrogen"}, {**OWN_ROW, "choices": OWN_ROW["options"]}]
)
def test_options_are_shuffled_by_the_seed_and_the_letter_follows_the_right_one(tmp_path, row):
    row = {name: value for name, value in row.items() if name != "options" or "choices" not in row}
    path = write(tmp_path / "mc.jsonl", *[row] * 40)
    seen = set()
    for problem in llama_eval.load_dataset(path, 3).problems:
        question, blank, *lines = problem.question.split("\n")
        assert (question, blank) == ("Which is the lightest?", "")
        assert [line[:3] for line in lines] == ["A) ", "B) ", "C) ", "D) "]
        assert sorted(line[3:] for line in lines) == ["carbon", "helium", "hydrogen", "lithium"]
        assert f"{problem.expected}) hydrogen" in lines
        assert sorted(problem.order) == [0, 1, 2, 3]
        seen.add(problem.expected)
    assert seen == set("ABCD")


def test_the_shuffle_depends_on_the_seed_alone_and_is_stored_with_each_task(tmp_path, fake_server):
    path = write(tmp_path / "mc.jsonl", *[OWN_ROW] * 20)
    one, same, other = (llama_eval.load_dataset(path, seed) for seed in (1, 1, 2))
    assert one == same
    assert one.sha256 != other.sha256
    assert [p.order for p in one.problems] != [p.order for p in other.problems]
    assert one.problems[0].order == [3, 0, 2, 1], "the order is the same on every machine and version of Python"

    def first(method, path, body):
        return (200, completion("The answer is (A).")) if method == "POST" else (404, b"")

    options = ["--endpoint", fake_server(first).url, "--dataset", path, "--output", "run.json"]
    run_eval(*options, "--seed", 1, cwd=tmp_path)
    state = json.loads((tmp_path / "run.json").read_text("utf-8"))
    assert [task["order"] for task in tasks_of(state)] == [p.order for p in one.problems]
    assert state["summary"]["counts"]["correct"] == sum(p.expected == "A" for p in one.problems)
    assert 'place of X: {"answer": "X"}' in state["prompt"]["template"]
    done = run_eval(*options, "--seed", 2, "--resume", cwd=tmp_path)
    assert "seed was 1, is now 2" in done.stderr


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({**OWN_ROW, "answer": "E"}, "the answer 'E' is neither the letter nor the text of an option"),
        ({**OWN_ROW, "answer": "neon"}, "the answer 'neon' is neither the letter nor the text of an option"),
        ({**OWN_ROW, "answer": 1}, "the answer 1 may be an option or its number; give its letter or its text"),
        ({**OWN_ROW, "options": ["B", "A"]}, "the answer 'B' is more than one option"),
        ({**OWN_ROW, "options": ["3", "5", " 5 "]}, "two options are the same"),
        ({**OWN_ROW, "options": ["(A) 5", "(B) 5"]}, "two options are the same"),
        ({**OWN_ROW, "options": ["(B) 4", "(A) 5"]}, "the options have labels that are not in order"),
        ({**OWN_ROW, "options": ["one"]}, "the options are not a list of 2 to 10 texts"),
        ({**OWN_ROW, "options": "ABCD"}, "the options are not a list of 2 to 10 texts"),
        ({**OWN_ROW, "options": ["a", 2]}, "the options are not a list of 2 to 10 texts"),
        ({**GPQA_ROW, "Incorrect Answer 2": None}, "the options are not a list of 2 to 10 texts"),
        ({**GPQA_ROW, "Question": None}, "no 'question'"),
        ({"question": "a?", "answer": "AB"}, "the answer 'AB' is not an integer"),
        ({"question": "a?", "answer": ""}, "the answer '' is not an integer"),
    ],
)
def test_a_multiple_choice_that_cannot_be_used_is_refused_with_the_place(tmp_path, row, complaint):
    with pytest.raises(llama_eval.DatasetError, match="line 1: " + complaint):
        llama_eval.load_dataset(write(tmp_path / "mc.jsonl", row))


def test_letters_and_integers_do_not_mix(tmp_path):
    path = write(tmp_path / "mixed.jsonl", OWN_ROW, {"question": "a?", "answer": 5})
    with pytest.raises(llama_eval.DatasetError, match="some answers are integers and some are letters"):
        llama_eval.load_dataset(path)


def test_a_gated_dataset_without_a_token_says_what_to_do(tmp_path):
    """Nothing is asked of the hub for that, which here does not exist."""
    done = run_eval(
        "--endpoint", "http://127.0.0.1:9", "--dataset", "gpqa", cwd=tmp_path, env={"HF_ENDPOINT": "http://127.0.0.1:9"}
    )
    assert done.returncode == 1
    assert "cannot load gpqa (Idavidrein/gpqa): it is not in the cache" in done.stderr
    assert "accept its terms at http://127.0.0.1:9/datasets/Idavidrein/gpqa, then set HF_TOKEN" in done.stderr
    assert "local FILE.jsonl" in done.stderr
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_some_token"}
    done = run_eval("--endpoint", "http://127.0.0.1:9", "--dataset", "gpqa", cwd=tmp_path, env=env)
    assert "does not answer" in done.stderr
    assert "hf_some_token" not in done.stderr


def cached(cache, repo, config, rows):
    """Lay `rows` out as the `datasets` library caches the split "train" of a dataset of the hub."""
    name, split = repo.split("/")[1], "train"
    target = cache / repo.replace("/", "___") / config / "0.0.0" / ("0" * 40)
    target.mkdir(parents=True)
    table = datasets.Dataset.from_list(rows)
    with ArrowWriter(path=str(target / f"{name}-{split}.arrow"), features=table.features) as writer:
        for row in rows:
            writer.write(row)
        writer.finalize()
    parts = [{"name": split, "num_bytes": 1, "num_examples": len(rows), "dataset_name": name}]
    info = datasets.DatasetInfo(
        features=table.features, builder_name=name, dataset_name=name, config_name=config, version="0.0.0", splits=parts
    )
    info.write_to_directory(str(target))


def test_aime_2026_and_gpqa_are_read_from_the_places_they_have_on_the_hub(tmp_path, fake_server):
    """With rows of our own in their formats; what is cached needs neither hub nor token."""
    aime = [
        {"problem_idx": i, "answer": 100 + i, "problem": f"Question {i}?", "problem_type": ["Algebra"]} for i in (1, 2)
    ]
    cached(tmp_path, "MathArena/aime_2026", "default", aime)
    cached(tmp_path, "Idavidrein/gpqa", "gpqa_diamond", [GPQA_ROW])
    env = {"HF_DATASETS_CACHE": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}

    def reply(method, path, body):
        if method == "GET":
            return 404, b""
        asked = body["messages"][-1]["content"]
        letter = next((line[0] for line in asked.splitlines() if line.endswith(") hydrogen")), "")
        number = 101 if "Question 1?" in asked else 102
        return 200, completion(json.dumps({"answer": letter or number}))

    server = fake_server(reply)
    done = run_eval("--endpoint", server.url, "--dataset", "aime2026", cwd=tmp_path, env=env)
    assert "accuracy  100.0 %  (2 of 2)" in done.stdout, done.stderr
    done = run_eval("--endpoint", server.url, "--dataset", "gpqa", cwd=tmp_path, env=env)
    assert "accuracy  100.0 %  (1 of 1)" in done.stdout, done.stderr


def asked(tmp_path, *options, seed=0):
    """The options of a row as they are shown, and the letter of the second, which is right."""
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"question": "Which?", "options": options, "answer": "B"}) + "\n", "utf-8")
    (problem,) = llama_eval.load_dataset(str(path), seed).problems
    return problem.question.split("\n")[2:], problem.expected


@pytest.mark.parametrize("label", ["({})", "{})", "{}.", "({}):", "[{}]", "{}. "])
def test_labels_of_the_options_own_are_taken_off(tmp_path, label):
    labelled = [f"{label.format(letter)} {text}" for letter, text in zip("ABC", ("two", "three", "five"), strict=True)]
    shown, expected = asked(tmp_path, *labelled)
    assert sorted(line[3:] for line in shown) == ["five", "three", "two"]
    assert f"{expected}) three" in shown


@pytest.mark.parametrize(
    "referring",
    ["All of the above", "none of these", "Both A and B", "B and C only", "Neither (A) nor (C)", "A, B, and C"],
)
def test_options_keep_their_places_where_one_refers_to_others(tmp_path, referring):
    for seed in range(5):
        shown, expected = asked(tmp_path, "seven", "nine", "eleven", referring, seed=seed)
        assert shown == ["A) seven", "B) nine", "C) eleven", f"D) {referring}"]
        assert expected == "B"


def test_options_can_be_kept_in_order(tmp_path):
    assert asked(tmp_path, "a tie", "a win", "a loss", seed=None) == (["A) a tie", "B) a win", "C) a loss"], "B")


def test_options_whose_right_one_stands_first_cannot_be_kept_in_order(tmp_path):
    (tmp_path / "d.jsonl").write_text(json.dumps(GPQA_ROW) + "\n", "utf-8")
    done = run_eval("--endpoint", "http://localhost:1", "--dataset", "d.jsonl", "--no-shuffle", cwd=tmp_path)
    assert (done.returncode, "have to be shuffled" in done.stderr) == (1, True)
