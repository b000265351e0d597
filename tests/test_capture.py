"""Models of every kind through capture: found, converted, traced both ways; one clear error where they cannot be."""
# ruff: noqa: E402 (what profiling imports may be missing on a machine that only runs the operators)

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

for package in ("jinja2", "matplotlib", "msgspec", "rich", "sklearn", "transformers", "typer"):
    pytest.importorskip(package, reason=f"profiling needs {package}: pip install -r requirements/compare.txt")

from typer.testing import CliRunner

from profiling import cli
from profiling.examples.unet import unet
from profiling.measure import allocator
from profiling.output.exits import Exit, Failure
from profiling.traces import breakdown, capture, conversion, models

REPOSITORY = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
SMALL = capture.Settings(batch=2, shape=(3, 16, 16), inference=False, rounds=1, steps=1)


class Small(nn.Module):
    """Two batch norm layers, one of them in a block."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.last = nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(self.block(x))
        return y


LAYERS = ("block.1", "last")


def small() -> nn.Module:
    return Small()


def with_inputs() -> tuple[nn.Module, torch.Tensor]:
    return nn.BatchNorm1d(4), torch.arange(12.0).reshape(3, 4)


def without_batch_norm() -> nn.Module:
    return nn.Linear(16, 4)


def with_an_argument(width: int) -> nn.Module:
    return nn.BatchNorm1d(width)


def no_model() -> int:
    return 7


@pytest.fixture
def file(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """The small model as its user has it, by the kind that the test is for."""
    torch.manual_seed(1)
    if request.param == "function":
        return "test_capture:small"
    path = tmp_path / f"small.{request.param}"
    if request.param == "pt":
        torch.jit.save(torch.jit.script(Small()), path)
    else:
        batch = {0: torch.export.Dim("batch", min=2)}
        torch.export.save(torch.export.export(Small(), (torch.randn(3, 3, 16, 16),), dynamic_shapes=(batch,)), path)
    return str(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("file", ["function", "pt", "pt2"], indirect=True)
def test_conversion_computes_the_same_with_our_operators(file: str) -> None:
    source, x = models.find(file), torch.randn(2, 3, 16, 16)
    native, ours = source.make(), conversion.convert(source.make())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        result = ours(x)
    torch.testing.assert_close(result, native(x))
    for name, buffer in native.named_buffers():
        torch.testing.assert_close(dict(ours.named_buffers())[name], buffer)
    counts = {event.key: event.count for event in recorded.key_averages()}
    assert counts["my_ops::batchnorm_forward"] >= 2 and not any("aten::native_batch_norm" in key for key in counts)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("file", ["function", "pt", "pt2"], indirect=True)
def test_traces_of_both_ways(file: str, tmp_path: Path) -> None:
    ticks: list[None] = []
    paths = capture.run(models.find(file), SMALL, CPU, tmp_path, lambda: ticks.append(None))
    assert len(ticks) == capture.ticks(SMALL)
    assert [path.relative_to(tmp_path).parts[:2] for path in paths] == [("traces", "native"), ("traces", "my_ops")]
    for path, backend in zip(paths, ("ATen", "my_ops"), strict=True):
        found = breakdown.read(path)
        assert found.backends == {backend: 4} and len(found.splits) == 1
        assert [copy.shape for copy in found.copies] == [(2, 8, 14, 14)] and len(found.copies[0].times) == 6
        assert found.memory is not None and found.memory.peak > 0
        sites = [(site.module, site.phase) for site in found.sites]
        if not file.endswith(".pt"):  # TorchScript names no layers
            assert sites == [(name, "forward") for name in LAYERS] + [(name, "backward") for name in LAYERS[::-1]]
        assert [phase for _, phase in sites] == ["forward"] * 2 + ["backward"] * 2
        assert all(found.share(site) for site in found.sites)
        assert found.record.inputs == [[2, 3, 16, 16]] and len(found.record.step_seconds) == SMALL.rounds


def test_inference_runs_forward_only(tmp_path: Path) -> None:
    settings = capture.Settings(2, (3, 16, 16), inference=True, rounds=1, steps=1)
    for path in capture.run(models.find("test_capture:small"), settings, CPU, tmp_path, lambda: None):
        found = breakdown.read(path)
        assert {site.phase for site in found.sites} == {"inference"} and found.record.mode == "inference"


def test_a_function_may_bring_its_inputs(tmp_path: Path) -> None:
    paths = capture.run(models.find("test_capture:with_inputs"), SMALL, CPU, tmp_path, lambda: None)
    assert {site.shape for site in breakdown.read(paths[1]).sites} == {(3, 4)}


def test_resnet_18_is_that_of_the_paper() -> None:
    """11.69 million parameters with 1000 classes; transformers' default head has 2 of them."""
    model = models.find("transformers:resnet-18", '{"num_labels": 1000}').make()
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_689_512
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == 20


