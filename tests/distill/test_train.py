"""Trainings from end to end, and what happens when they are killed or fed badly."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fr_edge.bundle.bundle import open_bundle
from fr_edge.bundle.manifest import Bundle
from fr_edge.distill.checkpoint import save_checkpoint
from fr_edge.distill.distributed import Ranks
from fr_edge.distill.networks import build_network
from fr_edge.distill.recipe import Recipe
from fr_edge.distill.student_verification import verify_student
from fr_edge.distill.train import DistillResult, distill_student
from fr_edge.distill.train_step import TrainState, learning_rate, train_step
from fr_edge.distill.training_report import check_norm_batch
from fr_edge.distill.weights import load_network
from fr_edge.documents import to_builtins
from fr_edge.errors import DataError, FacesError, GateFailed, ModelError, UsageError
from fr_edge.faces.sources import Faces
from fr_edge.interruption import Interrupted


def train(recipe: Recipe, faces: Faces, out: Path, **options: Any) -> Bundle:
    return distill_student(recipe, faces, out, **options).bundle


def report(bundle: Bundle) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(
        bundle.file("reports/training.json").read_text(encoding="utf-8")
    )
    return document


def same_weights(first: Bundle, second: Bundle) -> bool:
    a, b = (load_network(x.file("model.pt"))[0].state_dict() for x in (first, second))
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def plain(
    recipe: Recipe, faces: Faces, teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> DistillResult:
    """The recipe's training, in one piece; its bundle is not written to."""
    out = tmp_path_factory.mktemp("plain") / "out"
    return distill_student(recipe, faces, out, teacher=teacher)


def test_a_student_is_a_bundle_with_its_story(recipe: Recipe, plain: DistillResult) -> None:
    bundle = plain.bundle
    network, name, dim = load_network(bundle.file("model.pt"))
    assert (name, dim, bundle.embedding_dim) == ("mobilefacenet-0.25-affine", 32, 32)
    assert network(torch.zeros(2, 3, 112, 112)).shape == (2, 32)
    assert bundle.history[-1]["options"]["recipe"] == to_builtins(recipe)
    document = report(bundle)
    assert document == to_builtins(plain.report)
    assert [point["step"] for point in document["curve"]] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "lr", "alpha", "lambda", "cosine"} <= set(document["curve"][0])
    assert [v["step"] for v in document["verification"]] == [0, 3, 6]
    assert document["accuracy"] == document["verification"][-1]["accuracy"]
    assert document["teacher_accuracy"] is not None
    assert not (bundle.root / "checkpoint").exists()
    assert set(bundle.files) == {"model.pt", "reports/training.json"}


def test_a_student_learns_what_its_teacher_says(
    recipe: Recipe, faces: Faces, teacher: Path, tmp_path: Path
) -> None:
    long = replace(recipe, epochs=5, lr=0.1, verify_identities=0)
    curve = report(train(long, faces, tmp_path / "out", teacher=teacher))["curve"]
    assert curve[-1]["alpha"] > curve[0]["alpha"] + 0.05
    assert curve[-1]["loss"] < curve[0]["loss"] - 2


def test_the_seed_decides_and_the_memory_does_not(
    recipe: Recipe, faces: Faces, teacher: Path, plain: DistillResult, tmp_path: Path
) -> None:
    second = train(
        replace(recipe, memory_mb=0, workers=1), faces, tmp_path / "other", teacher=teacher
    )
    seeded = train(replace(recipe, seed=1), faces, tmp_path / "seeded", teacher=teacher)
    assert same_weights(plain.bundle, second)
    assert not same_weights(plain.bundle, seeded)


