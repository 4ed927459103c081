"""Comparisons of runs: the statistics against scipy and simulation, the verdicts and exit codes as a process."""

import csv
import html
import io
import itertools
import json
import math
import random
import re
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from conftest import clean_environment
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from scripts import DEADLINE, EVAL, REPORT, load, refused, run_report

llama_eval = load(EVAL)
report = load(REPORT)

Pair = report.Pair


def compare(*args, cwd):
    """`llama-eval-report.py compare` run to its end."""
    return run_report("compare", *args, cwd=cwd)


# ---- statistics -----------------------------------------------------------------------------------------

samples = st.integers(1, 8)
scores = samples.flatmap(lambda k: st.builds(Fraction, st.integers(0, k), st.just(k)))
pair_lists = st.lists(st.tuples(scores, scores), min_size=1, max_size=25).map(
    lambda found: [Pair(str(at), *both) for at, both in enumerate(found)]
)
differences = st.lists(st.builds(Fraction, st.integers(-8, 8), st.just(8)), min_size=1, max_size=30)


def swapped(pairs):
    return [Pair(pair.problem, pair.after, pair.before, pair.noise) for pair in pairs]


def shown(found):
    """Whether a single comparison shows a difference."""
    return report.Comparison(None, None, [], found, [], found.p).shown


def worse(pairs, margin=Fraction(0)):
    """Whether B is beyond doubt worse than A by more than the margin."""
    return report.beyond(pairs, margin) < 0.05


@pytest.mark.parametrize("freedom", [*range(1, 12), 29, 30, 31, 99, 100, 1318, 5000, 9999, 10_000])
@pytest.mark.parametrize("probability", [0.5, 0.5001, 0.6, 0.8, 0.9, 0.975, 0.99, 0.9999])
def test_quantiles_agree_with_scipy_and_with_the_evaluator(probability, freedom):
    quantile = report.t_quantile(probability, freedom)
    assert quantile == pytest.approx(stats.t.ppf(probability, freedom), abs=1e-9, rel=1e-9)
    assert quantile == pytest.approx(llama_eval.t_quantile(probability, freedom), abs=1e-6)


def all_signs(values):
    """The two-sided p-value from every way to choose the signs."""
    seen = abs(sum(values))
    sums = [abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in signs_of(len(values))]
    return sum(total >= seen for total in sums) / len(sums)


def signs_of(n):
    return list(itertools.product((-1, 1), repeat=n))


@given(st.lists(st.builds(Fraction, st.integers(-8, 8), st.integers(1, 8)), min_size=1, max_size=9))
def test_the_sign_flip_test_is_the_share_of_all_choices_of_signs(values):
    assert report.sign_flip_test(values)[0] == pytest.approx(all_signs(values), abs=1e-12)


