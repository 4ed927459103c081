"""The pages of llama-eval-report.py in a real browser: what a person sees, presses and types, and what may not happen.

`made to` states come from llama-eval's own code, so that their figures are real ones.
"""

import base64
import contextlib
import hashlib
import html
import json
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

import pytest
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.keys import Keys

from browser import prose
from scripts import DEADLINE, EVAL, REPO, REPORT, SHARED, load, run_eval, tasks_of

llama_eval = load(EVAL)
SCREENSHOTS = REPO / "build" / "screenshots"


# ---- states and pages -----------------------------------------------------------------------------------


def response(content, reasoning="", **more):
    """The response of a server, as the state file has it."""
    known = {"finish_reason": "stop", "model": "tiny", "prompt_tokens": 9, "completion_tokens": 7}
    known |= {"tokens_per_second": 5.5, "seconds": 1.25} | more
    return llama_eval.Response(content=content, reasoning=reasoning, **known)


def result(status="correct", content="So it is 70.", reasoning="", answer="70", at=0.0, **more):
    """The state of a task that began so many seconds after midnight; more of it, such as an error, by name."""
    moments = [f"2026-01-02T{int(t // 3600):02}:{int(t // 60 % 60):02}:{t % 60:06.3f}+00:00" for t in (at, at + 1.5)]
    known = {"endpoint": "http://127.0.0.1:8080", "attempts": 1, "started": moments[0], "finished": moments[1]}
    if status in llama_eval.SCORED or status == "ungraded":
        known["response"] = response(content, reasoning)
        silent = status in ("no_answer", "truncated", "ungraded")
        known["grade"] = llama_eval.Grade(status, None if silent else answer, "json", "regex", explanation="as it says")
    if status == "pending":
        known = {}
    return llama_eval.TaskState(status, **known | more)


@dataclass
class Row:
    """A problem with what became of each of its samples."""

    problem: str
    results: list[Any]
    question: str = "What is it?"
    expected: str = "70"


def write_state(path, rows, dataset="made", source="made.jsonl", **more):
    """A state file of these rows; `more` are fields of the EvalState. Texts are escaped, as JSON may have them."""
    known = {"id": "20260102-030405-abcdef", "model": "tiny", "created": "2026-01-02T03:04:05.678+00:00"}
    known |= {
        "updated": "2026-01-02T03:05:05.678+00:00",
        "sampling": llama_eval.Sampling(),
        "grader": {"name": "regex"},
    }
    known["prompt"] = llama_eval.Prompt("json", '{question}\n\nGive {"answer": N}.')
    known["endpoints"] = [llama_eval.Endpoint("http://127.0.0.1:8080", 4)]
    known["dataset"] = {"name": dataset, "source": source, "sha256": "0" * 64}
    tasks = [
        (llama_eval.Task(f"{dataset}/{row.problem}#{number}", row.problem, number, row.question, row.expected), told)
        for row in rows
        for number, told in enumerate(row.results)
    ]
    states = {task.id: told for task, told in tasks}
    state = llama_eval.EvalState(**known | more, tasks=[task for task, _ in tasks], task_states=states)
    path.write_text(json.dumps(json.loads("".join(llama_eval.state_to_json(state, "none")))), "utf-8")
    return path


def report(*arguments, cwd):
    """Run the script to its end, which must be a success; gives the page, which it names in a line."""
    command = [sys.executable, str(REPORT), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, encoding="utf-8", timeout=DEADLINE)
    assert (done.returncode, done.stderr) == (0, "")
    return cwd / next(line for line in reversed(done.stdout.splitlines()) if line.endswith(".html"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def runs(folder):
    """Two real runs of four samples against the simulator: the paths of their states."""

    def run(name, rate):
        options = ("--dataset", "practice", "--samples", 4, "--threads", 4, "--output", name)
        assert run_eval("--simulate", rate, *options, cwd=folder).returncode == 0
        return folder / name

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, ("full.json", "quantised.json"), (0.9, 0.6)))


@pytest.fixture(scope="module")
def run_page(runs, folder):
    return report(runs[0], cwd=folder)


@pytest.fixture(scope="module")
def comparison(runs, folder):
    return report("compare", *runs, "--reference", 50, "--output", "comparison.html", cwd=folder)


@pytest.fixture(params=["run page", "comparison"])
def any_page(request):
    """The page of a real run, then that of a comparison of two."""
    return request.getfixturevalue(request.param.replace(" ", "_"))


def varied_rows():
    """Problems of which each sample became something else."""
    by_rule = llama_eval.Grade("incorrect", "71", "last_number", "regex", confident=False)
    judged = llama_eval.Grade(
        "correct",
        "70",
        "judge",
        "cascade",
        False,
        "the judge read it",
        "the rule said 71",
        "Which?",
        '{"answer": 70}',
        by_rule,
    )
    odd = {
        "judged": result(grade=judged, at=4),
        "wrong": result("incorrect", "It is 12.", answer="12", at=8),
        "silent": result("no_answer", "I do not know.", at=9),
        "cut off": result("truncated", "And then", reasoning="Let me see.", at=400),
        "ungraded": result("ungraded", "Maybe 70.", error="the grader failed", at=402),
        "failed": result("error", error="HTTP 500: out of memory", partial=response("It is", "Hm.")),
        "open": result("pending"),
    }
    rows = [
        Row(name, [result(at=at), told], f"A question about {name} things?")
        for at, (name, told) in enumerate(odd.items())
    ]
    return [*rows, Row("plain", [result(at=7)], "How many elephants are there?", "70")]


@pytest.fixture(scope="module")
def varied(folder):
    return report(write_state(folder / "varied.json", varied_rows()), cwd=folder)


# ---- what a test does with a page -----------------------------------------------------------------------

SHOWN = """
const rows = [...document.querySelectorAll("tr[data-id]")];
return rows.filter((row) => getComputedStyle(row).display !== "none").map((row) => row.dataset.id);
"""


def shown(browser):
    """The tasks in the table that are to be seen."""
    return browser.js(SHOWN)


