"""The numbers of a run, against scipy, brute force and what must hold of any run."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from scripts import EVAL, load

llama_eval = load(EVAL)

Tally = llama_eval.Tally


def result(sample):
    """The state of a task from its status, or from status and extracted answer."""
    status, answer = (sample, None) if isinstance(sample, str) else sample
    grade = llama_eval.Grade(status, answer, "json", "regex") if status in llama_eval.SCORED else None
    return llama_eval.TaskState(status, grade)


def run(samples):
    """A run with one problem per entry of `samples`, which lists what became of its samples."""
    tasks = [
        llama_eval.Task(f"d/{problem}#{sample}", str(problem), sample, "?", "1")
        for problem, results in enumerate(samples)
        for sample in range(len(results))
    ]
    states = {t.id: result(samples[int(t.problem)][t.sample]) for t in tasks}
    prompt, sampling = llama_eval.Prompt("json", "{question}"), llama_eval.Sampling()
    return llama_eval.EvalState("x", {"name": "d"}, prompt, sampling, {"name": "regex"}, None, tasks, states)


def tallied(*pairs):
    return [Tally(correct, scored) for correct, scored in pairs]


def bounds(interval):
    return (interval.low, interval.high)


def wilson_bounds(p, n, quantile):
    """The proportions x that lie so many standard errors sqrt(x (1 - x) / n) away from p."""
    share = quantile**2 / n
    return sorted(np.roots([1 + share, -(2 * p + share), p**2]))


answers = st.sampled_from([("correct", "1"), ("incorrect", "2"), ("incorrect", "3"), "no_answer", "truncated"])
missing = st.sampled_from(["pending", "ungraded", "error"])
uneven_runs = st.lists(st.lists(answers | missing, min_size=1, max_size=9), min_size=1, max_size=12)
full_runs = st.integers(1, 9).flatmap(
    lambda k: st.lists(st.lists(answers, min_size=k, max_size=k), min_size=1, max_size=12)
)
uneven_tallies = st.lists(
    st.integers(1, 16).flatmap(lambda m: st.builds(Tally, st.integers(0, m), st.just(m))), min_size=1, max_size=40
)
even_tallies = st.integers(1, 16).flatmap(
    lambda m: st.lists(st.builds(Tally, st.integers(0, m), st.just(m)), min_size=2, max_size=40)
)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 6, 7, 10, 29, 30, 31, 99, 210, 1000, 9233, 100_000])
@pytest.mark.parametrize("probability", [0.0001, 0.01, 0.025, 0.3, 0.5, 0.500001, 0.6, 0.9, 0.975, 0.99, 0.9999])
def test_quantiles_agree_with_scipy(probability, freedom):
    assert llama_eval.t_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), abs=1e-6)
    assert llama_eval.normal_quantile(probability) == pytest.approx(stats.norm.ppf(probability), abs=1e-6)


@given(st.floats(0.0001, 0.9999), st.integers(1, 3000))
def test_the_t_quantile_agrees_with_scipy_anywhere(probability, freedom):
    assert llama_eval.t_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), abs=1e-6)


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


@given(st.integers(1, 2000), st.data())
def test_with_one_sample_of_each_problem_the_interval_is_plain_wilson(n, data):
    correct = data.draw(st.integers(0, n))
    interval = llama_eval.new_problems_interval(tallied(*[(1, 1)] * correct, *[(0, 1)] * (n - correct)))
    expected = stats.binomtest(correct, n).proportion_ci(method="wilson")
    assert bounds(interval) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert llama_eval.these_problems_interval([Tally(1, 1)] * n) is None


def pseudo_trials(tallies):
    """The effective number of trials on new problems, from the definition of the variance with pseudo-problems."""
    samples = np.array([tally.scored for tally in tallies])
    scores = np.array([tally.correct for tally in tallies]) / samples
    n, a, total = len(tallies), 0.2, samples.sum()
    values, weights = np.append(scores, [1, 0]), np.append(np.ones(n), [a, a])
    mean = np.average(values, weights=weights)
    variance = (weights * (values - mean) ** 2).sum() / (n + 2 * a - 1)
    uneven = n * (samples**2).sum() / total**2
    trials = n * mean * (1 - mean) / variance * (n + 2 * a) / (n + 2 * a - 1) / uneven
    within = llama_eval.these_problems_interval(tallies)
    return min(max(trials, n / uneven), total, within.effective)


@given(uneven_tallies.filter(lambda tallies: len(tallies) > 1))
def test_the_interval_on_new_problems_is_wilsons_with_pseudo_problems(tallies):
    n, total = len(tallies), sum(tally.scored for tally in tallies)
    assume(total > n)
    p = sum(tally.correct for tally in tallies) / total
    expected = wilson_bounds(p, pseudo_trials(tallies), stats.t.ppf(0.975, min(n - 1, total - n)))
    assert bounds(llama_eval.new_problems_interval(tallies)) == pytest.approx(expected, abs=1e-9)


@given(uneven_tallies)
def test_the_interval_on_new_problems_is_never_the_narrower_one(tallies):
    new, these = llama_eval.new_problems_interval(tallies), llama_eval.these_problems_interval(tallies)
    if these and len(tallies) > 1:
        assert new.high - new.low >= these.high - these.low - 1e-12


def test_one_mistake_more_makes_no_other_interval():
    perfect, nearly = (llama_eval.new_problems_interval([Tally(64, 64)] * 29 + [Tally(last, 64)]) for last in (64, 63))
    assert 0.87 < perfect.low < 0.89
    assert 0.87 < nearly.low < 0.89


@given(even_tallies.filter(lambda tallies: tallies[0].scored > 1))
def test_the_these_problems_interval_is_wilsons_at_the_error_within_the_problems(tallies):
    verdicts = np.array([[1] * t.correct + [0] * (t.scored - t.correct) for t in tallies])
    p, total, freedom = verdicts.mean(), verdicts.size, verdicts.size - len(verdicts)
    variance = verdicts.var(axis=1, ddof=1).mean() / total
    trials = p * (1 - p) / max(variance, 1 / total**2) if 0 < p < 1 else total
    expected = wilson_bounds(p, trials, stats.t.ppf(0.975, freedom))
    assert bounds(llama_eval.these_problems_interval(tallies)) == pytest.approx(expected, abs=1e-9)


def test_problems_with_one_sample_are_taken_to_vary_like_the_others():
    with_one = llama_eval.these_problems_interval(tallied((1, 2), (1, 2), (1, 1), (0, 1)))
    p, freedom, within = 3 / 6, 2, 6 * (1 / 2)  # the variance of a sample is 1/2 in each of the first two
    expected = wilson_bounds(p, p * (1 - p) / (within / 6**2), stats.t.ppf(0.975, freedom))
    assert bounds(with_one) == pytest.approx(expected, abs=1e-9)


@given(uneven_tallies)
def test_every_interval_holds_the_accuracy_and_lies_between_0_and_1(tallies):
    p = sum(tally.correct for tally in tallies) / sum(tally.scored for tally in tallies)
    both = [llama_eval.new_problems_interval(tallies), llama_eval.these_problems_interval(tallies)]
    assert (both[1] is None) == all(tally.scored == 1 for tally in tallies)
    for interval in filter(None, both):
        assert 0 <= interval.low <= p <= interval.high <= 1
        assert interval.low < interval.high


DEGENERATE = {
    "all right": tallied(*[(8, 8)] * 30),
    "all wrong": tallied(*[(0, 8)] * 30),
    "one problem": tallied((5, 8)),
    "one problem, all right": tallied((8, 8)),
    "one sample of each": tallied(*[(1, 1)] * 20, *[(0, 1)] * 10),
    "one sample of each, all right": tallied(*[(1, 1)] * 30),
    "one sample of one problem, right": tallied((1, 1)),
    "one sample of one problem, wrong": tallied((0, 1)),
    "samples missing": tallied((8, 8), (3, 5), (0, 1), (1, 2)),
    "the same score everywhere": tallied(*[(4, 8)] * 30),
    "the same odd score everywhere": tallied(*[(1, 3)] * 7),
    "each problem all right or all wrong": tallied(*[(8, 8)] * 20, *[(0, 8)] * 10),
    "two problems, opposite": tallied((8, 8), (0, 8)),
    "one mistake": tallied(*[(8, 8)] * 29, (7, 8)),
}


@pytest.mark.parametrize("tallies", DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_results_have_sane_intervals(tallies):
    """They are not so narrow that one more sample could move the accuracy from one end to the other."""
    scored = sum(tally.scored for tally in tallies)
    p = sum(tally.correct for tally in tallies) / scored
    for interval in (llama_eval.new_problems_interval(tallies), llama_eval.these_problems_interval(tallies)):
        if interval:
            assert 0 <= interval.low <= p <= interval.high <= 1
            assert interval.high - interval.low > 1 / (scored + 1)


@pytest.mark.parametrize(("name", "p"), [("all right", 1), ("all wrong", 0)])
def test_without_a_sign_of_spread_the_problems_are_what_counts(name, p):
    expected = wilson_bounds(p, 30, stats.t.ppf(0.975, 29))
    assert bounds(llama_eval.new_problems_interval(DEGENERATE[name])) == pytest.approx(expected, abs=1e-9)


def test_there_are_no_more_trials_than_samples():
    """Equal scores everywhere are chance: the answers are at least as uncertain as independent ones."""
    interval = llama_eval.new_problems_interval(DEGENERATE["the same score everywhere"])
    assert interval.effective <= 240


def test_accuracy_counts_what_has_a_verdict_and_nothing_else():
    summary = llama_eval.summarize(run([[status] for status in llama_eval.STATUSES]))
    assert summary["counts"] == dict.fromkeys(llama_eval.STATUSES, 1)
    assert (summary["scored"], summary["accuracy"]) == (4, 0.25)
    assert summary["range"] == (1 / 7, 4 / 7)


def test_more_samples_of_the_same_problems_do_not_narrow_the_interval_as_new_problems_would():
    """As long as each problem gives the same each time, at least; Student's t adds for what is not known of them."""
    once = llama_eval.summarize(run([["correct"], ["incorrect"]] * 15))["intervals"]["on_new_problems"]
    often = llama_eval.summarize(run([["correct"] * 8, ["incorrect"] * 8] * 15))
    again = often["intervals"]["on_new_problems"]
    assert again.low <= once.low
    assert once.high <= again.high
    trials = pseudo_trials([Tally(8, 8), Tally(0, 8)] * 15)
    assert 29 < trials < 31
    assert bounds(again) == pytest.approx(wilson_bounds(0.5, trials, stats.t.ppf(0.975, 29)), abs=1e-9)
    assert often["scored"] == 240


