"""Export to ONNX: what onnxruntime computes from the file is what the model computes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import my_ops
from checks import activations, ops

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
export = pytest.importorskip("my_ops.onnx").export

CHANNELS = 6
BATCH = {"x": {0: torch.export.Dim("batch", min=1, max=64)}}


class Network(nn.Module):
    """Modules, the function without parameters, and the phase operator."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, CHANNELS, 3)
        self.affine = my_ops.BatchNorm2d(CHANNELS)
        self.plain = my_ops.BatchNorm2d(CHANNELS, affine=False, momentum=None, eps=1e-2)
        for norm in (self.affine, self.plain):
            nn.init.uniform_(norm.running_mean, -1.0, 1.0)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
        nn.init.uniform_(self.affine.weight, 0.5, 1.5)
        nn.init.uniform_(self.affine.bias, -0.5, 0.5)
        self.register_buffer("invstd", 0.5 + torch.rand(CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.plain(self.affine(self.conv(x))))
        x = my_ops.functional.batch_norm(x, self.plain.running_mean, self.plain.running_var, self.affine.weight)
        return ops.batchnorm_apply(x, self.affine.weight, self.affine.bias, self.plain.running_mean, self.invstd)


def operators(path: Path) -> Counter[str]:
    return Counter(f"{node.domain}:{node.op_type}" for node in onnx.load(path).graph.node)


def run(path: Path, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return torch.from_numpy(result)


def test_network_with_any_batch(tmp_path: Path) -> None:
    """Four batch norms are four BatchNormalization, before torch's optimizer folds what it can into the convolution;
    the numbers are the model's for batches unlike the example's."""
    model = Network().eval()
    path = tmp_path / "network.onnx"
    export(model, (torch.randn(2, 3, 9, 7),), str(path), dynamic_shapes=BATCH, optimize=False)
    names = operators(path)
    assert names[":BatchNormalization"] == 4
    assert not [name for name in names if "my_ops" in name]
    for samples in (1, 2, 11):
        x = torch.randn(samples, 3, 9, 7)
        torch.testing.assert_close(run(path, x), model(x).detach(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 7), (2, 4, 3, 5, 2)], ids=["2d", "3d", "5d"])
@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_ranks_and_dtypes(tmp_path: Path, shape: tuple[int, ...], precision: torch.dtype) -> None:
    norm = (my_ops.BatchNorm3d if len(shape) == 5 else my_ops.BatchNorm1d)(4, dtype=precision)
    x = activations(shape, precision, "cpu")
    norm(x)
    norm.eval()
    path = tmp_path / "norm.onnx"
    export(norm, (x,), str(path))
    tolerance = 1e-6 if precision == torch.float32 else 1e-12
    torch.testing.assert_close(run(path, x), norm(x).detach(), rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_instance_norm(tmp_path: Path, affine: bool) -> None:
    norm = my_ops.InstanceNorm2d(4, affine=affine).eval()
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    path = tmp_path / "norm.onnx"
    export(norm, (torch.randn(2, 4, 5, 6),), str(path), dynamic_shapes={"input": {0: torch.export.Dim("batch")}})
    x = activations((3, 4, 5, 6), torch.float32, "cpu")
    torch.testing.assert_close(run(path, x), norm(x).detach(), rtol=1e-5, atol=1e-5)


def test_training_is_refused() -> None:
    message = r"^batchnorm_forward: expected training False for ONNX, got True: call model.eval\(\) first$"
    with pytest.raises(ValueError, match=message):
        export(my_ops.BatchNorm2d(3), (torch.randn(2, 3, 4, 4),))
    with pytest.raises(ValueError, match=message):
        export(my_ops.BatchNorm2d(3, track_running_stats=False).eval(), (torch.randn(2, 3, 4, 4),))
    message = r"^instancenorm_forward: expected no running statistics for ONNX, got some: call model.eval\(\) first$"
    with pytest.raises(ValueError, match=message):
        export(my_ops.InstanceNorm2d(3, track_running_stats=True), (torch.randn(2, 3, 4, 4),))


def test_operators_of_training_are_refused() -> None:
    class Statistics(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return ops.batchnorm_stats(x)[0]

    with pytest.raises(ValueError, match=r"^batchnorm_stats: expected an operator of inference for ONNX, got"):
        export(Statistics(), (torch.randn(2, 3, 4, 4),))


def test_saved_statistics_are_refused() -> None:
    class Saved(nn.Module):
        def forward(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
            return ops.batchnorm_forward(x, None, None, mean, var, False, 0.1, 1e-5)[2]

    with pytest.raises(ValueError, match=r"^batchnorm_forward: expected only its output to be used for ONNX"):
        export(Saved(), (torch.randn(2, 3, 4, 4), torch.zeros(3), torch.ones(3)))