@pytest.mark.parametrize(
    "eighths",
    [
        [1, 2, -3, 4, 5, -1, 2],
        [3, 3, 3, 3, 3],
        [0, 0, 1, -1, 0, 4],
        [8, -8, 8, -8, 8, 1],
        [1, 1, 1, -1, -2, -2, 7, 8, 3, 5],
        [-1, -2, -3, -4],
    ],
)
def test_the_sign_flip_test_agrees_with_scipys_permutation_test(eighths):
    reference = stats.permutation_test(
        (np.array(eighths, float),),
        lambda x, axis: np.sum(x, axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    )
    p, exact = report.sign_flip_test([Fraction(value, 8) for value in eighths])
    assert p == pytest.approx(reference.pvalue, abs=1e-12)
    assert exact


@pytest.mark.parametrize(
    ("gained", "lost", "same"),
    [
        (0, 1, 0),
        (0, 6, 24),
        (5, 0, 3),
        (3, 7, 20),
        (4, 4, 0),
        (1, 8, 1),
        (20, 61, 500),
        (0, 30, 0),
        (700, 800, 500),
        (1450, 1550, 10),
    ],
)
def test_with_one_sample_of_each_problem_it_is_mcnemars_exact_test(gained, lost, same):
    values = [1] * gained + [-1] * lost + [0] * same
    pairs = [Pair(str(at), Fraction(value < 0), Fraction(value > 0)) for at, value in enumerate(values)]
    expected = stats.binomtest(gained, gained + lost).pvalue
    found = report.difference(pairs, 1)
    assert (found.p, found.test) == (pytest.approx(expected, rel=1e-9), "McNemar's exact test")


def test_where_no_problem_differs_there_is_nothing_to_test():
    assert report.sign_flip_test([Fraction(0)] * 30) == (1.0, True)


@pytest.mark.parametrize("seed", range(4))
def test_random_draws_come_close_to_the_exact_p_value(monkeypatch, seed):
    """Within four standard errors of so many draws; the draws of a seed are always the same."""
    chance = random.Random(seed)
    values = [Fraction(chance.randint(-7, 8), 8) for _ in range(30)]
    expected, exact = report.sign_flip_test(values)
    assert exact
    monkeypatch.setattr(report, "EXACT_WORK", 0)
    drawn, exact = report.sign_flip_test(values)
    assert not exact
    assert abs(drawn - expected) < 4 * math.sqrt(expected * (1 - expected) / report.FLIPS) + 1 / report.FLIPS
    assert report.sign_flip_test(values)[0] == drawn
    pairs = [Pair(str(at), Fraction(0), value) for at, value in enumerate(values)]
    assert report.difference(pairs, 8).test == "sign-flip permutation test, 20000 random draws"


def test_random_draws_never_say_that_something_cannot_be(monkeypatch):
    monkeypatch.setattr(report, "EXACT_WORK", 0)
    assert report.sign_flip_test([*[Fraction(-1)] * 60, Fraction(-1, 2)])[0] == 1 / (report.FLIPS + 1)


@given(differences)
def test_a_p_value_is_a_probability_that_is_not_0(values):
    assert 0 < report.sign_flip_test(values)[0] <= 1


@given(differences, st.data())
def test_neither_order_nor_sign_nor_scale_changes_a_p_value(values, data):
    expected = report.sign_flip_test(values)[0]
    scale = data.draw(st.builds(Fraction, st.integers(1, 9), st.integers(1, 9)))
    assert report.sign_flip_test(data.draw(st.permutations(values)))[0] == expected
    assert report.sign_flip_test([-value for value in values])[0] == expected
    assert report.sign_flip_test([value * scale for value in values])[0] == expected


@given(differences.filter(lambda values: len(set(values)) > 1))
def test_the_interval_of_the_difference_is_students(values):
    numbers = np.array(values, float)
    expected = stats.t.interval(0.95, len(numbers) - 1, loc=numbers.mean(), scale=stats.sem(numbers))
    mean, low, high = report.mean_interval(values)
    assert mean == pytest.approx(numbers.mean(), abs=1e-12)
    assert (low, high) == pytest.approx((max(-1.0, expected[0]), min(1.0, expected[1])), abs=1e-9)


@pytest.mark.parametrize("n", [1, 2, 5, 30, 1000])
@pytest.mark.parametrize("value", [Fraction(0), Fraction(1, 2), Fraction(-1)])
def test_where_every_difference_is_alike_the_interval_is_as_wide_as_wilsons_for_none_of_n(n, value):
    mean, low, high = report.mean_interval([value] * n)
    half = stats.binomtest(0, n).proportion_ci(method="wilson").high
    assert mean == value
    assert (low, high) == pytest.approx((max(-1.0, value - half), min(1.0, value + half)), abs=1e-12)


@given(pair_lists, samples)
def test_the_difference_of_two_runs_is_the_negative_of_that_of_the_runs_exchanged(pairs, k):
    one, other = report.difference(pairs, k), report.difference(swapped(pairs), k)
    assert (one.mean, one.interval.low, one.interval.high) == pytest.approx(
        (-other.mean, -other.interval.high, -other.interval.low), abs=1e-12
    )
    assert (one.p, one.test, shown(one)) == (other.p, other.test, shown(other))
    assert one.detectable == (None if other.detectable is None else pytest.approx(other.detectable, abs=1e-12))


@given(pair_lists, st.data())
def test_the_order_of_the_problems_does_not_change_the_difference(pairs, data):
    one, other = report.difference(pairs, 8), report.difference(data.draw(st.permutations(pairs)), 8)
    assert (one.p, one.test, shown(one)) == (other.p, other.test, shown(other))
    assert (one.mean, one.interval.low, one.interval.high) == pytest.approx(
        (other.mean, other.interval.low, other.interval.high), abs=1e-9
    )


@given(pair_lists, samples)
def test_a_difference_lies_in_its_interval(pairs, k):
    found = report.difference(pairs, k)
    assert -1 <= found.interval.low <= found.mean + 1e-12
    assert found.mean - 1e-12 <= found.interval.high <= 1
    assert found.interval.low < found.interval.high
    assert found.detectable is None or 0 < found.detectable <= 1


@pytest.mark.parametrize("n", [1, 2, 5, 6, 30])
@pytest.mark.parametrize("k", [1, 4])
def test_a_run_does_not_differ_from_itself(n, k):
    found = report.difference([Pair(str(at), Fraction(at % 2), Fraction(at % 2)) for at in range(n)], k)
    assert (found.mean, found.p, shown(found)) == (0, 1, False)
    assert (found.detectable is None) == (n < 6)


@pytest.mark.parametrize(("n", "told"), [(1, False), (2, False), (5, False), (6, True)])
def test_with_fewer_than_six_problems_nothing_can_be_shown(n, told):
    """Even where all of them are lost; of two ways in 2^6 that all go one way, p is 1/32."""
    pairs = [Pair(str(at), Fraction(1), Fraction(0)) for at in range(n)]
    found = report.difference(pairs, 1)
    assert (shown(found), found.detectable is not None) == (told, told)
    assert found.p == 2 / 2**n
    assert worse(pairs) == told


# ---- what is shown, and what could be -----------------------------------------------------------------


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holms_adjustment_is_that_of_its_definition(values):
    """A hypothesis falls at a level when its p-value and all smaller ones are below their share of the level."""
    adjusted = report.holm(values)
    ordered = sorted(values)
    for value, found in zip(values, adjusted, strict=True):
        ranks = range(max(at for at, other in enumerate(ordered) if other == value) + 1)
        assert found == pytest.approx(min(1, max((len(values) - rank) * ordered[rank] for rank in ranks)))
        assert found >= value
    assert report.holm(values[:1]) == values[:1]


@given(pair_lists, st.lists(st.integers(0, 100), min_size=2, max_size=6))
def test_who_is_worse_by_more_than_a_margin_is_so_by_more_than_any_smaller_one(pairs, margins):
    told = [report.beyond(pairs, Fraction(margin, 100)) for margin in sorted(margins)]
    assert told == sorted(told)


@given(pair_lists)
def test_worse_by_more_than_nothing_is_what_is_shown_as_worse(pairs):
    found = report.difference(pairs, 8)
    assert worse(pairs) == (shown(found) and found.mean < 0)
    assert not (worse(pairs) and worse(swapped(pairs)))


def drawn_pairs(chance, chances, drop, k):
    """Two runs over problems with these chances of success, of which run B loses `drop`."""
    before = chance.binomial(k, chances)
    after = chance.binomial(k, np.clip(chances - drop, 0, 1))
    return [
        Pair(str(at), Fraction(int(a), k), Fraction(int(b), k))
        for at, (a, b) in enumerate(zip(before, after, strict=True))
    ]


def test_no_more_than_one_comparison_in_twenty_of_a_model_with_itself_raises_an_alarm():
    """Of 30 problems with 8 samples of each; four standard errors above 5 % are allowed to chance."""
    chance, runs = np.random.default_rng(20260101), 600
    alarms = {"shown": 0, "threshold": 0}
    for _ in range(runs):
        pairs = drawn_pairs(chance, chance.beta(1.2, 0.8, 30), 0, 8)
        alarms["shown"] += shown(report.difference(pairs, 8))
        alarms["threshold"] += worse(pairs)
    limit = 0.05 + 4 * math.sqrt(0.05 * 0.95 / runs)
    assert 0 < alarms["shown"] / runs < limit
    assert alarms["threshold"] / runs < limit


@pytest.mark.parametrize("seen", [0, 0.1])
@pytest.mark.parametrize("k", [1, 4, 8])
def test_a_difference_of_the_size_that_is_called_detectable_is_found_as_often_as_the_document_says(k, seen):
    """30 problems of all difficulties: what comparisons say of themselves is tried out on the same problems."""
    chance, runs = np.random.default_rng(k), 1000
    chances = np.linspace(0.35, 0.95, 30)
    sizes = [report.difference(drawn_pairs(chance, chances, seen, k), k).detectable for _ in range(200)]
    drop = float(np.mean(sizes))
    found = [report.difference(drawn_pairs(chance, chances, drop, k), k) for _ in range(runs)]
    assert 0.65 < sum(shown(each) and each.mean < 0 for each in found) / runs < 0.97


def test_among_several_comparisons_a_difference_has_to_be_larger_to_be_detected():
    pairs = drawn_pairs(np.random.default_rng(1), np.linspace(0.35, 0.95, 30), 0.1, 8)
    sizes = [report.difference(pairs, 8, among).detectable for among in (1, 2, 5)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(("k", "twice"), [(4, 8), (8, 16)])
def test_what_twice_the_samples_would_detect_is_what_they_do_detect(k, twice):
    """On the average over many pairs of runs, to a tenth; the problems differ by more than their samples do."""
    chance = np.random.default_rng(k)
    before, after = np.linspace(0.3, 0.9, 40), np.linspace(0.3, 0.9, 40) + chance.uniform(-0.2, 0.1, 40)

    def found(samples_):
        runs = (chance.binomial(samples_, chances).tolist() for chances in (before, after))
        told = [{"correct": one, "scored": samples_} for one in next(runs)]
        other = [{"correct": one, "scored": samples_} for one in next(runs)]
        pairs = [report.pair_of(str(at), *both) for at, both in enumerate(zip(told, other, strict=True))]
        return report.difference(pairs, samples_)

    said = np.mean([found(k).detectable_twice for _ in range(100)])
    assert said == pytest.approx(np.mean([found(twice).detectable for _ in range(100)]), rel=0.1)


# ---- runs as files --------------------------------------------------------------------------------------

PROMPT = llama_eval.Prompt("json", "{question}")


def save(path, correct, k=4, **more):
    """A state file of a run with so many correct samples of `k` for each problem; None is a sample in error."""
    counts = [each if isinstance(each, list) else [True] * each + [False] * (k - each) for each in correct]
    tasks, states = [], {}
    for at, verdicts in enumerate(counts):
        for sample, right in enumerate(verdicts):
            task = llama_eval.Task(f"d/P-{at}#{sample}", f"P-{at}", sample, f"What is {at}?", str(at))
            verdict = "correct" if right else "incorrect"
            grade = llama_eval.Grade(verdict, str(at if right else at + 900), "json", "regex")
            reply = llama_eval.Response("so it is", "", "stop", "tiny", 9, 7, 5.0, 1.25)
            done = llama_eval.TaskState(verdict, grade, reply, "http://127.0.0.1:1", 1)
            failed = llama_eval.TaskState("error", attempts=3, error="refused")
            tasks.append(task)
            states[task.id] = failed if right is None else done
    known = {"id": path.stem, "dataset": {"name": "d", "source": "d.jsonl", "sha256": "0" * 64}, "prompt": PROMPT}
    known |= {"sampling": llama_eval.Sampling(), "grader": {"name": "regex"}, "model": "tiny"}
    known |= {"created": "2026-01-02T03:04:05+00:00", "updated": "2026-01-02T03:14:05+00:00"}
    state = llama_eval.EvalState(**known | more, tasks=tasks, task_states=states)
    path.write_text("".join(llama_eval.state_to_json(state, "none")), "utf-8")


def row(stdout, name):
    """The text of a row of the console's output."""
    (found,) = [line[len(name) :].strip() for line in stdout.splitlines() if re.match(rf"{re.escape(name)}  ", line)]
    return found


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """A folder with two real runs against the simulator: full.json is right in 90 % of samples, q4.json in 60 %."""
    folder = tmp_path_factory.mktemp("runs")
    kept = clean_environment(tmp_path_factory.mktemp("home"))
    for name, rate in (("full", 0.9), ("q4", 0.6)):
        options = ["--simulate", rate, "--dataset", "practice", "--samples", 4, "--seed", 1, "--output", f"{name}.json"]
        command = [sys.executable, str(EVAL), *map(str, options)]
        subprocess.run(command, cwd=folder, env=kept, check=True, capture_output=True, timeout=DEADLINE)
    return folder


BOTH = "On these problems {0} is worse than A. On new problems, too, {0} is worse than A."


def test_two_real_runs_are_compared(simulated):
    done = compare("full.json", "q4.json", cwd=simulated)
    assert (done.returncode, done.stderr) == (0, "")
    assert row(done.stdout, "A").startswith("full (simulator): 90.0 %")
    assert row(done.stdout, "B").startswith("q4 (simulator): 60.0 %")
    assert row(done.stdout, "B − A") == "−30.0 points"
    assert "p < 0.0001 (sign-flip permutation test, exact)" in row(done.stdout, "on new")
    assert "p < 0.0001 (within-problem permutation test, exact)" in row(done.stdout, "on these")
    assert row(done.stdout, "verdict") == BOTH.format("B")
    whole = r"( \(about \d+\.\d points where whole problems are lost\))?"
    smallest = (
        rf"about \d+\.\d points on these problems and about \d+\.\d points on new problems{whole}, with a power of 80 %"
    )
    assert re.fullmatch(smallest, row(done.stdout, "detectable"))
    assert " of 30 problems" in row(done.stdout, "flipped")
    assert "WARNING" not in done.stdout
    assert not list(simulated.glob("*.html"))


def server(**params):
    """The description of itself by a llama-server with these defaults."""
    defaults = {"n_ctx": 4096, "params": {"temperature": 0.800000011920929, "seed": 1, **params}}
    props = {"build_info": f"b{len(params)}", "chat_template": "{{ m }}", "default_generation_settings": defaults}
    return llama_eval.Endpoint("http://127.0.0.1:1", 1, props=props)


@pytest.mark.parametrize(
    ("before", "after", "warned"),
    [
        (server(), server(), []),
        (server(), server(temperature=0.8, seed=2), []),
        (server(), server(temperature=0.6), ["server differs: default temperature was 0.8, is 0.6"]),
        (server(mirostat=0), server(mirostat=2), ["server differs: default mirostat was 0, is 2"]),
        (
            server(),
            llama_eval.Endpoint("http://127.0.0.1:1", 1),
            ["what one of the servers does by default is not known"],
        ),
    ],
)
def test_servers_that_do_other_things_by_default_are_warned_of(tmp_path, before, after, warned):
    save(tmp_path / "a.json", [4, 2, 1], endpoints=[before])
    save(tmp_path / "b.json", [4, 2, 1], endpoints=[after])
    told = [line for line in compare("a.json", "b.json", cwd=tmp_path).stdout.splitlines() if "WARNING" in line]
    assert [line.split(": ", 1)[1].split(":" if "not known" in line else "\n")[0] for line in told] == warned


def test_what_a_run_asks_for_itself_is_not_left_to_the_server(tmp_path):
    sampling = llama_eval.Sampling(temperature=0.6, extra_body={"mirostat": 0})
    for name, endpoint in (("a", server()), ("b", server(temperature=1.5, mirostat=2))):
        save(tmp_path / f"{name}.json", [4, 2, 1], endpoints=[endpoint], sampling=sampling)
    assert "WARNING" not in compare("a.json", "b.json", cwd=tmp_path).stdout


def test_the_figures_of_a_comparison_are_those_of_the_states(simulated):
    states = [json.loads((simulated / name).read_text("utf-8")) for name in ("full.json", "q4.json")]
    before, after = ({entry["problem"]: entry["score"] for entry in state["problems"]} for state in states)
    values = np.array([after[name] - before[name] for name in before])
    interval = stats.t.interval(0.95, len(values) - 1, loc=values.mean(), scale=stats.sem(values))
    done = compare("full.json", "q4.json", "--csv", cwd=simulated)
    (told,) = csv.DictReader(io.StringIO(done.stdout))
    assert float(told["difference"]) == pytest.approx(values.mean())
    assert (float(told["low"]), float(told["high"])) == pytest.approx(interval)
    assert [float(told[f"score_{run}"]) for run in "ab"] == [state["summary"]["accuracy"] for state in states]
    assert (told["a"], told["b"], told["problems"], told["shown"]) == ("full.json", "q4.json", "30", "yes")


def test_terminal_csv_markdown_and_page_tell_the_same(simulated, tmp_path):
    page = tmp_path / "page.html"
    done = compare("full.json", "q4.json", "--output", page, cwd=simulated)
    (told,) = csv.DictReader(io.StringIO(compare("full.json", "q4.json", "--csv", cwd=simulated).stdout))
    markdown = compare("full.json", "q4.json", "--markdown", cwd=simulated).stdout
    written = html.unescape(re.sub(r"<[^>]*>", "", page.read_text("utf-8")))
    assert done.stdout.splitlines()[-1] == str(page)
    for text in ("−30.0 points", row(done.stdout, "verdict"), "p < 0.0001", "sign-flip permutation test, exact"):
        assert text in written
        assert text in done.stdout
    assert f"{100 * float(told['difference']):+.1f}".replace("-", "−") == "−30.0"
    low, high = (f"{100 * float(told[end]):+.1f}".replace("-", "−") for end in ("low", "high"))
    assert f"95 % interval {low} to {high} points" in done.stdout
    assert f"95 % interval {low} to {high} points" in written
    assert f"about {100 * float(told['detectable']):.1f} points on new problems" in done.stdout
    assert f"detectableabout {100 * float(told['detectable']):.1f} points" in written
    assert f"{100 * float(told['score_a']):.1f} %" in markdown
    assert markdown.count("\n") == 3


def test_the_problems_of_a_comparison_are_a_table(simulated):
    done = compare("full.json", "q4.json", "--csv", "--rows", "problem", cwd=simulated)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    state = json.loads((simulated / "q4.json").read_text("utf-8"))
    assert [row_["problem"] for row_ in rows] == [entry["problem"] for entry in state["problems"]]
    assert [float(row_["score_b"]) for row_ in rows] == [entry["score"] for entry in state["problems"]]
    assert all(float(r["difference"]) == float(r["score_b"]) - float(r["score_a"]) for r in rows)


def test_a_run_compared_with_itself_shows_no_difference(simulated):
    done = compare("full.json", "full.json", cwd=simulated)
    assert done.returncode == 0
    assert "p = 1 (sign-flip permutation test, exact)" in row(done.stdout, "on new")
    assert "p = 1 (within-problem permutation test, exact)" in row(done.stdout, "on these")
    assert row(done.stdout, "B − A") == "+0.0 points"
    unknown = "On new problems no difference is shown, which does not mean that there is none"
    assert row(done.stdout, "verdict").startswith(f"On these problems no difference is shown. {unknown}")
    assert row(done.stdout, "flipped") == "none of 30 problems"
    assert compare("full.json", "full.json", "--threshold", 0, cwd=simulated).returncode == 0


@pytest.mark.parametrize(
    ("runs", "threshold", "code"),
    [
        (("full.json", "q4.json"), 5, 4),
        (("full.json", "q4.json"), "5%", 4),
        (("full.json", "q4.json"), 0, 4),
        (("full.json", "q4.json"), 30, 0),
        (("full.json", "q4.json"), 100, 0),
        (("q4.json", "full.json"), 5, 0),
        (("q4.json", "full.json"), 0, 0),
        (("full.json", "full.json", "q4.json"), 5, 4),
    ],
)
def test_the_exit_status_is_4_where_a_run_is_beyond_doubt_worse_by_more_than_the_threshold(
    simulated, runs, threshold, code
):
    done = compare(*runs, "--threshold", threshold, cwd=simulated)
    assert done.returncode == code
    last = "BC"[len(runs) - 2]
    limit = float(str(threshold).rstrip("%"))
    told = f"{last} is worse than A by more than {limit:.1f} points on these problems, beyond doubt: q4.json\n"
    assert done.stderr == (told if code else "")


def test_an_undecided_difference_is_no_reason_to_fail(tmp_path):
    save(tmp_path / "a.json", [4, 4, 4, 4, 2, 2, 1, 1, 0, 3])
    save(tmp_path / "b.json", [3, 4, 4, 4, 2, 1, 1, 2, 0, 2])
    done = compare("a.json", "b.json", "--threshold", 0, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert row(done.stdout, "B − A").startswith("−5.0 points")
    detectable = re.search(r"(about \d+\.\d points) on new", row(done.stdout, "detectable"))[1]
    assert f"one of {detectable} in four of five cases" in row(done.stdout, "verdict")


def test_of_several_runs_one_that_is_in_doubt_among_so_many_is_no_reason_to_fail(tmp_path):
    """The p-value of each is 1/32; of two, either is below 5 % by chance alone nearly twice as often."""
    save(tmp_path / "a.json", [4] * 10)
    for name in "bc":
        save(tmp_path / f"{name}.json", [3] * 6 + [4] * 4)
    assert compare("a.json", "b.json", "--threshold", 0, cwd=tmp_path).returncode == 4
    done = compare("a.json", "b.json", "c.json", "--threshold", 0, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "among so many it is not beyond doubt" in done.stdout
    assert "is worse than A" not in done.stdout


def test_the_threshold_holds_for_every_run_however_many_there_are(simulated):
    same = ["full.json"] * 27
    done = compare(*same, "q4.json", "--threshold", 5, cwd=simulated)
    verdicts = re.findall("^verdict .*", done.stdout, re.MULTILINE)
    assert len(verdicts) == 27
    assert verdicts[-1].endswith(BOTH.format("AB"))
    assert (done.returncode, done.stderr.split()[0]) == (4, "AB")


def test_three_runs_are_two_comparisons_with_p_values_adjusted_for_their_number(tmp_path):
    save(tmp_path / "a.json", [4] * 10)
    save(tmp_path / "b.json", [3] * 6 + [4] * 4)
    save(tmp_path / "c.json", [2] * 8 + [4] * 2)
    done = compare("a.json", "b.json", "c.json", cwd=tmp_path)
    first, second = re.findall(r"^on new .*", done.stdout, re.MULTILINE)
    assert "Holm" not in first, "the larger of the two stays as it is"
    (p, adjusted) = re.search(r"; p = (\S+), (\S+) after Holm", second).groups()
    assert (float(p), float(adjusted)) == pytest.approx((1 / 128, 2 / 128), rel=0.05)
    assert row(done.stdout, "C").startswith("c (tiny): ")
    table = list(csv.DictReader(io.StringIO(compare("a.json", "b.json", "c.json", "--csv", cwd=tmp_path).stdout)))
    assert [(told["b"], float(told["p"]), float(told["p_holm"])) for told in table] == [
        ("b.json", 1 / 32, 1 / 32),
        ("c.json", 1 / 128, 2 / 128),
    ]
    verdicts = [line for line in done.stdout.splitlines() if line.startswith("verdict")]
    assert [line.split(maxsplit=1)[1] for line in verdicts] == [BOTH.format("B"), BOTH.format("C")]


def test_the_problems_that_flipped_are_named_with_what_was_answered(tmp_path):
    save(tmp_path / "a.json", [4, 3, 1, 0, 4, 2])
    save(tmp_path / "b.json", [1, 3, 4, 0, 3, 4])
    done = compare("a.json", "b.json", cwd=tmp_path)
    assert row(done.stdout, "flipped") == "2 of 6 problems (1 lost, 1 gained), 2 more with another score"
    assert "lost   P-0: expected 0; 0 x 4 -> 900 x 3, 0\n" in done.stdout
    assert "gained P-2: expected 2; 902 x 3, 2 -> 2 x 4\n" in done.stdout


def test_runs_of_different_datasets_are_not_compared(tmp_path):
    save(tmp_path / "a.json", [4] * 6)
    save(tmp_path / "b.json", [4] * 6, dataset={"name": "e", "source": "e.jsonl", "sha256": "1" * 64})
    complaint = refused(compare("a.json", "b.json", cwd=tmp_path), 1)
    assert "a.json and b.json cannot be compared: they are of the datasets d and e" in complaint


def test_runs_without_a_problem_in_common_that_has_verdicts_are_not_compared(tmp_path):
    save(tmp_path / "a.json", [[None, None], [True, False]])
    save(tmp_path / "b.json", [[True, True], [None, None]])
    assert "no problem has verdicts in both" in refused(compare("a.json", "b.json", cwd=tmp_path), 1)


# ---- what makes runs less comparable ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({"dataset": {"name": "d", "source": "d.jsonl", "sha256": "1" * 64}}, "the rows of the dataset differ"),
        ({"prompt": llama_eval.Prompt("boxed", "{question}")}, "prompt differs: answer format was json, is boxed"),
        ({"prompt": llama_eval.Prompt("json", "{question}", "Hm.")}, "prompt differs: system was not set, is Hm."),
        ({"sampling": llama_eval.Sampling(temperature=1.0)}, "sampling differs: temperature was not set, is 1.0"),
        ({"grader": {"name": "llm"}}, "grader differs: name was regex, is llm"),
        ({"k": 8}, "A has 4 samples of a problem, B 8"),
        ({"correct": [2] * 5}, "1 problems of A are not in the other run: left out"),
        ({"correct": [2] * 9}, "3 problems of B are not in the other run: left out"),
        ({"correct": [[True, None, False, None], 1, 2, 3, 4, 0]}, "2 tasks of B have no verdict"),
        ({"correct": [[None] * 4, 1, 2, 3, 4, 0]}, "4 tasks of B have no verdict"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_makes_runs_less_comparable_is_warned_about(tmp_path, change, warning):
    save(tmp_path / "a.json", [2] * 6)
    save(tmp_path / "b.json", **{"correct": [2] * 6, **change})
    done = compare("a.json", "b.json", "-o", "page.html", cwd=tmp_path)
    assert done.returncode == 0
    assert f"WARNING: {warning}\n" in done.stdout
    assert done.stdout.count("WARNING") == 1
    assert f'<p class="warning">{html.escape(warning)}</p>' in (tmp_path / "page.html").read_text("utf-8")
    (told,) = csv.DictReader(io.StringIO(compare("a.json", "b.json", "--csv", cwd=tmp_path).stdout))
    assert told["warnings"] == warning


def test_a_problem_whose_row_differs_is_left_out(tmp_path):
    save(tmp_path / "a.json", [4] * 7)
    save(tmp_path / "b.json", [4] * 7)
    text = (tmp_path / "b.json").read_text("utf-8")
    (tmp_path / "b.json").write_text(text.replace("What is 3?", "What is three?"), "utf-8")
    done = compare("a.json", "b.json", cwd=tmp_path)
    assert "WARNING: 1 problems have another question or expected answer in the other run: left out" in done.stdout
    assert row(done.stdout, "flipped") == "none of 6 problems"


# The interval on these problems of 24 of 30 with k = 1 is not known; the one on new problems takes its place.
SOME_WRONG = {"k": 4, "correct": [3] * 30}
ONCE = {"k": 1, "correct": [1] * 24 + [0] * 6}
OPEN = {"k": 4, "correct": [[True, True, True, None]] * 30}
CLAIMS = [  # the run, the reference, the tolerance; whether it passes and what is said of it; the exit status
    ({"k": 4}, "90", None, "pass", "supported", 0),
    ({"k": 4}, "99.9", "5%", "pass", "supported", 0),
    (SOME_WRONG, "90", None, "fail", "ruled out", 4),
    (SOME_WRONG, "80", None, "fail", "neither supported nor ruled out", 0),
    (SOME_WRONG, "80", "10%", "pass", "neither supported nor ruled out", 0),
    (ONCE, "80", "0%", "pass", "neither supported nor ruled out", 0),
    (ONCE, "50", None, "pass", "supported", 0),
    (ONCE, "95 %", None, "fail", "ruled out", 4),
    (OPEN, "90", None, "undecided", "neither supported nor ruled out", 0),
    (OPEN, "50", None, "pass", "supported", 0),
]


# ---- references ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CLAIMS)
def test_a_run_is_held_against_a_reference(tmp_path, case):
    run, reference, tolerance, word, says, code = case
    save(tmp_path / "a.json", **{"correct": [4] * 30, **run})
    done = compare("a.json", "--reference", reference, *(["--tolerance", tolerance] if tolerance else []), cwd=tmp_path)
    assert done.returncode == code
    told = row(done.stdout, "reference")
    assert told.startswith(f"a (tiny): {word}: ")
    assert f"; {says}: the 95 % " in told
    summary = json.loads((tmp_path / "a.json").read_text("utf-8"))["summary"]
    kind = "on_new_problems" if run["k"] == 1 else "on_these_problems"
    low, high = (f"{100 * summary['intervals'][kind][end]:.1f} %" for end in ("low", "high"))
    assert told.endswith(f"the 95 % interval {kind.replace('_', ' ')}, {low} to {high}")
    ratio = summary["accuracy"] / (float(reference.removesuffix("%")) / 100)
    assert f"is {ratio:.3f} of the reference" in told
    assert done.stderr == ("a.json misses the reference beyond doubt\n" if code else "")


def test_claims_are_a_table_too(simulated):
    done = compare("full.json", "q4.json", "--csv", "--reference", 90, cwd=simulated)
    assert (done.returncode, done.stderr) == (4, "q4.json misses the reference beyond doubt\n")
    told = [entry for entry in csv.DictReader(io.StringIO(done.stdout)) if entry["result"]]
    assert [(row_["file"], row_["result"], row_["claim"]) for row_ in told] == [
        ("full.json", "pass", "neither supported nor ruled out"),
        ("q4.json", "fail", "ruled out"),
    ]
    assert [float(row_["ratio"]) for row_ in told] == pytest.approx([1, 2 / 3])


@pytest.mark.parametrize(
    ("correct", "of", "reference", "tolerance"), [(1, 25, 5, 20), (9, 100, 10, 10), (9, 240, 5, 25), (19, 25, 80, 5)]
)
def test_an_accuracy_that_just_reaches_the_bar_passes(tmp_path, correct, of, reference, tolerance):
    """A share of a percentage is often no binary number; what is exactly enough must not fail for that."""
    assert Fraction(reference, 100) * (1 - Fraction(tolerance, 100)) == Fraction(correct, of)
    save(tmp_path / "a.json", [1] * correct + [0] * (of - correct), k=1)
    done = compare("a.json", "--reference", reference, "--tolerance", f"{tolerance}%", cwd=tmp_path)
    assert row(done.stdout, "reference").startswith("a (tiny): pass: ")


def test_a_run_without_a_verdict_is_not_held_against_a_reference(tmp_path):
    save(tmp_path / "a.json", [[None, None]])
    assert "none of its tasks has a verdict" in refused(compare("a.json", "--reference", 90, cwd=tmp_path), 1)


# ---- what is refused ----------------------------------------------------------------------------------


def test_the_page_of_a_comparison_replaces_nothing_but_a_page(simulated, tmp_path):
    (tmp_path / "notes.html").write_text("mine", "utf-8")
    for output in (tmp_path / "notes.html", simulated / "q4.json"):
        before = output.read_bytes()
        done = compare("full.json", "q4.json", "-o", output, cwd=simulated)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert output.read_bytes() == before
    for _ in range(2):
        assert compare("full.json", "q4.json", "-o", tmp_path / "page.html", cwd=simulated).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.html", "page.html"]


def test_a_table_of_a_comparison_does_not_replace_the_state_of_a_run(simulated, tmp_path):
    other = tmp_path / "other.json"
    save(other, [4] * 6)
    for output in (simulated / "q4.json", other):
        before = output.read_bytes()
        done = compare("full.json", "q4.json", "--csv", "-o", output, cwd=simulated)
        assert output.read_bytes() == before
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["full.json"],
        ["full.json", "--csv", "--rows", "problem", "--reference", "90"],
        ["full.json", "q4.json", "--output", "page.html", "--rows", "problem"],
        ["full.json", "q4.json", "--reference", "0.9"],
        ["full.json", "q4.json", "--threshold", "-5"],
        ["full.json", "q4.json", "--threshold", "many"],
        ["full.json", "q4.json", "--threshold", "nan"],
        ["full.json", "q4.json", "--threshold", "101"],
        ["full.json", "q4.json", "--threshold", "1/0"],
        ["full.json", "q4.json", "--threshold"],
        ["full.json", "q4.json", "--reference", "0"],
        ["full.json", "q4.json", "--reference", "inf"],
        ["full.json", "q4.json", "--tolerance", "5%"],
        ["full.json", "q4.json", "--reference", "90", "--tolerance", "5"],
        ["full.json", "q4.json", "--reference", "90", "--tolerance", "101%"],
        ["full.json", "q4.json", "--csv", "--markdown"],
        ["full.json", "q4.json", "--rows", "task"],
        ["full.json", "q4.json", "--watch"],
        ["full.json", "q4.json", "--unheard-of"],
    ],
    ids=" ".join,
)
def test_a_command_line_that_makes_no_sense_is_told_in_one_line(simulated, arguments):
    refused(compare(*arguments, cwd=simulated), 2)


@pytest.mark.parametrize("number", ["1e-999999999", "1e999999999"])
def test_a_number_of_many_digits_is_dealt_with_at_once(simulated, number):
    command = [sys.executable, str(REPORT), "compare", "full.json", "q4.json", "--threshold", number]
    done = subprocess.run(command, cwd=simulated, capture_output=True, text=True, timeout=DEADLINE / 6)
    assert done.returncode in (2, 4)
    assert "Traceback" not in done.stderr


def test_a_run_of_many_problems_is_held_against_a_threshold_in_seconds():
    """As many as MMLU has, of which one in ten differs; within the deadline of every test, and not in minutes."""
    chance = random.Random(0)
    values = chance.choices([Fraction(-1), Fraction(0), Fraction(1)], [6, 90, 4], k=14_042)
    program = f"""
import sys
from fractions import Fraction
sys.path.insert(0, {str(REPORT.parent / "tests")!r})
from scripts import REPORT, load
values = {[int(value) for value in values]!r}
pairs = [load(REPORT).Pair("", Fraction(max(0, -v)), Fraction(max(0, v))) for v in values]
print(load(REPORT).beyond(pairs, Fraction(1, 100)) < 0.05)
"""
    done = subprocess.run([sys.executable, "-"], input=program, capture_output=True, text=True, timeout=DEADLINE / 4)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_what_states_hold_cannot_control_the_terminal(tmp_path):
    for name, correct in (("a", [4, 4, 4]), ("b", [0, 4, 4])):
        save(tmp_path / f"{name}.json", correct)
        data = json.loads((tmp_path / f"{name}.json").read_text("utf-8"))
        data["model"] = "m\x1b]0;x\x07"
        data["sampling"]["extra_body"] = {"x\x1b[2J": name}
        (tmp_path / f"{name}.json").write_text(json.dumps(data), "utf-8")
    done = compare("a.json", "b.json", cwd=tmp_path)
    assert "WARNING" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


def counted(a, b, n, m):
    """A problem of which `a` of `n` samples are correct in A, and `b` of `m` in B."""
    sides = [{"correct": correct, "scored": size} for correct, size in ((a, n), (b, m))]
    return report.pair_of("", *sides)


def enumerated(pairs):
    """The p-value on these problems, by going through all ways to deal out the samples of each problem."""
    ways = []
    for pair in pairs:
        n, m = pair.sizes
        correct = int(pair.before * n + pair.after * m)
        samples = [1] * correct + [0] * (n + m - correct)
        deals = []
        for chosen in itertools.combinations(range(n + m), m):
            mine = sum(samples[at] for at in chosen)
            deals.append(Fraction(mine, m) - Fraction(correct - mine, n))
        ways.append(deals)
    seen = abs(sum(pair.after - pair.before for pair in pairs))
    totals = [abs(sum(each)) for each in itertools.product(*ways)]
    return sum(total >= seen for total in totals) / len(totals)


@pytest.mark.parametrize("sizes", [(2, 2), (3, 3), (2, 3), (1, 1)])
def test_the_test_on_these_problems_is_that_of_all_ways_to_deal_out_the_samples(sizes):
    chance = random.Random(str(sizes))
    for _ in range(15):
        pairs = [counted(chance.randint(0, sizes[0]), chance.randint(0, sizes[1]), *sizes) for _ in range(3)]
        assert report.within_problem_test(pairs) == pytest.approx(enumerated(pairs), rel=1e-9)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=12))
def test_of_one_problem_it_is_fishers_exact_test_of_the_difference(rows):
    a, b = rows[0]
    pair = counted(a, b, 8, 8)
    shares = [stats.hypergeom.pmf(mine, 16, a + b, 8) for mine in range(9)]
    expected = sum(p for mine, p in enumerate(shares) if abs(2 * mine - a - b) >= abs(b - a))
    assert report.within_problem_test([pair]) == pytest.approx(min(1, expected), rel=1e-9)


def test_problems_that_are_lost_are_a_loss_on_these_problems_and_too_few_for_new_ones(tmp_path):
    save(tmp_path / "a.json", [16] * 25 + [8] * 5, k=16)
    save(tmp_path / "b.json", [16] * 20 + [0] * 5 + [8] * 5, k=16)
    done = compare("a.json", "b.json", "--threshold", 3, cwd=tmp_path)
    assert row(done.stdout, "verdict").startswith("On these problems B is worse than A. On new problems no difference")
    assert (done.returncode, "by more than 3.0 points on these problems" in done.stderr) == (4, True)
    assert row(done.stdout, "flipped").startswith("5 of 30 problems (5 lost, 0 gained)")
    assert compare("a.json", "b.json", "--threshold", 3, "--threshold-on", "new", cwd=tmp_path).returncode == 0


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=2, max_size=30))
def test_the_interval_on_these_problems_is_that_of_the_noise_within_them(rows):
    pairs = [counted(a, b, 8, 8) for a, b in rows]
    values = np.array([[float(pair.before), float(pair.after)] for pair in pairs])
    variance = max((values * (1 - values) / 7).sum(), 2 / 64) / len(rows) ** 2
    half = stats.t.ppf(0.975, 14 * len(rows)) * math.sqrt(variance)
    mean = (values[:, 1] - values[:, 0]).mean()
    found = report.on_these_problems(pairs)
    assert found.interval == pytest.approx((max(-1, mean - half), min(1, mean + half)), abs=1e-9)


