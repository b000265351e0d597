"""Exact running statistics over a whole data set."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from . import conv

__all__ = ["update_bn"]

_PARTS = 64  # kept until they are joined
_EPS = 1.0  # of an invstd that is not read
_BatchNorm = nn.modules.batchnorm._BatchNorm


class _Total:
    """The statistics of all values that a layer has been given: parts joined by batchnorm_gather_stats, in float64."""

    def __init__(self) -> None:
        self.batches = 0
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, input: Tensor) -> None:
        mean, m2, count = torch.ops.my_ops.batchnorm_stats(input.detach())
        self._parts.append((mean.double(), m2.double(), count))
        self.batches += 1
        if len(self._parts) == _PARTS:
            mean, var, count = self._joined()
            self._parts = [(mean, var * (count - 1), count)]

    def write(self, module: _BatchNorm) -> None:
        mean, var, _ = self._joined()
        assert module.running_mean is not None and module.running_var is not None
        module.running_mean.copy_(mean)
        module.running_var.copy_(var)
        if module.num_batches_tracked is not None:
            module.num_batches_tracked.fill_(self.batches)

    def _joined(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, unbiased variance and count of all parts: momentum 1 puts them in the place of running statistics."""
        means, m2s, counts = (torch.stack(parts) for parts in zip(*self._parts, strict=True))
        mean, var = (torch.zeros_like(means[0]) for _ in range(2))
        count = torch.ops.my_ops.batchnorm_gather_stats(means, m2s, counts.flatten(), mean, var, 1.0, _EPS)[2]
        return mean, var, count


@torch.no_grad()
def update_bn(
    loader: Iterable[Any],
    model: nn.Module,
    device: int | torch.device | str | None = None,
) -> None:
    """Gives every batch norm of ``model`` the mean and the unbiased variance of all that it sees of ``loader``.

    Called as :func:`torch.optim.swa_utils.update_bn`, which averages the batches' means and variances: wrong where
    batches differ in size, and blind to how their means differ. Here the batches' (mean, M2, count) are joined by
    Chan's formula, in float64, as if each layer had seen its values in one batch.

    Args:
        loader: batches: a tensor, or a list or tuple whose first element is one. Their sizes may differ.
        model: is run in training mode, without gradients. Every ``nn.BatchNorm1d/2d/3d`` and ``nn.SyncBatchNorm`` with
            running statistics, subclasses included, is updated; ``num_batches_tracked`` becomes the number of its
            calls. A layer that is not called stays as it is; of one that is called more than once all values count.
        device: where each batch is moved first, if given.

    Training flags are those of before afterwards, also when ``loader`` or ``model`` raises: then no statistics have
    changed either. Nothing is exchanged between processes.

    Raises:
        ValueError: ``loader`` yields no batch although ``model`` has batch norms.
    """
    totals = {
        module: _Total()
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
    }
    if not totals:
        return
    batches = 0
    with _listening(model, totals):
        for batch in loader:
            input = batch[0] if isinstance(batch, (list, tuple)) else batch
            batches += 1
            model(input if device is None else input.to(device))
    if batches == 0:
        raise ValueError("update_bn: expected at least one batch in loader, got none")
    for module, total in totals.items():
        if total.batches > 0:
            total.write(module)


@contextmanager
def _listening(model: nn.Module, totals: dict[_BatchNorm, _Total]) -> Iterator[None]:
    """``model`` in training mode, its batch norms feeding ``totals`` instead of their running statistics."""
    training = {module: module.training for module in model.modules()}
    tracking = {module: module.track_running_stats for module in totals}
    handles = []
    try:
        model.train()
        for module, total in totals.items():
            module.track_running_stats = False  # in training: leaves running statistics and counter alone
            handles.append(module.register_forward_pre_hook(_feed(total)))
        for both in model.modules():
            if isinstance(both, conv._ConvBatchNorm) and both.norm in totals:  # which does not call its norm
                handles.append(both.register_forward_pre_hook(_feed_convolved(totals[both.norm])))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, tracked in tracking.items():
            module.track_running_stats = tracked
        for each, was in training.items():
            each.training = was


def _feed(total: _Total) -> Any:
    return lambda _, inputs: total.add(inputs[0])


def _feed_convolved(total: _Total) -> Any:
    return lambda both, inputs: total.add(both.conv.forward(inputs[0]))
