"""Trains a small ResNet on handwritten digits, on several processes that share each batch, and shows that the losses
are those of one process with the whole batch.

    torchrun --nproc-per-node 2 examples/train_ddp.py

Any number of processes will do, also one that does not divide the batch; without torchrun it is one process. Needs
scikit-learn, which brings the 1,797 images of 8x8.
"""

import argparse
import copy
import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import my_ops


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut; the first one may halve the image."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.branch(x) + self.shortcut(x))


def small_resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Block(8, 16, stride=1),
        Block(16, 32, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


class Trainer:
    """A model and its optimizer; `share` of `shares` parts of each batch is its own."""

    def __init__(self, model: nn.Module, share: int = 0, shares: int = 1) -> None:
        self.model = model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        self.share, self.shares = share, shares

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Returns this part's share of the mean loss of the batch."""
        mine = torch.arange(len(images)).tensor_split(self.shares)[self.share]
        loss = cross_entropy(self.model(images[mine]), labels[mine], reduction="sum") / len(images)
        self.optimizer.zero_grad()
        (loss * self.shares).backward()  # DistributedDataParallel averages the gradients over the processes
        self.optimizer.step()
        return loss.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=50, help="images of all processes together")
    options = parser.parse_args()

    alone_here = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group("gloo", **alone_here)
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.from_numpy(digits.images / 16).unsqueeze(1)
    labels = torch.from_numpy(digits.target)

    model = small_resnet().double()
    alone = Trainer(copy.deepcopy(model))
    # All ranks compute the same running statistics, bit by bit: nothing to broadcast.
    model = DistributedDataParallel(my_ops.convert_sync_batchnorm(model), broadcast_buffers=False)
    together = Trainer(model, rank, world)

    largest = 0.0
    for step in range(options.steps):
        batch = torch.randperm(len(images))[: options.batch]
        loss = together.step(images[batch], labels[batch])
        dist.all_reduce(loss)
        if rank == 0:
            wanted = alone.step(images[batch], labels[batch])
            largest = max(largest, abs(float(loss - wanted)))
            print(f"step {step:3d}   loss of {world} processes {loss:.12f}   of one {wanted:.12f}")
    if rank == 0:
        with torch.no_grad():
            accuracy = (model.module.eval()(images).argmax(1) == labels).double().mean()
        print(f"accuracy {accuracy:.3f}; largest difference of the losses {largest:.2e}")
    dist.barrier()  # time for Gloo's threads to let go of the last tensor: after the interpreter's end they would abort
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
