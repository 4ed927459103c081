"""The simulated model: its answers and thoughts, JSON by schema, judgements; and the account of these."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections import Counter
from typing import Any

import jsonschema
import pytest
import requests
from conftest import Server, StartSimulator
from hypothesis import assume, given
from hypothesis import strategies as st

from scripts import ANSWERS, DEADLINE, SIMULATOR, load

simulator = load(SIMULATOR)
QUESTIONS = list(ANSWERS)


def post(server: Server, prompt: str = QUESTIONS[0], **fields: Any) -> requests.Response:
    body = {"messages": [{"role": "user", "content": prompt}], **fields}
    return requests.post(server.url + "/v1/chat/completions", json=body, timeout=DEADLINE)


def choice(server: Server, prompt: str = QUESTIONS[0], **fields: Any) -> Any:
    reply = post(server, prompt, **fields)
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]


def content(server: Server, prompt: str = QUESTIONS[0], **fields: Any) -> str:
    return str(choice(server, prompt, **fields)["message"]["content"])


def told(server: Server, what: str) -> Any:
    return requests.get(f"{server.url}/simulator/{what}", timeout=DEADLINE).json()


# ---- answers ---------------------------------------------------------------------------------------

SHAPES = {
    "plain": r"{}",
    "boxed": r"The answer is \\boxed\{{{}\}}\.",
    "bold": r"The answer is \*\*{}\*\*\.",
    "json": r'\{{"answer": {}\}}',
    "sentence": r"So the answer is {}\.",
}


@pytest.mark.parametrize("answer_format", SHAPES)
def test_an_answer_has_the_format_that_was_asked_for(start_simulator: StartSimulator, answer_format: str) -> None:
    server = start_simulator("--dataset", "practice", "--success-rate", 1, "--answer-format", answer_format)
    assert re.fullmatch(SHAPES[answer_format].format(ANSWERS[QUESTIONS[0]]), content(server))


def test_mixed_answers_have_all_formats(start_simulator: StartSimulator) -> None:
    server = start_simulator("--dataset", "practice", "--success-rate", 1, "--answer-format", "mixed")
    said = {question: content(server, question) for question in QUESTIONS}
    shapes = Counter(
        name
        for question, text in said.items()
        for name, shape in SHAPES.items()
        if re.fullmatch(shape.format(ANSWERS[question]), text)
    )
    assert set(shapes) == set(SHAPES)
    assert shapes.total() == len(QUESTIONS)


@given(answer=st.integers(-(10**6), 10**6), kind=st.sampled_from(simulator.WRONG_ANSWERS), chance=st.floats(0, 0.999))
def test_a_wrong_answer_is_never_the_right_one(answer: int, kind: str, chance: float) -> None:
    assert int(simulator.wrong_answer(str(answer), kind, chance)) != answer


@pytest.mark.parametrize(
    ("answer", "kind", "wrong"),
    [
        ("70", "plus-one", "71"),
        ("70", "minus-one", "69"),
        ("0", "minus-one", "-1"),
        ("123", "reversed", "321"),
        ("-12", "reversed", "-21"),
        ("121", "reversed", "122"),
        ("70", "random", "500"),
        ("500", "random", "501"),
    ],
)
def test_kinds_of_wrong_answers(answer: str, kind: str, wrong: str) -> None:
    assert simulator.wrong_answer(answer, kind, 0.5) == wrong


# ---- thoughts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0, 1])
def test_thoughts_are_full_of_numbers_but_neither_the_given_nor_the_right_one(
    start_simulator: StartSimulator, rate: int
) -> None:
    server = start_simulator("--dataset", "practice", "--success-rate", rate, "--reasoning", "field", "--tokens", 400)
    for question in QUESTIONS[:8]:
        message = choice(server, question)["message"]
        numbers = re.findall(r"\d+", message["reasoning_content"])
        assert len(numbers) > 20
        (given,) = re.fullmatch(r"The answer is \\boxed\{(\d+)\}\.", message["content"]).groups()  # type: ignore[union-attr]
        assert not {ANSWERS[question], given} & set(numbers)


def test_thoughts_stand_where_server_and_request_want_them(start_simulator: StartSimulator) -> None:
    field = start_simulator("--dataset", "practice", "--success-rate", 1, "--reasoning", "field")
    inline = start_simulator("--dataset", "practice", "--success-rate", 1, "--reasoning", "inline")
    assert "<think>" not in content(field)
    assert re.match(r"<think>.+</think>The answer is", content(inline))
    assert re.match(r"<think>.+</think>The answer is", content(field, reasoning_format="none"))
    assert choice(inline, reasoning_format="deepseek")["message"]["reasoning_content"]
    for server in (field, inline):
        message = choice(server, chat_template_kwargs={"enable_thinking": False})["message"]
        assert "reasoning_content" not in message
        assert message["content"].startswith("The answer is")


@pytest.mark.parametrize("reasoning", ["none", "field", "inline"])
@pytest.mark.parametrize("tokens", [60, 500])
def test_a_reply_is_as_long_as_it_was_asked_to_be(start_simulator: StartSimulator, reasoning: str, tokens: int) -> None:
    server = start_simulator("--dataset", "practice", "--reasoning", reasoning, "--tokens", tokens)
    assert post(server).json()["usage"]["completion_tokens"] == tokens


def test_a_reply_that_is_cut_while_it_thinks_has_no_content(start_simulator: StartSimulator) -> None:
    server = start_simulator("--dataset", "practice", "--success-rate", 0, "--truncate-rate", 1, "--reasoning", "field")
    cut = choice(server, max_tokens=50)
    assert (cut["finish_reason"], cut["message"]["content"]) == ("length", "")
    assert cut["message"]["reasoning_content"]
    assert told(server, "expected")["truncated"] == 1


def test_without_a_limit_thoughts_fill_the_context(start_simulator: StartSimulator) -> None:
    server = start_simulator("--dataset", "practice", "--success-rate", 0, "--truncate-rate", 1, "-c", 2048, "-np", 2)
    reply = post(server).json()
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["total_tokens"] == 1024


def test_a_loop_repeats_itself_up_to_the_limit(start_simulator: StartSimulator) -> None:
    server = start_simulator("--dataset", "practice", "--success-rate", 0, "--loop-rate", 1)
    looped = choice(server, max_tokens=2000)
    assert looped["finish_reason"] == "length"
    sentences = Counter(looped["message"]["content"].split(". "))
    assert sentences.most_common(1)[0][1] > 50
    assert told(server, "expected")["truncated"] == 1


def test_a_limit_within_the_answer_leaves_none(start_simulator: StartSimulator) -> None:
    server = start_simulator("--dataset", "practice", "--success-rate", 1)
    whole = post(server).json()["usage"]["completion_tokens"]
    for limit in range(1, whole):
        post(server, max_tokens=limit)
    counts = told(server, "expected")
    assert (counts["correct"], counts["truncated"]) == (2, whole - 2), "the last limit leaves out the end only"


# ---- shares ----------------------------------------------------------------------------------------


def test_each_pass_has_exactly_the_shares_that_were_asked_for(start_simulator: StartSimulator) -> None:
    server = start_simulator(
        *("--dataset", "practice", "--success-rate", 0.5, "--truncate-rate", 0.2, "--no-answer-rate", 0.1),
        *("--loop-rate", 0.1, "-c", 1024, "--seed", 3),
    )
    for number in range(1, 4):
        for question in QUESTIONS:
            post(server, question)
        counts = told(server, "expected")
        kinds = ("correct", "incorrect", "no_answer", "truncated")
        assert [counts[kind] for kind in kinds] == [15 * number, 3 * number, 3 * number, 9 * number]
        assert counts["accuracy"] == 0.5
        first = counts["pass"]["practice"]
        assert [first[kind] for kind in kinds] == [15, 3, 3, 9]


@given(
    rates=st.lists(st.integers(0, 1000), min_size=5, max_size=5).filter(any),
    total=st.integers(1, 60),
    seed=st.integers(0, 99),
)
def test_shares_are_exact_for_any_rates(rates: list[int], total: int, seed: int) -> None:
    shares = [rate / sum(rates) for rate in rates[:4]]
    assume(sum(map(simulator.decimal, shares)) <= 1)
    arguments = ["--success-rate", "--truncate-rate", "--no-answer-rate", "--loop-rate"]
    given_options = [str(part) for pair in zip(arguments, shares, strict=True) for part in pair]
    settings = simulator.read_settings(simulator.build_parser().parse_args([*given_options, "--seed", str(seed)]))
    questions = [simulator.Question("own", str(number), "", "1") for number in range(total)]
    deliveries = simulator.Deliveries(questions, settings)
    for _ in range(3):
        outcomes = Counter(deliveries.take(question).outcome for question in questions)
        upto = list(itertools.accumulate(map(simulator.decimal, shares)))
        bounds = [0, *(simulator.count_of(share, total) for share in upto)]
        wanted = [high - low for low, high in itertools.pairwise(bounds)]
        assert [outcomes[name] for name in ("right", "truncated", "no_answer", "loop")] == wanted


def test_random_draws_have_the_rate_on_average_and_depend_on_the_seed(start_simulator: StartSimulator) -> None:
    def right(seed: int) -> list[int]:
        server = start_simulator(
            "--dataset", "practice", "--success-rate", 0.5, "--success-mode", "random", "--seed", seed
        )
        passes = []
        for _ in range(8):
            before = told(server, "expected")["correct"]
            for question in QUESTIONS:
                post(server, question)
            passes.append(told(server, "expected")["correct"] - before)
        assert told(server, "expected")["pass"] is None
        return passes

    first = right(1)
    assert len(set(first)) > 1, "no two passes need to have the same count"
    assert 85 < sum(first) < 155  # 120, with a standard deviation of 7.7
    assert first == right(1) != right(2)


def test_a_reset_begins_anew(start_simulator: StartSimulator) -> None:
    server = start_simulator("--dataset", "practice", "--success-rate", 0.5, "--fault", "503:0", "--fault-first", 1)

    def one_pass() -> list[Any]:
        return [post(server, question).status_code for question in QUESTIONS * 2] + [told(server, "expected")]

    once = one_pass()
    assert requests.post(server.url + "/simulator/reset", timeout=DEADLINE).json() == {"status": "ok"}
    assert (told(server, "expected")["deliveries"], told(server, "log")) == (0, [])
    assert one_pass() == once


def test_the_log_tells_each_decision(start_simulator: StartSimulator) -> None:
    server = start_simulator("--dataset", "practice", "--success-rate", 1)
    post(server)
    post(server, "What is the capital of France?")
    right, refused = told(server, "log")
    assert right == {
        "role": "solver",
        "attempt": 0,
        "fault": None,
        "question": "practice/P-1",
        "matched_by": "exact",
        "distance": 0,
        "decision": "right",
        "answer": ANSWERS[QUESTIONS[0]],
        "delivery": 0,
        "verdict": "correct",
    }
    assert (refused["role"], refused["question"], refused["decision"]) == ("none", None, "refused")


def test_a_reset_forgets_what_is_on_its_way(start_simulator: StartSimulator) -> None:
    server = start_simulator("--dataset", "practice", "--success-rate", 1, "--tokens", 20, "--tokens-per-second", 20)
    body = {"messages": [{"role": "user", "content": QUESTIONS[0]}], "stream": True}
    for leave in (True, False):
        stream = requests.post(server.url + "/v1/chat/completions", json=body, stream=True, timeout=DEADLINE)
        requests.post(server.url + "/simulator/reset", timeout=DEADLINE)
        if leave:
            stream.close()
        else:
            assert stream.text.endswith("[DONE]\n\n")
        assert told(server, "expected")["deliveries"] == 0
        for number in range(2):
            post(server, max_tokens=60)
            assert told(server, "log")[-1]["delivery"] == number
        assert told(server, "expected")["deliveries"] == 2


def test_several_choices_are_several_answers(start_simulator: StartSimulator) -> None:
    server = start_simulator("--dataset", "practice", "--success-rate", 0.5)
    for question in QUESTIONS:
        assert len(post(server, question, n=2).json()["choices"]) == 2
    assert told(server, "expected")["correct"] == 30
    assert post(server, n=5).status_code == 400


# ---- JSON by schema --------------------------------------------------------------------------------

INTEGER = {"type": "integer"}
NULL = {"type": "null"}
SCHEMAS = [
    {},
    True,
    {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]},
    {"type": "object", "properties": {"reasoning": {"type": "string"}, "answer": {"type": "integer"}}},
    {"type": "object", "properties": {"steps": {"type": "array", "items": {"type": "string"}, "minItems": 2},
                                      "final": {"type": "object", "properties": {"value": {"type": "number"}}}}},
    {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 999}}},
    {"type": "object", "properties": {"answer": {"type": ["string", "null"]}}},
    {"type": "object", "properties": {"answer": {"anyOf": [{"type": "null"}, {"type": "integer"}]}}},
    {"$defs": {"a": {"type": "integer"}}, "type": "object", "properties": {"answer": {"$ref": "#/$defs/a"}}},
    {"type": "object", "properties": {"answer": {"enum": [1, 96, 97, "x"]}}},
    {"allOf": [{"type": "object"}, {"properties": {"answer": {"type": "string", "maxLength": 4}}}]},
    {"type": "object", "required": ["answer", "unit"], "properties": {"answer": {"type": "integer"}}},
    {"type": "array", "prefixItems": [{"type": "string", "minLength": 30}, {"type": "integer"}], "minItems": 2},
    {"type": "object", "properties": {"solution": {"type": "string"}, "answer": {"type": "integer"}}},
    {"type": "object", "properties": {"answer_reasoning": {"type": "string"}, "final_answer": {"type": "integer"}}},
    {"type": "object", "properties": {"results": {"type": "array", "items": {"type": "integer"}},
                                      "answer": {"type": "integer"}}, "required": ["results", "answer"]},
    {"type": "object", "properties": {"answer": {"type": "integer"}, "p": {"type": "number", "exclusiveMinimum": 0,
                                                                          "maximum": 0.5}}},
    {"allOf": [{"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]},
               {"properties": {"reason": {"type": "string"}}, "required": ["reason"]}]},
    {"type": "object", "properties": {"answer": {"type": "integer"}}, "anyOf": [{"required": ["answer"]},
                                                                               {"required": ["x"]}]},
    {"$defs": {"Node": {"type": "object", "properties": {"answer": INTEGER,
                                                         "next": {"anyOf": [{"$ref": "#/$defs/Node"}, NULL]}},
                        "required": ["answer", "next"]}}, "$ref": "#/$defs/Node"},
    {"$defs": {"a/b": {"type": "object", "properties": {"answer": {"type": "integer"},
                                                        "kids": {"type": "array", "items": {"$ref": "#/$defs/a~1b"}}}}},
     "$ref": "#/$defs/a~1b"},
    {"type": "object", "properties": {"none": {"type": "array", "maxItems": 0}, "answer": {"type": "integer"}}},
    {"type": "object", "properties": {"ok": {"type": "boolean"}, "none": {"type": "null"},
                                      "name": {"const": "simulator"}, "answer": {"type": "integer"}}},
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:60])
@pytest.mark.parametrize("reasoning", ["none", "field", "inline"])
def test_a_reply_satisfies_its_schema_and_gives_the_answer(
    module_simulators: dict[str, Server], schema: Any, reasoning: str
) -> None:
    server = module_simulators[reasoning]
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    reply = choice(server, response_format=wanted)
    value = json.loads(reply["message"]["content"])
    jsonschema.validate(value, schema)
    assert ANSWERS[QUESTIONS[0]] in json.dumps(value)
    assert ("reasoning_content" in reply["message"]) == (reasoning == "field")


@pytest.fixture(scope="module")
def module_simulators(start_module_simulator: StartSimulator) -> dict[str, Server]:
    """A simulator that is always right, for each place of its thoughts."""
    return {
        where: start_module_simulator("--dataset", "practice", "--success-rate", 1, "--reasoning", where)
        for where in ("none", "field", "inline")
    }


def test_the_first_question_has_the_answer_that_the_schemas_allow() -> None:
    assert ANSWERS[QUESTIONS[0]] == "96"


def test_wrong_missing_and_cut_answers_follow_the_schema_too(start_simulator: StartSimulator) -> None:
    bounded = {"type": "json_schema", "json_schema": {"schema": SCHEMAS[5]}}
    nullable = {"type": "json_schema", "json_schema": {"schema": SCHEMAS[6]}}
    wrong = start_simulator("--dataset", "practice", "--success-rate", 0)
    mute = start_simulator("--dataset", "practice", "--success-rate", 0, "--no-answer-rate", 1)
    cut = start_simulator("--dataset", "practice", "--success-rate", 0, "--truncate-rate", 1)
    assert json.loads(content(wrong, response_format=bounded)) == {"n": 97}
    assert json.loads(content(mute, response_format=nullable)) == {"answer": None}
    assert told(mute, "expected")["no_answer"] == 1
    assert json.loads(content(mute, response_format=bounded)) == {"n": 97}, "the schema leaves no way to say nothing"
    assert told(mute, "expected")["incorrect"] == 1
    for schema in SCHEMAS[3], SCHEMAS[5]:
        reply = choice(cut, response_format={"type": "json_schema", "json_schema": {"schema": schema}}, max_tokens=90)
        assert reply["finish_reason"] == "length"
        with pytest.raises(json.JSONDecodeError):
            json.loads(reply["message"]["content"])
    assert told(cut, "expected")["truncated"] == 2


@pytest.mark.parametrize(
    ("schema", "options", "verdict"),
    [
        ({"properties": {"answer": {"type": "integer", "minimum": 5000}}}, (1, 0, 0), "incorrect"),
        ({"properties": {"answer": {"enum": [1, 2, 3]}}}, (1, 0, 0), "incorrect"),
        ({"properties": {"answer": {"type": "string", "maxLength": 1}}}, (1, 0, 0), "no_answer"),
        ({"properties": {"answer": {"enum": [96, 1000]}}}, (0, 0, 0), "incorrect"),
        ({"properties": {"answer": {"enum": [96.0, 97.0]}}}, (1, 0, 0), "correct"),
        ({"properties": {"answer": {**INTEGER, "exclusiveMinimum": 95.5, "maximum": 96}}}, (1, 0, 0), "correct"),
        ({"properties": {"answer": {"const": 96}}}, (0, 0, 0), "correct"),
        ({"properties": {"answer": {"anyOf": [INTEGER, NULL]}, "confidence": INTEGER}}, (0, 1, 0), "no_answer"),
        ({"properties": {"why": {"type": "string"}, "ans": INTEGER}}, (1, 0, 0), "correct"),
        ({"properties": {"nodes": {"type": "array", "items": {"$ref": "#/$defs/N"}}, "answer": INTEGER},
          "$defs": {"N": {"type": "object", "properties": {"answer": INTEGER, "n": {"$ref": "#/$defs/N"}},
                          "required": ["answer", "n"]}}}, (1, 0, 0), "correct"),
        ({"allOf": [{"$ref": "#/$defs/B"}, {"properties": {"answer": INTEGER}, "required": ["answer"]}],
          "$defs": {"B": {"properties": {"reasoning": {"type": "string"}}}}}, (1, 0, 0), "correct"),
        ({"$ref": "#/$defs/B", "properties": {"answer": INTEGER},
          "$defs": {"B": {"properties": {"reasoning": {"type": "string"}}}}}, (1, 0, 0), "correct"),
        (
            {"properties": {"solution": {"type": ["string", "null"]}, "answer": {"type": "integer"}}},
            (0, 1, 0),
            "incorrect",
        ),
        (
            {"properties": {"why": {"type": "string", "maxLength": 9}, "answer": {"type": "integer"}}},
            (0, 0, 1),
            "truncated",
        ),
    ],
)  # fmt: skip
def test_the_verdict_is_on_what_the_schema_made_of_the_answer(
    start_simulator: StartSimulator, schema: dict[str, Any], options: tuple[int, int, int], verdict: str
) -> None:
    names = ("--success-rate", "--no-answer-rate", "--truncate-rate")
    rates = [part for pair in zip(names, options, strict=True) for part in pair]
    server = start_simulator("--dataset", "practice", *rates)
    reply = choice(server, json_schema={"type": "object", **schema}, max_tokens=200)
    assert told(server, "log")[0]["verdict"] == verdict
    if verdict == "truncated":
        assert reply["finish_reason"] == "length"
    else:
        value = json.loads(reply["message"]["content"])
        jsonschema.validate(value, schema)
        given = value["ans"] if "ans" in value else value["answer"]
        assert (given == 96) == (verdict == "correct")
        assert (given is None) <= (verdict == "no_answer")


@pytest.mark.parametrize(
    "schema",
    [
        True, "x", 5, [{}], None,
        {"properties": {"a": {"minimum": "a"}}},
        {"properties": {"a": {"required": 5}}},
        {"properties": {"a": {"minLength": "x"}}},
        {"properties": {"a": {"minItems": 10**7, "type": "array"}}},
        {"properties": {"a": {"minLength": 10**15}}},
        {"properties": {"answer": {"anyOf": [{"type": "null"}, {"type": "hiccup"}]}}},
        {"properties": {"answer": {"anyOf": [{"type": "null"}, {"$ref": "#/nope"}]}}},
        {"properties": 5},
        {"foo": {"type": "object", "properties": 5}, "$ref": "#/foo"},
        {"x": {"anyOf": 5}, "$ref": "#/x"},
        {"type": "integer", "minimum": 10**400},
        {"$defs": {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)}, "$ref": "#/$defs/d0"},
    ],
)  # fmt: skip
def test_a_schema_of_any_kind_gets_a_reply_soon_and_costs_no_delivery(
    start_simulator: StartSimulator, schema: Any
) -> None:
    server = start_simulator("--dataset", "practice", "--success-rate", 1)
    reply = post(server, response_format={"type": "json_schema", "json_schema": {"schema": schema}})
    assert reply.status_code in (200, 400)
    post(server, response_format={"type": "json_schema", "json_schema": schema})
    before = told(server, "expected")["deliveries"]
    assert post(server).status_code == 200
    assert told(server, "log")[-1]["delivery"] == before
    assert "Traceback" not in server.log()


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"response_format": {"type": "xml"}}, 400, "response_format type must be"),
        ({"grammar": "root ::= x", "json_schema": {}}, 500, "Cannot use both json_schema and grammar"),
        ({"grammar": 'root ::= "yes" | "no"'}, 200, ""),
        ({"grammar": 'root ::= number\nnumber ::= [0-9]+ # "digits"'}, 200, ""),
        ({"grammar": 'root ::= my-rule\nmy-rule ::= "x" | [a-z]'}, 200, ""),
        ({"grammar": "a-" * 20_000}, 400, "failed to parse grammar"),
        ({"grammar": 'root ::= "' + '\\"' * 20_000}, 200, ""),
        ({"grammar": "root ::= missing"}, 400, "failed to parse grammar"),
        ({"json_schema": {"type": "object", "properties": {"a": {"type": "hiccup"}}}}, 400, "#/properties/a: unrec"),
        ({"json_schema": {"$ref": "#/nowhere"}}, 400, "cannot resolve"),
        ({"json_schema": {"$ref": "#"}}, 400, "no value of it has an end"),
        ({"n": 0}, 400, "Field 'n': Value must be between 1 <= value"),
        ({"max_tokens": "many"}, 400, "Field 'max_tokens'"),
        ({"temperature": None, "seed": None}, 200, ""),
        ({"top_k": True}, 400, "Field 'top_k': [json.exception.type_error.302] type must be number, but is boolean"),
    ],
)
def test_what_a_request_may_ask_for(
    module_simulators: dict[str, Server], fields: dict[str, Any], status: int, message: str
) -> None:
    reply = post(module_simulators["none"], **fields)
    assert reply.status_code == status, reply.text
    assert status == 200 or message in reply.json()["error"]["message"]


# ---- judging ---------------------------------------------------------------------------------------

EXTRACTION = "Extract the final answer of this response.\n\n<response>\n{}\n</response>\n\nReply with {}."
RUBRIC = """You grade outputs by a rubric: one that does what the rubric says passes. Reply with an object.

