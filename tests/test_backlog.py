"""Several endpoints, of which some break down: what is taken out, let back in, waited for and given up."""

import itertools
import json
import re
import subprocess
import threading
import time
from contextlib import contextmanager

import pytest

from scripts import (
    DEADLINE,
    DONE,
    EVAL,
    STREAM,
    HangupError,
    SocketServer,
    answer,
    chunk,
    delta,
    expected,
    http,
    load,
    run_eval,
    start_eval,
    streamed,
)

llama_eval = load(EVAL)
LOADING = http(b'{"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}', status=503)


def state_of(folder):
    return json.loads((folder / "run.json").read_text("utf-8"))


def run(folder, *servers, options=()):
    urls = ",".join(server if isinstance(server, str) else server.url for server in servers)
    base = ["--endpoint", urls, "--dataset", "practice", "--output", "run.json"]
    return run_eval(*base, *options, cwd=folder)


@contextmanager
def running(folder, *servers, options=()):
    """A run that goes on for the length of the block.

    `until(text)` waits for a line with that text, `finish()` for the end, and gives the exit status and all output.
    """
    urls = ",".join(server.url for server in servers)
    base = ["--endpoint", urls, "--dataset", "practice", "--output", "run.json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with start_eval(*base, *options, cwd=folder, **pipes) as process:
        lines = []

        def until(text):
            for line in process.stdout:
                lines.append(line)
                if text in line:
                    return
            pytest.fail(f"no line has {text!r}: {lines}")

        def finish():
            rest = process.stdout.read()  # not communicate(), which knows nothing of what is buffered here
            return process.wait(DEADLINE), "".join(lines) + rest

        deadline = threading.Timer(DEADLINE, process.kill)
        deadline.start()
        try:
            yield until, finish
        finally:
            deadline.cancel()
            process.kill()


def model_list(*names):
    """The act that answers a GET: /v1/models with these models, /health, and nothing else."""
    models = http(json.dumps({"data": [{"id": name} for name in names]}).encode())

    def get(connection, path):
        ok = {"/v1/models": models, "/health": http(b'{"status": "ok"}')}
        connection.sendall(ok.get(path, http(b"{}", status=404)))

    return get


def failing(connection, body):
    connection.sendall(http(b'{"error": {"message": "CUDA error"}}', status=500))


def hanging_up(connection, body):
    raise HangupError


def garbage(connection, body):
    connection.sendall(http(b"<html>Welcome to nginx!</html>"))


def broken_streams(connection, body):
    connection.sendall(streamed(delta("I think")))


def still_loading(connection, request):
    connection.sendall(LOADING)


@pytest.mark.parametrize("fault", [failing, hanging_up, garbage, broken_streams])
@pytest.mark.parametrize("mode", [(), ("--no-stream",)])
def test_an_endpoint_that_fails_fast_does_not_swallow_the_queue(socket_server, tmp_path, fault, mode):
    """It is there, and healthy, and each answer is wrong at once; the other takes its time."""

    def slowly(connection, body):
        threading.Event().wait(0.02)
        answer(connection, body)

    good, bad = socket_server(slowly), socket_server(fault)
    done = run(tmp_path, bad, good, options=["--samples", 2, "--threads", 4, *mode])
    assert (done.returncode, done.stderr) == (0, "")
    assert "60 correct" in done.stdout
    assert f"WARNING: {bad.url} is out of service: " in done.stdout
    assert len(bad.bodies) < 30
    states = state_of(tmp_path)["task_states"].values()
    assert {state["endpoint"] for state in states} == {good.url}


def test_what_a_server_takes_down_with_it_goes_to_the_others_and_is_no_attempt(socket_server, tmp_path):
    asked = threading.Semaphore(0)

    def die(connection, body):
        asked.release()
        connection.sendall(STREAM + chunk(delta("I think")))

    def last(connection, body):
        for _ in range(4):
            asked.acquire(timeout=DEADLINE)
        dying.close()
        good.act = answer
        answer(connection, body)

    good, dying = socket_server(last), socket_server(die)
    done = run(tmp_path, good, dying, options=["--threads", "1,4", "--max-retries", 0])
    assert (done.returncode, done.stderr) == (0, "")
    assert "30 correct" in done.stdout
    assert f"WARNING: {dying.url} is out of service: " in done.stdout
    assert {state["attempts"] for state in state_of(tmp_path)["task_states"].values()} == {1}


def dying_after(count):
    """An act that answers so many requests, and then takes the server down with it."""

    def act(connection, body):
        if count < len(act.server.bodies):
            act.server.close()
            raise HangupError
        answer(connection, body)

    return act


def test_a_server_that_restarts_is_waited_for_and_let_back_in(socket_server, tmp_path):
    """It dies over its sixth request, is away for a while, then loads its model, and then is as before."""
    probed, loaded = threading.Semaphore(0), threading.Event()

    def loading(connection, path):
        (model_list("tiny") if loaded.is_set() else still_loading)(connection, path)
        probed.release()

    dying = dying_after(5)
    server = dying.server = socket_server(dying)
    with running(tmp_path, server, options=["--threads", 2]) as (until, finish):
        until("is out of service")

        def act(connection, body):
            (answer if loaded.is_set() else still_loading)(connection, body)

        back = SocketServer(act, loading, port=server.port)
        for _ in range(2):
            assert probed.acquire(timeout=DEADLINE)
        loaded.set()
        status, output = finish()
    back.close()
    assert status == 0
    assert "30 correct" in output
    assert output.count("is out of service: ") == output.count("is back in service") >= 1, output
    assert {state["attempts"] for state in state_of(tmp_path)["task_states"].values()} == {1}


def test_a_server_that_comes_back_with_another_model_is_left_out(socket_server, tmp_path):
    dying = dying_after(5)
    server = dying.server = socket_server(dying, get=model_list("q8"))
    with running(tmp_path, server) as (until, finish):
        until("is out of service")
        back = SocketServer(still_loading, model_list("q4"), port=server.port)
        status, output = finish()
    back.close()
    assert status == 1
    assert f"{server.url} does not serve the model 'q8' but q4" in output
    assert "pending" in output


def test_a_server_that_restarts_at_once_with_another_model_is_left_out(socket_server, tmp_path):
    """It breaks its connections, and is there again before anybody can look."""

    def restarting(connection, body):
        if len(server.bodies) > 5:
            server.get = model_list("q4")
            raise HangupError
        answer(connection, body)

    server = socket_server(restarting, get=model_list("q8"))
    done = run(tmp_path, server, options=["--threads", 1])
    assert done.returncode == 1
    assert f"{server.url} does not serve the model 'q8' but q4" in done.stderr
    assert "5 correct" in done.stdout
    assert len(server.bodies) <= 7


def test_a_proxy_whose_server_is_gone_is_not_taken_for_it(socket_server, tmp_path):
    """It answers 502 to everything; what the server said of itself before is not forgotten."""
    gone, looked = threading.Event(), threading.Semaphore(0)

    def act(connection, body):
        if len(server.bodies) == 6:
            gone.set()
        (bad_gateway if gone.is_set() else answer)(connection, body)

    def get(connection, path):
        (bad_gateway if gone.is_set() else model_list("tiny"))(connection, path)
        if gone.is_set():
            looked.release()

    def bad_gateway(connection, _):
        connection.sendall(http(b"<h1>Bad Gateway</h1>", status=502))

    server = socket_server(act, get)
    with running(tmp_path, server, options=["--threads", 1]) as (until, finish):
        until("is out of service: HTTP 502")
        for _ in range(3):
            assert looked.acquire(timeout=DEADLINE)
        asked = len(server.bodies)
        server.act = answer
        gone.clear()
        status, output = finish()
    assert status == 0
    assert asked == 6, "nothing was sent to it while it was gone"
    assert "30 correct" in output
    assert state_of(tmp_path)["endpoints"][0]["models"] == [{"id": "tiny"}]
    refused = run(tmp_path, socket_server(answer, get=bad_gateway), options=["--overwrite"])
    assert refused.returncode == 1
    assert "cannot be used: HTTP 502" in refused.stderr


def test_without_an_endpoint_a_run_waits_then_gives_up_and_can_be_resumed(socket_server, tmp_path):
    dying = dying_after(5)
    server = dying.server = socket_server(dying)
    started = time.monotonic()
    done = run(tmp_path, server, options=["--threads", 1, "--give-up-after", 1.5])
    assert 1.5 <= time.monotonic() - started < DEADLINE / 2
    assert done.returncode == 3
    assert re.search(
        r"error: no endpoint has been in service for \d s \(the last: .*\): resume when one is", done.stderr
    )
    assert "5 correct, 0 incorrect, 0 no_answer, 0 truncated, 0 ungraded, 0 error" in done.stdout
    assert "25 pending" in done.stdout
    command = re.search(r"^resume +(.*)$", done.stdout, re.MULTILINE)[1]
    back = SocketServer(answer, port=server.port)
    again = subprocess.run(["/bin/sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE)
    back.close()
    assert "30 correct" in again.stdout
    assert len(back.bodies) == 25


def test_a_server_that_hangs_is_taken_out(socket_server, tmp_path):
    over = threading.Event()

    def hang(connection, body):
        over.wait(DEADLINE)

    hanging, good = socket_server(hang), socket_server(answer)
    done = run(tmp_path, hanging, good, options=["--threads", "6,2", "--stall-timeout", 1])
    over.set()
    assert (done.returncode, done.stderr) == (0, "")
    assert "30 correct" in done.stdout
    assert f"WARNING: {hanging.url} is out of service: no sign of life for 1 s" in done.stdout


def test_a_server_that_refuses_everything_does_not_spoil_the_tasks_of_another(socket_server, tmp_path):
    def refuse(connection, body):
        connection.sendall(http(b'{"error": {"message": "streaming is not supported"}}', status=400))

    def slowly(connection, body):
        threading.Event().wait(0.05)
        answer(connection, body)

    refusing, good = socket_server(refuse), socket_server(slowly)
    done = run(tmp_path, refusing, good)
    assert done.returncode == 0, done.stdout
    assert "30 correct" in done.stdout
    assert f"{refusing.url} refuses one task after the other (HTTP 400: streaming is not supported)" in done.stdout
    alone = run(tmp_path, refusing, options=["--overwrite"])
    assert alone.returncode == 1
    assert "refuses one task after the other (HTTP 400: streaming is not supported): set the key" in alone.stderr
    assert len(refusing.bodies) < 30


def test_what_had_arrived_is_kept_when_the_run_gives_up(socket_server, tmp_path):
    """Of tasks that were put back, too, when their server broke down over them."""

    def die(connection, body):
        connection.sendall(STREAM + chunk(delta("I think")))
        if len(server.bodies) == 4:
            server.close()
        threading.Event().wait(0.3)
        raise HangupError

    server = socket_server(die)
    done = run(tmp_path, server, options=["--threads", 4, "--give-up-after", 1])
    assert done.returncode == 3
    states = state_of(tmp_path)["task_states"].values()
    kept = [state for state in states if state["partial"]]
    assert kept
    for state in kept:
        assert (state["status"], state["partial"]["content"]) == ("pending", "I think")
        assert state["error"]
        assert state["endpoint"] == server.url


def test_a_key_that_one_server_refuses_does_not_stop_the_others(socket_server, tmp_path):
    def refuse(connection, body):
        connection.sendall(http(b'{"error": {"message": "Invalid API Key"}}', status=401))

    refusing, good = socket_server(refuse), socket_server(answer)
    done = run(tmp_path, refusing, good)
    assert done.returncode == 0
    assert "30 correct" in done.stdout
    assert f"WARNING: {refusing.url} refuses the requests (HTTP 401: Invalid API Key)" in done.stdout
    assert "; going on without it" in done.stdout
    assert len(refusing.bodies) <= 4


def test_a_run_starts_without_the_server_that_is_not_there_and_takes_it_in_when_it_comes(socket_server, tmp_path):
    closed = socket_server(answer, get=model_list("tiny"))
    closed.close()
    both = threading.Event()

    def waiting(connection, body):
        both.wait(DEADLINE)
        answer(connection, body)

    def joining(connection, body):
        both.set()
        answer(connection, body)

    first = socket_server(waiting, get=model_list("tiny"))
    with running(tmp_path, closed, first, options=["--threads", 2]) as (until, finish):
        until("starting without it")
        late = SocketServer(joining, model_list("tiny"), port=closed.port)
        status, output = finish()
    late.close()
    assert status == 0, output
    assert f"WARNING: {closed.url} cannot be used: Connection refused" in output
    assert f"{closed.url}: tiny, 2 threads" in output
    assert f"{closed.url} is back in service" in output
    assert late.bodies
    assert [endpoint["models"] for endpoint in state_of(tmp_path)["endpoints"]] == [[{"id": "tiny"}]] * 2


def test_a_server_that_is_loading_among_others_is_not_waited_for(socket_server, tmp_path):
    loading = socket_server(answer, get=still_loading)
    done = run(tmp_path, loading, socket_server(answer))
    assert "30 correct" in done.stdout
    assert f"WARNING: {loading.url} is loading its model; starting without it" in done.stdout
    assert loading.bodies == []


def test_a_server_that_loads_for_too_long_is_given_up(socket_server, tmp_path):
    loading = socket_server(answer, get=still_loading)
    done = run(tmp_path, loading, options=["--give-up-after", 0.2])
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"{loading.url} is loading its model" in done.stderr
    assert not (tmp_path / "run.json").exists()


def test_one_of_five_failures_at_random_costs_no_task(socket_server, tmp_path):
    """As others were measured: 200 tasks, 32 at a time, one reply of five is a 503."""
    numbers = iter(range(10**6))

    def act(connection, body):
        (failing if hash((3, next(numbers))) % 5 == 0 else answer)(connection, body)

    server = socket_server(act)
    done = run(tmp_path, server, options=["--samples", 7, "--threads", 32])
    assert (done.returncode, done.stderr) == (0, "")
    assert "210 correct" in done.stdout
    assert len(server.bodies) > 230


# ---- the rules, one by one ------------------------------------------------------------------------------


DONE_WITH = llama_eval.Attempt(llama_eval.Task("d/1#0", "1", 0, "?", "1"))


class Rules:
    """A backlog of some tasks and endpoints, and what it tells."""

    def __init__(self, tasks=8, endpoints=1, max_retries=1):
        self.news = []
        self.services = [llama_eval.Service(llama_eval.Endpoint(f"http://{n}", 4)) for n in range(endpoints)]
        self.pool = llama_eval.Pool(self.services, max_retries, self.news.append)
        for number in range(tasks):
            self.pool.put(llama_eval.Task(f"d/{number}#0", str(number), 0, "?", "1"))

    def fail(self, attempt=None, service=0, healthy=True, retry_after=0.0):
        service = self.services[service]
        attempt = attempt or self.pool.take(service)
        error = llama_eval.RequestError("it failed")
        error.retry_after = retry_after
        return self.pool.fail(service, attempt, error, llama_eval.LATER if healthy else llama_eval.DOWN)

    def refuse(self, attempt=None, service=0, said="no"):
        service = self.services[service]
        refusal = llama_eval.RequestError(f"HTTP 400: {said}", status=400)
        return self.pool.fail(service, attempt or self.pool.take(service), refusal, llama_eval.classify(refusal))

    def dismiss(self, reason, service=0):
        service = self.services[service]
        error = llama_eval.EndpointError(reason)
        return self.pool.fail(service, self.pool.take(service), error, llama_eval.classify(error))

    def outlast(self, service=0):
        """Come to the moment at which an endpoint that is out may be looked at."""
        self.services[service].retry_at = 0.0
        return self.pool.take(self.services[service])


def test_a_task_that_keeps_failing_at_a_healthy_server_is_given_up():
    rules = Rules(tasks=1, max_retries=2)
    attempt = rules.pool.take(rules.services[0])
    assert [rules.fail(attempt) for _ in range(3)] == [False, False, True]
    assert rules.pool.left == 0
    assert [line.split(" is ")[0] for line in rules.news] == ["0#0"] * 2
    assert rules.pool.take(rules.services[0]) is None


def test_many_tasks_in_a_row_that_fail_are_the_fault_of_the_server_and_none_of_theirs():
    rules = Rules(max_retries=9)
    attempts = [rules.pool.take(rules.services[0]) for _ in range(llama_eval.DOUBTFUL)]
    assert [rules.fail(attempt) for attempt in attempts] == [False] * llama_eval.DOUBTFUL
    assert rules.services[0].status == "down"
    assert {rules.pool.failures(attempt) for attempt in attempts} == {0}
    assert rules.news[-1] == "WARNING: http://0 is out of service: it failed; it is looked at again now and then"
    assert rules.pool.left == 8


def test_a_task_that_is_completed_in_between_clears_the_server_of_suspicion():
    rules = Rules(tasks=20, max_retries=5)
    for _ in range(3):
        for _ in range(llama_eval.DOUBTFUL - 1):
            rules.fail()
        rules.pool.take(rules.services[0])
        rules.pool.complete(rules.services[0], DONE_WITH)
    assert rules.services[0].status == "up"


def test_a_task_that_is_refused_goes_to_another_server_if_there_is_one():
    rules = Rules(endpoints=2)
    first = rules.pool.take(rules.services[0])
    assert not rules.refuse(first, 0)
    assert rules.refuse(first, 1), "both have refused it"
    assert Rules().refuse()


def test_a_server_that_refuses_task_after_task_is_left_out_and_none_of_them_is_to_blame():
    rules = Rules(endpoints=2)
    attempts = [rules.pool.take(rules.services[0]) for _ in range(llama_eval.DOUBTFUL)]
    assert not any(rules.refuse(attempt, said="no streams") for attempt in attempts)
    assert rules.services[0] not in rules.pool.services
    assert {rules.pool.failures(attempt) for attempt in attempts} == {0}
    text = "WARNING: http://0 refuses one task after the other (HTTP 400: no streams); going on without it"
    assert rules.news[-1] == text


def test_a_failure_counts_once_its_server_has_completed_something():
    rules = Rules(max_retries=9)
    attempt = rules.pool.take(rules.services[0])
    rules.fail(attempt)
    assert (rules.pool.failures(attempt), attempt.failures) == (1, 0)
    rules.pool.take(rules.services[0])
    rules.pool.complete(rules.services[0], DONE_WITH)
    assert (rules.pool.failures(attempt), attempt.failures) == (1, 1)


def test_an_endpoint_comes_back_with_one_task_and_the_others_follow_its_first_token():
    rules = Rules()
    service = rules.services[0]
    rules.fail(healthy=False)
    assert rules.outlast() is service
    rules.pool.looked_at(service, llama_eval.UnreachableError("still away"))
    assert (service.status, service.tester) == ("down", None)
    assert rules.outlast() is service
    rules.pool.looked_at(service, None)
    trial = rules.pool.take(service)
    assert service.status == "trial"
    others, got = threading.Thread(target=lambda: got.append(rules.pool.take(service))), []
    others.start()
    others.join(0.2)
    assert others.is_alive(), "there is nothing for a second thread before the first has a token"
    rules.pool.alive(service)
    others.join(DEADLINE)
    assert got[0] not in (None, trial)
    assert "http://0 is back in service" not in rules.news, "which a token does not prove"
    rules.pool.complete(service, DONE_WITH)
    assert rules.news[-1] == "http://0 is back in service"


def test_pauses_grow_until_a_server_has_completed_something():
    rules = Rules(tasks=100)
    service, pauses = rules.services[0], []
    for _ in range(12):
        rules.fail(healthy=False)
        pauses.append(service.retry_at - time.monotonic())
        assert rules.outlast() is service
        rules.pool.looked_at(service, None)
    assert pauses[0] <= llama_eval.PROBE_AFTER
    assert llama_eval.PROBE_LIMIT / 2 - 1 < pauses[-1] <= llama_eval.PROBE_LIMIT
    assert len([line for line in rules.news if line]) == 1, "one outage is told once"
    rules.pool.take(service)
    rules.pool.complete(service, DONE_WITH)
    rules.fail(healthy=False)
    assert service.retry_at - time.monotonic() <= llama_eval.PROBE_AFTER


def test_a_task_over_which_servers_keep_breaking_down_is_given_up():
    rules = Rules(tasks=1)
    attempt = rules.pool.take(rules.services[0])
    ends = []
    while not any(ends):
        ends.append(rules.fail(attempt, healthy=False))
        rules.services[0].status = "up"
    assert len(ends) == llama_eval.MAX_LOSSES + 1
    assert rules.pool.failures(attempt) == 0


def test_a_deadline_is_held_against_the_task_and_not_against_the_server():
    rules = Rules(max_retries=1)
    late = llama_eval.DeadlineError("too late")
    remedy = llama_eval.classify(late)
    attempts = [rules.pool.take(rules.services[0]) for _ in range(7)]
    assert not any(rules.pool.fail(rules.services[0], attempt, late, remedy) for attempt in attempts)
    assert rules.services[0].status == "up"
    assert all(rules.pool.fail(rules.services[0], attempt, late, remedy) for attempt in attempts)


def test_bad_tasks_at_the_only_server_end_as_errors_though_they_are_many():
    """The server is healthy, and each of the last tasks fails there, over and over."""
    rules = Rules(tasks=llama_eval.DOUBTFUL + 1, max_retries=1)
    service, ends = rules.services[0], 0
    while rules.pool.left:
        service.retry_at = 0.0
        item = rules.pool.take(service)
        if item is service:
            rules.pool.looked_at(service, None)
        else:
            ends += rules.fail(item)
    assert ends == llama_eval.DOUBTFUL + 1


@pytest.mark.parametrize("gone", [False, True])
def test_a_task_that_is_put_back_wakes_the_thread_that_waits_at_another_endpoint(gone):
    rules = Rules(tasks=1, endpoints=2)
    attempt = rules.pool.take(rules.services[0])
    rules.services[0].status, got = "down", []
    if gone:
        rules.pool.services.remove(rules.services[0])
    idle = threading.Thread(target=lambda: got.append(rules.pool.take(rules.services[1])), daemon=True)
    idle.start()
    while not rules.pool.changed._waiters:  # until it waits
        idle.join(0.01)
    rules.fail(attempt, healthy=False)
    idle.join(DEADLINE)
    assert got == [attempt]


def test_an_endpoint_that_is_gone_does_not_come_back_by_a_token():
    rules = Rules(endpoints=2)
    rules.dismiss("it refuses the key")
    rules.pool.alive(rules.services[0])
    assert rules.pool.take(rules.services[0]) is None


def test_a_server_that_asks_for_time_gets_it_when_it_is_taken_out():
    rules = Rules()
    rules.fail(healthy=False, retry_after=20.0)
    assert 15 < rules.services[0].retry_at - time.monotonic() <= 20


def test_an_outage_lasts_until_a_token_comes_but_not_while_something_is_tried():
    rules = Rules(endpoints=2)
    assert rules.pool.outage() is None
    rules.fail(healthy=False, service=0)
    assert rules.pool.outage() is None, "the other is there"
    rules.fail(healthy=False, service=1)
    rules.pool.out_since -= 100  # it began long ago
    assert 100 <= rules.pool.outage() < 110
    assert rules.outlast() is rules.services[0]
    assert rules.pool.outage() >= 100, "a look is no service"
    rules.pool.looked_at(rules.services[0], None)
    assert rules.pool.outage() is None, "it is being tried"
    rules.fail(healthy=False, service=0)
    assert rules.pool.outage() >= 100, "a trial that fails has ended nothing"
    rules.outlast()
    rules.pool.looked_at(rules.services[0], None)
    attempt = rules.pool.take(rules.services[0])
    rules.pool.alive(rules.services[0])
    rules.fail(attempt, healthy=False, service=0)
    assert rules.pool.outage() < 10


def test_a_task_that_waits_for_its_next_attempt_goes_to_whoever_is_free_then():
    rules = Rules(tasks=1, endpoints=2)
    attempt = rules.pool.take(rules.services[0])
    rules.fail(attempt)
    assert rules.pool.take(rules.services[1]) is attempt


def test_who_has_no_more_to_do_is_told_when_the_last_task_is_done():
    rules = Rules(tasks=1, endpoints=2)
    rules.pool.take(rules.services[0])
    ends = []
    idle = [threading.Thread(target=lambda: ends.append(rules.pool.take(rules.services[1]))) for _ in range(3)]
    for thread in idle:
        thread.start()
    rules.pool.complete(rules.services[0], DONE_WITH)
    for thread in idle:
        thread.join(DEADLINE)
    assert ends == [None] * 3


def test_the_last_endpoint_that_is_dismissed_ends_the_run():
    rules = Rules(endpoints=2)
    rules.dismiss("it refuses the key")
    assert rules.news == ["WARNING: it refuses the key; going on without it"]
    assert rules.pool.take(rules.services[0]) is None
    rules.dismiss("it does, too", 1)
    assert isinstance(rules.news[-1], llama_eval.EndpointError)


def test_waiting_for_an_endpoint_is_told_now_and_then(socket_server, tmp_path, monkeypatch):
    monkeypatch.setattr(llama_eval, "WORD_SECONDS", 0.2)  # a minute
    service = llama_eval.Service(llama_eval.Endpoint("http://127.0.0.1:9", 2))
    options = llama_eval.Options(stall_timeout=DEADLINE, give_up_after=1.0)
    processor = llama_eval.Processor([service], llama_eval.RegexGrader(options), options)
    dataset, prompt = llama_eval.load_dataset("practice"), llama_eval.Prompt("json", "{question}")
    state = llama_eval.new_run(dataset, prompt, llama_eval.Sampling(), 1, slice(3))
    state.endpoints, told = [service.endpoint], []
    with llama_eval.StateFile(tmp_path / "run.json", 3600) as file:
        file.save(state)
        with pytest.raises(llama_eval.NoEndpointError, match="no endpoint has been in service for 1 s"):
            processor.process(state, file, lambda task, result: None, told.append)
    words = [line for line in told if line.startswith("WARNING: no endpoint is in service, giving up in ")]
    assert 4 <= len(words) <= 6
    assert "giving up in 1 s unless one comes back: " in words[0]
    assert "Connection refused" in words[0]


def run_on(simulator, tmp_path, *more):
    options = ["--endpoint", simulator.url, "--dataset", "practice", "--limit", 8, "--output", "run.json"]
    done = run_eval(*options, *more, cwd=tmp_path)
    return done, json.loads((tmp_path / "run.json").read_text("utf-8"))


@pytest.mark.parametrize("mode", [[], ["--no-stream"]])
def test_a_server_whose_slots_share_one_context_is_sent_fewer_at_a_time(start_simulator, tmp_path, mode):
    simulator = start_simulator(
        *("--dataset", "practice", "--success-rate", 1, "--kv-unified", "--ctx-size", 700),
        *("--tokens-per-second", 300),
    )
    done, state = run_on(simulator, tmp_path, *mode)
    assert (done.returncode, state["summary"]["counts"]["correct"]) == (0, 8), done.stdout
    assert done.stdout.count("cannot work on so many requests at a time: HTTP 500: Context size has been") == 1


def test_what_fills_the_context_alone_is_truncated(socket_server, tmp_path):
    failure = {"error": {"code": 500, "message": "Context size has been exceeded.", "type": "server_error"}}
    server = socket_server(lambda connection, body: connection.sendall(http(json.dumps(failure).encode(), 500)))
    done, state = run_on(server, tmp_path, "--threads", 4)
    assert (done.returncode, state["summary"]["counts"]["truncated"]) == (0, 8), done.stdout


def test_a_server_that_ends_one_stream_for_the_next_is_sent_one_at_a_time(start_simulator, tmp_path):
    simulator = start_simulator(
        *("--dataset", "practice", "--success-rate", 1, "--interrupt-requests", "--tokens-per-second", 500),
    )
    done, state = run_on(simulator, tmp_path)
    assert (done.returncode, state["summary"]["counts"]["correct"]) == (0, 8), done.stdout
    assert done.stdout.count("cannot work on so many requests at a time: the stream ended without") == 1


def test_a_server_that_never_gives_a_finish_reason_is_believed(socket_server, tmp_path):
    """Once one stream has ended so that no other could have cut short, and at full width from then on."""

    def act(connection, body):
        whole = json.dumps({"choices": [{"index": 0, "delta": {"content": f'{{"answer": {expected(body)}}}'}}]})
        connection.sendall(streamed(f"data: {whole}\n\n".encode(), DONE))

    done, state = run_on(socket_server(act), tmp_path, "--threads", 4)
    assert (done.returncode, state["summary"]["counts"]["correct"]) == (0, 8), done.stdout


def test_some_bound_ends_a_run_whatever_its_server_does(socket_server, tmp_path):
    """This one answers every look at it, and lets each request of a crowd fail, for ever."""
    number = itertools.count()

    def act(connection, body):
        if next(number) % 9 == 8:
            answer(connection, body)
        else:
            connection.sendall(http(b'{"error": {"message": "no"}}', 503))

    done, state = run_on(socket_server(act), tmp_path, "--threads", 4, "--max-retries", 2)
    assert done.returncode in (0, 3)
    counts = state["summary"]["counts"]
    assert counts["correct"] + counts["error"] == 8


def test_replies_that_nobody_can_use_are_told_with_what_to_try(socket_server, tmp_path):
    server = socket_server(lambda connection, body: connection.sendall(http(b'{"object": "something else"}')))
    done, _ = run_on(server, tmp_path, "--threads", 4, "--give-up-after", 3)
    assert done.returncode == 3
    first = next(line for line in done.stdout.splitlines() if "out of service" in line)
    assert "the reply is no chat completion" in first
    assert "try --no-stream" in first