def dimmed(browser):
    """The tasks whose cells in the grid are pale."""
    pale = 'return [...document.querySelectorAll("a.cell")].filter((c) => getComputedStyle(c).opacity < 1)'
    return set(browser.js(pale + ".map((cell) => cell.dataset.id)"))


def ids(browser):
    """All tasks of the page, in the order of its table."""
    return browser.js('return [...document.querySelectorAll("tr[data-id]")].map((row) => row.dataset.id)')


def text_of(browser):
    """The text that a person sees."""
    return browser.js("return document.body.innerText")


def opened(browser, task):
    """The content of the dialog for a task, which must be the one that is open."""
    told = browser.told()
    assert told is not None
    assert told["title"] == task
    return told["columns"]


def is_closed(browser):
    return browser.told() is None


def wait_until_closed(browser):
    """Wait until there is no dialog any more, and no task in the address."""
    browser.until(
        lambda: is_closed(browser) and not browser.address(), "the dialog is closed, its task not in the address"
    )


def close(browser):
    browser.press(Keys.ESCAPE)
    wait_until_closed(browser)


# ---- nothing but the file -------------------------------------------------------------------------------


def test_a_page_loads_nothing_but_itself_and_has_nothing_to_complain_about(browser, any_page):
    browser.open(any_page)
    for task in ids(browser)[:3]:
        browser.js("location.hash = arguments[0]", "#" + quote(task))
        browser.until(lambda task=task: (browser.told() or {}).get("title") == task, f"{task} is open")
    assert browser.console() == []
    assert browser.requests() == [any_page.as_uri()]


INTRUSIONS = {
    "script": "const s = document.createElement('script'); s.text = 'window.hacked = 1'; document.body.append(s)",
    "foreign script": "const s = document.createElement('script'); s.src = url; document.body.append(s)",
    "handler": "const b = document.createElement('b'); b.setAttribute('onclick', 'window.hacked = 1'); b.click()",
    "image": "const i = document.createElement('img'); i.src = url; document.body.append(i)",
    "style": "const s = document.createElement('style'); s.textContent = '*{color:red}'; document.head.append(s)",
    "style attribute": "document.body.setAttribute('style', `background: url(${url})`)",
    "style sheet": "const l = document.createElement('link'); l.rel = 'stylesheet'; l.href = url; "
    "document.head.append(l)",
    "fetch": "fetch(url).catch(() => {})",
    "beacon": "navigator.sendBeacon(url)",
    "frame": "const f = document.createElement('iframe'); f.src = url; document.body.append(f)",
    "object": "const o = document.createElement('object'); o.data = url; document.body.append(o)",
    "sound": "const a = document.createElement('audio'); a.src = url; document.body.append(a)",
    "form": "const f = document.createElement('form'); f.action = url; document.body.append(f); f.submit()",
    "base": "const b = document.createElement('base'); b.href = url; document.head.append(b)",
    "javascript link": "const a = document.createElement('a'); a.href = 'javascript:window.hacked = 1'; "
    "document.body.append(a); a.click()",
}


NAVIGATIONS = ("frame", "form")  # for which Chromium connects ahead of asking, before it looks at the policy
STOPPED = "window.stopped = []; document.addEventListener('securitypolicyviolation', (e) => stopped.push(e.blockedURI))"


@pytest.mark.parametrize("how", INTRUSIONS)
def test_the_policy_of_a_page_stops_what_has_got_into_it(browser, varied, socket_server, how):
    asked = []
    server = socket_server(lambda connection, body: asked.append(body), lambda connection, path: asked.append(path))
    browser.open(varied)
    browser.js(STOPPED)
    browser.js(f"const url = arguments[0]; {INTRUSIONS[how]}", f"{server.url}/x")
    browser.until(lambda: browser.js("return window.stopped.length"), f"the policy stops the {how}")
    assert browser.js("return window.hacked") is None
    assert asked == []
    assert how in NAVIGATIONS or server.connections == []


def test_the_policy_of_a_page_allows_its_one_style_and_its_one_script_and_nothing_else(any_page):
    text = any_page.read_text("utf-8")
    policy = html.unescape(text.split('http-equiv="Content-Security-Policy" content="')[1].split('"')[0])
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules.pop("default-src") == rules.pop("base-uri") == rules.pop("form-action") == "'none'"
    assert {name: len(value.split()) for name, value in rules.items()} == {"style-src": 1, "script-src": 1}
    assert all(value.startswith("'sha256-") for value in rules.values())


# ---- filters --------------------------------------------------------------------------------------------


def press_status(browser, status):
    browser.click(f"button[data-status={status}]")


def check_filtered(browser, expected):
    """The table, the grid and the counter agree that these tasks are shown."""
    every = ids(browser)
    assert shown(browser) == [task for task in every if task in expected]
    assert dimmed(browser) == set(every) - set(expected)
    assert browser.one("#shown").text == f"{len(expected)} of {len(every)} tasks"


def test_the_buttons_of_the_statuses_show_what_is_of_any_of_them(browser, varied):
    browser.open(varied)
    every = ids(browser)
    check_filtered(browser, every)
    press_status(browser, "incorrect")
    assert browser.one("button[data-status=incorrect]").get_attribute("aria-pressed") == "true"
    check_filtered(browser, ["made/wrong#1"])
    press_status(browser, "truncated")
    check_filtered(browser, ["made/wrong#1", "made/cut off#1"])
    press_status(browser, "incorrect")
    check_filtered(browser, ["made/cut off#1"])
    press_status(browser, "truncated")
    check_filtered(browser, every)


