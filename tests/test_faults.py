"""profiling/ on a bad day: killed at any moment, or on a full disk. No half-written result, one sentence, its code."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

for package in ("jinja2", "matplotlib", "msgspec", "rich", "sklearn", "transformers", "typer"):
    pytest.importorskip(package, reason=f"profiling needs {package}: pip install -r requirements/compare.txt")

from profiling.output.exits import Exit  # noqa: E402

REPOSITORY = Path(__file__).resolve().parent.parent

# The folder of the main job in place of the measurements, again and again: figures of 4 MB and a page of as much.
REPORTS = """
import sys
from pathlib import Path
from types import SimpleNamespace
from rich.console import Console
from profiling.comparison import compare, report
from profiling.output import files

def write(comparison, folder):
    (folder / "figures.json").write_text("[" + "1," * 2_000_000 + "1]")
    (folder / "index.html").write_text("<p>" * 1_000_000 + "</html>")

compare._run = lambda *arguments: SimpleNamespace()
report.write = write
print("ready", flush=True)
for number in range(10**6):
    compare.run(compare.QUICK, None, Path(sys.argv[1], f"report-{number}"), Console(quiet=True))
"""
FIGURES = """
import sys
from pathlib import Path
from profiling.output import files

print("ready", flush=True)
for number in range(10**6):
    files.write(Path(sys.argv[1], "figures.json"), "[" + f"{number}," * 1_000_000 + "1]")
"""


def _killed(program: str, folder: Path, after: float) -> None:
    """Runs it for `after` seconds from when it is ready."""
    command = [sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(after)
        process.kill()
    assert process.returncode == -signal.SIGKILL


def test_a_killed_comparison_leaves_no_half_report(tmp_path: Path) -> None:
    chance = random.Random(7)
    for _ in range(2):
        _killed(REPORTS, tmp_path, chance.uniform(0.2, 0.7))
        reports = [folder for folder in tmp_path.iterdir() if not folder.name.startswith(".")]
        for folder in reports:
            assert len(json.loads((folder / "figures.json").read_bytes())) == 2_000_001
            assert (folder / "index.html").read_text().endswith("</html>")
    assert reports, "none was finished: nothing was tested"


def test_killed_figures_are_the_old_or_the_new(tmp_path: Path) -> None:
    chance = random.Random(7)
    for _ in range(2):
        _killed(FIGURES, tmp_path, chance.uniform(0.2, 0.5))
        assert len(json.loads((tmp_path / "figures.json").read_bytes())) == 1_000_001


def _with_room_for(size: int) -> Callable[[], None]:
    """No file may become larger, as on a disk that is full."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


BENCHMARK = ("benchmark", "--shapes", "4x3x5x5", "--dtype", "float32", "--layout", "contiguous", "--seconds", "0")


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    uncovered = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, "-m", "profiling", *BENCHMARK, "--output", str(output)],
        cwd=REPOSITORY,
        env=uncovered,
        capture_output=True,
        text=True,
        preexec_fn=_with_room_for(64),
    )
    assert done.returncode == Exit.NO_SPACE, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ") and "expected room on the disk" in done.stderr
    assert "Traceback" not in done.stderr
    assert not output.exists()
