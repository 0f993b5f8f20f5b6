"""The headers of the scripts: the same rows everywhere, and what they say is what the bodies and stubs do."""

import inspect
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.headers import ROWS, Header, complaints, library_complaints, read_header
from uno.event_bus.dead_letter.store import audit, browse, layout_record, registry
from uno.event_bus.dead_letter.store import shard as shard_module
from uno.event_bus.dead_letter.store.layout import SHARD_KEYS
from uno.event_bus.dead_letter.store.scripts import lua_folder, script

LUA = lua_folder()
VERBS = sorted(path.stem for path in LUA.glob("*.lua"))
HEADERS = {verb: read_header(LUA / f"{verb}.lua") for verb in VERBS}

DENIED_WHEN_FULL = {"add", "reschedule"}
"""What brings work in is refused by a full server; all else must drain it."""


@pytest.mark.parametrize("verb", VERBS)
def test_a_script_is_what_its_header_says(verb: str) -> None:
    """Rows, KEYS and ARGV of the header fit the body, and what each include needs stands before it."""
    assert complaints(LUA / f"{verb}.lua") == []


@pytest.mark.parametrize("path", sorted(LUA.glob("lib/*.lua")), ids=lambda path: path.stem)
def test_a_shared_file_says_what_it_is_and_what_it_needs(path: Path) -> None:
    """The first line names the file, the second what an including script must have defined."""
    assert library_complaints(path) == []


@pytest.mark.parametrize("verb", VERBS)
def test_the_loader_reads_the_same_keys_as_the_header_declares(verb: str) -> None:
    """`Script.keys`, which the stubs build the keys from, is the header's KEYS row."""
    assert script(verb).keys == tuple(key.name for key in HEADERS[verb].keys)


@pytest.mark.parametrize("verb", VERBS)
def test_only_verbs_that_bring_work_in_are_refused_by_a_full_server(verb: str) -> None:
    """The first line is exactly the one that the loader leaves out on Redis 6.2; what only reads says so."""
    first = (LUA / f"{verb}.lua").read_text().splitlines()[0]
    reads = HEADERS[verb].purpose.endswith("; nothing is written.")
    allowed = "#!lua flags=no-writes" if reads else "#!lua flags=allow-oom"
    assert first == ("#!lua" if verb in DENIED_WHEN_FULL else allowed)


def test_every_script_has_its_stub_and_every_stub_its_script() -> None:
    """The verbs that Python calls by name are the files in `lua/`, no more and no fewer."""
    source = "".join(inspect.getsource(module) for module in (shard_module, browse, layout_record, registry, audit))
    called = set(re.findall(r'(?:\.call|\._call|_operate|script)\(\s*"(\w+)"', source))
    assert called == set(VERBS)


def test_a_verb_has_one_name_in_file_stub_and_facade() -> None:
    """`Shard.take` calls take.lua; browse.scan calls scan.lua."""
    stubs = {name for name, _ in inspect.getmembers(shard_module.Shard, inspect.iscoroutinefunction)}
    stubs |= {name for name, _ in inspect.getmembers(browse, inspect.iscoroutinefunction)}
    stubs |= {name for name, _ in inspect.getmembers(registry.Registry, inspect.iscoroutinefunction)}
    stubs |= {name for name, _ in inspect.getmembers(audit.Audit, inspect.iscoroutinefunction)}
    stubs |= {name for name, _ in inspect.getmembers(layout_record.LayoutRecord, inspect.iscoroutinefunction)}
    assert set(VERBS) <= stubs


def test_every_shared_file_is_used() -> None:
    """No file of lib/ is left over."""
    used = {include for header in HEADERS.values() for include in header.includes}
    assert used == {path.relative_to(LUA).as_posix() for path in LUA.glob("lib/*.lua")}


def test_the_readme_names_every_verb_key_and_header_row() -> None:
    """lua/README.md is the map: what is not on it cannot be found."""
    text = (LUA / "README.md").read_text()
    missing = [name for name in (*VERBS, *SHARD_KEYS, *ROWS) if f"`{name}`" not in text]
    assert missing == []