@pytest.mark.parametrize(
    "changes",
    [
        # In fewer steps, or smaller batches, chance and rounding decide in which step the loss is lower.
        {"losses": ("centres", "relational:100"), "batch": 24, "epochs": 15},
        {"losses": ("cosine:20", "bank:5")},
        {"losses": ("adaface",), "optimizer": "adamw", "lr": 1e-3, "sample": 0.5},
        {"losses": ("elasticface",), "shift": 4, "light": 0.2, "batch": 24, "epochs": 15},
        {"losses": ("adadistill", "bank"), "optimizer": "muon", "lr": 0.01, "weight_decay": 0.1},
        {"accumulate": 2, "ema": 0.9, "margin": "cosface", "m": 0.35, "amp": "bf16"},
    ],
    ids=lambda c: "-".join(c.get("losses", ["parts"])),
)
def test_every_method_trains(
    changes: dict[str, Any], recipe: Recipe, faces: Faces, teacher: Path, tmp_path: Path
) -> None:
    changed = replace(recipe, **{"epochs": 3, "lr": 0.05, **changes})
    bundle = train(changed, faces, tmp_path / "out", teacher=teacher)
    curve = report(bundle)["curve"]
    assert curve[-1]["loss"] < curve[0]["loss"]


def test_what_the_student_sees_changes_no_target(
    recipe: Recipe, faces: Faces, teacher: Path, tmp_path: Path
) -> None:
    """A training with augmentation reads the cache that one without has filled."""
    cache = str(tmp_path / "cache")
    plain = train(replace(recipe, cache=cache), faces, tmp_path / "one", teacher=teacher)
    before = (tmp_path / "cache" / "teacher.npy").read_bytes()
    changed = replace(recipe, cache=cache, shift=3, occlusion=0.2)
    other = train(changed, faces, tmp_path / "two", teacher=teacher)
    assert (tmp_path / "cache" / "teacher.npy").read_bytes() == before
    assert not same_weights(plain, other)


@pytest.mark.parametrize("dim", [16, 48])
def test_a_student_of_another_size_than_its_teacher(
    dim: int, recipe: Recipe, faces: Faces, teacher: Path, tmp_path: Path
) -> None:
    """A smaller one learns 16 principal components of the teacher's 32 numbers, a larger one through
    a layer that is thrown away."""
    changed = replace(recipe, dim=dim, losses=("adadistill", "cosine:20"), lr=0.05, epochs=3)
    result = distill_student(changed, faces, tmp_path / "out", teacher=teacher)
    network, _, size = load_network(result.bundle.file("model.pt"))
    assert (size, result.bundle.embedding_dim) == (dim, dim)
    assert network(torch.zeros(2, 3, 112, 112)).shape == (2, dim)
    assert result.report.curve[-1]["cosine"] > result.report.curve[0]["cosine"] + 0.05


class _Killed(BaseException):
    pass


def _stops_at(step: int) -> Any:
    def track(items: Iterable[Any], label: str, total: int) -> Iterable[Any]:
        for number, item in enumerate(items):
            if label == "training" and number == step:
                raise _Killed
            yield item

    return track


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"losses": ("elasticface",), "ema": 0.9, "sample": 0.5},
        {"workers": 1, "losses": ("adadistill", "bank"), "dim": 48},
        {"optimizer": "muon", "lr": 0.02, "losses": ("arcface",), "shift": 3},
    ],
)
def test_a_stopped_run_goes_on_to_the_same_bits(
    changes: dict[str, Any],
    recipe: Recipe,
    faces: Faces,
    teacher: Path,
    plain: DistillResult,
    tmp_path: Path,
) -> None:
    recipe, whole = replace(recipe, **changes), plain.bundle
    if changes:
        whole = train(recipe, faces, tmp_path / "whole", teacher=teacher)
    out = tmp_path / "stopped"
    for step in (2, 1, 0):
        with pytest.raises(_Killed):
            distill_student(recipe, faces, out, teacher=teacher, track=_stops_at(step))
    resumed = train(recipe, faces, out, teacher=teacher)
    assert same_weights(whole, resumed)
    assert report(whole)["curve"] == report(resumed)["curve"]
    assert report(whole)["verification"] == report(resumed)["verification"]


