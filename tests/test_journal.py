"""Nothing that has finished is lost: the journal beside the state, its lock, and processes that are killed."""

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from scripts import DEADLINE, EVAL, completion, expected, held_back, load, right, run_eval, start_eval

llama_eval = load(EVAL)
SCORED = llama_eval.SCORED


def a_run(samples=1):
    dataset, prompt = llama_eval.load_dataset("practice"), llama_eval.Prompt("json", "{question}")
    return llama_eval.new_run(dataset, prompt, llama_eval.Sampling(), samples, slice(4))


def finish(state, number, status="correct"):
    """Set what became of the task with this number; gives the task."""
    task = state.tasks[number]
    response = llama_eval.Response("caf\u00e9 \ud800", "", "stop", None, None, None, None, 1.0)
    grade = llama_eval.Grade(status, task.expected, "json", "regex")
    state.task_states[task.id] = llama_eval.TaskState(status, grade, response)
    return task


def statuses(path, warn=pytest.fail):
    return [s.status for s in llama_eval.load_state(path, warn).task_states.values()]


def test_a_finished_task_is_on_disk_before_the_next_dump(tmp_path):
    path, state = tmp_path / "run.json", a_run()
    with llama_eval.StateFile(path, 3600) as file:
        file.save(state)
        file.record(state, finish(state, 1))
        assert statuses(path) == ["pending", "correct", "pending", "pending"]
        assert b"caf\xc3\xa9 ?" in file.journal_path.read_bytes()
        file.record(state, finish(state, 1, "incorrect"))
        assert statuses(path) == ["pending", "incorrect", "pending", "pending"], "the last line on a task counts"
        file.save(state)
        assert file.journal_path.read_bytes() == b""
    assert os.listdir(tmp_path) == ["run.json"], "an empty journal is removed"


def test_dumps_are_spaced_by_the_interval(tmp_path):
    with llama_eval.StateFile(tmp_path / "run.json", 3600) as file:
        assert file.due
        file.save(a_run())
        assert not file.due
    with llama_eval.StateFile(tmp_path / "run.json", 0) as file:
        file.save(a_run())
        pause = file.next_dump - time.monotonic()
    assert 0 < pause < 60, "even then only a small share of the time goes into dumps"


def test_a_journal_counts_for_the_dump_it_was_written_after(tmp_path):
    path, state = tmp_path / "run.json", a_run()
    with llama_eval.StateFile(path, 3600) as file:
        file.save(state)
        file.record(state, finish(state, 0))
        older = file.journal_path.read_bytes()
        assert statuses(path)[0] == "correct"
        file.save(state)
        file.journal_path.write_bytes(older)  # as a crash between two steps of saving leaves it
        assert statuses(path)[0] == "correct", "without a word"
        file.save(state)
    assert not list(tmp_path.glob("*.journal*"))


def test_a_journal_of_another_run_is_kept_aside_and_told(tmp_path):
    path, state, told = tmp_path / "run.json", a_run(), []
    with llama_eval.StateFile(path, 3600) as file:
        file.save(state)
        file.record(state, finish(state, 0))
        older = file.journal_path.read_bytes()
        file.save(a_run())
        file.journal_path.write_bytes(older)
        assert statuses(path, told.append)[0] == "pending"
        file.save(a_run())
    (line,), (kept,) = told, tmp_path.glob("run.json.journal.*")
    assert "is of another run" in line
    assert str(kept) in line
    assert kept.read_bytes() == older


def test_a_journal_whose_state_was_moved_away_is_kept_aside(fake_server, tmp_path):
    path, state = tmp_path / "run.json", a_run()
    with llama_eval.StateFile(path, 3600) as file:
        file.save(state)
        file.record(state, finish(state, 0))
    path.rename(tmp_path / "moved.json")
    options = ["--endpoint", fake_server(right).url, "--dataset", "practice", "--limit", 1, "--output", "run.json"]
    done = run_eval(*options, cwd=tmp_path)
    assert (done.returncode, "it is kept as" in done.stdout) == (0, True)
    assert len(list(tmp_path.glob("run.json.journal.*"))) == 1


def test_a_link_at_the_place_of_a_scratch_file_is_not_followed(tmp_path):
    path, precious = tmp_path / "run.json", tmp_path / "precious"
    precious.write_text("mine")
    with llama_eval.StateFile(path, 3600) as file:
        file.save(a_run())
        (scratch,) = {f".llama-eval-{llama_eval.hashlib.sha256(b'run.json').hexdigest()[:8]}.tmp"}
        (tmp_path / scratch).symlink_to(precious)
        file.save(a_run())
    assert precious.read_text() == "mine"
    (tmp_path / "other.json.journal").symlink_to(precious)
    with pytest.raises(llama_eval.StateError, match="symbolic links"), llama_eval.StateFile(tmp_path / "other.json", 1):
        pass
    assert precious.read_text() == "mine"


