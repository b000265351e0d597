"""`import my_ops`: the names it brings, and one clear sentence when its library does not fit."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import my_ops
from my_ops import _library

MEND = "run 'python -m pip install --no-build-isolation --no-deps --force-reinstall .' in its source tree"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the installed package, library included, in a folder of its own."""
    copy = tmp_path / "my_ops"
    for folder in my_ops.__path__:  # two in an editable install: sources and library
        shutil.copytree(folder, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def break_library(package: Path) -> None:
    (package / "lib" / "libmy_ops.so").write_bytes(b"not a library")


def edit_record(package: Path, **changes: str | None) -> None:
    record = package / "lib" / "build_info.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), **changes}))


def run(package: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` where `import my_ops` means the copy; -S keeps the finder of an editable install away."""
    path = os.pathsep.join([str(package.parent), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run([sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True)


def error_of_import(package: Path) -> str:
    """The last line of the traceback of a failing `import my_ops`."""
    result = run(package, "import my_ops")
    assert result.returncode == 1
    return result.stderr.splitlines()[-1]


def test_import_brings_operators_and_little_else(package: Path) -> None:
    code = """
import sys, torch
before = set(sys.modules)
import my_ops
torch.ops.my_ops.batchnorm_forward(torch.ones(2, 3), None, None, None, None, True, 0.1, 1e-5)
print(my_ops.__path__[0], *sorted(set(sys.modules) - before), sep="\\n")
"""
    result = run(package, code)
    assert result.returncode == 0, result.stderr
    folder, *modules = result.stdout.split()
    assert folder == str(package)
    assert [name for name in modules if name.split(".")[0] not in {"my_ops", *sys.stdlib_module_names}] == []


def test_missing_library(package: Path) -> None:
    (package / "lib" / "libmy_ops.so").unlink()
    want = f"ImportError: my_ops: lib/libmy_ops.so and its build_info.json are missing in {package}: {MEND}"
    assert error_of_import(package) == want


def test_library_for_another_torch(package: Path) -> None:
    edit_record(package, torch="2.9.1", cuda=None)
    running = f"{torch.__version__} ({f'CUDA {torch.version.cuda}' if torch.version.cuda else 'CPU'})"
    want = f"ImportError: my_ops: its library was built against torch 2.9.1 (CPU), but this is torch {running}: {MEND}"
    assert error_of_import(package) == want


def test_library_for_another_cuda(package: Path) -> None:
    edit_record(package, cuda="11.8")
    break_library(package)  # the record alone decides, before the library is opened
    built = re.escape(f"built against torch {json.loads((package / 'lib/build_info.json').read_text())['torch']}")
    with pytest.raises(
        ImportError, match=rf"^my_ops: its library was {built} \(CUDA 11\.8\), but this is torch .*: run '"
    ):
        _library.load([str(package)])


def test_broken_library(package: Path) -> None:
    break_library(package)
    with pytest.raises(ImportError, match=r"^my_ops: its library does not load \(.*libmy_ops\.so.*\): run '"):
        _library.load([str(package)])


def test_another_patch_release_of_torch_fits(package: Path) -> None:
    """Accepted by its record; the file that then fails to load shows that the check was passed."""
    major, minor = torch.__version__.split(".")[:2]
    edit_record(package, torch=f"{major}.{minor}.99")
    break_library(package)
    with pytest.raises(ImportError, match="does not load"):
        _library.load([str(package)])


def test_version_is_stated_once() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert my_ops.__version__ == project["version"]
    assert json.loads(torch.ops.my_ops.build_info())["version"] == project["version"]


def test_facts_of_the_machine() -> None:
    facts = json.loads(torch.ops.my_ops.build_info())
    assert facts["cpu_capability"] in ("default", "avx2", "avx512")
    assert 2**18 <= facts["cached_bytes"] <= facts["last_level_cache"]


def test_public_names() -> None:
    kinds = ["BatchNorm", "BatchNormAct", "InPlaceBatchNormAct", "ConvBatchNorm", "LazyBatchNorm"]
    kinds += ["FrozenBatchNorm", "GhostBatchNorm", "InstanceNorm", "LazyInstanceNorm"]
    modules = {f"{kind}{n}d" for kind in kinds for n in (1, 2, 3)}
    modules |= {"BatchNormCustom", "FrozenBatchNorm", "SyncBatchNorm", "SyncBatchNormAct", "SyncInPlaceBatchNormAct"}
    functions = {"convert_batchnorm", "convert_sync_batchnorm", "freeze_batchnorm", "fuse_conv_bn"}
    functions |= {"revert_batchnorm", "update_bn"}
    want = modules | functions | {"functional", "__version__", "cmake_prefix_path"}
    assert set(my_ops.__all__) == want
    for name in want - {"__version__", "cmake_prefix_path"}:
        assert getattr(my_ops, name).__doc__, name
