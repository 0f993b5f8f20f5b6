"""The spool's files: what a crash leaves of them, whose they are, and what they may hold."""

import fcntl
import os
import signal
import stat
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from uno.event_bus.dead_letter.letter import NewLetter
from uno.event_bus.dead_letter.spool import folder as folder_module
from uno.event_bus.dead_letter.spool.folder import Folder, Full
from uno.event_bus.dead_letter.spool.record import HEADER_BYTES, MAGIC, Packed, Record, State, pack, parse
from uno.event_bus.dead_letter.spool.sender import BATCH_BYTES, batches_of

HEADER = MAGIC + b"salt"


def letter(number: int, **how: Any) -> NewLetter:
    return NewLetter(f"e{number}", "Order", b'{"number":%d}' % number, **how)


def packed(number: int, state: State = State.WAITING, home: int | None = None) -> Packed:
    return pack(letter(number), 1_800_000_000_000 + number, state, home)


def segment_of(*records: Packed) -> bytes:
    return HEADER + b"".join(each.record(HEADER) for each in records)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Folder]]:
    """Make the files of a queue, as one owner after another has them."""
    made: list[Folder] = []

    def files(max_bytes: int = 10_000_000) -> Folder:
        made.append(Folder(str(tmp_path / "spool"), "default", max_bytes))
        return made[-1]

    yield files
    for each in made:
        each.close()


def ids(files: Folder) -> list[str]:
    return [record.letter.event_id for segment in files.segments() for record in files.load(segment)[0]]


def paths(files: Folder, kind: str = ".spool") -> list[Path]:
    return sorted(path for path in Path(files.path).iterdir() if path.name.endswith(kind))


# -- records ----------------------------------------------------------------------------------------------


def test_a_letter_comes_back_as_it_was() -> None:
    """Every field, any bytes."""
    whole = NewLetter(
        "e", "Order", bytes(range(256)), "x/y", "stock", "failed", "ValueError", "no ☃", "trace", "f" * 16,
        123, 4, 5_000, "customer", "key", "zstd", b'{"a":1}',
    )  # fmt: skip
    [record] = parse(segment_of(pack(whole, 77, State.TRIED))).records
    assert (record.letter, record.captured_at_ms, record.state) == (whole, 77, State.TRIED)


def test_a_letter_that_does_not_say_has_failed_when_it_was_captured() -> None:
    [record] = parse(segment_of(pack(letter(1), 77, State.WAITING))).records
    assert record.letter.failed_at_ms == 77


@pytest.mark.parametrize(
    ("now_ms", "left_ms"), [(1000, 5000), (4000, 2000), (6000, 0), (10**12, 0), (0, 5000)], ids=str
)
def test_what_is_left_of_the_delay_is_sent(now_ms: int, left_ms: int) -> None:
    """It counts from the capture; a clock that was set back makes it no longer."""
    [record] = parse(segment_of(pack(letter(1, delay_ms=5000), 1000, State.WAITING))).records
    assert record.to_send(now_ms).delay_ms == left_ms


def test_a_file_torn_at_any_byte_keeps_every_complete_record() -> None:
    """Wherever the last write ended: what is whole is read, what is torn is told apart."""
    records = [packed(n) for n in range(3)]
    data, ends = segment_of(*records), [HEADER_BYTES]
    for each in records:
        ends.append(ends[-1] + each.size)
    for cut in range(len(data) + 1):
        found = parse(data[:cut])
        complete = sum(end <= cut for end in ends[1:])
        assert [record.letter.event_id for record in found.records] == [f"e{n}" for n in range(complete)]
        assert (found.end, found.damaged) == (min(cut, ends[complete]), 0)


def test_a_damaged_byte_costs_its_record_alone() -> None:
    """Wherever it is, but for the state and mark's own: letters before and after it are read."""
    records = [packed(n) for n in range(3)]
    data = segment_of(*records)
    begin = HEADER_BYTES + records[0].size
    for at in range(begin, begin + records[1].size):
        broken = bytearray(data)
        broken[at] ^= 0xFF
        found = parse(bytes(broken))
        known = {record.letter.event_id: record.state for record in found.records}
        assert known.keys() >= {"e0", "e2"}
        assert known.get("e1", State.TRIED) is State.TRIED, "a state that is none says that nobody knows"
        assert ("e1" in known) == (found.damaged == 0)


