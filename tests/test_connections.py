"""Clients that begin a request and never end it, and too many at once."""

import contextlib
import functools
import json
import resource
import socket

import pytest
from client import COMPLETIONS, HOST, SENTENCE, serving
from patience import PATIENCE, eventually
from served import http

from gpt2_mlx.serving import connections, intake, server
from gpt2_mlx.serving.connections import Connection
from gpt2_mlx.serving.limits import MAX_CONNECTIONS

REQUEST = f"POST {SENTENCE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
HALVES = {"nothing": "", "half the headers": REQUEST, "half the body": REQUEST + '\r\n{"text": "'}


@contextlib.contextmanager
def connected(url: str, begun: str):
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # what is not read stays with the server
        connection.settimeout(PATIENCE)
        connection.connect((HOST, int(url.rpartition(":")[2])))
        connection.sendall(begun.encode())
        yield connection


def limited(client, limit: int):
    return serving(client, http=functools.partial(Connection, limit))


@pytest.mark.parametrize("begun", [HALVES["nothing"], HALVES["half the headers"]], ids=["nothing", "half the headers"])
def test_headers_that_do_not_come_end_the_connection(client, monkeypatch, begun):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.1)
    with limited(client, 10) as url, connected(url, begun) as connection:
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100) == b""
        assert http.get(url + "/health").status_code == 200


def test_a_second_request_of_a_connection_has_its_time_too(client, monkeypatch):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.1)
    with (
        limited(client, 10) as url,
        connected(url, "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea") as connection,
    ):
        told = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(1000):
                told += part
        assert told.startswith(b"HTTP/1.1 200 OK") and told.endswith(b'{"status":"ok"}')


def test_a_body_that_does_not_come_is_a_408(client, monkeypatch):
    monkeypatch.setattr(intake, "BODY_SECONDS", 0.1)
    with limited(client, 10) as url, connected(url, HALVES["half the body"]) as connection:
        told = connection.recv(1000)
        while b"}" not in told:
            told += connection.recv(1000)
        assert told.startswith(b"HTTP/1.1 408 ") and b"did not come within 0.1 seconds" in told


@pytest.mark.parametrize("begun", HALVES.values(), ids=HALVES)
def test_whoever_comes_takes_the_place_of_an_unfinished_request(client, begun):
    with limited(client, 8) as url, contextlib.ExitStack() as stack:
        for _ in range(30):
            stack.enter_context(connected(url, begun))
        for _ in range(3):
            answer = http.post(url + SENTENCE, json={"text": "Say:", "max_tokens": 2})
            assert answer.status_code == 200


def test_where_all_are_busy_one_is_told_to_come_again(client):
    client.fake.gate.clear()
    body = '{"text": "Say:"}'
    whole = REQUEST.replace("100", str(len(body))) + "\r\n" + body
    with limited(client, 2) as url, connected(url, whole) as first, connected(url, whole) as second:
        eventually(lambda: client.engine.n_waiting == 2)
        with connected(url, whole) as third:
            assert third.recv(1000).startswith(b"HTTP/1.1 503 ")
        client.fake.gate.set()
        assert all(connection.recv(1000).startswith(b"HTTP/1.1 200 OK") for connection in (first, second))


@pytest.mark.parametrize("stream", [False, True])
def test_whoever_does_not_take_the_answer_is_left(client, monkeypatch, stream):
    monkeypatch.setattr(connections, "SEND_SECONDS", 0.2)
    body = json.dumps({"prompt": "x" * 400_000, "echo": True, "n": 10, "max_tokens": 1, "stream": stream})
    whole = REQUEST.replace(SENTENCE, COMPLETIONS).replace("100", str(len(body))) + "\r\n" + body
    lost = []

    class Noting(Connection):
        def connection_lost(self, exc):
            lost.append(self.client)
            super().connection_lost(exc)

    with serving(client, http=functools.partial(Noting, 10)) as url, connected(url, whole) as connection:
        eventually(lambda: connection.getsockname() in lost)
        told = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(1 << 16):
                told += part
    assert len(told) < 4_000_000


def test_there_are_as_many_connections_as_open_files_allow(monkeypatch):
    limits = {}
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.update(new=pair))
    for soft, hard, raised, expected in [
        (256, 256, 256, 192),
        (256, resource.RLIM_INFINITY, MAX_CONNECTIONS + 64, MAX_CONNECTIONS),
        (1024, 4000, 4000, 3936),
    ]:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))  # noqa: B023
        assert server.connection_limit() == expected
        assert limits["new"] == (raised, hard)
