"""Rules for ``torch.vmap``: a batch of B problems becomes one call of the operator.

Statistics belong to a channel, so B problems are one problem with B times the channels: an image ``[B, N, C, ...]``
becomes ``[N, B*C, ...]``, a vector ``[B, C]`` becomes ``[B*C]``, and what is not batched is repeated. Where all vectors
are shared and nothing is summed, B problems are one with B times the samples: ``[B*N, C, ...]``, without a copy.

Nothing is computed here.
"""

from collections.abc import Callable, Iterator, Sequence
from enum import Enum, auto
from functools import cache, partial
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["register"]


class _Kind(Enum):
    """What an argument or a result is to one problem."""

    IMAGE = auto()  # [N, C, ...]
    VECTOR = auto()  # [C]
    STATE = auto()  # [C], and written: a running statistic in training
    MASK = auto()  # a bit for each value of an image, or empty
    COUNT = auto()  # one for all channels
    COUNTER = auto()  # the same, and written
    WEIGHT = auto()  # [C_out, C_in / groups, ...]
    GROUPS = auto()  # of the channels, a number
    OTHER = auto()  # no tensor


_IMAGE, _VECTOR, _STATE, _MASK, _COUNT, _COUNTER, _WEIGHT, _GROUPS, _OTHER = _Kind
_Dims = Sequence[Any]  # where the batch dimension of each argument is; None: not batched
_Mapped = tuple[Any, Any]  # results, and where their batch dimensions are


class _Info(Protocol):
    batch_size: int


