"""scripts: what the loader reads, includes, hashes and refuses."""

import hashlib
from pathlib import Path

import pytest

from uno.event_bus.dead_letter.store import scripts
from uno.event_bus.dead_letter.store.layout import QUEUE_KEYS, SHARD_KEYS
from uno.event_bus.dead_letter.store.scripts import lua_folder, script

NAMES = sorted(path.stem for path in lua_folder().glob("*.lua"))


@pytest.mark.parametrize("name", NAMES)
def test_a_script_is_whole_and_known_by_the_hash_that_redis_computes(name: str) -> None:
    """No include line is left; EVALSHA's hash is the SHA1 of what EVAL sends."""
    loaded = script(name)
    assert b"-- include" not in loaded.source
    assert loaded.sha == hashlib.sha1(loaded.source, usedforsecurity=False).hexdigest()
    assert loaded.plain_sha == hashlib.sha1(loaded.plain_source, usedforsecurity=False).hexdigest()
    assert loaded.source.startswith(b"#!lua")
    assert not loaded.plain_source.startswith(b"#!")
    assert loaded.source.partition(b"\n")[2] == loaded.plain_source


@pytest.mark.parametrize("name", NAMES)
def test_a_script_names_the_keys_it_is_called_with(name: str) -> None:
    """All of them keys of a shard, `meta` among the first; or all of them keys of the queue."""
    keys = script(name).keys
    assert set(keys) <= set(QUEUE_KEYS) or ("meta" in keys[:2] and set(keys) <= set(SHARD_KEYS))
    assert len(set(keys)) == len(keys)


def test_a_script_is_read_once() -> None:
    """The next caller gets the same object."""
    assert script("take") is script("take")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(scripts, "lua_folder", lambda: tmp_path)
    (tmp_path / "lib").mkdir()
    return tmp_path


def test_a_missing_include_is_told_with_file_and_line(folder: Path) -> None:
    """When it is loaded, not when it is called."""
    (folder / "missing-include.lua").write_text("#!lua\n-- x\n-- include lib/none.lua\n")
    with pytest.raises(FileNotFoundError, match=r"missing-include\.lua:3 includes lib/none\.lua"):
        script("missing-include")


def test_a_circular_include_is_told_with_file_and_line(folder: Path) -> None:
    """Also over two files."""
    (folder / "circle.lua").write_text("-- include lib/a.lua\n")
    (folder / "lib" / "a.lua").write_text("\n-- include lib/b.lua\n")
    (folder / "lib" / "b.lua").write_text("-- include lib/a.lua\n")
    with pytest.raises(ValueError, match=r"b\.lua:1 includes lib/a\.lua, which is being included already"):
        script("circle")


def test_an_unknown_script_is_told(folder: Path) -> None:
    """By its path."""
    with pytest.raises(FileNotFoundError, match=r"nothing\.lua"):
        script("nothing")
