"""What each process of test_distributed.py runs, with MODE, FOLDER and ENV as globals."""

import os
import sys
from pathlib import Path

import torch

from fr_edge.distill.adadistill import AdaDistill
from fr_edge.distill.checkpoint import restore_checkpoint, save_checkpoint
from fr_edge.distill.distributed import Ranks, join_ranks
from fr_edge.distill.recipe import read_recipe
from fr_edge.distill.train import distill_student
from fr_edge.distill.train_step import TrainState, start_training
from fr_edge.errors import DataError
from fr_edge.faces.sources import open_faces

CLASSES, DIM, BATCH, STEPS = 37, 24, 16, 3


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The whole batch of a step: some people twice, one image of nobody."""
    draw = torch.Generator().manual_seed(step)
    teacher = torch.randn(BATCH, DIM, generator=draw)
    student = teacher + torch.randn(BATCH, DIM, generator=draw)
    labels = torch.randint(0, CLASSES, (BATCH,), generator=draw)
    labels[1], labels[2] = labels[0], -1
    return student, teacher, labels


def new_run(ranks: Ranks) -> TrainState:
    return start_training(read_recipe("tiny"), CLASSES, DIM, ranks)


def head_steps(ranks: Ranks, folder: Path) -> None:
    run = new_run(ranks)
    head = run.head
    assert isinstance(head, AdaDistill)
    part, losses, grads = slice(*ranks.shard(BATCH)), [], []
    for step in range(STEPS):
        student, teacher, labels = (x[part] for x in batch(step))
        student = student.clone().requires_grad_()
        loss = head(student, teacher, labels)
        loss.backward()
        losses.append(loss.detach())
        grads.append(student.grad)
    run.step = STEPS
    save_checkpoint(folder / "checkpoint", run, {})
    result = {"losses": torch.stack(losses), "grads": torch.stack(grads), "raw": head.centres()}
    torch.save({**result, "alpha": head.stats["alpha"]}, folder / f"rank-{ranks.rank}.pt")


def reload_centres(ranks: Ranks, folder: Path) -> None:
    run = new_run(ranks)
    assert restore_checkpoint(folder / "checkpoint", run, {})
    torch.save(run.head.state_dict()["raw"], folder / f"again-{ranks.rank}-of-{ranks.size}.pt")


def main(mode: str, folder: Path) -> None:
    torch.set_num_threads(1)
    if mode in ("train", "differ"):
        other = mode == "differ" and os.environ["RANK"] == "1"
        faces = open_faces("synthetic:10x5@4" if other else "synthetic:10x5@3")
        recipe = read_recipe("tiny", ["batch=8", "epochs=1", "verify_identities=4"])
        try:
            distill_student(recipe, faces, folder / "out", teacher=folder / "teacher.bundle")
        except DataError as error:
            (folder / f"error-{os.environ['RANK']}").write_text(error.message)
            sys.exit(error.exit_code)
        return
    with join_ranks() as ranks:
        (head_steps if mode == "head" else reload_centres)(ranks, folder)


if __name__ == "__main__":
    os.environ.update(globals()["ENV"])
    main(globals()["MODE"], globals()["FOLDER"])
