"""Tokens: who they are of, what they allow, until when; and the file, which changes while it is read."""

import hmac
import logging
import os
import stat
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from uno.cli.dead_letter import token as command
from uno.event_bus.dead_letter.errors import ConfigError
from uno.event_bus.dead_letter.service import access
from uno.event_bus.dead_letter.service.access import TOKEN, Tokens, line_of, new_token, parse_tokens, without_tokens
from uno.event_bus.dead_letter.service.caller import ROLES, Caller
from uno.event_bus.dead_letter.service.refusal import Refusal
from uno.event_bus.dead_letter.service.token_file import append_token

NOW = 1_800_000_000.0
FIRST, SECOND = "uno_" + "f" * 43, "uno_" + "s" * 43  # the same in each process that collects the tests


class Clock:
    """What the test says the time is, in two ways."""

    def __init__(self) -> None:
        self.s = 0.0

    def ticks(self) -> float:
        self.s += 2.0  # past `LOOK_S` at every look
        return self.s


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "tokens"
    made.write_text(line_of("billing", frozenset({"capture"}), FIRST) + "\n")
    made.chmod(0o600)
    return made


def tokens_of(file: Path) -> Tokens:
    return Tokens(str(file), now=lambda: NOW, ticks=Clock().ticks)


def bearer(token: str) -> list[bytes]:
    return [f"Bearer {token}".encode()]


def refused(call: Callable[[], Any]) -> Refusal:
    with pytest.raises(Refusal) as raised:
        call()
    assert raised.value.status == 401 and raised.value.code == "unauthenticated"
    assert raised.value.headers["www-authenticate"].startswith("Bearer realm=")
    return raised.value


def test_a_token_is_256_random_bits_and_is_found_by_its_looks() -> None:
    one, other = new_token(), new_token()
    assert one != other and TOKEN.fullmatch(one) and len(one) == len("uno_") + 43
    assert without_tokens(f"GET /{one}/x") == "GET /uno_***/x"


def test_a_token_is_known_by_its_hash(file: Path) -> None:
    assert FIRST not in file.read_text() and sha256(FIRST.encode()).hexdigest() in file.read_text()
    assert tokens_of(file).caller(bearer(FIRST)) == Caller("billing", frozenset({"capture"}))
    assert tokens_of(file).caller([f"bearer  {FIRST}".encode()]).name == "billing"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        bearer(SECOND),
        bearer(FIRST[:-1]),
        bearer(FIRST + "="),
        [b"Basic " + FIRST.encode()],
        [FIRST.encode()],
        [b"Bearer"],
        [b"Bearer "],
        [b"Bearer " + b"\xff" * 9],
        [b"Bearer " + b"a" * 10_000],
        bearer(FIRST) * 2,
    ],
)
def test_whoever_has_no_token_is_told_so_and_never_what_was_sent(file: Path, headers: list[bytes]) -> None:
    told = refused(lambda: tokens_of(file).caller(headers))
    assert FIRST[:-1] not in told.detail and SECOND not in told.detail


