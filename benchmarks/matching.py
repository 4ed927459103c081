#!/usr/bin/env python3
"""The time in which the simulator finds a question in a prompt, among 30, 1000 and 10000 that it knows.

python benchmarks/matching.py
"""

import json
import random
import statistics
import sys
import time
from typing import Any

from harness import REPO, Report, load_script

TEMPLATES = {
    "boxed": "Solve the following problem.\n\n{}\n\nThink step by step. Put your answer in \\boxed{{}}.",
    "JSON": '{}\n\nFinish with a line that holds nothing but this JSON object: {{"answer": N}}',
    "judge": "<question>\n{}\n</question>\n\n<response>\n"
    + "Let me see. " * 200
    + "\n</response>\n\nExtract the answer.",
}
PROMPTS = 100
NOISE = 0.1


def made_up(number: int, words: list[str], chance: random.Random) -> str:
    """A question of the words of real ones, about as long as those, with numbers and LaTeX of its own."""
    sentence = " ".join(chance.choices(words, k=chance.randrange(30, 90)))
    return f"{sentence} with $a_{{{number}}} = {chance.randrange(10**6)}$ and $b = \\frac{{{number}}}{{7}}$."


def noisy(text: str, chance: random.Random) -> str:
    """The text with a tenth of its characters replaced, dropped or doubled."""
    return "".join(
        chance.choice(("", c + c, chance.choice("abcdefgh "))) if chance.random() < NOISE else c for c in text
    )


def milliseconds_each(matcher: Any, prompts: list[tuple[str, str]]) -> float:
    """The median time to find each prompt's question, all of which must be found."""
    times = []
    for name, prompt in prompts:
        start = time.perf_counter()
        match = matcher.find([prompt])
        times.append((time.perf_counter() - start) * 1000)
        if getattr(getattr(match, "question", None), "name", None) != name:
            sys.exit(f"{name} was not found")
    return statistics.median(times)


def main() -> None:
    """Measure, print and save."""
    simulator, chance, report = load_script(REPO / "llama-server-simulator.py"), random.Random(1), Report("matching")
    rows = [json.loads(line) for line in (REPO / "data" / "practice.jsonl").read_text(encoding="utf-8").splitlines()]
    words = " ".join(row["question"] for row in rows).split()
    for size in (30, 1000, 10_000):
        texts = [row["question"] for row in rows] + [made_up(n, words, chance) for n in range(size - len(rows))]
        questions = [simulator.Question("own", str(n), text, str(n)) for n, text in enumerate(texts)]
        start = time.perf_counter()
        matcher = simulator.Matcher(questions, 0.3)
        report.heading(f"{size} questions, indexed in {time.perf_counter() - start:.1f} s")
        asked = chance.sample(questions, min(PROMPTS, size))
        for name, template in TEMPLATES.items():
            prompts = [(question.name, template.format(question.text)) for question in asked]
            report.figure(f"verbatim, {name} prompt", milliseconds_each(matcher, prompts), "ms", goal=0.5)
        edited = [(question.name, TEMPLATES["boxed"].format(noisy(question.text, chance))) for question in asked]
        report.figure("with edits, boxed prompt", milliseconds_each(matcher, edited), "ms", goal=10)
    report.save()


if __name__ == "__main__":
    main()
