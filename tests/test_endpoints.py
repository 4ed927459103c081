"""One server: its URL, what it says of itself, one request to it."""

import socket

import pytest

from scripts import EVAL, completion, load, right, run_eval

llama_eval = load(EVAL)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://localhost:8033", "http://localhost:8033"),
        ("http://localhost:8033/", "http://localhost:8033"),
        ("http://localhost:8033/v1", "http://localhost:8033"),
        (" http://localhost:8033/v1/ ", "http://localhost:8033"),
        ("https://host/proxy/v1", "https://host/proxy"),
        ("http://[::1]:8033", "http://[::1]:8033"),
        ("http://localhost:8033/v1/chat/completions", "http://localhost:8033"),
    ],
)
def test_an_endpoint_is_the_same_with_or_without_v1_and_slash(text, url):
    assert llama_eval.parse_endpoint(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "localhost:8033",
        "ftp://localhost",
        "http://",
        "http://:8033",
        "http://host:99999",
        "http://host:x",
        "8033",
        "http://[::1",
    ],
)
def test_what_is_not_a_url_is_bad_usage(text):
    with pytest.raises(llama_eval.UsageError, match="is not a URL"):
        llama_eval.parse_endpoint(text)


@pytest.mark.parametrize("text", ["http://user:secret@host", "http://host/?key=secret", "http://host/#secret"])
def test_a_url_with_a_secret_in_it_is_refused_and_not_repeated(text):
    with pytest.raises(llama_eval.UsageError, match="bare URL") as error:
        llama_eval.parse_endpoint(text)
    assert "secret" not in str(error.value)


def complete(reply, fake_server, api_key=None, timeout=30.0):
    server = fake_server(lambda method, path, body: reply)
    return llama_eval.Client(server.url, api_key, llama_eval.Options(stall_timeout=timeout)).complete({"messages": []})


def test_the_least_of_a_reply_is_a_response(fake_server):
    response = complete((200, completion("70")), fake_server)
    assert (response.content, response.reasoning, response.finish_reason) == ("70", "", "stop")
    assert (response.model, response.prompt_tokens, response.completion_tokens, response.tokens_per_second) == (
        None,
    ) * 4
    assert response.seconds >= 0


def test_everything_llama_server_says_is_kept(fake_server):
    reply = completion("70", model="tiny", usage={"prompt_tokens": 5, "completion_tokens": 7})
    reply["timings"] = {"predicted_n": 7, "predicted_per_second": 45.5}
    reply["choices"][0]["message"]["reasoning_content"] = "because"
    response = complete((200, reply), fake_server)
    assert (response.reasoning, response.model, response.prompt_tokens) == ("because", "tiny", 5)
    assert (response.completion_tokens, response.tokens_per_second) == (7, 45.5)


def test_tokens_are_taken_from_timings_when_there_is_no_usage(fake_server):
    response = complete((200, completion("70", timings={"predicted_n": 7})), fake_server)
    assert response.completion_tokens == 7
    assert response.tokens_per_second > 0


@pytest.mark.parametrize(
    "odd",
    [
        {"usage": None, "timings": None, "model": None},
        {"usage": [], "timings": 5, "model": 7},
        {"usage": {"completion_tokens": "7"}, "timings": {"predicted_per_second": None}},
        {"usage": {"completion_tokens": -1}, "timings": {"predicted_n": True}},
        {"usage": {"completion_tokens": 10**400}, "timings": {"predicted_per_second": 10**400}},
    ],
)
def test_what_a_server_says_in_another_shape_is_left_out(fake_server, odd):
    response = complete((200, completion(None, **odd)), fake_server)
    assert (response.content, response.completion_tokens, response.tokens_per_second) == ("", None, None)


