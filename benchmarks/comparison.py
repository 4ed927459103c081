"""How often `compare` is wrong and how often it finds a loss, in simulated pairs of runs of 30 problems.

    make bench

Problems are bimodal: solved nearly always or nearly never, with an accuracy of 80 %. Type I is the share of pairs of
equal models that are told apart. A loss is in proportion to every chance, or of whole problems that are lost. Last, the
loss that a comparison of two equal models calls detectable is put to the test: it should be found in 75 to 85 % of
cases. That of whole problems on new ones is a step: hardly ever found below it, nearly always at it.
"""

from types import ModuleType
from typing import Any

import numpy as np
from harness import REPO, Report, load_script

PROBLEMS, ACCURACY, RUNS = 30, 0.8, 400
SAMPLES = (4, 16, 64)
LOSSES = (1 / 30, 2 / 30, 3 / 30)
ERROR = 0.05


def drawn(chance: np.random.Generator) -> Any:
    """The chances of the problems of a run."""
    return np.where(chance.random(PROBLEMS) < (ACCURACY - 0.02) / 0.96, 0.98, 0.02)


def lowered(own: Any, loss: float, whole: bool, chance: np.random.Generator) -> Any:
    """The chances after a loss of this mean, of whole problems or in proportion."""
    if not whole:
        return own * max(0.0, 1 - loss / own.mean())
    lost, left = own.copy(), loss * PROBLEMS
    for at in chance.permutation(np.flatnonzero(own > 0.5)):
        taken = min(lost[at], left)
        lost[at] -= taken
        left -= taken
    return lost


def found(script: ModuleType, before: Any, after: Any, k: int, chance: np.random.Generator) -> list[Any]:
    """Whether a difference is shown on these problems, and on new ones, and both differences."""
    counts = [chance.binomial(k, own).tolist() for own in (before, after)]
    pairs = [
        script.pair_of("", {"correct": a, "scored": k}, {"correct": b, "scored": k})
        for a, b in zip(*counts, strict=True)
    ]
    these, new = script.on_these_problems(pairs), script.difference(pairs, k)
    shown = [told.p < ERROR and not told.interval.holds(0) for told in (these, new)]
    return [*shown, these.detectable, new.detectable, new.detectable_whole]


def shares(report_script: ModuleType, loss: float, whole: bool, k: int) -> list[float]:
    """The percentages of pairs of runs that are told apart on these and on new problems."""
    chance, held = np.random.default_rng([round(1e5 * loss), whole, k]), np.zeros(2)
    for _ in range(RUNS):
        own = drawn(chance)
        held += found(report_script, own, lowered(own, loss, whole, chance), k, chance)[:2]
    return [float(share) for share in 100 * held / RUNS]


def main() -> None:
    """Print the tables, judge the errors, and save."""
    script, report = load_script(REPO / "llama-eval-report.py"), Report("comparison")
    for k in SAMPLES:
        report.heading(f"{PROBLEMS} problems x {k} samples: shares of {RUNS} pairs told apart, in %")
        equal = shares(script, 0.0, False, k)
        for name, share in zip(("type I on these problems", "type I on new problems"), equal, strict=True):
            report.figure(name, share, "%", goal=100 * ERROR)
        for whole in (False, True):
            for loss in LOSSES:
                kind = "whole problems" if whole else "in proportion"
                these, new = shares(script, loss, whole, k)
                report.figure(f"loss of {100 * loss:.1f} points, {kind}: these", these, "%")
                report.figure(f"loss of {100 * loss:.1f} points, {kind}: new", new, "%")
        chance = np.random.default_rng(k)
        told = [found(script, own, own, k, chance)[2:] for own in (drawn(chance) for _ in range(30))]
        for name, at, shapes in (("these", 0, (False, True)), ("new", 1, (False,)), ("new", 2, (True,))):
            size = float(np.median([each[at] for each in told]))
            for whole in shapes:
                kind = "whole problems" if whole else "in proportion"
                share = shares(script, size, whole, k)[min(at, 1)]
                report.figure(f"detectable {100 * size:.1f} points on {name}, {kind}", share, "%")
    report.save()


if __name__ == "__main__":
    main()
