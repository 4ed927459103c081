"""Usage: what is refused, in one line and with exit status 2, before anything happens."""

import os
import shlex
import subprocess
import sys

import pytest

from scripts import DEADLINE, EVAL, completion, load, run_eval

llama_eval = load(EVAL)
URL = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ([], "name a server with --endpoint URL, or have one simulated with --simulate"),
        (["--endpoint", "http://user:secret@host"], "--endpoint takes a bare URL"),
        (["--endpoint", "host:80?key=secret"], "--endpoint takes a bare URL"),
        (["--apikey", "secret"], "unknown option --apikey"),
        (["--api-ke=secret"], "unknown option --api-ke"),
        (["secret"], "belongs to no option"),
        (["--simulate", "--samples", "9" * 18], "is not a whole number from 1 to 10000"),
        (["--simulate", "--threads", "100000"], "is not a whole number from 1 to 1000"),
        (["--simulate", "--request-timeout", "1e10"], "is not a number from 0.001 to 1e+06"),
        (["--simulate", "--extra-body", '{"a": 1e999}'], "is not a JSON object"),
        (["--simulate", "--extra-body", '{"model": "b"}'], "'model' is not for --extra-body to set"),
        (["--simulate", "--extra-body", '{"temperature": 1}'], "'temperature' is not for --extra-body to set"),
        (["--endpoint", URL, "--simulate"], "exclude each other"),
        (["--endpoint", "nonsense"], "--endpoint 'nonsense' is not a URL"),
        (["--endpoint", f"{URL},{URL}/v1"], "given twice"),
        (["--endpoint", URL, "--threads", "0"], "'0' is not a whole number from 1 to 1000"),
        (["--endpoint", URL, "--threads", "4,4"], "--threads has 2 values, endpoints 1: give one"),
        (["--endpoint", URL, "--threads", "4,,4"], "'' is not a whole number"),
        (["--endpoint", URL, "--threads", "4.5"], "'4.5' is not a whole number"),
        (["--endpoint", URL, "--threads", "٤"], "is not a whole number"),
        (["--simulate", "1.5"], "'1.5' is not a number from 0 to 1"),
        (["--simulate", "nan"], "'nan' is not a number from 0 to 1"),
        (["--simulate", "--temperature", "inf"], "'inf' is not a number from 0 up"),
        (["--simulate", "--limit", "0"], "--limit"),
        (["--simulate", "--samples", "-1"], "--samples"),
        (["--simulate", "--extra-body", "[1]"], "'[1]' is not a JSON object"),
        (["--simulate", "--extra-body", '{"a": NaN}'], "is not a JSON object"),
        (["--simulate", "--extra-body", '{"messages": []}'], "'messages' is not for --extra-body to set"),
        (["--simulate", "--grader", "guess"], "invalid choice"),
        (["--simulate", "--resume"], "--resume needs the --output FILE"),
        (["--simulate", "--resume", "--overwrite", "--output", "x"], "not allowed with"),
        (["--simulate", "--quiet", "--verbose"], "not allowed with"),
        (["--simulate", "--data", "practice"], "unknown option --data"),
        (["--endpoint", URL, "--api-key", "a\nb"], "the API key holds characters"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(tmp_path, args, complaint):
    done = run_eval(*args, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("llama-eval: error: ")
    assert done.stderr.count("\n") == 1
    assert complaint in done.stderr
    assert "secret" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--output", "folder"], "the output folder is not a file"),
        (["--output", "gone/run.json"], "does not exist"),
        (["--output", "old.json"], "exists: add --resume to continue it, --overwrite to replace it"),
        (["--output", "new.json", "--resume"], "there is no new.json to resume"),
        (["--output", "old.json", "--resume"], "old.json is not a state of llama-eval"),
    ],
)
def test_an_unusable_output_is_one_line_and_status_1(tmp_path, args, complaint):
    (tmp_path / "folder").mkdir()
    (tmp_path / "old.json").write_text("precious")
    done = run_eval("--endpoint", URL, "--dataset", "practice", *args, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert complaint in done.stderr
    assert (tmp_path / "old.json").read_text() == "precious"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere: see the read-only folder below")
def test_an_output_in_a_folder_that_may_not_be_written_is_refused(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    done = run_eval("--endpoint", URL, "--dataset", "practice", "--output", "locked/run.json", cwd=tmp_path)
    assert done.returncode == 1
    assert "is not writable" in done.stderr


@pytest.mark.parametrize("output", ["/proc/self/run.json", "n" * 300], ids=["no place for files", "name too long"])
def test_an_output_that_cannot_be_written_is_found_out_before_the_first_request(tmp_path, fake_server, output):
    server = fake_server(lambda method, path, body: (200, completion("1")) if method == "POST" else (404, b""))
    done = run_eval("--endpoint", server.url, "--dataset", "practice", "--quiet", "--output", output, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert output[:100] in done.stderr
    assert server.prompts() == []


def test_help_and_version_need_no_server(tmp_path):
    helped, version = run_eval("--help", cwd=tmp_path), run_eval("--version", cwd=tmp_path)
    assert helped.returncode == version.returncode == 0
    assert version.stdout == f"llama-eval {llama_eval.VERSION}\n"


@pytest.mark.parametrize(
    ("given", "printed"),
    [
        ("--simulate --output x.json --overwrite", "--simulate --output run.json --resume"),
        ("--simulate --output=x.json --resume", "--simulate --output run.json --resume"),
        ("--endpoint u --api-key secret", "--endpoint u --output run.json --resume"),
        ("--endpoint u --api-key=secret --samples 2", "--endpoint u --samples 2 --output run.json --resume"),
    ],
)
def test_the_resume_command_is_the_one_given_without_the_key(given, printed):
    command = llama_eval.resume_command(given.split(), llama_eval.Path("run.json"))
    assert command.endswith(f" {printed}")
    assert "secret" not in command


def test_a_command_that_adds_samples_replaces_their_number():
    command = llama_eval.resume_command(["--samples=2", "--simulate"], llama_eval.Path("run.json"), 4)
    assert command.endswith(" --simulate --samples 4 --output run.json --resume")


def test_the_printed_command_runs_where_it_is_pasted():
    """By the interpreter that has the packages; a key that was given in the open has to come from elsewhere."""
    command = llama_eval.resume_command(["--api-key", "secret", "--simulate"], llama_eval.Path("a b.json"))
    assert command.startswith("LLAMA_API_KEY=... ")
    assert shlex.split(command)[-3:] == ["--output", "a b.json", "--resume"]
    interpreter = shlex.split(command)[1]
    assert os.path.samefile(os.path.dirname(interpreter), os.path.dirname(sys.executable))


def without_packages(*arguments):
    command = [sys.executable, "-S", EVAL, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)


def test_a_missing_package_is_one_line():
    done = without_packages("--simulate")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "llama-eval: error: No module named 'requests': pip install -r requirements.txt\n"


def test_help_and_version_and_complaints_need_no_package():
    assert "--endpoint" in without_packages("--help").stdout
    assert without_packages("--version").stdout == f"llama-eval {llama_eval.VERSION}\n"
    assert without_packages().returncode == 2


def test_start_up_imports_nothing_heavy(tmp_path):
    """Modules that are slow to import are imported where they are needed."""
    heavy = "import sys, runpy; sys.argv = ['llama-eval.py', '--version']\n"
    heavy += f"try: runpy.run_path({str(EVAL)!r}, run_name='__main__')\nexcept SystemExit: pass\n"
    heavy += "print(sorted(set(sys.modules) & {'datasets', 'flask', 'numpy', 'pandas', 'tqdm', 'Levenshtein'}))"
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, timeout=DEADLINE)
    assert done.stdout.splitlines()[-1] == "[]"
