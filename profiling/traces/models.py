"""The user's model: found by the name of a function, in a file, or built from a library's configuration."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from profiling.measure.workloads import SEED
from profiling.output.exits import Exit, Failure

FORMS = (
    "package.module:function, a file saved by torch.jit.save (.pt) or torch.export.save (.pt2), transformers:TYPE "
    "(resnet, or resnet-18 to resnet-152) or timm:NAME"
)

# He et al., "Deep Residual Learning for Image Recognition", table 1.
_RESNETS: dict[str, dict[str, object]] = {
    "resnet-18": {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]},
    "resnet-34": {"layer_type": "basic", "depths": [3, 4, 6, 3], "hidden_sizes": [64, 128, 256, 512]},
    "resnet-50": {"layer_type": "bottleneck", "depths": [3, 4, 6, 3]},
    "resnet-101": {"layer_type": "bottleneck", "depths": [3, 4, 23, 3]},
    "resnet-152": {"layer_type": "bottleneck", "depths": [3, 8, 36, 3]},
}


# Entries of an exported program's archive that torch.export.load unpickles or runs.
_OPENED = ("data/constants/opaque_obj_", "data/constants/custom_obj_", "data/aotinductor/")


@dataclass(frozen=True)
class Source:
    """Where a model comes from. ``make`` builds it anew, with the same weights every time.

    ``inputs``: what the user's function gave beside the model; None to use random data.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: tuple[Any, ...] | None = None


def find(name: str, config: str | None = None) -> Source:
    """``config``: JSON of what differs from a library's default configuration.

    Raises Failure if there is no such model. Nothing is downloaded, and no pickle is opened.
    """
    library, colon, rest = name.partition(":")
    if colon and library == "transformers":
        return Source(rest, _seeded(lambda: _from_transformers(rest, _overrides(config))))
    if colon and library == "timm":
        return Source(rest, _seeded(lambda: _from_timm(rest, _overrides(config))))
    if config is not None:
        raise Failure(Exit.NO_MODEL, f"--config: expected a model of transformers or timm, got {name}")
    if colon and not Path(name).exists():
        return _from_function(library, rest)
    return _from_file(Path(name))


def _seeded(make: Callable[[], Any]) -> Callable[[], Any]:
    def made() -> Any:
        torch.manual_seed(SEED)
        return make()

    return made


def _overrides(config: str | None) -> dict[str, Any]:
    try:
        found = json.loads(config or "{}")
    except json.JSONDecodeError as error:
        raise Failure(Exit.NO_MODEL, f"--config: expected JSON, got {config} ({error})") from error
    if not isinstance(found, dict):
        raise Failure(Exit.NO_MODEL, f"--config: expected a JSON object, got {config}")
    return found


def _from_transformers(kind: str, overrides: dict[str, Any]) -> nn.Module:
    try:
        from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
    except ImportError as error:
        raise Failure(Exit.NO_MODEL, f"transformers:{kind}: expected transformers to be installed ({error})") from error
    preset = _RESNETS.get(kind, {})
    try:
        config = AutoConfig.for_model("resnet" if preset else kind, **{**preset, **overrides})
    except ValueError as error:
        raise Failure(Exit.NO_MODEL, f"transformers:{kind}: expected a model type, got {kind}") from error
    for builder in (AutoModelForImageClassification, AutoModel):
        if type(config) in builder._model_mapping:
            model: nn.Module = builder.from_config(config)  # type: ignore[no-untyped-call]
            return model
    raise Failure(Exit.NO_MODEL, f"transformers:{kind}: expected a type with a model, got only a configuration")


def _from_timm(name: str, overrides: dict[str, Any]) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise Failure(Exit.NO_MODEL, f"timm:{name}: expected timm to be installed ({error})") from error
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, **overrides)
    except RuntimeError as error:
        raise Failure(Exit.NO_MODEL, f"timm:{name}: expected a name that timm knows ({error})") from error
    return model


def _from_function(module: str, function: str) -> Source:
    name = f"{module}:{function}"
    sys.path.insert(0, str(Path.cwd()))  # as python -m does; a console script would not see it
    try:
        made = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        raise Failure(Exit.NO_MODEL, f"{name}: expected a module to import ({error})") from error
    except AttributeError as error:
        raise Failure(Exit.NO_MODEL, f"{name}: expected a function of the module ({error})") from error
    finally:
        sys.path.pop(0)
    if not callable(made) or inspect.signature(made).parameters:
        raise Failure(Exit.NO_MODEL, f"{name}: expected a function without arguments, got {made!r:.80}")
    make = _seeded(made)
    first = make()
    if isinstance(first, nn.Module):
        return Source(function, make)
    if isinstance(first, tuple) and len(first) == 2 and isinstance(first[0], nn.Module):
        inputs = first[1] if isinstance(first[1], tuple) else (first[1],)
        return Source(function, lambda: make()[0], inputs)
    raise Failure(Exit.NO_MODEL, f"{name}: expected a module, or a module and its inputs, got {type(first).__name__}")


def _from_file(path: Path) -> Source:
    if not path.is_file():
        raise Failure(Exit.NO_MODEL, f"{path}: expected {FORMS}")
    kind = _kind(path)
    if kind == "exported":
        return Source(path.stem, lambda: _load_exported(path))
    if kind == "TorchScript":
        return Source(path.stem, lambda: torch.jit.load(str(path)))  # type: ignore[no-untyped-call]
    raise Failure(
        Exit.NO_MODEL,
        f"{path}: expected a file of torch.jit.save or torch.export.save, got another; pickles are not opened",
    )


def _load_exported(path: Path) -> nn.Module:
    """torch.export.load opens what an archive declares to be a pickle, and loads its machine code: refused here.

    Where it calls torch.load, a variable of torch's makes that weights_only=True, whatever the archive says.
    """
    with zipfile.ZipFile(path) as archive:
        opened = [name for name in archive.namelist() if any(part in name for part in _OPENED)]
    if opened:
        raise Failure(Exit.NO_MODEL, f"{path}: expected tensors and a graph, got {opened[0]}, which is not opened")
    variables = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "0"}
    with mock.patch.dict(os.environ, variables):
        try:
            return torch.export.load(path).module()
        except pickle.UnpicklingError as error:
            raise Failure(
                Exit.NO_MODEL, f"{path}: expected tensors and a graph, got a pickle of more, which is not opened"
            ) from error


def _kind(path: Path) -> str | None:
    """By what is in the archive: TorchScript keeps its code, an exported program its graph; a pickle has neither."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any("/code/" in name for name in names):
        return "TorchScript"
    if any(name.endswith(("serialized_exported_program.json", "models/model.json")) for name in names):
        return "exported"
    return None


def floats(value: object) -> list[Tensor]:
    """The floating-point tensors in what a model returns: a tensor, a tuple, a dictionary of them."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in floats(item)]
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in floats(item)]
    return []