def test_a_run_without_verdicts_has_no_accuracy():
    summary = llama_eval.summarize(run([["pending"], ["error"]]))
    assert (summary["accuracy"], summary["range"]) == (None, (0.0, 1.0))
    assert summary["intervals"] == {"on_new_problems": None, "on_these_problems": None}
    assert (summary["avg_at_k"], summary["pass_at"], summary["maj_at_k"]) == (None, [], None)
    assert summary["problems_short_of_k"] == summary["problems"] == 2


def test_problems_with_many_samples_do_not_count_for_more_problems_than_there_are():
    """Three problems with 16 samples each weigh so much that 27 with one add little."""
    uneven = llama_eval.summarize(run([["correct"] * 16] * 3 + [["incorrect"]] * 27))
    even = llama_eval.summarize(run([["correct"]] * 3 + [["incorrect"]] * 27))
    effective = pseudo_trials([Tally(16, 16)] * 3 + [Tally(0, 1)] * 27)
    wide, narrow = (summary["intervals"]["on_new_problems"] for summary in (uneven, even))
    told = f"Wilson, n_eff = {effective:.1f}, Student's t, df = 29"
    assert wide.method == f"clustered by problem: {told}"
    assert wide.high - wide.low > narrow.high - narrow.low


@pytest.mark.parametrize("n", [1, 7, 30, 31, 60, 1319])
def test_the_interval_reaches_a_perfect_score(n):
    assert llama_eval.wilson_interval(1.0, n)[1] == 1.0
    assert llama_eval.wilson_interval(0.0, n)[0] == 0.0