def test_numbers_that_json_cannot_hold_are_left_out(fake_server):
    body = b'{"choices":[{"message":{"content":"70"}}],"timings":{"predicted_n":1,"predicted_per_second":%s}}'
    for number in (b"NaN", b"Infinity", b"1e999"):
        speed = complete((200, body % number), fake_server).tokens_per_second
        assert speed is not None
        assert 0 < speed < float("inf")


@pytest.mark.parametrize(
    ("status", "payload", "message", "retryable"),
    [
        (503, {"error": {"message": "Loading model", "code": 503}}, "HTTP 503: Loading model", True),
        (502, b"<html><h1>Bad\nGateway</h1></html>", "HTTP 502: <html><h1>Bad Gateway", True),
        (429, {"error": "slow down"}, "HTTP 429: slow down", True),
        (500, b"", "HTTP 500: nothing more", True),
        (400, {"error": {"message": "no such parameter"}}, "HTTP 400: no such parameter", False),
        (404, {"detail": "Not Found"}, 'HTTP 404: {"detail": "Not Found"}', False),
        (301, b"", "HTTP 301", False),
        (200, {"error": {"message": "overloaded"}}, "overloaded", True),
        (200, b"<html>hello</html>", "not JSON", True),
        (200, b'{"choices": [{"mess', "not JSON", True),
        (200, b"[" * 100_000, "not JSON", True),
        (200, {"choices": []}, "no chat completion", True),
        (200, {"choices": [{"message": None}]}, "no chat completion", True),
        (200, [], "no chat completion", True),
        (200, {}, "no chat completion", True),
    ],
)
def test_what_is_no_answer_is_an_error_in_one_line(fake_server, status, payload, message, retryable):
    with pytest.raises(llama_eval.RequestError) as error:
        complete((status, payload), fake_server)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert (llama_eval.classify(error.value) == llama_eval.LATER) is retryable


def test_a_server_that_hangs_up_or_is_not_there_is_worth_another_try():
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(llama_eval.RequestError, match="Connection refused") as error:
        llama_eval.Client(url, None, llama_eval.Options(stall_timeout=5)).complete({})
    assert llama_eval.classify(error.value) == llama_eval.LATER


def test_a_server_that_says_nothing_is_given_up(fake_server):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(llama_eval.RequestError, match=r"no sign of life for 0\.2 s"):
            llama_eval.Client(url, None, llama_eval.Options(stall_timeout=0.2)).complete({})


def test_the_key_is_sent_as_a_bearer_token_and_taken_out_of_what_comes_back(fake_server):
    server = fake_server(lambda method, path, body: (400, {"error": {"message": "bad key sk-1234567890"}}))
    with pytest.raises(llama_eval.RequestError) as error:
        llama_eval.Client(server.url, "sk-1234567890", llama_eval.Options(stall_timeout=5)).complete({})
    assert server.requests[0][2]["Authorization"] == "Bearer sk-1234567890"
    assert str(error.value) == "HTTP 400: bad key [api key]"


