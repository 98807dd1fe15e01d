import errno
import hashlib
import os
import threading

import pytest

from gpt2_mlx import files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_at_once_or_not_at_all(tmp_path):
    path = tmp_path / "a"
    with files.new_file(path) as aside:
        aside.write_text("one")
        assert not path.exists()
    with pytest.raises(KeyError), files.new_file(path) as aside:
        aside.write_text("half")
        raise KeyError
    assert path.read_text() == "one"
    assert names(tmp_path) == ["a"]


def test_a_folder_appears_at_once_or_not_at_all(tmp_path):
    path = tmp_path / "sub" / "a"
    for content in ("one", "two"):  # made, then replaced
        with files.new_folder(path) as aside:
            (aside / "f").write_text(content)
        assert (path / "f").read_text() == content
    with pytest.raises(KeyError), files.new_folder(path) as aside:
        (aside / "f").write_text("half")
        raise KeyError
    assert (path / "f").read_text() == "two"
    assert names(path.parent) == ["a"]


def test_a_link_moves(tmp_path):
    for target in ("one", "two"):
        (tmp_path / target).mkdir()
        files.link(tmp_path / "latest", target)
        assert str((tmp_path / "latest").readlink()) == target


def test_a_folder_is_held_once_and_waited_for(tmp_path):
    held = files.lock(tmp_path)
    with pytest.raises(ValueError, match="is in use by another process"):
        files.lock(tmp_path)
    threading.Timer(0.05, held.close).start()
    files.lock(tmp_path, wait=True).close()
    assert held.closed


def test_digests_are_those_of_the_contents(tmp_path):
    contents = [b"", b"abc", bytes(3 << 20)]
    for i, content in enumerate(contents):
        (tmp_path / str(i)).write_bytes(content)
    digests = files.sha256_of_each(tmp_path / str(i) for i in range(3))
    assert digests == [hashlib.sha256(content).hexdigest() for content in contents]


def test_leftovers_of_a_killed_process_go(tmp_path):
    (tmp_path / ".step-1.77.tmp").mkdir()
    (tmp_path / ".step-1.77.tmp" / "f").write_text("half")
    (tmp_path / ".latest.77.tmp").symlink_to("nowhere")
    (tmp_path / "step-1").mkdir()
    files.lock(tmp_path).close()
    assert names(tmp_path) == [".lock", "step-1"]


def test_a_link_takes_the_place_of_a_copy_that_followed_links(tmp_path):
    (tmp_path / "latest").mkdir()
    (tmp_path / "latest" / "file").touch()
    files.link(tmp_path / "latest", "step-1")
    assert (tmp_path / "latest").is_symlink() and not list(tmp_path.glob(".*"))


def test_json_nested_beyond_all_measure_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"a":' * 100_000)
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        files.read_json(tmp_path / "config.json")


@pytest.mark.parametrize("refusal", [errno.ENOTSUP, errno.EINVAL])  # SMB, FUSE
def test_a_disk_that_does_not_flush_its_cache_for_macos_is_synced_as_elsewhere(tmp_path, monkeypatch, refusal):
    synced = []
    monkeypatch.setattr(files.fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(files.fcntl, "fcntl", failing(refusal))
    monkeypatch.setattr(os, "fsync", synced.append)
    files.sync(tmp_path)
    assert len(synced) == 1


def test_a_disk_that_fails_is_told(tmp_path, monkeypatch):
    monkeypatch.delattr(files.fcntl, "F_FULLFSYNC", raising=False)
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match="error"):
        files.sync(tmp_path)
    monkeypatch.setattr(files.fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(files.fcntl, "fcntl", failing(errno.EIO))
    monkeypatch.setattr(os, "fsync", lambda _: None)
    with pytest.raises(OSError, match="error"):
        files.sync(tmp_path)


def test_only_a_folder_may_go_unsynced(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.delattr(files.fcntl, "F_FULLFSYNC", raising=False)
    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))
    files.sync(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        files.sync(tmp_path / "file")


@pytest.mark.parametrize("refusal", [errno.ENOTSUP, errno.ENOLCK])
def test_a_disk_without_locks_is_told_and_used(tmp_path, monkeypatch, capsys, refusal):
    (tmp_path / ".a.77.tmp").touch()  # another process may be writing it
    monkeypatch.setattr(files.fcntl, "flock", failing(refusal))
    files.lock(tmp_path).close()
    assert f"NOTE: the disk of {tmp_path} has no locks" in capsys.readouterr().out
    assert names(tmp_path) == [".a.77.tmp", ".lock"]


def test_a_lock_that_fails_otherwise_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(files.fcntl, "flock", failing(errno.EIO))
    with pytest.raises(OSError, match="error"):
        files.lock(tmp_path)


def failing(number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    return fail
