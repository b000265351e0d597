"""docs/ builds without a warning, and names everything that is public."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

import my_ops

for needed in ("sphinx", "myst_parser", "furo"):
    pytest.importorskip(needed)

DOCS = Path(__file__).parents[1] / "docs"


@cache
def text_of(page: str, folder: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", (folder / f"{page}.html").read_text()))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("html")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_python_names(pages: Path) -> None:
    text = text_of("python", pages)
    names = {*my_ops.__all__, *my_ops.functional.__all__} - {"__version__", "functional"}
    assert [name for name in names if name not in text] == []


def test_operators(pages: Path) -> None:
    """With their whole schemas."""
    schemas = [str(schema) for schema in torch._C._jit_get_all_schemas()]
    text = text_of("operators", pages)
    ours = [schema.removeprefix("my_ops::") for schema in schemas if schema.startswith("my_ops::")]
    assert len(ours) > 10
    assert [schema for schema in ours if schema not in text] == []


def test_cpp_declarations(pages: Path) -> None:
    """Every declaration of the installed headers that has a comment, and no function there is without one."""
    text = text_of("cpp", pages)
    for header in (Path(my_ops.cmake_prefix_path) / "include" / "my_ops").glob("*.h"):
        if header.name == "version.h":
            continue
        source = header.read_text()
        documented = re.findall(r"^///.*\n(?:template .*\n)?(?!///)[\w:<>,&* ]*?\b(\w+)(?:\(| :)", source, re.MULTILINE)
        assert documented, header.name
        assert [name for name in documented if name not in text] == []
        bare = re.findall(r"\n\n(?:std|at|Tensor)[\w:<>,&* ]* (\w+)\(", source)
        assert bare == [], header.name
