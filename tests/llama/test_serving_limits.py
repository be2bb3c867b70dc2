"""Clients that leave, wait, read slowly or ask too much; a server that stops. The engine's steps are the test's."""

from __future__ import annotations

import json
import socket
import threading

import httpx
import openai
import psutil
import pytest

from examples.llama2_13b.serving import limits
from examples.llama2_13b.serving.http_server import listen
from examples.llama2_13b.serving.limits import is_loopback
from examples.llama2_13b.serving.served_model import ServedModel
from tests.llama.served import SOON, ScriptedEngine, raw, served, until

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ASKED = {"model": "tiny", "prompt": "a", "max_tokens": 5}


@pytest.fixture(scope="module")
def model(tiny_folder):
    return ServedModel.from_folder(tiny_folder, "tiny", None)


@pytest.fixture
def engine():
    return ScriptedEngine()


def post(address, path=TEXT, headers=None, **fields):
    return httpx.post(address + path, json={**ASKED, **fields}, headers=headers, timeout=SOON)


def start(address, **fields):
    """A connection on which an answer is asked for, and not read."""
    return raw(address, "POST", TEXT, json.dumps({**ASKED, **fields}).encode())


def error_of(response):
    return response.json()["error"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("had_tokens", [False, True])
def test_a_client_that_leaves_frees_its_block_at_once(engine, model, stream, had_tokens):
    engine.max_rows = 1
    with served(engine, model) as (state, address):
        if not had_tokens:
            engine.gate.clear()
        engine.seconds_per_step = 0.01
        connection = start(address, stream=stream, max_tokens=200)
        until(lambda: engine.stats.running == 1 and (engine.stats.generated_tokens > 2) == had_tokens)
        assert engine.stats.free_blocks == 0
        connection.close()
        until(lambda: engine.cancelled)
        assert engine.cancelled == [engine.added[0].id]
        until(lambda: engine.stats.free_blocks == 1 and state.engine.num_under_way == 0)
        engine.gate.set()
        assert post(address).json()["choices"][0]["text"] == "word " * 5
        assert b'outcome="left",path="/v1/completions"} 1.0' in state.metrics.page()


def test_a_client_that_leaves_while_it_waits_never_runs(engine, model):
    engine.gate.clear()
    with served(engine, model) as (state, address):
        running = [start(address), start(address)]
        until(lambda: engine.stats.running == 2)
        waiting = start(address, n=3)
        until(lambda: engine.stats.waiting == 3)
        waiting.close()
        until(lambda: engine.stats.waiting == 0)
        assert len(engine.cancelled) == 3 and state.engine.num_under_way == 2
        engine.gate.set()
        assert all(b"200 OK" in connection.recv(1000) for connection in running)


def test_a_full_queue_is_told_with_a_time_to_come_again(engine, model):
    engine.gate.clear()
    with served(engine, model, capacity=3) as (state, address):
        connections = [start(address), start(address, n=2)]
        until(lambda: state.engine.num_under_way == 3)
        refused = post(address)
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert error_of(refused)["type"] == "rate_limit_error" and error_of(refused)["code"] == "queue_full"
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.RateLimitError, match="3 answers of 3 at most are under way"):
            client.completions.create(**ASKED)
        engine.gate.set()
        assert all(b"200 OK" in connection.recv(1000) for connection in connections)
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=5)
        assert client.completions.create(**ASKED).usage.completion_tokens == 5
        assert len(engine.added) == 4


def test_what_the_engine_refuses_is_the_client_s_error(engine, model):
    with served(engine, model) as (_, address):
        for stream in (False, True):
            refused = post(address, prompt=[1, 13], n=2, stream=stream)
            assert refused.status_code == 400 and error_of(refused)["message"] == "prompt must be lucky, got 13"


@pytest.mark.parametrize("when", ["add", "cancel"])
def test_an_engine_that_fails_between_steps_ends_the_server_too(engine, model, monkeypatch, capsys, when):
    def fail(_):
        raise KeyError("the engine is wrong")

    engine.gate.clear()
    with served(engine, model) as (state, address):
        waiting, leaving = start(address), start(address)
        until(lambda: engine.stats.running == 2)
        monkeypatch.setattr(engine, when, fail)
        leaving.close()
        if when == "add":
            assert post(address).status_code == 500
        assert waiting.recv(1000).startswith(b"HTTP/1.1 500 ")
        until(lambda: is_refused(address))
        assert isinstance(state.engine.failure, KeyError)
    assert "the engine is wrong" in capsys.readouterr().err


