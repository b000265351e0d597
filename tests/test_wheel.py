"""What is released: the source distribution. (`make release-check` also builds a wheel from it, and runs that.)"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import my_ops

ROOT = Path(__file__).parents[1]


def test_source_distribution(tmp_path: Path) -> None:
    """Everything that the build, the tests and the documentation take; nothing that was built."""
    pytest.importorskip("scikit_build_core")
    code = f"from scikit_build_core.build import build_sdist; build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    (path,) = tmp_path.glob("*.tar.gz")
    name = f"my_ops-{my_ops.__version__}"
    assert path.name == f"{name}.tar.gz"
    with tarfile.open(path) as archive:
        files = {member.removeprefix(f"{name}/") for member in archive.getnames()}
    for folder in ("cpp", "docs", "python", "tests"):
        sources = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*") if path.is_file()}
        built = {source for source in sources if "__pycache__" in source or source.endswith((".so", ".pyc"))}
        missing = sources - built - files
        assert not [source for source in missing if "/lib/" not in source], missing
    assert {"CMakeLists.txt", "LICENSE", "Makefile", "README.md", "pyproject.toml"} <= files
    assert not [file for file in files if file.endswith(".so") or file.startswith(("build/", "dist/"))]
