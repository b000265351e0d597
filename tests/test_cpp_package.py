"""The C++ package: what is installed, what the library exports, and a project outside the tree that uses it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import my_ops
import outside

# The names that users link against. Arguments are part of them, so changing a signature is changing the interface.
EXPORTED = {
    "my_ops::build_info",
    "my_ops::cpu_capability",
    "my_ops::ops::all_gather",
    "my_ops::ops::batchnorm_act_apply",
    "my_ops::ops::batchnorm_act_apply_",
    "my_ops::ops::batchnorm_act_backward",
    "my_ops::ops::batchnorm_act_backward_",
    "my_ops::ops::batchnorm_act_backward_apply",
    "my_ops::ops::batchnorm_act_backward_from_output",
    "my_ops::ops::batchnorm_act_backward_reduce",
    "my_ops::ops::batchnorm_act_forward",
    "my_ops::ops::batchnorm_act_forward_",
    "my_ops::ops::batchnorm_act_recover",
    "my_ops::ops::batchnorm_apply",
    "my_ops::ops::batchnorm_apply_out",
    "my_ops::ops::batchnorm_backward",
    "my_ops::ops::batchnorm_backward_apply",
    "my_ops::ops::batchnorm_backward_apply_out",
    "my_ops::ops::batchnorm_backward_out",
    "my_ops::ops::batchnorm_backward_reduce",
    "my_ops::ops::batchnorm_forward",
    "my_ops::ops::batchnorm_forward_out",
    "my_ops::ops::batchnorm_gather_stats",
    "my_ops::ops::batchnorm_stats",
    "my_ops::ops::conv_batchnorm_backward",
    "my_ops::ops::conv_batchnorm_forward",
    "my_ops::ops::instancenorm_backward",
    "my_ops::ops::instancenorm_forward",
    "my_ops::ops::reduce_scatter",
    "my_ops::ops::sync_batchnorm_act_forward_",
    "my_ops::ops::sync_batchnorm_apply",
    "my_ops::ops::sync_conv_batchnorm_backward",
    "my_ops::ops::sync_conv_batchnorm_forward",
}
LIBRARY = Path(my_ops.cmake_prefix_path) / "lib" / "libmy_ops.so"


def read(tool: str, *arguments: object) -> str:
    if shutil.which(tool) is None:
        pytest.skip(f"there is no {tool} on the PATH")
    return subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True, check=True).stdout


def test_layout() -> None:
    """Headers as in the sources and the one that CMake wrote; the CMake package where find_package looks for it."""
    prefix = Path(my_ops.cmake_prefix_path)
    headers = {path.name: path for path in (prefix / "include" / "my_ops").iterdir()}
    sources = {path.name: path for path in (outside.ROOT / "cpp" / "include" / "my_ops").glob("*.h")}
    assert headers.keys() == {*sources, "version.h"}
    for name, source in sources.items():
        assert headers[name].read_text() == source.read_text()
    files = {path.name for path in (prefix / "lib" / "cmake" / "my_ops").iterdir()}
    assert files == {"my_opsConfig.cmake", "my_opsConfigVersion.cmake", "TorchFolder.cmake"}


def test_exported_symbols() -> None:
    """The functions of the headers and nothing else of ours; what is weak is torch's or the standard library's."""
    strong, weak = set(), set()
    for line in read("nm", "-D", "--defined-only", "--demangle", LIBRARY).splitlines():
        _, kind, name = line.split(maxsplit=2)
        (strong if kind in "TDBR" else weak).add(name)
    linkers = {"_init", "_fini", "_edata", "_end", "__bss_start"}
    assert {re.sub(r"(\[abi:cxx11\])?\(.*", "", name) for name in strong} - linkers == EXPORTED
    assert [name for name in weak if "my_ops" in name] == []


def test_library_loads_without_torch_before_it() -> None:
    """Its RPATH leads to torch: a program that only opens it needs nothing else."""
    code = f"import ctypes; ctypes.CDLL({str(LIBRARY)!r})"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_interface_against_torchs() -> None:
    assert json.loads(outside.output_of("check_api"))["version"] == my_ops.__version__


def test_the_projects_own_tests() -> None:
    """The closing line of ctest, as the project's owner sees it."""
    build = outside.programs()["check_api"].parent
    done = subprocess.run(["ctest", "--test-dir", build], capture_output=True, text=True)
    assert done.returncode == 0 and "100% tests passed" in done.stdout, done.stdout + done.stderr


