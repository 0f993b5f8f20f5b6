"""A test's own look at a shard: what stands in its keys, read past the engine, and a stranger's strokes on them."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from uno.event_bus.dead_letter.letter import NewLetter
from uno.event_bus.dead_letter.store.layout import SHARD_KEYS
from uno.event_bus.dead_letter.store.shard import Shard

GROUP = "workers"


def new(event_id: str = "e1", **values: Any) -> NewLetter:
    """A letter of type `order`, with a payload that names its event id."""
    return NewLetter(**{"event_id": event_id, "type": "order", "payload": f'"{event_id}"'.encode(), **values})


def several(count: int, prefix: str = "e", **values: Any) -> list[NewLetter]:
    """Letters with the event ids e0, e1 and so on."""
    return [new(f"{prefix}{i}", **values) for i in range(count)]


def _crc64(data: bytes | bytearray) -> int:
    """The checksum of a dump: CRC-64/Redis (Jones), reflected."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x95AC9329AC4BC9B5 if crc & 1 else 0)
    return crc


class Look:
    """The keys of one shard, read by a client of the test's; letters have their whole ids (``0-…``)."""

    def __init__(self, client: Any, shard: Shard) -> None:
        self.client = client
        self.shard = shard

    def key(self, name: str) -> str:
        return self.shard.key(name)

    def _id(self, stream_id: bytes) -> str:
        return self.shard.letter_id(stream_id)

    def _zset(self, name: str) -> dict[str, int]:
        rows = self.client.zrange(self.key(name), 0, -1, withscores=True)
        return {self._id(id): int(score) for id, score in rows}

    @property
    def letters(self) -> list[str]:
        return [self._id(id) for id, _ in self.client.xrange(self.key("letters"))]

    def fields(self, letter_id: str) -> list[bytes]:
        """The fields of an entry, name and value in turn, in their order."""
        id = self.shard.stream_id(letter_id)
        ((_, fields),) = self.client.xrange(self.key("letters"), id, id)
        return [word for pair in fields.items() for word in pair]

    @property
    def schedule(self) -> dict[str, int]:
        return self._zset("schedule")

    @property
    def suspects(self) -> dict[str, int]:
        return self._zset("suspects")

    @property
    def held(self) -> dict[str, int]:
        return self._zset("held")

    @property
    def parked(self) -> dict[str, int]:
        return self._zset("parked")

    @property
    def leases(self) -> dict[str, tuple[str, int]]:
        """Letter id → consumer, token; empty when there is no group."""
        try:
            rows = self.client.xpending_range(self.key("letters"), GROUP, "-", "+", 100_000)
        except Exception as error:
            if "NOGROUP" not in str(error):
                raise
            return {}
        return {self._id(row["message_id"]): (row["consumer"].decode(), row["times_delivered"]) for row in rows}

    @property
    def begun_ms_ago(self) -> dict[str, int]:
        """Letter id → how long ago its lease began, ms; below 0, it begins in the future."""
        now_s, us = self.client.time()
        return {id: now_s * 1000 + us // 1000 - began_ms for id, began_ms in self._began_ms.items()}

    @property
    def _began_ms(self) -> dict[str, int]:
        (group,) = self.client.xinfo_stream(self.key("letters"), full=True)["groups"]
        return {self._id(id): began_ms for id, _, began_ms, _ in group["pending"]}

    @property
    def consumers(self) -> set[str]:
        return {row["name"].decode() for row in self.client.xinfo_consumers(self.key("letters"), GROUP)}

    @property
    def group_position(self) -> str:
        (group,) = self.client.xinfo_groups(self.key("letters"))
        return self._id(group["last-delivered-id"])

    @property
    def meta(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.client.hgetall(self.key("meta")).items()}

    @property
    def mark(self) -> str:
        return self._id(self.client.hget(self.key("meta"), "mark"))

    @property
    def totals(self) -> dict[str, int]:
        """The shard's books: what of `meta` is counted of letters."""
        known = {"format", "protocol", "epoch", "mark", "token", "clock", "lead"}
        known.add("new_error_groups")
        return {name: int(value) for name, value in self.meta.items() if name not in known}

    @property
    def new_error_groups(self) -> int:
        """How often an error group began."""
        return int(self.meta.get("new_error_groups", 0))

    @property
    def state(self) -> dict[str, list[Any]]:
        """Letter id → the record: version, failures, crashes, releases, redrives and so on."""
        return {self._id(id): msgspec.msgpack.decode(row) for id, row in self.client.hgetall(self.key("state")).items()}

    @property
    def history(self) -> dict[str, bytes]:
        return {self._id(id): row for id, row in self.client.hgetall(self.key("history")).items()}

    @property
    def groups(self) -> dict[str, int]:
        return {name.decode(): int(n) for name, n in self.client.hgetall(self.key("groups")).items()}

    @property
    def group_info(self) -> dict[str, list[Any]]:
        rows = self.client.hgetall(self.key("group_info")).items()
        return {name.decode(): msgspec.msgpack.decode(row) for name, row in rows}

    def where(self, letter_id: str) -> list[str]:
        """Every place that records the letter, the one that counts first."""
        places = ["leased"] if letter_id in self.leases else []
        return places + [name for name in ("suspects", "schedule", "held", "parked") if letter_id in self._zset(name)]

    def snapshot(self) -> dict[bytes, bytes]:
        """Each key of the server as DUMP gives it: equal snapshots, nothing written."""
        keys = sorted(self.client.keys())
        pipe = self.client.pipeline(transaction=False)
        for key in keys:
            pipe.dump(key)
        return dict(zip(keys, pipe.execute(), strict=True))

    def contents(self) -> str:
        """All that the shard says of its letters, but for ages of leases: equal texts, equal states."""
        pipe = self.client.pipeline(transaction=False)
        for name, type_ in SHARD_KEYS.items():
            match type_:
                case "stream":
                    pipe.xrange(self.key(name))
                    pipe.xpending_range(self.key(name), GROUP, "-", "+", 10_000)
                    pipe.xinfo_groups(self.key(name))
                case "zset":
                    pipe.zrange(self.key(name), 0, -1, withscores=True)
                case _:
                    pipe.hgetall(self.key(name))
        replies = pipe.execute(raise_on_error=False)
        for row in replies[1] if isinstance(replies[1], list) else ():
            del row["time_since_delivered"]
        return repr([sorted(reply.items()) if isinstance(reply, dict) else reply for reply in replies])

    def copy(self) -> list[tuple[bytes, bytes]]:
        """Every key of the server, for `put_back`."""
        return list(self.snapshot().items())

    def put_back(self, copy: list[tuple[bytes, bytes]]) -> None:
        """Make the server what it was when it was copied."""
        pipe = self.client.pipeline(transaction=False)
        pipe.flushall()
        for key, dumped in copy:
            pipe.restore(key, 0, dumped)
        pipe.execute()

    # ------------------------------------------------------------------------------------- a stranger's strokes

    def foreign(self, fields: Mapping[Any, Any], id: str = "*") -> str:
        """Capture with a plain XADD, as another language would."""
        return self._id(self.client.xadd(self.key("letters"), dict(fields), id=id))

    def age(self, by_ms: int, letter_ids: Iterable[str] | None = None) -> None:
        """Make leases older (all, or those named), without touching owner or token."""
        pipe = self.client.pipeline(transaction=False)
        for letter_id, (consumer, _) in self.leases.items():
            if letter_ids is None or letter_id in set(letter_ids):
                id = self.shard.stream_id(letter_id)
                pipe.xclaim(self.key("letters"), GROUP, consumer, 0, [id], idle=by_ms, justid=True)
        pipe.execute()

    def lease_in_the_future(self, by_ms: int, letter_ids: Iterable[str]) -> None:
        """Have leases begin so far in the future, as after a clock was set back: no command does it, a dump can."""
        key = self.key("letters")
        dump, began = bytearray(self.client.dump(key)[:-8]), self._began_ms
        for letter_id in letter_ids:
            words = [int(word).to_bytes(8, "big") for word in self.shard.stream_id(letter_id).split("-")]
            began_ms = began[letter_id]
            at = dump.index(b"".join(words) + began_ms.to_bytes(8, "little")) + 16
            dump[at : at + 8] = (began_ms + by_ms).to_bytes(8, "little")
        self.client.restore(key, 0, bytes(dump) + _crc64(dump).to_bytes(8, "little"), replace=True)

    def lease_as_stranger(self, letter_id: str, consumer: str = "stranger", token: int = 1) -> None:
        """Make the letter pending, as XREADGROUP or XCLAIM by hand would."""
        id = self.shard.stream_id(letter_id)
        self.client.xclaim(self.key("letters"), GROUP, consumer, 0, [id], force=True, retrycount=token, justid=True)

    def lose_group_and_meta(self) -> None:
        """Lose both that know where the intake stands."""
        self.client.xgroup_destroy(self.key("letters"), GROUP)
        self.lose("meta")

    def lose(self, *names: str) -> None:
        """Delete keys of the shard."""
        assert set(names) <= set(SHARD_KEYS)
        self.client.delete(*map(self.key, names))