def test_the_same_weights_every_time() -> None:
    source = models.find("transformers:resnet-18", '{"hidden_sizes": [8, 8, 8, 8], "embedding_size": 8}')
    first, second = source.make().state_dict(), source.make().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_timm_makes_the_model_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm itself needs torchvision; a stand-in records what it is asked for."""
    asked: list[Any] = []

    def create_model(*arguments: object, **options: object) -> nn.Module:
        asked.append((arguments, options))
        return Small()

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))  # type: ignore[arg-type]
    assert isinstance(models.find("timm:resnet18", '{"num_classes": 7}').make(), Small)
    assert asked == [(("resnet18",), {"pretrained": False, "num_classes": 7})]
    monkeypatch.setitem(sys.modules, "timm", None)  # type: ignore[arg-type]
    with pytest.raises(Failure, match="timm:resnet18: expected timm to be installed"):
        models.find("timm:resnet18").make()


@pytest.fixture
def pickled(tmp_path: Path) -> str:
    torch.save(Small(), tmp_path / "model.pt")
    return str(tmp_path / "model.pt")


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, restore_threads: None, tmp_path: Path) -> Callable[..., Any]:
    monkeypatch.setattr(allocator, "run_under", lambda wanted: None)
    output = str(tmp_path / "out")
    fixed = ("--batch", "2", "--rounds", "1", "--steps", "1", "--threads", "1", "--output", output)
    return lambda *arguments: CliRunner().invoke(cli.app, ["capture", *fixed, *arguments])


@pytest.mark.parametrize(
    ("model", "options", "code", "message"),
    [
        ("no.such:thing", (), Exit.NO_MODEL, "no.such:thing: expected a module to import"),
        ("test_capture:nothing", (), Exit.NO_MODEL, "test_capture:nothing: expected a function of the module"),
        ("test_capture:with_an_argument", (), Exit.NO_MODEL, "expected a function without arguments"),
        ("test_capture:no_model", (), Exit.NO_MODEL, "expected a module, or a module and its inputs, got int"),
        ("nothing.pt", (), Exit.NO_MODEL, "nothing.pt: expected package.module:function, a file saved by"),
        ("PICKLED", (), Exit.NO_MODEL, "expected a file of torch.jit.save or torch.export.save, got another"),
        ("transformers:nothing", (), Exit.NO_MODEL, "transformers:nothing: expected a model type, got nothing"),
        ("transformers:resnet", ("--config", "{"), Exit.NO_MODEL, "--config: expected JSON, got {"),
        ("test_capture:small", ("--config", "{}"), Exit.NO_MODEL, "--config: expected a model of transformers or timm"),
        ("test_capture:small", ("--shape", "5x8"), Exit.NO_MODEL, "small: expected to run on input 2x5x8, got Runtime"),
        ("test_capture:without_batch_norm", ("--shape", "16"), Exit.NO_BATCH_NORM, "expected a model that calls batch"),
        ("test_capture:small", ("--shape", "3x0"), Exit.USAGE, "expected sizes like 3x224x224, got 3x0"),
    ],
)
def test_what_cannot_be_captured_is_named(
    invoke: Callable[..., Any], tmp_path: Path, pickled: str, model: str, options: Any, code: Exit, message: str
) -> None:
    done = invoke("--model", pickled if model == "PICKLED" else model, *options)
    assert done.exit_code == code, done.output
    assert message in done.stderr.replace("\n", " ")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"], "something unfinished is left"


def check_page(folder: Path, layers: int) -> None:
    content = json.loads((folder / "analysis.json").read_bytes())
    assert [trace["name"] for trace in content["traces"]] == ["native", "my_ops"]
    assert len(content["difference"]["matches"]) == 2 * layers
    assert content["difference"]["only_first"] == content["difference"]["only_second"] == []
    assert content["machine"]["threads"] == 1 and {"cpu", "torch", "commit", "my_ops"} <= content["machine"].keys()
    assert (folder / "index.html").read_text(encoding="utf-8").count("<svg") == 4
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "something unfinished is left"


def test_one_command_from_the_unet_to_its_page(tmp_path: Path) -> None:
    """In a process of its own, as its user runs it."""
    folder = tmp_path / "unet"
    model = ["--model", "profiling.examples.unet:unet", "--shape", "3x16x16", "--batch", "2"]
    fixed = ["--rounds", "2", "--steps", "1", "--threads", "1", "--report", "--output", str(folder)]
    command = [sys.executable, "-m", "profiling", "capture", *model, *fixed]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"report: {folder / 'index.html'}" in done.stdout and done.stderr == ""
    check_page(folder, layers=14)


def test_one_command_from_a_resnet_to_its_page(invoke: Callable[..., Any], tmp_path: Path) -> None:
    done = invoke("--model", "transformers:resnet-18", "--shape", "3x32x32", "--report")
    assert done.exit_code == 0, done.output
    check_page(tmp_path / "out", layers=20)


def test_the_unet_has_14_batch_norms_and_keeps_the_size() -> None:
    model = unet()
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == 14
    assert model(torch.zeros(1, 3, 24, 16)).shape == (1, 2, 24, 16)
