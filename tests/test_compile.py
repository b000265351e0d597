"""What compiles, exports and recomputes a model: torch.compile, torch.export, AOTInductor, torch.func, checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import my_ops
import reference
from checks import bit_equal, ops
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


def test_compile_with_inductor(device: str, training: bool) -> None:
    """Twenty steps with one graph; the running statistics are those of the reference."""
    eager, other = twins(device, training, momentum=None)
    norm = other.norm
    running = (norm.running_mean.double().cpu(), norm.running_var.double().cpu())
    compiled = torch.compile(other, fullgraph=True)
    for step in range(20):
        x = batch(4, device)
        assert_same_step(eager, compiled, x)
        if training:
            count = torch.tensor(step)
            want = reference.forward(x.detach() * 2.0, None, None, *running, True, None, norm.eps, count)
            running = (want.running_mean.value, want.running_var.value)
    assert int(norm.num_batches_tracked) == (20 if training else 0)
    got = (norm.running_mean.double().cpu(), norm.running_var.double().cpu())
    torch.testing.assert_close(got, running, rtol=1e-6, atol=1e-6)


def test_compiled_out_overloads(device: str) -> None:
    """`out=` in a compiled program: results in place, running statistics written, in every mode without a graph."""

    def step(x: Tensor, mean: Tensor, var: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
        x = x * 2
        my_ops.functional.batch_norm(x, mean, var, training=True, momentum=0.3, out=out)
        my_ops.functional.batch_norm(x, mean, var, out=x)
        return x, out + 1

    compiled = torch.compile(step, fullgraph=True)
    x = batch(4, device).detach()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            results = []
            for function in (step, compiled):
                state = [torch.zeros(CHANNELS, device=device), torch.ones(CHANNELS, device=device)]
                out = torch.empty_like(x)
                results.append([*function(x, *state, out), *state, out])
            torch.testing.assert_close(results[1], results[0])


def test_compiled_out_overload_is_not_resized(device: str) -> None:
    """torch.compile wants targets of the right size, and says so."""
    mean, invstd = torch.zeros(CHANNELS, device=device), torch.ones(CHANNELS, device=device)

    def apply(x: Tensor) -> Tensor:
        return ops.batchnorm_apply.out(x, None, None, mean, invstd, out=x.new_empty(0))

    x = batch(4, device).detach()
    assert bit_equal(apply(x), ops.batchnorm_apply(x, None, None, mean, invstd))
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"Provided `out=` shape|out variants with resizing"):
        torch.compile(apply, fullgraph=True, backend="aot_eager")(x)


def test_recompilations_are_torchs(device: str, training: bool) -> None:
    """Batch after batch of another size: as many graphs as with native batch norm, one of which serves all sizes."""
    frames = []
    for norm in (my_ops.BatchNorm2d(CHANNELS), nn.BatchNorm2d(CHANNELS)):
        counter = CompileCounter()
        compiled = torch.compile(norm.to(device).train(training), fullgraph=True, backend=counter)
        for samples in (4, 11, 3, 8, 5):
            compiled(batch(samples, device))
        frames.append(counter.frame_count)
        torch._dynamo.reset()
    assert frames[0] == frames[1] == 2


def test_compile_with_a_dynamic_batch(device: str, training: bool) -> None:
    """One graph serves every number of samples."""
    eager, other = twins(device, training)
    compiled = torch.compile(other, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for samples in (4, 11, 3):
            assert_same_step(eager, compiled, batch(samples, device))


SIZES = {"x": {0: torch.export.Dim("batch", min=2, max=64)}}


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non_strict"])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_export_with_a_dynamic_batch(device: str, training: bool, strict: bool, momentum: float | None) -> None:
    eager, other = twins(device, training, momentum)
    x = batch(4, device).detach()
    program = torch.export.export(other, (x,), dynamic_shapes=SIZES, strict=strict).module()
    for samples in (4, 11):
        x = batch(samples, device).detach()
        torch.testing.assert_close(program(x), eager(x))
    buffers = dict(program.named_buffers())
    assert {"norm.running_mean", "norm.running_var"} <= buffers.keys()
    for name, buffer in buffers.items():
        torch.testing.assert_close(buffer, eager.get_buffer(name))


def test_exported_program_contains_the_operator(device: str, training: bool) -> None:
    program = torch.export.export(Block().to(device).train(training), (batch(4, device).detach(),))
    targets = [node.target for node in program.graph.nodes]
    assert torch.ops.my_ops.batchnorm_forward.default in targets


def test_aot_inductor_package(device: str, tmp_path: Path) -> None:
    """A package runs without the model's Python code, for other batch sizes, and keeps its own running statistics."""
    eager, other = twins(device, training=True)
    program = torch.export.export(other, (batch(4, device).detach(),), dynamic_shapes=SIZES)
    quickly = {"aot_inductor.compile_wrapper_opt_level": "O0"}
    package = str(tmp_path / "block.pt2")
    torch._inductor.aoti_compile_and_package(program, package_path=package, inductor_configs=quickly)
    runner = torch._inductor.aoti_load_package(package)
    for samples in (4, 11):
        x = batch(samples, device).detach()
        torch.testing.assert_close(runner(x), eager(x))


class Recomputing(nn.Module):
    """A block that runs again in the backward pass, but for batch norm."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        keep = partial(create_selective_checkpoint_contexts, [ops.batchnorm_forward.default])
        return checkpoint(self.block, x, use_reentrant=False, context_fn=keep)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_checkpoint_counts_a_batch_once(device: str, momentum: float | None) -> None:
    """Recomputation runs a block twice. Selective checkpoints keep what an operator returned: listed there, batch norm
    is not run again, so that its state changes once, the counter included, since the operator itself counts."""
    eager, other = twins(device, True, momentum)
    recomputing = Recomputing(other)
    for _ in range(2):
        assert_same_step(eager, recomputing, batch(4, device))
    assert int(other.norm.num_batches_tracked) == 2


def test_plain_checkpoint_counts_a_batch_twice(device: str) -> None:
    """Without that list state changes in both passes, here as in torch; gradients are right all the same."""
    counts = []
    for norm in (my_ops.BatchNorm2d(CHANNELS), nn.BatchNorm2d(CHANNELS)):
        checkpoint(norm.to(device), batch(4, device), use_reentrant=False).sum().backward()
        counts.append(int(norm.num_batches_tracked))
    assert counts == [2, 2]


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_memory_saved_for_backward(device: str, training: bool, affine: bool, layout: str) -> None:
    """No more bytes than native batch norm saves: the input, where a gradient depends on it, and vectors [C]."""
    x = batch(4, device, layout)
    saved = []
    for cls in (my_ops.BatchNorm2d, nn.BatchNorm2d):
        norm = cls(CHANNELS, affine=affine, device=device).train(training)
        sizes: dict[int, int] = {}  # by address: a tensor saved twice counts once

        def pack(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = norm(x)
        output.sum().backward()
        saved.append(sum(sizes.values()))
    ours, native = saved
    vectors = (3 if affine else 2) * CHANNELS * x.element_size()
    assert ours == (x.nbytes if training or affine else 0) + vectors
    assert ours <= native


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