def test_a_bad_last_record_is_damaged_and_not_torn() -> None:
    """It was acknowledged: but for a length that is too long, or none, its bytes are kept for somebody to look at."""
    records = [packed(n) for n in range(2)]
    data = segment_of(*records)
    begin = HEADER_BYTES + records[0].size
    length_at = range(begin + 13, begin + 17)
    for at in {*range(begin, len(data))} - {begin + 4, *length_at}:
        broken = bytearray(data)
        broken[at] ^= 0xFF
        found = parse(bytes(broken))
        assert (len(found.records), found.end, found.damaged) == (1, len(data), records[1].size), at


def test_a_bad_header_damages_the_file_and_tears_nothing() -> None:
    """Without its salt no record is one; not a byte of them is cut off."""
    data = bytearray(segment_of(packed(1), packed(2)))
    data[len(MAGIC)] ^= 1
    found = parse(bytes(data))
    assert (found.records, found.end, found.damaged) == ([], len(data), len(data) - HEADER_BYTES)


def test_room_that_was_never_filled_is_torn() -> None:
    """As some file systems leave it after a power cut."""
    data = segment_of(packed(1))
    found = parse(data + bytes(5000))
    assert (len(found.records), found.end, found.damaged) == (1, len(data), 0)


def test_a_new_field_of_the_letter_gets_a_new_magic() -> None:
    """Else a process that does not know the field adopts such letters in an upgrade, and sends them without it."""
    known = (
        "event_id type payload content_type subscription reason error_type error traceback fingerprint failed_at_ms "
        "attempts delay_ms ordering_key dedupe_key encoding headers has_own_id"
    )
    assert (MAGIC, known.split()) == (b"UNOSPL1\n", [each.name for each in fields(NewLetter)])


def test_bytes_of_an_event_are_never_taken_for_a_record() -> None:
    """A torn record whose payload is itself a segment: without its salt, its records are none."""
    inner = (MAGIC + b"tlas") + packed(1).record(MAGIC + b"tlas")
    outer = pack(NewLetter("outer", "bytes", inner + bytes(100)), 1, State.WAITING)
    data = segment_of(outer)
    assert parse(data[:-50]).records == []