@pytest.mark.parametrize("m", range(1, 9))
def test_pass_at_j_is_the_share_of_subsets_that_hold_a_correct_sample(m):
    for correct, j in itertools.product(range(m + 1), range(1, m + 1)):
        subsets = list(itertools.combinations([True] * correct + [False] * (m - correct), j))
        expected = sum(map(any, subsets)) / len(subsets)
        assert llama_eval.pass_at([Tally(correct, m)], j) == (pytest.approx(expected, abs=1e-12), 1)


def test_pass_at_j_leaves_out_problems_with_fewer_samples_and_says_how_many_are_left():
    tallies = tallied((1, 2), (0, 4), (4, 4))
    assert llama_eval.pass_at(tallies, 1) == (0.5, 3)
    assert llama_eval.pass_at(tallies, 2) == (pytest.approx(2 / 3), 3)
    assert llama_eval.pass_at(tallies, 3) == (0.5, 2)
    assert llama_eval.pass_at(tallies, 5) is None


def test_pass_at_j_is_known_for_thousands_of_samples():
    score, _ = llama_eval.pass_at([Tally(1, 4000)], 2000)
    assert score == pytest.approx(0.5)


def test_pass_at_is_shown_for_powers_of_two_and_for_k():
    assert [llama_eval.powers_up_to(k) for k in (1, 2, 3, 6, 8)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 6], [1, 2, 4, 8]]


