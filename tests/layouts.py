"""Tensors with the same values in every memory layout that the operators must accept.

Memory before, behind and between the values is NaN, so a value read from there shows up in the results.
"""

from __future__ import annotations

import torch
from torch import Tensor

SHAPES = {2: (37, 13), 3: (5, 7, 11), 4: (4, 6, 5, 7), 5: (3, 5, 2, 3, 4), 6: (2, 3, 2, 3, 2, 2)}

LAYOUTS: dict[str, tuple[int, ...]] = {  # layout -> ranks in which it exists
    "contiguous": (2, 3, 4, 5, 6),
    "channels_last": (3, 4, 5, 6),  # ranks 4 and 5: the memory formats of torch; 3: [N, L, C] seen as [N, C, L]
    "batch_inner": (2, 3, 4, 5),  # [C, N, ...] seen as [N, C, ...]: dense, but neither of the two above
    "spatial_swapped": (4, 5),  # [N, C, W, H] seen as [N, C, H, W]: dense as well
    "offset": (2, 3, 4, 5),  # one element behind an aligned address
    "offset_channels_last": (3, 4, 5),
    "chunk": (2, 3, 4, 5),  # half of the channels of a contiguous tensor
    "chunk_channels_last": (3, 4, 5),
    "strided": (2, 3, 4, 5, 6),  # every second value along the last dimension
    "expanded": (2, 3, 4, 5),  # one sample seen N times, stride 0
    "expanded_spatial": (3, 4, 5),
}
RANKED_LAYOUTS = [(rank, layout) for layout, ranks in LAYOUTS.items() for rank in ranks]
GUARD = 67  # elements; more than the widest vector holds


def guarded(values: Tensor, offset: int = 1) -> Tensor:
    """A contiguous copy of `values`, `offset` elements into a buffer of NaN."""
    buffer = values.new_full((offset + values.numel() + GUARD,), torch.nan)
    return buffer[offset : offset + values.numel()].view(values.shape).copy_(values)


def strided(values: Tensor) -> Tensor:
    """Every second value along the last dimension of a buffer of NaN."""
    return torch.stack([torch.full_like(values, torch.nan), values], dim=-1).flatten(-2)[..., 1::2]


def _second_half(values: Tensor, dim: int) -> Tensor:
    return torch.cat([torch.full_like(values, torch.nan), values], dim).tensor_split(2, dim)[1]


def arrange(values: Tensor, layout: str) -> Tensor:
    """Contiguous `values` in the named layout; the expanded ones repeat their first sample or position."""
    channels_inner = values.movedim(1, -1).contiguous()
    match layout:
        case "contiguous":
            return values
        case "channels_last":
            return channels_inner.movedim(-1, 1)
        case "batch_inner":
            return values.transpose(0, 1).contiguous().transpose(0, 1)
        case "spatial_swapped":
            return values.transpose(-1, -2).contiguous().transpose(-1, -2)
        case "offset":
            return guarded(values)
        case "offset_channels_last":
            return guarded(channels_inner).movedim(-1, 1)
        case "chunk":
            return _second_half(values, 1)
        case "chunk_channels_last":
            return _second_half(channels_inner, -1).movedim(-1, 1)
        case "strided":
            return strided(values)
        case "expanded":
            return values[:1].expand(values.shape)
        case "expanded_spatial":
            return values[..., :1].expand(values.shape)
    raise ValueError(f"no layout named {layout}")


def _is_laid_out(tensor: Tensor) -> bool:
    """Contiguous or channels last, of any rank."""
    return tensor.is_contiguous() or tensor.movedim(1, -1).is_contiguous()


def _has_one_order(tensor: Tensor) -> bool:
    """Whether the strides of a part of a dense tensor tell the order of its dimensions."""
    strides = [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]
    return tensor.numel() > 0 and len({*strides}) == len(strides) and min(strides, default=1) == 1


def assert_layout(got: Tensor, like: Tensor, what: str) -> None:
    """`got` has the layout of `like`, or of what `like` is a part of; if that is neither of the two, any of the two."""
    wanted = torch.empty_like(like)
    if _is_laid_out(wanted) and (_is_laid_out(like) or _has_one_order(like)):
        strides = zip(got.shape, got.stride(), wanted.stride(), strict=True)
        right = all((size == 1 and not _is_laid_out(like)) or left == right for size, left, right in strides)
    else:
        right = _is_laid_out(got)
    assert right, f"{what}: strides {got.stride()}, expected {wanted.stride()} for shape {list(like.shape)}"