def test_every_status_has_a_button_that_shows_its_tasks(browser, varied):
    browser.open(varied)
    pairs = browser.js(
        'return [...document.querySelectorAll("tr[data-id]")].map((r) => [r.dataset.id, r.dataset.status])'
    )
    status_of = dict(pairs)
    assert set(status_of.values()) == set(llama_eval.STATUSES)
    for status in llama_eval.STATUSES:
        press_status(browser, status)
        mine = [task for task, given in status_of.items() if given == status]
        check_filtered(browser, mine)
        assert browser.one(f"button[data-status={status}]").text.split()[1] == str(len(mine))
        press_status(browser, status)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("12", ["made/wrong#1"]),  # and not all that are of 127.0.0.1
        ("made/plain#0", ["made/plain#0"]),
        ("  ELEPHANTS ", ["made/plain#0"]),
        ("about silent", ["made/silent#0", "made/silent#1"]),
        ("no such thing", []),
    ],
)
def test_a_search_finds_answers_tasks_and_words_of_questions(browser, varied, text, found):
    browser.open(varied)
    browser.search(text)
    check_filtered(browser, found)
    browser.press(Keys.ESCAPE)
    assert browser.one("input[type=search]").get_attribute("value") == ""
    check_filtered(browser, ids(browser))


def test_a_search_finds_nothing_that_only_two_columns_together_make(browser, folder):
    rows = [Row("a", [result("incorrect", answer="12")], expected="34"), Row("b", [result(answer="23")], expected="23")]
    browser.open(report(write_state(folder / "columns.json", rows), cwd=folder))
    browser.search("23")
    check_filtered(browser, ["made/b#0"])


def test_a_search_and_a_status_together_show_what_both_do(browser, varied):
    browser.open(varied)
    browser.search("things")
    press_status(browser, "error")
    press_status(browser, "no_answer")
    check_filtered(browser, ["made/silent#1", "made/failed#1"])
    browser.search("failed")
    check_filtered(browser, ["made/failed#1"])


# ---- opening a task -------------------------------------------------------------------------------------


def test_a_task_opens_from_the_grid_the_table_and_the_timeline(browser, varied):
    browser.open(varied)
    for place in ("a.cell", "tr[data-id] a", "svg a"):
        for link in browser.all(place)[:20:3]:
            task = browser.js("return decodeURIComponent(arguments[0].getAttribute('href').slice(1))", link)
            browser.js("arguments[0].scrollIntoView({block: 'center'})", link)
            (link.find_element("css selector", "rect") if place == "svg a" else link).click()
            opened(browser, task)
            close(browser)


def test_a_task_is_shown_with_everything_that_is_known_of_it(browser, varied):
    browser.open(varied, "#made/judged#1")
    (told,) = opened(browser, "made/judged#1")
    assert told["facts"] == {
        "status": "✓ correct",
        "answer": "70",
        "expected": "70",
        "found by": "judge",
        "confident": "no",
        "explanation": "the judge read it",
        "graded by": "cascade",
        "by rule": "incorrect, 71 (last_number)",
        "to be reviewed": "the rule said 71",
        "finish reason": "stop",
        "tokens": "7",
        "tokens/s": "5.5",
        "seconds": "1.25",
        "attempts": "1",
        "endpoint": "http://127.0.0.1:8080",
        "finished": "2026-01-02 00:00:05 UTC",
    }
    question = "A question about judged things?"
    assert told["texts"] == {
        "response": "So it is 70.",
        "prompt": question + '\n\nGive {"answer": N}.',
        "what the judge was asked": "Which?",
        "what the grader replied": '{"answer": 70}',
    }
    assert browser.one("dialog .question").text == question
    assert browser.one("dialog pre").text == "So it is 70."


def test_a_task_without_a_response_is_shown_with_what_had_arrived_and_why_it_failed(browser, varied):
    browser.open(varied, "#made/failed#1")
    (told,) = opened(browser, "made/failed#1")
    assert told["facts"]["error"] == "HTTP 500: out of memory"
    assert told["texts"]["what had arrived before a failure"] == "Hm.\n\nIt is"
    browser.open(varied, "#made/open#1")
    (told,) = opened(browser, "made/open#1")
    assert told["facts"] == {"status": "· pending", "expected": "70"}
    assert list(told["texts"]) == ["prompt"]


def test_a_task_of_a_comparison_is_shown_with_the_responses_of_both_runs(browser, comparison, runs):
    states = [json.loads(path.read_text("utf-8")) for path in runs]
    browser.open(comparison)
    tasks = ids(browser)
    assert tasks
    for task in (tasks[0], tasks[-1]):
        browser.open(comparison, "#" + quote(task))
        columns = opened(browser, task)
        assert [column["title"] for column in columns] == ["full (simulator)", "quantised (simulator)"]
        for state, column in zip(states, columns, strict=True):
            given = state["task_states"][task]
            assert column["texts"]["response"] == given["response"]["content"]
            assert column["facts"]["answer"] == given["grade"]["answer"]


def test_every_task_of_a_real_run_is_shown_as_it_is_in_the_state(browser, run_page, runs):
    state = json.loads(runs[0].read_text("utf-8"))
    told = json.loads(browser_details(browser, run_page))
    assert len(told) == len(state["tasks"]) == 120
    for task in tasks_of(state):
        given, (column,) = state["task_states"][task["id"]], told[task["id"]]
        facts, texts = dict(column["facts"]), {title: text for title, text, *_ in column["texts"]}
        assert texts["response"] == given["response"]["content"]
        assert texts["prompt"] == state["prompt"]["template"].replace("{question}", task["question"])
        assert (facts["expected"], facts["answer"]) == (task["expected"], given["grade"]["answer"])
        assert facts["found by"] == given["grade"]["method"]


def browser_details(browser, page):
    """The details that the page's script reads of each task, as JSON."""
    browser.open(page)
    every = "Promise.all(rows.map(async (row) => [row.dataset.id, await details(row)]))"
    return browser.js(f"return {every}.then((pairs) => JSON.stringify(Object.fromEntries(pairs)))")


ODD_NAMES = [
    *(
        "a b",
        "Größe 1",
        "日本語",
        "🙂",
        "e\u0301",
        "it's",
        'quo"ted',
        "<b>",
        "a&b",
        "&amp;",
        "100%",
        "50%25",
        "%",
        "%zz",
    ),
    *("x#1", "#", "a+b", "a?b=c", "a/b", "../..", "\\", "`", "javascript:1", " edge ", "tab\there", "two\nlines"),
    *("constructor", "__proto__", "\u2028", "a;b", "[1]", "{}", "~", "|", "^", "$&", "$1"),
]