def test_the_state_is_written_though_no_descriptor_is_left(tmp_path):
    path, state, taken = tmp_path / "run.json", a_run(), []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with llama_eval.StateFile(path, 3600) as file:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
        try:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
            finish(state, 0)
            file.save(state)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for descriptor in taken:
                os.close(descriptor)
    assert statuses(path)[0] == "correct"


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_torn_last_line_is_told_and_dropped(tmp_path, cut):
    path, state = tmp_path / "run.json", a_run()
    with llama_eval.StateFile(path, 3600) as file:
        file.save(state)
        for number in range(3):
            file.record(state, finish(state, number))
        file.journal_path.write_bytes(file.journal_path.read_bytes()[:-cut])
    told = []
    assert statuses(path, told.append) == ["correct", "correct", "pending", "pending"]
    assert told == [f"WARNING: {path}.journal: its last line is torn, as a crash leaves it, and is dropped"]


@pytest.mark.parametrize(
    "damage",
    [
        b"{",
        b"\x00\xff",
        b"[]",
        b'{"journal": 1}',
        b"5",
        b"",
        b"[" * 100_000,
        b'{"journal": "NAME", "task": "x", "state": {}}',
        b'{"journal": "NAME", "task": ["x"]}',
        b'{"journal": "NAME", "task": "practice/P-2#0", "state": {"status": "fine"}}',
    ],
)
def test_a_line_that_cannot_be_read_is_told_and_skipped(tmp_path, damage):
    path, state = tmp_path / "run.json", a_run()
    with llama_eval.StateFile(path, 3600) as file:
        file.save(state)
        for number in range(3):
            file.record(state, finish(state, number))
        first, _, third, _ = file.journal_path.read_bytes().split(b"\n")
        file.journal_path.write_bytes(b"\n".join([first, damage.replace(b"NAME", file.name.encode()), third, b""]))
    told = []
    assert statuses(path, told.append) == ["correct", "pending", "correct", "pending"]
    if damage != b'{"journal": 1}':  # a line of another dump
        assert told == [f"WARNING: {path}.journal, line 2: it cannot be read, and is skipped"]