def test_no_netrc_entry_takes_the_place_of_the_key(fake_server, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    server = fake_server(lambda method, path, body: (200, completion("70")))
    llama_eval.Client(server.url, "sk-1234567890", llama_eval.Options(stall_timeout=5)).complete({})
    llama_eval.Client(server.url, None, llama_eval.Options(stall_timeout=5)).complete({})
    assert [headers.get("Authorization") for _, _, headers, _ in server.requests] == ["Bearer sk-1234567890", None]


def models(*entries):
    return [llama_eval.Endpoint(f"http://{i}", 1, [{"id": name} for name in names]) for i, names in enumerate(entries)]


def test_the_model_is_the_one_that_every_endpoint_serves():
    assert llama_eval.choose_model(None, models(["a"], ["a"])) == "a"
    assert llama_eval.choose_model(None, models([], ["a"])) == "a"
    assert llama_eval.choose_model("b", models(["a", "b"], ["b"], [])) == "b"
    assert llama_eval.choose_model(None, models([], [])) is None
    assert (
        llama_eval.choose_model("alias", [llama_eval.Endpoint("u", 1, [{"id": "a", "aliases": ["alias"]}])]) == "alias"
    )


@pytest.mark.parametrize(
    ("wanted", "served", "message"),
    [
        (None, [["a"], ["b"]], "http://1 does not serve the model 'a' but b"),
        (None, [["a", "b"]], "serves several models: choose one with --model: a, b"),
        ("c", [["a", "b"]], "does not serve the model 'c' but a, b"),
    ],
)
def test_a_run_with_two_models_or_another_one_is_refused(wanted, served, message):
    with pytest.raises(llama_eval.EndpointError, match=message):
        llama_eval.choose_model(wanted, models(*served))


def test_a_server_that_offers_nothing_but_completions_can_be_used(fake_server, tmp_path):
    def reply(method, path, body):
        return (200, completion(None)) if path == "/v1/chat/completions" else (404, b"<html>no</html>")

    server = fake_server(reply)
    done = run_eval("--endpoint", f"{server.url}/v1/", "--dataset", "practice", "--limit", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0 correct, 0 incorrect, 2 no_answer" in done.stdout
    assert "model" not in server.prompts()[0]


def test_a_model_that_is_being_loaded_is_waited_for(fake_server, tmp_path):
    asked = []

    def reply(method, path, body):
        asked.append(path)
        if len(asked) < 3:
            return 503, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}
        return (200, completion("70")) if method == "POST" else (404, b"")

    server = fake_server(reply)
    done = run_eval("--endpoint", server.url, "--dataset", "practice", "--limit", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "is loading its model; waiting" in done.stdout


def test_a_refused_key_ends_the_run_before_it_starts(fake_server, tmp_path):
    refusal = {"error": {"message": "Invalid API Key", "type": "authentication_error", "code": 401}}
    server = fake_server(lambda method, path, body: (401, refusal))
    done = run_eval("--endpoint", server.url, "--dataset", "practice", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "Invalid API Key" in done.stderr
    assert "LLAMA_API_KEY" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_a_server_is_said_before_the_run(fake_server):
    props = {"total_slots": 2, "default_generation_settings": {"n_ctx": 1024}, "build_info": "b9999"}
    server = fake_server(lambda method, path, body: (200, props if path == "/props" else {"data": [{"id": "tiny"}]}))
    endpoint = llama_eval.look_at(server.url, 4, None, None)
    for words in ("tiny", "4 threads", "2 slots", "1024 tokens of context per slot", "b9999"):
        assert words in llama_eval.describe(endpoint)
    slots, context = llama_eval.misfits(endpoint, 1000, 100)
    assert "2 of 4 threads will always wait" in slots
    assert "prompts of about 100 tokens and --max-tokens 1000 do not fit its context of 1024 per slot" in context
    assert "prompts of about 2000 tokens do not fit" in llama_eval.misfits(endpoint, None, 2000)[1]
    assert llama_eval.misfits(llama_eval.look_at(server.url, 2, None, None), 512, 100) == []


@pytest.mark.parametrize("page", [b"", b"OK", b"<html>every path is this page</html>", b"null"])
def test_a_healthy_server_may_say_anything_on_paths_it_does_not_know(fake_server, tmp_path, page):
    server = fake_server(lambda method, path, body: (200, completion("70") if method == "POST" else page))
    done = run_eval("--endpoint", server.url, "--dataset", "practice", "--limit", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def redirecting(paths):
    """The reply of a server that is right, but sends some paths to a login page."""

    def reply(method, path, body):
        return (302, b"", {"Location": "http://elsewhere"}) if path in paths else right(method, path, body)

    return reply


def test_a_server_that_redirects_is_refused_with_the_place(fake_server, tmp_path):
    server = fake_server(redirecting(("/health", "/v1/models", "/props", "/v1/chat/completions")))
    done = run_eval("--endpoint", server.url, "--dataset", "practice", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "it redirects to http://elsewhere" in done.stderr


@pytest.mark.parametrize(
    ("paths", "more"), [(("/health", "/props"), []), (("/health", "/props", "/v1/models"), ["--model", "m"])]
)
def test_a_probe_that_is_optional_may_redirect(fake_server, tmp_path, paths, more):
    server = fake_server(redirecting(paths))
    done = run_eval("--endpoint", server.url, "--dataset", "practice", "--limit", 2, *more, cwd=tmp_path)
    assert (done.returncode, "2 correct" in done.stdout) == (0, True)


def test_a_model_that_is_listed_twice_is_no_choice(fake_server, tmp_path):
    def reply(method, path, body):
        return (200, {"data": [{"id": "m"}, {"id": "m"}]}) if path == "/v1/models" else right(method, path, body)

    done = run_eval("--endpoint", fake_server(reply).url, "--dataset", "practice", "--limit", 2, cwd=tmp_path)
    assert (done.returncode, "2 correct" in done.stdout) == (0, True)


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ("", "/v1/chat/completions"),
        ("/v1", "/v1/chat/completions"),
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/openai", "/openai/chat/completions"),
        ("/openai", "/openai/v1/chat/completions"),
        ("/api/paas/v4", "/api/paas/v4/chat/completions"),
        ("/v1beta/openai/", "/v1beta/openai/chat/completions"),
        ("/odd/chat/completions", "/odd/chat/completions"),
    ],
)
def test_the_api_is_found_below_whatever_base_url(fake_server, tmp_path, given, place):
    def reply(method, path, body):
        return right(method, path, body) if path == place else (404, {"error": {"message": "nothing here"}})

    server = fake_server(reply)
    options = ["--dataset", "practice", "--limit", 2, "--threads", 1]
    done = run_eval("--endpoint", server.url + given, *options, cwd=tmp_path)
    assert (done.returncode, "2 correct" in done.stdout) == (0, True)


def test_the_places_that_were_tried_are_told(fake_server, tmp_path):
    server = fake_server(lambda *_: (404, {"error": {"message": "nothing here"}}))
    done = run_eval("--endpoint", server.url + "/odd", "--dataset", "practice", cwd=tmp_path)
    assert done.returncode == 1
    tried = f"(tried {server.url}/odd/v1/chat/completions and {server.url}/odd/chat/completions)"
    assert tried in done.stderr


def test_settings_of_one_of_several_models_are_asked_for_by_its_name(fake_server, tmp_path):
    """As llama-server in router mode has them."""

    def reply(method, path, body):
        if path == "/v1/models":
            return 200, {"data": [{"id": "a/b"}, {"id": "c"}]}
        if path == "/props?model=a%2Fb":
            return 200, {"total_slots": 3, "default_generation_settings": {"n_ctx": 8192}}
        return right(method, path, body)

    options = ["--dataset", "practice", "--limit", 2, "--model", "a/b", "--threads", "auto"]
    done = run_eval("--endpoint", fake_server(reply).url, *options, cwd=tmp_path)
    assert "a/b, 3 threads, 3 slots, 8192 tokens of context per slot" in done.stdout


def test_a_schema_that_a_server_breaks_over_is_a_refusal(fake_server, tmp_path):
    def reply(method, path, body):
        if method == "POST" and "response_format" in body:
            return 500, {"error": {"message": "failed to parse grammar"}}
        return right(method, path, body)

    options = ["--dataset", "practice", "--limit", 2, "--answer-format", "schema", "--threads", 1]
    done = run_eval("--endpoint", fake_server(reply).url, *options, cwd=tmp_path)
    assert (done.returncode, "refuses response_format" in done.stdout, "2 correct" in done.stdout) == (0, True, True)


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".example", "[::1"])
def test_a_host_that_cannot_be_is_one_line(tmp_path, host):
    done = run_eval("--endpoint", f"http://{host}:80", "--dataset", "practice", cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("reason", ["error", "abort", "content_filter"])
def test_a_response_that_the_server_gave_up_is_no_response(fake_server, reason):
    reply = completion("")
    reply["choices"][0]["finish_reason"] = reason
    with pytest.raises(llama_eval.RequestError, match=reason):
        complete((200, reply), fake_server)


def test_an_error_within_a_choice_is_no_response(fake_server):
    reply = completion("half of it")
    reply["choices"][0]["error"] = {"message": "upstream went away"}
    with pytest.raises(llama_eval.RequestError, match="upstream went away"):
        complete((200, reply), fake_server)


@pytest.mark.parametrize("content", [70, {"text": "70"}, [70]])
def test_a_content_of_another_kind_is_no_completion(fake_server, content):
    with pytest.raises(llama_eval.RequestError, match="no chat completion"):
        complete((200, completion(content)), fake_server)


def test_a_message_without_content_is_no_completion_unless_it_has_reasoning(fake_server):
    reply = completion("")
    del reply["choices"][0]["message"]["content"]
    with pytest.raises(llama_eval.RequestError, match="no chat completion"):
        complete((200, reply), fake_server)
    reply["choices"][0]["message"]["reasoning"] = "Hm."
    response = complete((200, reply), fake_server)
    assert (response.content, response.reasoning) == ("", "Hm.")


def test_a_content_in_parts_is_their_text(fake_server):
    parts = [{"type": "text", "text": "The answer "}, {"type": "image"}, {"type": "text", "text": "is 70"}]
    assert complete((200, completion(parts)), fake_server).content == "The answer is 70"


@pytest.mark.parametrize("escape", [lambda key: key.replace("/", "\\/"), lambda key: key.replace("+", "\\u002b")])
def test_no_escape_of_json_hides_the_key(fake_server, escape):
    key = "sk-very/secret+key"
    body = b'{"error": {"message": "you sent %s"}}' % escape(key).encode()
    with pytest.raises(llama_eval.RequestError) as error:
        complete((400, body), fake_server, api_key=key)
    assert str(error.value) == "HTTP 400: you sent [api key]"


def test_a_proxy_is_not_asked_for_this_machine(fake_server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert complete((200, completion("70")), fake_server).content == "70"


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        (None, 0, 0),
        ("", 0, 0),
        ("0", 0, 0),
        ("1.5", 1.5, 1.5),
        ("-3", 0, 0),
        ("86400", 600, 600),
        ("nan", 0, 0),
        ("inf", 0, 0),
        ("soon", 0, 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", 0, 0),
        ("Mon, 01 Jan 2024 00:00:00 +99999999999999999999", 0, 600),
        ("Wed, 21 Oct 2065 07:28:00 GMT", 600, 600),
    ],
)
def test_retry_after_is_seconds_or_a_date_within_reason(header, least, most):
    assert least <= llama_eval.seconds_to_wait(header) <= most


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "example.org"])
@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_certificates_that_the_environment_names_hold_for_every_host(monkeypatch, host, variable):
    for name in llama_eval.CERTIFICATES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "/etc/own.pem")
    client = llama_eval.Client(f"https://{host}", None, llama_eval.Options())
    assert client._prepared("GET", "/health")[1]["verify"] == "/etc/own.pem"


def test_a_key_in_the_place_of_a_redirect_is_taken_out_before_that_is_cut(fake_server, tmp_path):
    key = "sk-" + "0123456789" * 6
    place = "http://elsewhere/" + "x" * 110 + f"?key={key}"  # cut first, only half of the key would be left
    server = fake_server(lambda method, path, body: (302, b"", {"Location": place}))
    done = run_eval("--endpoint", server.url, "--dataset", "practice", cwd=tmp_path, env={"LLAMA_API_KEY": key})
    assert (done.returncode, "it redirects to http://elsewhere/" in done.stderr) == (1, True)
    assert key[:12] not in done.stderr
