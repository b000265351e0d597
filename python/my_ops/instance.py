"""Drop-ins for the instance norm modules of ``torch.nn``: all is torch's own but the call of the operator."""

from torch import Tensor, nn

from .functional import instance_norm

__all__ = [
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LazyInstanceNorm1d",
    "LazyInstanceNorm2d",
    "LazyInstanceNorm3d",
]


class _Apply(nn.modules.instancenorm._InstanceNorm):
    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        return instance_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            0.0 if self.momentum is None else self.momentum,
            self.eps,
        )


class InstanceNorm1d(_Apply, nn.InstanceNorm1d):
    """Drop-in for :class:`torch.nn.InstanceNorm1d`: input ``[N, C, L]`` or ``[C, L]``, same arguments and state."""


class InstanceNorm2d(_Apply, nn.InstanceNorm2d):
    """Drop-in for :class:`torch.nn.InstanceNorm2d`: input ``[N, C, H, W]`` or ``[C, H, W]``, same arguments, state."""


class InstanceNorm3d(_Apply, nn.InstanceNorm3d):
    """Drop-in for :class:`torch.nn.InstanceNorm3d`: input ``[N, C, D, H, W]`` or ``[C, D, H, W]``, same arguments."""


class LazyInstanceNorm1d(_Apply, nn.LazyInstanceNorm1d):
    """Drop-in for :class:`torch.nn.LazyInstanceNorm1d`: becomes :class:`InstanceNorm1d` at the first input."""

    cls_to_become = InstanceNorm1d


class LazyInstanceNorm2d(_Apply, nn.LazyInstanceNorm2d):
    """Drop-in for :class:`torch.nn.LazyInstanceNorm2d`: becomes :class:`InstanceNorm2d` at the first input."""

    cls_to_become = InstanceNorm2d


class LazyInstanceNorm3d(_Apply, nn.LazyInstanceNorm3d):
    """Drop-in for :class:`torch.nn.LazyInstanceNorm3d`: becomes :class:`InstanceNorm3d` at the first input."""

    cls_to_become = InstanceNorm3d
