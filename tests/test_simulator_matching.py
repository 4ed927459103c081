"""The simulator's rules as functions: answers, finding the question, the exact success rate, replies."""

from __future__ import annotations

import json
import random
import re
import time
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from scripts import REPO, SHARED, SIMULATOR, load

simulator = load(SIMULATOR)
Question = simulator.Question

TEXTS = {
    "bases": "Find the sum of all integer bases $b > 9$ for which $17_b$ is a divisor of $97_b$.",
    "coins": "A bag holds $12$ gold coins and $30$ silver ones. How many ways are there to pick $3$ of one metal?",
    "circle": r"A circle with radius $6\sqrt{2}$ is inscribed in a rhombus with $\angle ABC = 60^\circ$."
    "\nThe area is $m\\sqrt{n}$. Find $m + n$.",
    "trains": "Two trains leave towns 240 km apart at noon, at 70 and 50 km/h. After how many minutes do they meet?",
    "digits": "How many five-digit numbers have digits that increase strictly from left to right?",
}
QUESTIONS = [Question("own", name, text, str(100 + 7 * i)) for i, (name, text) in enumerate(TEXTS.items())]
MATCHER = simulator.Matcher(QUESTIONS, 0.3)


def settings(**changes: Any) -> Any:
    """The settings of a simulator with these options."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in changes.items()]
    return simulator.read_settings(simulator.build_parser().parse_args(options))


TEMPLATES = {
    "few-shot": "Question: What is the sum of 2 and 2?\nAnswer: 4\n\n"
    "Question: How many primes are below 10?\nAnswer: 4\n\nQuestion: {}\nAnswer:",
    "bare": "{}",
    "boxed": "Solve the following problem. Put your final answer within \\boxed{{}}.\n\n{}",
    "boxed after": "{}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}.",
    "json": "Answer the question. Reply with a JSON object and nothing else.\n\nQuestion:\n{}\n\n"
    'Reply like this:\n{{"reasoning": "...", "answer": 123}}',
    "judge": "You are a grader. Compare the response with the expected answer.\n\nQuestion: {}\n\n"
    "Expected answer: 204\n\nResponse: As m and n are relatively prime positive integers, it is \\boxed{{204}}.\n\n"
    'Is the response correct? Reply with {{"verdict": "yes"}} or {{"verdict": "no"}}.',
}


def without_latex(text: str) -> str:
    return re.sub(r"[${}]", "", re.sub(r"\\(begin|end)\{[^}]*\}|\\[a-zA-Z]+", " ", text))


def without_backslashes(text: str) -> str:
    return re.sub(r"[$\\{}]", "", text)


def with_noise(text: str, share: float, seed: int) -> str:
    """The text with that share of its characters replaced, dropped, or followed by another one."""
    rng = random.Random(seed)

    def garble(character: str) -> str:
        if rng.random() >= share:
            return character
        other = rng.choice("abcdefghijklmnopqrstuvwxyz0123456789 .,$\\{}()+-=")
        return rng.choice([other, "", character + other])

    return "".join(map(garble, text))


def found(matcher: Any, *texts: str) -> tuple[str, str] | None:
    """Name of the question found and how, or None."""
    match = matcher.find(texts)
    return (match.question.name, match.how) if isinstance(match, simulator.Match) else None


# ---- real rows -------------------------------------------------------------------------------------


def real_rows(name: str) -> list[dict[str, Any]]:
    path = SHARED / "data" / name
    if not path.is_file():
        pytest.skip(f"the real rows are not at hand: there is no {path}")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def aime() -> list[Any]:
    """All 120 real questions as the simulator holds them."""
    older = real_rows("aimo-validation-aime.jsonl")
    rows = [("aime", str(row["id"]), row["problem"], row["answer"]) for row in older]
    for part in ("I", "II"):
        halves = real_rows(f"aime2025-{part}.jsonl")
        rows += [("aime2025", f"{part}-{n}", row["question"], row["answer"]) for n, row in enumerate(halves, 1)]
    return [Question(dataset, name, text, simulator.canonical_answer(answer)) for dataset, name, text, answer in rows]


@pytest.fixture(scope="module")
def aime_matcher(aime: list[Any]) -> Any:
    return simulator.Matcher(aime, 0.3)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("change", [str, without_latex, without_backslashes], ids=lambda change: change.__name__)
def test_every_aime_question_is_found_in_every_template(
    aime: list[Any], aime_matcher: Any, template: str, change: Any
) -> None:
    prompts = [template.format(change(question.text)) for question in aime]
    names = [(found(aime_matcher, prompt) or ("nothing", ""))[0] for prompt in prompts]
    assert names == [question.name for question in aime]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_every_aime_question_is_found_through_noise(aime: list[Any], aime_matcher: Any, template: str) -> None:
    prompts = [template.format(with_noise(question.text, 0.1, seed)) for seed, question in enumerate(aime)]
    names = [(found(aime_matcher, prompt) or ("nothing", ""))[0] for prompt in prompts]
    assert names == [question.name for question in aime]


def test_verbatim_aime_questions_are_exact(aime: list[Any], aime_matcher: Any) -> None:
    assert {found(aime_matcher, TEMPLATES["judge"].format(question.text))[1] for question in aime} == {"exact"}  # type: ignore[index]


def test_no_aime_question_is_taken_for_another(aime: list[Any]) -> None:
    for left_out in aime[::4]:
        matcher = simulator.Matcher([question for question in aime if question is not left_out], 0.3)
        for change in (str, without_latex):
            assert found(matcher, TEMPLATES["boxed"].format(change(left_out.text))) is None


def test_400_questions_of_another_kind_are_refused(aime_matcher: Any) -> None:
    others = real_rows("gsm8k_test.jsonl")[:400]
    assert [row for row in others if found(aime_matcher, TEMPLATES["boxed"].format(row["question"]))] == []


def test_every_practice_question_is_found_and_kept_from_the_others() -> None:
    path = REPO / "data" / "practice.jsonl"
    if not path.is_file():
        pytest.skip(f"there is no {path}")
    questions = simulator.load_dataset("practice", "")
    matcher = simulator.Matcher(questions, 0.3)
    for seed, question in enumerate(questions):
        for template in TEMPLATES.values():
            for text in (question.text, without_latex(question.text), with_noise(question.text, 0.1, seed)):
                assert (found(matcher, template.format(text)) or ("nothing", ""))[0] == question.name


# ---- finding the question --------------------------------------------------------------------------

words = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=80)


@given(before=words, question=st.sampled_from(QUESTIONS), after=words)
def test_a_verbatim_question_is_found_whatever_surrounds_it(before: str, question: Any, after: str) -> None:
    assert found(MATCHER, f"{before}\n{question.text}\n{after}") == (question.name, "exact")


@given(question=st.sampled_from(QUESTIONS), seed=st.integers())
def test_a_noisy_question_is_found(question: Any, seed: int) -> None:
    prompt = TEMPLATES["boxed"].format(with_noise(question.text, 0.1, seed))
    assert (found(MATCHER, prompt) or ("nothing", ""))[0] == question.name


@given(text=words)
def test_unrelated_text_is_refused_with_a_distance(text: str) -> None:
    miss = MATCHER.find([text])
    assert isinstance(miss, simulator.Miss)
    assert 0.3 < miss.distance <= 1


@pytest.mark.parametrize("change", [str.upper, str.split, lambda text: text.replace("$", "")])
def test_case_white_space_and_dollar_signs_do_not_matter(change: Any) -> None:
    for question in QUESTIONS:
        changed = change(question.text)
        prompt = changed if isinstance(changed, str) else "\n\t".join(changed)
        assert found(MATCHER, prompt) == (question.name, "exact")


def test_compatible_characters_are_the_same() -> None:
    wide = TEXTS["digits"].translate({code: code + 0xFEE0 for code in range(0x21, 0x7F)})
    assert found(MATCHER, wide) == ("own/digits", "exact")


def test_dropping_latex_leaves_the_letters() -> None:
    assert found(MATCHER, without_latex(TEXTS["circle"])) == ("own/circle", "letters")


def test_letters_keep_what_stands_in_formulas_and_drop_commands() -> None:
    assert simulator.letters(r"Let $\frac{AB}{2} = 6\sqrt{2}$ \begin{align*} x \end{align*}") == "letab262x"


def test_squashing_keeps_numbers_apart() -> None:
    assert simulator.squash("Add $5$ $6$\n and 7 x") == "add5 6and7x"


def test_the_last_message_counts_first() -> None:
    assert found(MATCHER, TEXTS["coins"], TEXTS["digits"]) == ("own/coins", "exact")
    assert found(MATCHER, "Are you sure?", TEXTS["digits"]) == ("own/digits", "exact")


def test_an_inexact_find_in_the_last_message_beats_an_exact_one_before() -> None:
    noisy = with_noise(TEXTS["coins"], 0.05, 3)
    assert found(MATCHER, noisy, TEXTS["digits"]) == ("own/coins", "levenshtein")


def test_after_examples_the_last_question_is_meant() -> None:
    prompt = f"Question: {TEXTS['digits']}\nAnswer: 15\n\nQuestion: {TEXTS['coins']}\nAnswer:"
    assert found(MATCHER, prompt) == ("own/coins", "exact")


def test_of_questions_within_each_other_the_longest_is_meant() -> None:
    whole = Question("own", "whole", f"{TEXTS['digits']} And how many of these are even?", "5")
    matcher = simulator.Matcher([*QUESTIONS, whole], 0.3)
    assert found(matcher, f"Now: {whole.text}") == ("own/whole", "exact")
    assert found(matcher, f"Now: {TEXTS['digits']}") == ("own/digits", "exact")


def test_a_question_is_not_found_in_one_with_a_longer_number() -> None:
    matcher = simulator.Matcher([Question("own", "product", "What is 6*7", "42")], 0.3)
    assert found(matcher, "What is 6*7") == ("own/product", "exact")
    assert found(matcher, "What is 6*7\n\n1. Think first.") == ("own/product", "exact")
    assert found(matcher, "What is 6*75") is None


def test_short_questions_are_found_verbatim_only() -> None:
    matcher = simulator.Matcher([Question("own", "product", "What is 6*7?", "42")], 0.3)
    assert found(matcher, "What is 6-7?") is None


def test_two_near_questions_with_different_answers_are_not_guessed_between() -> None:
    twins = [Question("own", str(n), f"How many positive divisors does {n} have, in all?", str(n)) for n in (84, 96)]
    matcher = simulator.Matcher(twins, 0.3)
    assert found(matcher, twins[0].text) == ("own/84", "exact")
    miss = matcher.find(["How many positive divisors does 72 have, in all?"])
    assert isinstance(miss, simulator.Miss)
    assert {miss.closest, miss.rival} == set(twins)


def test_two_near_questions_with_one_answer_are_no_rivals() -> None:
    twins = [Question("own", str(n), f"How many positive divisors does {n} have, in all?", "12") for n in (84, 96)]
    assert found(simulator.Matcher(twins, 0.3), "How many positive divisors does 72 have, in all?") is not None


def test_the_same_question_with_two_answers_is_refused() -> None:
    twins = [Question("own", str(n), TEXTS["digits"], str(n)) for n in (1, 2)]
    assert found(simulator.Matcher(twins, 0.3), TEXTS["digits"]) is None


short = st.text(alphabet="ab1", max_size=6)


@given(texts=st.lists(short, max_size=6), other=st.text(alphabet="ab1", max_size=40))
def test_the_index_finds_what_a_plain_search_finds(texts: list[str], other: str) -> None:
    def stands(text: str, start: int) -> bool:
        end = start + len(text)
        cut_before = start > 0 and other[start - 1 : start + 1] == "11"
        cut_after = end < len(other) and other[end - 1 : end + 1] == "11"
        return other.startswith(text, start) and not cut_before and not cut_after

    plain = {n for n, text in enumerate(texts) if text and any(stands(text, i) for i in range(len(other)))}
    inside = simulator.Substrings(texts).inside(other)
    assert set(inside) == plain
    assert all(other[:end].endswith(texts[number]) for number, end in inside.items())


@given(pieces=st.lists(st.text(alphabet="abc", max_size=30), max_size=6))
def test_a_run_of_pieces_is_at_distance_0_of_itself(pieces: list[str]) -> None:
    whole = "".join(pieces)
    assume(len(whole) > 0)
    assert simulator.span_distance(whole, whole, simulator.piece_ends(pieces), 0.3) == 0


@pytest.mark.parametrize(
    "text",
    ["x. " * 300_000, "Find the area of the table.\n" + "7\n12\n" * 5000, "In rectangle " + "x:\n" * 10_000],
    ids=lambda text: text[:20],
)
def test_a_huge_message_is_searched_in_bounded_time(text: str) -> None:
    matcher = simulator.Matcher(simulator.load_dataset("practice", ""), 0.3)
    start = time.process_time()
    assert isinstance(matcher.find([text]), simulator.Miss)
    assert time.process_time() - start < 5  # a tenth of a second, mostly; without a bound it was a minute and more


# ---- answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        ("70", "70"),
        (70, "70"),
        (70.0, "70"),
        ("025", "25"),
        (" 25\n", "25"),
        ("336^\\circ", "336"),
        ("$336^{\\circ}$", "336"),
        ("336°", "336"),
        ("1,024", "1024"),
        ("1{,}234,567", "1234567"),
        ("-7", "-7"),
        ("\N{MINUS SIGN}7", "-7"),
        ("+7", "7"),
        ("-0", "0"),
    ],
)
def test_an_integer_is_read_however_it_is_written(raw: object, answer: str) -> None:
    assert simulator.canonical_answer(raw) == answer


@pytest.mark.parametrize(
    "raw", ["", "x", "1.5", "1/2", "1,02", "10,24", "1 000", "m+n", "\\frac{1}{2}", "1e3", True, None, 1.5, [7], "٣"]
)
def test_what_is_no_integer_is_not_read(raw: object) -> None:
    assert simulator.canonical_answer(raw) is None


@given(st.integers())
def test_canonical_answers_are_stable(number: int) -> None:
    once = simulator.canonical_answer(f"{number:,}")
    assert once == simulator.canonical_answer(once) == str(number)
    assert simulator.wrong_answer(once, "plus-one", 0.5) == str(number + 1)


# ---- success ---------------------------------------------------------------------------------------

rates = st.one_of(st.floats(0, 1), st.integers(0, 1000).map(lambda thousandths: thousandths / 1000))


@given(rate=rates, total=st.integers(1, 2000))
def test_the_count_of_right_answers_rounds_halves_up(rate: float, total: int) -> None:
    exact = Decimal(repr(rate)) * total
    assert simulator.count_of(simulator.decimal(rate), total) == int(exact.quantize(Decimal(1), rounding=ROUND_HALF_UP))


@pytest.mark.parametrize(
    ("rate", "total", "right"), [(0.8, 30, 24), (0.35, 30, 11), (0.145, 100, 15), (0, 9, 0), (1, 9, 9)]
)
def test_known_counts_of_right_answers(rate: float, total: int, right: int) -> None:
    assert simulator.count_of(simulator.decimal(rate), total) == right


@given(total=st.integers(1, 60), rate=rates, seed=st.integers(), passes=st.integers(1, 4), order=st.randoms())
def test_every_pass_has_the_exact_rate_in_any_order(
    total: int, rate: float, seed: int, passes: int, order: random.Random
) -> None:
    questions = [Question("own", str(number), f"question {number}", str(number)) for number in range(total)]
    deliveries = simulator.Deliveries(questions, settings(success_rate=rate, seed=seed))
    requests = questions * passes
    order.shuffle(requests)
    outcomes = [deliveries.take(question) for question in requests]
    for number in range(passes):
        right = [outcome.outcome == "right" for outcome in outcomes if outcome.number == number]
        assert len(right) == total
        assert sum(right) == simulator.count_of(simulator.decimal(rate), total)


def test_each_dataset_has_the_rate_of_its_own() -> None:
    questions = [
        Question(name, str(n), f"{name} {n}", "1") for name, count in (("a", 10), ("b", 4)) for n in range(count)
    ]
    deliveries = simulator.Deliveries(questions, settings(success_rate=0.5))
    right = [question.dataset for question in questions if deliveries.take(question).outcome == "right"]
    assert (right.count("a"), right.count("b")) == (5, 2)


def test_a_dataset_is_answered_the_same_whatever_is_loaded_beside_it() -> None:
    own = [Question("own", str(n), f"own {n}", str(n)) for n in range(20)]
    other = [Question("other", str(n), f"other {n}", str(n)) for n in range(7)]
    half = settings(success_rate=0.5, seed=3)
    alone, beside = simulator.Deliveries(own, half), simulator.Deliveries([*other, *own], half)
    assert [alone.take(question) for question in own] == [beside.take(question) for question in own]


def test_the_seed_decides_which_answers_are_right() -> None:
    questions = [Question("own", str(n), f"own {n}", str(n)) for n in range(40)]

    def right(seed: int) -> list[bool]:
        deliveries = simulator.Deliveries(questions, settings(success_rate=0.5, seed=seed))
        return [deliveries.take(question).outcome == "right" for question in questions]

    assert right(1) == right(1)
    assert right(1) != right(2)


def test_the_ranking_stays_as_it_is_from_release_to_release() -> None:
    questions = [Question("own", str(n), "", "0") for n in range(6)]
    ranks = simulator.ranking(questions, 0)
    assert [ranks[question] for question in questions] == [1, 0, 3, 5, 4, 2]


# ---- replies ---------------------------------------------------------------------------------------


def chat(prompt: str, **fields: Any) -> Any:
    body = {"messages": [{"role": "user", "content": prompt}], **fields}
    return simulator.read_chat(json.dumps(body).encode(), settings())


@given(st.text())
def test_tokens_put_together_are_the_text(text: str) -> None:
    assert "".join(simulator.pieces_of(text)) == text


def test_a_token_is_about_four_characters_and_never_part_of_a_number() -> None:
    assert simulator.pieces_of("The answer is \\boxed{123456}.") == [
        "The",
        " answ",
        "er",
        " is",
        " \\box",
        "ed{",
        "123456",
        "}.",
    ]


@pytest.mark.parametrize(
    ("prompt", "fields"),
    [
        ("plain", {}),
        ('reply with {"answer": 1}', {}),
        ("plain", {"response_format": {"type": "json_object"}}),
        ("plain", {"response_format": {"type": "json_schema", "json_schema": {}}}),
    ],
)
@pytest.mark.parametrize("answer", ["7", "1024", "-3"])
def test_the_only_integer_in_a_reply_is_the_answer(prompt: str, fields: dict[str, Any], answer: str) -> None:
    question = Question("own", "1", "x", answer)
    delivery = simulator.Delivery(question, 0, "right", answer)
    text, verdict = simulator.Author(chat(prompt, **fields), delivery, settings(), 1000, prompt).text()
    assert re.findall(r"-?\d+", text) == [answer]
    assert verdict == "correct"


@given(room=st.integers(1, 12))
def test_a_limit_cuts_the_reply_and_the_end_counts_as_a_token(room: int) -> None:
    request = chat("x")
    whole = simulator.make_choice("The answer is \\boxed{42}.", "correct", 1000, request, request.prompts[0])
    choice = simulator.make_choice("The answer is \\boxed{42}.", "correct", room, request, request.prompts[0])
    if room > len(whole.fields):
        assert choice == whole
    else:
        assert choice.finish_reason == "length"
        assert len(choice.fields) == choice.completion_tokens == room
        assert choice.verdict == ("correct" if room == len(whole.fields) else "truncated")
        assert whole.text("content").startswith(choice.text("content"))


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({}, None),
        ({"max_tokens": 5}, 5),
        ({"max_tokens": None}, None),
        ({"max_tokens": -1}, None),
        ({"max_tokens": 5, "n_predict": 9}, 9),
        ({"n_predict": 9, "max_tokens": 5}, 5),
        ({"max_tokens": 5, "max_completion_tokens": -1}, None),
        ({"max_tokens": 5, "n_predict": None}, 5),
        ({"max_completion_tokens": 3.7}, 3),
    ],
)
def test_the_last_limit_wins(fields: dict[str, Any], limit: int | None) -> None:
    assert chat("x", **fields).limit == limit
