"""Grading by a model that reads the answers, alone or where the rules of text are unsure."""

import json
import socket
import threading

import pytest

from scripts import DEADLINE, EVAL, completion, load, run_eval

llama_eval = load(EVAL)
NUMBERS = {"alpha": 918273, "beta": 827364, "gamma": 736455, "delta": 645546}  # nothing else in a request holds these
PROBLEMS = [{"id": name, "question": f"What is {name}?", "answer": value} for name, value in NUMBERS.items()]


def name_in(body):
    """Which of the problems a request is about."""
    return next(name for name in NUMBERS if f"What is {name}?" in body["messages"][-1]["content"])


def solver(reply):
    """A server that answers each problem with `reply(name)`."""
    return lambda method, path, body: (200, completion(reply(name_in(body)))) if method == "POST" else (404, b"")


def judge(reply):
    """A server that judges by `reply(name)`, which is the content, or a status and a payload."""

    def answer(method, path, body):
        if method == "GET":
            return 404, b""
        given = reply(name_in(body))
        return given if isinstance(given, tuple) else (200, completion(given))

    return answer


def reads(name):
    return f'{{"answer": "{NUMBERS[name]}"}}'


def in_words(name):
    return f"It comes to {NUMBERS[name]}, I am afraid. Ask me anything else!"


def run(folder, solving, judging, *more, grader="llm", **options):
    lines = "".join(json.dumps(problem) + "\n" for problem in PROBLEMS)
    (folder / "numbers.jsonl").write_text(lines, encoding="utf-8")
    arguments = ["--dataset", "numbers.jsonl", "--output", "run.json", "--grader", grader]
    arguments += ["--endpoint", solving.url, "--judge-endpoint", getattr(judging, "url", judging)]
    return run_eval(*arguments, *more, cwd=folder, **options)


def state_of(folder):
    return json.loads((folder / "run.json").read_text("utf-8"))


def grades_of(folder):
    return {task.split("/")[1][:-2]: s["grade"] for task, s in state_of(folder)["task_states"].items()}


def test_the_judge_reads_what_the_rules_cannot(fake_server, tmp_path):
    solving, judging = fake_server(solver(in_words)), fake_server(judge(reads))
    done = run(tmp_path, solving, judging)
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 correct" in done.stdout
    assert "grading   4 by llm; the rules of text agree with 0 of 4" in done.stdout
    grade = grades_of(tmp_path)["beta"]
    assert (grade["verdict"], grade["answer"], grade["method"], grade["grader"]) == (
        "correct",
        "827364",
        "judge",
        "llm",
    )
    assert (grade["confident"], grade["explanation"]) == (True, "what the judge read as the final answer")
    assert (
        grade["prompt"]
        == judging.prompts()[[name_in(b) for b in judging.prompts()].index("beta")]["messages"][0]["content"]
    )
    assert "What is beta?" in grade["prompt"]
    assert in_words("beta") in grade["prompt"]
    assert grade["reply"] == '{"answer": "827364"}'
    assert grade["rule"]["verdict"] == "no_answer"


def test_no_request_to_the_judge_holds_the_expected_answer(fake_server, tmp_path):
    """The solver is wrong every time, so that nothing but the tool could put the expected answer there."""
    solving = fake_server(solver(lambda name: '{"answer": 5}'))
    judging = fake_server(judge(lambda name: '{"answer": "5"}'))
    for grader in ("llm", "cascade"):
        done = run(tmp_path, solving, judging, "--overwrite", "--verbose", grader=grader)
        assert "4 incorrect" in done.stdout
    solving = fake_server(solver(lambda name: "So 5."))
    run(tmp_path, solving, judging, "--overwrite", grader="cascade")
    assert len(judging.prompts()) == 8
    seen = json.dumps(judging.requests)
    assert "What is alpha?" in seen
    for value in NUMBERS.values():
        assert str(value) not in seen


def test_the_judge_is_asked_for_json_and_nothing_random(fake_server, tmp_path):
    judging = fake_server(judge(reads))
    run(tmp_path, fake_server(solver(in_words)), judging, "--judge-model", "wise", "--temperature", 1, "--seed", 3)
    body = judging.prompts()[0]
    names = ("model", "messages", "temperature", "max_tokens", "response_format", "stream", "stream_options")
    assert set(body) == set(names)
    assert (body["model"], body["temperature"]) == ("wise", 0)
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["properties"] == {"answer": {"type": ["string", "null"]}}


