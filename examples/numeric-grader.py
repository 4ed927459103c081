#!/usr/bin/env python3
"""A grader command to copy and change: accepts an answer within one millionth of the expected one.

    python llama-eval.py --endpoint http://localhost:8033 --grader cli --grader-cmd ./examples/numeric-grader.py

It gets one JSON object on standard input: task_id, dataset, question, expected, answer (as the text rules found it,
or null), response, reasoning and finish_reason. Exit status 0 means correct, 1 incorrect, and anything else that the
grader could not tell, which leaves the task to be graded later. What it prints is optional.
"""

import json
import math
import sys


def grade(task: dict) -> tuple[bool, str]:
    """Whether the answer is right, and why."""
    expected = float(task["expected"])
    try:
        answer = float(task["answer"] or "nan")
    except ValueError:
        return False, f"{task['answer']!r} is not a number"
    return math.isclose(answer, expected, rel_tol=1e-6), f"{answer:g} against {expected:g}"


try:
    correct, explanation = grade(json.load(sys.stdin))
except (KeyError, TypeError, ValueError) as error:
    print(f"cannot grade this task: {error!r}", file=sys.stderr)
    sys.exit(2)  # and not 1, which would call the answer wrong
print(json.dumps({"correct": correct, "explanation": explanation}))
sys.exit(0 if correct else 1)
