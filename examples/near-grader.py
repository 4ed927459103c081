#!/usr/bin/env python3
"""A grader command to copy and change: accepts answers that miss the expected one by at most so much.

    python llama-eval.py --endpoint http://localhost:8033 --grader cli --grader-cmd "./examples/near-grader.py 1"

It gets one JSON object on standard input: task_id, dataset, question, expected, answer (as the rules of text found it,
or null), response, reasoning and finish_reason. Exit status 0 means correct, 1 incorrect, and anything else that the
grader could not tell, which leaves the task to be graded later. What it prints is optional.
"""

import json
import sys


def grade(task: dict, tolerance: float) -> tuple[bool, str]:
    """Whether the answer is near enough, and why."""
    answer, expected = task["answer"], task["expected"]
    if answer == expected:
        return True, "the same"
    try:
        distance = abs(float(answer) - float(expected))
    except (TypeError, ValueError):  # no answer, no number, or the letter of an option
        return False, f"{answer} is not {expected}"
    return distance <= tolerance, f"{answer} misses {expected} by {distance:g}"


try:
    correct, explanation = grade(json.load(sys.stdin), float(sys.argv[1]))
except (IndexError, KeyError, TypeError, ValueError) as error:
    print(f"cannot grade this task: {error!r}", file=sys.stderr)
    sys.exit(2)  # and not 1, which would call the answer wrong
print(json.dumps({"correct": correct, "explanation": explanation}))
sys.exit(0 if correct else 1)