@pytest.fixture(scope="module")
def oddly_named(folder):
    rows = [Row(name, [result(content=f"This is {name}.")], f"What is {name}?") for name in ODD_NAMES]
    return report(write_state(folder / "ödd & 100% #1 näme.json", rows, 'söme "set" <1> & 5% #2'), cwd=folder)


def odd_task(name):
    return f'söme "set" <1> & 5% #2/{name}#0'


# Chromium lets a page change its address 200 times in ten seconds, so that each page gets some of the names.
@pytest.mark.parametrize("part", range(3))
def test_a_task_of_any_name_opens_by_its_address_and_has_links_to_it(browser, oddly_named, part):
    browser.open(oddly_named)
    links = browser.js("return [...document.querySelectorAll('a.cell')].map((link) => link.getAttribute('href'))")
    for link, name in list(zip(links, ODD_NAMES, strict=True))[part::3]:
        task = odd_task(name)
        browser.js("location.hash = arguments[0]", "#" + quote(task, safe=""))
        browser.until(browser.told, f"{name!r} is open")
        assert opened(browser, task)[0]["texts"]["response"] == f"This is {name}."
        assert browser.one("dialog .question").get_property("textContent") == f"What is {name}?"
        assert unquote(browser.address()) == unquote(link) == f"#{task}"
        close(browser)


@pytest.mark.parametrize("name", ["a b", "Größe 1", 'quo"ted', "<b>", "&amp;", "50%25", "#"])
def test_a_page_opened_at_the_address_of_a_task_shows_it(browser, oddly_named, name):
    browser.open(oddly_named, "#" + quote(odd_task(name), safe=""))
    opened(browser, odd_task(name))
    address = browser.address()
    browser.open(oddly_named, address)  # as a person copies it
    opened(browser, odd_task(name))
    close(browser)
    browser.js("document.querySelectorAll('a.cell')[arguments[0]].click()", ODD_NAMES.index(name))
    opened(browser, odd_task(name))


@pytest.mark.parametrize("fragment", ["#made/plain#0", "#made/plain%230", "#made%2Fplain%230", "#%6dade/plain#0"])
def test_a_link_from_elsewhere_opens_a_task(browser, varied, fragment):
    browser.open(varied, fragment)
    opened(browser, "made/plain#0")


@pytest.mark.parametrize("fragment", ["#", "#nothing", "#made/plain", "#%", "#%ff", "#constructor", "#shown"])
def test_a_link_to_no_task_opens_nothing(browser, varied, fragment):
    browser.open(varied, fragment)
    assert is_closed(browser)
    assert browser.console() == []


def test_a_script_or_the_history_opens_the_task_that_the_address_names(browser, varied):
    browser.open(varied)
    for task in ("made/plain#0", "made/cut off#1"):
        browser.js("location.hash = arguments[0]", "#" + quote(task))
        browser.until(lambda task=task: (browser.told() or {}).get("title") == task, f"{task} is open")
    browser.js("history.back()")
    browser.until(lambda: browser.told()["title"] == "made/plain#0", "the task before is open")


# ---- texts as they were ---------------------------------------------------------------------------------


def every_character():
    """Each character that there is, but for the halves of surrogate pairs."""
    return "".join(map(chr, (*range(0xD800), *range(0xE000, 0x110000))))


def texts_as_they_come():
    """Texts with the name of what is hard about them."""
    chance = random.Random(1)
    return {
        "a megabyte at random": "".join(chr(chance.randrange(32, 127)) for _ in range(1_000_000)),
        "random bytes": chance.randbytes(50_000).decode("latin-1"),
        "random characters": "".join(chr(chance.randrange(1, 0xD800)) for _ in range(3000)),
        "line ends": "a\r\nb\rc\n\nd\r\n\r\n\ue000\u2028e\u2029f\x85g\x0bh\x0c",
        "blanks": "\n\n  \t lead and trail\t \n\n",
        "one line end": "\n",
        "null and controls": "".join(map(chr, range(32))) + "\x7f",
        "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 \U0001f1e9\U0001f1ea",
        "marks of order": "\ufeffstart\u202eright to left\u202c \u200b\u2066",
        "entities": "&amp; &lt;b&gt; &#0; <!-- --> ]]> </script> \\u0041 \\n",
        "runs": "".join("ab"[length % 2] * length for length in range(1, 601)),
        "runs of zero": "\0".join("\0" * length + "x" for length in range(1, 601)),
        "a long run": "z" * 3_000_000,
        "a period": "abcab" * 300_000,
        "prose": prose(1, 500_000),
        "one character": "x",
    }


@pytest.fixture(scope="module")
def exact(folder):
    """A page of texts of all kinds, and the texts."""
    texts = texts_as_they_come()
    rows = [Row(name, [result(content=text, reasoning=text[::-1][:100_000])]) for name, text in texts.items()]
    rows.append(Row("empty", [result("no_answer", "", "")], question="?"))
    rows.append(Row("every character", [result(content=every_character())]))
    return report(write_state(folder / "exact.json", rows), cwd=folder), texts


@pytest.mark.parametrize("name", list(texts_as_they_come()))
def test_a_text_is_shown_as_it_is_to_the_last_byte(browser, exact, name):
    page, texts = exact
    browser.open(page, "#" + quote(f"made/{name}#0"))
    told = opened(browser, f"made/{name}#0")[0]["texts"]
    assert told["response"] == texts[name]
    assert told["reasoning"] == texts[name][::-1][:100_000]


def test_every_character_comes_through(browser, exact):
    browser.open(exact[0])  # a million characters of all scripts at once take a browser a minute to draw
    found = "rows.find((row) => row.dataset.problem === 'every character')"
    read = f"return details({found}).then((told) => told[0].texts[0][1])"
    assert browser.js(read) == every_character()


def test_a_task_with_empty_texts_opens(browser, exact):
    browser.open(exact[0], "#made/empty#0")
    (told,) = opened(browser, "made/empty#0")
    assert list(told["texts"]) == ["prompt"]


UNSHOWN = {"a\ud800b\udc00c": "a\ufffdb\ufffdc", "ab\u202edc": "ab\ufffddc", "bell\a": "bell\ufffd"}