<Output>Good morning</Output>
<Rubric>Is a greeting</Rubric>
{{"why": "it is one", "pass": true, "score": 1.0}}

<Output>
So it is \\boxed{{{}}}.
</Output>
<Rubric>
The final answer is 96
</Rubric>"""
PAIRS = """Judge whether two expressions are equivalent.

    Expression 1: $a+b$
    Expression 2: $b+a$

Yes

YOUR TASK

Reply with only "Yes" or "No".

    Expression 1: 96
    Expression 2: {}"""
JUDGEMENT = """Judge whether the predicted answer to a problem is the expected one. Explain, then say Yes or No.

Example 1:
Predicted answer: 3/2
Expected answer: 1.5

Reasoning: they are equal.
Judgement: Yes

YOUR TASK

Problem: What is it?
Predicted answer: {}
Expected answer: 96"""
VERDICT = "Reference answer: 204\n\n<response>The answer is {}.</response>\n\nIs the response {}?"
SAID = "Compared the two answers."
COMPARED = "The two answers are compared.\n\n"
BOOLEAN = {"type": "object", "properties": {"reason": {"type": "string"}, "correct": {"type": "boolean"}}}
HLE = {
    "type": "object",
    "properties": {"extracted_final_answer": {"type": "string"}, "correct": {"enum": ["yes", "no"]}},
}
REASONED = {"type": "object", "properties": {"verdict_reason": {"type": "string"}, "is_correct": {"type": "boolean"}}}
MATCH = {"type": "object", "properties": {"reasoning": {"type": "string"}, "match": {"type": "boolean"}}}
SCORE = {"type": "object", "properties": {"score": {"type": "integer", "minimum": 0, "maximum": 1}}}
NULLABLE = {"type": "object", "properties": {"answer": {"type": ["integer", "null"]}}}


@pytest.mark.parametrize(
    ("prompt", "schema", "reply"),
    [
        (EXTRACTION.format("First 17, then \\boxed{204}.", "the number alone"), None, "204"),
        (EXTRACTION.format("<think>It is \\boxed{17}</think>So the answer is 1,204.", "it"), None, "1204"),
        (EXTRACTION.format("**204**", '{"answer": "..."}'), None, '{"answer": "204"}'),
        (EXTRACTION.format('{"answer": 204}', '{"final": N}'), None, '{"final": 204}'),
        (EXTRACTION.format("<think>It is 17", '{"answer": "..."}'), None, '{"answer": null}'),
        (EXTRACTION.format("I give up.", "the number, or, if there is no answer, with 'none'"), None, "none"),
        (EXTRACTION.format("I give up.", "it"), None, "no answer"),
        (EXTRACTION.format("It is \\boxed{204}", "JSON"), NULLABLE, '{"answer": 204}'),
        (EXTRACTION.format("I give up", "JSON"), NULLABLE, '{"answer": null}'),
        (VERDICT.format(204, "correct? Answer yes or no"), None, "yes"),
        (VERDICT.format(205, "correct? Answer yes or no"), None, "no"),
        (VERDICT.format(205, "CORRECT or INCORRECT"), None, "INCORRECT"),
        (VERDICT.format(204, "right? End with GRADE: C or GRADE: I"), None, COMPARED + "GRADE: C"),
        (VERDICT.format(205, "correct? A: CORRECT\nB: INCORRECT"), None, "B"),
        (VERDICT.format(204, 'correct? {"correct": true} or {"correct": false}'), None, '{"correct": true}'),
        (VERDICT.format(205, 'correct? {"verdict": "correct"} or incorrect'), None, '{"verdict": "incorrect"}'),
        (VERDICT.format(205, "correct or not"), BOOLEAN, '{"reason": "Compared the two answers.", "correct": false}'),
        ("Question: 6*7\nExpected answer: 42\n\nModel response: It is 17, no, \\boxed{42}.\n\n"
         "Please judge: correct or incorrect?", None, "correct"),
        ("Question: 6*7\nModel response: The answer is 97.\nCorrect answer: 96\nIs the response correct? yes or no",
         None, "no"),
        ("Question: 6*7\nReference answer: 96\nStudent's final answer: 97\nIs the student's answer correct? yes or no",
         None, "no"),
        (VERDICT.replace("204", "025").format(25, "correct? yes or no"), None, "yes"),
        (VERDICT.replace("204", "-5").format(-5, "correct? yes or no"), None, "yes"),
        (VERDICT.replace("204", "$1{{,}}024$").format(1024, "correct? yes or no"), None, "yes"),
        (EXTRACTION.format("$\\boxed{\\text{96}}$", "it"), None, "96"),
        ("<response>It is \\boxed{96}.</response>\nExtract the answer. Put it in <answer> and </answer>.", None, "96"),
        ("Extract the final answer.\n\nResponse:\n# Steps\n[1] first\n---\nSo \\boxed{96}.", None, "96"),
        (VERDICT.format(205, "correct or not"), HLE, json.dumps({"extracted_final_answer": SAID, "correct": "no"})),
        (VERDICT.format(204, "correct or not"), REASONED, json.dumps({"verdict_reason": SAID, "is_correct": True})),
        (VERDICT.format(204, "correct or not"), SCORE, '{"score": 1}'),
        (VERDICT.format(205, "correct or not"), MATCH, json.dumps({"reasoning": SAID, "match": False})),
        (VERDICT.format(204, "correct or not"), MATCH, json.dumps({"reasoning": SAID, "match": True})),
        ("Compare the two answers. Reply CORRECT or INCORRECT.\nReference answer: 96\nResponse: The answer is 96.",
         None, "CORRECT"),
        ("CORRECT or INCORRECT? Evaluate the response.\nReference answer: 96\n**Student\u2019s answer:** \\(96\\)",
         None, "CORRECT"),
        ("Grade the response: CORRECT or INCORRECT?\nReference answer: 96\n\n## Response\nSo the area is 96.",
         None, "CORRECT"),
        # As other evaluators put it: in quotes and without a question, by a rubric, as pairs of expressions.
        ('Extract the number from the following text:\n\n"So \\boxed{96}."\n\nPlease give only that.', None, "96"),
        (RUBRIC.format(96), None, '{"why": "Compared the two answers.", "pass": true, "score": 1.0}'),
        (RUBRIC.format(97), None, '{"why": "Compared the two answers.", "pass": false, "score": 0.0}'),
        (PAIRS.format(96), None, "yes"),
        (PAIRS.format("97"), None, "no"),
        (JUDGEMENT.format(96), None, "Reasoning: The answers are compared.\nJudgement: Yes"),
        (JUDGEMENT.format(97), None, "Reasoning: The answers are compared.\nJudgement: No"),
        (VERDICT.replace("is {}", "is {}").format("\\boxed{204.5}", "correct? yes or no"), None, "no"),
        (EXTRACTION.format("**Answer:** 204", "it"), None, "204"),
        (EXTRACTION.format("the answer is therefore $204$.", "it"), None, "204"),
    ],
)  # fmt: skip
def test_a_judge_replies_in_the_shape_it_is_asked_for(
    module_simulators: dict[str, Server], prompt: str, schema: Any, reply: str
) -> None:
    fields = {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}} if schema else {}
    assert content(module_simulators["none"], prompt, **fields) == reply


@pytest.mark.parametrize(
    "form", ["ANSWER: $ANSWER (no \\boxed is needed)", "Answer: $Answer", "answer: ANSWER", "Answer: answer"]
)
def test_the_last_line_is_as_the_prompt_shows_it(module_simulators: dict[str, Server], form: str) -> None:
    reply = content(module_simulators["none"], f"{QUESTIONS[0]}\n\nEnd with a line of the form {form}.")
    assert reply.splitlines()[-1] == f"{form[:7]} 96"


@pytest.mark.parametrize(
    "prompt",
    [
        f"Question: What is 3 + 4?\nAnswer: 7\n\nQuestion: {QUESTIONS[0]}\nAnswer:",
        f"Grade the following: {QUESTIONS[0]}",
        f"{QUESTIONS[0]}\n\nYour response: a single integer. Judge carefully which answer is correct.",
        f"{QUESTIONS[0]}\n\nPut your final answer in <answer></answer> tags.",
        f"The answer is enclosed within tags, <answer> answer here </answer>. User: {QUESTIONS[0]}\nAssistant:",
        f"### Instruction:\n{QUESTIONS[0]} The answer is an integer from 0 to 999.\n\n### Response:",
        f"Solve. The answer is always an integer.\n\nInput: 2+2\nOutput: 4\n\nInput: {QUESTIONS[0]}\nOutput:",
        f"You are good at grade school math. {QUESTIONS[0]}\nResponse:",
        f"{QUESTIONS[0]}\nYour final answer will be extracted and graded.\nModel answer:",
        f"Give the steps in <solution>...</solution>; your solution is graded. {QUESTIONS[0]}",
        f"Your answer is extracted.\n\nQuestion: 1+1?\nResponse: \\boxed{{2}}\n\nQuestion: {QUESTIONS[0]}\nResponse:",
        f"A grader reads it.\n\nProblem: 1+1\nResponse: The answer is 2.\n\nProblem: {QUESTIONS[0]}\nResponse:",
        f"Example: <answer>42</answer>. The answer will be extracted from these tags.\n\n{QUESTIONS[0]}",
    ],
)
def test_a_solver_is_not_taken_for_a_judge(module_simulators: dict[str, Server], prompt: str) -> None:
    assert re.fullmatch(r"The answer is \\boxed\{96\}\.", content(module_simulators["none"], prompt))


def test_a_judge_may_be_told_so_by_the_system(module_simulators: dict[str, Server]) -> None:
    messages = [
        {"role": "system", "content": "You are a strict judge. Reply CORRECT or INCORRECT."},
        {
            "role": "user",
            "content": f"Question: {QUESTIONS[0]}\n\nReference answer: 96\n\nResponse: It is \\boxed{{97}}.",
        },
    ]
    reply = requests.post(
        module_simulators["none"].url + "/v1/chat/completions", json={"messages": messages}, timeout=DEADLINE
    )
    assert reply.json()["choices"][0]["message"]["content"] == "INCORRECT"


@pytest.mark.parametrize(
    "text",
    ["Response:" + "\n" * 100_000, "Response: {" + " \n" * 50_000, "<response>" * 10_000,
     "judge " + "<answer>" * 12_000,
     "judge <response>5</response>" + "correct or " * 9_000, "judge <response>5</response>" + "A: correct " * 9_000,
     "judge <response>" + "answer is " * 10_000 + "</response>", "expected:" * 10_000 + "Response: 5", " " * 100_000,
     "Response: 1\n" * 9_000],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_hostile_prompts_are_read_in_no_time(text: str) -> None:
    start = time.process_time()
    judging = simulator.read_judging(text)
    if judging is not None:
        simulator.judgement(judging, "5", None, False)
    assert time.process_time() - start < 2


def test_a_judge_errs_at_the_rate_that_was_asked_for_and_always_on_the_same_prompts(
    start_simulator: StartSimulator,
) -> None:
    server = start_simulator("--dataset", "practice", "--judge-error-rate", 0.25)
    prompts = [EXTRACTION.format(f"It is \\boxed{{{number}}}.", "it") for number in range(200)]
    once = [content(server, prompt) for prompt in prompts]
    assert once == [content(server, prompt) for prompt in prompts]
    wrong = sum(said != str(number) for number, said in enumerate(once))
    assert 30 < wrong < 70
    roles = Counter((entry["role"], entry["decision"]) for entry in told(server, "log"))
    assert roles == {("judge", "wrong"): 2 * wrong, ("judge", "right"): 2 * (200 - wrong)}
    assert told(server, "expected")["deliveries"] == 0


# ---- keys ------------------------------------------------------------------------------------------


def test_keys_may_come_from_a_file_and_be_several(start_simulator: StartSimulator, tmp_path: Any) -> None:
    path = tmp_path / "keys"
    path.write_text("from-file\n\nsecond\n", "utf-8")
    server = start_simulator("--dataset", "practice", "--api-key", "one, two", "--api-key-file", path)
    for key, status in (("one", 200), ("two", 200), ("from-file", 200), ("second", 200), ("three", 401), ("", 401)):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        assert requests.get(server.url + "/props", headers=headers, timeout=DEADLINE).status_code == status
        assert requests.get(server.url + "/simulator/log", headers=headers, timeout=DEADLINE).status_code == status
    assert "one" not in server.banner + server.log()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("[nope]", "line 1, column 3: syntax error while parsing value - invalid literal; last read: '[no'"),
        ('{"a": tru}', "column 10: syntax error while parsing value - invalid literal; last read: '\"a\": tru}'"),
        ('{"a":1', "column 7: syntax error while parsing object - unexpected end of input; expected '}'"),
        ("[1", "column 3: syntax error while parsing array - unexpected end of input; expected ']'"),
        ('{"a" 1}', "column 6: syntax error while parsing object separator - unexpected number literal; expected ':'"),
        ("{a:1}", "syntax error while parsing object key - invalid literal; last read: '{a'; expected string literal"),
        ("[1,]", "column 4: syntax error while parsing value - unexpected ']'; expected '[', '{', or a literal"),
        ('{"a":1,}', "column 8: syntax error while parsing object key - unexpected '}'; expected string literal"),
        ('{"a":"b', "syntax error while parsing value - invalid string: missing closing quote; last read: '\"b'"),
    ],
)
def test_json_that_is_none_is_refused_in_the_words_of_the_real_servers_library(body: str, words: str) -> None:
    with pytest.raises(simulator.RequestError) as refusal:
        simulator.read_json(body.encode())
    assert words in str(refusal.value)
