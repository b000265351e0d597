"""Writes into a folder what the programs beside this file read. `python export_models.py --help` lists the files.

Needs the package my_ops, and scikit-learn for its digits.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import my_ops
from resnet import ResNet, resnet50, small_resnet

FILES = """
scripted.pt  traced.pt  frozen.pt   a small ResNet with my_ops as TorchScript, made in these three ways
native.pt                           the same network and weights with torch's batch norm, scripted
resnet.pt2                          the same with my_ops, compiled by AOTInductor, for any number and size of images
images.pt                           a list of inputs of several shapes, for all of these
digits.pt                           images, labels and first weights for `train`
with --resnet50 DIRECTORY also gets resnet50.pt, resnet50_native.pt, resnet50_folded.pt and batch_1.pt, _8, _32
"""


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1797 handwritten digits: [N, 1, 8, 8] of zero mean and unit variance, and their labels."""
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1)
    return (images - images.mean()) / images.std(), torch.from_numpy(bunch.target)


def with_statistics(model: ResNet, images: Tensor) -> ResNet:
    """The model in eval mode, with the running statistics of these images."""
    with torch.no_grad():
        for _ in range(3):
            model(images)
    return model.eval()


def mixed_shapes(images: Tensor) -> list[Tensor]:
    """Batches of 1 to 8 digits, as they are and scaled to sizes that are no multiple of a vector."""
    shapes = [(1, 8), (2, 8), (8, 8), (1, 11), (4, 11), (3, 16)]
    return [nn.functional.interpolate(images[:count], size=(size, size)) for count, size in shapes]


def script(model: nn.Module) -> torch.jit.ScriptModule:
    scripted: torch.jit.ScriptModule = torch.jit.script(model)
    return scripted


def write_small(folder: Path) -> None:
    images, _ = digits()
    torch.manual_seed(0)
    model = with_statistics(small_resnet(), images[:256])
    inputs = mixed_shapes(images)
    torch.save(inputs, folder / "images.pt")
    script(model).save(folder / "native.pt")

    my_ops.convert_batchnorm(model)
    script(model).save(folder / "scripted.pt")
    torch.jit.trace(model, inputs[1]).save(folder / "traced.pt")
    torch.jit.freeze(script(model)).save(folder / "frozen.pt")
    sizes = {"x": dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)}
    program = torch.export.export(model, (inputs[1],), dynamic_shapes=sizes)
    torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "resnet.pt2"))


def digits_network() -> nn.Sequential:
    """What train.cpp builds: the same layers under the same names."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        my_ops.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, padding=1, bias=False),
        my_ops.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def write_digits(folder: Path) -> None:
    images, labels = digits()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    weights = {name: value for name, value in digits_network().state_dict().items() if value.is_floating_point()}
    torch.save({"images": images[order], "labels": labels[order], **weights}, folder / "digits.pt")


def write_resnet50(folder: Path) -> None:
    torch.manual_seed(0)
    photographs = torch.randn(32, 3, 224, 224)
    model = with_statistics(resnet50(), photographs[:8])
    for count in (1, 8, 32):
        torch.save([photographs[:count].clone()], folder / f"batch_{count}.pt")
    script(model).save(folder / "resnet50_native.pt")
    torch.jit.freeze(script(model)).save(folder / "resnet50_folded.pt")
    script(my_ops.convert_batchnorm(model)).save(folder / "resnet50.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=FILES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--resnet50", action="store_true", help="the models and inputs of the throughput figures")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.resnet50:
        write_resnet50(options.folder)
    else:
        write_small(options.folder)
        write_digits(options.folder)


if __name__ == "__main__":
    main()