@pytest.mark.parametrize("name", UNSHOWN)
def test_what_a_page_cannot_show_is_replaced_in_names_which_still_open(browser, folder, name):
    told = result("incorrect", name, name, name, error=name, endpoint=name)
    rows = [Row(name, [told], name, name), Row("whole", [result()])]
    page = report(write_state(folder / "unshown.json", rows, model=name), cwd=folder)
    browser.open(page)
    browser.js("document.querySelector('a.cell').click()")
    (column,) = opened(browser, f"made/{UNSHOWN[name]}#0")
    assert column["texts"]["response"] == name.encode("utf-8", "replace").decode()


def test_a_damaged_page_says_so_and_stays_usable(browser, varied, folder):
    text = varied.read_text("utf-8")
    start = text.index(">", text.index('id="block-0"')) + 1
    for number, at in enumerate((0, 40, 100, 300, 600)):
        damaged = folder / f"damaged{number}.html"
        damaged.write_text(text[: start + at] + "AAAA" + text[start + at + 4 :], "utf-8")
        browser.open(damaged, "#made/plain#0")
        assert browser.told()["title"] == "made/plain#0"
        text_shown = browser.one("dialog .columns").text
        assert text_shown.startswith("This task cannot be shown: the file is damaged"), at
        close(browser)


def test_a_task_that_is_unpacked_late_does_not_take_the_place_of_a_later_one(browser, varied):
    browser.open(varied)
    first, last = browser.js("return [rows[0].dataset.id, rows[rows.length - 1].dataset.id]")
    shown = browser.js("return Promise.all(arguments[0].map((id) => open(id))).then(() => true)", [first, last])
    assert shown
    told = browser.told()
    assert (told["title"], len(told["columns"])) == (last, 1)


def test_a_browser_that_cannot_unpack_says_so(browser, varied, folder):
    text = varied.read_text("utf-8")
    without = '"use strict";delete window.DecompressionStream;'
    old = folder / "old-browser.html"
    script = text[text.index("<script>") + len("<script>") : text.index("</script>")]
    changed = script.replace('"use strict";', without, 1)
    hashes = [base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in (script, changed)]
    old.write_text(text.replace(script, changed).replace(html.escape(hashes[0]), html.escape(hashes[1])), "utf-8")
    browser.open(old, "#made/plain#0")
    browser.told()
    assert browser.one("dialog .columns").text == (
        "This task cannot be shown: this browser has no DecompressionStream."
    )
    close(browser)
    browser.search("anything")
    browser.press(Keys.ENTER)
    browser.until(lambda: "cannot search in responses" in browser.one("#shown").text, "the word on searching")


# ---- keyboard -------------------------------------------------------------------------------------------


def test_j_and_k_step_through_the_tasks_that_are_shown_and_stop_at_the_ends(browser, varied):
    browser.open(varied)
    browser.search("about")
    press_status(browser, "no_answer")
    press_status(browser, "error")
    press_status(browser, "incorrect")
    wanted = ["made/wrong#1", "made/silent#1", "made/failed#1"]
    assert shown(browser) == wanted
    for task in (*wanted, wanted[-1], wanted[-1]):
        browser.press("j")
        opened(browser, task)
        browser.until(lambda task=task: unquote(browser.address()) == f"#{task}", f"the address of {task}")
    for task in (wanted[1], wanted[0], wanted[0]):
        browser.press("k")
        opened(browser, task)
    close(browser)
    browser.press("j")
    opened(browser, wanted[1])


def test_the_buttons_of_the_dialog_do_what_the_keys_do(browser, varied):
    browser.open(varied)
    every = ids(browser)
    browser.press("j")
    browser.click("dialog button[data-step='1']")
    opened(browser, every[1])
    browser.click("dialog button[data-step='-1']")
    browser.click("dialog button[data-step='-1']")
    opened(browser, every[0])
    browser.click("dialog button:not([data-step])")
    wait_until_closed(browser)


def test_a_slash_goes_to_the_search_in_which_letters_are_letters(browser, varied):
    browser.open(varied)
    browser.press("/")
    assert browser.js("return document.activeElement.type") == "search"
    browser.press("j", "k", "/")
    assert browser.one("input[type=search]").get_attribute("value") == "jk/"
    assert is_closed(browser)
    browser.press(Keys.ESCAPE)
    browser.press("j")
    opened(browser, ids(browser)[0])


@pytest.mark.parametrize("held", [Keys.CONTROL, Keys.ALT, Keys.META], ids=["control", "alt", "meta"])
def test_keys_of_the_browser_are_left_to_it(browser, varied, held):
    browser.open(varied)
    for key in "jk/":
        browser.js(
            "document.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0], [arguments[1]]: true}))",
            key,
            {Keys.CONTROL: "ctrlKey", Keys.ALT: "altKey", Keys.META: "metaKey"}[held],
        )
    browser.press("j", held=Keys.CONTROL)
    assert is_closed(browser)
    assert browser.js("return document.activeElement === document.body")


def test_a_click_beside_the_dialog_closes_it(browser, varied):
    browser.open(varied, "#made/plain#0")
    browser.js("document.elementFromPoint(2, 2).click()")
    wait_until_closed(browser)


# ---- mathematics ----------------------------------------------------------------------------------------

FORMULAS = """
const scope = document.querySelector(arguments[0]), told = {formulas: 0, flat: [], foreign: [], low: []};
for (const formula of scope.querySelectorAll("math")) {
  const box = formula.getBoundingClientRect();
  told.formulas++;
  if (!(box.width > 0 && box.height > 0)) told.flat.push(formula.textContent);
  for (const element of [formula, ...formula.querySelectorAll("*")])
    if (element.namespaceURI !== "http://www.w3.org/1998/Math/MathML") told.foreign.push(element.tagName);
  for (const fraction of formula.querySelectorAll("mfrac")) {
    const heights = [fraction, ...fraction.children].map((part) => part.getBoundingClientRect().height);
    if (!(heights[0] > heights[1] && heights[0] > heights[2])) told.low.push(fraction.textContent);
  }
}
told.fractions = scope.querySelectorAll("mfrac").length;
return told;
"""


