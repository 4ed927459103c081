"""How often a gate is wrong, and how soon it is sure: simulated runs of 30 problems with up to 16 samples.

    make bench

The rule is `accuracy >= 85`. A problem's own chance of a correct sample is drawn from a shape of difficulty and scaled
so that their mean over the problems of the run is the true accuracy. At the bar itself every FAIL is wrong, below
it every PASS; each of 2000 gates looks after 2, 4, 8 and 16 samples as `--until` does.
"""

from types import ModuleType

import numpy as np
from harness import REPO, Report, load_script

PROBLEMS, LOOKS, BAR, GATES = 30, (2, 4, 8, 16), 0.85, 2000
CELLS = (0.92, 0.88, 0.85, 0.849, 0.82, 0.78, 0.6)
SHAPES = {"Beta, c = 2": 2.0, "Beta, c = 0.5": 0.5, "Beta, c = 10": 10.0}
ERROR = 0.05


def chances(accuracy: float, concentration: float, chance: np.random.Generator) -> np.ndarray:
    """The chances of one run's problems, whose mean is the accuracy."""
    drawn = chance.beta(accuracy * concentration, (1 - accuracy) * concentration, PROBLEMS)
    for _ in range(50):  # what lies above 1 after the shift is spread over the others
        drawn = np.clip(drawn + accuracy - drawn.mean(), 0, 1)
    return drawn


def decided(llama_eval: ModuleType, own: np.ndarray, chance: np.random.Generator) -> tuple[str, int]:
    """The decision of one gate, and after how many samples."""
    samples = chance.random((PROBLEMS, LOOKS[-1])) < own[:, None]
    for look in LOOKS:
        counts = samples[:, :look].sum(axis=1).tolist()
        tallies = {str(at): llama_eval.Tally(count, look) for at, count in enumerate(counts)}
        quantile = 1 - llama_eval.GATE_ERROR / 2 / len(LOOKS)
        _, low, high = llama_eval.accuracy_within(tallies, quantile)
        if low >= BAR or high < BAR:
            return ("PASS" if low >= BAR else "FAIL"), look
    return "UNDECIDED", LOOKS[-1]


def main() -> None:
    """Print a table for each shape, judge the errors, and save."""
    llama_eval, report = load_script(REPO / "llama-eval.py"), Report("gate")
    worst = 0.0
    for shape, concentration in SHAPES.items():
        report.heading(f"{shape}: shares of {GATES} gates in %, and the mean number of samples")
        print(f"  {'true accuracy':<16}{'PASS':>8}{'FAIL':>8}{'UNDECIDED':>11}{'samples':>9}")
        for accuracy in CELLS:
            chance = np.random.default_rng([round(1000 * accuracy), round(10 * concentration)])
            own = (chances(accuracy, concentration, chance) for _ in range(GATES))
            outcomes = [decided(llama_eval, each, chance) for each in own]
            shares = [sum(name == told for told, _ in outcomes) / GATES for name in ("PASS", "FAIL", "UNDECIDED")]
            samples = sum(look for _, look in outcomes) / GATES
            told = "".join(f"{100 * share:>{width}.1f}" for share, width in zip(shares, (8, 8, 11), strict=True))
            print(f"  {accuracy:<16g}{told}{samples:>9.1f}", flush=True)
            report.rows.append({"name": shape, "accuracy": accuracy, "shares": shares, "samples": samples})
            worst = max(worst, shares[1] if accuracy >= BAR else shares[0])
    report.heading("in all cells")
    report.figure("wrong decisions at the most", 100 * worst, "%", goal=100 * ERROR)
    report.save()


if __name__ == "__main__":
    main()