def test_a_full_queue_is_told_before_the_prompt_is_read(engine, model, monkeypatch):
    engine.gate.clear()
    with served(engine, model, capacity=1) as (state, address):
        connection = start(address)
        until(lambda: state.engine.num_under_way == 1)
        monkeypatch.setattr(model.tokenizer, "encode", None)
        assert post(address).status_code == 429
        engine.gate.set()
        assert b"200 OK" in connection.recv(1000)


@pytest.mark.parametrize("prompt, n", [([""] * 2049, None), ([""] * 1025, 2), ([[5]] * 17, 128)])
def test_more_answers_than_any_queue_holds_are_refused_before_they_are_made(engine, model, prompt, n):
    with served(engine, model) as (_, address):
        refused = post(address, prompt=prompt, n=n)
        assert refused.status_code == 400 and "at most 2048 answers" in error_of(refused)["message"]


def test_a_slow_reader_costs_its_own_answer_alone(engine, model):
    """The word fills what sockets hold. Each piece that nobody reads stays with the server, up to its limit."""
    engine.word = "x" * 100_000
    with served(engine, model, max_unread=20) as (state, address):
        connection = start(address, stream=True, max_tokens=250)
        until(lambda: engine.cancelled)
        assert 20 <= engine.stats.generated_tokens < 250
        assert post(address, max_tokens=1).status_code == 200
        content = b""
        while piece := connection.recv(2**20):
            content += piece
            if b"client_too_slow" in content[-1000:] and content.endswith(b"0\r\n\r\n"):
                break
        assert b"[DONE]" not in content and b"pieces of its answer unread" in content[-1000:]


def test_a_client_that_takes_nothing_is_left(engine, model, monkeypatch):
    monkeypatch.setattr(limits, "SEND_SECONDS", 0.2)
    engine.word = "x" * 100_000
    with served(engine, model) as (state, address):
        connection = start(address, stream=True, max_tokens=250)
        until(lambda: b'outcome="left"' in state.metrics.page())
        until(lambda: state.engine.num_under_way == 0)
        until(lambda: connection.getsockname() not in peers())  # the socket and what it holds are gone, too
        connection.close()


def peers():
    """Where this process' connections go."""
    return [tuple(each.raddr) for each in psutil.Process().net_connections("tcp") if each.raddr]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long_is_ended(engine, model, stream):
    engine.gate.clear()
    with served(engine, model, request_seconds=0.2) as (_, address):
        late = post(address, stream=stream)
        assert late.status_code == 504 and late.headers["x-should-retry"] == "false"
        until(lambda: engine.cancelled == [engine.added[0].id])


def test_a_stream_that_takes_too_long_ends_with_an_error_event(engine, model):
    engine.seconds_per_step = 0.05
    with served(engine, model, request_seconds=0.5) as (_, address):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.APIError, match="took longer than 0.5 seconds"):
            list(client.completions.create(**{**ASKED, "max_tokens": 200}, stream=True))


@pytest.mark.parametrize("headers", [["Content-Length: 5000"], ["Transfer-Encoding: chunked"]])
def test_a_body_that_is_too_long_is_refused_before_its_end(engine, model, headers):
    """The client has sent 3,000 of 5,000 bytes, and gets its answer."""
    with served(engine, model, max_body_bytes=2000) as (_, address):
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=SOON) as connection:
            head = [f"POST {TEXT} HTTP/1.1", f"Host: {host}:{port}", *headers, "", ""]
            connection.sendall("\r\n".join(head).encode())
            body = b"x" * 3000
            connection.sendall(b"%x\r\n%s\r\n" % (len(body), body) if "chunked" in headers[0] else body)
            answer = b""
            while b"body_too_large" not in answer:
                answer += connection.recv(1000)
            assert answer.startswith(b"HTTP/1.1 413 ") and b"at most 2000 bytes" in answer


def test_ten_megabytes_are_refused_and_the_client_sees_it(engine, model):
    with served(engine, model) as (_, address):
        for content in (b"x" * 10**7, (b"x" * 10**6 for _ in range(10))):
            assert httpx.post(address + CHAT, content=content, timeout=SOON).status_code == 413


def test_a_body_that_does_not_come_is_not_waited_for(engine, model, monkeypatch):
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.2)
    monkeypatch.setattr(limits, "DROPPED_SECONDS", 0.1)
    with served(engine, model) as (_, address):
        connection = raw(address, "POST", TEXT, b"", ["Transfer-Encoding: chunked"])
        connection.close()
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=SOON) as connection:
            connection.sendall(f"POST {TEXT} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9\r\n\r\n{{".encode())
            assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")