_KILLS_ITSELF = """
import os, signal, sys
from fr_edge.distill.recipe import read_recipe
from fr_edge.distill.train import distill_student
from fr_edge.faces.sources import open_faces

def track(items, label, total):
    for number, item in enumerate(items):
        if label == "training" and number == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        yield item

recipe = read_recipe("tiny", sys.argv[3:])
distill_student(recipe, open_faces("synthetic:10x5@3"), sys.argv[1], teacher=sys.argv[2], track=track)
"""


def test_kill_9_loses_nothing(
    recipe: Recipe, faces: Faces, teacher: Path, plain: DistillResult, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    changes = ["batch=8", "epochs=2", "verify_identities=4", "lr=0.02", "checkpoint_s=0"]
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [sys.executable, "-c", _KILLS_ITSELF, str(out), str(teacher), *changes], env=env
    )
    assert done.returncode == -signal.SIGKILL
    assert (out / "checkpoint" / "last.pt").exists()
    resumed = train(recipe, faces, out, teacher=teacher)
    assert same_weights(plain.bundle, resumed)


_FAILS = """
import sys
from fr_edge.distill import train
from fr_edge.distill.recipe import read_recipe
from fr_edge.faces.sources import open_faces

def fails(*_):
    raise RuntimeError("CUDA error: an illegal memory access")

train.train_step = fails
recipe = read_recipe("tiny", ["batch=8", "verify_identities=4", "workers=2"])
train.distill_student(recipe, open_faces("synthetic:10x5@3"), sys.argv[1], teacher=sys.argv[2])
"""