def planned(folder, correct, loss, k=8):
    save(folder / "run.json", correct, k=k)
    return report.plan(report.read_run(folder / "run.json"), loss)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [0.05, 0.1])
def test_a_plan_has_the_power_that_it_claims(tmp_path, loss):
    """On these problems, by simulation: a loss of the planned size is found in about four of five cases."""
    chances = np.array([0.95] * 10 + [0.7] * 6 + [0.4] * 4)
    found = planned(tmp_path, [round(40 * chance) for chance in chances], loss, k=40)
    chance, k, runs = np.random.default_rng(5), found.these, 250
    lower = chances * (1 - loss / chances.mean())
    shown = 0
    for _ in range(runs):
        a, b = chance.binomial(k, chances).tolist(), chance.binomial(k, lower).tolist()
        pairs = [counted(x, y, k, k) for x, y in zip(a, b, strict=True)]
        these = report.on_these_problems(pairs)
        shown += these.p < 0.05 and these.interval.high < 0
    assert 0.72 < shown / runs < 0.88


def test_a_plan_says_what_more_samples_can_do_and_what_they_cannot(tmp_path):
    told = planned(tmp_path, [8] * 20 + [4] * 6 + [0] * 4, 0.03)
    assert told.known
    assert told.these > 2
    assert told.new >= told.these
    assert told.new_whole is None, "3 points of 30 problems are not one whole problem"
    assert told.more_problems > 100
    larger = planned(tmp_path, [8] * 20 + [4] * 6 + [0] * 4, 0.1)
    assert larger.these < told.these
    once = planned(tmp_path, [1] * 20 + [0] * 10, 0.03, k=1)
    assert not once.known
    assert once.these > told.these


