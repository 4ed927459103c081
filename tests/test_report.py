"""The report of a run: states read and refused, the page as text, tables, watching, files, `llama-eval.py --report`.

What a person sees of a page in a browser is in test_report_page.py.
"""

import base64
import copy
import csv
import gzip
import html
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import jinja2.meta
import pytest

from scripts import DEADLINE, EVAL, REPO, REPORT, load, refused, right, run_eval, run_report, tasks_of

llama_eval = load(EVAL)
report = load(REPORT)


def task(status="correct", answer="70", content="So it is 70.", start=0, endpoint="http://127.0.0.1:8080", **more):
    """The state of a task, which began so many seconds after midnight and took two."""
    if status == "pending":
        return llama_eval.TaskState()
    moments = [f"2026-01-02T{at // 3600:02}:{at // 60 % 60:02}:{at % 60:02}+00:00" for at in (start, start + 2)]
    known = {"endpoint": endpoint, "attempts": 1, "started": moments[0], "finished": moments[1]}
    if status != "error":
        known["response"] = llama_eval.Response(content, "", "stop", "tiny", 9, 7, 5.5, 1.25)
        known["grade"] = llama_eval.Grade(status, answer, "json", "regex", review="a guess")
    return llama_eval.TaskState(status, **known | more)


def made(problems, question="What is {}?", expected="70", **more):
    """The JSON of a run whose problems have these tasks."""
    tasks = [
        (llama_eval.Task(f"d/{name}#{number}", name, number, question.replace("{}", name), expected), told)
        for name, results in problems.items()
        for number, told in enumerate(results)
    ]
    known = {"id": "20260102-000000-abcdef", "dataset": {"name": "d", "source": "d.jsonl", "sha256": "0" * 64}}
    known |= {"prompt": llama_eval.Prompt("json", "{question}"), "sampling": llama_eval.Sampling(), "model": "tiny"}
    known |= {"created": "2026-01-02T00:00:00+00:00", "updated": "2026-01-02T01:00:00+00:00"}
    known |= {"grader": {"name": "regex"}, "endpoints": [llama_eval.Endpoint("http://127.0.0.1:8080", 4)]}
    states = {task_.id: told for task_, told in tasks}
    state = llama_eval.EvalState(**known | more, tasks=[task_ for task_, _ in tasks], task_states=states)
    return json.loads("".join(llama_eval.state_to_json(state, "j1")))


def save(path, problems, **more):
    path.write_text(json.dumps(made(problems, **more)), "utf-8")


TWO = {"P-1": [task(), task("incorrect", "71")], "P-2": [task("truncated", None), task("error", error="refused")]}


def text_of(page):
    """The text of a page, without its markup, style and script."""
    markup = re.sub(r"<(script|style)\b.*?</\1>", "", page.read_text("utf-8"), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", markup)).split())


def details(page):
    """The details that the page's script is to show of each task, by the task's id."""
    text = page.read_text("utf-8")
    blocks = [
        gzip.decompress(base64.b64decode(packed)).decode("utf-8").split("\n")
        for packed in re.findall(r'id="block-\d+">([^<]*)</script>', text)
    ]
    rows = re.findall(r'data-id="([^"]*)"[^>]* data-block="(\d+)" data-line="(\d+)"', text)
    return {html.unescape(name): json.loads(blocks[int(block)][int(line)]) for name, block, line in rows}


def percent(proportion):
    return f"{100 * proportion:.1f} %"


# ---- the page of a run ----------------------------------------------------------------------------------


@pytest.fixture
def finished(fake_server, tmp_path):
    """A folder with run.json, a real run of ten problems with two samples each, and what it printed."""

    def reply(method, path, body):
        status, payload = right(method, path, body)
        if method == "POST" and body.get("seed", 0) % 3 == 0:
            payload["choices"][0]["message"]["content"] = 'Surely it is <b>this</b>: {"answer": 999}'
        return status, payload

    options = ["--dataset", "practice", "--limit", 10, "--samples", 2, "--seed", 1, "--output", "run.json"]
    done = run_eval("--endpoint", fake_server(reply).url, *options, cwd=tmp_path)
    assert done.returncode == 0
    return tmp_path, done.stdout


def test_the_page_has_the_figures_of_the_state_and_of_the_console(finished):
    folder, console = finished
    done = run_report("run.json", cwd=folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "run.html\n", "")
    summary = json.loads((folder / "run.json").read_text("utf-8"))["summary"]
    text = text_of(folder / "run.html")
    assert 0 < summary["accuracy"] < 1
    figures = [summary["accuracy"], summary["avg_at_k"], summary["maj_at_k"]]
    figures += [entry["score"] for entry in summary["pass_at"]]
    figures += [told[end] for told in summary["intervals"].values() for end in ("low", "high")]
    for figure in figures:
        assert percent(figure) in text
        assert percent(figure) in console
    assert f"{summary['counts']['correct']} of {summary['scored']}" in text
    for status, count in summary["counts"].items():
        assert f"{count} {status.replace('_', ' ')}" in text
    (row,) = [line.split(maxsplit=1)[1] for line in console.splitlines() if line.startswith("samples")]
    assert row in text
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".log") == ["run.html", "run.json"]


