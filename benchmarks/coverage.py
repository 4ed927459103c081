"""The coverage of the 95 % intervals of a summary, in simulated runs of 15 to 1319 problems with 1 to 64 samples.

    make bench

A problem's own chance of a correct sample is drawn from one of five shapes of difficulty whose mean is the true
accuracy. The interval on new problems should hold that accuracy, the one on these problems the mean of the chances that
were drawn. Wilson's interval over all samples, as if each were of a problem of its own, stands beside them to show why
they are needed. Every table is the same each time.
"""

import math
from collections.abc import Callable
from types import ModuleType

import numpy as np
from harness import REPO, Report, load_script

DESIGNS = ((15, 8), (30, 1), (30, 8), (30, 64), (90, 4), (1319, 1))
ACCURACIES = (0.2, 0.5, 0.8, 0.95, 0.98)
RUNS = 2000
LEAST, LOW, FEW = 91.0, 93.0, 2  # percent: no cell below the first, at most so many below the second
DROP, BEFORE = 0.06, 0.7
Draw = Callable[[np.random.Generator, float, tuple[int, ...]], np.ndarray]


def beta(concentration: float) -> Draw:
    """Chances from Beta(p c, (1 - p) c): the smaller c, the more problems are either easy or hard."""
    return lambda chance, p, size: chance.beta(p * concentration, (1 - p) * concentration, size)


def mixture(hard: float, easy: float) -> Draw:
    """Problems of two kinds, with these chances."""

    def draw(chance: np.random.Generator, p: float, size: tuple[int, ...]) -> np.ndarray:
        share = min(1.0, max(0.0, (p - hard) / (easy - hard)))
        return np.where(chance.random(size) < share, easy, hard)

    return draw


SHAPES: dict[str, Draw] = {
    "Beta, c = 10": beta(10),
    "Beta, c = 2": beta(2),
    "Beta, c = 0.5": beta(0.5),
    "bimodal": mixture(0.02, 0.98),
    "few hard ones": mixture(0.05, 0.995),
}


def coverage(llama_eval: ModuleType, design: tuple[int, int], accuracy: float, shape: str) -> list[float]:
    """The percentage of runs in which each interval holds what it claims to; NaN on these problems for one sample."""
    (n, k), held = design, [0, 0, 0]
    chance = np.random.default_rng([n, k, round(1000 * accuracy), len(shape)])
    chances = SHAPES[shape](chance, accuracy, (RUNS, n))
    counts = chance.binomial(k, chances)
    tally_of = [llama_eval.Tally(correct, k) for correct in range(k + 1)]
    for own, correct in zip(chances.mean(axis=1).tolist(), counts.tolist(), strict=True):
        tallies = [tally_of[count] for count in correct]
        new, these = llama_eval.new_problems_interval(tallies), llama_eval.these_problems_interval(tallies)
        low, high = llama_eval.wilson_interval(sum(correct) / (n * k), n * k)
        held[0] += new.low <= accuracy <= new.high
        held[1] += these is not None and these.low <= own <= these.high
        held[2] += low <= accuracy <= high
    shares = [100 * count / RUNS for count in held]
    return shares if k > 1 else [shares[0], math.nan, shares[2]]


def share_of_drops_found(llama_eval: ModuleType, samples: int) -> float:
    """How often a paired t-test at 5 % finds a worse model by the differences of the problems' scores.

    Both models answer the same 30 problems, whose chances fall in proportion, from BEFORE to BEFORE - DROP in the mean.
    """
    chance, n = np.random.default_rng(samples), 30
    critical = llama_eval.t_quantile(0.975, n - 1) / math.sqrt(n)
    chances = SHAPES["Beta, c = 2"](chance, BEFORE, (RUNS, n))
    differences = chance.binomial(samples, chances) - chance.binomial(samples, chances * (1 - DROP / BEFORE))
    return float(np.mean(differences.mean(axis=1) > critical * differences.std(axis=1, ddof=1)))


def main() -> None:
    """Print a table for each design, judge all of their cells, and save."""
    llama_eval, report = load_script(REPO / "llama-eval.py"), Report("coverage")
    error = 100 * math.sqrt(0.95 * 0.05 / RUNS)
    print(f"{RUNS} runs in each row: the standard error of a coverage of 95 % is {error:.2f} points")
    cells: dict[str, list[float]] = {"on new problems": [], "on these problems": []}
    for n, k in DESIGNS:
        report.heading(f"coverage in %, {n} problems x {k} samples; * is below {LOW:g} %")
        print(f"  {'difficulty':<16}{'accuracy':>9}{'new problems':>15}{'these problems':>17}{'pooled Wilson':>16}")
        for shape in SHAPES:
            for accuracy in ACCURACIES:
                shares = coverage(llama_eval, (n, k), accuracy, shape)
                marked = [f"{share:.1f}{'*' if share < LOW else ' '}" for share in shares]
                print(f"  {shape:<16}{accuracy:>9g}{marked[0]:>15}{marked[1]:>17}{marked[2]:>16}", flush=True)
                report.rows.append(
                    {"name": shape, "n": n, "k": k, "accuracy": accuracy, "coverage": [*map(str, shares)]}
                )
                for name, share in zip(cells, shares, strict=False):
                    cells[name] += [share] if not math.isnan(share) else []
    for name, shares in cells.items():
        report.heading(f"{name}: {len(shares)} cells")
        judged = name == "on new problems"
        report.figure("lowest coverage", min(shares), "%")
        report.figure(
            f"by which it is below {LEAST:g} %", max(0.0, LEAST - min(shares)), "pt", goal=0 if judged else None
        )
        report.figure(f"cells below {LOW:g} %", sum(share < LOW for share in shares), "", goal=FEW if judged else None)
    report.heading(f"power of a paired t-test at 5 %, 30 problems, {BEFORE:g} falls to {BEFORE - DROP:g}")
    for samples in (8, 16):
        report.figure(f"{samples} samples of each problem", share_of_drops_found(llama_eval, samples), "")
    report.save()


if __name__ == "__main__":
    main()