def test_every_entry_is_compared_in_constant_time_whichever_one_it_is(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("\n".join(line_of(f"n{i}", frozenset({"read"}), token) for i, token in enumerate((FIRST, SECOND))))
    compared: list[bytes] = []

    def compare(known: bytes, given: bytes) -> bool:
        compared.append(known)
        return hmac.compare_digest(known, given)

    class Spy:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(access, "hmac", Spy)
    tokens = tokens_of(file)
    assert tokens.caller(bearer(FIRST)).name == "n0" and len(compared) == 2
    assert tokens.caller(bearer(SECOND)).name == "n1" and len(compared) == 4


@pytest.mark.parametrize(
    ("role", "may"),
    [
        ("capture", {"capture"}),
        ("read", {"read"}),
        ("operate", {"operate", "read"}),
        ("admin", set(ROLES)),
    ],
)
def test_roles_include_others_as_the_table_says(file: Path, role: str, may: set[str]) -> None:
    file.write_text(line_of("x", frozenset({role}), FIRST))
    caller = tokens_of(file).caller(bearer(FIRST))
    assert {each for each in ROLES if caller.may(each)} == may


def test_several_roles_add_up(file: Path) -> None:
    file.write_text(line_of("ci", frozenset({"read", "capture"}), FIRST))
    caller = tokens_of(file).caller(bearer(FIRST))
    assert caller.may("read") and caller.may("capture") and not caller.may("operate")


def test_an_expired_token_is_told_so(file: Path) -> None:
    file.write_text(line_of("oncall", frozenset({"read"}), FIRST, until=NOW - 1))
    told = refused(lambda: tokens_of(file).caller(bearer(FIRST)))
    assert told.detail == "the token of oncall has expired at 2027-01-15T07:59:59+00:00"
    assert 'error="invalid_token"' in told.headers["www-authenticate"]
    file.write_text(line_of("oncall", frozenset({"read"}), FIRST, until=NOW + 1))
    assert tokens_of(file).caller(bearer(FIRST)).name == "oncall"


@pytest.mark.parametrize("text", ["2027-01-15T08:00:00", "2027-01-15T09:00:00+01:00", "2027-01-15 08:00:00Z"[:10]])
def test_a_moment_without_a_zone_is_utc(text: str) -> None:
    [entry] = parse_tokens(f"{line_of('x', frozenset({'read'}), FIRST)} until {text}", "file")
    assert entry.until in (NOW, NOW - 8 * 3600)


# --- the file --------------------------------------------------------------------------------------------

GOOD = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        (f"x read {GOOD}\nx read", "line 2: wanted is: name roles sha256"),
        (f"x read {GOOD} till 2027-01-01", "line 1: wanted is"),
        (f"x write {GOOD}", "line 1: a role is none of capture, read, operate, admin"),
        (f"x read, {GOOD}", "line 1: a role is none of"),
        (f"x/y read {GOOD}", "line 1: the name is none"),
        (f"anyone read {GOOD}", "line 1: the name is none"),
        (f"x read {FIRST}", "line 1: the third word is no sha256"),
        (f"{FIRST} read {GOOD}", "line 1: the name is none"),
        (f"x read {GOOD} until tomorrow", "line 1: what follows 'until' is no date"),
        (
            f"x read {GOOD}\n# y\ny read {GOOD.upper().replace('SHA', 'sha')}",
            "line 3: this token stands in the file twice",
        ),
        ("".join(f"x read sha256:{i:064x}\n" for i in range(1001)), "has 1001 tokens: allowed are 1000"),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_line_and_never_quoted(file: Path, text: str, why: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=why) as raised:
        tokens_of(file)
    message = str(raised.value)
    assert "\n" not in message and GOOD not in message and not TOKEN.search(message)


@pytest.mark.parametrize("make", [lambda path: path.unlink(), lambda path: path.write_bytes(b"x \xff")])
def test_a_file_that_cannot_be_read_is_refused_at_the_start(file: Path, make: Callable[[Path], object]) -> None:
    make(file)
    with pytest.raises(ConfigError, match="tokens file"):
        tokens_of(file)


def test_a_token_that_is_added_counts_and_one_that_is_removed_does_not(file: Path) -> None:
    tokens = tokens_of(file)
    append_token(str(file), line_of("billing", frozenset({"capture"}), SECOND))
    assert tokens.caller(bearer(FIRST)).name == tokens.caller(bearer(SECOND)).name == "billing"
    file.write_text(file.read_text().splitlines()[1])
    refused(lambda: tokens.caller(bearer(FIRST)))
    assert tokens.caller(bearer(SECOND)).name == "billing"


def test_a_change_of_the_same_length_within_the_same_tick_is_seen(file: Path) -> None:
    tokens = tokens_of(file)
    status = file.stat()
    file.write_text(line_of("billing", frozenset({"capture"}), SECOND) + "\n")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert tokens.caller(bearer(SECOND)).name == "billing"


def test_a_secret_of_kubernetes_that_is_swapped_by_its_link_is_seen(tmp_path: Path) -> None:
    for name, token in (("..1", FIRST), ("..2", SECOND)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokens").write_text(line_of(name[2:], frozenset({"read"}), token))
        os.utime(tmp_path / name / "tokens", (1, 1))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "tokens").symlink_to("..data/tokens")
    tokens = tokens_of(tmp_path / "tokens")
    assert tokens.caller(bearer(FIRST)).name == "1"
    (tmp_path / "..data_tmp").symlink_to("..2")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    assert tokens.caller(bearer(SECOND)).name == "2"
    refused(lambda: tokens.caller(bearer(FIRST)))


def test_the_file_is_looked_at_once_a_second(file: Path) -> None:
    clock = Clock()
    tokens = Tokens(str(file), now=lambda: NOW, ticks=lambda: clock.s)
    file.write_text(line_of("late", frozenset({"read"}), SECOND))
    clock.s = 0.9
    refused(lambda: tokens.caller(bearer(SECOND)))
    clock.s = 1.0
    assert tokens.caller(bearer(SECOND)).name == "late"


@pytest.mark.parametrize("spoil", [lambda path: path.write_text(f"x read {SECOND}"), lambda path: path.unlink()])
def test_a_file_that_becomes_wrong_changes_nothing_but_the_log(
    file: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], object]
) -> None:
    tokens = tokens_of(file)
    spoil(file)
    for _ in range(3):
        assert tokens.caller(bearer(FIRST)).name == "billing"
    [record] = caplog.records
    assert record.levelno == logging.ERROR and "the tokens stay as they were: tokens file" in record.getMessage()
    assert not TOKEN.search(caplog.text)
    file.write_text(line_of("new", frozenset({"read"}), SECOND))
    assert tokens.caller(bearer(SECOND)).name == "new"