class _Rule:
    """One operator, and the ways to call it for B problems at once."""

    def __init__(self, name: str, arguments: Sequence[_Kind], results: Sequence[_Kind]) -> None:
        self.op = getattr(torch.ops.my_ops, name).default
        self._arguments = arguments
        self._results = results

    def batched(self, dims: _Dims, *kinds: _Kind) -> bool:
        return any(dim is not None for kind, dim in zip(self._arguments, dims, strict=False) if kind in kinds)

    def by_channels(self, info: _Info, dims: _Dims, *args: Any) -> _Mapped:
        """Images [N, B*C, ...], vectors [B*C], weights [B*C_out, ...] in B times the groups."""
        self._check_written(dims, args, _STATE)
        mapped, copied = list(args), []
        for i, kind in enumerate(self._arguments[: len(args)]):
            if kind is _GROUPS:
                mapped[i] = info.batch_size * args[i]
        for i, kind, arg in self._tensors(args):
            if kind is _IMAGE:
                mapped[i] = _into_channels(_batch_first(arg, dims[i], info.batch_size))
            elif kind is _WEIGHT:
                mapped[i] = _batch_first(arg, dims[i], info.batch_size).flatten(0, 1)
            elif kind in (_VECTOR, _STATE):
                vectors = _batch_first(arg, dims[i], info.batch_size)
                mapped[i] = vectors.reshape(-1)
                if kind is _STATE and not vectors.is_contiguous():
                    copied.append((vectors, mapped[i]))
        results = self.op(*mapped)
        for vectors, copy in copied:
            vectors.copy_(copy.view(vectors.shape))
        return self._split(results, {_IMAGE: 1, _VECTOR: 0, _WEIGHT: 0}, info.batch_size)

    def by_samples(self, info: _Info, dims: _Dims, *args: Any) -> _Mapped:
        """Images [B*N, C, ...], vectors [C]."""
        mapped = list(args)
        for i, kind, arg in self._tensors(args):
            if kind is _IMAGE:
                mapped[i] = _batch_first(arg, dims[i], info.batch_size).flatten(0, 1)
        return self._split(self.op(*mapped), {_IMAGE: 0}, info.batch_size)

    def one_by_one(self, info: _Info, dims: _Dims, *args: Any) -> _Mapped:
        """B calls: a count that differs between the problems is no matter of channels."""
        self._check_written(dims, args, _STATE, _COUNTER)
        batched = [i for i, _, _ in self._tensors(args) if dims[i] is not None]
        calls = []
        for b in range(info.batch_size):
            problem = list(args)
            for i in batched:
                problem[i] = args[i].select(dims[i], b)
            calls.append(self.op(*problem))
        if isinstance(calls[0], Tensor):
            return torch.stack(calls), 0
        joined = [None if of_one[0] is None else torch.stack(of_one) for of_one in zip(*calls, strict=True)]
        return tuple(joined), tuple(None if results is None else 0 for results in joined)

    def _tensors(self, args: Sequence[Any]) -> Iterator[tuple[int, _Kind, Tensor]]:
        for i, (kind, arg) in enumerate(zip(self._arguments, args, strict=False)):
            if isinstance(arg, Tensor):
                yield i, kind, arg

    def _split(self, results: Any, at: dict[_Kind, int], size: int) -> _Mapped:
        """Takes the batch dimension out of channels or samples again; a result that has neither is shared."""
        if isinstance(results, Tensor):
            (value,), (dim,) = self._split((results,), at, size)
            return value, dim
        dims = [None if value is None else at.get(kind) for kind, value in zip(self._results, results, strict=True)]
        return tuple(
            value if dim is None else value.unflatten(dim, (size, value.shape[dim] // size))
            for value, dim in zip(results, dims, strict=True)
        ), tuple(dims)

    def _check_written(self, dims: _Dims, args: Sequence[Any], *kinds: _Kind) -> None:
        for i, kind, _ in self._tensors(args):
            if kind in kinds and dims[i] is None:
                name, argument = self.op._schema.name.removeprefix("my_ops::"), self.op._schema.arguments[i].name
                raise RuntimeError(
                    f"{name}: expected {argument} to be batched under vmap, got an unbatched tensor, into which every "
                    "sample would write: batch it (torch.func.stack_module_state), do without it "
                    "(torch.func.replace_all_batch_norm_modules_) or use eval mode"
                )


def _batch_first(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _into_channels(image: Tensor) -> Tensor:
    """[B, N, C, ...] to [N, B*C, ...]; channels last if each problem is."""
    if image.dim() > 3 and image.stride(2) == 1:
        return image.movedim((0, 2), (-2, -1)).flatten(-2).movedim(-1, 1)
    return image.transpose(0, 1).flatten(1, 2)


_forward_training = _Rule(
    "batchnorm_forward",
    (_IMAGE, _VECTOR, _VECTOR, _STATE, _STATE, _OTHER, _OTHER, _OTHER, _COUNTER),
    (_IMAGE, _VECTOR, _VECTOR),
)
_forward_eval = _Rule(
    "batchnorm_forward",
    (_IMAGE, _VECTOR, _VECTOR, _VECTOR, _VECTOR, _OTHER, _OTHER, _OTHER, _COUNTER),
    (_IMAGE, _VECTOR, _VECTOR),
)
_backward = _Rule(
    "batchnorm_backward", (_IMAGE, _IMAGE, _VECTOR, _VECTOR, _VECTOR, _OTHER, _OTHER), (_IMAGE, _VECTOR, _VECTOR)
)
_stats = _Rule("batchnorm_stats", (_IMAGE,), (_VECTOR, _VECTOR, _COUNT))
_gather_stats = _Rule(  # the statistics of the parts, [R, C], are images to it
    "batchnorm_gather_stats",
    (_IMAGE, _IMAGE, _COUNT, _STATE, _STATE, _OTHER, _OTHER, _COUNTER),
    (_VECTOR, _VECTOR, _COUNT),
)
_apply = _Rule("batchnorm_apply", (_IMAGE, *[_VECTOR] * 4), (_IMAGE,))
_backward_reduce = _Rule("batchnorm_backward_reduce", (_IMAGE, _IMAGE, _VECTOR, _VECTOR), (_VECTOR, _VECTOR))
_backward_apply = _Rule("batchnorm_backward_apply", (_IMAGE, _IMAGE, *[_VECTOR] * 5, _COUNT), (_IMAGE,))
_instance_forward = _Rule(  # statistics [N, C] are images without spatial dimensions
    "instancenorm_forward",
    (_IMAGE, _VECTOR, _VECTOR, _STATE, _STATE, _OTHER, _OTHER),
    (_IMAGE, _IMAGE, _IMAGE),
)
_instance_backward = _Rule(
    "instancenorm_backward", (_IMAGE, _IMAGE, _VECTOR, _IMAGE, _IMAGE, _OTHER), (_IMAGE, _VECTOR, _VECTOR)
)

_conv = (_IMAGE, _WEIGHT, _VECTOR, _VECTOR, _VECTOR)  # input, weight, bias, gamma, beta
_geometry = (_OTHER, _OTHER, _OTHER, _GROUPS)  # stride, padding, dilation, groups
_conv_training = _Rule(
    "conv_batchnorm_forward",
    (*_conv, _STATE, _STATE, *_geometry, _OTHER, _OTHER, _OTHER, _COUNTER),
    (_IMAGE, _VECTOR, _VECTOR),
)
_conv_eval = _Rule(
    "conv_batchnorm_forward",
    (*_conv, _VECTOR, _VECTOR, *_geometry, _OTHER, _OTHER, _OTHER, _COUNTER),
    (_IMAGE, _VECTOR, _VECTOR),
)
_conv_backward = _Rule(
    "conv_batchnorm_backward",
    (_IMAGE, *_conv, _VECTOR, _VECTOR, *_geometry),
    (_IMAGE, _WEIGHT, _VECTOR, _VECTOR, _VECTOR),
)


_act_forward_training = _Rule(
    "batchnorm_act_forward",
    (_IMAGE, _IMAGE, _VECTOR, _VECTOR, _STATE, _STATE, *[_OTHER] * 5, _COUNTER),
    (_IMAGE, _VECTOR, _VECTOR, _MASK),
)
_act_forward_eval = _Rule(
    "batchnorm_act_forward",
    (_IMAGE, _IMAGE, *[_VECTOR] * 4, *[_OTHER] * 5, _COUNTER),
    (_IMAGE, _VECTOR, _VECTOR, _MASK),
)
_act_backward = _Rule(
    "batchnorm_act_backward",
    (_IMAGE, _IMAGE, _IMAGE, _MASK, *[_VECTOR] * 4, *[_OTHER] * 4),
    (_IMAGE, _IMAGE, _VECTOR, _VECTOR),
)
_act_apply = _Rule("batchnorm_act_apply", (_IMAGE, _IMAGE, *[_VECTOR] * 4, _OTHER, _OTHER), (_IMAGE, _MASK))
_act_backward_reduce = _Rule(
    "batchnorm_act_backward_reduce",
    (_IMAGE, _IMAGE, _IMAGE, _MASK, *[_VECTOR] * 4, _OTHER, _OTHER),
    (_VECTOR, _VECTOR),
)
_act_backward_apply = _Rule(
    "batchnorm_act_backward_apply",
    (_IMAGE, _IMAGE, _IMAGE, _MASK, *[_VECTOR] * 4, _OTHER, _OTHER, _VECTOR, _VECTOR, _COUNT),
    (_IMAGE, _IMAGE),
)


def _elementwise(rule: _Rule, info: _Info, dims: _Dims, *args: Any) -> _Mapped:
    if rule.batched(dims, _COUNT):
        return rule.one_by_one(info, dims, *args)
    map_ = rule.by_channels if rule.batched(dims, _VECTOR) else rule.by_samples
    return map_(info, dims, *args)


def _map_forward(info: _Info, dims: _Dims, *args: Any) -> _Mapped:
    return (_map_forward_training if args[5] else _map_forward_eval)(info, dims, *args)


def _map_forward_eval(info: _Info, dims: _Dims, *args: Any) -> _Mapped:
    return _elementwise(_forward_eval, info, dims[:8], *args[:8])  # eval reads no counter


def _map_forward_training(info: _Info, dims: _Dims, *args: Any) -> _Mapped:
    rule = _forward_training
    if not rule.batched(dims, _IMAGE, _STATE, _COUNTER):  # one normalization, and B ways to scale and shift it
        _, mean, invstd = rule.op(args[0], None, None, *args[3:])
        output, dim = _apply.by_channels(info, (*dims[:3], None, None), *args[:3], mean, invstd)
        return (output, mean, invstd), (dim, None, None)
    if not rule.batched(dims, _COUNTER):
        return rule.by_channels(info, dims, *args)
    input, _, _, running_mean, running_var, _, momentum, _, counter = args
    if momentum is None and not (running_mean is None and running_var is None):
        return rule.one_by_one(info, dims, *args)
    mapped = rule.by_channels(info, dims[:8], *args[:8])
    if input.numel() > 0:
        counter.add_(1)
    return mapped


def _map_backward(info: _Info, dims: _Dims, *args: Any) -> _Mapped:
    input_alone = len(args) == 7 and not args[5] and not any(args[6][1:])  # else sums are wanted
    return _elementwise(_backward, info, dims, *args) if input_alone else _backward.by_channels(info, dims, *args)


def _map_instance_forward(info: _Info, dims: _Dims, *args: Any) -> _Mapped:
    rule, running = _instance_forward, args[3:5]
    alone = rule.batched(dims, _VECTOR, _STATE) or any(tensor is not None for tensor in running)
    return (rule.by_channels if alone else rule.by_samples)(info, dims, *args)


def _map_instance_backward(info: _Info, dims: _Dims, *args: Any) -> _Mapped:
    input_alone = len(args) == 6 and not any(args[5][1:])  # else sums are wanted
    rule = _instance_backward
    return _elementwise(rule, info, dims, *args) if input_alone else rule.by_channels(info, dims, *args)


def _map_gather_stats(info: _Info, dims: _Dims, *args: Any) -> _Mapped:
    alone = _gather_stats.batched(dims, _COUNT, _COUNTER)
    return (_gather_stats.one_by_one if alone else _gather_stats.by_channels)(info, dims, *args)


def _map_conv_forward(info: _Info, dims: _Dims, *args: Any) -> _Mapped:
    rule = _conv_training if args[11] else _conv_eval
    return (rule.one_by_one if rule.batched(dims, _COUNTER) else rule.by_channels)(info, dims, *args)


def _has_bits(mask: Tensor | None) -> bool:
    return mask is not None and mask.numel() > 0


def _map_act_forward(info: _Info, dims: _Dims, *args: Any) -> _Mapped:
    input, residual, _, _, running_mean, running_var, training, momentum, eps, activation = args[:10]
    rule = _act_forward_training if training else _act_forward_eval
    if training and not rule.batched(dims, _IMAGE, _STATE, _COUNTER):  # one normalization, B ways to scale and shift it
        _, mean, invstd = _forward_training.op(
            input, None, None, running_mean, running_var, True, momentum, eps, *args[11:]
        )
        applied = (*args[:4], mean, invstd, activation, *(args[10:11] or (0.0,)))
        (output, mask), at = _map_act_apply(info, (*dims[:4], None, None, None, None), *applied)
        return (output, mean, invstd, mask), (at[0], None, None, at[1])
    if not training:
        rule, dims, args = _act_forward_eval, dims[:11], args[:11]  # eval reads no counter
    if _writes_bits(residual, activation) or rule.batched(dims, _COUNTER):
        return rule.one_by_one(info, dims, *args)
    return rule.by_channels(info, dims, *args) if training else _elementwise(rule, info, dims, *args)


def _writes_bits(residual: Tensor | None, activation: str) -> bool:
    return residual is not None and activation in ("relu", "leaky_relu", "relu6")


def _map_act_apply(info: _Info, dims: _Dims, *args: Any) -> _Mapped:
    if _writes_bits(args[1], args[6]):
        return _act_apply.one_by_one(info, dims, *args)
    return _elementwise(_act_apply, info, dims, *args)


def _map_act_backward(rule: _Rule, info: _Info, dims: _Dims, *args: Any) -> _Mapped:
    """Bits lie in the order of one problem's memory, so that problems with a mask are called one by one."""
    if _has_bits(args[3]) or rule.batched(dims, _COUNT):
        return rule.one_by_one(info, dims, *args)
    return rule.by_channels(info, (*dims[:3], None, *dims[4:]), *args[:3], None, *args[4:])


def _register(name: str, rule: Callable[..., _Mapped]) -> None:
    op = getattr(torch.ops.my_ops, name).default

    def explained(info: _Info, dims: _Dims, *args: Any) -> _Mapped:
        """If arguments are wrong, says so of one problem; on meta tensors, to write nothing."""
        try:
            return rule(info, dims, *args)
        except (IndexError, RuntimeError, ValueError):
            op(*map(_first_on_meta, args, dims))
            raise

    torch.library.register_vmap(f"my_ops::{name}", explained)


def _first_on_meta(arg: Any, dim: Any) -> Any:
    if not isinstance(arg, Tensor):
        return arg
    return (arg if dim is None else arg.select(dim, 0)).to("meta")


@cache
def register() -> None:
    """Registers the rule of every operator. The rules stay, so a second call does nothing."""
    _register("batchnorm_forward", _map_forward)
    _register("batchnorm_backward", _map_backward)
    _register("batchnorm_stats", _stats.by_channels)
    _register("batchnorm_gather_stats", _map_gather_stats)
    _register("batchnorm_apply", partial(_elementwise, _apply))
    _register("batchnorm_backward_reduce", _backward_reduce.by_channels)
    _register("batchnorm_backward_apply", partial(_elementwise, _backward_apply))
    _register("instancenorm_forward", _map_instance_forward)
    _register("instancenorm_backward", _map_instance_backward)
    _register("conv_batchnorm_forward", _map_conv_forward)
    _register("conv_batchnorm_backward", _conv_backward.by_channels)
    _register("batchnorm_act_forward", _map_act_forward)
    _register("batchnorm_act_backward", partial(_map_act_backward, _act_backward))
    _register("batchnorm_act_apply", _map_act_apply)
    _register("batchnorm_act_backward_reduce", partial(_map_act_backward, _act_backward_reduce))
    _register("batchnorm_act_backward_apply", partial(_map_act_backward, _act_backward_apply))
