"""What comes from outside is data: no file that a user names is run, and what is installed is known to the byte."""

from __future__ import annotations

import ast
import contextlib
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCES = sorted((REPOSITORY / "profiling").rglob("*.py"))
REQUIREMENTS = REPOSITORY / "requirements"

# ---- profiling/: no call that runs what a file says ----

RUNNING = {
    "eval",
    "exec",
    "compile",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "marshal.loads",
    "shelve.open",
    "yaml.load",
    "joblib.load",
    "os.system",
    "os.popen",
}


def _calls(tree: ast.AST) -> list[tuple[str, dict[str, Any]]]:
    """Every call, by its dotted name, with the keyword arguments that are constants."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            constants = {k.arg: k.value.value for k in node.keywords if k.arg and isinstance(k.value, ast.Constant)}
            found.append((ast.unparse(node.func), constants))
    return found


def _dangers(text: str) -> list[str]:
    dangers = []
    for name, keywords in _calls(ast.parse(text)):
        unsafe_load = name == "torch.load" and keywords.get("weights_only") is not True
        unsafe_numpy = name in ("np.load", "numpy.load") and keywords.get("allow_pickle") is True
        if name in RUNNING or unsafe_load or unsafe_numpy or keywords.get("shell") is True:
            dangers.append(name)
    return dangers


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_source_runs_what_it_reads(path: Path) -> None:
    assert _dangers(path.read_text(encoding="utf-8")) == []


def test_the_scan_sees_what_it_looks_for() -> None:
    text = "torch.load(p); eval(t); subprocess.run(c, shell=True); pickle.loads(b); torch.load(p, weights_only=False)"
    assert len(_dangers(text)) == 5
    assert _dangers("torch.load(p, weights_only=True); model.eval(); re.compile(t)") == []


# ---- model files ----


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def _exported(path: Path) -> dict[str, bytes]:
    """The entries of an exported model."""
    program = torch.export.export(nn.BatchNorm2d(3).eval(), (torch.randn(2, 3, 4, 4),))
    torch.export.save(program, path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _write(path: Path, entries: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def _find(entries: dict[str, bytes], end: str) -> str:
    return next(name for name in entries if name.endswith(end))


def _poisoned_inputs(entries: dict[str, bytes], payload: bytes, saved: bytes) -> None:
    entries[_find(entries, "sample_inputs/model.pt")] = saved


def _poisoned_weights(entries: dict[str, bytes], payload: bytes, saved: bytes) -> None:
    name = _find(entries, "weights_config.json")
    entries[name] = re.sub(rb'"use_pickle":\s*false', b'"use_pickle": true', entries[name])
    for weight in [name for name in entries if "/weights/weight_" in name]:
        entries[weight] = saved


def _poisoned_constants(entries: dict[str, bytes], payload: bytes, saved: bytes) -> None:
    name = _find(entries, "constants_config.json")
    entries[name] = (
        b'{"config": {"thing": {"path_name": "opaque_obj_0", "is_param": false, "use_pickle": true, '
        b'"tensor_meta": null}}}'
    )
    entries[name.replace("model_constants_config.json", "opaque_obj_0")] = payload


def _machine_code(entries: dict[str, bytes], payload: bytes, saved: bytes) -> None:
    root = _find(entries, "models/model.json").removesuffix("models/model.json")
    entries[f"{root}data/aotinductor/model/model.so"] = b"not a library"


@pytest.mark.parametrize("poison", [_poisoned_inputs, _poisoned_weights, _poisoned_constants, _machine_code])
def test_an_exported_model_runs_nothing(tmp_path: Path, poison: Any) -> None:
    for package in ("rich", "sklearn", "transformers"):
        pytest.importorskip(package, reason=f"profiling needs {package}")
    from profiling.output.exits import Failure
    from profiling.traces import models

    marker, path = tmp_path / "ran", tmp_path / "model.pt2"
    entries = _exported(path)
    assert isinstance(models.find(str(path)).make(), nn.Module), "as it was, it can be loaded"
    torch.save(Payload(marker), tmp_path / "saved")
    poison(entries, pickle.dumps(Payload(marker)), (tmp_path / "saved").read_bytes())
    _write(path, entries)
    with pytest.raises(Failure, match=re.escape(str(path)) + ": expected tensors and a graph, got "):
        models.find(str(path)).make()
    assert not marker.exists()


def test_the_payload_would_have_run(tmp_path: Path) -> None:
    """torch itself runs it: the tests above can fail."""
    marker, path = tmp_path / "ran", tmp_path / "model.pt2"
    entries = _exported(path)
    torch.save(Payload(marker), tmp_path / "saved")
    _poisoned_inputs(entries, b"", (tmp_path / "saved").read_bytes())
    _write(path, entries)
    with contextlib.suppress(TypeError):  # of the warning that follows, whose text has a place too many
        torch.export.load(path)
    assert marker.exists()


# ---- requirements ----


def _pins(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if re.match(r"[a-zA-Z]", line)]
    return {_canonical(name): version.removesuffix(" \\") for name, version in pins}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_package_in_the_lock_has_hashes() -> None:
    entries = re.split(r"(?m)^(?=[a-zA-Z])", (REQUIREMENTS / "lock.txt").read_text(encoding="utf-8"))[1:]
    assert len(entries) > 100
    for entry in entries:
        assert re.match(r"[\w.-]+==\S+ \\\n", entry), entry[:60]
        assert re.fullmatch(r"( +--hash=sha256:[0-9a-f]{64}( \\)?\n?)+", entry.split("\n", 1)[1]), entry[:60]


def test_the_lock_pins_what_the_requirements_pin() -> None:
    lock = _pins(REQUIREMENTS / "lock.txt")
    for name in ("build", "test", "compare", "docs", "lint"):
        for package, version in _pins(REQUIREMENTS / f"{name}.txt").items():
            assert package == "torch" or lock[package] == version, f"{name}.txt: run make lock"
    pins = _pins(REQUIREMENTS / "constraints.txt")
    assert {package: version for package, version in lock.items() if pins.get(package, version) != version} == {}
