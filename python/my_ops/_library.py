"""Finds the native library of this package, makes sure that it fits the running torch, and loads it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict, cast

import torch

_LIBRARY = Path("lib", "libmy_ops.so")
_BUILD_INFO = Path("lib", "build_info.json")
_MEND = "'python -m pip install --no-build-isolation --no-deps --force-reinstall .' in its source tree"


class BuildInfo(TypedDict):
    """CMake's record beside the library: its version, and the torch and the CUDA (if any) that it was built with."""

    version: str
    torch: str
    cuda: str | None


def load(package_folders: Iterable[str]) -> BuildInfo:
    """Loads the library found in one of ``package_folders`` (an editable install has two) and returns its record.

    Raises ImportError, in one sentence with the command that mends it, when the library is missing or was built against
    another torch. The record is read before the library is opened: the dynamic linker would only name a symbol.
    """
    folder = find(package_folders)
    info = cast(BuildInfo, json.loads((folder / _BUILD_INFO).read_text()))
    _check_torch(info)
    try:
        torch.ops.load_library(folder / _LIBRARY)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ImportError(f"my_ops: its library does not load ({error}): run {_MEND}") from error
    return info


def find(package_folders: Iterable[str]) -> Path:
    """The one of ``package_folders`` that holds the library, and beside it the headers and files of the C++ package."""
    folders = [Path(folder) for folder in package_folders]
    for folder in folders:
        if (folder / _LIBRARY).is_file() and (folder / _BUILD_INFO).is_file():
            return folder
    places = " and ".join(str(folder) for folder in folders)
    raise ImportError(f"my_ops: {_LIBRARY} and its {_BUILD_INFO.name} are missing in {places}: run {_MEND}")


def _check_torch(info: BuildInfo) -> None:
    """torch keeps its C++ interface only within a minor version; CUDA kernels also need their own CUDA version."""
    same_torch = _minor(info["torch"]) == _minor(torch.__version__)
    same_cuda = not info["cuda"] or info["cuda"] == torch.version.cuda
    if not (same_torch and same_cuda):
        built = _describe(info["torch"], info["cuda"])
        running = _describe(torch.__version__, torch.version.cuda)
        raise ImportError(f"my_ops: its library was built against {built}, but this is {running}: run {_MEND}")


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def _describe(version: str, cuda: str | None) -> str:
    return f"torch {version} ({f'CUDA {cuda}' if cuda else 'CPU'})"
