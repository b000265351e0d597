"""`make mutants`: compiles the wrong formulas of mutants.py into one copy of the library, and runs for each the tests
that should notice. The last line is the kill rate; exit code 1 if a mutant survives or the tests fail without one.

Usage: python tests/mutation/run.py FOLDER [TEXT], FOLDER for the copy, TEXT in the names of the mutants to try.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mutants import MUTANTS, Mutant

REPOSITORY = Path(__file__).resolve().parents[2]
CHOICE = "my_ops_mutant"  # the variable: 0, or the number of a mutant from 1
DECLARED = f'extern "C" {{ extern __attribute__((visibility("default"))) int {CHOICE}; }}\n'
DEFINED = f'\nextern "C" {{ __attribute__((visibility("default"))) int {CHOICE} = 0; }}\n'
# Most of the time goes into reading torch's headers.
PRECOMPILED = """
target_precompile_headers(my_ops PRIVATE <torch/library.h> <ATen/TensorOperators.h> <ATen/Parallel.h>
                          <torch/csrc/autograd/VariableTypeUtils.h> <torch/csrc/dynamo/compiled_autograd.h>)
"""
PASSED, FAILED = 0, 1  # pytest's exit codes
LIMIT = 600  # seconds for the tests of a mutant: one that hangs is noticed too


def with_mutants(text: str, file: str) -> str:
    """A source in which each place of a mutant asks which of the two expressions is wanted."""
    places = {(mutant.place, mutant.right) for mutant in MUTANTS if mutant.file == file}
    for place, right in sorted(places):
        found = place.replace("{}", right, 1)
        if text.count(found) != 1:
            sys.exit(f"mutants: expected one {found!r} in {file}, got {text.count(found)}")
        chosen = right
        for number, mutant in enumerate(MUTANTS, start=1):
            if (mutant.file, mutant.place, mutant.right) == (file, place, right):
                chosen = f"({CHOICE} == {number} ? ({mutant.wrong}) : ({chosen}))"
        text = text.replace(found, place.replace("{}", chosen, 1))
    return DECLARED + text


def copy(folder: Path) -> None:
    """The sources with all mutants. One instruction set, barely optimised: the formulas are the same in all."""
    shutil.rmtree(folder / "cpp", ignore_errors=True)
    shutil.copytree(REPOSITORY / "cpp", folder / "cpp")
    for name in ("CMakeLists.txt", "pyproject.toml", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder)
    sources = folder / "cpp" / "src"
    for file in {mutant.file for mutant in MUTANTS}:
        path = sources / file
        path.write_text(with_mutants(path.read_text(), file))
    info = sources / "info.cpp"
    info.write_text(info.read_text() + DEFINED)
    for name in ("avx2", "avx512"):
        table = f"const KernelTable& kernels_{name}() {{ return kernels_default(); }}"
        text = f'#include "cpu/kernels.h"\nnamespace my_ops::cpu {{\n{table}\n}}\n'
        (sources / "cpu" / f"kernels_{name}.cpp").write_text(text)
    lists = folder / "cpp" / "CMakeLists.txt"
    lists.write_text(lists.read_text().replace('"-O3 ', '"-O1 ') + PRECOMPILED)


def build(folder: Path) -> Path:
    """The package with the library of the copy."""
    options = [f"-DPython_EXECUTABLE={sys.executable}", "-DMY_OPS_CUDA=OFF", "-DCMAKE_CXX_FLAGS_RELEASE=-O1"]
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    place, site = folder / "build", folder / "site"
    subprocess.run(["cmake", "-S", folder, "-B", place, *generator, *options], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", place, "--parallel", "2"], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(site, ignore_errors=True)
    command = ["cmake", "--install", place, "--component", "python", "--prefix", site]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    skipped = shutil.ignore_patterns("lib", "__pycache__")
    shutil.copytree(REPOSITORY / "python" / "my_ops", site / "my_ops", ignore=skipped, dirs_exist_ok=True)
    return site / "my_ops"


def load(package: Path) -> ctypes.c_int:
    """Imports the package from there, wherever else one is installed; returns the variable."""
    spec = importlib.util.spec_from_file_location(
        "my_ops", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["my_ops"] = module
    spec.loader.exec_module(module)
    return ctypes.c_int.in_dll(ctypes.CDLL(str(package / "lib" / "libmy_ops.so")), CHOICE)


def outcome(tests: tuple[str, ...], number: int, choice: ctypes.c_int, log: Path) -> int | None:
    """pytest's exit code in a process of its own; another number if it crashed, None if it took too long."""
    child = os.fork()
    if child == 0:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        choice.value = number
        torch.set_num_threads(1)
        paths = [str(REPOSITORY / "tests" / name) for name in tests]
        os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--tb=line", *paths]))
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return None


def verdict(mutant: Mutant, code: int | None) -> str:
    if code == PASSED:
        return "SURVIVED"
    if code == FAILED:
        return "killed"
    return "killed (hangs)" if code is None else "killed (crash)" if code < 0 else f"NOT RUN (exit code {code})"


def main(folder: Path, text: str) -> int:
    begin = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    copy(folder)
    choice = load(build(folder))
    print(f"{len(MUTANTS)} mutants compiled in {time.monotonic() - begin:.0f} s", flush=True)
    os.chdir(REPOSITORY)
    chosen = [(number, mutant) for number, mutant in enumerate(MUTANTS, start=1) if text in str(mutant)]
    for tests in dict.fromkeys(mutant.tests for _, mutant in chosen):
        if outcome(tests, 0, choice, folder / "none.log") != PASSED:
            print(f"without a mutant: {' '.join(tests)} fails, see {folder / 'none.log'}")
            return 1
    killed = 0
    for number, mutant in chosen:
        found = verdict(mutant, outcome(mutant.tests, number, choice, folder / f"{number}.log"))
        killed += found.startswith("killed")
        print(f"{number:3d} {found:9s} {mutant}", flush=True)
    print(f"mutants: {killed} of {len(chosen)} killed in {time.monotonic() - begin:.0f} s")
    return 0 if killed == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2] if len(sys.argv) > 2 else ""))
