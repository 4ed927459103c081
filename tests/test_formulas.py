"""Mathematics in questions: which of it becomes MathML, and that nothing else comes of it."""

import html
import json
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts import DEADLINE, EVAL, REPORT, SHARED, load

llama_eval = load(EVAL)
report = load(REPORT)
pytest.importorskip("latex2mathml", reason="without latex2mathml there is no mathematics to be tested")

MATH = re.compile(r"<math\b.*?</math>", re.DOTALL)


def parsed(question):
    """The tree of a question as it is shown: well-formed, and of known elements and attributes only."""
    tree = ElementTree.fromstring(f"<div>{report.with_formulas(question)}</div>")  # noqa: S314 - it has no entities
    for child in tree.iter():
        if child is not tree and child.tag != "code":
            assert child.tag in report.ELEMENTS
            assert set(child.attrib) <= report.ATTRIBUTES
    assert not [child.attrib for child in tree.iter("code") if child.attrib]
    return tree


def formulas(question):
    """How many formulas of a question are rendered, and what is shown around them, each as a dot."""
    shown = str(report.with_formulas(question))
    parsed(question)
    around = html.unescape(re.sub(r"</?code>", "", MATH.sub("•", shown)))
    return len(MATH.findall(shown)), around


# A question, and what is shown of it: a dot is a formula.
CASES = [
    ("Find $x$.", "Find •."),
    ("Find $ x $.", "Find •."),
    ("Find $ AB=28 $ and $ x $.", "Find • and •."),
    ("Find $$x$$ or $$\ny\n$$.", "Find • or •."),
    (r"Find \(x\) or \[y\].", "Find • or •."),
    (r"\begin{align*}a &= b\\ c &= d\end{align*}", "•"),
    (r"\begin{equation}a = b\end{equation}", "•"),
    (r"\begin{cases}a\\b\end{cases}", "•"),
    (r"$\begin{array}{cc}a & b\\c & d\end{array}$", "•"),
    (
        r"$\frac{m}{n}$, $\sqrt{2}$, $\overline{AC}$, $\triangle ABC$, $\binom{n}{k}$, $\lfloor x\rfloor$",
        "•, •, •, •, •, •",
    ),
    (r"$\operatorname{lcm}(a, b)$ and $\text{when $x$ is}$", r"• and $\text{when • is}$"),
    ("$x$-axis, $n$th, ($y$), “$z$”", "•-axis, •th, (•), “•”"),
    ("$a<b$ & $c>d$", "• & •"),
    ("It costs $5 and $10.", "It costs $5 and $10."),
    ("It costs $5, or $10.50 more.", "It costs $5, or $10.50 more."),
    ("It costs $5, and $x$ is 3.", "It costs $5, and • is 3."),
    ("It costs $ 5 and $ 10 here.", "It costs $ 5 and $ 10 here."),
    ("She has $20. He has $30.", "She has $20. He has $30."),
    (r"It costs \$5 and \$10.", r"It costs \$5 and \$10."),
    (r"Pay $\$5$ now.", "Pay • now."),
    (r"Pay \$5 for $x$ of them.", r"Pay \$5 for • of them."),
    ("Pay $5-$10 for $x$.", "Pay $5-$10 for •."),
    ("One $ is alone", "One $ is alone"),
    ("$$ is alone", "$$ is alone"),
    ("$$$$", "$$$$"),
    ("no $ $ formula", "no $ $ formula"),
    (r"no \( \) formula", r"no \( \) formula"),
    (r"\(x is open", r"\(x is open"),
    (r"$x\)", r"$x\)"),
    (r"$\foo{x}$ is unknown", r"$\foo{x}$ is unknown"),
    (r"$\frac{1}{$ is broken", r"$\frac{1}{$ is broken"),
    (r"\begin{tikzpicture}x\end{tikzpicture}", r"\begin{tikzpicture}x\end{tikzpicture}"),
    (r"\begin{align*}a\end{align}", r"\begin{align*}a\end{align}"),
    ("plain <b>text</b> & more", "plain <b>text</b> & more"),
    ("", ""),
]


@pytest.mark.parametrize(("question", "shown"), CASES, ids=[question or "empty" for question, _ in CASES])
def test_what_is_rendered_and_what_is_left_as_it_is(question, shown):
    assert formulas(question) == (shown.count("•"), shown)


