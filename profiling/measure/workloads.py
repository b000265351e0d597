"""Real images, real networks, and the tensors of the batch norm calls in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import (
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

CLASSES = 10
SEED = 20240607
LAYOUTS = ("contiguous", "channels_last")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """The tensors of one batch norm call in training, forward and backward."""

    name: str
    input: Tensor  # [N, C, ...]
    grad_output: Tensor  # like input
    gamma: Tensor  # this and the next three: [C]
    beta: Tensor
    running_mean: Tensor  # as it was before the call
    running_var: Tensor
    momentum: float
    eps: float

    @property
    def shape(self) -> Shape:
        return tuple(self.input.shape)

    def private(self) -> Case:
        """The same with running statistics of its own, for a call that updates them."""
        return replace(self, running_mean=self.running_mean.clone(), running_var=self.running_var.clone())

    def arranged(self, layout: str) -> Case:
        """The same values in another memory layout (one of ``LAYOUTS``)."""
        return replace(self, input=arrange(self.input, layout), grad_output=arrange(self.grad_output, layout))

    def channels(self, block: slice) -> Case:
        """Some of the channels: views, no copies."""
        vectors = {name: getattr(self, name)[block] for name in ("gamma", "beta", "running_mean", "running_var")}
        return replace(self, input=self.input[:, block], grad_output=self.grad_output[:, block], **vectors)


def has_layout(shape: Sequence[int], layout: str) -> bool:
    """channels_last exists for images [N, C, H, W] and volumes [N, C, D, H, W]."""
    return layout == "contiguous" or len(shape) in (4, 5)


def arrange(tensor: Tensor, layout: str) -> Tensor:
    if layout == "contiguous":
        return tensor.contiguous()
    return tensor.contiguous(memory_format=torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d)


def random_case(shape: Shape, dtype: torch.dtype, layout: str, device: torch.device) -> Case:
    """Normal data of ``shape``; parameters and running statistics in float32, as mixed-precision training has them.

    In float64 they are float64.
    """
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    normal = partial(torch.randn, generator=torch.Generator(device).manual_seed(SEED), device=device, dtype=kind)
    return Case(
        name="x".join(map(str, shape)),
        input=arrange(normal(shape).to(dtype), layout),
        grad_output=arrange(normal(shape).to(dtype), layout),
        gamma=1 + 0.1 * normal(shape[1]),
        beta=0.1 * normal(shape[1]),
        running_mean=torch.zeros(shape[1], device=device, dtype=kind),
        running_var=torch.ones(shape[1], device=device, dtype=kind),
        momentum=0.1,
        eps=1e-5,
    )


def digits(count: int, size: int, device: torch.device, first: int = 0) -> tuple[Tensor, Tensor]:
    """scikit-learn's handwritten digits (8x8 grey) as images for a network.

    Returns images [count, 3, size, size], scaled bilinearly to zero mean and unit variance, and labels [count]; numbers
    ``first`` to ``first + count`` of a fixed shuffle of all 1797.
    """
    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(SEED))[first : first + count]
    if len(order) < count:
        raise ValueError(f"digits: expected first + count <= {len(bunch.target)}, got {first} + {count}")
    grey = torch.from_numpy(bunch.images).float().unsqueeze(1)
    grey = ((grey - grey.mean()) / grey.std())[order].to(device)
    images = F.interpolate(grey, size=(size, size), mode="bilinear", align_corners=False).repeat(1, 3, 1, 1)
    return images, torch.from_numpy(bunch.target)[order].to(device)


def resnet50() -> nn.Module:
    """transformers' ResNet-50 from its default config: random weights, 53 batch norm layers."""
    return _resnet()


def small_resnet() -> nn.Module:
    """A ResNet with 10 batch norm layers for images of 32x32."""
    return _resnet(embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 1, 1], layer_type="basic")


def _resnet(**differences: object) -> nn.Module:
    """From transformers' default config, with these differences; the same weights at every call."""
    torch.manual_seed(SEED)
    model: nn.Module = ResNetForImageClassification(ResNetConfig.from_dict({"num_labels": CLASSES, **differences}))
    return model.train()


def loss_of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(images).logits, labels)


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> Tensor:
    """One step of the optimizer; returns the loss before it, detached."""
    optimizer.zero_grad()
    loss = loss_of(model, images, labels)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


def batch_norms(model: nn.Module) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    """Every batch norm module by its name."""
    kind = nn.modules.batchnorm._BatchNorm
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def capture(model: nn.Module, images: Tensor, labels: Tensor) -> list[Case]:
    """The tensors of every batch norm layer of ``model`` in one training step, in the order of the forward pass.

    The model must be in training mode; its running statistics move as in any step, its gradients are dropped. Of a
    layer that is called more than once the last call is kept.
    """
    cases: dict[str, Case] = {}
    handles = []
    for name, module in batch_norms(model).items():
        handles.append(module.register_forward_pre_hook(partial(_keep_arguments, cases, name)))
        handles.append(module.register_forward_hook(partial(_keep_gradient, cases, name)))
    try:
        loss_of(model, images, labels).backward()  # type: ignore[no-untyped-call]
    finally:
        for handle in handles:
            handle.remove()
    model.zero_grad()
    return list(cases.values())


def _keep_arguments(cases: dict[str, Case], name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    assert isinstance(module, nn.modules.batchnorm._BatchNorm)
    assert module.running_mean is not None and module.running_var is not None and module.momentum is not None
    x = inputs[0].detach()
    cases[name] = Case(
        name=name,
        input=x,
        grad_output=torch.empty(0),  # until the backward pass brings it
        gamma=module.weight.detach().clone(),
        beta=module.bias.detach().clone(),
        running_mean=module.running_mean.clone(),
        running_var=module.running_var.clone(),
        momentum=module.momentum,
        eps=module.eps,
    )


def _keep_gradient(
    cases: dict[str, Case], name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
) -> None:
    def keep(grad_output: Tensor) -> None:
        cases[name] = replace(cases[name], grad_output=grad_output.detach())

    output.register_hook(keep)  # type: ignore[no-untyped-call]


def distinct_shapes(cases: Sequence[Case]) -> list[tuple[Case, int]]:
    """The first case of every shape and how many cases have that shape, largest tensors first."""
    found: dict[Shape, list[Case]] = {}
    for case in cases:
        found.setdefault(case.shape, []).append(case)
    return sorted(((group[0], len(group)) for group in found.values()), key=lambda item: -item[0].input.numel())


def resnet50_shapes(batch: int, size: int = 224) -> list[tuple[Shape, int]]:
    """Shapes of ResNet-50's batch norm inputs and how many layers have each, from a pass without data."""
    return _batch_norm_shapes(resnet50, (batch, 3, size, size))


def mobilenetv2_shapes(batch: int, size: int = 224) -> list[tuple[Shape, int]]:
    """The same of transformers' MobileNetV2: half of its layers have channels in no power of two."""
    return _batch_norm_shapes(lambda: MobileNetV2ForImageClassification(MobileNetV2Config()), (batch, 3, size, size))


def _batch_norm_shapes(make: Callable[[], nn.Module], input: Shape) -> list[tuple[Shape, int]]:
    counts: dict[Shape, int] = {}

    def count(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shape = tuple(inputs[0].shape)
        counts[shape] = counts.get(shape, 0) + 1

    with torch.device("meta"):
        model = make().train()
        for module in batch_norms(model).values():
            module.register_forward_hook(count)
        model(torch.empty(input))
    return list(counts.items())
