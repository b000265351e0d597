"""A pytest plugin that replaces the CPU operators by the CUDA operators on the host (README.md beside this file)."""

from __future__ import annotations

import os

import torch

import my_ops  # noqa: F401

torch.ops.load_library(os.environ["MY_OPS_CUDA_ON_HOST"])
