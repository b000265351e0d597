"""The profiling tools: their arithmetic on small known data, and one whole run of each command."""
# ruff: noqa: E402 (what profiling imports may be missing on a machine that only runs the operators)

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

for package in ("jinja2", "matplotlib", "msgspec", "rich", "sklearn", "transformers", "typer"):
    pytest.importorskip(package, reason=f"profiling needs {package}: pip install -r requirements/compare.txt")

from rich.console import Console
from typer.testing import CliRunner

from profiling import cli, gpu_summary
from profiling.comparison import compare
from profiling.measure import allocator, correctness, peers, timing, workloads
from profiling.measure.allocator import Allocator
from profiling.measure.peers import NATIVE, OURS, Native, Ours
from profiling.measure.timing import COPY, FRESH_COPY, Direction
from profiling.measure.workloads import Case
from profiling.output import json_text, plots
from profiling.suites import benchmark, suite_figures
from profiling.traces import analysis
from trace_events import event, trace_of

REPOSITORY = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


def small_case(dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> Case:
    return workloads.random_case((4, 3, 5, 6), dtype, layout, CPU)


def in_float64(case: Case) -> Case:
    tensors = ("input", "grad_output", "gamma", "beta", "running_mean", "running_var")
    return replace(case, **{name: getattr(case, name).double() for name in tensors})


# Workloads


def test_digits_are_real_standardised_and_held_out_apart() -> None:
    images, labels = workloads.digits(1797, 16, CPU)
    assert images.shape == (1797, 3, 16, 16)
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    # Bilinear upscaling by a whole factor keeps the mean and lowers the variance.
    assert abs(float(images.mean())) < 0.02 and 0.5 < float(images.std()) < 1
    held_out, held_out_labels = workloads.digits(7, 16, CPU, first=1790)
    assert torch.equal(held_out, images[1790:]) and torch.equal(held_out_labels, labels[1790:])
    with pytest.raises(ValueError, match="expected first \\+ count <= 1797, got 1790 \\+ 8"):
        workloads.digits(8, 16, CPU, first=1790)


def test_capture_takes_the_tensors_of_every_call() -> None:
    images, labels = workloads.digits(4, 32, CPU)
    model = workloads.small_resnet()
    cases = workloads.capture(model, images, labels)
    again = workloads.small_resnet()
    workloads.loss_of(again, images, labels).backward()
    modules = workloads.batch_norms(again)
    assert sorted(case.name for case in cases) == sorted(modules)
    for case in cases:
        module = modules[case.name]
        assert (
            case.running_mean.tolist() == [0.0] * case.shape[1] and case.running_var.tolist() == [1.0] * case.shape[1]
        )
        result = correctness.run(Native(), case)
        torch.testing.assert_close(result["running_mean"], module.running_mean)
        torch.testing.assert_close(result["grad_gamma"], module.weight.grad)
        torch.testing.assert_close(result["grad_beta"], module.bias.grad)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_resnet50_has_53_batch_norms_in_12_shapes() -> None:
    shapes = dict(workloads.resnet50_shapes(32))
    assert sum(shapes.values()) == 53 and len(shapes) == 12
    assert shapes[32, 64, 112, 112] == 1 and shapes[32, 2048, 7, 7] == 4


def test_mobilenetv2_has_52_batch_norms() -> None:
    shapes = dict(workloads.mobilenetv2_shapes(8))
    assert sum(shapes.values()) == 52
    assert shapes[8, 32, 112, 112] == 2 and shapes[8, 1280, 7, 7] == 1


def test_distinct_shapes_counts_layers_and_puts_large_tensors_first() -> None:
    small, large = small_case(), workloads.random_case((4, 8, 5, 6), torch.float32, "contiguous", CPU)
    assert workloads.distinct_shapes([small, large, small]) == [(large, 1), (small, 2)]


# Correctness


@pytest.mark.parametrize("layout", workloads.LAYOUTS)
def test_check_passes_ours(dtype: torch.dtype, layout: str) -> None:
    case = small_case(dtype, layout)
    before = case.private()
    findings = correctness.check(case, (Ours(), Native()), layout)
    assert {finding.quantity for finding in findings} == set(correctness.QUANTITIES)
    assert all(finding.passes(OURS) for finding in findings), findings
    assert torch.equal(case.running_mean, before.running_mean) and torch.equal(case.running_var, before.running_var)


def test_reference_agrees_with_native_in_float64() -> None:
    case = replace(small_case(), running_mean=torch.randn(3), running_var=0.5 + torch.rand(3))
    native = correctness.run(Native(), in_float64(case))
    found = correctness.reference(case)
    assert found.keys() == native.keys()
    for name, exact in found.items():
        torch.testing.assert_close(exact.value, native[name], rtol=1e-12, atol=1e-12)


class Wrong(Ours):
    """Ours with one quantity changed in one channel, by 20 bounds or to NaN."""

    def __init__(self, quantity: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.quantity, self.change = quantity, change

    def _changed(self, names: tuple[str, ...], results: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        pairs = zip(names, results, strict=True)
        return [self._change(value) if name == self.quantity else value for name, value in pairs]

    def _change(self, value: torch.Tensor) -> torch.Tensor:
        changed = value.clone()
        place = (1,) if value.dim() == 1 else (0, 1, 2, 3)
        changed[place] = self.change(changed[place])
        return changed

    def forward(self, case: Case, training: bool) -> Callable[[], Any]:
        call = super().forward(case, training)

        def wrong() -> Any:
            results = call()
            for name in ("running_mean", "running_var"):
                if training and name == self.quantity:
                    getattr(case, name).copy_(self._change(getattr(case, name)))
            return self._changed(("output" if training else "inference", "mean", "invstd"), results)

        return wrong

    def backward(self, case: Case) -> Callable[[], Any]:
        call = Ours().backward(case)
        return lambda: self._changed(("grad_input", "grad_gamma", "grad_beta"), call())


@pytest.mark.parametrize("quantity", correctness.QUANTITIES)
@pytest.mark.parametrize(
    "change", [lambda x: x + 1e-4 * (1 + x.abs()), lambda x: x * torch.nan], ids=["shifted", "nan"]
)
def test_check_sees_one_wrong_value(quantity: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    findings = correctness.check(small_case(), [Wrong(quantity, change)], "contiguous")
    assert [finding.quantity for finding in findings if not finding.passes(OURS)] == [quantity]


def test_check_in_blocks_of_channels_sees_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = correctness.check(small_case(), [Native()], "contiguous")
    monkeypatch.setattr(correctness, "_BLOCK", 1)
    for finding, other in zip(correctness.check(small_case(), [Native()], "contiguous"), whole, strict=True):
        assert finding.quantity == other.quantity
        assert finding.largest_value == pytest.approx(other.largest_value)
        assert finding.errors == pytest.approx(other.errors, rel=1e-6) and finding.shares == pytest.approx(other.shares)


# Timing


def test_minimum_bytes_by_hand() -> None:
    case = small_case(torch.bfloat16)  # 4*3*5*6 = 360 values of 2 bytes; vectors of 3 float32: 12 bytes
    assert timing.minimum_bytes(case, Direction.FORWARD) == 2 * 720 + (4 + 2 + 2) * 12
    assert timing.minimum_bytes(case, Direction.BACKWARD) == 3 * 720 + 5 * 12
    assert timing.minimum_bytes(case, Direction.INFERENCE) == 2 * 720 + 4 * 12
    assert timing.copy_bytes(case.shape, "bfloat16") == 2 * 720


def test_interleave_rotates_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(timing, "_SAMPLE", 0.0)
    monkeypatch.setattr(timing, "_CACHED", 0.0)
    samples = timing.interleave({name: lambda name=name: order.append(name) for name in "abc"}, CPU, seconds=0.0)
    rounds = [order[first : first + 3] for first in range(9, len(order), 3)]  # the first nine warm up
    assert [len(values) for values in samples.values()] == [5, 5, 5]
    assert rounds == [list("abc"), list("bca"), list("cab"), list("abc"), list("bca")]


def test_a_short_call_is_made_once_before_its_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a sample begins with what the peer before it left in the caches, and that is always the same peer."""
    events: list[str] = []
    monkeypatch.setattr(timing, "_SAMPLE", 0.0)
    ticks = iter(range(1000))

    def clock() -> float:
        events.append("clock")
        return next(ticks) * 1e-6

    monkeypatch.setattr(timing.time, "perf_counter", clock)
    timing.interleave({name: lambda name=name: events.append(name) for name in "ab"}, CPU, seconds=0.0)
    text = " ".join(events)
    assert text.count("a clock a clock") == text.count("b clock b clock") == 5  # rounds


def test_measurement_figures_by_hand() -> None:
    samples = {OURS: [2e-6, 4e-6, 3e-6], NATIVE: [8e-6, 6e-6, 7e-6], COPY: [1e-6, 2e-6, 2e-6], FRESH_COPY: [4e-6] * 3}
    found = timing.Measurement((2, 5, 4), "float32", "contiguous", Direction.BACKWARD, 7, 540, samples)
    assert found.copies(OURS) == 1.5 and timing.speedup(found) == pytest.approx(7 / 3)
    assert found.gigabytes_per_second(OURS) == pytest.approx(540 / 3e-6 / 1e9)
    assert found.gigabytes_per_second(COPY) == pytest.approx(2 * 40 * 4 / 2e-6 / 1e9)
    assert timing.mean_speedup([found, replace(found, samples=samples | {NATIVE: [3e-6] * 3})]) == pytest.approx(
        (7 / 3) ** 0.5
    )
    written = timing.figures(found)["peers"][OURS]  # type: ignore[index]
    assert written["copies_quartiles"] == (pytest.approx(1.75), pytest.approx(2.0))  # of 2, 2 and 1.5


@pytest.mark.parametrize("direction", Direction)
def test_measure_times_all_peers_and_changes_nothing(direction: Direction) -> None:
    case = small_case()
    before = case.private()
    found = timing.measure(case, "contiguous", direction, [Ours(), Native()], seconds=0.0)
    assert set(found.samples) == {OURS, NATIVE, COPY, FRESH_COPY}
    assert all(value > 0 for samples in found.samples.values() for value in samples)
    assert torch.equal(case.running_mean, before.running_mean) and torch.equal(case.input, before.input)


@pytest.mark.parametrize("rival", [peers.CompiledNative(), peers.OneDnn()], ids=lambda rival: rival.name)
def test_rivals_compute_batch_norm(rival: peers.Implementation) -> None:
    assert benchmark._validate(small_case(), "contiguous", [rival]) == {}


def test_a_rival_that_cannot_is_left_out_with_the_reason() -> None:
    (reason,) = benchmark._validate(small_case(torch.float16), "contiguous", [peers.OneDnn()]).values()
    assert "could not create a primitive descriptor" in reason


# Files


def test_json_of_dataclasses_and_of_what_json_has_no_number_for() -> None:
    assert json.loads(json_text.of({"a": [timing.Direction.FORWARD, (1, math.inf)]})) == {"a": ["forward", [1, None]]}
    step = analysis.summarise(
        trace_of([event("ProfilerStep#0", 0, 9, cat="user_annotation"), event("aten::relu", 1, 2)]).steps
    )
    content = json.loads(json_text.of(replace(step, step_ms=math.nan)))
    assert content["step_ms"] is None and content["groups"][0]["name"] == "activation"


def suite_row(native: float, kernels: list[str]) -> dict[str, Any]:
    seconds = {OURS: 2.0, NATIVE: native, COPY: 1.0}
    figures = {
        name: {"seconds": value, "gigabytes_per_second": 6 / value, "kernels": kernels if name == NATIVE else []}
        for name, value in seconds.items()
    }
    return {"direction": "forward", "dtype": "float32", "layout": "contiguous", "peers": figures}


def test_gpu_summary_names_native_by_its_kernels_and_keeps_what_is_there(tmp_path: Path) -> None:
    rows = [suite_row(8.0, ["cudnn::bn_fw"]), suite_row(2.0, ["cudnn::bn_fw"]), suite_row(1.0, ["batch_norm_welford"])]
    (found,) = gpu_summary.means(rows)
    assert found["times ours"] == pytest.approx({COPY: 0.5, "native (cuDNN)": 2.0, "native (ATen)": 0.5})
    assert found["of the copy's bandwidth"] == pytest.approx(0.5) and found["slower than a peer"] == 1

    (tmp_path / "parts.tsv").write_text("build\t0\t70\t170\ntests\t1\t9\t90\n")
    (tmp_path / "tests.log").write_text("1 failed | 3 passed\n\n")
    (tmp_path / "benchmark.json").write_text(json.dumps({"rows": rows}))
    (tmp_path / "benchmark_compiled.json").write_text('{"rows": [')  # cut short
    gpu_summary.main(tmp_path, tmp_path)
    content = json.loads((tmp_path / "summary.json").read_text())
    assert content["parts"][1]["last"] == ["1 failed | 3 passed"] and content["benchmarks"].keys() == {"benchmark"}
    assert "native (ATen) 0.50, native (cuDNN) 2.00" in (tmp_path / "summary.md").read_text()


# The commands


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``python -m profiling`` in a process of its own."""
    command = [sys.executable, "-m", "profiling", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare") / "report"
    done = run("compare", "--quick", "--threads", "1", "--output", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        f"report: {folder / 'index.html'}" in done.stdout and "(d) A training step, operator by operator" in done.stdout
    )
    return folder


@pytest.fixture(scope="module")
def found(report: Path) -> dict[str, Any]:
    content = json.loads((report / "figures.json").read_bytes())
    assert isinstance(content, dict)
    return content


def test_compare_covers_every_layer_shape_and_direction(found: dict[str, Any]) -> None:
    assert found["correct"] is True
    checked = {(f["case"], f["layout"], f["quantity"]) for f in found["errors"]}
    assert len(checked) == len(found["errors"]) == 53 * len(workloads.LAYOUTS) * len(correctness.QUANTITIES)
    assert all(f["largest_value"] > 0 and f["shares"][OURS] <= 1 for f in found["errors"])
    timed = {(tuple(t["shape"]), t["direction"]): t["layers"] for t in found["times"]}
    shapes = dict(workloads.resnet50_shapes(compare.QUICK.batch, compare.QUICK.image))
    assert timed == {(shape, direction): layers for shape, layers in shapes.items() for direction in Direction}


def test_compare_trains_both_ways_alike(found: dict[str, Any]) -> None:
    ours, native = found["training"]
    assert (ours["name"], native["name"]) == (OURS, NATIVE)
    assert len(ours["losses"]) == compare.QUICK.training_steps
    assert ours["losses"] == pytest.approx(native["losses"], abs=1e-3)
    assert ours["accuracy"] == pytest.approx(native["accuracy"], abs=0.02)


def test_compare_traces_say_what_the_report_says(report: Path, found: dict[str, Any]) -> None:
    """Calls and times of batch norm, summed anew from the raw events."""
    operators = {
        OURS: ("my_ops::batchnorm_forward", "my_ops::batchnorm_backward"),
        NATIVE: ("aten::native_batch_norm", "aten::native_batch_norm_backward"),
    }
    for recording in found["traces"]:
        events = json.loads((report / recording["trace"]).read_bytes())["traceEvents"]
        for other in operators[NATIVE if recording["name"] == OURS else OURS]:
            assert not any(e.get("name") == other for e in events), f"{other} in the trace of {recording['name']}"
        for name in operators[recording["name"]]:
            # Durations as they stand: a double that holds a time stamp of 10^12 microseconds ends at a nanosecond.
            spans = [
                (e["ts"], e["ts"] + e["dur"], e["dur"]) for e in events if e.get("name") == name and e.get("ph") == "X"
            ]
            outer = [s for s in spans if not any(o != s and o[0] <= s[0] and s[1] <= o[1] for o in spans)]
            (row,) = (o for o in recording["summary"]["operators"] if o["name"] == name)
            assert len(outer) == row["calls"] == 53
            assert row["total_ms"] == pytest.approx(sum(duration for *_, duration in outer) / 1e3)
        summary = recording["summary"]
        assert sum(group["self_ms"] for group in summary["groups"]) == pytest.approx(summary["covered_ms"])
        assert summary["covered_ms"] <= summary["step_ms"]
        assert sum(call["calls"] for call in summary["batch_norms"]) == 106


def test_report_is_one_page_with_all_of_it(report: Path, found: dict[str, Any]) -> None:
    page = (report / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script [^>]*src|link|img|iframe)\b|@import|url\(http", page), "the page loads something"
    for case in {error["case"] for error in found["errors"]}:
        assert f">{case}</td>" in page
    for shape in {tuple(time["shape"]) for time in found["times"]}:
        assert f">{'x'.join(map(str, shape))}</td>" in page
    for recording in found["traces"]:
        assert f'href="{recording["trace"]}"' in page and (report / recording["trace"]).is_file()
    assert page.count("<svg") == 4 and "currentColor" in page and plots.INK not in page
    assert found["machine"]["cpu"] in page and "as rounding allows" in page
    assert (report / "overview.png").read_bytes().startswith(b"\x89PNG")
    assert list(report.parent.iterdir()) == [report], "something unfinished is left beside the report"


def test_compare_refuses_a_folder_that_exists(tmp_path: Path) -> None:
    done = run("compare", "--quick", "--output", str(tmp_path))
    said = " ".join(re.sub(r"[│╭╮╰╯─]", " ", done.stderr).split())
    assert done.returncode == 2 and "exists already" in said and not any(tmp_path.iterdir())


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, restore_threads: None) -> Callable[..., Any]:
    """A command inside this process, which keeps its own allocator, on one thread."""
    monkeypatch.setattr(allocator, "run_under", lambda wanted: None)
    return lambda *arguments: CliRunner().invoke(cli.app, [*arguments, "--threads", "1"])


@pytest.fixture
def wrong_results(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Ours.backward

    def backward(self: Ours, case: Case) -> Callable[[], Any]:
        call = right(self, case)
        return lambda: [gradient * (1 + 1e-4) for gradient in call()]

    monkeypatch.setattr(Ours, "backward", backward)


@pytest.mark.usefixtures("wrong_results")
def test_compare_fails_on_wrong_results(
    invoke: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workloads, "resnet50", workloads.small_resnet)
    done = invoke("compare", "--quick", "--output", str(tmp_path / "report"))
    assert done.exit_code == 1 and "FAILED" in done.output
    assert "further from float64 than rounding explains" in (tmp_path / "report" / "index.html").read_text()
    found = json.loads((tmp_path / "report" / "figures.json").read_bytes())
    wrong = {f["quantity"] for f in found["errors"] if f["shares"][OURS] > 1}
    assert found["correct"] is False and wrong == {"grad_input", "grad_gamma", "grad_beta"}


def test_benchmark_writes_every_row(invoke: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "new" / "figures.json"
    shapes = ("--shapes", "2x3x5x5", "--shapes", "8x4")
    done = invoke("benchmark", *shapes, "--seconds", "0", "--onednn", "--output", str(path))
    assert done.exit_code == 0, done.output
    found = json.loads(path.read_bytes())
    rows = {(tuple(r["shape"]), r["dtype"], r["layout"], r["direction"]): r for r in found["rows"]}
    images = [((2, 3, 5, 5), dtype, layout) for dtype in benchmark.DTYPES for layout in workloads.LAYOUTS]
    rectangles = [((8, 4), dtype, "contiguous") for dtype in benchmark.DTYPES]
    assert rows.keys() == {(*key, direction) for key in images + rectangles for direction in Direction}
    row = rows[(2, 3, 5, 5), "float32", "contiguous", "forward"]
    assert set(row["peers"]) == {OURS, NATIVE, COPY, FRESH_COPY, "oneDNN"} and row["bytes"] == 2 * 150 * 4 + 8 * 12
    assert rows[(8, 4), "float32", "contiguous", "forward"]["left_out"].keys() == {"oneDNN"}
    assert {"cpu", "torch", "date", "commit", "allocator"} <= found["machine"].keys()
    assert sorted(p.name for p in path.parent.iterdir()) == ["figures.json", "figures.png"]
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_picture_of_a_benchmark_shows_every_median() -> None:
    tasks = benchmark.select(["2x3x5x5", "8x4"], ["float32", "bfloat16"], None, 2)
    suite = benchmark.run(tasks, list(Direction), [Ours(), Native()], 0.0, CPU, Console(quiet=True), lambda suite: None)
    figure = suite_figures.of(suite)
    assert [axes.get_title(loc="left") for axes in figure.axes[:3]] == [f"{each.value}, float32" for each in Direction]
    drawn = sorted(float(line.get_xdata()[0]) for axes in figure.axes for line in axes.lines[1:])  # but the limit
    assert drawn == sorted(row.measurement.copies(name) for row in suite.rows for name in (OURS, NATIVE))


@pytest.mark.usefixtures("wrong_results")
def test_benchmark_fails_on_wrong_results_and_times_them_not(invoke: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    options = ("--shapes", "2x3x5x5", "--dtype", "float32", "--layout", "contiguous", "--seconds", "0")
    done = invoke("benchmark", *options, "--output", str(path))
    found = json.loads(path.read_bytes())
    assert done.exit_code == 1 and found["rows"] == []
    assert found["failures"] == ["2x3x5x5 float32 contiguous: wrong grad_input, grad_gamma, grad_beta"]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        (
            "--shapes",
            "huge",
            "expected shapes resnet50, mobilenetv2, unet3d, matrices, tiny or like 8x64x56x56, got huge",
        ),
        ("--dtype", "int8", "expected dtype float32, bfloat16, float16, float64, got int8"),
        ("--layout", "nhwc", "expected layout contiguous, channels_last, got nhwc"),
        ("--device", "tpu", "expected device auto, cpu or cuda, got tpu"),
        ("--direction", "sideways", "expected direction forward, backward, inference, got sideways"),
    ],
)
def test_benchmark_names_a_bad_option(invoke: Callable[..., Any], option: str, value: str, message: str) -> None:
    done = invoke("benchmark", option, value)
    assert done.exit_code == 2
    assert message in " ".join(re.sub(r"[│╭╮╰╯─]", " ", done.output).split())


@pytest.mark.parametrize("wanted", Allocator)
def test_run_under_restarts_the_same_command_under_the_setting(wanted: Allocator) -> None:
    code = (
        "import os, sys; from profiling.measure import allocator; "
        f"allocator.run_under(allocator.Allocator({wanted.value!r})); "
        "print(sys.argv[1:], os.environ.get('MALLOC_MMAP_MAX_'), allocator.describe())"
    )
    environment = os.environ | {"MALLOC_MMAP_MAX_": "7"}
    command = [sys.executable, "-c", code, "an argument"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if wanted is Allocator.KEEP:
        assert done.stdout.startswith("['an argument'] 0 glibc with MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=")
    else:
        assert done.stdout.startswith("['an argument'] None glibc's default")
