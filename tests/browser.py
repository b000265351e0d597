"""A page in a real browser without a window: what its scripts found out, what the console said, how it looks."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_ANSWER = "browser-test-answer"


def require() -> None:
    if PROGRAM is None:
        pytest.skip("no browser: chromium and google-chrome are not on the PATH")


def ask(page: Path, script: str, profile: Path, width: int = 1200) -> tuple[Any, list[str]]:
    """Opens a copy of ``page`` that ends with ``script``, an expression; returns its value and the console's lines."""
    copy = page.with_name("asked.html")
    answer = (
        f"<script>document.addEventListener('DOMContentLoaded', () => {{ const e = document.createElement('pre'); "
        f"e.id = '{_ANSWER}'; e.textContent = JSON.stringify({script}); document.body.append(e); }});</script></body>"
    )
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", answer), encoding="utf-8")
    done = _run(profile, f"--window-size={width},900", "--dump-dom", copy.as_uri())
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    found = re.search(rf'id="{_ANSWER}">(.*?)</pre>', done.stdout, re.DOTALL)
    copy.unlink()
    text = found.group(1).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") if found else "null"
    return json.loads(text), console


def picture(page: Path, path: Path, profile: Path, width: int, dark: bool = False) -> Path:
    """A screenshot as PNG."""
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    _run(profile, *scheme, "--hide-scrollbars", f"--window-size={width},2000", f"--screenshot={path}", page.as_uri())
    return path


def _run(profile: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert PROGRAM is not None
    fixed = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={profile}"]
    return subprocess.run([PROGRAM, *fixed, *arguments], capture_output=True, text=True, timeout=120)
