"""docs/guide-map.md is complete and true: a row for every line of the guide, in its words; what rows name exists."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.cli import Cli
from tests.support.clusters import Cluster
from tests.support.guide import LINES, lines_to_map
from tests.support.servers import Server
from tests.support.shown import Terminal, blocks_of, missing_from
from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/guide-map.md"
TEXT = PAGE.read_text("utf-8")
BLOCKS = blocks_of(PAGE)

VERDICTS = ("as written", "changed: ", "not")


class Row(NamedTuple):
    """A row of the map."""

    heading: str
    first: int
    last: int
    words: list[str]
    """The guide's, as far as they are quoted."""
    verdict: str
    why: str
    shown_in: list[str]


def _rows() -> list[Row]:
    rows, heading = [], ""
    for line in TEXT.splitlines():
        if line.startswith("#"):
            heading = line
        if re.match(r"\| \d", line):
            lines, words, verdict, why, shown_in = [cell.strip() for cell in line.strip("|").split(" |")]
            first, _, last = lines.partition("–")
            quoted = re.findall(r"`([^`]+)`", words)
            assert words == " ".join(f"`{each}`" for each in quoted), (
                f"{line}: the guide's words are quoted, and no others"
            )
            paths = re.findall(r"`([^`]+)`", shown_in)
            rows.append(Row(heading, int(first), int(last or first), quoted, verdict, why, paths))
    return rows


ROWS = _rows()


def test_every_line_of_the_guide_has_a_row_under_its_heading() -> None:
    """In the guide's order; two rows may share a line that says two things."""
    covered = {number: row.heading for row in ROWS for number in range(row.first, row.last + 1)}
    missing = [line for line in lines_to_map() if covered.get(line.number) != line.heading]
    assert missing == []
    assert [row.first for row in ROWS] == sorted(row.first for row in ROWS)
    assert covered.keys() <= set(range(1, len(LINES) + 1))


def test_rows_quote_the_guide() -> None:
    """Each word in a row's second column stands in the lines that it names."""
    strange = [
        (row.first, words)
        for row in ROWS
        for words in row.words
        if words not in "\n".join(LINES[row.first - 1 : row.last])
    ]
    assert strange == []
    assert all(row.words for row in ROWS)


def test_rows_say_what_becomes_of_a_line_and_if_it_differs_why() -> None:
    """And where that is shown."""
    assert [row for row in ROWS if not row.verdict.startswith(VERDICTS)] == []
    assert [row for row in ROWS if row.verdict != "as written" and not row.why] == []
    assert [row for row in ROWS if not row.shown_in] == []


def test_what_rows_point_at_exists() -> None:
    """Files, folders and tests."""
    named = {path for row in ROWS for path in row.shown_in}
    named |= set(re.findall(r"`((?:tests|deploy|docs)/[\w./-]+)[ `]", TEXT))
    named |= {(PAGE.parent / path).resolve().relative_to(ROOT).as_posix() for path in re.findall(r"\]\(([^)#]+)", TEXT)}
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", BLOCKS)
def test_commands_say_what_the_map_shows(name: str, server: Server) -> None:
    """On twenty letters that are due."""
    cli = Cli(server.url)
    cli.seed(*[("order.created", {"order": n}) for n in range(20)], error=ConnectionError("away"), delay=0)
    terminal = Terminal(cli, server)
    for step in BLOCKS[name]:
        said = terminal.run(step.words)
        assert missing_from(said, step.shown, server.address) is None, said


def test_the_variables_for_tls_are_settings() -> None:
    """Known, and allowed; what they do is tested with a server that speaks TLS."""
    [variables] = re.findall(r"^```bash\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    config = DeadLetterConfig.from_env(dict(line.split("=", 1) for line in variables.splitlines()))
    assert (config.redis_ca_file, config.redis_username) == ("/path/to/ca.pem", "dlq")


async def test_the_cluster_client_is_taken_in_place_of_the_guides(cluster: Cluster) -> None:
    """As it stands without I/O; with a cluster of this machine, without TLS, it captures."""
    [snippet] = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(snippet, names)
    assert names["dlq"].config.queue == "default"
    for number, primary in enumerate(cluster.primaries(), 1):
        snippet = snippet.replace(f'"redis-node-{number}", 6379', f'"127.0.0.1", {primary.port}')
    exec(snippet.replace("ssl=True", "ssl=False"), names)
    async with names["dlq"] as queue:
        assert isinstance(queue, DeadLetterQueue)
        await queue.add({"order": 7}, type="order.created")
        assert (await queue.stats()).open == 1
        assert (await queue.verify()).clean
    await names["rc"].aclose()
