"""The time of reading the answer out of a response, against its length.

    make bench

The text rules read texts of 250,000, 500,000 and 1,000,000 characters that are made to be hard: of braces, of boxes
and reasoning that are opened and never closed, of digits, of one endless line, ... Each is graded four times, as an
integer and as a letter, as a whole and as one that was cut off. Time in proportion to the length doubles from column to
column; what grows with its square would show a ratio of 4.
"""

import time
from types import ModuleType

from harness import REPO, Report, load_script

LENGTHS = (250_000, 500_000, 1_000_000)
WAYS = (("204", "stop"), ("204", "length"), ("B", "length"), ("B", "stop"))
TEXTS = {  # what comes first, what is repeated
    "{": ("", "{"),
    r"\boxed{": ("", "\\boxed{"),
    "digits": ("", "7"),
    "digits of another script": ("", "\N{ARABIC-INDIC DIGIT SEVEN}"),
    "<think>": ("", "<think>"),
    "one long line": ("", "word "),
    "backslashes": ("", "\\"),
    '{"a": [ of {},': ('{"a": [' * 100, "{},"),
    '{"answer":': ("", '{"answer":'),
    '"answer": "': ("", '"answer": "'),
    '{"answer": 1,': ("", '{"answer": 1,'),
    "Answer: 答案 ": ("", "Answer: 答案 "),
    "analysis <a": ("", "analysis <a"),
    "答案是": ("", "答案是"),
    "####": ("", "####"),
    "(": ("", "("),
    "// comment": ('{"answer": ', "// comment "),
    "the answer is": ("", "the answer is "),
    "Answer: 1 or": ("", "Answer: 1 or "),
    "(A) or": ("", "(A) or "),
}


def seconds_to_grade(llama_eval: ModuleType, text: str) -> float:
    """CPU seconds to grade `text` in every way."""
    start = time.process_time()
    for expected, finish_reason in WAYS:
        response = llama_eval.Response(text, "", finish_reason, None, None, None, None, 1.0)
        grader = llama_eval.RegexGrader(llama_eval.Options())
        grader.grade(llama_eval.Task("d/1#0", "1", 0, "?", expected), response)
    return time.process_time() - start


def main() -> None:
    """Print a row for each kind of text."""
    llama_eval, report = load_script(REPO / "llama-eval.py"), Report("grading")
    print(f"{'CPU seconds, 4 gradings':<28}" + "".join(f"{f'{n // 1000} KB':>10}" for n in LENGTHS) + f"{'ratio':>8}")
    for name, (start, unit) in TEXTS.items():
        times = [seconds_to_grade(llama_eval, (start + unit * (n // len(unit) + 1))[:n]) for n in LENGTHS]
        print(f"{name:<28}" + "".join(f"{t:>10.3f}" for t in times) + f"{times[-1] / times[-2]:>8.2f}", flush=True)
        report.rows += [{"name": name, "characters": n, "seconds": t} for n, t in zip(LENGTHS, times, strict=True)]
    report.save()


if __name__ == "__main__":
    main()