@pytest.mark.parametrize(
    ("votes", "score"),
    [
        ([("1", True)], 1),
        ([("2", False)], 0),
        ([("1", True), ("1", True), ("2", False)], 1),
        ([("1", True), ("2", False), ("2", False)], 0),
        ([("1", True), ("2", False)], 1 / 2),
        ([("1", True), ("2", False), ("3", False)], 1 / 3),
        ([("2", False), ("2", False), ("1", True), ("1", True), ("3", False)], 1 / 2),
        ([(None, False)], 0),
        ([(None, False), (None, False), ("1", True)], 1),
        ([("x", True), ("x", False), ("x", True)], 2 / 3),
        ([("x", True), ("x", False), ("y", False), ("y", False)], 1 / 4),
        ([(None, True)], None),
        ([("1", True), ("1", True), (None, True)], None),
        ([], 0),
    ],
    ids=[
        "right", "wrong", "majority right", "majority wrong", "tie of two", "tie of three", "tie above a third",
        "no answer", "no answer has no vote", "verdicts of one answer differ", "so in a tie", "right without answer",
        "right without answer beside others", "no samples",
    ],
)  # fmt: skip
def test_the_majority_is_the_most_frequent_answer(votes, score):
    assert llama_eval.majority_score(votes) == (None if score is None else pytest.approx(score))
    assert llama_eval.majority_score(votes[::-1]) == llama_eval.majority_score(votes)


def test_the_majority_of_a_run_is_unknown_where_that_of_a_problem_is():
    known = [("correct", "1"), ("correct", "1")]
    assert llama_eval.summarize(run([known, ["incorrect", "incorrect"]]))["maj_at_k"] == 0.5
    assert llama_eval.summarize(run([known, ["pending", "error"]]))["maj_at_k"] == 1
    assert llama_eval.summarize(run([known, ["correct", "incorrect"]]))["maj_at_k"] is None


def test_problems_with_fewer_verdicts_than_samples_are_told():
    summary = llama_eval.summarize(
        run([["correct"] * 4, ["correct", "pending", "error", "incorrect"], ["pending"] * 4])
    )
    assert (summary["k"], summary["problems"], summary["problems_short_of_k"]) == (4, 3, 2)
    assert (summary["accuracy"], summary["avg_at_k"]) == (5 / 6, 3 / 4)
    assert [(entry["j"], entry["problems"]) for entry in summary["pass_at"]] == [(1, 2), (2, 2), (4, 1)]


@given(full_runs)
def test_in_a_finished_run_avg_at_k_is_the_accuracy_and_pass_at_1(samples):
    summary = llama_eval.summarize(run(samples))
    assert summary["avg_at_k"] == pytest.approx(summary["accuracy"], abs=1e-12)
    assert summary["pass_at"][0] == {"j": 1, "score": pytest.approx(summary["avg_at_k"]), "problems": len(samples)}
    assert summary["problems_short_of_k"] == 0


@given(full_runs)
def test_pass_at_j_does_not_fall_with_more_samples(samples):
    table = llama_eval.problem_scores(run(samples))
    tallies = tallied(*((entry["correct"], entry["scored"]) for entry in table))
    scores = [llama_eval.pass_at(tallies, j)[0] for j in range(1, len(samples[0]) + 1)]
    assert all(0 <= score <= 1 for score in scores)
    assert all(more >= less - 1e-12 for less, more in itertools.pairwise(scores))
    assert scores[-1] == sum(tally.correct > 0 for tally in tallies) / len(tallies)