def check_formulas(browser, scope):
    """Every formula there is laid out as one; gives how many there are, and fractions among them."""
    told = browser.js(FORMULAS, scope)
    assert (told["flat"], told["foreign"], told["low"]) == ([], [], [])
    return told["formulas"], told["fractions"]


def open_questions(browser):
    browser.js("for (const part of document.querySelectorAll('details')) part.open = true")


def test_mathematics_is_laid_out_in_the_questions_and_in_the_dialog(browser, run_page):
    browser.open(run_page)
    open_questions(browser)
    formulas, fractions = check_formulas(browser, "main")
    assert formulas > 100
    assert fractions > 0
    assert "$" not in browser.js("return [...document.querySelectorAll('.question')].map((q) => q.textContent).join()")
    where = "return document.querySelector('mfrac').closest('[data-question]').dataset.question"
    browser.open(run_page, "#" + quote(f"practice/{browser.js(where)}#0"))
    formulas, fractions = check_formulas(browser, "dialog")
    assert formulas > 0
    assert fractions > 0


def test_the_mathematics_of_real_questions_is_laid_out(browser, folder):
    paths = [SHARED / "data" / f"aime2025-{part}.jsonl" for part in ("I", "II")]
    if not all(path.is_file() for path in paths):
        pytest.skip(f"the real AIME rows are not at hand: there is no {paths[0]}")
    lines = [json.loads(line) for path in paths for line in path.read_text("utf-8").splitlines()]
    rows = [Row(str(n), [result()], row["question"], str(row["answer"])) for n, row in enumerate(lines)]
    browser.open(report(write_state(folder / "aime.json", rows), cwd=folder))
    open_questions(browser)
    formulas, fractions = check_formulas(browser, "main")
    assert formulas > 200
    assert fractions > 10
    left = browser.js(
        "return [...document.querySelectorAll('.question')].map((q) => q.textContent).filter((t) => /[$]/.test(t))"
    )
    assert left == []
    assert browser.js("return [...document.querySelectorAll('.question code')].map((c) => c.textContent)") == []


# ---- hostile texts --------------------------------------------------------------------------------------

ATTACKS = [
    "<script>window.hacked=1</script>",
    "</script><script>window.hacked=1</script>",
    "<!-- <script>",
    "-->]]>",
    '"><img src=x onerror=window.hacked=1>',
    "'><svg onload=window.hacked=1>",
    "</textarea></title></style></pre></details></dialog><img src=x onerror=window.hacked=1>",
    "[x](javascript:window.hacked=1) javascript:window.hacked=1 <a href=javascript:window.hacked=1>x</a>",
    r"$\href{javascript:window.hacked=1}{x}$ \(\url{javascript:window.hacked=1}\)",
    r"$\text{<img src=x onerror=window.hacked=1>}$ $x < y > z$ $\class{x}{y} \style{color:red}{z}$",
    r"\[ \mbox{</math><script>window.hacked=1</script>} \] $\unicode{<b>} &lt;img src=x onerror=window.hacked=1&gt;$",
    r"$&lt;mtext&gt;&lt;img src=x onerror=window.hacked=1&gt;$ \begin{align}<b>&\cr</b>\end{align}",
    "${window.hacked=1} `${window.hacked=1}` {{window.hacked=1}} <%= 1 %> \\u003cscript\\u003e \\\" \\' \u2028\u2029",
    "&lt;img src=x onerror=window.hacked=1&gt; &#60;script&#62; %3Cscript%3E +ADw-script+AD4-",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=x onerror=window.hacked=1&gt;'>",
    "<base href=http://127.0.0.1/><meta http-equiv=refresh content='0;url=http://127.0.0.1/'>",
    "<link rel=stylesheet href=x><object data=x></object><iframe srcdoc='<script>top.hacked=1</script>'></iframe>",
]
ALL_ATTACKS = "\n".join(ATTACKS)

FOREIGN = """
const known = new Set(`html head meta title style body main header section div span small p b h1 h2 h3 a button input
  dialog script details summary table thead tbody tr th td dl dt dd pre code svg desc line rect text circle g`
  .split(/\\s+/));
const banned = /^(on.*|src|srcset|action|formaction|style|xlink:href|background|ping|data)$/i;
const found = [];
const mathml = "http://www.w3.org/1998/Math/MathML";
for (const element of document.querySelectorAll("*")) {
  const name = element.localName;
  if (element.namespaceURI !== mathml && !known.has(name)) found.push(name);
  if (element.namespaceURI === mathml && /^(mglyph|malignmark|annotation|annotation-xml|semantics|maction)$/.test(name))
    found.push(name);
  if (name === "svg" && !element.classList.contains("chart")) found.push("svg");
  for (const {name: key, value} of element.attributes) {
    if (banned.test(key)) found.push(key);
    if (key === "href" && !value.startsWith("#")) found.push(value);
  }
}
const scripts = [...document.scripts].filter((script) => script.type !== "application/octet-stream");
if (scripts.length !== 1) found.push(`${scripts.length} scripts`);
for (const name of ["style", "title:not(svg title)", "dialog", "main"])
  if (document.querySelectorAll(name).length !== 1) found.push(`not one ${name}`);
if (window.hacked !== undefined) found.push("hacked");
return found;
"""


def hostile_row(attack, status):
    grade = llama_eval.Grade(
        status,
        attack,
        attack,
        attack,
        False,
        attack,
        attack,
        attack,
        attack,
        llama_eval.Grade("incorrect", attack, attack, attack),
    )
    given = response(attack, attack, finish_reason=attack, model=attack)
    told = llama_eval.TaskState(
        status,
        grade,
        given,
        attack,
        1,
        attack,
        "2026-01-02T03:04:05+00:00",
        "2026-01-02T03:04:06+00:00",
        response(attack, attack),
    )
    failed = llama_eval.TaskState("error", endpoint=attack, error=attack, partial=response(attack, attack))
    return Row(attack, [told, failed], attack, attack)