def connected(address):
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=SOON)


BEGUN = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "


@pytest.mark.parametrize("sent, has_asked", [(b"", False), (BEGUN, False), (BEGUN, True)])
def test_a_head_that_does_not_come_is_not_waited_for(engine, model, monkeypatch, sent, has_asked):
    """Nor one of which a byte comes again and again; and not behind an answered request either."""
    with served(engine, model) as (_, address), connected(address) as connection:
        if has_asked:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
        monkeypatch.setattr(limits, "HEAD_SECONDS", 0.5)
        if not has_asked:
            connection.close()
            connection = connected(address)
        connection.settimeout(0.05)
        connection.sendall(sent)
        until(lambda: has_ended(connection, b"x" if sent else b""))
        assert post(address).status_code == 200


def has_ended(connection, more):
    try:
        connection.sendall(more)
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_a_request_that_takes_long_to_answer_has_no_such_limit(engine, model, monkeypatch):
    monkeypatch.setattr(limits, "HEAD_SECONDS", 0.1)
    engine.seconds_per_step = 0.1
    with served(engine, model) as (_, address):
        assert post(address).json()["choices"][0]["text"] == "word " * 5


def test_idle_connections_make_room_and_those_that_wait_for_answers_do_not(engine, model, monkeypatch):
    monkeypatch.setattr(limits, "MAX_CONNECTIONS", 3)
    engine.gate.clear()
    with served(engine, model) as (_, address):
        waiting = [start(address)]
        until(lambda: engine.stats.running == 1)
        idle = [connected(address) for _ in range(2)]
        waiting.append(start(address))
        until(lambda: engine.stats.running == 2)
        assert idle[0].recv(1) == b""
        waiting.append(start(address))
        until(lambda: engine.stats.waiting == 1)
        assert idle[1].recv(1) == b""
        with connected(address) as refused:
            answer = refused.recv(1000)
            assert answer.startswith(b"HTTP/1.1 503 ") and b"too_many_connections" in answer
        engine.gate.set()
        assert all(b"200 OK" in connection.recv(1000) for connection in waiting)
        for connection in waiting:
            connection.close()
        until(lambda: post(address).status_code == 200)


def test_a_client_that_leaves_behind_a_second_request_is_seen(engine, model):
    engine.gate.clear()
    with served(engine, model) as (_, address):
        for stream in (False, True):
            connection = start(address, stream=stream)
            until(lambda: engine.stats.running == 1)
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            connection.close()
            until(lambda: engine.stats.running == 0)
        assert len(engine.cancelled) == 2
        engine.gate.set()


def test_a_second_request_is_answered_after_the_first(engine, model):
    engine.gate.clear()
    with served(engine, model) as (_, address):
        connection = start(address)
        until(lambda: engine.stats.running == 1)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        engine.gate.set()
        answer = b""
        while piece := connection.recv(1000):
            answer += piece
        assert answer.count(b"HTTP/1.1 200 OK") == 2 and answer.endswith(b'{"status":"ok"}')


def test_a_client_that_writes_on_and_on_is_left(engine, model):
    engine.gate.clear()
    with served(engine, model) as (_, address):
        connection = start(address)
        until(lambda: engine.stats.running == 1)
        connection.settimeout(0.05)
        until(lambda: has_ended(connection, b"GET /health HTTP/1.1\r\n" * 500))
        until(lambda: engine.cancelled)
        engine.gate.set()


def test_a_key_is_asked_for_where_answers_are(engine, model):
    with served(engine, model, api_key="sésame") as (_, address):
        for given in ({}, {"authorization": "Bearer sesame"}, {"authorization": "Basic s\u00e9same"}):
            encoded = {name: value.encode() for name, value in given.items()}
            refused = httpx.get(address + "/v1/models", headers=encoded)
            assert refused.status_code == 401 and error_of(refused)["code"] == "invalid_api_key"
            assert refused.headers["www-authenticate"] == "Bearer"
        assert post(address, headers={"authorization": "Bearer no"}).status_code == 401 and not engine.added
        right = {"authorization": "Bearer sésame".encode()}
        assert httpx.get(address + "/v1/models", headers=right).status_code == 200
        for path in ("/", "/health", "/ready", "/metrics"):
            assert httpx.get(address + path).status_code == 200


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"host": "elsewhere.example"}, 403),
        ({"host": "localhost"}, 200),
        ({"host": "[::1]:80"}, 200),
        ({"origin": "http://elsewhere.example"}, 403),
        ({"origin": "null"}, 403),
    ],
)
def test_a_page_of_another_site_is_refused(engine, model, headers, status):
    with served(engine, model) as (_, address):
        assert httpx.get(address + "/v1/models", headers=headers).status_code == status
        assert httpx.get(address + "/v1/models", headers={"origin": address}).status_code == 200


