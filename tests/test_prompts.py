"""The prompt of a question, and the form in which it asks for the answer."""

import json
import re

import pytest

from scripts import ANSWERS, EVAL, busy_at_first, completion, expected, load, right, run_eval

llama_eval = load(EVAL)


def run(server, folder, *more, **options):
    arguments = ["--endpoint", server.url, "--dataset", "practice", "--limit", 6, "--output", "run.json"]
    return run_eval(*arguments, *more, cwd=folder, **options)


def state_of(folder):
    return json.loads((folder / "run.json").read_text("utf-8"))


@pytest.mark.parametrize("kind", llama_eval.KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("answer_format", llama_eval.ANSWER_FORMATS)
def test_a_prompt_has_one_instruction_and_does_not_mix_formats(kind, answer_format):
    text = kind.instructions[answer_format]
    assert ("boxed" in text) == (answer_format == "boxed")
    assert ("JSON" in text) == (answer_format != "boxed")
    assert len(re.findall(r"\{\"answer|\"answer\"|\\boxed", text)) == 1
    assert ("letter" in text) == (kind.name == "letter")


@pytest.mark.parametrize("kind", llama_eval.KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("answer_format", llama_eval.ANSWER_FORMATS)
def test_a_copied_instruction_is_no_answer(kind, answer_format):
    text = kind.instructions[answer_format]
    for asked in llama_eval.ANSWER_FORMATS:
        found = llama_eval.find_answer(text, "stop", kind)
        assert found.answer is None or not kind.parse(found.answer), (asked, found)


@pytest.mark.parametrize("answer_format", ["json", "boxed"])
def test_only_the_schema_format_asks_the_server_to_enforce_anything(fake_server, tmp_path, answer_format):
    server = fake_server(right)
    run(server, tmp_path, "--answer-format", answer_format)
    assert all("response_format" not in body for body in server.prompts())
    assert state_of(tmp_path)["prompt"]["schema"] is None


def test_a_schema_is_sent_and_kept_with_the_run(fake_server, tmp_path):
    server = fake_server(right)
    done = run(server, tmp_path, "--answer-format", "schema")
    assert "6 correct" in done.stdout
    sent = {json.dumps(body["response_format"]) for body in server.prompts()}
    (sent,) = map(json.loads, sent)
    assert (sent["type"], sent["json_schema"]["strict"]) == ("json_schema", True)
    schema = sent["json_schema"]["schema"]
    assert list(schema["properties"]) == schema["required"] == ["reasoning", "answer"], "thinking comes first"
    assert schema["properties"]["answer"] == {"type": "integer"}
    assert state_of(tmp_path)["prompt"]["schema"] == schema
    assert state_of(tmp_path)["endpoints"][0]["rejects_schema"] is False


@pytest.mark.parametrize("status", [400, 415, 422, 501])
def test_a_server_that_refuses_the_schema_is_asked_without_it_and_one_line_says_so(fake_server, tmp_path, status):
    refusals = []

    def reply(method, path, body):
        if method == "POST" and "response_format" in body:
            refusals.append(body)
            return status, {"error": {"message": "JSON schema error"}}
        return right(method, path, body)

    server = fake_server(reply)
    done = run(server, tmp_path, "--answer-format", "schema", "--threads", 2)
    assert (done.returncode, done.stderr) == (0, "")
    assert "6 correct" in done.stdout
    assert done.stdout.count("WARNING") == 1
    assert f"WARNING: {server.url} refuses response_format" in done.stdout
    assert len(refusals) <= 2, "each thread finds out once"
    assert state_of(tmp_path)["endpoints"][0]["rejects_schema"] is True


def test_a_request_with_another_fault_is_not_taken_for_a_refused_schema(fake_server, tmp_path):
    def reply(method, path, body):
        return (400, {"error": {"message": "temperature is out of range"}}) if method == "POST" else (404, b"")

    done = run(fake_server(reply), tmp_path, "--answer-format", "schema")
    assert done.returncode == 1
    assert "WARNING" not in done.stdout
    assert "refuses one task after the other (HTTP 400: temperature is out of range)" in done.stderr


def test_a_busy_server_is_not_taken_for_one_that_refuses_the_schema(fake_server, tmp_path):
    server = fake_server(busy_at_first())
    done = run(server, tmp_path, "--answer-format", "schema")
    assert "6 correct" in done.stdout
    assert "refuses" not in done.stdout
    assert all("response_format" in body for body in server.prompts())


@pytest.mark.parametrize(
    "content",
    ['{"answer": "0%s"}', '{"answer": %s.0}', '```json\n{"answer": %s}\n```', '{"reasoning": "2+2", "answer": %s}'],
)
def test_the_ways_in_which_models_write_the_object_are_understood(fake_server, tmp_path, content):
    def reply(method, path, body):
        return (200, completion(content % expected(body))) if method == "POST" else (404, b"")

    for answer_format in ("json", "schema"):
        done = run(fake_server(reply), tmp_path, "--answer-format", answer_format, "--overwrite")
        assert "6 correct" in done.stdout


def test_a_prompt_of_ones_own_replaces_the_whole_text(fake_server, tmp_path):
    template = "Frage: {question}\n\nAntwort in \\boxed{} und {geschweiften} Klammern, 10 \N{EURO SIGN}."
    (tmp_path / "own.txt").write_text(template + "\n", encoding="utf-8")
    server = fake_server(right)
    done = run(server, tmp_path, "--prompt-file", "own.txt", "--system-prompt", "Be brief.")
    assert "6 correct" in done.stdout
    body = server.prompts()[0]
    question = next(question for question in ANSWERS if question in body["messages"][1]["content"])
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": template.replace("{question}", question)},
    ]
    kept = state_of(tmp_path)["prompt"]
    assert (kept["template"], kept["system"]) == (template, "Be brief.")


def test_a_changed_prompt_file_is_not_resumed(fake_server, tmp_path):
    (tmp_path / "own.txt").write_text("One. {question}", encoding="utf-8")
    server = fake_server(right)
    run(server, tmp_path, "--prompt-file", "own.txt")
    (tmp_path / "own.txt").write_text("Two. {question}", encoding="utf-8")
    done = run(server, tmp_path, "--prompt-file", "own.txt", "--samples", 2, "--resume")
    assert done.returncode == 1
    assert 'prompt template was "One. {question}", is now "Two. {question}"' in done.stderr


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"Solve this: {problem}", "'own.txt' has no {question} to put the question in the place of"),
        (b"", "'own.txt' has no {question}"),
        (b"\xff\xfe{question}", "'own.txt' is not text in UTF-8"),
        (None, "cannot read 'own.txt': No such file or directory"),
    ],
)
def test_a_prompt_file_that_cannot_be_used_is_bad_usage(tmp_path, content, complaint):
    if content is not None:
        (tmp_path / "own.txt").write_bytes(content)
    done = run_eval("--endpoint", "http://127.0.0.1:9", "--prompt-file", "own.txt", cwd=tmp_path)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_response_format_of_ones_own_is_never_dropped(fake_server, tmp_path):
    def reply(method, path, body):
        if method == "POST" and "response_format" in body:
            return 400, {"error": {"message": "not here"}}
        return right(method, path, body)

    server = fake_server(reply)
    done = run(server, tmp_path, "--extra-body", '{"response_format": {"type": "json_object"}}')
    assert "0 correct" in done.stdout
    assert "refuses one task after the other (HTTP 400: not here)" in done.stderr
    assert all("response_format" in body for body in server.prompts())


@pytest.mark.parametrize("extra", ['{"response_format": {"type": "json_object"}}', '{"grammar": "root ::= [0-9]+"}'])
def test_two_forms_for_an_answer_are_bad_usage(tmp_path, extra):
    options = ["--answer-format", "schema", "--extra-body", extra]
    done = run_eval("--endpoint", "http://127.0.0.1:9", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert "exclude each other" in done.stderr
