"""Reads the headers of the Lua scripts, and compares them with the bodies.

A small static reader, no Lua parser: it knows the few shapes that these scripts are written in.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from uno.event_bus.dead_letter.store.layout import QUEUE_KEYS, SHARD_KEYS

ROWS = ("KEYS", "ARGV", "GIVES", "FAILS", "COST")
COMMON = "1 protocol int; 2 epoch int; 3 clock µs, or empty: the server's time"
COMMON_BOUND = {1, 2, 3}  # read by lib/guard.lua and lib/clock.lua

_KEY = re.compile(r"^(\d+) (\w+) +(stream|hash|zset) +(\S+)(?: +.*)?$")
_ARGUMENT = re.compile(r"(?:^|; +)(\d+)(…?) (\w+)")
_INCLUDE = re.compile(r"^-- include (\S+)$")
_PROVIDED = re.compile(r"^local (?:function )?([\w, \n]+?)(?: *=|\(|$)", re.MULTILINE)


@dataclass(frozen=True)
class Key:
    number: int
    name: str
    type: str
    shape: str


@dataclass
class Header:
    purpose: str = ""
    rows: dict[str, list[str]] = field(default_factory=dict)
    keys: list[Key] = field(default_factory=list)
    strange_keys: list[str] = field(default_factory=list)
    arguments: dict[int, str] = field(default_factory=dict)
    rest: int = 0
    """Number of the first of the arguments that may be many; 0 when there are none such."""
    width: int = 1
    """Arguments of one row of those."""
    includes: list[str] = field(default_factory=list)


def read_header(path: Path) -> Header:
    """Read the comment block at the top of a script, and the includes of its body."""
    header, row = Header(), ""
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.startswith("#!")]
    for line in lines:
        if not line.startswith("--"):
            break
        text = line.removeprefix("--").strip()
        word = text.split(" ")[0]
        if not header.purpose and word == f"{path.stem}:":
            header.purpose = text.removeprefix(word).strip()
        elif word in ROWS:
            row = word
            header.rows.setdefault(row, []).append(text.removeprefix(word).strip())
        elif row and line.startswith("--       "):
            header.rows[row].append(text)
    _read_keys(header)
    _read_arguments(header)
    header.includes = [match[1] for line in lines if (match := _INCLUDE.match(line))]
    return header


def _read_keys(header: Header) -> None:
    for row in header.rows.get("KEYS", []):
        if match := _KEY.match(row):
            header.keys.append(Key(int(match[1]), match[2], match[3], match[4]))
        else:
            header.strange_keys.append(row)


def _read_arguments(header: Header) -> None:
    text = ""
    for row in header.rows.get("ARGV", []):
        for number, many, name in _ARGUMENT.findall(row):
            header.arguments[int(number)] = name
            header.rest = int(number) if many else header.rest
        text += row + " "
    if header.rest:
        declared = text.partition(f"{header.rest}… ")[2]
        said = re.search(r"(\d+) arguments an? \w+", declared)
        # "letters  id text, seen state text, …": one argument for each part between commas.
        header.width = int(said[1]) if said else declared.partition(":")[0].count(",") + 1


def _body(path: Path) -> str:
    """The script without header and comments, but with its include lines."""
    lines = path.read_text("utf-8").splitlines()
    while lines and (lines[0].startswith(("--", "#!")) and not _INCLUDE.match(lines[0])):
        del lines[0]
    kept = [line if _INCLUDE.match(line) else re.sub(r"--.*$", "", line) for line in lines]
    return "\n".join(kept)


def complaints(path: Path) -> list[str]:
    """Return what is wrong with a script; an empty list when header and body agree."""
    header, body = read_header(path), _body(path)
    found = []
    if not header.purpose:
        found.append("the first line is not `-- <verb>: <purpose>`")
    if tuple(header.rows) != ROWS:
        found.append(f"rows are {tuple(header.rows)}, not {ROWS}")
    found += _key_complaints(path, header, body)
    found += _argument_complaints(path, header, body)
    found += _include_complaints(path, body)
    return found


def _key_complaints(path: Path, header: Header, body: str) -> list[str]:
    names = [key.name for key in header.keys]
    found = [f"KEYS row cannot be read: {row}" for row in header.strange_keys]
    if [key.number for key in header.keys] != list(range(1, len(names) + 1)):
        found.append("KEYS are not numbered 1, 2, 3 …")
    for key in header.keys:
        prefix = "dlq:{<queue>}:" if key.name in QUEUE_KEYS else "dlq:{<queue>:<i>.<k>}:"
        if key.shape != prefix + key.name:
            found.append(f"{key.name} has the shape {key.shape}")
        if key.type != (QUEUE_KEYS | SHARD_KEYS).get(key.name):
            found.append(f"{key.name} is no {key.type}")
    binding = re.match(r"\s*local ([\w, ]+?) =\s+((?:KEYS\[\d+\](?:, )?)+)\n", body)
    bound = binding[1].split(", ") if binding else []
    numbers = [int(n) for n in re.findall(r"KEYS\[(\d+)\]", binding[2])] if binding else []
    if bound != names or numbers != list(range(1, len(names) + 1)):
        found.append(f"the body does not begin by binding {names} to KEYS in order")
    if binding and "KEYS" in body[binding.end() :]:
        found.append("KEYS is used by number after its names are bound")
    whole = expanded(path)
    first_use = whole.find("\n", whole.find("KEYS["))
    found += [
        f"{name} is declared and never used" for name in names if not re.search(rf"\b{name}\b", whole[first_use:])
    ]
    if re.search(r"['\"]dlq:", whole) or re.search(rf"\b({'|'.join(names)}) *\.\.|\.\. *({'|'.join(names)})\b", whole):
        found.append("a key name is computed or spelt out")
    return found


def _argument_complaints(path: Path, header: Header, body: str) -> list[str]:
    found = []
    first = " ".join(header.rows.get("ARGV", [""])[0].split())
    if first != COMMON:
        found.append(f"the common arguments are {first!r}")
    single = {n for n in header.arguments if not header.rest or n < header.rest}
    used = {int(n) for n in re.findall(r"ARGV\[(\d+)\]", expanded(path))}
    allowed = single | ({header.rest} if header.rest else set())
    if used - allowed:
        found.append(f"ARGV {sorted(used - allowed)} are used and not declared")
    unread = {n for n in single - used - COMMON_BOUND if "reserved" not in _argument_text(header, n)}
    if unread:
        found.append(f"ARGV {sorted(unread)} are declared and not used")
    found += _row_complaints(path, header)
    if sorted(header.arguments) != list(range(1, len(header.arguments) + 1)):
        found.append("ARGV are not numbered 1, 2, 3 …")
    return found


def _argument_text(header: Header, number: int) -> str:
    text = " ".join(header.rows["ARGV"])
    return re.split(rf"; +{number + 1}|\b{number + 1}… ", text.partition(f"{number} {header.arguments[number]}")[2])[0]


def _row_complaints(path: Path, header: Header) -> list[str]:
    """Rows of many arguments: where they begin and how wide they are, as the body's constants have it."""
    whole = expanded(path)
    constants = re.search(r"local FIRST, WIDTH\b[\w, ]* = (\d+), (\d+)", whole)
    if constants and (int(constants[1]), int(constants[2])) != (header.rest, header.width):
        return [f"rows begin at {constants[1]} and have {constants[2]} arguments, not {header.rest} and {header.width}"]
    if header.rest and not constants and not re.search(rf"for i = {header.rest}, #ARGV\b", whole):
        return [f"nothing in the body goes over the arguments from {header.rest}"]
    reach = max((int(n) for n in re.findall(r"ARGV\[at \+ (\d+)\]", whole)), default=0)
    return [f"ARGV[at + {reach}] is past the row's {header.width} arguments"] if reach >= header.width else []