@pytest.mark.parametrize("status", [400, 422, 501])
def test_a_judge_that_refuses_the_schema_is_asked_without_it(fake_server, tmp_path, status):
    refused = []

    def reply(method, path, body):
        if method == "POST" and "response_format" in body:
            refused.append(path)
            return status, {"error": {"message": "response_format is not supported"}}
        return judge(lambda name: f"```json\n{reads(name)}\n```")(method, path, body)

    done = run(tmp_path, fake_server(solver(in_words)), fake_server(reply), "--grader-threads", 1)
    assert "4 correct" in done.stdout
    assert len(refused) == 1


@pytest.mark.parametrize(
    ("reply", "verdict", "explanation"),
    [
        ('{"answer": null}', "no_answer", "the judge found no final answer"),
        ('{"answer": "None."}', "no_answer", "the judge found no final answer"),
        ('{"answer": "5 or 6"}', "no_answer", "the response offers several answers to choose from"),
        ('{"answer": "0918273"}', "correct", "what the judge read as the final answer"),
        ('{"answer": 918273}', "correct", "what the judge read as the final answer"),
        ('<think>\nIs it {"answer": 1}?</think>\n{"answer": "918,273"}', "correct", "what the judge read"),
        ("918273", "correct", "what the judge read as the final answer"),
        ('{"answer": "918274"}', "incorrect", "what the judge read as the final answer"),
        ('{"answer": "3.5"}', "incorrect", "what the judge read as the final answer"),
        ('{"answer": "not given"}', "no_answer", "the judge found no final answer"),
        ('{"answer": "unknown"}', "ungraded", "the judge's reply holds no answer to read: "),
        ('{"answer": "twelve"}', "ungraded", "the judge's reply holds no answer to read: "),
        ("", "ungraded", "the judge's reply holds no answer to read: ''"),
        ("The response says 918273.", "ungraded", "the judge's reply holds no answer to read"),
        ('{"answer": "918', "ungraded", "the judge's reply holds no answer to read"),
        ('{"verdict": "correct"}', "ungraded", "the judge's reply holds no answer to read"),
        ('{"answer": true}', "ungraded", "the judge's reply holds no answer to read"),
        ('{"answer": "..."}', "ungraded", "the judge's reply holds no answer to read"),
        ('{"answer": ["918273"]}', "correct", "what the judge read as the final answer"),
        (
            (500, {"error": {"message": "out of memory"}}),
            "ungraded",
            "the judge gave no reply: HTTP 500: out of memory",
        ),
        (
            (404, {"error": {"message": "no such model"}}),
            "ungraded",
            "the judge gave no reply: HTTP 404: no such model",
        ),
        ((200, {"choices": []}), "ungraded", "the judge gave no reply: the reply is no chat completion"),
        ((200, b"<html>"), "ungraded", "the judge gave no reply: the reply is not JSON"),
    ],
)
def test_what_a_judge_says_is_an_answer_or_leaves_the_task_ungraded(fake_server, tmp_path, reply, verdict, explanation):
    solving = fake_server(solver(lambda name: "918273 it may be, or else 5, who knows?"))
    done = run(tmp_path, solving, fake_server(judge(lambda name: reply)), "--limit", 1, "--grader-retries", 0)
    assert done.returncode == (3 if verdict == "ungraded" else 0)
    assert f"1 {verdict}" in done.stdout
    (grade,) = grades_of(tmp_path).values()
    assert grade["verdict"] == verdict
    assert grade["explanation"].startswith(explanation)
    assert grade["reply"] == (reply if isinstance(reply, str) else None)


def test_an_answer_that_the_response_does_not_hold_is_to_be_looked_at(fake_server, tmp_path):
    """A judge that solves the problem itself would give marks to a response that has none."""
    done = run(tmp_path, fake_server(solver(lambda name: "I cannot say.")), fake_server(judge(reads)), "--verbose")
    grade = grades_of(tmp_path)["alpha"]
    assert (grade["confident"], grade["review"]) == (
        False,
        "the answer that the judge read does not stand in the response in digits",
    )
    assert "review    4 tasks to look at" in done.stdout


