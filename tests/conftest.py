"""Devices, dtypes, modes and seeds of the whole suite; importing my_ops loads the operators."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest
import torch

import my_ops  # noqa: F401

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def devices() -> list[str]:
    built_with_cuda = json.loads(torch.ops.my_ops.build_info())["cuda"] is not None
    return ["cpu", "cuda"] if built_with_cuda and torch.cuda.is_available() else ["cpu"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fill-memory", action="store_true", help="new tensors hold NaN: what is not written shows")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--fill-memory"):  # torch does it in this mode alone
        torch.use_deterministic_algorithms(True, warn_only=True)


def pytest_report_header() -> str:
    return f"my_ops: {torch.ops.my_ops.build_info()}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts = getattr(sys.modules.get("test_pytorch_cases"), "COUNTS", {})
    if counts:
        total = sum(counts.values())
        terminalreporter.section(f"PyTorch's own cases: {total} samples in {len(counts)} modes")
        for mode in sorted(counts):
            terminalreporter.line(f"{counts[mode]:5d}  {mode}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", getattr(metafunc.module, "DEVICES", None) or devices())
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
    if "training" in metafunc.fixturenames:
        metafunc.parametrize("training", [True, False], ids=["training", "eval"])


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(20240607)


@pytest.fixture
def restore_threads() -> Iterator[None]:
    """For tests that change the number of threads."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