def test_a_process_that_fails_ends_though_its_workers_take_no_signal(
    teacher: Path, tmp_path: Path
) -> None:
    """Else torchrun would not see it, and the other ranks would wait."""
    command = [sys.executable, "-c", _FAILS, str(tmp_path / "out"), str(teacher)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("RuntimeError: CUDA error: an illegal memory access")


def test_a_signal_before_a_verification_does_not_wait_for_it(
    recipe: Recipe, faces: Faces, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(recipe, checkpoint_s=1e6, verify_every=1 / 3)  # after every step
    whole = train(recipe, faces, tmp_path / "whole", teacher=teacher)
    out, verified = tmp_path / "out", []
    verify = verify_student

    def counted(state: TrainState, sets: Any) -> Any:
        verified.append(state.step)
        return verify(state, sets)

    monkeypatch.setattr("fr_edge.distill.train.verify_student", counted)
    with pytest.raises(Interrupted):
        distill_student(recipe, faces, out, teacher=teacher, track=_signalled(1, signal.SIGTERM))
    assert verified == [0, 1]
    resumed = distill_student(recipe, faces, out, teacher=teacher)
    assert verified == [0, 1, 2, 3, 4, 5, 6]
    assert same_weights(whole, resumed.bundle)
    assert report(whole)["verification"] == report(resumed.bundle)["verification"]


def _signalled(step: int, number: int) -> Any:
    def track(items: Iterable[Any], label: str, total: int) -> Iterable[Any]:
        for count, item in enumerate(items):
            if label == "training" and count == step:
                os.kill(os.getpid(), number)
            yield item

    return track


def test_a_signal_keeps_the_training_and_a_finished_one_is_not_repeated(
    recipe: Recipe, faces: Faces, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two points of the curve, long before a checkpoint is due by the clock."""
    monkeypatch.setattr("fr_edge.distill.train._CURVE_POINTS", 2)
    recipe = replace(recipe, checkpoint_s=1e6)
    whole = train(recipe, faces, tmp_path / "whole", teacher=teacher)
    out = tmp_path / "out"
    for step, number in ((1, signal.SIGTERM), (2, signal.SIGINT)):
        with pytest.raises(Interrupted) as caught:
            distill_student(recipe, faces, out, teacher=teacher, track=_signalled(step, number))
        assert caught.value.number == number
    kept = "the training is kept up to step 5 of 6"
    assert caught.value.kept == f"{kept}; the last checkpoint is in {out / 'checkpoint'}"
    private = [file.stat().st_mode & 0o777 for file in (out / "checkpoint").rglob("*.[pn]*")]
    assert set(private) == {0o600}
    resumed = distill_student(recipe, faces, out, teacher=teacher)
    assert resumed.trained
    assert same_weights(whole, resumed.bundle)
    assert report(whole)["curve"] == report(resumed.bundle)["curve"]
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    again = distill_student(replace(recipe, workers=1), faces, out, teacher=teacher)
    assert not again.trained
    assert to_builtins(again.report) == to_builtins(resumed.report)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before
    with pytest.raises(UsageError, match="finished training with lr"):
        distill_student(replace(recipe, lr=0.01), faces, out, teacher=teacher)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before
    anew = distill_student(replace(recipe, epochs=1), faces, out, teacher=teacher, force=True)
    assert [entry["stage"] for entry in anew.bundle.history] == ["distill", "distill"]
    assert anew.report.steps == 3


def test_a_network_that_was_not_trained_here_is_not_replaced(
    recipe: Recipe, faces: Faces, teacher: Path
) -> None:
    before = (teacher / "model.pt").read_bytes()
    with pytest.raises(UsageError, match="no training in this bundle made"):
        distill_student(recipe, faces, teacher, teacher=teacher)
    assert (teacher / "model.pt").read_bytes() == before


def test_a_checkpoint_that_outlived_its_training_is_removed(
    recipe: Recipe, faces: Faces, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the commit, while the checkpoint was being removed."""
    recipe = replace(recipe, epochs=1, losses=("arcface",))
    with monkeypatch.context() as patch:
        patch.setattr("fr_edge.distill.train.shutil.rmtree", lambda *_, **__: None)
        train(recipe, faces, tmp_path / "out")
    assert (tmp_path / "out" / "checkpoint" / "last.pt").exists()
    assert not distill_student(recipe, faces, tmp_path / "out").trained
    assert not (tmp_path / "out" / "checkpoint").exists()


def dead_teacher(folder: Path) -> Path:
    """A checkpoint of an `iresnet-tiny` that embeds all faces alike."""
    network = build_network("iresnet-tiny", 16)
    torch.nn.init.zeros_(network.embed.weight)  # type: ignore[arg-type]
    torch.save(network.state_dict(), folder / "dead.pt")
    return folder / "dead.pt"


def test_another_recipe_does_not_resume(
    recipe: Recipe, faces: Faces, teacher: Path, tmp_path: Path
) -> None:
    with pytest.raises(_Killed):
        distill_student(recipe, faces, tmp_path / "out", teacher=teacher, track=_stops_at(2))
    other = replace(recipe, lr=0.01, epochs=1)
    with pytest.raises(UsageError, match="unfinished training with"):
        distill_student(other, faces, tmp_path / "out", teacher=teacher)
    # Before the other teacher embeds a face, which would show that it is of no use.
    with pytest.raises(UsageError, match="unfinished training with"):
        distill_student(
            replace(recipe, teacher_arch="iresnet-tiny"),
            faces,
            tmp_path / "out",
            teacher=dead_teacher(tmp_path),
        )
    forced = distill_student(other, faces, tmp_path / "out", teacher=teacher, force=True)
    assert forced.report.steps == 3


def test_a_training_goes_on_with_another_learning_rate(
    recipe: Recipe, faces: Faces, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As the hint of a loss that is not finite says."""
    recipe, out = replace(recipe, losses=("arcface",)), tmp_path / "out"
    with pytest.raises(_Killed):
        distill_student(recipe, faces, out, track=_stops_at(2))
    slower = replace(recipe, lr=0.01, warmup=0.5)
    curve = distill_student(slower, faces, out).report.curve
    rates = [learning_rate(recipe if step < 2 else slower, step, 6, 3) for step in range(6)]
    assert [point["lr"] for point in curve] == rates
    assert rates[2] != learning_rate(recipe, 2, 6, 3)
    assert "lr was 0.02 up to step 2; it is 0.01 from there on" in caplog.text


def test_the_speed_is_that_of_training_alone(
    recipe: Recipe,
    faces: Faces,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A step takes 4 seconds, a verification 1,000 and a checkpoint 500."""
    caplog.set_level(logging.INFO, "fr_edge")
    now = [0.0]

    def lasting(function: Any, seconds: float) -> Any:
        def call(*given: Any) -> Any:
            now[0] += seconds
            return function(*given)

        return call

    module = "fr_edge.distill.train"
    monkeypatch.setattr(f"{module}.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(f"{module}.train_step", lasting(train_step, 4))
    monkeypatch.setattr(f"{module}.verify_student", lasting(verify_student, 1000))
    monkeypatch.setattr(f"{module}.save_checkpoint", lasting(save_checkpoint, 500))
    distill_student(replace(recipe, losses=("arcface",)), faces, tmp_path / "out")
    points = [text for r in caplog.records if "images/s" in (text := r.getMessage())]
    assert [text.split(":")[0] for text in points] == ["step 3 of 6", "step 6 of 6"]
    assert all(text.endswith(", 2 images/s") for text in points)


def test_the_other_ranks_do_not_repeat_what_is_logged(
    recipe: Recipe,
    faces: Faces,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def opened(*_: Any) -> None:
        logging.getLogger("fr_edge.faces.pairs").warning("the list has no folds")
        raise FacesError("stop here")

    monkeypatch.setattr("fr_edge.distill.train.open_verification_sets", opened)
    for rank in (0, 1):

        @contextmanager
        def joined(rank: int = rank) -> Iterator[Ranks]:
            yield Ranks(rank, 2)

        monkeypatch.setattr("fr_edge.distill.train.join_ranks", joined)
        with pytest.raises(FacesError, match="stop here"):
            distill_student(recipe, faces, tmp_path / "out")
        assert caplog.text.count("no folds") == 1
    logging.getLogger("fr_edge.distill").warning("and the level is as it was")
    assert "as it was" in caplog.text


def test_parts_that_batchnorm_cannot_take_alike_are_refused() -> None:
    for part, size in ((192, 0), (192, 64), (192, 96), (192, 192), (64, 128), (2, 128)):
        check_norm_batch(part, size)
    for part, size, hint in ((192, 128, "=96"), (16, 5, "=4"), (64, 21, "=16"), (7, 5, "=0")):
        with pytest.raises(UsageError, match=f"the {part} images") as caught:
            check_norm_batch(part, size)
        assert f"norm_batch{hint}," in caught.value.hint
    with pytest.raises(UsageError, match="equal parts of 2 or more for norm_batch 1"):
        check_norm_batch(8, 1)
    with pytest.raises(UsageError, match="1 image at a time"):
        check_norm_batch(1, 0)


def test_an_old_bundle_stays_until_the_new_one_is_whole(
    recipe: Recipe, faces: Faces, teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    old = train(recipe, faces, out, teacher=teacher)
    other = replace(recipe, seed=1)
    with pytest.raises(_Killed):
        distill_student(other, faces, out, teacher=teacher, force=True, track=_stops_at(2))
    assert open_bundle(out).files == old.files


def test_a_loss_that_is_no_number_stops_and_keeps_the_batch(
    recipe: Recipe, faces: Faces, tmp_path: Path
) -> None:
    # Weight decay then multiplies every weight by -99 a step.
    wild = replace(
        recipe, losses=("arcface",), lr=100.0, weight_decay=1.0, clip=0.0, warmup=0.0, epochs=20
    )
    wild = replace(wild, schedule="constant")
    with pytest.raises(GateFailed, match="step") as caught:
        distill_student(replace(wild, checkpoint_s=1e6), faces, tmp_path / "out")
    assert "bad-batch" in caught.value.hint
    with np.load(tmp_path / "out" / "checkpoint" / "bad-batch-0.npz") as batch:
        assert batch["pixels"].shape == (8, 112, 112, 3)
    assert not (tmp_path / "out" / "bundle.json").exists()
    # With a checkpoint after every step the last finite one stays.
    with pytest.raises(GateFailed, match="not finite"):
        distill_student(wild, faces, tmp_path / "kept")
    held = torch.load(tmp_path / "kept" / "checkpoint" / "last.pt", weights_only=True)
    assert all(value.isfinite().all() for value in held["student"].values())


def test_what_does_not_fit_is_said_before_anything_is_trained(
    recipe: Recipe, faces: Faces, teacher: Path, tmp_path: Path
) -> None:
    def refused(kind: type[Exception], match: str, **changes: Any) -> None:
        source = changes.pop("source", teacher)
        with pytest.raises(kind, match=match):
            distill_student(replace(recipe, **changes), faces, tmp_path / "out", teacher=source)
        assert not (tmp_path / "out").exists()

    refused(UsageError, "teacher", source=None)
    refused(UsageError, "batch", batch=64)
    refused(UsageError, "identities", verify_identities=9)
    refused(DataError, "no teacher", source=tmp_path / "missing.onnx")
    refused(UsageError, "network", network="mobilenot")
    # Before the teacher embeds a face, which shows that this one is of no use.
    recipe, teacher = replace(recipe, teacher_arch="iresnet-tiny"), dead_teacher(tmp_path)
    refused(FacesError, "pairs.csv", verify_pairs=(str(tmp_path / "pairs.csv"),))
    refused(UsageError, "best is 'tar@1e-4'", best="tar@1e-4")
    refused(UsageError, "no folder", csv=str(tmp_path / "nowhere" / "curve.csv"))
    refused(UsageError, "is a folder", csv=str(tmp_path))
    (tmp_path / "file").touch()
    refused(UsageError, "cache: .*file is not a folder", cache=str(tmp_path / "file" / "cache"))
    refused(UsageError, "data_report: .*is not a folder", data_report=str(tmp_path / "file"))
    refused(UsageError, "tensorboard: File name too long", tensorboard="a" * 300)
    refused(DataError, "no checkpoint", init=str(tmp_path / "nothing.pt"))
    refused(UsageError, "fp16 needs a GPU", amp="fp16")
    refused(UsageError, "1 image at a time", accumulate=8)
    refused(UsageError, "for norm_batch 3", norm_batch=3)
    refused(ModelError, "embeds different faces alike")


def test_bad_images_are_skipped_up_to_the_limit_and_named(
    recipe: Recipe,
    faces: Faces,
    teacher: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def read(index: int) -> Any:
        if index in (3, 17):
            raise FacesError(f"{faces.keys[index]} is damaged")
        return faces.read(index)

    broken = replace(faces, read=read)
    with pytest.raises(FacesError, match=r"00000/003|00003/002"):
        distill_student(recipe, broken, tmp_path / "one", teacher=teacher)
    file = tmp_path / "one.unreadable.csv"
    assert file.read_text().split() == ["image", "00000/003", "00003/002"]
    for _ in range(2):  # once more: it is finished, and what it excludes is still there
        left = replace(recipe, exclude=str(file))
        result = distill_student(left, broken, tmp_path / "one", teacher=teacher)
        assert result.bundle.files.keys() == {"model.pt", "reports/training.json"}
    assert not result.trained
    two = replace(recipe, bad_images=2)
    assert "model.pt" in train(two, broken, tmp_path / "two", teacher=teacher)
    assert "2 of at most 2 unreadable images are left out" in caplog.text  # as the teacher saw
    alone = {"losses": ("arcface",), "verify_identities": 0}
    assert "model.pt" in train(replace(two, **alone), broken, tmp_path / "alone")
    assert "2 of at most 2 unreadable images skipped" in caplog.text
    with pytest.raises(FacesError, match=r"00000/003|00003/002"):
        distill_student(replace(recipe, **alone), broken, tmp_path / "none")