def swap(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text, f"the script has no {old!r} any more: mend this test"
        return text.replace(old, new, 1)

    return change


MUTANTS = {
    "no purpose": ("take", swap("-- take: lease", "-- Lease")),
    "no COST row": ("take", swap("-- COST  O", "--       O")),
    "rows out of order": ("extend", swap("-- FAILS UPGRADE", "-- COST  x\n-- FAILS UPGRADE")),
    "a key of another type": ("take", swap("3 schedule  zset", "3 schedule  hash")),
    "a key of another shape": ("take", swap("dlq:{<queue>:<i>.<k>}:schedule", "dlq:schedule")),
    "keys out of number": ("take", swap("--       5 parked ", "--       6 parked ")),
    "two locals exchanged": ("take", swap("schedule, suspects, parked", "suspects, schedule, parked")),
    "a key bound twice": ("take", swap("KEYS[3], KEYS[4]", "KEYS[4], KEYS[4]")),
    "a key used by number": ("take", swap("return {\n", "redis.call('DEL', KEYS[1])\nreturn {\n")),
    "a key declared but not used": (
        "extend",
        swap("-- ARGV", "--       3 held hash dlq:{<queue>:<i>.<k>}:held\n-- ARGV"),
    ),
    "a key name computed": ("take", swap("return {\n", "redis.call('DEL', letters .. ':x')\nreturn {\n")),
    "a key name spelt out": ("take", swap("return {\n", "redis.call('DEL', 'dlq:x')\nreturn {\n")),
    "other common arguments": ("take", swap("3 clock µs, or empty", "3 clock s, or empty")),
    "an argument not declared": ("take", swap("return {\n", "local x = ARGV[9]\nreturn {\n")),
    "an argument declared but not used": ("hold", swap("4 why text, reserved", "4 why text")),
    "rows that begin elsewhere": ("settle", swap("FIRST, WIDTH = 5, 5", "FIRST, WIDTH = 6, 5")),
    "rows of another width": ("settle", swap("FIRST, WIDTH = 5, 5", "FIRST, WIDTH = 5, 7")),
    "an index past the row's width": ("settle", swap("ARGV[at + 4]", "ARGV[at + 5]")),
    "an include before what it needs": (
        "take",
        swap("-- include lib/fields.lua\n-- include lib/group.lua", "-- include lib/group.lua"),
    ),
}


@pytest.mark.parametrize("what", MUTANTS)
def test_a_header_that_lies_is_noticed(what: str, tmp_path: Path) -> None:
    """Each rule is worth its lines: a script that breaks it is complained about."""
    verb, change = MUTANTS[what]
    folder = shutil.copytree(LUA, tmp_path / "lua")
    path = folder / f"{verb}.lua"
    path.write_text(change(path.read_text()))
    assert complaints(path) != []


LIBRARY_MUTANTS = {
    "no purpose": swap("-- fence: which", "-- which"),
    "no NEEDS row": swap("-- NEEDS", "-- It wants"),
    "a need not named": swap("-- NEEDS letters, ", "-- NEEDS "),
    "a need that is none": swap("-- NEEDS letters, ", "-- NEEDS letters, parked, "),
}


@pytest.mark.parametrize("what", LIBRARY_MUTANTS)
def test_a_shared_file_that_lies_is_noticed(what: str, tmp_path: Path) -> None:
    """Purpose line, NEEDS row, and that row's completeness are each held."""
    folder = shutil.copytree(LUA, tmp_path / "lua")
    path = folder / "lib/fence.lua"
    path.write_text(LIBRARY_MUTANTS[what](path.read_text()))
    assert library_complaints(path) != []


def test_headers_can_be_read() -> None:
    """The parser itself finds something: an empty list of keys would make every other test pass."""
    assert len(VERBS) >= 15
    assert isinstance(HEADERS["settle"], Header)
    assert [key.name for key in HEADERS["extend"].keys] == ["letters", "meta"]
