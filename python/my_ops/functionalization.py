"""The ``out`` overloads where torch traces programs without mutation (``torch.compile``, ``torch.export``).

There each one is its plain overload and a copy of the results, which the compiler may do in place.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _register(name: str, *results: str) -> None:
    packet = getattr(torch.ops.my_ops, name)

    @packet.out.py_functionalize_impl  # type: ignore[untyped-decorator]
    def functionalize(context: Any, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, ...]:
        out = tuple(kwargs.pop(result) for result in results)
        plain: Callable[..., Tensor | tuple[Tensor | None, ...]] = packet.default
        with context.mode:
            got = plain(*args, **kwargs)
            for target, value in zip(out, (got,) if isinstance(got, Tensor) else got, strict=True):
                if value is not None:  # masked
                    target.copy_(value)
        return out[0] if len(out) == 1 else out


def register() -> None:
    """To be called once, when the operators exist."""
    _register("batchnorm_forward", "output", "save_mean", "save_invstd")
    _register("batchnorm_backward", "grad_input", "grad_gamma", "grad_beta")
    _register("batchnorm_apply", "out")
    _register("batchnorm_backward_apply", "out")
