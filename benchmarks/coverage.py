"""The coverage of the 95 % intervals of a summary, in simulated runs of 30 problems x 8 samples.

    make bench

A problem's own chance of a correct sample is drawn from Beta(p c, (1 - p) c) at the true accuracy p; the smaller c, the
more problems are either easy or hard. The generalisation interval should hold p, the resampling interval the mean of
the chances that were drawn. Wilson's interval over all samples, as if each were of a problem of its own, stands beside
them to show why they are needed. Every table is the same each time.
"""

import math
import random
import statistics
from types import ModuleType

from harness import REPO, Report, load_script

PROBLEMS, SAMPLES = 30, 8
MAIN_CONCENTRATION = 2.0
ACCURACIES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
JUDGED = ACCURACIES[:-1]  # of so few problems with an accuracy beyond these, many runs have nearly no mistake
CLAIMED, TOLERANCE = 95.0, 2.0  # percent
RUNS = 3000
INTERVALS = ("generalisation", "resampling", "pooled Wilson")
DROP, BEFORE = 0.06, 0.7


def drawn_chances(accuracy: float, concentration: float, chance: random.Random) -> list[float]:
    """The chance of a correct sample for each problem of a run, whose mean is `accuracy` over all such problems."""
    a, b = accuracy * concentration, (1 - accuracy) * concentration
    return [chance.betavariate(a, b) for _ in range(PROBLEMS)]


def counts_correct(chances: list[float], samples: int, chance: random.Random) -> list[int]:
    """How many of so many samples of each problem came out correct."""
    draw = chance.random
    return [sum([draw() < own for _ in range(samples)]) for own in chances]


def coverage(llama_eval: ModuleType, accuracy: float, concentration: float) -> list[float]:
    """The percentage of runs in which each of INTERVALS holds what it claims to."""
    chance = random.Random(f"{accuracy} {concentration}")
    tally_of = [llama_eval.Tally(correct, SAMPLES) for correct in range(SAMPLES + 1)]
    held = [0] * len(INTERVALS)
    for _ in range(RUNS):
        chances = drawn_chances(accuracy, concentration, chance)
        correct = counts_correct(chances, SAMPLES, chance)
        tallies = [tally_of[count] for count in correct]
        new_problems = llama_eval.generalisation_interval(tallies)
        new_samples = llama_eval.resampling_interval(tallies)
        low, high = llama_eval.wilson_interval(sum(correct) / (PROBLEMS * SAMPLES), PROBLEMS * SAMPLES)
        held[0] += new_problems.low <= accuracy <= new_problems.high
        held[1] += new_samples.low <= statistics.fmean(chances) <= new_samples.high
        held[2] += low <= accuracy <= high
    return [100 * count / RUNS for count in held]


def coverage_table(llama_eval: ModuleType, report: Report, concentration: float) -> dict[float, list[float]]:
    """Print and report the coverage at each accuracy, with a mark where it is not within the tolerance."""
    report.heading(f"coverage in %, {PROBLEMS} problems x {SAMPLES} samples, c = {concentration:g}")
    print(f"  {'true accuracy':<16}" + "".join(f"{name:>17}" for name in INTERVALS))
    table = {}
    for accuracy in ACCURACIES:
        table[accuracy] = coverage(llama_eval, accuracy, concentration)
        marked = "".join(f"{share:>16.1f}{' ' if near(share) else '*'}" for share in table[accuracy])
        print(f"  {accuracy:<16g}{marked}".rstrip(), flush=True)
        for name, share in zip(INTERVALS, table[accuracy], strict=True):
            report.rows.append({"name": name, "concentration": concentration, "accuracy": accuracy, "coverage": share})
    return table


def near(share: float) -> bool:
    """Whether a coverage is within the tolerance of what is claimed."""
    return abs(share - CLAIMED) <= TOLERANCE


def share_of_drops_found(llama_eval: ModuleType, samples: int) -> float:
    """How often a paired t-test at 5 % finds a worse model by the differences of the problems' scores.

    Both models answer the same problems, whose chances fall in proportion, from BEFORE to BEFORE - DROP in the mean.
    """
    chance, found = random.Random(samples), 0
    critical = llama_eval.t_quantile(0.975, PROBLEMS - 1) / math.sqrt(PROBLEMS)
    for _ in range(RUNS):
        chances = drawn_chances(BEFORE, MAIN_CONCENTRATION, chance)
        before = counts_correct(chances, samples, chance)
        after = counts_correct([own * (1 - DROP / BEFORE) for own in chances], samples, chance)
        differences = [x - y for x, y in zip(before, after, strict=True)]
        found += statistics.fmean(differences) > critical * statistics.stdev(differences)
    return found / RUNS


def main() -> None:
    """Print the tables, judge the main one, and save."""
    llama_eval, report = load_script(REPO / "llama-eval.py"), Report("coverage")
    error = 100 * math.sqrt(0.95 * 0.05 / RUNS)
    print(f"{RUNS} runs in each row: the standard error of a coverage of 95 % is {error:.2f} points")
    print(f"* is outside {CLAIMED - TOLERANCE:g} % to {CLAIMED + TOLERANCE:g} %")
    table = coverage_table(llama_eval, report, MAIN_CONCENTRATION)
    report.heading(f"farthest from {CLAIMED:g} %, c = {MAIN_CONCENTRATION:g}, accuracy {JUDGED[0]} to {JUDGED[-1]}")
    for column, name in enumerate(INTERVALS[:2]):
        farthest = max(abs(table[accuracy][column] - CLAIMED) for accuracy in JUDGED)
        report.figure(name, farthest, "pt", goal=TOLERANCE)
    for concentration in (0.5, 10.0):
        coverage_table(llama_eval, report, concentration)
    report.heading(f"power of a paired t-test at 5 %, {PROBLEMS} problems, {BEFORE:g} falls to {BEFORE - DROP:g}")
    for samples in (8, 16):
        report.figure(f"{samples} samples of each problem", share_of_drops_found(llama_eval, samples), "")
    report.save()


if __name__ == "__main__":
    main()