@pytest.mark.parametrize(
    ("question", "display"), [("$x$", "inline"), (r"\(x\)", "inline"), ("$$x$$", "block"), (r"\[x\]", "block")]
)
def test_a_formula_stands_in_the_line_or_on_its_own_as_it_is_written(question, display):
    assert parsed(question).find("math").get("display") == display


def test_a_formula_says_what_it_says():
    assert "".join(parsed(r"$3x^2 \le \frac{y}{7}$").itertext()) == "3x2≤y7"


@pytest.mark.parametrize(("length", "rendered"), [(report.FORMULA_LENGTH, 1), (report.FORMULA_LENGTH + 1, 0)])
def test_a_formula_that_is_too_long_is_shown_as_its_source(length, rendered):
    count, around = formulas(f"so ${'x' * length}$ it is")
    assert count == rendered
    assert around == ("so • it is" if rendered else f"so ${'x' * length}$ it is")


HOSTILE = [
    r"$\href{javascript:alert(1)}{x}$",
    r"$\url{javascript:alert(1)}$",
    r"$\style{position:fixed}{x}$",
    r"$\class{cell}{x}$",
    r"$\cssId{shown}{x}$",
    r"$\htmlData{block=0}{x}$",
    r"$\color{red}{x}$",
    r"$\color{\"onclick=alert(1)}{x}$",
    r"$\text{<img src=x onerror=alert(1)>}$",
    r"$\text{</mtext></math><script>alert(1)</script>}$",
    r"$\mathrm{<script>}$",
    "$<script>alert(1)</script>$",
    "$&lt;script&gt;$",
    r"$\text{&lt;img&gt; &#60; &amp;lt;}$",
    r'$\hspace{1em" onclick="alert(1)}x$',
    r'$\rule{1em" onload="x}{1em}$',
    r"$\includegraphics{http://example.org/x.png}$",
    r"$\begin{array}{c\" onclick=\"x}a\end{array}$",
    r"$\unicode{60}script\unicode{62}$",
    "$x\x00\x01\x1b\x7f\ufffe\ud800$",
    "\\begin{align}\x00<&\x01\\end{align}",
    "$" + "{" * 1400 + "x" + "}" * 1400 + "$",
    "$" + r"\sqrt{" * 400 + "x" + "}" * 400 + "$",
    "$" + "x^{" * 900 + "}" * 900 + "$",
    "$" + r"\left(" * 300 + "x" + r"\right)" * 300 + "$",
    "$" + r"\begin{array}{c}" * 80 + "x" + r"\end{array}" * 80 + "$",
    r"$\newcommand{\a}{\a\a}\a$",
    r"$\def\a{\a\a}\a$",
]


@pytest.mark.parametrize("question", HOSTILE, ids=[each[:40] for each in map(ascii, HOSTILE)])
def test_hostile_formulas_are_nothing_but_mathematics_or_their_source(question):
    tree = parsed(f"before {question} after")
    assert (tree.text or "").startswith("before ")
    assert "".join(tree.itertext()).endswith(" after")


@pytest.mark.parametrize("element", ["script", "a", "annotation-xml", "maction", "semantics", "mglyph", "svg", "MATH"])
def test_an_element_that_is_not_known_to_be_harmless_is_not_passed_on(element):
    inner = ElementTree.Element(element)
    outer = ElementTree.Element("math")
    outer.append(inner)
    assert report.rebuilt(inner) is None
    assert report.rebuilt(outer) is None


@pytest.mark.parametrize("attribute", ["href", "style", "class", "id", "onclick", "src", "actiontype", "xlink:href"])
def test_an_attribute_that_is_not_known_to_be_harmless_is_left_out(attribute):
    assert report.rebuilt(ElementTree.Element("mi", {attribute: "x", "width": '1em"'})) == '<mi width="1em&quot;"></mi>'


