"""The answer in a response, and the integer that it is."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts import EVAL, REPO, SHARED, load

llama_eval = load(EVAL)

INTEGERS = [
    ("204", "204", "plain"),
    ("016", "16", "zero-padded, as AIME answer sheets are"),
    ("000", "0", "zero, padded"),
    ("-4", "-4", "negative"),
    ("−4", "-4", "typographic minus"),
    ("-0", "0", "there is one zero"),
    ("+7", "7", "explicit plus"),
    ("1,024", "1024", "thousands comma"),
    ("1{,}024", "1024", "thousands comma in LaTeX"),
    ("204.", "204", "full stop"),
    ("204.0", "204", "whole decimal"),
    (r"336^\circ", "336", "the real answer of AIME 2025 II-5"),
    (r"336^{\circ}", "336", "degrees in braces"),
    ("336°", "336", "degree sign"),
    (r"\text{204}", "204", "font"),
    (r"\mathbf{\text{204}}", "204", "nested fonts"),
    (r"\color{red}{204}", "204", "colour"),
    (r"\left(204\right)", "204", "brackets around it"),
    ("(12, 204)", None, "a pair"),
    ("２０４", "204", "fullwidth digits"),
    ("2\u200b04", "204", "a zero-width space"),
    ("\u00a0204", "204", "a non-breaking space"),
    (r"1,\!024", "1024", "thousands comma as the MATH dataset has it"),
    (r"1\,024", "1024", "thousands as LaTeX spaces them"),
    (r"204\text{th}", "204", "ordinal"),
    (r"16\text{ cm}^2", "16", "square unit"),
    (r"204 \pmod{1000}", "204", "the modulus is known"),
    (r"\mathrm{(B)}\ 204", "204", "option letter"),
    (r"\text{The answer is }204", "204", "words before it"),
    (".5", None, "a decimal without its zero"),
    ("x >= 70", None, "an inequality"),
    ("x != 3", None, "an inequality"),
    ("m=70, n=5", None, "two equations"),
    (r"70 \text{ if } n=5", None, "a condition"),
    ("70 squared", None, "another number"),
    ("16 divided by two", None, "another number"),
    (r"12\,ab", None, "a product"),
    (r"\boxed{70", None, "a box that was never closed"),
    ("12π", None, "a multiple of pi"),
    ("12²", None, "a square"),
    ("3½", None, "a mixed number"),
    ("3万", None, "thirty thousand"),
    (r"x=3 \quad y=4", None, "two equations side by side"),
    (r"x=3\\ y=4", None, "two equations in two lines"),
    ("n>5=5", None, "an inequality"),
    ("25. Check: 3+4 = 7", None, "more than an answer"),
    (r"$204$", "204", "dollars"),
    (r"\$204", "204", "currency"),
    (r"20\%", "20", "percent"),
    ("x = 204", "204", "right side of an equation"),
    (r"m+n = 20 + 3 = 23", "23", "right side of the last equation"),
    (r"\approx 204", "204", "approximately"),
    (r"204 \text{ square units}", "204", "unit words"),
    (r"204\text{ cm}", "204", "unit"),
    (r"204\,\text{cm}", "204", "unit after a thin space"),
    ("204 or 205", None, "a hedge"),
    ("204 thousand", None, "another number"),
    ("3 over 4", None, "a fraction in words"),
    ("12, 204", None, "two numbers"),
    (r"\dfrac{1}{2}", None, "a fraction"),
    (r"\frac{204}{1}", None, "a fraction all the same"),
    ("3.25", None, "a decimal"),
    ("2^{10}", None, "a power is not its digits"),
    (r"204\pi", None, "a multiple of pi"),
    ("204x", None, "an expression"),
    ("1,02", None, "no thousands comma"),
    ("", None, "nothing"),
    ("x", None, "a letter"),
    ("9" * 3000, None, "longer than any answer"),
]

FOUND = [
    # content, answer, method
    ('So it is 70.\n{"answer": 70}', "70", "json"),
    ('```json\n{"answer": "016"}\n```', "16", "json"),
    ('{"answer": 16.0}', "16", "json"),
    ('{"reasoning": "\\\\frac{1}{2} of {140}", "answer": 70}', "70", "json"),
    ('{"answer": 69} no, wait: {"answer": 70}', "70", "json"),
    ('{"answer": 70} and then {"answer": 7', "70", "json"),
    (r'I will end with {"answer": N}. \boxed{70}', "70", "boxed"),
    ('{"answer": null} Final answer: 70', "70", "marker"),
    ('{"answer": true} The answer is 70.', "70", "marker"),
    ('{"answer": 69} then {"answer": [70]}', "70", "json"),
    ('{"steps": [{"answer": 12}], "answer": 70}', "70", "json"),
    ('{"result": {"answer": 70}}', "70", "json"),
    ('{"answer": 016}', "16", "json"),
    ('{"answer": 70,}', "70", "json"),
    ("{'answer': 70}", "70", "json"),
    ('{"why": "line\nbreak", "answer": 70}', "70", "json"),
    (r'{"why": "\sqrt{2}", "answer": 70}', "70", "json"),
    (r'{"answer": "\boxed{70}"}', "70", "json"),
    (r'{"answer": "N"} \boxed{70}', "70", "boxed"),
    ('{"answer": 70} {"answer": "N"}', "70", "json"),
    (r'{"answer": 69} but \boxed{70}', "70", "boxed"),
    (r"\boxed{69}, no: \boxed{70}", "70", "boxed"),
    (r"\boxed{\text{70}}", "70", "boxed"),
    (r"\boxed{\boxed{70}}", "70", "boxed"),
    (r"\\boxed{70}", "70", "boxed"),
    (r"\fbox{70}", "70", "boxed"),
    (r"\boxed 70", "70", "boxed"),
    (r"I put it in \boxed{}: Answer: 70", "70", "marker"),
    (r"\boxed{7", None, "none"),
    (r"The answer is \boxed{7", None, "none"),
    (r"\boxed 7.5", None, "none"),
    (r"\boxed{70} or \boxed{71}", None, "hedged"),
    (r"\boxed{70 \text{ or } 71}", None, "hedged"),
    (r"\boxed{70 \text{ or } 070}", "70", "boxed"),
    (r"\framebox[3cm][c]{70}", "70", "boxed"),
    (r"boxed{70}", "70", "boxed"),
    ("**Answer:** 70", "70", "marker"),
    ("### Final Answer\n\n**70**", "70", "marker"),
    ("The answer is 70, since 35 + 35 = 70 and no 71 fits.", "70", "marker"),
    ("The answer is $70$ because 2 is even", "70", "marker"),
    ("<answer>70</answer>", "70", "marker"),
    ("因此，答案为：70。", "70", "marker"),
    ("答案是 ７０", "70", "marker"),
    ("The answer is 70. I hope my answer is clear.", "70", "marker"),
    ("The answer is not 70.", None, "none"),
    ("The answer is 70 or 71.", None, "hedged"),
    ("The answer is 70, or 71.", None, "hedged"),
    ("The answer is 35 * 2", None, "none"),
    (r"The answer is $3 \sqrt{2}$", None, "none"),
    ("The answer is 70–80", None, "none"),
    ("The answer is 12. No: the correct answer is therefore 70.", "70", "marker"),
    (r"The answer is 12. The answer is $\frac12$.", "12", "marker"),
    ("Answer:\n$$\n70\n$$", "70", "marker"),
    ("The answer is 70. Double check: 30+41 = 71", "70", "marker"),
    ("**Answer: 70.** This holds because 7·5 = 35.", "70", "marker"),
    ("The answer is 70°. Since 3x = 210.", "70", "marker"),
    ("The answer is 12².", None, "none"),
    ("How to find the answer:\n\n1. Add 2.\n2. Stop.\n\nSo we get 70", "70", "last number"),
    ("So 70.", "70", "last number"),
    ("Therefore $m+n=70$.", "70", "last number"),
    ("It is $x^{70}$", None, "none"),
    ("either 69 or 70", None, "none"),
    ("The answer is 7/2.", None, "none"),
    ("The answer is 7.5", None, "none"),
    ("I counted 70 of them.\nGood bye!", None, "none"),
    ("<think>\\boxed{69}</think> \\boxed{70}", "70", "boxed"),
    ("\\boxed{69}</think> \\boxed{70}", "70", "boxed"),
    ("<think>\\boxed{69}</think> Let me know!", None, "none"),
    ("<think>\\boxed{69} and then", None, "unfinished thinking"),
    ("<|channel|>analysis<|message|>\\boxed{69}<|channel|>final<|message|>Answer: 70", "70", "marker"),
    ("", None, "none"),
]


CORRECTED = (  # that give two answers, of which the later counts, and a person may want to look
    '{"answer": 69} no, wait: {"answer": 70}',
    '{"answer": 69} then {"answer": [70]}',
    r'{"answer": 69} but \boxed{70}',
    r"\boxed{69}, no: \boxed{70}",
    "The answer is 12. No: the correct answer is therefore 70.",
)


def grade(content, expected, finish_reason="stop"):
    task = llama_eval.Task("d/1#0", "1", 0, "?", expected)
    response = llama_eval.Response(content, "", finish_reason, None, None, None, None, 1.0)
    return llama_eval.RegexGrader(llama_eval.Options()).grade(task, response)


@pytest.mark.parametrize(("text", "integer", "why"), INTEGERS, ids=[f"{i}-{row[2]}" for i, row in enumerate(INTEGERS)])
def test_an_answer_is_one_integer_or_none(text, integer, why):
    assert llama_eval.parse_integer(text) == integer, why


@pytest.mark.parametrize(("content", "answer", "method"), FOUND)
def test_the_answer_is_found_where_the_model_gave_it(content, answer, method):
    found = llama_eval.find_answer(content)
    assert (found.answer and llama_eval.parse_integer(found.answer), found.method) == (answer, method)
    assert bool(found.doubt) == (method in ("last number", "none") or content in CORRECTED)


@pytest.mark.parametrize(
    ("content", "finish_reason", "verdict"),
    [
        (r"\boxed{70}", "stop", "correct"),
        (r"\boxed{71}", "stop", "incorrect"),
        (r"\boxed{\frac{7}{2}}", "stop", "incorrect"),
        (r"\boxed{70}", "length", "correct"),
        ("I give up.", "stop", "no_answer"),
        ("So we have", "length", "truncated"),
        ("", "length", "truncated"),
        ("<think> 70", "length", "truncated"),
        ("The answer is 70", "length", "truncated"),
        ("So 70", "length", "truncated"),
        ("<|channel|>analysis<|message|>\\boxed{70}", "stop", "no_answer"),
    ],
)
def test_a_verdict_tells_wrong_from_absent_from_cut_off(content, finish_reason, verdict):
    assert grade(content, "70", finish_reason=finish_reason).verdict == verdict


def test_an_answer_that_is_no_integer_is_kept_as_it_was_written():
    assert grade(r"\boxed{\frac{7}{2}}", "70").answer == r"\frac{7}{2}"


@pytest.mark.parametrize(
    ("content", "review"),
    [
        (r"\boxed{70}", None),
        (r"\boxed{71}", None),
        (r"70, no: \boxed{71}", "the expected number stands in the response"),
        ("So it is 70.", "a guess"),
        (r"1702 and 70.5: \boxed{71}", None),
    ],
)
def test_what_a_person_should_look_at_is_marked(content, review):
    marked = grade(content, "70").review
    assert (marked is None) if review is None else review in marked


WRAPPERS = [
    r"\text{%s}",
    r"\mathbf{%s}",
    r"\textbf{%s}",
    r"\boxed{%s}",
    r"{%s}",
    r"\displaystyle %s",
    r"$%s$",
    r" %s ",
    r"x = %s",
    r"\textcolor{blue}{%s}",
    r"%s^\circ",
    r"%s.",
]


@given(st.integers(-9999, 9999), st.lists(st.sampled_from(WRAPPERS), max_size=5))
def test_any_nesting_of_wrappers_leaves_the_integer(number, wrappers):
    text = str(number)
    for wrapper in wrappers:
        text = wrapper % text
    assert llama_eval.parse_integer(text) == str(number)
    assert grade(f"Thus \\boxed{{{text}}}", str(number)).verdict == "correct"


@given(st.integers(-9999, 9999), st.integers(-9999, 9999), st.lists(st.sampled_from(WRAPPERS), max_size=5))
def test_another_integer_is_never_accepted(number, expected, wrappers):
    text = str(number)
    for wrapper in wrappers:
        text = wrapper % text
    assert (grade(f"\\boxed{{{text}}}", str(expected)).verdict == "correct") == (number == expected)


FRAGMENTS = st.sampled_from(
    [
        "{",
        "}",
        "B",
        "(A)",
        " or ",
        "\\boxed{",
        "\\boxed",
        "<think>",
        "</think>",
        '{"answer":',
        "70",
        '"',
        ",",
        "\n",
        "Answer:",
        "\\",
        "٧",
        "$",
    ]
)


@given(st.one_of(st.text(), st.lists(FRAGMENTS, max_size=40).map("".join)))
def test_no_text_makes_grading_fail(content):
    for expected in ("70", "B"):
        for finish_reason in ("stop", "length"):
            assert grade(content, expected, finish_reason).verdict in llama_eval.SCORED


LETTER_WRAPPERS = [
    r"\text{%s}",
    r"\textbf{%s}",
    r"\mathrm{%s}",
    "(%s)",
    "$%s$",
    "**%s**",
    " %s ",
    "%s.",
    "Option %s",
    "the answer is %s",
]


@given(
    st.sampled_from("ABCDEFGHIJ"), st.sampled_from("ABCDEFGHIJ"), st.lists(st.sampled_from(LETTER_WRAPPERS), max_size=3)
)
def test_any_nesting_of_wrappers_leaves_the_letter_and_no_other_is_accepted(letter, expected, wrappers):
    text = letter
    for wrapper in wrappers:
        text = wrapper % text
    assert (grade(f"\\boxed{{{text}}}", expected).verdict == "correct") == (letter == expected)
    assert (grade(json.dumps({"answer": text}), expected).verdict == "correct") == (letter == expected)


def test_a_response_that_was_cut_off_is_one_to_look_at():
    found = grade("So we have", "70", "length")
    assert (found.verdict, found.review) == ("truncated", llama_eval.METHODS["cut"])


def test_every_grade_says_how_it_came_about():
    for content, expected in (
        ("\\boxed{70}", "70"),
        ("So 70.", "70"),
        ("Nothing.", "70"),
        ("B", "B"),
        ("<think>", "B"),
    ):
        found = grade(content, expected)
        assert found.explanation == llama_eval.METHODS[found.method]
        assert found.grader == "regex"


@given(st.text(st.characters(exclude_characters="\\{}<>", exclude_categories=["Cf"])), st.integers(0, 999))
def test_text_after_the_box_changes_nothing(text, number):
    assert grade(f"\\boxed{{{number}}}{text}", str(number)).verdict == "correct"


@pytest.mark.parametrize(
    "unit",
    [
        "{",
        "\\boxed{",
        "7",
        "<think>",
        "word ",
        '{"a":',
        '{"answer":',
        "answer is ",
        "answer \n",
        "０",
        "\\boxed{1",
        "\\",
        "1,",
        "\\boxed{1} or ",
        "\\boxed[",
        "answer: 1 or ",
        "<a",
        ", ",
    ],
)
def test_reading_a_long_text_of_anything_takes_time_in_proportion(unit):
    def seconds(length):
        text = (unit * (length // len(unit) + 1))[:length]
        start = time.process_time()
        for kind in llama_eval.KINDS:
            llama_eval.find_answer(text, "stop", kind)
        return time.process_time() - start

    # Quadratic rules take minutes here; 10 s is far above the time of linear ones on the slowest machine.
    assert seconds(200_000) < 10


@pytest.mark.parametrize("blank", [" ", "\n", "\t", "\u00a0", "the ", "< ", "> "])
def test_a_box_or_a_string_full_of_nothing_is_read_at_once(blank):
    start = time.process_time()
    for filling in (blank * 400 + "1", blank * 5000 + "1", blank * 400 + "answer" + blank * 400 + "?"):
        for content in (f"\\boxed{{{filling}}}", json.dumps({"answer": filling}), f"The answer is {filling}"):
            grade(content, "70")
    assert time.process_time() - start < 20


def test_reading_boxes_within_boxes_takes_time_in_proportion():
    start = time.process_time()
    assert llama_eval.enclosed("\\boxed{" * 25_000 + "7" + "}" * 25_000, whole=True)
    assert time.process_time() - start < 20


@pytest.mark.parametrize(("table", "size"), [("grading.jsonl", 680), ("letters.jsonl", 320), ("statements.jsonl", 450)])
def test_the_tables_of_tricky_outputs_get_the_verdicts_they_must(table, size):
    """Each case says why; `not_correct` leaves open whether a bad answer is incorrect or none."""
    cases = [json.loads(line) for line in (REPO / "tests/cases" / table).read_text("utf-8").splitlines()]
    assert len({case["id"] for case in cases}) == len(cases) > size
    for case in cases:
        verdict = grade(case["response"], case["expected"], case["finish_reason"]).verdict
        wanted = case["verdict"]
        assert verdict == wanted or (wanted == "not_correct" and verdict != "correct"), (case["id"], case["why"])


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the grading cases in {SHARED}")
def test_the_shared_grading_cases_get_the_verdict_they_must():
    cases = [json.loads(line) for line in (SHARED / "cases/grading_cases.jsonl").read_text("utf-8").splitlines()]
    assert len(cases) > 30
    for case in cases:
        expected = llama_eval.parse_integer(case["expected"])
        verdict = grade(case["response"], expected, case["finish_reason"]).verdict
        assert (verdict == "correct") == case["correct"], case["id"]


# The real responses, by number, on which the rules differ from the reference, and why: there are none.
DIFFERENT: dict[int, str] = {}


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the real responses in {SHARED}")
def test_real_responses_get_the_reference_verdict():
    rows = [json.loads(line) for line in (SHARED / "data/real_responses.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 120
    different = []
    for number, row in enumerate(rows):
        verdict = grade(row["response_tail"], llama_eval.parse_integer(str(row["expected"]))).verdict
        if (verdict == "correct") != row["reference_correct"]:
            different.append(number)
    assert different == list(DIFFERENT)
