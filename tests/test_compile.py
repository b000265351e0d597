"""What compiles and exports a model: torch.compile, torch.export, torch.func."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import my_ops
from layouts import arrange

CHANNELS = 6


class Block(nn.Module):
    """Batch norm between other operators."""

    def __init__(self, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.norm = my_ops.BatchNorm2d(CHANNELS, momentum=momentum)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        nn.init.uniform_(self.norm.bias, -0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(x * 2.0))


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def twins(device: str, training: bool, momentum: float | None = 0.1) -> tuple[Block, Block]:
    """Two blocks with the same values."""
    blocks = (Block(momentum).to(device).train(training), Block(momentum).to(device).train(training))
    blocks[1].load_state_dict(blocks[0].state_dict())
    return blocks


def batch(samples: int, device: str, layout: str = "contiguous") -> Tensor:
    return arrange(torch.randn(samples, CHANNELS, 5, 9, device=device), layout).requires_grad_()


def assert_same_step(eager: nn.Module, compiled: nn.Module, x: Tensor) -> None:
    """One forward and backward of both: output, every gradient, every buffer."""
    twin = x.detach().clone().requires_grad_()
    results = []
    for model, input in ((eager, x), (compiled, twin)):
        model.zero_grad()
        output = model(input)
        (output * torch.linspace(-1.0, 1.0, output.numel(), device=x.device).view(output.shape)).sum().backward()
        state = [*model.buffers(), *(parameter.grad for parameter in model.parameters())]
        results.append([output, input.grad, *state])
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)
    assert results[1][0].stride() == results[0][0].stride()
    assert results[1][1].stride() == results[0][1].stride()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_compile_without_graph_breaks(device: str, training: bool, layout: str, momentum: float | None) -> None:
    """Two steps, so that mutated buffers are seen by the second one."""
    eager, other = twins(device, training, momentum)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        assert_same_step(eager, compiled, batch(4, device, layout))
    assert int(other.norm.num_batches_tracked) == (2 if training else 0)


def test_compile_with_inductor(device: str) -> None:
    eager, other = twins(device, training=True)
    assert_same_step(eager, torch.compile(other, fullgraph=True), batch(4, device))


def test_compile_with_a_dynamic_batch(device: str, training: bool) -> None:
    """One graph serves every number of samples."""
    eager, other = twins(device, training)
    compiled = torch.compile(other, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for samples in (4, 11, 3):
            assert_same_step(eager, compiled, batch(samples, device))


def test_export_with_a_dynamic_batch(device: str, training: bool) -> None:
    eager, other = twins(device, training)
    sizes = {"x": {0: torch.export.Dim("batch", min=2, max=64)}}
    program = torch.export.export(other, (batch(4, device).detach(),), dynamic_shapes=sizes).module()
    for samples in (4, 11):
        x = batch(samples, device).detach()
        torch.testing.assert_close(program(x), eager(x))
    torch.testing.assert_close(list(program.buffers()), list(eager.buffers()))


def test_exported_program_contains_the_operator(device: str, training: bool) -> None:
    program = torch.export.export(Block().to(device).train(training), (batch(4, device).detach(),))
    targets = [node.target for node in program.graph.nodes]
    assert torch.ops.my_ops.batchnorm_forward.default in targets


def test_functional_call(device: str, training: bool) -> None:
    """Parameters and buffers from outside; those given are the ones written."""
    eager, other = twins(device, training)
    state = {name: value.detach().clone() for name, value in other.state_dict().items()}
    untouched = [buffer.clone() for buffer in other.buffers()]
    x = batch(4, device).detach()
    torch.testing.assert_close(torch.func.functional_call(other, state, (x,)), eager(x))
    for name, buffer in eager.named_buffers():
        torch.testing.assert_close(state[name], buffer)
    assert all(torch.equal(got, want) for got, want in zip(other.buffers(), untouched, strict=True))


def test_func_grad(device: str, training: bool) -> None:
    eager, other = twins(device, training)
    x = batch(4, device)
    eager(x).square().sum().backward()
    parameters = {name: parameter.detach() for name, parameter in other.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(other, parameters, (x,)).square().sum()

    grads, grad_input = torch.func.grad(loss, argnums=(0, 1))(parameters, x.detach())
    torch.testing.assert_close(grad_input, x.grad)
    for name, parameter in eager.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad)