def test_what_a_model_wrote_is_not_in_the_markup_but_with_its_task(finished):
    folder, _ = finished
    run_report("run.json", cwd=folder)
    states = json.loads((folder / "run.json").read_text("utf-8"))["task_states"]
    shown = details(folder / "run.html")
    assert shown.keys() == states.keys()
    for name, state in states.items():
        (told,) = shown[name]
        assert ["response", state["response"]["content"], "open", "searched"] in told["texts"]
        assert ["answer", state["grade"]["answer"]] in told["facts"]
    page = (folder / "run.html").read_text("utf-8")
    assert "Surely it is" not in page
    assert "<b>this</b>" not in page


def test_the_page_loads_nothing(finished):
    folder, _ = finished
    run_report("run.json", cwd=folder)
    page = (folder / "run.html").read_text("utf-8")
    assert not re.findall(r'\b(?:src|srcset|action|poster|data)="', page)
    assert not [link for link in re.findall(r'href="([^"]*)"', page) if not link.startswith("#")]
    assert not re.findall(r"<(?:link|iframe|object|embed|img|base)\b|@import|url\(", page)
    assert "default-src 'none'" in html.unescape(page)


def test_text_of_others_is_escaped_wherever_it_stands(tmp_path):
    evil = "<img src=x onerror=alert(1)>\"'&</script>"
    tasks = [task("correct", evil, evil, endpoint=evil), task("error", error=evil)]
    more = {"model": evil, "dataset": {"name": evil, "source": evil, "sha256": evil}, "grader": {"name": evil}}
    more["prompt"] = llama_eval.Prompt("json", evil + "{question}", evil)
    save(tmp_path / "run.json", {evil: tasks}, question=evil, expected=evil, **more)
    assert run_report("run.json", cwd=tmp_path).returncode == 0
    page = (tmp_path / "run.html").read_text("utf-8")
    assert "<img" not in page
    assert page.count("</script>") == page.count("<script")
    assert not re.search(r'="[^"]*"[^\s>/]', page)


@pytest.mark.parametrize(
    ("problems", "said"),
    [
        ({"P-1": [task()]}, ["d, 1 problem x 1 sample: run (tiny)", "100.0 % 1 of 1"]),
        ({"P-1": [task("pending")]}, ["No task has a verdict yet.", "Without a verdict: 1 tasks"]),
        ({"P-1": [task("error", error="refused")]}, ["No task has a verdict yet."]),
        ({"P-1": [task("ungraded", None)], "P-2": [task()]}, ["1 ungraded", "between 50.0 % and 100.0 %"]),
        (TWO, ["4 tasks", "1 truncated", "1 error", "Without a verdict: 1 tasks", "33.3 % 1 of 3"]),
        ({"P-1": [task("correct", "C"), task("incorrect", "A")]}, ["50.0 % 1 of 2", "✓ C", "✗ A"]),
        ({"P-1": [task("no_answer", None), task("correct", None)]}, ["50.0 % 1 of 2", "∅ no answer"]),
        ({f"P-{n}": [task()] for n in range(70)}, ["100.0 % 70 of 70", "by score"]),
    ],
    ids=["1 x 1", "pending", "error", "ungraded", "mixed", "letters", "no answers", "many"],
)
def test_a_run_of_any_kind_has_a_page(tmp_path, problems, said):
    save(tmp_path / "run.json", problems)
    done = run_report("run.json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    text = text_of(tmp_path / "run.html")
    for words in said:
        assert words in text


def test_the_timeline_has_a_row_of_bars_for_each_endpoint_and_leaves_pauses_out(tmp_path):
    one, other = "http://10.0.0.1:8080", "http://10.0.0.2:8080"
    tasks = [task(start=0, endpoint=one), task(start=1, endpoint=other), task(start=7200, endpoint=one)]
    save(tmp_path / "run.json", {"P-1": tasks})
    run_report("run.json", cwd=tmp_path)
    text = text_of(tmp_path / "run.html")
    assert f"{one}: 2 tasks" in text
    assert f"{other}: 1 tasks" in text
    assert "3 tasks in 5 s of work, with 1 pauses left out" in text
    assert "a pause of 7 197 s" in text


def test_what_is_only_in_the_journal_is_mentioned(tmp_path):
    save(tmp_path / "run.json", {"P-1": [task(), task("pending"), task("pending")]})
    lines = [json.dumps({"journal": name, "task": f"d/P-1#{at}"}) for at, name in ((1, "j1"), (2, "j1"), (0, "old"))]
    (tmp_path / "run.json.journal").write_text("\n".join([*lines, '{"journal": "j1", "ta']), "utf-8")
    run_report("run.json", cwd=tmp_path)
    assert "Finished, but so far only in the journal: 2 more tasks" in text_of(tmp_path / "run.html")


# ---- reading states -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is not JSON"),
        (b"{", "it is not JSON"),
        (b"\xff\xfe{}", "it is not JSON"),
        (b"[" * 100_000, "it is not JSON"),
        (b"[]", "no schema_version"),
        (b"{}", "no schema_version"),
        (b'{"schema_version": true}', "no schema_version"),
        (b'{"schema_version": 99}', "written by a newer llama-eval (schema 99; this is 3)"),
        (b'{"schema_version": 1, "problems": []}', "is not a state of llama-eval"),
    ],
    ids=["empty", "cut", "not UTF-8", "deep", "list", "object", "true", "newer", "hollow"],
)
def test_what_is_no_state_is_refused_in_a_line(tmp_path, content, said):
    (tmp_path / "run.json").write_bytes(content)
    for arguments in (["run.json"], ["run.json", "--csv"], ["compare", "run.json", "run.json"]):
        assert said in refused(run_report(*arguments, cwd=tmp_path), 1)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    "arguments",
    [["none.json"], ["folder"], ["folder/none.json"], ["none.json", "--csv"], ["compare", "none.json", "x"]],
)
def test_a_file_that_cannot_be_read_is_told_in_a_line(tmp_path, arguments):
    (tmp_path / "folder").mkdir()
    assert f"cannot read {arguments[0] if arguments[0] != 'compare' else 'none.json'}: " in refused(
        run_report(*arguments, cwd=tmp_path), 1
    )
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("name", [".", "/", ""])
def test_a_path_without_a_name_is_refused_in_a_line(tmp_path, name):
    save(tmp_path / "run.json", TWO)
    for arguments in ([name], ["run.json", "--output", name], ["run.json", "--csv", "--output", name]):
        done = run_report(*arguments, cwd=tmp_path)
        assert (done.returncode in (1, 2), done.stderr.count("\n")) == (True, 1)


