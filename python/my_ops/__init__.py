"""Batch normalization at the speed of memory, as a native PyTorch operator.

Importing this package loads the native library and registers the operators ``torch.ops.my_ops.*``.
"""

from ._library import find as _find
from ._library import load as _load

__version__ = _load(__path__)["version"]

# The modules below bind the operators, which exist from here on.
from . import functional
from .conv import ConvBatchNorm1d, ConvBatchNorm2d, ConvBatchNorm3d
from .convert import convert_batchnorm, convert_sync_batchnorm, revert_batchnorm
from .custom import BatchNormCustom
from .folding import fuse_conv_bn
from .frozen import FrozenBatchNorm, FrozenBatchNorm1d, FrozenBatchNorm2d, FrozenBatchNorm3d, freeze_batchnorm
from .functionalization import register as _register_functionalization
from .fused import (
    BatchNormAct1d,
    BatchNormAct2d,
    BatchNormAct3d,
    InPlaceBatchNormAct1d,
    InPlaceBatchNormAct2d,
    InPlaceBatchNormAct3d,
)
from .ghost import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d
from .instance import (
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LazyInstanceNorm1d,
    LazyInstanceNorm2d,
    LazyInstanceNorm3d,
)
from .modules import BatchNorm1d, BatchNorm2d, BatchNorm3d, LazyBatchNorm1d, LazyBatchNorm2d, LazyBatchNorm3d
from .precise import update_bn
from .sync import SyncBatchNorm, SyncBatchNormAct, SyncInPlaceBatchNormAct
from .vmap import register as _register_vmap_rules

#: Where CMake's ``find_package(my_ops)`` finds the C++ package that comes with this one: for ``CMAKE_PREFIX_PATH``.
cmake_prefix_path: str = str(_find(__path__))

_register_functionalization()
_register_vmap_rules()

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchNormAct1d",
    "BatchNormAct2d",
    "BatchNormAct3d",
    "BatchNormCustom",
    "ConvBatchNorm1d",
    "ConvBatchNorm2d",
    "ConvBatchNorm3d",
    "FrozenBatchNorm",
    "FrozenBatchNorm1d",
    "FrozenBatchNorm2d",
    "FrozenBatchNorm3d",
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GhostBatchNorm3d",
    "InPlaceBatchNormAct1d",
    "InPlaceBatchNormAct2d",
    "InPlaceBatchNormAct3d",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "LazyInstanceNorm1d",
    "LazyInstanceNorm2d",
    "LazyInstanceNorm3d",
    "SyncBatchNorm",
    "SyncBatchNormAct",
    "SyncInPlaceBatchNormAct",
    "__version__",
    "cmake_prefix_path",
    "convert_batchnorm",
    "convert_sync_batchnorm",
    "freeze_batchnorm",
    "functional",
    "fuse_conv_bn",
    "revert_batchnorm",
    "update_bn",
]
