"""Web pages of others cannot use a local service; programs can."""

import pytest
from client import SENTENCE, check_error

FORM = {"content-type": "application/x-www-form-urlencoded"}


def ask(client, **headers):
    """As `curl -d` does it: a POST that calls its JSON a form."""
    content = b'{"text": "Say:", "max_tokens": 1}'
    return client.request("POST", SENTENCE, content=content, headers=FORM | headers)


def test_a_bare_program_is_answered(client):
    assert ask(client).status_code == 200
    for host in ("localhost", "localhost:5001", "127.0.0.1:5001", "[::1]:5001", "127.8.9.1", "LOCALHOST:80"):
        assert ask(client, host=host).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:5001", "localhost.evil.example", "0.0.0.0", "10.0.0.1"])
def test_a_name_that_was_made_to_lead_here_is_refused(client, host):
    for origin in ({}, {"origin": f"http://{host}"}):
        error = check_error(ask(client, host=host, **origin), 403)
        assert "--allowed-host" in error["message"] and error["type"] == "permission_error"


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://localhost:1", "http://localhost:5001x"])
def test_a_form_of_another_page_is_refused(client, origin):
    error = check_error(ask(client, host="localhost:5001", origin=origin), 403)
    assert "--cors-origin" in error["message"]
    check_error(client.get("/card", headers={"host": "localhost:5001", "origin": origin}), 403)


@pytest.mark.parametrize("headers", [{"host": "[abc"}, {"host": "a]b"}, {"origin": "http://[x"}])
def test_what_is_no_address_is_refused(client, headers):
    assert "is no address" in check_error(ask(client, **{"host": "localhost"} | headers), 403)["message"]


def test_the_page_itself_is_answered(client):
    assert ask(client, host="localhost:5001", origin="http://localhost:5001").status_code == 200


def test_what_is_allowed_is_answered(open_client):
    build = {"allowed_hosts": ("gpt.lan",), "cors_origins": ("https://chat.example",)}
    client = open_client(build=build)
    assert ask(client, host="gpt.lan:5001").status_code == 200
    assert ask(client, host="localhost", origin="https://chat.example").status_code == 200
    check_error(ask(client, host="localhost", origin="https://other.example"), 403)
    every = open_client(build={"cors_origins": ("*",)})
    assert ask(every, origin="https://other.example").status_code == 200


def test_a_server_that_is_open_to_the_network_has_any_name(open_client):
    client = open_client(build={"host": "0.0.0.0"})
    assert ask(client, host="gpt.example").status_code == 200
    check_error(ask(client, host="gpt.example", origin="http://evil.example"), 403)