def test_many_openings_without_an_end_are_read_in_no_time():
    """A question of 80,000 characters, for which a time in proportion to their square would be a minute."""
    program = f"""
import sys
sys.path.insert(0, {str(REPORT.parent / "tests")!r})
from scripts import REPORT, load
for opening in ("\\\\(", "\\\\[", "$$x", "$x ", "\\\\begin{{align}}"):
    load(REPORT).with_formulas(opening * (80_000 // len(opening)))
"""
    done = subprocess.run([sys.executable, "-"], input=program, capture_output=True, text=True, timeout=DEADLINE / 4)
    assert done.returncode == 0, done.stderr


PIECES = r"$ $$ \( \) \[ \] \begin{align*} \end{align*} \frac \text{ \hspace{ \ { } ^ _ & < > x 12 &lt; \left( \sqrt["
pieces = st.sampled_from([*PIECES.split(), " ", "\n", '"'])
texts = st.text(st.characters(), max_size=30) | st.lists(pieces | st.text(max_size=3), max_size=14).map("".join)


def shown_text(text):
    """A text after XML, which cannot hold some characters."""
    return report.printable(text)


@given(texts)
def test_whatever_is_asked_the_page_stays_well_formed_and_the_text_around_formulas_is_the_question(question):
    tree = parsed(question)
    for formula in tree.findall("math"):
        tail = formula.tail
        formula.clear()
        formula.text, formula.tail = "•", tail
    around = "".join(tree.itertext())
    parts = [re.escape(part) for part in around.split("•")]
    pattern = ".+?".join(parts) if "•" not in question else None
    if pattern is not None:
        assert re.fullmatch(pattern, shown_text(question), re.DOTALL)


@given(st.text().filter(lambda text: not re.search(r"[$\\]", text)))
def test_a_text_without_mathematics_is_itself(text):
    assert "".join(parsed(text).itertext()) == shown_text(text)


# ---- real questions -------------------------------------------------------------------------------------

FILES = {
    "aime2025-I.jsonl": "question",
    "aime2025-II.jsonl": "question",
    "aimo-validation-aime.jsonl": "problem",
}


@pytest.mark.parametrize("name", FILES)
def test_every_formula_of_real_questions_is_rendered(name):
    path = SHARED / "data" / name
    if not path.is_file():
        pytest.skip(f"the real questions are not at hand: there is no {path}")
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    questions = [row[FILES[name]] for row in rows]
    shown = [report.with_formulas(question) for question in questions]
    rendered = sum(formulas(question)[0] for question in questions)
    around = [html.unescape(MATH.sub("", text)) for text in shown]
    left = [source for text in around for source in re.findall(r"<code>.*?</code>|(?<!\\)\$[^$]*(?:\$|\Z)", text)]
    print(f"{name}: {rendered} formulas of {len(questions)} questions rendered, {len(left)} left")
    assert rendered > len(questions)
    assert left == []


# ---- without the library --------------------------------------------------------------------------------


def state_with(path, question):
    """A run of one problem with this question."""
    tasks = [llama_eval.Task("d/1#0", "1", 0, question, "1")]
    states = {"d/1#0": llama_eval.TaskState()}
    prompt, sampling = llama_eval.Prompt("json", "{question}"), llama_eval.Sampling()
    dataset = {"name": "d", "source": "d.jsonl", "sha256": "0" * 64}
    state = llama_eval.EvalState("x", dataset, prompt, sampling, {"name": "regex"}, None, tasks, states)
    path.write_text("".join(llama_eval.state_to_json(state, "none")), "utf-8")


@pytest.mark.parametrize(
    ("question", "told"),
    [("What is $x$ & <y>?", 1), ("What is x & <y>?", 0), ("It costs $5 and $10.", 0)],
    ids=["a formula", "none", "money"],
)
def test_without_latex2mathml_the_page_shows_the_source_and_one_line_says_why(tmp_path, question, told):
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "latex2mathml.py").write_text("raise ImportError('blocked')\n", "utf-8")
    state_with(tmp_path / "run.json", question)
    done = subprocess.run(
        [sys.executable, str(REPORT), "run.json"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(blocked), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        encoding="utf-8",
        timeout=DEADLINE,
    )
    assert (done.returncode, done.stdout) == (0, "run.html\n")
    page = (tmp_path / "run.html").read_text("utf-8")
    assert "<math" not in page
    source = question.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert source in re.sub(r"</?code>", "", page)
    assert done.stderr == "latex2mathml is not installed: mathematics is shown as its source\n" * told
