"""What each process of test_distributed.py runs, with MODE, FOLDER and ENV as globals."""

import os
import signal
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fr_edge.distill import checkpoint
from fr_edge.distill.checkpoint import restore_checkpoint, save_checkpoint
from fr_edge.distill.distributed import Ranks, join_ranks
from fr_edge.distill.losses.adadistill import AdaDistill
from fr_edge.distill.losses.combined_loss import BankLoss
from fr_edge.distill.recipe import read_recipe
from fr_edge.distill.student import average_statistics, device_batch
from fr_edge.distill.student_verification import verify_student
from fr_edge.distill.train import distill_student
from fr_edge.distill.train_step import (
    TrainState,
    embed_pixels,
    enable_fake_quant,
    start_training,
    student_weights,
    train_step,
)
from fr_edge.errors import DataError
from fr_edge.faces.pairs import Pairs
from fr_edge.faces.sources import open_faces
from fr_edge.interruption import Interrupted

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
    head = run.loss.terms["adadistill"]
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
    torch.save(
        run.loss.class_shards()["adadistill"][2]["raw"],
        folder / f"again-{ranks.rank}-of-{ranks.size}.pt",
    )


LOSSES = ("adadistill", "arcface", "cosine", "relational", "bank")


def new_sum(ranks: Ranks, *changes: str) -> TrainState:
    """A training with a term of each kind, and a student of another size than its teacher."""
    recipe = read_recipe("tiny", [f"losses={','.join(LOSSES)}", "amp=off", "clip=0", *changes])
    bank = torch.nn.functional.normalize(
        torch.randn(50, DIM, generator=torch.Generator().manual_seed(1))
    )
    state = start_training(recipe, CLASSES, 16, ranks, compared=DIM)
    term = state.loss.terms["bank"]
    assert isinstance(term, BankLoss)
    term.load_bank(bank)
    return state


def gradients(ranks: Ranks, folder: Path) -> None:
    """A step's gradients, and the same by plain backward passes, whose mean over the ranks it is."""
    draw = np.random.default_rng(ranks.rank)
    pixels = draw.integers(0, 256, (4, 112, 112, 3), np.uint8)
    labels, teacher = np.arange(4), draw.normal(size=(4, DIM)).astype(np.float32)
    state, plain = (new_sum(ranks, "qat=int8", "epochs=3") for _ in range(2))
    given = device_batch(pixels, labels, teacher, CLASSES, ranks.device)
    enable_fake_quant(state, given.pixels)
    enable_fake_quant(plain, given.pixels)
    train_step(state, given, 0.1)
    plain.student.train()
    embeddings = embed_pixels(plain, plain.student, given.pixels)
    plain.loss(embeddings, given.teacher, given.labels).backward()
    for key, parameter in state.student.named_parameters():
        expected = dict(plain.student.named_parameters())[key].grad
        assert parameter.grad is not None, key
        torch.testing.assert_close(
            parameter.grad, ranks.sum(expected.clone()) / ranks.size, rtol=1e-4, atol=1e-6
        )
    # A second step in two parts: gradients are exchanged once, and weights stay equal.
    state.recipe = replace(state.recipe, accumulate=2)
    train_step(state, given, 0.1)
    weights = torch.cat([p.detach().flatten() for p in state.student.parameters()])
    assert torch.equal(weights, ranks.gather(weights[None])[0])
    assert not any(name.startswith("module.") for name in student_weights(state))
    (folder / f"passed-{ranks.rank}").touch()


