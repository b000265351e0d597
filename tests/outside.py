"""The C++ package in a project outside the tree: built once per run of the tests, and kept for the next one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

import my_ops

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "cpp" / "examples"
_PROJECT = ROOT / "tests" / "cpp" / "outside"
_FOLDER = ROOT / "build" / f"outside-{torch.__version__}"


def _needs(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool} on the PATH")


@cache
def prefix() -> Path:
    """The package's headers, library and CMake files, moved away from where they were installed."""
    moved = _FOLDER / "moved"
    for part in ("include", "lib"):
        shutil.rmtree(moved / part, ignore_errors=True)
        shutil.copytree(Path(my_ops.cmake_prefix_path) / part, moved / part)
    return moved


def configure(source: Path, build: Path, *options: str) -> subprocess.CompletedProcess[str]:
    _needs("cmake")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    command = ["cmake", "-S", str(source), "-B", str(build), *generator, *options]
    return subprocess.run(command, capture_output=True, text=True)


@cache
def programs() -> dict[str, Path]:
    """The examples and check_api by name, built with little optimization."""
    build = _FOLDER / "build"
    options = [f"-DCMAKE_PREFIX_PATH={prefix()}", f"-DMY_OPS_TORCH_DIR={torch.__path__[0]}"]
    done = configure(_PROJECT, build, *options, "-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1 -Wall -Werror")
    assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run(["cmake", "--build", str(build), "--parallel", "2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    examples = {name: build / "examples" / name for name in ("serve", "train", "load_test")}
    return {"check_api": build / "check_api", **examples}


@cache
def models() -> Path:
    """The folder that export_models.py fills."""
    pytest.importorskip("sklearn", reason="the images are scikit-learn's digits")
    folder = _FOLDER / "models"
    path = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, str(EXAMPLES / "export_models.py"), str(folder)]
    done = subprocess.run(command, env={**_environment(), "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def _environment() -> dict[str, str]:
    """One thread per pool, as in the comparisons: convolutions may round differently with another number."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(programs()[program]), *map(str, arguments)]
    return subprocess.run(command, env=_environment(), capture_output=True, text=True)


def output_of(program: str, *arguments: object) -> str:
    done = run(program, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout
