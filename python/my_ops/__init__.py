"""Batch normalization at the speed of memory, as a native PyTorch operator.

Importing this package loads the native library and registers the operators ``torch.ops.my_ops.*``.
"""

from ._library import load as _load

__version__ = _load(__path__)["version"]

# The modules below bind the operators, which exist from here on.
from . import functional
from .convert import convert_batchnorm, revert_batchnorm
from .functionalization import register as _register_functionalization
from .fused import (
    BatchNormAct1d,
    BatchNormAct2d,
    BatchNormAct3d,
    InPlaceBatchNormAct1d,
    InPlaceBatchNormAct2d,
    InPlaceBatchNormAct3d,
)
from .modules import BatchNorm1d, BatchNorm2d, BatchNorm3d, LazyBatchNorm1d, LazyBatchNorm2d, LazyBatchNorm3d
from .vmap import register as _register_vmap_rules

_register_functionalization()
_register_vmap_rules()

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchNormAct1d",
    "BatchNormAct2d",
    "BatchNormAct3d",
    "InPlaceBatchNormAct1d",
    "InPlaceBatchNormAct2d",
    "InPlaceBatchNormAct3d",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "__version__",
    "convert_batchnorm",
    "functional",
    "revert_batchnorm",
]
