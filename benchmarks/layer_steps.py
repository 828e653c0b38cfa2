"""Where a MobileFaceNet's gradient lies, and what a step of each optimizer costs.

    OMP_NUM_THREADS=1 python benchmarks/layer_steps.py [--network mobilefacenet-0.5]

For each kind of layer, at the first step of the bank's loss on 64 drawn faces and random targets: its
share of the square of the gradient's length, and the length of a layer's gradient divided by that of its
weights, smallest and largest. Then the CPU time of a step of SGD and of Muon.
"""

import argparse
import time

import numpy as np
import torch
from torch import nn

from fr_edge.distill.distributed import Ranks
from fr_edge.distill.losses.combined_loss import BankLoss
from fr_edge.distill.recipe import read_recipe
from fr_edge.distill.train_step import TrainState, start_training
from fr_edge.faces.sources import open_faces

DIM, STEPS = 128, 20
STEM = "features.0.0"  # the first convolution, of 3x3 pixels


def kind(name: str, layer: nn.Module) -> str:
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return "depthwise"
    return "first 3x3" if name == STEM else "1x1 and linear"


def print_gradient(state: TrainState) -> None:
    draw = torch.Generator().manual_seed(0)
    targets = nn.functional.normalize(torch.randn(2000, DIM, generator=draw), dim=1)
    pixels = np.concatenate(list(open_faces("synthetic:64x1@3").batches(64)))
    term = BankLoss(targets, state.recipe.bank_s)
    loss = term(state.student(torch.from_numpy(pixels)), targets[:64], torch.arange(64))
    (20 * loss).backward()
    rows: dict[str, list[tuple[float, float]]] = {}
    for name, layer in state.network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.weight.grad is not None:
            lengths = float(layer.weight.grad.norm()), float(layer.weight.detach().norm())
            rows.setdefault(kind(name, layer), []).append(lengths)
    squares = [
        float(p.grad.square().sum()) for p in state.student.parameters() if p.grad is not None
    ]
    print(f"length of the gradient: {sum(squares) ** 0.5:.0f}")
    for group, lengths in rows.items():
        share = sum(gradient**2 for gradient, _ in lengths) / sum(squares)
        relative = sorted(gradient / weight for gradient, weight in lengths)
        print(
            f"{group}: {100 * share:.0f} %, {relative[0]:.1f} to {relative[-1]:.1f} of its weights"
        )


def print_step(state: TrainState) -> None:
    for parameter in state.student.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    start = time.process_time()
    for _ in range(STEPS):
        state.optimizer.step()
    took = (time.process_time() - start) / STEPS
    print(f"{state.recipe.optimizer}: {1e3 * took:.1f} ms of CPU time a step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="mobilefacenet-0.5")
    network = parser.parse_args().network
    for optimizer in ("sgd", "muon"):
        changes = [f"network={network}", f"optimizer={optimizer}", "losses=adadistill"]
        state = start_training(read_recipe("small-real", changes), 100, DIM, Ranks())
        if optimizer == "sgd":
            print_gradient(state)
        print_step(state)


if __name__ == "__main__":
    main()