def test_a_file_of_comments_alone_lets_nobody_in(file: Path) -> None:
    tokens = tokens_of(file)
    file.write_text("# nobody\n")
    refused(lambda: tokens.caller(bearer(FIRST)))


def test_a_file_that_everybody_can_read_is_said_once(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.chmod(0o644)
    tokens = tokens_of(file)
    tokens.caller(bearer(FIRST))
    assert [record.getMessage() for record in caplog.records if "chmod 600" in record.getMessage()] == [
        f"tokens file {str(file)!r} is readable by everybody on this machine: chmod 600"
    ]


def test_a_token_is_appended_to_a_file_that_keeps_its_mode(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    append_token(str(file), line_of("a", frozenset({"read"}), FIRST))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text(file.read_text().strip())  # without its last end of line
    file.chmod(0o640)
    append_token(str(file), line_of("b", frozenset({"admin"}), SECOND))
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert [entry.caller.name for entry in parse_tokens(file.read_text(), "file")] == ["a", "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]


def test_a_file_that_is_wrong_is_not_appended_to(file: Path) -> None:
    file.write_text("what?")
    with pytest.raises(ConfigError, match="line 1"):
        append_token(str(file), line_of("b", frozenset({"admin"}), SECOND))
    assert file.read_text() == "what?" and [path.name for path in file.parent.iterdir()] == ["tokens"]


@pytest.mark.parametrize(("name", "roles"), [("a b", {"read"}), ("", {"read"}), ("anyone", {"read"}), ("a", set())])
def test_a_line_without_sound_name_and_roles_is_not_made(name: str, roles: set[str]) -> None:
    with pytest.raises(ConfigError, match="allowed are"):
        line_of(name, frozenset(roles), FIRST)


def test_the_roles_of_the_command_are_those_of_the_service() -> None:
    assert command.ROLES == ROLES