def test_a_state_of_an_older_version_is_told_how_to_be_made_new_and_that_works(tmp_path):
    data = made(TWO)
    data["tasks"] = tasks_of(data)
    data["schema_version"] = 1
    for name in ("problems", "review"):
        del data[name]
    for name in ("intervals", "range", "avg_at_k", "pass_at", "maj_at_k"):
        data["summary"].pop(name, None)
    (tmp_path / "old.json").write_text(json.dumps(data), "utf-8")
    complaint = refused(run_report("old.json", cwd=tmp_path), 1)
    arguments = re.search(r"llama-eval\.py (--merge .*)", complaint)[1].split()
    merged = run_eval(*arguments, cwd=tmp_path)
    assert merged.returncode in (0, 3), merged.stderr
    assert run_report(arguments[-1], cwd=tmp_path).returncode == 0
    assert "33.3 % 1 of 3" in text_of(tmp_path / "NEW.html")


def places(data, path=()):
    """Where something is in nested JSON, at any depth."""
    if path:
        yield path
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for name, value in inner:
        yield from places(value, (*path, name))


DAMAGES = {
    "null": None,
    "a list": ["x", None],
    "an object": {"x": {"y": None}},
    "an empty object": {},
    "a text": "<x>",
    "true": True,
    "a fraction": 0.5,
    "a negative number": -7,
    "a number of 400 digits": 10**400,
    "infinity": float("inf"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("arguments", [[], ["--csv"], ["--csv", "--rows", "problem"], ["compare"]], ids=" ".join)
def test_a_damaged_state_gives_a_page_or_one_line_and_no_traceback(tmp_path, capsys, arguments, damage):
    """Each field of a state in turn is something else; figures are not checked one by one, so that some pass."""
    whole, path, crashed = made({"P-1": [task(), task("error", error="refused")]}), tmp_path / "run.json", []
    sound = tmp_path / "sound.json"
    sound.write_text(json.dumps(whole), "utf-8")
    compared = [str(sound)] if arguments == ["compare"] else []
    for place in places(whole):
        broken = copy.deepcopy(whole)
        inner = broken
        for name in place[:-1]:
            inner = inner[name]
        inner[place[-1]] = damage
        path.write_text(json.dumps(broken), "utf-8")
        try:
            code = report.main([*arguments, *compared, str(path)])
        except Exception as error:  # noqa: BLE001 - the first of a kind is told, all are counted
            crashed.append(f"{'.'.join(map(str, place))}: {error!r:.120}")
            continue
        lines = capsys.readouterr().err.splitlines()
        assert (code, len(lines)) in ((0, 0), (1, 1)), place
    assert not crashed, f"{len(crashed)} of {len(list(places(whole)))}"


# ---- files ----------------------------------------------------------------------------------------------


def test_a_report_replaces_an_older_report_and_nothing_else(tmp_path):
    save(tmp_path / "run.json", TWO)
    save(tmp_path / "other.json", TWO)
    (tmp_path / "notes.html").write_text("<p>mine</p>", "utf-8")
    (tmp_path / "empty.html").write_text("", "utf-8")
    (tmp_path / "link.html").symlink_to(tmp_path / "run.json")
    for name in ("run.json", "other.json", "notes.html", "empty.html", "link.html"):
        before = (tmp_path / name).read_bytes()
        refused(run_report("run.json", "--output", name, cwd=tmp_path), 2)
        assert (tmp_path / name).read_bytes() == before
    assert run_report("run.json", "-o", "page.html", cwd=tmp_path).stdout == "page.html\n"
    save(tmp_path / "run.json", {"P-1": [task()]})
    assert run_report("run.json", "-o", "page.html", cwd=tmp_path).returncode == 0
    assert "1 problem x 1 sample" in text_of(tmp_path / "page.html")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_page_that_cannot_be_finished_leaves_the_old_one_and_nothing_else(tmp_path):
    def pieces():
        yield "new"
        raise ZeroDivisionError

    (tmp_path / "page.html").write_text("old", "utf-8")
    with pytest.raises(ZeroDivisionError):
        report.write(tmp_path / "page.html", pieces())
    assert [(path.name, path.read_text("utf-8")) for path in tmp_path.iterdir()] == [("page.html", "old")]


def test_a_table_does_not_replace_a_state(tmp_path):
    save(tmp_path / "run.json", TWO)
    save(tmp_path / "other.json", TWO)
    for name in ("run.json", "other.json"):
        before = (tmp_path / name).read_bytes()
        refused(run_report("run.json", "--csv", "--output", name, cwd=tmp_path), 2)
        assert (tmp_path / name).read_bytes() == before


def test_a_place_that_cannot_be_written_to_is_told_in_a_line(tmp_path):
    save(tmp_path / "run.json", TWO)
    (tmp_path / "folder").mkdir()
    for name in ("none/page.html", "folder", "run.json/page.html"):
        for form in ([], ["--csv"]):
            assert f"cannot write {name}: " in refused(run_report("run.json", *form, "-o", name, cwd=tmp_path), 1)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "run.json"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["run.json", "run.json", "--output", "page.html"],
        ["run.json", "run.json", "--watch"],
        ["run.json", "--csv", "--watch"],
        ["run.json", "--csv", "--markdown"],
        ["run.json", "--watch", "0"],
        ["run.json", "--watch", "soon"],
        ["run.json", "--watch", "nan"],
        ["run.json", "--rows", "token"],
        ["run.json", "--threshold", "5"],
        ["run.json", "--unheard-of"],
    ],
    ids=" ".join,
)
def test_a_command_line_that_makes_no_sense_is_told_in_one_line(tmp_path, arguments):
    save(tmp_path / "run.json", TWO)
    refused(run_report(*arguments, cwd=tmp_path), 2)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


