"""The state of a run: in memory, on disk, and continued."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts import EVAL, load, tasks_of

llama_eval = load(EVAL)


def problems(*expected):
    rows = [llama_eval.Problem(str(i), f"question {i}", e) for i, e in enumerate(expected, 1)]
    return llama_eval.make_dataset("d", "d.jsonl", rows)


def new_run(dataset=None, samples=1, limit=None, **changes):
    prompt = llama_eval.Prompt("json", "{question}", changes.pop("system", None))
    sampling = llama_eval.Sampling(**changes)
    return llama_eval.new_run(dataset or problems("1", "2", "3"), prompt, sampling, samples, slice(limit))


def dump(path, state):
    with llama_eval.StateFile(path, 0) as file:
        file.save(state)


def load_quietly(path):
    return llama_eval.load_state(path, pytest.fail)


def maybe(strategy):
    return st.none() | strategy


texts = st.text(st.characters(exclude_categories=[]))
responses = st.builds(
    llama_eval.Response,
    content=texts,
    reasoning=texts,
    finish_reason=maybe(texts),
    model=maybe(texts),
    prompt_tokens=maybe(st.integers(0)),
    completion_tokens=maybe(st.integers(0)),
    tokens_per_second=maybe(st.floats(allow_nan=False, allow_infinity=False)),
    seconds=st.floats(0, 1e6),
)
grades = st.builds(llama_eval.Grade, st.sampled_from(llama_eval.SCORED), maybe(texts), texts, texts)
task_states = st.builds(
    llama_eval.TaskState,
    status=st.sampled_from(llama_eval.STATUSES),
    grade=maybe(grades),
    response=maybe(responses),
    endpoint=maybe(texts),
    attempts=st.integers(0),
    error=maybe(texts),
    started=maybe(texts),
    finished=maybe(texts),
)


def plain(value):
    """A value after UTF-8, which has no lone surrogates."""
    return json.loads(json.dumps(value, default=vars, ensure_ascii=False).encode("utf-8", "replace"))


@given(st.lists(task_states, min_size=3, max_size=3))
def test_a_state_survives_the_disk_whatever_the_model_wrote(tmp_path_factory, results):
    state = new_run(temperature=0.6, extra_body={"reasoning_effort": "high"})
    state.task_states = dict(zip(state.task_states, results, strict=True))
    state.endpoints = [llama_eval.Endpoint("http://localhost:8033", 4, [{"id": "m"}], {"total_slots": 4})]
    path = tmp_path_factory.mktemp("state") / "run.json"
    dump(path, state)
    json.loads(path.read_text("utf-8"), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert plain(vars(load_quietly(path))) == plain(vars(state))


def test_the_file_holds_what_it_takes_to_understand_the_run(tmp_path):
    path = tmp_path / "run.json"
    dump(path, new_run(samples=2))
    data = json.loads(path.read_text("utf-8"))
    about = (
        "schema_version journal id tool created updated dataset model endpoints sampling grader prompt loop_stop"
        " until summary review"
    )
    assert set(data) == {*about.split(), "problems", "tasks", "task_states"}
    assert data["dataset"]["name"] == "d"
    texts = {"question": "question 1", "expected": "1", "order": None}
    assert data["tasks"][0] == {"id": "d/1#0", "problem": "1", "sample": 0, **texts}
    assert data["tasks"][3] == {"id": "d/1#1", "problem": "1", "sample": 1}, "once, however many samples"
    assert list(data["task_states"]) == [task["id"] for task in data["tasks"]]
    assert data["summary"]["counts"]["pending"] == 6


def test_tasks_are_in_breadth_first_order():
    assert [task.id for task in new_run(samples=2, limit=2).tasks] == ["d/1#0", "d/2#0", "d/1#1", "d/2#1"]


def test_nothing_is_left_behind_by_a_write_and_the_old_file_survives_a_failed_one(tmp_path):
    path = tmp_path / "run.json"
    llama_eval.write_atomically(path, ["old"])

    def pieces():
        yield "new"
        raise OSError(28, "No space left on device")

    with pytest.raises(llama_eval.StateError, match="No space left"):
        llama_eval.write_atomically(path, pieces())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_goes_through_a_link_to_the_file_behind_it(tmp_path):
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    llama_eval.write_atomically(tmp_path / "link.json", ["new"])
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").read_text() == "new"


def test_what_is_done_stays_done_and_what_failed_is_open():
    previous = new_run(problems("1", "2", "3", "4"))
    ids = list(previous.task_states)
    for task_id, status in zip(ids, ("correct", "truncated", "error", "ungraded"), strict=True):
        previous.task_states[task_id] = llama_eval.TaskState(status)
    state = llama_eval.continue_run(previous, new_run(problems("1", "2", "3", "4")))
    assert [task.id for task in state.open_tasks()] == ids[2:]
    assert state.id == previous.id


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dataset": problems("1", "2", "4")}, "sha256"),
        ({"temperature": 0.6}, "temperature was null, is now 0.6"),
        ({"seed": 1}, "seed"),
        ({"system": "Be brief."}, "prompt system"),
        ({"extra_body": {"a": 1}}, "extra_body"),
    ],
)
def test_a_resume_with_other_settings_is_refused_and_they_are_listed(changes, named):
    with pytest.raises(llama_eval.StateError, match="cannot resume with other settings") as error:
        llama_eval.continue_run(new_run(), new_run(**changes))
    assert named in str(error.value)


def test_a_resume_may_add_samples_and_problems_but_not_drop_them():
    larger = llama_eval.continue_run(new_run(samples=2, limit=2), new_run(samples=4))
    assert len(larger.open_tasks()) == 12
    with pytest.raises(llama_eval.StateError, match="2 tasks of the run would be left out"):
        llama_eval.continue_run(new_run(samples=2, limit=2), new_run(samples=1, limit=2))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not JSON"),
        ("\x00\xff", "not JSON"),
        ("[]", "no schema_version"),
        ('{"answer": 1}', "no schema_version"),
        ('{"schema_version": 99}', "written by a newer llama-eval .schema 99; this is 3"),
        ('{"schema_version": 1}', "KeyError"),
        ('{"schema_version": 1, "tasks": [{"id": 1}]}', "KeyError"),
        ('{"schema_version": 1, "tasks": 5}', "TypeError"),
        ('{"schema_version": 0}', "no schema_version"),
        ('{"schema_version": true}', "no schema_version"),
    ],
)
def test_a_file_that_is_no_state_is_refused(tmp_path, text, complaint):
    path = tmp_path / "run.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(llama_eval.StateError, match=complaint):
        load_quietly(path)


def test_an_unknown_status_is_refused(tmp_path):
    path = tmp_path / "run.json"
    dump(path, new_run())
    path.write_text(path.read_text("utf-8").replace('"status": "pending"', '"status": "fine"', 1), "utf-8")
    with pytest.raises(llama_eval.StateError, match="unknown status 'fine'"):
        load_quietly(path)


@pytest.mark.parametrize(
    ("name", "resume", "overwrite", "complaint"),
    [
        ("folder", False, False, "not a file"),
        ("/dev/null", False, True, "not a file"),
        ("gone/run.json", False, False, "folder of the output .* does not exist"),
        ("old.json", False, False, "exists: add --resume"),
        ("new.json", True, False, "there is no .* to resume"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused(tmp_path, name, resume, overwrite, complaint):
    (tmp_path / "folder").mkdir()
    (tmp_path / "old.json").touch()
    with pytest.raises(llama_eval.StateError, match=complaint):
        llama_eval.check_output(tmp_path / Path(name), resume, overwrite)


@pytest.mark.parametrize(("name", "value"), [("expected", 5), ("question", None), ("problem", 1), ("id", 7)])
def test_a_task_whose_texts_are_none_is_refused(tmp_path, name, value):
    path = tmp_path / "run.json"
    dump(path, new_run())
    data = json.loads(path.read_text("utf-8"))
    data["tasks"][0][name] = value
    data["task_states"]["7"] = data["task_states"]["d/1#0"]
    path.write_text(json.dumps(data), "utf-8")
    with pytest.raises(llama_eval.StateError, match=f"its {name}: {json.dumps(value)} is no str"):
        load_quietly(path)


@pytest.mark.parametrize(
    "damage", [{"dataset": "x"}, {"dataset": {}}, {"tasks": []}, {"prompt": {}}, {"endpoints": 5}, {"grader": {}}]
)
def test_a_state_with_a_damaged_part_is_refused(tmp_path, damage):
    path = tmp_path / "run.json"
    dump(path, new_run())
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **damage}), "utf-8")
    with pytest.raises(llama_eval.StateError, match="is not a state of llama-eval"):
        load_quietly(path)


def walk(value):
    """Every object in a value of JSON, the value itself included."""
    if isinstance(value, dict):
        yield value
    for entry in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(entry)


def finished_run():
    """A run with everything in it that a state can hold."""
    state = new_run()
    response = llama_eval.Response("70", "hm", "stop", "tiny", 9, 7, 5.5, 1.25)
    rule = llama_eval.Grade("incorrect", "71", "json", "regex")
    grade = llama_eval.Grade("correct", "70", "judge", "llm", rule=rule)
    state.task_states["d/1#0"] = llama_eval.TaskState("correct", grade, response, "http://0", 1, partial=response)
    state.endpoints = [llama_eval.Endpoint("http://0", 4, [{"id": "tiny"}], {"total_slots": 4})]
    return state


def test_a_file_of_a_newer_version_is_read_without_the_fields_that_are_new(tmp_path):
    path = tmp_path / "run.json"
    dump(path, finished_run())
    data = json.loads(path.read_text("utf-8"))
    records = [data, data["prompt"], data["sampling"], *data["tasks"], *data["problems"], *data["endpoints"]]
    records += [entry for result in data["task_states"].values() for entry in walk(result)]
    for record in records:
        record["colour"] = {"of": "its eyes"}
    path.write_text(json.dumps(data), "utf-8")
    assert load_quietly(path) == finished_run_as(load_quietly(path))


def finished_run_as(other):
    """`finished_run` with the id and times of another."""
    return dataclasses.replace(finished_run(), id=other.id, created=other.created, updated=other.updated)


def test_a_file_of_an_older_version_is_read_by_one_with_more_fields(tmp_path):
    @dataclasses.dataclass
    class Wider(llama_eval.EvalState):
        colour: str = "grey"
        tags: list[str] = dataclasses.field(default_factory=list)

    path = tmp_path / "run.json"
    dump(path, finished_run())
    data = json.loads(path.read_text("utf-8"))
    data["tasks"] = tasks_of(data)
    state = llama_eval.reader(Wider)(data)
    assert (state.colour, state.tags, state.tasks) == ("grey", [], finished_run().tasks)


def test_a_file_of_the_second_version_is_read(tmp_path):
    """It has the texts with the scores of the problems."""
    path = tmp_path / "run.json"
    dump(path, finished_run())
    data = json.loads(path.read_text("utf-8"))
    texts = {task["problem"]: task for task in tasks_of(data)}
    for entry in data["problems"]:
        entry |= {name: texts[entry["problem"]][name] for name in llama_eval.TEXTS}
    data["tasks"] = [{name: task[name] for name in ("id", "problem", "sample")} for task in data["tasks"]]
    path.write_text(json.dumps({**data, "schema_version": 2}), "utf-8")
    assert load_quietly(path) == finished_run_as(load_quietly(path))


def test_a_file_of_the_first_version_is_read(tmp_path):
    """It has the texts in every task, and neither scores of problems nor the fields that came later."""
    path = tmp_path / "run.json"
    dump(path, finished_run())
    data = json.loads(path.read_text("utf-8"))
    data["tasks"] = tasks_of(data)
    del data["problems"]
    for task in data["tasks"]:
        del task["order"]
    for result in data["task_states"].values():
        result.pop("partial")
        for name in ("tokens_counted", "first_token_seconds", "queue_seconds"):
            (result["response"] or {}).pop(name, None)
    for endpoint in data["endpoints"]:
        endpoint.pop("rejects_schema")
    path.write_text(json.dumps({**data, "schema_version": 1}), "utf-8")
    state = load_quietly(path)
    expected = finished_run_as(state)
    expected.task_states["d/1#0"] = dataclasses.replace(expected.task_states["d/1#0"], partial=None)
    assert state == expected


def test_a_model_that_is_named_must_be_the_one_of_the_run():
    previous, new = new_run(), new_run()
    previous.model = "q8"
    assert llama_eval.continue_run(previous, new_run()).model == "q8"
    new.model = "q4"
    with pytest.raises(llama_eval.StateError, match='model was "q8", is now "q4"'):
        llama_eval.continue_run(previous, new)


def test_a_state_keeps_its_permissions(tmp_path):
    path = tmp_path / "run.json"
    path.touch(0o600)
    llama_eval.write_atomically(path, ["new"])
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_name_as_long_as_names_can_be_can_be_written(tmp_path):
    path = tmp_path / ("n" * 250 + ".json")
    llama_eval.write_atomically(path, ["new"])
    assert path.read_text() == "new"


def test_an_output_is_judged_by_the_folder_that_a_link_leads_to(tmp_path):
    (tmp_path / "link.json").symlink_to(tmp_path / "gone" / "run.json")
    with pytest.raises(llama_eval.StateError, match=r"folder of the output .* does not exist"):
        llama_eval.check_output(tmp_path / "link.json", False, False)
