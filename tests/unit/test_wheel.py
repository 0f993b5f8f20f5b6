"""What a user installs: the built wheel carries the state machine as it stands in lua/."""

import subprocess
import sys
import zipfile
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
PACKAGED = "uno/event_bus/dead_letter/_lua/"


def test_the_wheel_carries_lua_byte_for_byte(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    run = subprocess.run(build, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr

    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packaged = {
            name.removeprefix(PACKAGED): archive.read(name) for name in archive.namelist() if name.startswith(PACKAGED)
        }
    lua = CHECKOUT / "lua"
    checkout = {path.relative_to(lua).as_posix(): path.read_bytes() for path in lua.rglob("*") if path.is_file()}
    assert packaged == checkout