def test_other_machines_may_call_the_server_by_any_name(engine, model):
    with served(engine, model, host="0.0.0.0") as (_, address):
        assert httpx.get(address + "/v1/models", headers={"host": "this.example"}).status_code == 200
    assert not is_loopback("0.0.0.0") and not is_loopback("this.example")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1"])
def test_every_address_of_this_machine_alone_may_stand_in_host(engine, model, host):
    """A name that begins like such an address is anybody's."""
    written = f"[{host}]:80" if ":" in host else f"{host}:80"
    with served(engine, model, host=host) as (_, address):
        for given, status in ((written, 200), ("127.elsewhere.example", 403)):
            assert httpx.get(address + "/health", headers={"host": given}).status_code == status


def test_a_server_that_drains_ends_what_is_under_way_and_takes_nothing_new(engine, model):
    engine.gate.clear()
    with served(engine, model) as (state, address):
        connection = start(address)
        until(lambda: engine.stats.running == 1)
        state.drain()
        refused = post(address)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
        assert httpx.get(address + "/ready").status_code == 503
        assert httpx.get(address + "/health").status_code == 200
        engine.gate.set()
        answer = b""
        while piece := connection.recv(1000):
            answer += piece
        assert b'"text":"word word word word word "' in answer
        until(lambda: is_refused(address))


def test_what_does_not_end_while_a_server_drains_is_ended(engine, model):
    engine.gate.clear()
    with served(engine, model, drain_seconds=0.2) as (state, address):
        connection = start(address)
        until(lambda: engine.stats.running == 1)
        state.drain()
        assert connection.recv(1000).startswith(b"HTTP/1.1 503 ")
        until(lambda: is_refused(address))
        assert engine.cancelled == [engine.added[0].id]


def is_refused(address):
    try:
        return httpx.get(address + "/health").status_code == 0
    except httpx.TransportError:
        return True


def test_a_failing_engine_ends_the_server_and_tells_its_clients(engine, model, capsys):
    engine.gate.clear()
    with served(engine, model) as (state, address):
        connection = start(address)
        until(lambda: engine.stats.running == 1)
        engine.error = FloatingPointError("scores")
        assert connection.recv(1000).startswith(b"HTTP/1.1 500 ")
        until(lambda: is_refused(address))
        assert isinstance(state.engine.failure, FloatingPointError)
    assert "FloatingPointError: scores" in capsys.readouterr().err


@pytest.mark.parametrize("stream", [False, True])
def test_scores_that_are_not_finite_are_the_server_s_error(engine, model, stream):
    with served(engine, model) as (state, address):
        engine.ends_with = "error"
        failed = post(address, stream=stream, n=2)
        assert failed.status_code == 500 and error_of(failed)["code"] == "scores_not_finite"
        assert error_of(failed)["type"] == "server_error"
        engine.ends_with = "length"
        assert post(address).status_code == 200 and state.engine.failure is None


def test_many_clients_at_once_are_all_answered(engine, model):
    engine.max_rows = 4
    with served(engine, model, capacity=40) as (_, address):
        connections = [start(address, stream=number % 2 == 0, max_tokens=1 + number % 7) for number in range(40)]
        for number, connection in enumerate(connections):
            answer = b""
            while not answer.endswith((b"}", b"\r\n0\r\n\r\n")):  # of JSON, or the last chunk of a stream
                answer += connection.recv(2**16)
            assert answer.count(b"word ") == 1 + number % 7


def test_a_taken_address_is_named():
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"must be free to listen at, got 127.0.0.1 {port}; .*--port 0"):
            listen("127.0.0.1", port)


def test_reading_a_long_prompt_holds_nobody_up(engine, model, monkeypatch):
    """Another client is answered while a body is being made into tokens."""
    began, answered, encode = threading.Event(), threading.Event(), model.tokenizer.encode

    def slow(text, special=False):
        began.set()
        assert answered.wait(SOON)
        return encode(text)

    monkeypatch.setattr(model.tokenizer, "encode", slow)
    with served(engine, model) as (_, address):
        connection = start(address, prompt="slow")
        assert began.wait(SOON) and post(address, prompt=[5]).status_code == 200
        answered.set()
        assert b"200 OK" in connection.recv(1000)