def test_a_full_disk_stops_the_run_with_what_it_had(fake_server, tmp_path):
    """No file may grow beyond a limit, which the journal reaches: that is what a full disk does to it."""
    asked, over = [], threading.Event()

    def reply(method, path, body):
        if method == "GET":
            return 404, b""
        asked.append(path)
        if len(asked) > 3:  # two fit, the third does not
            over.wait(DEADLINE)
        return 200, completion("x" * 40_000)

    server = fake_server(reply)
    limit = (
        "import resource, signal, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY));"
    )
    limit += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); import runpy; sys.argv = sys.argv[1:];"
    limit += "runpy.run_path(sys.argv[0], run_name='__main__')"
    options = ["--endpoint", server.url, "--dataset", "practice", "--threads", "1", "--output", "run.json"]
    command = [sys.executable, "-c", limit, EVAL, *options, "--dump-interval", "3600"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    counts = Counter(statuses(tmp_path / "run.json"))
    assert counts == {"no_answer": 2, "pending": 28}
    assert len(asked) <= 4, "it did not go on asking"
    over.set()
    again = run_eval(*options, "--resume", cwd=tmp_path)
    assert "30 no_answer" in again.stdout


def test_two_processes_do_not_share_a_run(fake_server, tmp_path):
    slow, asked, over = held_back()
    options = ["--dataset", "practice", "--limit", "3", "--output", "run.json"]
    with start_eval("--endpoint", fake_server(slow).url, *options, cwd=tmp_path, stdout=subprocess.PIPE) as process:
        assert asked.wait(DEADLINE)
        for more in (["--resume"], ["--overwrite"]):
            refused = run_eval("--endpoint", fake_server(right).url, *options, *more, cwd=tmp_path)
            assert refused.returncode == 1
            assert "another llama-eval is at work on" in refused.stderr
        regraded = run_eval("--regrade", "run.json", cwd=tmp_path)
        assert (regraded.returncode, "another llama-eval is at work on" in regraded.stderr) == (1, True)
        over.set()
        assert "3 correct" in process.stdout.read()
    assert sorted(os.listdir(tmp_path)) == ["run.json"]
    assert run_eval("--endpoint", fake_server(right).url, *options, "--resume", cwd=tmp_path).returncode == 0


def test_a_lock_is_gone_with_the_process_that_had_it(fake_server, tmp_path):
    slow, asked, over = held_back()
    options = ["--dataset", "practice", "--limit", "3", "--output", "run.json"]
    with start_eval("--endpoint", fake_server(slow).url, *options, cwd=tmp_path) as process:
        assert asked.wait(DEADLINE)
        process.kill()
    over.set()
    done = run_eval("--endpoint", fake_server(right).url, *options, "--resume", cwd=tmp_path)
    assert "3 correct" in done.stdout


def test_what_only_the_journal_has_is_not_forgotten_when_nothing_is_left_to_do(fake_server, tmp_path):
    server = fake_server(right)
    options = ["--endpoint", server.url, "--dataset", "practice", "--limit", "2", "--output", "run.json"]
    run_eval(*options, cwd=tmp_path)
    path = tmp_path / "run.json"
    whole, data = path.read_bytes(), json.loads(path.read_text("utf-8"))
    lines = [{"journal": data["journal"], "task": t, "state": s} for t, s in data["task_states"].items()]
    data["task_states"] = {
        task: {**s, "status": "pending", "grade": None, "response": None} for task, s in data["task_states"].items()
    }
    path.write_text(json.dumps(data), encoding="utf-8")
    (tmp_path / "run.json.journal").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    server.requests.clear()
    done = run_eval(*options, "--resume", cwd=tmp_path)
    assert "nothing to do" in done.stdout
    assert server.requests == []
    after = json.loads(path.read_text("utf-8"))
    assert after["task_states"] == json.loads(whole)["task_states"]
    assert os.listdir(tmp_path) == ["run.json"]


def test_nothing_finished_is_lost_or_asked_twice_however_often_the_process_is_killed(fake_server, tmp_path):
    """300 tasks with large responses, killed at 30 random moments, and resumed each time."""
    moments, asked, reached = random.Random(4), [], threading.Semaphore(0)
    padding = "So we go on thinking about it. " * 1000

    def reply(method, path, body):
        if method == "GET":
            return 404, b""
        asked.append(body["seed"])
        reached.release()
        return 200, completion(f'{padding}{{"answer": {expected(body)}}}')

    server = fake_server(reply)
    options = ["--endpoint", server.url, "--dataset", "practice", "--samples", "10", "--seed", "1", "--threads", "8"]
    options += ["--output", "run.json", "--dump-interval", "0.01", "--quiet"]
    path, resume, finished, kills = tmp_path / "run.json", [], set(), 0
    while kills < 30:
        before = len(asked)
        with start_eval(*options, *resume, cwd=tmp_path) as process:
            for _ in range(moments.randrange(1, 12)):
                assert reached.acquire(timeout=DEADLINE)
            threading.Event().wait(moments.uniform(0, 0.01))  # anywhere in what follows a reply
            process.kill()
        kills += 1
        while reached.acquire(blocking=False):
            pass
        new = asked[before:]
        assert not finished & set(new), "a task that had finished was asked again"
        state = llama_eval.load_state(path, lambda warning: None)
        done = {t.id for t in state.tasks if state.task_states[t.id].status in SCORED}
        assert {llama_eval.task_seed(1, name) for name in done} >= finished, "a task that had finished was lost"
        finished = {llama_eval.task_seed(1, name) for name in done}
        resume = ["--resume"]
    assert len(finished) < 300, "the last resume has something to do"
    before = len(asked)
    done = run_eval(*options, "--resume", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "300 correct" in done.stdout
    assert not finished & set(asked[before:])
    assert len(set(asked)) == 300
    state = json.loads(path.read_text("utf-8"))
    assert len(state["task_states"]) == 300
    assert os.listdir(tmp_path) == ["run.json"]


def status_of(pid):
    """The letter of the status of a process, and the number of its parent, as /proc has them; None for none."""
    try:
        status, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return status, int(parent)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the children of a process in /proc")
@pytest.mark.parametrize("signals", [[signal.SIGKILL], [signal.SIGTERM, signal.SIGTERM]])
def test_a_run_that_is_killed_leaves_no_simulator_behind(tmp_path, signals):
    options = ["--simulate", "--dataset", "practice", "--samples", 1000, "--output", "run.json"]
    process = subprocess.Popen([sys.executable, EVAL, *map(str, options)], cwd=tmp_path, stdout=subprocess.PIPE)
    with process.stdout:
        assert process.stdout.readline()
        everyone = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        (child,) = [pid for pid in everyone if (status_of(pid) or ("", 0))[1] == process.pid]
        for number in signals:
            process.send_signal(number)
        assert process.wait(DEADLINE) == (-signal.SIGKILL if len(signals) == 1 else 128 + signal.SIGTERM)
    deadline = time.monotonic() + DEADLINE
    while (status_of(child) or "Z")[0] != "Z" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (status_of(child) or "Z")[0] == "Z"


def test_a_system_without_threads_to_give_gets_fewer_or_a_clear_word(tmp_path, fake_server, monkeypatch):
    def run(most):
        started, start = [], threading.Thread.start

        def limited(thread):
            if isinstance(thread, llama_eval.Worker):
                if len(started) >= most:
                    raise RuntimeError("can't start new thread")
                started.append(thread)
            start(thread)

        server, state, told = fake_server(right), a_run(), []
        services = [llama_eval.Service(llama_eval.Endpoint(server.url, 4))]
        options = llama_eval.Options()
        processor = llama_eval.Processor(services, llama_eval.RegexGrader(options), options)
        with monkeypatch.context() as patch, llama_eval.StateFile(tmp_path / f"{most}.json", 0) as file:
            patch.setattr(threading.Thread, "start", limited)
            processor.process(state, file, lambda *_: None, told.append)
        return told, Counter(result.status for result in state.task_states.values())

    assert run(2) == (["WARNING: can't start new thread: going on with 2 of 4"], {"correct": 4})
    with pytest.raises(llama_eval.EvalError, match="give fewer --threads"):
        run(0)