def expanded(path: Path, folder: Path | None = None) -> str:
    """The body with its includes in their places, without comments."""
    folder = folder or path.parent
    return "\n".join(
        expanded(folder / match[1], folder) if (match := _INCLUDE.match(line)) else line
        for line in _body(path).splitlines()
    )


def provided(text: str) -> set[str]:
    """Names that a piece of Lua defines for what follows it: its top-level locals."""
    return {name.strip() for match in _PROVIDED.finditer(text) for name in match[1].split(",")}


def needs_of(path: Path) -> set[str] | None:
    """The names in a shared file's NEEDS row; None when there is none."""
    match = re.search(r"^-- NEEDS (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return None if match is None else set() if match[1] == "nothing" else set(match[1].split(", "))


def _include_complaints(path: Path, body: str) -> list[str]:
    found, parts = [], re.split(r"^-- include (\S+)$", body, flags=re.MULTILINE)
    known = provided(parts[0])
    for include, after in zip(parts[1::2], parts[2::2], strict=True):
        file = path.parent / include
        missing = (needs_of(file) or set()) - known
        if missing:
            found.append(f"{include} needs {sorted(missing)} before it")
        known |= provided(_body(file)) | provided(after)
    return found


def library_complaints(path: Path) -> list[str]:
    """Return what is wrong with a file of lib/: purpose line, NEEDS row, and names it uses but does not declare."""
    lines = path.read_text("utf-8").splitlines()
    found = []
    if not lines[0].startswith(f"-- {path.stem}: "):
        found.append("the first line is not `-- <name>: <purpose>`")
    needs = needs_of(path)
    if needs is None or not lines[1].startswith("-- NEEDS "):
        return [*found, "the second line is not `-- NEEDS <names>`"]
    body = re.sub(r"'[^'\n]*'", "''", _body(path))
    # Names that other files of lib/ or the scripts' own first lines provide.
    elsewhere = {*QUEUE_KEYS, *SHARD_KEYS, "consumer"}
    for other in path.parent.glob("*.lua"):
        elsewhere |= provided(_body(other)) if other != path else set()
    local = set(re.findall(r"\blocal (?:function )?(\w+)", body))
    for shape in (
        r"\blocal ([\w, \n]+) =",
        r"\blocal ([\w, ]+)$",
        r"\bfor ([\w, ]+) (?:in|=)",
        r"\bfunction ?\w*\(([\w, ]*)\)",
    ):
        for names in re.findall(shape, body, re.MULTILINE):
            local |= {name.strip() for name in names.split(",")}
    used = set(re.findall(r"(?<![.\w])([A-Za-z_]\w*)\b(?! = )", re.sub(r"\.\w+", "", body)))
    undeclared = (used & elsewhere) - local - needs
    if undeclared:
        found.append(f"uses {sorted(undeclared)}, which NEEDS does not name")
    idle = {name for name in needs if name not in used}
    if idle:
        found.append(f"NEEDS names {sorted(idle)}, which it does not use")
    return found
