"""Models served and trained by C++ programs, against the same models in Python."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import my_ops
import outside
from checks import bit_equal
from resnet import small_resnet

LIBRARY = Path(my_ops.cmake_prefix_path) / "lib" / "libmy_ops.so"


@pytest.fixture(autouse=True)
def one_thread(restore_threads: None) -> Iterator[None]:
    torch.set_num_threads(1)
    yield


def images() -> list[Tensor]:
    inputs: list[Tensor] = torch.load(outside.models() / "images.pt")
    return inputs


def script(name: str) -> torch.jit.ScriptModule:
    module: torch.jit.ScriptModule = torch.jit.load(outside.models() / name).eval()
    return module


def served(model: str, folder: Path) -> tuple[Tensor, ...]:
    """What the C++ program makes of the images."""
    models = outside.models()
    outside.output_of("serve", models / model, models / "images.pt", folder / "outputs.pt", LIBRARY)
    outputs: tuple[Tensor, ...] = torch.load(folder / "outputs.pt")
    return outputs


@pytest.mark.parametrize("model", ["scripted.pt", "traced.pt", "frozen.pt"])
def test_torchscript(model: str, tmp_path: Path) -> None:
    """The bits that Python computes, for batches and sizes unlike the traced one; near native batch norm's numbers."""
    ours, native = script(model), script("native.pt")
    outputs = served(model, tmp_path)
    with torch.no_grad():
        for input, output in zip(images(), outputs, strict=True):
            assert bit_equal(output, ours(input))
            torch.testing.assert_close(output, native(input), rtol=1e-4, atol=1e-5)


def test_optimize_for_inference() -> None:
    """Converts the convolutions, and keeps the operator."""
    scripted = script("scripted.pt")
    optimized = torch.jit.optimize_for_inference(scripted)
    assert "my_ops::batchnorm_forward" in str(optimized.graph)
    with torch.no_grad():
        for input in images():
            torch.testing.assert_close(optimized(input), scripted(input), rtol=1e-5, atol=1e-5)


def test_aot_inductor(tmp_path: Path) -> None:
    """The bits that Python computes with the same package, and the numbers of the model, for any batch and size."""
    package = torch._inductor.aoti_load_package(str(outside.models() / "resnet.pt2"))
    model = script("scripted.pt")
    with torch.no_grad():
        for input, output in zip(images(), served("resnet.pt2", tmp_path), strict=True):
            assert bit_equal(output, package(input))
            torch.testing.assert_close(output, model(input), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", ["scripted.pt", "resnet.pt2"])
def test_missing_library(model: str, tmp_path: Path) -> None:
    models = outside.models()
    done = outside.run("serve", models / model, models / "images.pt", tmp_path / "outputs.pt")
    assert done.returncode == 1
    want = (
        "serve: the model needs the operators of my_ops, which are not loaded: pass libmy_ops.so as the last argument, "
    )
    assert done.stderr.startswith(want + "or link my_ops::my_ops")
    assert "my_ops::batchnorm_forward" in done.stderr  # torch's own words


def test_training(tmp_path: Path) -> None:
    """Twenty steps on real digits: the losses of the same steps in Python, which fall."""
    digits = outside.models() / "digits.pt"
    from export_models import digits_network  # needs scikit-learn, without which the line above has skipped this test

    steps, batch = 20, 64
    printed = outside.output_of("train", digits, 2, steps, tmp_path / "losses.pt")
    (losses,) = torch.load(tmp_path / "losses.pt")

    data = torch.load(digits)
    network = digits_network()
    network.load_state_dict(data, strict=False)  # beside the weights there are images and labels
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    want = []
    for step in range(steps):
        chosen = slice(step * batch, (step + 1) * batch)
        optimizer.zero_grad()
        loss = F.cross_entropy(network(data["images"][chosen]), data["labels"][chosen])
        loss.backward()
        optimizer.step()
        want.append(float(loss.detach()))
    torch.testing.assert_close(losses, torch.tensor(want), rtol=1e-4, atol=1e-5)
    assert losses[-5:].mean() < 0.25 * losses[:2].mean()
    assert float(printed.split()[-1]) > 0.8  # of the digits that it never saw


def test_load() -> None:
    """Threads share a model: no output differs by a bit, and the memory in use does not grow."""
    models = outside.models()
    arguments = (models / "scripted.pt", models / "native.pt", models / "images.pt", 200, 1, 2, 4, 8)
    lines = [json.loads(line) for line in outside.output_of("load_test", *arguments).splitlines()]
    assert [line["threads"] for line in lines] == [1, 2, 4, 8]
    for line in lines:
        assert line["wrong"] == 0
        assert line["my_ops_images_per_s"] > 0 and line["native_images_per_s"] > 0
        before, after = line["bytes_in_use"]
        assert after - before < 2**16


def test_load_test_refuses_models_that_differ(tmp_path: Path) -> None:
    models = outside.models()
    torch.jit.script(small_resnet().eval()).save(tmp_path / "other.pt")
    done = outside.run("load_test", models / "scripted.pt", tmp_path / "other.pt", models / "images.pt", 10, 1)
    assert done.returncode == 1
    assert "the two models differ on input 0" in done.stderr
