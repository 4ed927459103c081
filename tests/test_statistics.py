"""The numbers of a run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts import EVAL, load

llama_eval = load(EVAL)


def run(statuses):
    """A run with one problem per entry of `statuses`, which lists the statuses of its samples."""
    tasks = [
        llama_eval.Task(f"d/{problem}#{sample}", str(problem), sample, "?", "1")
        for problem, samples in enumerate(statuses)
        for sample in range(len(samples))
    ]
    states = {t.id: llama_eval.TaskState(statuses[int(t.problem)][t.sample]) for t in tasks}
    prompt, sampling = llama_eval.Prompt("json", "{question}"), llama_eval.Sampling()
    return llama_eval.EvalState("x", {"name": "d"}, prompt, sampling, {"name": "regex"}, None, tasks, states)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    # Values of scipy.stats.binomtest(correct, n).proportion_ci(method="wilson").
    [
        (24, 30, 0.6269430359, 0.9049489282),
        (0, 30, 0.0, 0.1135133932),
        (30, 30, 0.8864866068, 1.0),
        (1, 2, 0.0945312057, 0.9054687943),
    ],
)
def test_wilson_interval_agrees_with_scipy(correct, n, low, high):
    assert llama_eval.wilson_interval(correct / n, n) == pytest.approx((low, high), abs=1e-9)


@given(st.integers(1, 10_000), st.data())
def test_wilson_interval_holds_the_proportion_and_stays_between_0_and_1(n, data):
    correct = data.draw(st.integers(0, n))
    low, high = llama_eval.wilson_interval(correct / n, n)
    assert 0 <= low <= correct / n + 1e-12
    assert correct / n - 1e-12 <= high <= 1


def test_accuracy_counts_what_has_a_verdict_and_nothing_else():
    summary = llama_eval.summarize(run([[status] for status in llama_eval.STATUSES]))
    assert summary["counts"] == dict.fromkeys(llama_eval.STATUSES, 1)
    assert (summary["scored"], summary["accuracy"]) == (4, 0.25)
    assert summary["range"] == (1 / 7, 4 / 7)


def test_more_samples_of_the_same_problems_do_not_narrow_the_interval_as_new_problems_would():
    once = llama_eval.summarize(run([["correct"], ["incorrect"]]))
    often = llama_eval.summarize(run([["correct"] * 8, ["incorrect"] * 8]))
    assert once["interval"] == often["interval"]
    assert often["scored"] == 16


def test_a_run_without_verdicts_has_no_accuracy():
    summary = llama_eval.summarize(run([["pending"], ["error"]]))
    assert (summary["accuracy"], summary["interval"], summary["range"]) == (None, None, (0.0, 1.0))


def test_problems_with_many_samples_do_not_count_for_more_problems_than_there_are():
    """Three problems with 16 samples each weigh so much that 27 with one add little."""
    uneven = llama_eval.summarize(run([["correct"] * 16] * 3 + [["incorrect"]] * 27))
    even = llama_eval.summarize(run([["correct"]] * 3 + [["incorrect"]] * 27))
    assert uneven["interval_method"] == f"Wilson, 95 %, n = {75**2 / (3 * 16**2 + 27):.4g} problems"
    assert uneven["interval"][1] - uneven["interval"][0] > even["interval"][1] - even["interval"][0]


@pytest.mark.parametrize("n", [1, 7, 30, 31, 60, 1319])
def test_the_interval_reaches_a_perfect_score(n):
    assert llama_eval.wilson_interval(1.0, n)[1] == 1.0
    assert llama_eval.wilson_interval(0.0, n)[0] == 0.0
