"""The documents, the requirements and the scripts say the same thing."""

import re
import shutil
import subprocess

import pytest

from scripts import DEADLINE, EVAL, REPO, REPORT, SIMULATOR, load

llama_eval = load(EVAL)
README = (REPO / "README.md").read_text("utf-8")
SCRIPTS = [EVAL, SIMULATOR, REPORT]
OPTIONS = (REPO / "docs" / "options.md").read_text("utf-8")


def requirements() -> list[str]:
    return [line for line in (REPO / "requirements.txt").read_text("utf-8").splitlines() if line]


def inline_metadata(script):
    """The `requires-python` and `dependencies` of a script's PEP 723 block."""
    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", script.read_text("utf-8"), re.MULTILINE)
    assert block
    toml = "".join(line[2:] for line in block[1].splitlines(keepends=True))
    return re.search(r'requires-python = "(.*)"', toml)[1], re.findall(r'^ +"(.*)",', toml, re.MULTILINE)


def test_requirements_are_the_packages_that_the_scripts_import_with_lower_bounds():
    names = [re.fullmatch(r"([\w-]+)>=[\d.]+", line) for line in requirements()]
    packages = ["requests", "urllib3", "flask", "jinja2", "datasets", "python-Levenshtein", "tqdm", "latex2mathml"]
    assert [name and name[1] for name in names] == packages


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_the_inline_metadata_of_a_script_holds_the_requirements_that_it_imports(script):
    python, dependencies = inline_metadata(script)
    assert python == ">=3.10"
    assert set(dependencies) <= set(requirements())
    modules = {"python-Levenshtein": "Levenshtein"}
    for line in requirements():
        name = line.split(">=")[0]
        if re.search(rf"^\s*(?:import|from) {modules.get(name, name)}\b", script.read_text("utf-8"), re.MULTILINE):
            assert line in dependencies


@pytest.mark.parametrize("script", [SIMULATOR, REPORT], ids=lambda script: script.name)
def test_the_evaluator_brings_along_what_the_scripts_that_it_starts_need(script):
    assert set(inline_metadata(script)[1]) <= set(inline_metadata(EVAL)[1])


def actions(script):
    """Every option of a script, by each of its flags."""
    module = load(script)
    more = [module.build_parser(comparing=True), module.plan_parser()] if script == REPORT else []
    parsers = [module.build_parser(), *more]
    return {flag: action for parser in parsers for action in parser._actions for flag in action.option_strings}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_the_documents_have_every_option_and_no_other(script):
    flags = {flag for flag in actions(script) if flag.startswith("--")} - {"--help"}
    section = OPTIONS.split(f"<!-- options: {script.name} -->")[1].split("<!-- end -->")[0]
    rows = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    documented = {flag for row in rows for flag in re.findall(r"`(--[\w-]+)", row)}
    assert documented == flags


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_the_documents_give_the_defaults_that_the_program_has(script):
    section = OPTIONS.split(f"<!-- options: {script.name} -->")[1].split("<!-- end -->")[0]
    documented = dict(re.findall(r"^\| `(--[\w-]+).*\| `([^`|]+)` \|$", section, re.MULTILINE))
    assert documented
    for flag, default in documented.items():
        action = actions(script)[flag]
        defaults = vars(llama_eval.Options()) if script == EVAL else {}
        actual = defaults.get(action.dest, action.default)
        actual = actual[0] if isinstance(actual, (list, tuple)) else actual
        assert (f"{actual:g}" if isinstance(actual, float) else str(actual)) == default, flag


def test_every_option_has_a_help_text_or_is_one_of_the_samplers():
    plain = {"--temperature", "--top-k", "--top-p", "--min-p"}  # the group's title says all there is to say
    for action in llama_eval.build_parser()._actions:
        assert action.help or action.option_strings[0] in plain


def test_the_exit_codes_in_the_readme_are_those_of_the_program():
    documented = dict(re.findall(r"^\| `(\d+)` \| (.*) \|$", README.split("## Exit codes")[1], re.MULTILINE))
    assert set(documented) == {"0", "1", "2", "3", "129", "130", "143"}


def test_the_readme_is_short_and_starts_with_the_two_commands():
    assert len(README.splitlines()) <= 200
    assert (
        README.index("make demo") < README.index("make test") < README.index("uv run llama-eval.py --simulate") < 1500
    )


def test_every_link_between_the_documents_leads_somewhere():
    for document in (REPO / "README.md", *(REPO / "docs").glob("*.md")):
        for target, fragment in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", document.read_text("utf-8")):
            path = (document.parent / target) if target else document
            assert path.exists(), (document.name, target)
            if fragment:
                titles = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
                anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
                assert fragment in anchors, (document.name, target, fragment)


def made_up_python(folder, body):
    """A folder with the Makefile and a Python that behaves like that of a system without python3-venv."""
    shutil.copy(REPO / "Makefile", folder)
    (folder / "requirements.txt").touch()
    python = folder / "python3"
    python.write_text(f'#!/bin/sh\ncase "$1" in -c) exit 0 ;; esac\n{body}\n', encoding="utf-8")
    python.chmod(0o755)


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_without_venv_make_says_what_to_install_and_leaves_nothing_half_made(tmp_path):
    made_up_python(tmp_path, 'mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; echo ensurepip is not available; exit 1')
    command = ["make", "demo", "PYTHON=./python3", "VENV=.venv"]
    for _ in range(2):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE)
        assert done.returncode == 2
        assert "sudo apt install python3-venv" in done.stderr
        assert not (tmp_path / ".venv").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_a_half_made_environment_is_made_anew(tmp_path):
    made_up_python(tmp_path, 'mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && touch "$3/whole" && exit 0')
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(tmp_path / "python3", tmp_path / ".venv" / "bin" / "python")
    command = ["make", ".venv/run-time", "PYTHON=./python3", "VENV=.venv"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE)
    assert (tmp_path / ".venv" / "whole").exists()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_says_its_sections_in_their_order(script):
    text = script.read_text("utf-8")
    rulers = re.findall(r"^# -{4} (.+?) -+$", text, re.MULTILINE)
    listed = re.search(r"^Sections: ([^.]+)\.", text, re.MULTILINE)[1]
    assert " ".join(listed.split()).split(", ") == rulers


def test_the_table_of_faults_is_that_of_the_simulator():
    document = (REPO / "docs" / "simulator.md").read_text("utf-8").split("## Faults")[1].split("## ")[0]
    rows = [line.split(" | ")[0] for line in document.splitlines() if line.startswith("| `")]
    assert sorted(kind for row in rows for kind in re.findall(r"`([\w-]+)`", row)) == sorted(load(SIMULATOR).FAULTS)


def test_no_script_imports_another():
    for script in SCRIPTS:
        assert not re.search(r"^\s*(?:import|from)\s+(?:llama|tests|scripts)", script.read_text("utf-8"), re.MULTILINE)


def test_the_scripts_are_marked_executable_and_start_with_python3():
    for script in SCRIPTS:
        assert script.stat().st_mode & 0o100
        assert script.read_text("utf-8").startswith("#!/usr/bin/env python3\n")


def test_the_grading_document_names_every_method_and_grader():
    document = (REPO / "docs" / "grading.md").read_text("utf-8")
    rules = set(llama_eval.METHODS) - {"judge", "judge found none", "command"}
    table = document.split("## The rules of text")[1].split("What counts:")[0]
    assert {name for line in table.splitlines() for name in re.findall(r"`([a-z ]+)`", line.split(" | ")[0])} == rules
    for name in llama_eval.GRADERS:
        assert f"| `{name}` |" in document
