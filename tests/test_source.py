import hashlib
import http.client
import http.server
import threading

import pytest

from gpt2_mlx import folders
from gpt2_mlx.corpus import source


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data folder in which Shakespeare is there and Tiny Shakespeare is not, and no network."""
    (tmp_path / "shakespeare").mkdir()
    (tmp_path / "shakespeare" / "input.txt").write_text("the plays")
    monkeypatch.setattr(folders, "data", lambda: tmp_path)
    monkeypatch.setattr(folders, "shipped", lambda: tmp_path)
    monkeypatch.setattr(source, "TINYSHAKESPEARE_URL", "http://127.0.0.1:9/nobody-listens")
    return tmp_path


@pytest.fixture
def server():
    """Serves `content` under every path on loopback."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(Handler.content)

        def log_message(self, *args):
            pass

    httpd = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    Handler.url = f"http://127.0.0.1:{httpd.server_port}/input.txt"
    yield Handler
    httpd.shutdown()


def test_the_text_that_ships_is_the_one_its_readme_names():
    (path,) = source.find("shakespeare").files
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest in (path.parent / "README.md").read_text()
    assert path.read_text().startswith("COUNTESS:\nIn delivering my son from me, I bury a second husband.\n\nBERTRAM:")


def test_tiny_shakespeare_is_taken_from_its_folder(data):
    (data / "tinyshakespeare").mkdir()
    path = data / "tinyshakespeare" / "input.txt"
    path.write_text("here")
    assert source.find("tinyshakespeare") == source.Source("tinyshakespeare", (path,))


def test_tiny_shakespeare_is_fetched_once(data, server, monkeypatch):
    server.content = b"First Citizen:"
    monkeypatch.setattr(source, "TINYSHAKESPEARE_URL", server.url)
    monkeypatch.setattr(source, "TINYSHAKESPEARE_SHA256", hashlib.sha256(server.content).hexdigest())
    found = source.find("tinyshakespeare")
    assert found.name == "tinyshakespeare" and not found.note
    assert found.files[0].read_bytes() == server.content
    server.content = b"another"
    assert source.find("tinyshakespeare").files[0].read_bytes() == b"First Citizen:"


def test_without_a_network_it_says_what_it_takes_instead(data):
    found = source.find("tinyshakespeare")
    assert found.name == "shakespeare"
    assert found.files == (data / "shakespeare" / "input.txt",)
    assert "could not be fetched" in found.note and "`shakespeare` instead" in found.note


def test_what_is_not_the_expected_file_is_not_kept(data, server, monkeypatch):
    server.content = b"<html>please log in to this network</html>"
    monkeypatch.setattr(source, "TINYSHAKESPEARE_URL", server.url)
    assert "not the expected file" in source.find("tinyshakespeare").note
    assert not list((data / "tinyshakespeare").glob("*")) if (data / "tinyshakespeare").exists() else True


def test_files_and_folders_of_the_users(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.txt", "sub/c.txt", "picture.png"):
        (tmp_path / name).write_text(name)
    for name in ("d.txt.gz", "e.f.jsonl", "g.jsonl.gz", "h.parquet", "table.json", "text.gz"):
        (tmp_path / name).write_text("")
    assert source.find(str(tmp_path / "a.txt")) == source.Source("a", (tmp_path / "a.txt",))
    (tmp_path / "sub" / "input.txt").write_text("")
    assert source.find(str(tmp_path / "sub" / "input.txt")).name == "sub"
    (tmp_path / "sub" / "input.txt").unlink()
    found = source.find(str(tmp_path))
    names = ["a.txt", "b.txt", "d.txt.gz", "e.f.jsonl", "g.jsonl.gz", "h.parquet", "c.txt"]
    assert [file.name for file in found.files] == names
    assert found.name == tmp_path.name
    assert source.find(str(tmp_path / "d.txt.gz")).name == "d"
    assert source.find(str(tmp_path / "e.f.jsonl")).name == "e.f"


def test_a_folder_of_token_shards_is_one_source(tmp_path):
    for name in ("shards.json", "a.txt"):
        (tmp_path / name).write_text("")
    assert source.find(str(tmp_path)) == source.Source(tmp_path.name, (tmp_path,))


def test_a_broken_download_is_no_end(data, server, monkeypatch):
    def cut(*args, **kwargs):
        raise http.client.IncompleteRead(b"half")

    monkeypatch.setattr("urllib.request.urlopen", cut)
    assert "IncompleteRead" in source.find("tinyshakespeare").note


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="--data is ''"):
        source.find("")
    with pytest.raises(ValueError, match="'nowhere.txt', which is no file or folder; allowed: tinyshakespeare"):
        source.find("nowhere.txt")
    with pytest.raises(ValueError, match=r"holds no file in \.txt \.txt\.gz \.jsonl \.jsonl\.gz \.parquet"):
        source.find(str(tmp_path))
