"""The practice dataset: its form, and each answer against an independent solution."""

import json
import re
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from Levenshtein import distance

import practice_solutions

PATH = Path(__file__).parent.parent / "data" / "practice.jsonl"
TEXT = PATH.read_text(encoding="utf-8")
PROBLEMS: list[dict[str, Any]] = [json.loads(line) for line in TEXT.splitlines()]
TOPICS = ["algebra", "combinatorics", "geometry", "number theory", "probability"]

each_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=[problem["id"] for problem in PROBLEMS])


def solution_name(problem: dict[str, Any]) -> str:
    return str(problem["id"]).lower().replace("-", "_")


def test_ids_are_p_1_to_p_30_in_order() -> None:
    assert [problem["id"] for problem in PROBLEMS] == [f"P-{number}" for number in range(1, 31)]


def test_each_problem_has_one_solution_and_each_solution_one_problem() -> None:
    solutions = [name for name in vars(practice_solutions) if re.fullmatch(r"p_\d+", name)]
    assert sorted(solutions) == sorted(map(solution_name, PROBLEMS))


def test_each_solution_is_defined_once() -> None:
    source = Path(practice_solutions.__file__).read_text(encoding="utf-8")
    defined = Counter(re.findall(r"^def (p_\d+)\(", source, flags=re.MULTILINE))
    assert set(defined.values()) == {1}


@each_problem
def test_answer_is_what_its_solution_computes(problem: dict[str, Any]) -> None:
    assert problem["answer"] == str(getattr(practice_solutions, solution_name(problem))())


@each_problem
def test_row_has_the_five_keys_in_order(problem: dict[str, Any]) -> None:
    assert list(problem) == ["id", "question", "answer", "topic", "level"]


@each_problem
def test_answer_is_an_unpadded_string_from_0_to_999(problem: dict[str, Any]) -> None:
    assert isinstance(problem["answer"], str)
    assert re.fullmatch(r"0|[1-9][0-9]{0,2}", problem["answer"])


@each_problem
def test_statement_has_latex_with_balanced_delimiters(problem: dict[str, Any]) -> None:
    question = problem["question"]
    assert re.search(r"\$[^$]+\$", question)
    assert question.count("$") % 2 == 0
    assert question.count("{") == question.count("}")
    assert question.count(r"\[") == question.count(r"\]")


def test_file_ends_with_exactly_one_newline() -> None:
    assert TEXT.endswith("}\n")


def test_each_topic_has_six_problems() -> None:
    assert Counter(problem["topic"] for problem in PROBLEMS) == dict.fromkeys(TOPICS, 6)


@pytest.mark.parametrize("topic", TOPICS)
def test_each_topic_has_every_level_from_1_to_5(topic: str) -> None:
    assert {problem["level"] for problem in PROBLEMS if problem["topic"] == topic} == {1, 2, 3, 4, 5}


def test_levels_never_fall() -> None:
    levels = [problem["level"] for problem in PROBLEMS]
    assert levels == sorted(levels)


def test_no_two_answers_are_equal_or_consecutive() -> None:
    answers = sorted(int(problem["answer"]) for problem in PROBLEMS)
    assert min(b - a for a, b in pairwise(answers)) > 1


def test_no_two_questions_are_close() -> None:
    questions = [problem["question"] for problem in PROBLEMS]
    closest = min(combinations(questions, 2), key=lambda pair: distance(*pair) / max(map(len, pair)))
    assert distance(*closest) / max(map(len, closest)) > 0.5, closest