@pytest.mark.parametrize(
    ("sizes", "batches"),
    [
        ([], []),
        ([10] * 250, [100, 100, 50]),
        ([BATCH_BYTES // 2] * 5, [2, 2, 1]),
        ([BATCH_BYTES * 3, 10, BATCH_BYTES, 10], [1, 1, 1, 1]),
        ([10, BATCH_BYTES - 10, 1], [2, 1]),
    ],
)
def test_a_batch_is_bounded_in_letters_and_bytes(sizes: list[int], batches: list[int]) -> None:
    """A hundred large letters would not arrive within one timeout, again and again; a larger one goes alone."""
    records = [Record(n, size, State.WAITING, 0, letter(n)) for n, size in enumerate(sizes)]
    found = batches_of(records)
    assert [len(batch) for batch in found] == batches
    assert [record for batch in found for record in batch] == records


# -- appending --------------------------------------------------------------------------------------------


def test_files_are_the_users_alone(make: Callable[..., Folder]) -> None:
    """Directories 0700, files 0600."""
    files = make()
    assert files.append([[packed(1)]]) == [None]
    for folder in (Path(files.path), Path(files.path).parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in Path(files.path).iterdir()} == {0o600}


def test_calls_that_come_together_share_one_fsync(make: Callable[..., Folder], monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the file, whatever the number of letters; a new file costs one more, and one of the directory."""
    files = make()
    files.append([[packed(0)]])
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    assert files.append([[packed(n)] for n in range(1, 51)] + [[packed(n) for n in range(51, 101)]]) == [None] * 51
    assert len(synced) == 1
    assert ids(files) == [f"e{n}" for n in range(101)]


def test_a_file_and_its_name_are_on_disk_before_a_letter_is_acknowledged(
    make: Callable[..., Folder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header, the directory, then the records."""
    kinds: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        kinds.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else str(os.fstat(fd).st_size > HEADER_BYTES))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    make().append([[packed(1)]])
    assert kinds[-3:] == ["False", "directory", "True"]
    assert kinds[:-3] == ["directory"] * 2, "those in which directories were made"


def test_a_segment_that_is_large_enough_is_followed_by_another(
    make: Callable[..., Folder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the space of what was sent comes back; the order stays."""
    monkeypatch.setattr(folder_module, "SEGMENT_BYTES", 1000)
    files = make()
    for n in range(0, 60, 20):
        assert files.append([[packed(m) for m in range(n, n + 20)]]) == [None]
    assert len(paths(files)) > 5
    assert ids(files) == [f"e{n}" for n in range(60)]
    assert files.letters == 60


def test_the_bound_is_never_passed(make: Callable[..., Folder], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all files of the queue, those of others too; a call that does not fit is refused whole, a smaller one fits."""
    monkeypatch.setattr(folder_module, "SEGMENT_BYTES", 1000)
    other, files = make(8192), make(8192)
    assert other.append([[packed(n) for n in range(10)]]) == [None]
    n, refusals = 0, list[Exception | None]()
    while not refusals or refusals[-1] is None:
        refusals += files.append([[packed(n)], [packed(n + 1)]])
        n += 2
        assert sum(path.stat().st_size for path in Path(files.path).iterdir()) <= 8192
    assert isinstance(refusals[-1], Full)
    assert n >= 16
    big, small = files.append([[pack(NewLetter("b", "x", bytes(8192)), 1, State.WAITING)], []])
    assert isinstance(big, Full)
    assert small is None


def test_a_write_that_fails_leaves_nothing_behind(make: Callable[..., Folder], monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller hears the disk's error; earlier letters stay, later ones are kept, in another file.

    A failed fsync is never asked again for the same bytes: they are cut off, and that is synced.
    """
    files = make()
    files.append([[packed(1)]])
    real, calls = os.fsync, list[int]()

    def sick_once(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 1:
            raise OSError(5, "Input/output error")
        real(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", sick_once)
        [refusal] = files.append([[packed(2), packed(3)]])
        assert len(calls) == 2
    assert isinstance(refusal, OSError)
    assert refusal.errno == 5
    assert files.append([[packed(4)]]) == [None]
    assert len(paths(files)) == 2
    assert ids(files) == ["e1", "e4"]
    files.close()
    later = make()
    assert later.adopt() == 2
    assert ids(later) == ["e1", "e4"]


def test_a_write_that_fails_and_cannot_be_taken_back_says_so(
    make: Callable[..., Folder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the letter may be sent all the same: an error without a number."""
    files = make()
    files.append([[packed(1)]])

    def sick(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", sick)
        [refusal] = files.append([[packed(2)]])
    assert isinstance(refusal, OSError)
    assert refusal.errno is None
    assert "could not be taken back" in str(refusal)
    assert ids(files) == ["e1"]


def test_a_file_that_cannot_be_made_is_not_there(make: Callable[..., Folder], monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, at its header; the next capture makes another."""
    files = make()
    files.append([[packed(1)]])
    [segment] = files.segments()
    segment.mark_sent([files.load(segment)[0][0].offset])
    files.sweep()

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        [refusal] = files.append([[packed(2)]])
    assert isinstance(refusal, OSError)
    assert refusal.errno == 28
    assert paths(files) == []
    assert files.append([[packed(3)]]) == [None]
    assert ids(files) == ["e3"]


def test_a_spool_that_was_removed_is_made_anew(make: Callable[..., Folder]) -> None:
    """What is written to a removed file, nobody could read again."""
    files = make()
    files.append([[packed(1)]])
    for path in Path(files.path).iterdir():
        path.unlink()
    Path(files.path).rmdir()
    assert files.append([[packed(2)]]) == [None]
    assert ids(files) == ["e2"]
    files.close()
    assert make().adopt() == 1


# -- sending ----------------------------------------------------------------------------------------------


def test_what_is_sent_is_forgotten_and_its_file_removed(make: Callable[..., Folder]) -> None:
    """States are kept over a restart; the last letter's end is the file's."""
    files = make()
    files.append([[packed(n) for n in range(3)]])
    [segment] = files.segments()
    first, second, third = files.load(segment)[0]
    segment.mark_tried([first.offset, second.offset])
    segment.mark_sent([first.offset])
    assert files.letters == 2
    files.close()
    later = make()
    assert later.adopt() == 2
    [segment] = later.segments()
    records, _ = later.load(segment)
    assert [(record.letter.event_id, record.state) for record in records] == [
        ("e1", State.TRIED),
        ("e2", State.WAITING),
    ]
    segment.mark_sent([second.offset, third.offset])
    later.sweep()
    assert list(Path(later.path).iterdir()) == []


def test_a_try_is_on_disk_before_it_begins(make: Callable[..., Folder], monkeypatch: pytest.MonkeyPatch) -> None:
    """One fsync; when it fails the letter counts as not tried, so that the next try has to ask the disk again."""
    files = make()
    files.append([[packed(1)]])
    [segment] = files.segments()
    real, calls = os.fsync, list[int]()

    def sick_once(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 1:
            raise OSError(5, "Input/output error")
        real(fd)

    monkeypatch.setattr(os, "fsync", sick_once)
    [record] = files.load(segment)[0]
    with pytest.raises(OSError, match="Input/output"):
        segment.mark_tried([record.offset])
    assert files.load(segment)[0][0].state is State.WAITING
    segment.mark_tried([record.offset])
    assert len(calls) == 2
    assert files.load(segment)[0][0].state is State.TRIED


def test_names_of_sent_files_are_gone_from_the_disk(
    make: Callable[..., Folder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory is synced after the removal, so that no power cut brings letters back that were sent."""
    files = make()
    files.append([[packed(1)]])
    [segment] = files.segments()
    segment.mark_sent([files.load(segment)[0][0].offset])
    seen: list[str] = []
    unlink, fsync = os.unlink, os.fsync

    def note(what: str, act: Callable[[Any], None], argument: Any) -> None:
        seen.append(what)
        act(argument)

    monkeypatch.setattr(os, "unlink", partial(note, "unlink", unlink))
    monkeypatch.setattr(os, "fsync", partial(note, "fsync", fsync))
    files.sweep()
    assert seen == ["unlink", "fsync"]


def test_homes_are_those_that_letters_wait_for(make: Callable[..., Folder]) -> None:
    """As captures told, then as the sender found; a letter that came meanwhile is not forgotten."""
    files = make()
    assert files.homes == frozenset()
    files.append([[packed(1, home=3), packed(2, home=1)]])
    assert files.homes == {1, 3}
    [segment] = files.segments()
    _, size = files.load(segment)
    files.passed(segment, size, {3})
    assert files.homes == {3}
    files.append([[packed(3, home=5)]])
    files.passed(segment, size, {3})
    assert files.homes == {3, 5}
    files.append([[packed(4)]])
    assert files.homes is None
    files.close()
    later = make()
    later.adopt()
    assert later.homes is None


def test_a_removed_segment_is_told_and_passed_over(
    make: Callable[..., Folder], caplog: pytest.LogCaptureFixture
) -> None:
    files = make()
    files.append([[packed(1)]])
    [segment] = files.segments()
    os.unlink(segment.path)
    assert files.load(segment) == ([], 0)
    assert files.letters == 0
    assert "was removed with 1 letters" in caplog.text


# -- owners -----------------------------------------------------------------------------------------------


def test_segments_of_the_living_are_left_alone(make: Callable[..., Folder]) -> None:
    """One owner adopts what another has left, and nobody else does any more."""
    first, second, third = make(), make(), make()
    first.append([[packed(1)]])
    assert second.adopt() == 0
    first.close()
    second.append([[packed(2)]])
    assert second.adopt() == 1
    assert third.adopt() == 0
    assert ids(second) == ["e1", "e2"], "the oldest first"
    second.close()
    assert third.adopt() == 2


def test_a_lock_that_a_dead_owner_left_is_removed(make: Callable[..., Folder]) -> None:
    """Killed before its first segment."""
    files = make()
    files.append([[packed(1)]])
    lock = Path(files.path) / "1700000000000-1-abcd.lock"
    lock.touch()
    assert files.adopt() == 0
    assert not lock.exists()


def test_a_lock_whose_file_was_removed_is_none(make: Callable[..., Folder], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last holder may remove it between our opening and our locking it: another may hold a new one."""
    files = make()
    files.append([[packed(1)]])
    files.close()
    [lock] = paths(files, ".lock")
    real = fcntl.flock

    def flock(fd: int, how: int) -> None:
        real(fd, how)
        lock.unlink(missing_ok=True)

    later = make()
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        assert later.adopt() == 0
    assert later.adopt() == 1


def test_a_new_owner_whose_lock_is_taken_gets_another(
    make: Callable[..., Folder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who looks for dead owners may be quicker than it."""
    files = make()
    real, calls = fcntl.flock, []

    def flock(fd: int, how: int) -> None:
        calls.append(fd)
        if len(calls) == 1:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert files.append([[packed(1)]]) == [None]
    assert len(calls) == 2


def test_a_torn_tail_is_cut_off_with_one_line(make: Callable[..., Folder], caplog: pytest.LogCaptureFixture) -> None:
    """At every byte of the last record; the letters before it are adopted."""
    for cut in range(1, packed(2).size + 1):
        caplog.clear()
        files, later = make(), make()
        files.append([[packed(1), packed(2)]])
        [path] = paths(files)
        files.close()
        os.truncate(path, path.stat().st_size - cut)
        assert later.adopt() == 1
        assert ids(later) == ["e1"]
        torn = cut != packed(2).size
        assert len(caplog.records) == torn
        assert path.stat().st_size == HEADER_BYTES + packed(1).size
        [segment] = later.segments()
        segment.mark_sent([later.load(segment)[0][0].offset])
        later.sweep()
        assert paths(later) == []


def test_what_is_adopted_is_on_disk(make: Callable[..., Folder], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner may have died before its own fsync: a mark that only the kernel has would not survive a power cut."""
    files, later = make(), make()
    files.append([[packed(1)]])
    [path] = paths(files)
    files.close()
    synced: list[int] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    assert later.adopt() == 1
    assert synced == [path.stat().st_ino]


def test_a_damaged_file_is_kept_when_its_letters_are_sent(
    make: Callable[..., Folder], caplog: pytest.LogCaptureFixture
) -> None:
    """What was acknowledged and cannot be read is for somebody to look at; it is told, and counts in the bound."""
    files, later = make(), make()
    files.append([[packed(n) for n in range(3)]])
    [path] = paths(files)
    files.close()
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES + packed(0).size + 30] ^= 0xFF
    path.write_bytes(data)
    assert later.adopt() == 2
    assert "are damaged" in caplog.text
    [segment] = later.segments()
    segment.mark_sent([record.offset for record in later.load(segment)[0]])
    later.sweep()
    assert [each.name for each in Path(later.path).iterdir()] == [f"{path.name}.damaged"]
    assert (later.survey().letters, later.survey().bytes) == (0, len(data))


def test_a_file_of_another_version_is_left_alone(make: Callable[..., Folder], caplog: pytest.LogCaptureFixture) -> None:
    """Told once; a process that knows it sends it."""
    files = make()
    files.append([[packed(1)]])
    [path] = paths(files)
    files.close()
    path.write_bytes(b"UNOSPL2\n" + path.read_bytes()[len(MAGIC) :])
    later = make()
    assert [later.adopt(), later.adopt()] == [0, 0]
    assert caplog.text.count("another version") == 1
    assert path.exists()


def test_stats_count_all_owners_without_their_help(make: Callable[..., Folder]) -> None:
    """Bytes, letters, and when the oldest was captured."""
    first, second, looker = make(), make(), make()
    assert looker.survey().letters == 0
    first.append([[packed(5), packed(6)]])
    second.append([[packed(7)]])
    [segment] = first.segments()
    segment.mark_sent([first.load(segment)[0][0].offset])
    stats = looker.survey()
    assert (stats.letters, stats.oldest_ms, stats.max_bytes) == (2, 1_800_000_000_006, 10_000_000)
    assert stats.bytes == sum(path.stat().st_size for path in paths(looker))
    assert stats.oldest_age_s == 0.0, "of a clock that is behind"


def test_a_child_lets_go_of_the_parents_lock(make: Callable[..., Folder]) -> None:
    """Without giving it up: the parent keeps its segments, and writes on."""
    files, later = make(), make()
    files.append([[packed(1)]])
    child = os.fork()
    if child == 0:
        files.abandon()
        os._exit(0 if files.append([[packed(2)]]) == [None] and ids(files) == ["e2"] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert later.adopt() == 1, "the child's, which has ended"
    assert files.append([[packed(3)]]) == [None]
    assert ids(files) == ["e1", "e3"]


# -- death ------------------------------------------------------------------------------------------------


def life(files: Folder, told: int) -> None:
    """Adopt, capture, try, send some, capture, and end: what was acknowledged and sent is written to a pipe."""

    def tell(what: str) -> None:
        os.write(told, f"{what} ".encode())

    files.adopt()
    for n in range(0, 40, 10):
        if (
            files.append([[packed(m) for m in range(n, n + 5)], [packed(m) for m in range(n + 5, n + 10)]])
            == [None] * 2
        ):
            tell(f"+{n}")
    for segment in files.segments()[:-1]:
        records, size = files.load(segment)
        segment.mark_tried([record.offset for record in records])
        for record in records:  # Redis has them from here on
            tell(f"-{record.letter.event_id[1:]}")
        segment.mark_sent([record.offset for record in records])
        files.passed(segment, size, set())
    files.close()
    tell("end")


def die_at(step: int) -> None:
    """Kill this process at that call, from 0, which changes a file; of a write the first half is done."""
    reals = {name: getattr(os, name) for name in ("pwrite", "fsync", "open", "unlink", "ftruncate", "mkdir", "close")}
    steps = count()

    def act(name: str, *args: Any) -> Any:
        if next(steps) == step:
            if name == "pwrite":
                reals[name](args[0], bytes(args[1])[: len(args[1]) // 2], args[2])
            os.kill(os.getpid(), signal.SIGKILL)
        return reals[name](*args)

    for name in reals:
        setattr(os, name, partial(act, name))


def test_killed_at_any_step_no_acknowledged_letter_is_lost_and_none_sent_unmarked(
    make: Callable[..., Folder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each call that changes a file, half of a write done: all is there, in order; what was sent says so."""
    monkeypatch.setattr(folder_module, "SEGMENT_BYTES", 2000)
    for step in count():
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            die_at(step)
            life(make(), writer)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            words = pipe.read().split()
        os.waitpid(child, 0)
        heir = make()
        heir.adopt()
        found = {int(r.letter.event_id[1:]): r.state for segment in heir.segments() for r in heir.load(segment)[0]}
        kept = {m for word in words if word[0] == "+" for m in range(int(word[1:]), int(word[1:]) + 10)}
        sent = {int(word[1:]) for word in words if word[0] == "-"}
        assert found.keys() >= kept - sent, step
        assert list(found) == sorted(found), step
        assert {found[n] for n in sent & found.keys()} <= {State.TRIED}, step
        for segment in heir.segments():
            segment.mark_sent([record.offset for record in heir.load(segment)[0]])
        heir.close()
        assert list(Path(heir.path).parent.glob("*/*")) == [], step
        if words[-1:] == ["end"]:
            break
    assert step > 60


def test_of_many_that_adopt_at_once_one_gets_all(make: Callable[..., Folder]) -> None:
    """Also when the dead owner's lock file was removed with it."""
    for turn in range(20):
        files = make()
        assert files.append([[packed(n)] for n in range(5)]) == [None] * 5
        files.close()
        if turn % 2:
            for path in paths(files, ".lock"):
                path.unlink()
        (go, start), (hold, end), (reader, writer) = os.pipe(), os.pipe(), os.pipe()
        children = []
        for _ in range(4):
            children.append(os.fork())
            if children[-1] == 0:
                os.close(end)
                heir = make()
                os.read(go, 1)
                os.write(writer, f"{heir.adopt()} ".encode())
                os.read(hold, 1)
                os._exit(0)
        os.write(start, b"4444")
        answers = list[str]()
        while len(answers) < 4:
            answers += os.read(reader, 100).decode().split()
        os.close(end)
        for child in children:
            os.waitpid(child, 0)
        for fd in (go, start, hold, reader, writer):
            os.close(fd)
        assert sorted(answers) == ["0", "0", "0", "5"]
        last = make()
        assert last.adopt() == 5
        [segment] = last.segments()
        segment.mark_sent([record.offset for record in last.load(segment)[0]])
        last.close()
