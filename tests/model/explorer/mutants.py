"""Broken variants of the scripts, each of which the explorer must catch."""

from typing import Final, NamedTuple

from tests.model.explorer.wire import Replacement

__all__ = ["MUTANTS", "Mutant"]


class Mutant(NamedTuple):
    """A broken variant, and the class of faults that shows it."""

    what: str
    fault: str
    replacements: tuple[Replacement, ...]


def _changed(verb: str, old: str, new: str) -> Replacement:
    return Replacement(verb, old, new)


_REPAIR_NOTHING: Final = _changed(
    "repair", "\nlocal next_cursor = ", "\nif true then return { '', {}, {}, 0, mark, 0 } end\nlocal next_cursor = "
)

MUTANTS: Final[dict[str, Mutant]] = {
    "counts-from-1": Mutant(
        "the token is the server's own delivery count, which begins at 1",
        "groups",
        (
            _changed(
                "take",
                "return int(math.max((tonumber(redis.call('HGET', meta, 'token')) or 0) + 1, shard_us))",
                "return '1'",
            ),
        ),
    ),
    "counts-in-meta": Mutant(
        "tokens are counted from 1 in `meta`: a lost or rolled back `meta` repeats them",
        "failover",
        (
            _changed(
                "take",
                "(tonumber(redis.call('HGET', meta, 'token')) or 0) + 1, shard_us)",
                "(tonumber(redis.call('HGET', meta, 'token')) or 0) + 1, 1)",
            ),
        ),
    ),
    "xreadgroup": Mutant(
        "the intake reads with XREADGROUP, which leases whatever the group says is new",
        "groups",
        (
            _changed(
                "take",
                "local entries = entries_after(last, '+', STEP)",
                "local read = redis.call('XREADGROUP', 'GROUP', 'workers', consumer, 'COUNT', want - found, "
                "'STREAMS', letters, '>')\n    local entries = read and read[1][2] or {}",
            ),
            _changed("take", "drained = #entries < STEP", "drained = #entries == 0"),
            _changed("take", "local NEVER = '1000000000000000'", "local NEVER = '0'"),
            _changed(
                "take",
                "redis.call('ZADD', schedule, unpack(walk.delayed))",
                "redis.call('ZADD', schedule, unpack(walk.delayed))\n"
                "    for i = 2, #walk.delayed, 2 do redis.call('XACK', letters, 'workers', walk.delayed[i]) end",
            ),
        ),
    ),
    "pel-first": Mutant(
        "settle acknowledges before it writes the index",
        "aborts",
        (
            _changed(
                "settle",
                "if #records > 0 then",
                "redis.call('XACK', letters, 'workers', unpack(settled))\nif #records > 0 then",
            ),
        ),
    ),
    "no-repair": Mutant("repair does nothing", "strangers", (_REPAIR_NOTHING,)),
    "no-cursor": Mutant(
        "reclaim begins at 0-0 each time: what lives hides what is dead behind it",
        "pauses",
        (_changed("reclaim", "lease_ms, cursor, 'COUNT'", "lease_ms, '0-0', 'COUNT'"),),
    ),
    "mark-last": Mutant(
        "take moves the mark after it has claimed",
        "aborts",
        (
            _changed("take", "if walk.last ~= mark or #passed > 0 then\n  pass(walk, token)\nend", ""),
            _changed(
                "take",
                "if #gone > 0 then",
                "if walk.last ~= mark or #passed > 0 then\n  pass(walk, token)\nend\nif #gone > 0 then",
            ),
        ),
    ),
    "no-fence": Mutant(
        "settle asks for the consumer alone",
        "mixed",
        (_changed("settle", "held_tokens[id] ~= token", "not held_tokens[id]"),),
    ),
    "fence-without-consumer": Mutant(
        "settle asks for the token alone",
        "strangers",
        (
            _changed("settle", "ids[1], ids[1], 1, consumer)", "ids[1], ids[1], 1)"),
            _changed("settle", "'-', '+', room, consumer)", "'-', '+', room)"),
            _changed("settle", "id, id, 1, consumer)[1]", "id, id, 1)[1]"),
        ),
    ),
    "drifting-total": Mutant(
        "settle does not count the letters that it discards",
        "none",
        (_changed("settle", "discard = 'discarded' }", "discard = 'other' }"),),
    ),
    "stealing-lease": Mutant(
        "take claims whatever it names, leased or not",
        "strangers",
        (_changed("take", "local NEVER = '1000000000000000'", "local NEVER = '0'"),),
    ),
    "row-first": Mutant(
        "take removes a letter from `schedule` before it leases it",
        "aborts",
        (
            _changed(
                "take",
                "local leased = {}\nif #to_lease > 0 then",
                "local leased = {}\nif #passed > 0 then redis.call('ZREM', source, unpack(passed)) end\n"
                "if #to_lease > 0 then",
            ),
        ),
    ),
    "deleted-consumer": Mutant(
        "repair deletes idle consumers with what they hold",
        "pauses",
        (_changed("repair", "info(consumer, 'pending') == 0 and ", ""),),
    ),
    "stale-operator": Mutant(
        "operators' verbs do not compare what the caller saw",
        "none",
        (_changed("*", "if not by_our_intake then", "if false then"),),
    ),
    "server-time": Mutant(
        "letters are due by the server's clock, also when that was set back",
        "clock",
        (_changed("*", "if was_set_back or shard_us >= latest + RECORD_US then", "if false then"),),
    ),
    "server-window": Mutant(
        "repeats are known by the server's clock alone, also when that has jumped",
        "clock",
        (_changed("*", "if by == producer then", "if false then"),),
    ),
    "no-guard": Mutant(
        "a caller of an earlier layout is served",
        "upgrade",
        (_changed("*", "if known[2] and tonumber(known[2]) > tonumber(ARGV[2]) then", "if false then"),),
    ),
    "row-behind": Mutant(
        "reclaim leaves the lease of a letter that it has suspected",
        "pauses",
        (_changed("reclaim", "redis.call('XACK', letters, 'workers', unpack(done))", "redis.call('XLEN', letters)"),),
    ),
}