def hostile_state(path, status):
    """A state in which every text is an attack."""
    rows = [hostile_row(attack, status) for attack in (*ATTACKS, ALL_ATTACKS)]
    props = {
        "build_info": ALL_ATTACKS,
        "model_path": ALL_ATTACKS,
        "model_ftype": ALL_ATTACKS,
        "total_slots": ALL_ATTACKS,
    }
    return write_state(
        path,
        rows,
        ALL_ATTACKS,
        source=ALL_ATTACKS,
        id=ALL_ATTACKS,
        model=ALL_ATTACKS,
        prompt=llama_eval.Prompt(ALL_ATTACKS, ALL_ATTACKS + "{question}", ALL_ATTACKS, {ALL_ATTACKS: ALL_ATTACKS}),
        sampling=llama_eval.Sampling(extra_body={ALL_ATTACKS: ALL_ATTACKS}),
        grader={"name": ALL_ATTACKS, ALL_ATTACKS: ALL_ATTACKS},
        endpoints=[llama_eval.Endpoint(ALL_ATTACKS, 4, [{ALL_ATTACKS: ALL_ATTACKS}], props)],
        tool={"name": ALL_ATTACKS, "version": ALL_ATTACKS},
    )


@pytest.fixture(scope="module")
def hostile_pages(folder):
    states = [hostile_state(folder / f"hostile {status} <b>&.json", status) for status in ("correct", "incorrect")]
    assert report("compare", *states, "--output", "hostile.html", cwd=folder) == folder / "hostile.html"
    return report(states[0], cwd=folder), folder / "hostile.html"


@pytest.mark.parametrize("kind", [0, 1], ids=["run page", "comparison"])
def test_nothing_that_a_run_holds_becomes_markup_or_script(browser, hostile_pages, kind):
    page = hostile_pages[kind]
    browser.open(page)
    assert browser.js(FOREIGN) == []
    open_questions(browser)
    seen = text_of(browser)
    assert all(line in seen for line in ("<script>window.hacked=1</script>", '"><img src=x onerror=window.hacked=1>'))
    tasks = ids(browser)
    assert len(tasks) == 2 * len((*ATTACKS, ALL_ATTACKS))
    for task, attack in zip(tasks, [attack for attack in (*ATTACKS, ALL_ATTACKS) for _ in range(2)], strict=True):
        browser.js("open(arguments[0])", task)
        for column in opened(browser, task):
            assert column["facts"]["expected"] == attack
            assert (
                attack in column["texts"].values()
                or column["texts"]["what had arrived before a failure"] == f"{attack}\n\n{attack}"
            )
        assert task.endswith("#1") or browser.js(FOREIGN) == []
    browser.press(Keys.ESCAPE)
    for attack in ATTACKS if kind == 0 else ():
        browser.search(attack.replace("\n", " ").splitlines()[0])
        assert len(shown(browser)) >= 2
    assert browser.js(FOREIGN) == []
    assert browser.console() == []
    assert browser.requests() == [page.as_uri()]


# ---- looks ----------------------------------------------------------------------------------------------

CONTRASTS = """
const found = [];
const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
const light = (colour) => {
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const [r, g, b] = numbers(colour).map((v) => linear(v / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const colour = getComputedStyle(at).backgroundColor;
    if ((numbers(colour)[3] ?? 1) > 0) return colour;
  }
  throw new Error("there is no ground");
};
const measure = (name, ink, paper) => {
  const [low, high] = [light(ink), light(paper)].sort((a, b) => a - b);
  found.push([(high + 0.05) / (low + 0.05), name]);
};
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (element.localName === "input")
    measure("placeholder", getComputedStyle(element, "::placeholder").color, ground(element));
  if (!own || !element.getClientRects().length || element.closest("title, desc, script")) continue;
  const style = getComputedStyle(element);
  const named = [element.localName, element.getAttribute("class"), element.parentElement.className];
  const ink = element.closest("svg") ? style.fill : style.color;
  measure(`${named.join(" ")}: ${element.textContent}`.slice(0, 60), ink, ground(element));
}
return found;
"""


@pytest.fixture(params=["run page", "comparison", "varied"])
def page_to_look_at(request):
    """The name and the page of a real run, of a comparison, and of a run with every status."""
    name = request.param.replace(" ", "_")
    return name, request.getfixturevalue(name)


def colours(browser):
    look = "const style = getComputedStyle(document.body); return [style.backgroundColor, style.color]"
    return browser.js(look)


def test_a_page_can_be_read_by_light_and_in_the_dark(browser, page_to_look_at):
    name, page = page_to_look_at
    seen, pale = [], {}
    for scheme in ("light", "dark"):
        browser.open(page, scheme=scheme)
        seen.append(colours(browser))
        browser.screenshot(SCREENSHOTS / f"{name}-{scheme}.png")
        open_questions(browser)
        browser.press("j")
        assert not is_closed(browser)
        browser.screenshot(SCREENSHOTS / f"{name}-task-{scheme}.png")
        contrasts = browser.js(CONTRASTS)
        assert len(contrasts) > 100
        pale |= {f"{scheme}: {what}": round(ratio, 2) for ratio, what in contrasts if ratio < 4.5}
    assert pale == {}
    (light_ground, light_ink), (dark_ground, dark_ink) = seen
    assert light_ground != dark_ground
    assert light_ink != dark_ink


def visible(browser, selector):
    """How many elements of a selector have a place on the page."""
    return browser.js(
        "return [...document.querySelectorAll(arguments[0])].filter((e) => e.getClientRects().length).length", selector
    )


def test_a_printed_page_has_its_charts_and_nothing_to_press(browser, any_page):
    browser.open(any_page, media="print")
    assert visible(browser, "svg.chart") == len(browser.all("svg.chart")) > 0
    assert visible(browser, ".headline, .verdict") == 1
    browser.press("j")
    assert visible(browser, "dialog, .controls, button, input") == 0
    browser.screenshot(SCREENSHOTS / f"{any_page.stem}-print.png")


# ---- for everybody --------------------------------------------------------------------------------------


NAMED_BY = """
const ids = arguments[0].getAttribute("aria-labelledby").split(" ");
return ids.map((id) => document.getElementById(id)).map((e) => [e.localName, arguments[0].contains(e), e.textContent]);
"""