def test_a_judge_that_is_out_of_reach_costs_no_response_and_a_resume_grades_without_asking_again(fake_server, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
    solving = fake_server(solver(in_words))
    done = run(tmp_path, solving, nowhere, "--grader-retries", 0)
    assert done.returncode == 3
    assert f"WARNING: the judge {nowhere} cannot be used: " in done.stdout
    assert "4 ungraded" in done.stdout
    assert all(s["response"]["content"] for s in state_of(tmp_path)["task_states"].values())
    judging = fake_server(judge(reads))
    solving.requests.clear()
    again = run(tmp_path, solving, judging, "--resume")
    assert again.returncode == 0
    assert "4 correct" in again.stdout
    assert solving.requests == []


def test_a_resume_that_only_grades_needs_no_endpoint(fake_server, tmp_path):
    broken = fake_server(judge(lambda name: "no JSON"))
    run(tmp_path, fake_server(solver(in_words)), broken)
    arguments = ["--dataset", "numbers.jsonl", "--output", "run.json", "--resume", "--grader", "llm"]
    done = run_eval(*arguments, "--judge-endpoint", fake_server(judge(reads)).url, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 correct" in done.stdout


def test_a_resume_that_only_grades_wants_its_judge_at_once(fake_server, tmp_path):
    run(tmp_path, fake_server(solver(in_words)), fake_server(judge(lambda name: "no JSON")))
    before = (tmp_path / "run.json").read_bytes()
    done = run(tmp_path, fake_server(solver(in_words)), "http://127.0.0.1:9", "--resume")
    assert done.returncode == 1
    assert "http://127.0.0.1:9 cannot be used" in done.stderr
    assert (tmp_path / "run.json").read_bytes() == before


def test_judging_holds_no_generation_slot(fake_server, tmp_path):
    """The judge keeps its first reply back until the only generation thread has asked everything."""
    asked, all_asked = [], threading.Event()

    def solve(method, path, body):
        if method == "POST":
            asked.append(path)
            if len(asked) == len(NUMBERS):
                all_asked.set()
        return solver(in_words)(method, path, body)

    def slow(name):
        assert all_asked.wait(DEADLINE)
        return reads(name)

    done = run(tmp_path, fake_server(solve), fake_server(judge(slow)), "--threads", 1, "--grader-threads", 1)
    assert "4 correct" in done.stdout


def test_judges_work_at_the_same_time_and_no_more_than_asked(fake_server, tmp_path):
    together = threading.Barrier(2, timeout=DEADLINE)

    def reply(name):
        together.wait()
        return reads(name)

    done = run(tmp_path, fake_server(solver(in_words)), fake_server(judge(reply)), "--grader-threads", 2)
    assert "4 correct" in done.stdout


def test_a_judge_that_fails_once_is_asked_again(fake_server, tmp_path):
    failed = set()

    def reply(name):
        if name not in failed:
            failed.add(name)
            return 503, {"error": {"message": "busy"}}
        return reads(name)

    done = run(tmp_path, fake_server(solver(in_words)), fake_server(judge(reply)))
    assert "4 correct" in done.stdout


def test_a_judge_that_is_silent_is_given_up(fake_server, tmp_path):
    over = threading.Event()

    def reply(name):
        over.wait(DEADLINE)
        return reads(name)

    options = ("--grader-timeout", 0.2, "--grader-retries", 0)
    done = run(tmp_path, fake_server(solver(in_words)), fake_server(judge(reply)), *options)
    over.set()
    assert "4 ungraded" in done.stdout
    assert "the judge gave no reply: no complete answer within 0.2 s" in done.stdout


def test_each_server_gets_its_own_key_and_no_file_has_either(fake_server, tmp_path):
    solving, judging = fake_server(solver(in_words)), fake_server(judge(reads))
    keys = {"LLAMA_API_KEY": "sk-for-the-solver", "JUDGE_API_KEY": "sk-for-the-judge"}
    done = run(tmp_path, solving, judging, env=keys)
    flagged = run(
        tmp_path,
        solving,
        judging,
        "--overwrite",
        "--judge-api-key",
        "sk-for-the-judge",
        env={"LLAMA_API_KEY": "sk-for-the-solver"},
    )
    assert {headers.get("Authorization") for _, _, headers, _ in solving.requests} == {"Bearer sk-for-the-solver"}
    assert {headers.get("Authorization") for _, _, headers, _ in judging.requests} == {"Bearer sk-for-the-judge"}
    for text in (done.stdout, flagged.stdout, (tmp_path / "run.json").read_text("utf-8")):
        assert "sk-for" not in text
    assert "JUDGE_API_KEY=... " in flagged.stdout


def test_the_key_of_the_endpoint_is_not_shown_to_another_judge(fake_server, tmp_path):
    both = fake_server(
        lambda method, path, body: (judge(reads) if body and "<response>" in str(body) else solver(in_words))(
            method, path, body
        )
    )
    other = fake_server(judge(reads))
    run(tmp_path, both, other, env={"LLAMA_API_KEY": "sk-for-the-solver"})
    assert {headers.get("Authorization") for _, _, headers, _ in other.requests} == {None}
    done = run(tmp_path, both, both, "--overwrite", env={"LLAMA_API_KEY": "sk-for-the-solver"})
    assert "4 correct" in done.stdout
    assert {headers.get("Authorization") for _, _, headers, _ in both.requests} == {"Bearer sk-for-the-solver"}


def test_a_cascade_asks_only_about_what_the_rules_are_unsure_of(fake_server, tmp_path):
    replies = {
        "alpha": f'{{"answer": {NUMBERS["alpha"]}}}',  # sure
        "beta": f"It is {NUMBERS['beta']}",  # a guess, and right
        "gamma": "Nothing comes to mind! 12 perhaps.",  # no answer by rule
        "delta": r"\boxed{5 \text{ or } 6}",  # surely none
    }
    judging = fake_server(judge(lambda name: reads(name) if name == "beta" else '{"answer": null}'))
    done = run(tmp_path, fake_server(solver(replies.get)), judging, grader="cascade")
    assert sorted(map(name_in, judging.prompts())) == ["beta", "gamma"]
    assert {name: (g["verdict"], g["grader"]) for name, g in grades_of(tmp_path).items()} == {
        "alpha": ("correct", "regex"),
        "beta": ("correct", "llm"),
        "gamma": ("no_answer", "llm"),
        "delta": ("no_answer", "regex"),
    }
    assert "grading   2 by llm, 2 by regex; the rules of text agree with 2 of 2" in done.stdout
    summary = state_of(tmp_path)["summary"]
    assert summary["graded_by"] == {"regex": 2, "llm": 2}
    assert (summary["graded_by_rule_too"], summary["same_verdict_by_rule"]) == (2, 2)


@pytest.mark.parametrize("content", ["", " \n ", "<think>It is 5, no, 6", None])
def test_a_response_without_an_answering_part_is_not_judged(fake_server, tmp_path, content):
    judging = fake_server(judge(reads))
    done = run(tmp_path, fake_server(solver(lambda name: content)), judging)
    assert "4 no_answer" in done.stdout
    assert judging.prompts() == []


def test_the_judge_sees_neither_the_reasoning_nor_the_word_at_which_a_response_was_cut(fake_server, tmp_path):
    def cut(method, path, body):
        if method == "GET":
            return 404, b""
        message = {"content": "<think>maybe 77</think>I think that \\boxed{9182", "reasoning_content": "or 88"}
        return 200, {"choices": [{"message": message, "finish_reason": "length"}]}

    judging = fake_server(judge(lambda name: '{"answer": null}'))
    done = run(tmp_path, fake_server(cut), judging)
    assert "4 truncated" in done.stdout
    prompt = judging.prompts()[0]["messages"][0]["content"]
    assert "<response>\nI think that\n</response>" in prompt
    assert "77" not in prompt
    assert "88" not in prompt


def test_a_long_response_is_judged_by_its_end(fake_server, tmp_path):
    judging = fake_server(judge(reads))
    run(tmp_path, fake_server(solver(lambda name: "so " * 100_000 + in_words(name))), judging)
    prompt = judging.prompts()[0]["messages"][0]["content"]
    assert len(prompt) < 22_000
    assert "<response>\n[...] " in prompt
    assert "Ask me anything else!\n</response>" in prompt


def test_names_in_braces_in_what_is_judged_stay_as_they_are(fake_server, tmp_path):
    judging = fake_server(judge(reads))
    run(tmp_path, fake_server(solver(lambda name: "{question} {response} {kind} {expected}")), judging)
    assert "<response>\n{question} {response} {kind} {expected}\n</response>" in str(
        judging.prompts()[0]["messages"][0]["content"]
    )


def test_a_letter_is_judged_as_a_letter(fake_server, tmp_path):
    question = {"id": "mc", "question": "What is alpha?", "options": ["one", "two", "three"], "answer": "B"}
    (tmp_path / "mc.jsonl").write_text(json.dumps(question) + "\n", encoding="utf-8")
    solving = fake_server(solver(lambda name: "I would go for the middle one."))
    shown = []

    def reply(method, path, body):
        if method == "GET":
            return 404, b""
        lines = body["messages"][0]["content"].splitlines()
        shown.extend(line for line in lines if line.endswith(") two"))
        return 200, completion(json.dumps({"answer": f"({shown[0][0].lower()})"}))

    arguments = ["--dataset", "mc.jsonl", "--output", "run.json", "--endpoint", solving.url, "--grader", "llm"]
    done = run_eval(*arguments, "--judge-endpoint", fake_server(reply).url, cwd=tmp_path)
    assert "1 correct" in done.stdout
    (grade,) = grades_of(tmp_path).values()
    assert (grade["answer"], grade["confident"]) == (shown[0][0], True)


def test_a_judge_that_serves_another_model_or_several_is_refused(fake_server, tmp_path):
    def models(*names):
        listed = {"data": [{"id": name} for name in names]}
        return fake_server(lambda method, path, body: (200, listed) if path == "/v1/models" else (404, b""))

    solving = fake_server(solver(in_words))
    done = run(tmp_path, solving, models("a", "b"))
    assert (done.returncode, "choose one with --judge-model: a, b" in done.stderr) == (1, True)
    done = run(tmp_path, solving, models("a"), "--judge-model", "b")
    assert (done.returncode, "does not serve the model 'b' but a" in done.stderr) == (1, True)
    assert solving.prompts() == []


def test_a_refused_key_stops_the_run_before_it_begins(fake_server, tmp_path):
    solving = fake_server(solver(in_words))
    refusing = fake_server(lambda method, path, body: (401, {"error": {"message": "Invalid API Key"}}))
    done = run(tmp_path, solving, refusing)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert (
        f"{refusing.url} refuses the API key (HTTP 401: Invalid API Key): give the right one in JUDGE_API_KEY"
        in done.stderr
    )
    assert solving.prompts() == []


def test_a_bare_answer_that_the_limit_cut_is_no_answer(fake_server, tmp_path):
    def cut(method, path, body):
        if method == "GET":
            return 404, b""
        return 200, {"choices": [{"message": {"content": "9182"}, "finish_reason": "length"}]}

    done = run(tmp_path, fake_server(solver(in_words)), fake_server(cut))
    assert "4 ungraded" in done.stdout


def test_what_one_judge_has_read_is_not_mixed_with_another(fake_server, tmp_path):
    judging = fake_server(judge(reads))
    run(tmp_path, fake_server(solver(in_words)), judging)
    done = run(tmp_path, fake_server(solver(in_words)), judging, "--samples", 2, "--resume", "--judge-model", "other")
    assert done.returncode == 1
    assert 'judge model was null, is now "other"' in done.stderr


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--grader", "llm", "--judge-endpoint", "http://a,http://b"], "--judge-endpoint takes one URL"),
        (["--grader", "llm"], "--grader llm needs --judge-endpoint URL"),
        (["--grader", "cascade"], "--grader cascade needs --judge-endpoint URL"),
        (["--judge-endpoint", "http://h"], "are for --grader llm and cascade"),
        (["--grader", "llm", "--judge-endpoint", "nonsense"], "--judge-endpoint 'nonsense' is not a URL"),
        (["--grader", "llm", "--judge-endpoint", "http://u:p@h"], "give the key by JUDGE_API_KEY"),
        (["--grader", "cli"], "--grader cli needs --grader-cmd COMMAND"),
        (["--grader-cmd", "true"], "--grader-cmd is for --grader cli"),
        (["--grader", "human"], "invalid choice: 'human'"),
    ],
)
def test_a_grader_without_what_it_needs_is_bad_usage(tmp_path, options, complaint):
    done = run_eval("--endpoint", "http://127.0.0.1:9", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_upstream_spellings_of_the_options_mean_the_same(fake_server, tmp_path):
    (tmp_path / "n.jsonl").write_text(json.dumps(PROBLEMS[0]) + "\n", encoding="utf-8")
    judging = fake_server(judge(reads))
    arguments = ["--server", fake_server(solver(in_words)).url, "--grader-type", "llm", "--grader-server", judging.url]
    done = run_eval(*arguments, "--grader-model", "wise", "--dataset", "n.jsonl", cwd=tmp_path)
    assert "1 correct" in done.stdout
    assert judging.prompts()[0]["model"] == "wise"