@given(uneven_runs, st.data())
def test_the_order_of_the_problems_changes_nothing(samples, data):
    one, other = (llama_eval.summarize(run(each)) for each in (samples, data.draw(st.permutations(samples))))
    for name, interval in one.pop("intervals").items():
        reordered = other["intervals"][name]
        assert (interval is None) == (reordered is None)
        if interval:
            assert bounds(interval) == pytest.approx(bounds(reordered), abs=1e-9)
    del other["intervals"]
    assert one == other


def percent(proportion):
    """As the console has it: what is not all or nothing is not rounded to that."""
    text = f"{100 * proportion:.1f} %"
    return {"100.0 %": "99.9 %", "0.0 %": "0.1 %"}.get(text, text) if 0 < proportion < 1 else text


def check_console(lines, summary):
    """The lines show the intervals and the figures over several samples, as far as there are any."""
    start = next(number for number, line in enumerate(lines) if line.startswith("accuracy"))
    counts = next(number for number, line in enumerate(lines) if line.startswith("counts"))
    shown = lines[start:counts]
    if summary["accuracy"] is None:
        assert shown == ["accuracy  none: no task has a verdict yet"]
        assert not any(line.startswith("samples") for line in lines)
        return
    wide, narrow = summary["intervals"]["on_new_problems"], summary["intervals"]["on_these_problems"]
    between = f"95 % interval {percent(wide['low'])} to {percent(wide['high'])} on new problems"
    expected = [
        f"accuracy  {percent(summary['accuracy'])}  ({summary['counts']['correct']} of {summary['scored']}), {between}"
    ]
    if narrow:
        between = f"95 % interval {percent(narrow['low'])} to {percent(narrow['high'])}"
        expected.append(f"{'':10}{between} on these problems")
    if summary["scored"] < summary["tasks"]:
        low, high = map(percent, summary["range"])
        expected.append(f"{'':10}between {low} and {high} once every task has a verdict")
    assert shown == expected
    row = [line for line in lines if line.startswith("samples")]
    assert len(row) == (summary["k"] > 1)
    if row:
        figures = {f"avg@{summary['k']}": summary["avg_at_k"], f"maj@{summary['k']}": summary["maj_at_k"]}
        figures |= {f"pass@{entry['j']}": entry["score"] for entry in summary["pass_at"]}
        assert all((f"{name} " in row[0]) == (score is not None) for name, score in figures.items())
        assert all(f"{name} {percent(score)}" in row[0] for name, score in figures.items() if score is not None)
        short, problems = summary["problems_short_of_k"], summary["problems"]
        told = f"; {short} of {problems} problems have fewer than {summary['k']} verdicts"
        assert (told in row[0]) == bool(short)


@given(uneven_runs)
def test_file_and_console_tell_the_same_numbers_as_the_tasks(samples):
    state = run(samples)
    data = json.loads("".join(llama_eval.state_to_json(state, "journal")))
    assert data["summary"] == json.loads(json.dumps(llama_eval.summarize(state), default=vars))
    assert data["problems"] == json.loads(json.dumps(llama_eval.problem_scores(state)))
    summary, table = data["summary"], data["problems"]
    for entry, results in zip(table, samples, strict=True):
        verdicts = [s for s in map(result, results) if s.status in llama_eval.SCORED]
        assert entry["samples"] == len(results)
        assert entry["scored"] == len(verdicts)
        assert entry["correct"] == sum(s.status == "correct" for s in verdicts)
        assert sum(count for _, count in entry["answers"]) == sum(s.grade.answer is not None for s in verdicts)
    assert sum(entry["scored"] for entry in table) == summary["scored"]
    assert sum(entry["correct"] for entry in table) == summary["counts"]["correct"]
    scores = [entry["score"] for entry in table if entry["score"] is not None]
    assert summary["avg_at_k"] == (math.fsum(scores) / len(scores) if scores else None)
    check_console(llama_eval.summary_text(state, 1.0, Path("run.json"), {}).splitlines(), summary)