def test_a_plan_is_printed_and_refused_where_there_is_none(tmp_path):
    save(tmp_path / "run.json", [8] * 20 + [4] * 6 + [0] * 4, k=8)
    done = run_report("plan", "run.json", "--detect", 3, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^on these +\d+ samples of each problem in both runs", done.stdout, re.MULTILINE)
    assert re.search(r"no number of samples of these 30 problems, if whole problems are lost: about \d+", done.stdout)
    for points in (0, 99):
        told = run_report("plan", "run.json", "--detect", points, cwd=tmp_path)
        assert (told.returncode, "cannot fall by" in told.stderr) == (1, True)
    assert run_report("plan", "run.json", cwd=tmp_path).returncode == 2


def test_a_comparison_in_markdown_can_be_pasted_and_a_reference_takes_nothing_away(tmp_path):
    save(tmp_path / "a.json", [8] * 30, k=8)
    save(tmp_path / "b.json", [8] * 20 + [2] * 10, k=8)
    done = compare("a.json", "b.json", "--markdown", "--reference", 72, cwd=tmp_path)
    assert "−25.0 points" in done.stdout
    assert "On these problems B is worse than A. On new problems, too, B is worse than A." in done.stdout
    assert "| reference |" in done.stdout
    rows = list(
        csv.DictReader(io.StringIO(compare("a.json", "b.json", "--csv", "--reference", 72, cwd=tmp_path).stdout))
    )
    assert [bool(entry["difference"]) for entry in rows] == [True, False, False]
    assert [bool(entry["reference"]) for entry in rows] == [False, True, True]


def test_whether_loops_are_stopped_is_a_difference_to_warn_of(tmp_path):
    for name, stops in (("a", True), ("b", False)):
        save(tmp_path / f"{name}.json", [4, 4, 4], loop_stop=stops)
    assert "sampling differs: loop stop was true, is false" in compare("a.json", "b.json", cwd=tmp_path).stdout


def test_what_a_threshold_decides_means_nothing_without_one(tmp_path):
    save(tmp_path / "a.json", [4, 4, 4])
    done = compare("a.json", "a.json", "--threshold-on", "new", cwd=tmp_path)
    assert (done.returncode, "what --threshold decides, which is missing" in done.stderr) == (2, True)