def test_charts_and_buttons_say_what_they_are(browser, page_to_look_at):
    _, page = page_to_look_at
    browser.open(page)
    charts = browser.all("svg")
    assert charts
    for chart in charts:
        links = chart.find_elements("css selector", "a")  # whose parts are read out one by one in a group only
        assert chart.get_attribute("role") == ("group" if links else "img")
        named = browser.js(NAMED_BY, chart)
        assert [(kind, inside) for kind, inside, _ in named] == [("title", True), ("desc", True)]
        assert all(text.strip() for *_, text in named)
    assert browser.js("return document.documentElement.lang") == "en"
    assert browser.js("return document.title").strip()
    assert len(browser.all("h1")) == 1
    for element in browser.all("main button, main input"):
        browser.js("arguments[0].scrollIntoView()", element)  # what is not yet laid out has no name yet
        assert element.accessible_name.strip()
    browser.press("j")
    assert all(element.accessible_name.strip() for element in browser.all("dialog, dialog button"))
    names = browser.js("return [...document.querySelectorAll('[id]')].map((element) => element.id)")
    assert len(names) == len(set(names))


def test_the_focus_goes_into_the_dialog_and_back_to_where_it_was(browser, varied):
    browser.open(varied)
    for place in ("a.cell[data-id='made/wrong#1']", "tr[data-id='made/plain#0'] a"):
        browser.js("document.querySelector(arguments[0]).focus()", place)
        browser.press(Keys.ENTER)
        assert not is_closed(browser)
        assert browser.js("return document.querySelector('dialog').contains(document.activeElement)")
        browser.press("j")
        assert browser.js("return document.querySelector('dialog').contains(document.activeElement)")
        browser.press(Keys.ESCAPE)
        assert browser.js("return document.activeElement === document.querySelector(arguments[0])", place)


# ---- large pages ----------------------------------------------------------------------------------------


def test_a_page_of_many_long_responses_is_small_and_works(browser, folder):
    contents = [prose(seed, 80_000) for seed in range(200)]
    rows = [
        Row(
            f"p{at}", [result("incorrect" if at % 10 == 7 else "correct", content) for content in contents[at : at + 4]]
        )
        for at in range(0, 200, 4)
    ]
    page = report(write_state(folder / "large.json", rows), cwd=folder)
    assert page.stat().st_size < 0.45 * sum(map(len, contents))
    browser.open(page)
    assert len(ids(browser)) == 200
    for at in (0, 100, 199):
        task = f"made/p{at // 4 * 4}#{at % 4}"
        browser.js("location.hash = arguments[0]", "#" + quote(task))
        browser.until(lambda task=task: (browser.told() or {}).get("title") == task, f"{task} is open")
        assert opened(browser, task)[0]["texts"]["response"] == contents[at]
    browser.press(Keys.ESCAPE)
    press_status(browser, "correct")
    assert browser.one("#shown").text == f"{len(shown(browser))} of 200 tasks"


# ---- pages that follow a run ----------------------------------------------------------------------------


@contextlib.contextmanager
def watching(state, page):
    """The report that follows the state, until the end of the block."""
    command = [sys.executable, str(REPORT), str(state), "--output", str(page), "--watch", "0.1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8")
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def progress_state(path, done, of=6):
    """A state of which so many tasks are done, put in the place of the one before at once."""
    rows = [Row(f"p{at}", [result(at=at) if at < done else result("pending")]) for at in range(of)]
    write_state(path.with_name("next.json"), rows).replace(path)


# A clock of the page's own, to tell that it would have loaded itself again by now.
TICKS = "window.kept = true; window.ticks = 0; setInterval(() => ticks++, 100)"


def test_a_page_that_follows_a_run_loads_itself_again_but_not_while_a_task_is_read(browser, tmp_path):
    state, page = tmp_path / "run.json", tmp_path / "run.html"

    def finished():
        with contextlib.suppress(WebDriverException):  # the page was just about to load itself
            return browser.js("return document.querySelectorAll('tr[data-status=correct]').length")

    def is_the_last():
        with contextlib.suppress(WebDriverException):
            return browser.js("return document.readyState === 'complete' && !('watch' in document.body.dataset)")

    progress_state(state, 1)
    with watching(state, page) as process:
        browser.until(page.exists, "the page is written")
        browser.open(page)
        browser.until(lambda: finished() == 1, "the page shows one finished task")
        progress_state(state, 2)
        browser.until(lambda: finished() == 2, "the page shows two finished tasks")

        browser.js(f"open('made/p0#0'); {TICKS}")
        progress_state(state, 3)
        browser.until(lambda: page.read_text("utf-8").count('data-status="correct"') == 4, "the page is written anew")
        browser.until(lambda: browser.js("return window.ticks > 10"), "ten times its interval has passed")
        assert browser.js("return window.kept") is True
        opened(browser, "made/p0#0")
        browser.press(Keys.ESCAPE)
        browser.until(lambda: finished() == 3, "the page shows three finished tasks")

        progress_state(state, 6)
        browser.until(lambda: finished() == 6, "the page shows that all tasks are finished")
        assert process.wait(DEADLINE) == 0
        browser.until(is_the_last, "the last page is shown")
        browser.js(TICKS)
        browser.until(lambda: browser.js("return window.ticks > 10"), "ten times its interval has passed")
        assert browser.js("return window.kept") is True


# ---- without a script -----------------------------------------------------------------------------------


def test_a_page_without_its_script_shows_all_but_the_responses(browser, run_page):
    browser.open(run_page, scripts=False)
    seen = browser.one("body").text
    state = json.loads((run_page.parent / "full.json").read_text("utf-8"))
    assert f"{100 * state['summary']['accuracy']:.1f} %" in seen
    assert visible(browser, "svg.chart") == len(browser.all("svg.chart")) >= 4
    assert visible(browser, "a.cell") == 120
    browser.click("details summary")
    assert visible(browser, "[data-question]") == 1
    assert "In rectangle" in browser.one("[data-question]").text
    browser.emulate()