def test_library_is_kept_where_no_function_of_it_is_called() -> None:
    program = outside.programs()["load_test"]
    assert "my_ops::" not in read("nm", "--undefined-only", "--demangle", program)
    assert "[libmy_ops.so]" in read("readelf", "-d", program)


def project(folder: Path, find: str) -> Path:
    """A project that finds packages and prints what its program would link."""
    (folder / "CMakeLists.txt").write_text(f"""
cmake_minimum_required(VERSION 3.26)
project(user LANGUAGES CXX)
{find}
message(STATUS "my_ops is ${{my_ops_VERSION}}")
file(WRITE "${{CMAKE_CURRENT_BINARY_DIR}}/main.cpp" "int main() {{}}")
add_executable(main "${{CMAKE_CURRENT_BINARY_DIR}}/main.cpp")
target_link_libraries(main PRIVATE my_ops::my_ops)
""")
    return folder


def test_find_package_after_torchs(tmp_path: Path) -> None:
    """Built and run: an empty program that is linked to the library loads it, and with it torch."""
    if torch.version.cuda:
        pytest.skip("find_package(Torch) of a CUDA build wants a complete CUDA toolkit")
    source = project(tmp_path, "find_package(Torch REQUIRED)\nfind_package(my_ops 0.1 REQUIRED)")
    path = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path};{outside.prefix()}"
    done = outside.configure(source, tmp_path / "build", path)
    assert done.returncode == 0, done.stderr
    assert f"my_ops is {my_ops.__version__}" in done.stdout
    subprocess.run(["cmake", "--build", tmp_path / "build"], check=True, capture_output=True)
    assert "libmy_ops.so" in read("ldd", tmp_path / "build" / "main")


def test_find_package_finds_torch_itself(tmp_path: Path) -> None:
    if torch.version.cuda:
        pytest.skip("find_package(Torch) of a CUDA build wants a complete CUDA toolkit")
    source = project(tmp_path, "find_package(my_ops 0.1 REQUIRED)")
    path = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path};{outside.prefix()}"
    done = outside.configure(source, tmp_path / "build", path)
    assert done.returncode == 0, done.stderr


def test_find_package_of_another_version(tmp_path: Path) -> None:
    source = project(tmp_path, "find_package(my_ops 0.9 REQUIRED)")
    done = outside.configure(source, tmp_path / "build", f"-DCMAKE_PREFIX_PATH={outside.prefix()}")
    assert done.returncode != 0
    assert f"version: {my_ops.__version__}" in done.stderr


def test_find_package_with_a_wrong_folder_of_torch(tmp_path: Path) -> None:
    source = project(tmp_path, "find_package(my_ops 0.1 REQUIRED)")
    options = [f"-DCMAKE_PREFIX_PATH={outside.prefix()}", "-DMY_OPS_TORCH_DIR=/nowhere"]
    done = outside.configure(source, tmp_path / "build", *options)
    assert done.returncode != 0
    want = "my_ops: expected MY_OPS_TORCH_DIR to hold lib/libtorch_cpu.so, got /nowhere"
    assert want in " ".join(done.stderr.split())


def test_headers_refuse_another_torch(tmp_path: Path) -> None:
    """The preprocessor stops with one sentence when the headers of torch are not those of the library."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "version.h").write_text("#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 9\n")
    (tmp_path / "main.cpp").write_text("#include <my_ops/version.h>\n")
    command = ["c++", "-E", f"-I{tmp_path}", f"-I{outside.prefix()}/include", str(tmp_path / "main.cpp")]
    if shutil.which("c++") is None:
        pytest.skip("there is no c++ on the PATH")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "my_ops: its library was built against torch" in done.stderr