# ---- tables ---------------------------------------------------------------------------------------------


def table(*args, cwd):
    """The rows of a table as CSV."""
    done = run_report(*args, "--csv", "--output", "table.csv", cwd=cwd)
    assert (done.returncode, done.stdout, done.stderr) == (0, "table.csv\n", "")
    with open(cwd / "table.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def three(tmp_path):
    """A folder with three runs, b.json the oldest and c.json the newest."""
    save(tmp_path / "a.json", TWO, created="2026-01-02T00:00:00+00:00")
    save(tmp_path / "b.json", {"P-1": [task()], "P-2": [task("incorrect", "71")]}, created="2026-01-01T00:00:00+00:00")
    save(tmp_path / "c.json", {"P-1": [task("pending")]}, created="2026-01-03T00:00:00+00:00")
    return tmp_path


def test_several_runs_are_a_table_newest_first(three):
    done = run_report("a.json", "b.json", "c.json", cwd=three)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["run", "c", "a", "b"]
    assert "33.3 %" in lines[2]
    assert "2 problems x 2 samples" in lines[2]
    markdown = run_report("b.json", "c.json", "a.json", "--markdown", cwd=three).stdout.splitlines()
    assert [line.split()[1] for line in markdown] == ["run", "---", "c", "a", "b"]
    assert [row["file"] for row in table("b.json", "c.json", "a.json", cwd=three)] == ["c.json", "a.json", "b.json"]
    assert not list(three.glob("*.html"))


def same(cell, value):
    """Whether a cell of a CSV file is a value of a state."""
    if value is None or isinstance(value, str):
        return cell == (value or "")
    return float(cell) == value


def test_csv_has_the_values_of_the_state(three):
    rows = {row["file"]: row for row in table("a.json", "b.json", "c.json", cwd=three)}
    for name, row in rows.items():
        summary = json.loads((three / name).read_text("utf-8"))["summary"]
        expected = {"accuracy": summary["accuracy"], "samples": summary["k"], "problems": summary["problems"]}
        expected |= {"avg_at_k": summary["avg_at_k"], "maj_at_k": summary["maj_at_k"], **summary["counts"]}
        for kind, told in summary["intervals"].items():
            expected |= {f"{kind}_{end}": told[end] if told else None for end in ("low", "high")}
        assert not {column: row[column] for column, value in expected.items() if not same(row[column], value)}
    state = json.loads((three / "a.json").read_text("utf-8"))
    by_problem = table("a.json", "--rows", "problem", cwd=three)
    for row, entry in zip(by_problem, state["problems"], strict=True):
        assert all(same(row[name], entry[name]) for name in ("problem", "samples", "scored", "correct", "score"))
        assert [row["low"], row["high"]] == [str(end) for end in entry["interval"]]
    by_task = table("a.json", "--rows", "task", cwd=three)
    assert [row["id"] for row in by_task] == [each["id"] for each in state["tasks"]]
    for row in by_task:
        told = state["task_states"][row["id"]]
        response, grade = told["response"] or {}, told["grade"] or {}
        assert row["status"] == told["status"]
        assert same(row["tokens"], response.get("completion_tokens"))
        assert same(row["answer"], grade.get("answer"))
        assert same(row["error"], told["error"])


def test_a_dash_is_stdout_for_a_table_and_no_place_for_a_page(three):
    assert run_report("a.json", "--csv", "-o", "-", cwd=three).stdout == run_report("a.json", "--csv", cwd=three).stdout
    assert run_report("a.json", "-o", "-", cwd=three).returncode == 2
    assert not (three / "-").exists()


def test_runs_of_different_versions_are_one_table(three):
    """A later version may send a sampling option more."""
    data = json.loads((three / "a.json").read_text("utf-8"))
    data["sampling"]["new_option"] = 1
    (three / "a.json").write_text(json.dumps(data), "utf-8")
    for names in (("a.json", "b.json"), ("b.json", "a.json")):
        rows = table(*names, cwd=three)
        assert {row["file"]: row["new_option"] for row in rows} == {"a.json": "1", "b.json": ""}


@pytest.mark.parametrize("start", ["=1+1", "@SUM(A1)", "+1+cmd", "-1+1", "\t=1", "\r=1", "=1\x01"])
def test_what_a_spreadsheet_would_take_for_a_formula_is_text(tmp_path, start):
    save(tmp_path / "run.json", {"P-1": [task("incorrect", start)]})
    (row,) = table("run.json", "--rows", "task", cwd=tmp_path)
    assert row["answer"] == "'" + report.printable(start)


@pytest.mark.parametrize(
    "answer", ["-5", "+5", "-0.5", "70", "1e5", "a,b", 'a"b', "a\nb", "a\rb", "é ∅ 答", "'x", "a=b"]
)
def test_other_answers_come_out_of_csv_as_they_went_in(tmp_path, answer):
    save(tmp_path / "run.json", {"P-1": [task("incorrect", answer)]})
    (row,) = table("run.json", "--rows", "task", cwd=tmp_path)
    assert row["answer"] == answer


def test_nothing_in_a_cell_is_markdown(tmp_path):
    answer = "a|b `c` <b>d</b>\n*e* _f_ [g](h) \\ $x$ ~~i~~ &lt;j&gt;"
    save(tmp_path / "run.json", {"P-1": [task("incorrect", answer)]})
    lines = run_report("run.json", "--markdown", "--rows", "task", cwd=tmp_path).stdout.splitlines()
    assert len(lines) == 3
    columns = [cell.strip() for cell in lines[0].split("|")]
    cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", lines[2])]
    assert len(cells) == len(columns)
    cell = cells[columns.index("answer")]
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_\[\]<>$~|]", re.sub(r"\\[\\`*_\[\]|<>~$#&]", "", cell))
    read = html.unescape(re.sub(r"&(?=\w)", "&", re.sub(r"\\(\W|_)", r"\1", cell.replace(r"\&", "&amp;"))))
    assert read == " ".join(answer.split())


# ---- terminals and pipes --------------------------------------------------------------------------------

STRANGE = {"P-1": [task("incorrect", "é ∅ 答 \ud800")]}


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
@pytest.mark.parametrize("form", [[], ["--csv", "--rows", "task"], ["--markdown", "--rows", "task"]], ids=" ".join)
def test_whatever_the_locale_what_is_redirected_is_utf_8(tmp_path, environment, form):
    save(tmp_path / "run.json", STRANGE)
    done = run_report("run.json", *form, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "é ∅ 答" in (done.stdout if form else (tmp_path / "run.html").read_text("utf-8"))


def test_a_terminal_that_has_not_all_characters_is_no_reason_to_stop(tmp_path):
    save(tmp_path / "run.json", STRANGE)
    ours, theirs = os.openpty()
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "TERM": "dumb"}
    command = [sys.executable, str(REPORT), "compare", "run.json", "run.json"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=theirs, stderr=subprocess.PIPE) as process:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 1 << 16):
                shown += piece
        except OSError:  # what Linux says at the end
            pass
        assert (process.wait(DEADLINE), process.stderr.read()) == (0, b"")
    os.close(ours)
    assert b"B ? A" in shown


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    save(tmp_path / "run.json", {f"P-{n}": [task()] for n in range(3000)})
    command = [sys.executable, str(REPORT), "run.json", "--csv", "--rows", "task"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert (process.wait(DEADLINE), process.stderr.read()) == (0, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_is_told_in_a_line(tmp_path):
    save(tmp_path / "run.json", TWO)
    with open("/dev/full", "w", encoding="utf-8") as full:
        command = [sys.executable, str(REPORT), "run.json", "--csv"]
        done = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, timeout=DEADLINE)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr


# ---- watching -------------------------------------------------------------------------------------------


class Watch:
    """`--watch` on run.json; `line()` waits for what it prints next."""

    def __init__(self, folder):
        command = [sys.executable, str(REPORT), "run.json", "--watch", "0.1"]
        self.process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
        )
        self.deadline = threading.Timer(DEADLINE, self.process.kill)
        self.deadline.start()

    def line(self):
        return self.process.stdout.readline().rstrip("\n")

    def end(self):
        """Its exit status and what it wrote to stderr."""
        return self.process.wait(DEADLINE), self.process.stderr.read()

    def close(self):
        self.deadline.cancel()
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def watch(tmp_path):
    watching = Watch(tmp_path)
    yield watching
    watching.close()


def replace_state(folder, *tasks):
    """Save run.json as llama-eval.py does: another file in its place."""
    save(folder / "new", {"P-1": list(tasks)})
    os.replace(folder / "new", folder / "run.json")


def test_a_watched_run_is_waited_for_rewritten_when_saved_and_ends_by_itself(tmp_path, watch):
    page = tmp_path / "run.html"
    assert watch.line() == "waiting for run.json"
    replace_state(tmp_path, task("pending"), task("pending"))
    assert watch.line() == "run.html: 0 of 2 tasks, accuracy -"
    assert '<body data-watch="0.1">' in page.read_text("utf-8")
    replace_state(tmp_path, task(), task("pending"))
    assert watch.line() == "run.html: 1 of 2 tasks, accuracy 100.0 %"
    assert "100.0 % 1 of 1" in text_of(page)
    replace_state(tmp_path, task(), task("incorrect", "71"))
    assert watch.line() == "run.html: 2 of 2 tasks, accuracy 50.0 %"
    assert watch.end() == (0, "")
    assert "data-watch=" not in page.read_text("utf-8"), "a finished page does not load itself again"
    assert "50.0 % 1 of 2" in text_of(page)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.html", "run.json"]


def test_watching_is_stopped_by_ctrl_c(tmp_path, watch):
    replace_state(tmp_path, task("pending"))
    while "tasks" not in (line := watch.line()):
        assert line == "waiting for run.json"
    watch.process.send_signal(signal.SIGINT)
    assert watch.end() == (130, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.html", "run.json"]


def test_a_watched_file_that_cannot_be_read_is_told_and_read_again_when_it_changes(tmp_path, watch):
    (tmp_path / "new").write_text("[]", "utf-8")
    os.replace(tmp_path / "new", tmp_path / "run.json")
    assert watch.process.stderr.readline().endswith("trying again when it changes\n")
    replace_state(tmp_path, task())
    assert watch.end() == (0, "")
    assert "100.0 % 1 of 1" in text_of(tmp_path / "run.html")


def test_a_real_run_is_watched_to_its_end(start_simulator, tmp_path, watch):
    server = start_simulator("--success-rate", 0.8, "--dataset", "practice")
    options = ["--dataset", "practice", "--limit", 5, "--output", "run.json", "--seed", 1]
    done = run_eval("--endpoint", server.url, *options, cwd=tmp_path)
    assert done.returncode == 0
    assert watch.end() == (0, "")
    accuracy = json.loads((tmp_path / "run.json").read_text("utf-8"))["summary"]["accuracy"]
    assert f"{percent(accuracy)} {round(5 * accuracy)} of 5" in text_of(tmp_path / "run.html")


def test_a_page_that_is_being_rewritten_is_always_whole(tmp_path):
    save(tmp_path / "run.json", {f"P-{n}": [task(content="x" * 1000)] for n in range(200)})
    page, whole, stop = tmp_path / "run.html", [], threading.Event()
    report.report(tmp_path / "run.json", page)

    def read():
        while not stop.is_set():
            text = page.read_text("utf-8")
            whole.append(text.startswith("<!doctype html>") and text.endswith("</body></html>\n"))

    reader = threading.Thread(target=read)
    reader.start()
    deadline, written = time.monotonic() + DEADLINE, 0
    while (written < 5 or len(whole) < 20) and time.monotonic() < deadline:
        report.report(tmp_path / "run.json", page)
        written += 1
    stop.set()
    reader.join()
    assert len(whole) >= 20
    assert all(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.html", "run.json"]


# ---- llama-eval.py --report -----------------------------------------------------------------------------


def row(stdout, name):
    """The text of a row of the console's output."""
    (found,) = [line.split(maxsplit=1)[1] for line in stdout.splitlines() if line.startswith(f"{name}  ")]
    return found


PRACTICE = ["--dataset", "practice", "--limit", 3, "--seed", 1]


@pytest.mark.parametrize(
    ("given", "page"), [(["--report"], "run.html"), (["--report", "my page.html"], "my page.html")]
)
def test_the_evaluator_has_the_page_written_in_the_end(fake_server, tmp_path, given, page):
    done = run_eval("--endpoint", fake_server(right).url, *PRACTICE, "-o", "run.json", *given, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert row(done.stdout, "report") == page
    assert "100.0 % 3 of 3" in text_of(tmp_path / page)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([page, "run.json"])


def test_without_the_option_there_is_no_page(fake_server, tmp_path):
    done = run_eval("--endpoint", fake_server(right).url, *PRACTICE, "-o", "run.json", cwd=tmp_path)
    assert "\nreport " not in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_merging_and_grading_again_have_a_page_too(fake_server, tmp_path):
    server = fake_server(right)
    for part in (1, 2):
        options = ["--dataset", "practice", "--shard", f"{part}/2", "--seed", 1, "-o", f"{part}.json"]
        run_eval("--endpoint", server.url, *options, cwd=tmp_path)
    done = run_eval("--merge", "1.json", "2.json", "--output", "all.json", "--report", cwd=tmp_path)
    assert row(done.stdout, "report") == "all.html"
    assert "100.0 % 30 of 30" in text_of(tmp_path / "all.html")
    done = run_eval("--regrade", "1.json", "--report", cwd=tmp_path)
    assert (done.returncode, row(done.stdout, "report")) == (0, "1.html")
    assert "100.0 % 15 of 15" in text_of(tmp_path / "1.html")


@pytest.mark.parametrize("page", ["run.json", "notes.txt", "none/page.html", "mine.html"])
def test_a_page_that_could_never_be_written_is_refused_before_anything_is_asked(fake_server, tmp_path, page):
    (tmp_path / "mine.html").write_text("mine", "utf-8")
    server = fake_server(right)
    done = run_eval("--endpoint", server.url, *PRACTICE, "-o", "run.json", "--report", page, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert not server.requests
    assert [(path.name, path.read_text("utf-8")) for path in tmp_path.iterdir()] == [("mine.html", "mine")]


def test_a_page_that_cannot_be_written_in_the_end_is_told_in_its_row_and_by_the_exit_status(fake_server, tmp_path):
    def busy(method, path, body):
        """Somebody puts a file of theirs there while the run goes on."""
        (tmp_path / "notes.html").write_text("mine", "utf-8")
        return right(method, path, body)

    options = [*PRACTICE, "-o", "run.json", "--report", "notes.html"]
    done = run_eval("--endpoint", fake_server(busy).url, *options, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert "notes.html exists and is not a report" in row(done.stdout, "report")
    assert (tmp_path / "notes.html").read_text("utf-8") == "mine"
    assert run_report("run.json", cwd=tmp_path).returncode == 0, "the state is whole"


def test_a_run_with_tasks_left_open_has_a_page_and_its_own_exit_status(fake_server, tmp_path):
    server = fake_server(lambda method, path, body: (400, {"error": {"message": "no"}}))
    options = [*PRACTICE, "-o", "run.json", "--max-retries", 0, "--report"]
    done = run_eval("--endpoint", server.url, *options, cwd=tmp_path)
    assert done.returncode == 3
    assert row(done.stdout, "report") == "run.html"
    assert "No task has a verdict yet." in text_of(tmp_path / "run.html")


def test_a_run_that_is_stopped_has_no_page(socket_server, tmp_path):
    asked, over = threading.Event(), threading.Event()

    def act(connection, body):
        asked.set()
        over.wait(DEADLINE)

    server = socket_server(act)
    options = ["--endpoint", server.url, *PRACTICE, "-o", "run.json", "--report"]
    command = [sys.executable, str(EVAL), *map(str, options)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert asked.wait(DEADLINE)
            process.send_signal(signal.SIGINT)
            stdout, _ = process.communicate(timeout=DEADLINE)
        finally:
            process.kill()
            over.set()
    assert process.returncode == 130
    assert "\nreport " not in stdout
    assert not list(tmp_path.glob("*.html"))


# ---- templates, style and script ------------------------------------------------------------------------

PARTS = REPO / "report"


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node to check the page's script with")
def test_the_script_of_the_page_is_javascript():
    done = subprocess.run(
        [shutil.which("node"), "--check", PARTS / "script.js"], capture_output=True, text=True, timeout=DEADLINE
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", sorted(path.name for path in PARTS.glob("*.j2")))
def test_a_template_names_nothing_that_its_page_does_not_have(name):
    """Beside the functions of the script it may use what `page` and its callers hand over."""
    environment = report.environment()
    used = jinja2.meta.find_undeclared_variables(environment.parse((PARTS / name).read_text("utf-8")))
    frame = {"policy", "title", "style", "script", "shelf", "reload_seconds"}
    handed = {"run", "runs", "comparisons", "claims", "changed", "rows", "caller", "m", "summary"}
    assert used - set(environment.globals) <= frame | handed


def test_every_class_of_the_style_is_used_and_its_braces_are_balanced():
    style = re.sub(r"/\*.*?\*/", "", (PARTS / "style.css").read_text("utf-8"), flags=re.DOTALL)
    assert style.count("{") == style.count("}")
    selectors = re.sub(r"\{[^{}]*\}", "", style)
    named = set(re.findall(r"\.([a-z_][\w-]*)", selectors)) - set(llama_eval.STATUSES)
    sources = "".join(path.read_text("utf-8") for path in (REPORT, *PARTS.iterdir()) if path.suffix != ".css")
    assert {name for name in named if not re.search(rf"\b{name}\b", sources)} == set()


def test_without_its_templates_a_page_is_refused_in_one_line(tmp_path):
    shutil.copy(REPORT, tmp_path)
    save(tmp_path / "run.json", TWO)
    command = [sys.executable, REPORT.name, "run.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=DEADLINE)
    assert "report/style.css: it belongs beside this script, with its folder" in refused(done, 1)


def test_a_question_that_is_hard_to_typeset_is_shown_as_its_source(tmp_path):
    deep = "x"
    for _ in range(250):
        deep = f"\\frac{{1}}{{{deep}}}"
    data = made(TWO)
    questions = (f"What is ${deep}$?", "\\(" * 200_000)
    for entry, question in zip(data["tasks"], questions, strict=False):
        entry["question"] = question
    (tmp_path / "run.json").write_text(json.dumps(data), "utf-8")
    start = time.process_time()
    done = run_report("run.json", "--output", "run.html", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert time.process_time() - start < 20


@pytest.mark.parametrize("cell", ["=1+1", "\n=1+1", "  =1+1", "\uff1d1+1", "\uff20x", "@x", "-1+1", "\rx"])
def test_no_cell_is_a_formula(cell):
    assert report.harmless(cell).startswith("'")


def test_a_cell_of_markdown_mentions_nobody():
    assert "@user" not in report.escaped("by @user")


def test_a_report_leaves_no_file_of_its_own_and_follows_no_link(tmp_path):
    precious, page = tmp_path / "precious", tmp_path / "page.html"
    precious.write_text("mine")
    name = report.hashlib.sha256(b"page.html").hexdigest()[:8]
    (tmp_path / f".llama-eval-report-{name}.tmp").symlink_to(precious)
    report.write(page, ["text"])
    assert (precious.read_text(), page.read_text()) == ("mine", "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "precious"]


@pytest.mark.parametrize(
    ("proportion", "text"),
    [(1999 / 2000, "99.9 %"), (1, "100.0 %"), (1 / 4000, "0.1 %"), (0, "0.0 %"), (0.99951, "99.9 %"), (0.8, "80.0 %")],
)
def test_only_all_is_100_percent_and_only_nothing_is_0(proportion, text):
    assert report.percent(proportion) == llama_eval.percent(proportion) == text


def test_there_is_no_negative_zero():
    assert (report.points(-0.0001), report.points(-0.0001, sign=False)) == ("+0.0 points", "0.0 points")


def test_pass_at_k_says_over_how_many_problems_it_is(tmp_path):
    verdicts = {"P-1": ["correct", "correct"], "P-2": ["correct", "error"]}
    save(tmp_path / "run.json", {name: [task(status) for status in given] for name, given in verdicts.items()})
    assert "100.0 % (of 1)" in run_report("run.json", "--markdown", cwd=tmp_path).stdout
    (row_,) = csv.DictReader(io.StringIO(run_report("run.json", "--csv", cwd=tmp_path).stdout))
    assert (row_["pass_at_k"], row_["pass_at_k_problems"]) == ("1.0", "1")