def same_run(ranks: Ranks, folder: Path, optimizer: str) -> None:
    """Three steps with BatchNorm over eight images, whatever the number of processes."""
    state = new_sum(ranks, "norm_batch=8", f"optimizer={optimizer}")
    start = {name: value.clone() for name, value in student_weights(state).items()}
    part, losses, moved = slice(*ranks.shard(16)), [], {}
    for step in range(STEPS):
        draw = np.random.default_rng(step)
        pixels = draw.integers(0, 256, (16, 112, 112, 3), np.uint8)
        labels = draw.integers(0, CLASSES, 16)
        teacher = draw.normal(size=(16, DIM)).astype(np.float32)
        given = pixels[part], labels[part], teacher[part], CLASSES, ranks.device
        means = train_step(state, device_batch(*given), 1e-3)
        losses.append(means["loss"])
        if step == 0:
            average_statistics(state.network, ranks)
            moved = {n: value - start[n] for n, value in student_weights(state).items()}
    # Seven faces: the ranks have different shares of them.
    faces = open_faces("synthetic:4x2@1").subset(range(7))
    pairs = Pairs(faces, np.arange(6) % 2, np.arange(6), np.arange(1, 7), np.arange(6) % 2 == 0)
    figures = verify_student(state, {"a": pairs, "b": pairs})
    assert figures is not None
    verified = {f"figure {name}": torch.tensor(value) for name, value in figures.items()}
    torch.save(
        {"losses": torch.tensor(losses), **moved, **verified}, folder / f"run-{ranks.size}.pt"
    )


def statistics(ranks: Ranks, folder: Path) -> None:
    """Running statistics of different images, and those of averaged weights, without sets."""
    state = new_sum(ranks, "ema=0.9")
    draw = np.random.default_rng(ranks.rank)
    for _ in range(2):
        pixels = draw.integers(0, 64 + 128 * ranks.rank, (4, 112, 112, 3), np.uint8)
        teacher = draw.normal(size=(4, DIM)).astype(np.float32)
        given = device_batch(pixels, np.arange(4), teacher, CLASSES, ranks.device)
        train_step(state, given, 1e-3)
    names = [name for name, value in state.network.named_buffers() if value.is_floating_point()]
    own = [state.network.state_dict(), state.averaged]
    before = [torch.cat([values[name].flatten() for name in names]) for values in own]
    assert verify_student(state, {}) is None
    own = [state.network.state_dict(), state.averaged]
    for earlier, values in zip(before, own, strict=True):
        every = ranks.gather(earlier[None])
        assert not torch.equal(every[0], every[1])
        later = torch.cat([values[name].flatten() for name in names])
        torch.testing.assert_close(later, every.mean(0))
    (folder / f"passed-{ranks.rank}").touch()


def stopped(folder: Path) -> None:
    """A training whose first rank alone gets a signal; its continuation where `again` is."""
    faces = open_faces("synthetic:10x5@3")
    recipe = read_recipe("tiny", ["losses=arcface", "batch=8", "epochs=1", "verify_identities=4"])

    def track(items: Iterable[Any], label: str, total: int) -> Iterable[Any]:
        for number, item in enumerate(items):
            if label == "training" and number == 0 and not (folder / "again").exists():
                os.kill(os.getpid(), signal.SIGTERM)
            yield item

    rank = os.environ["RANK"]
    apart = rank == "1" and (folder / "elsewhere").exists()
    if (folder / "elsewhere").exists():
        checkpoint._NFS_S = 0.0
    try:
        distill_student(recipe, faces, folder / ("out-1" if apart else "out"), track=track)
    except Interrupted as stop:
        (folder / f"kept-{rank}").write_text(stop.kept)
        sys.exit(stop.exit_code)
    except DataError as error:
        (folder / f"error-{rank}").write_text(error.message)
        sys.exit(error.exit_code)


def main(mode: str, folder: Path) -> None:
    torch.set_num_threads(1)
    if mode == "stop":
        stopped(folder)
        return
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
        {
            "head": head_steps,
            "reload": reload_centres,
            "gradients": gradients,
            "statistics": statistics,
            "sgd": partial(same_run, optimizer="sgd"),
            "muon": partial(same_run, optimizer="muon"),
        }[mode](ranks, folder)


if __name__ == "__main__":
    os.environ.update(globals()["ENV"])
    main(globals()["MODE"], globals()["FOLDER"])
