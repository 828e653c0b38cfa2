"""The student while it trains: input, statistics, output, weights to start from."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fr_edge.distill.distributed import Ranks, to_device
from fr_edge.distill.networks import build_network
from fr_edge.distill.recipe import Recipe
from fr_edge.distill.student import (
    STUDENT_SPEC,
    Student,
    build_student,
    student_network_name,
)
from fr_edge.distill.weights import save_network
from fr_edge.errors import ModelError, UsageError
from fr_edge.faces.contract import preprocess

SMALL = Recipe(network="mobilefacenet-0.25", dim=16)


def pixels(count: int = 6) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(1).integers(0, 256, (count, 112, 112, 3), np.uint8)


def student(norm_batch: int = 0, compared: int = 16) -> Student:
    torch.manual_seed(3)
    return Student(build_network("mobilefacenet-0.25", 16), 16, compared, norm_batch)


def test_the_input_is_the_contracts() -> None:
    given = []

    class Keep(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            given.append(x)
            return x.flatten(1)[:, :16]

    Student(Keep(), 16, 16)(to_device(pixels(2), torch.device("cpu")))
    np.testing.assert_array_equal(given[0].numpy(), preprocess(pixels(2), STUDENT_SPEC))


def test_statistics_of_parts_are_those_of_processes() -> None:
    """What two processes of three images each would compute, and the mean of their statistics."""
    whole, parts = student(norm_batch=3), [student(), student()]
    faces = torch.from_numpy(pixels())
    out = whole.train()(faces)
    both = [one.train()(faces[start : start + 3]) for one, start in zip(parts, (0, 3), strict=True)]
    torch.testing.assert_close(out, torch.cat(both), rtol=1e-4, atol=1e-4)
    states = [one.network.state_dict() for one in parts]
    for name, value in whole.network.state_dict().items():
        if value.is_floating_point():
            mean = (states[0][name] + states[1][name]) / 2
            torch.testing.assert_close(value, mean, rtol=1e-4, atol=1e-5, msg=name)
    assert not torch.allclose(out, student().train()(faces), atol=1e-3)


def test_a_projection_is_for_the_loss_alone() -> None:
    one = student(compared=8).eval()
    faces = torch.from_numpy(pixels(2))
    assert one(faces).shape == (2, 8)
    assert one.embed(faces).shape == (2, 16)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "mobilefacenet-0.25-affine"),
        ({"output": "plain"}, "mobilefacenet-0.25"),
        ({"losses": ("arcface",)}, "mobilefacenet-0.25"),
        ({"network": "MobileFaceNet-0.25"}, "mobilefacenet-0.25-affine"),
        ({"network": "r18"}, "iresnet18"),
        ({"network": "R18"}, "iresnet18"),
        ({"network": "mbf"}, "mbf"),
    ],
)
def test_students_of_a_teacher_end_in_weight_and_bias(changes: dict[str, str], name: str) -> None:
    assert student_network_name(replace(SMALL, **changes)) == name  # type: ignore[arg-type]


def test_a_training_starts_from_weights(tmp_path: Path) -> None:
    torch.manual_seed(7)
    plain = build_network("mobilefacenet-0.25", 16)
    for other in ("mobilefacenet-0.25", "mobilefacenet-0.25-affine"):
        path = tmp_path / f"{other}.pt"
        given = build_network(other, 16)
        given.load_state_dict(plain.state_dict(), strict=False)
        save_network(path, given.state_dict(), other, 16)
        made, name = build_student(replace(SMALL, init=str(path)), 16, 16, Ranks())
        assert name == "mobilefacenet-0.25-affine"
        faces = torch.from_numpy(pixels(2))
        made.eval()
        expected = Student(plain.eval(), 16, 16)(faces)
        torch.testing.assert_close(made(faces), expected, rtol=1e-5, atol=1e-5)
        unnamed = tmp_path / "unnamed.pth"
        torch.save(given.state_dict(), unnamed)
        again, name = build_student(replace(SMALL, init=str(unnamed)), 16, 16, Ranks())
        assert name == "mobilefacenet-0.25-affine"
        assert torch.equal(again.eval()(faces), made(faces))
    with pytest.raises(ModelError, match="unnamed.pth is not a mobilefacenet-affine"):
        build_student(replace(SMALL, network="mobilefacenet", init=str(unnamed)), 16, 16, Ranks())
    with pytest.raises(UsageError, match=r"this training's is mobilefacenet-affine with 16"):
        build_student(replace(SMALL, network="mobilefacenet", init=str(path)), 16, 16, Ranks())
    with pytest.raises(UsageError, match="16-d embeddings; this training's") as caught:
        build_student(replace(SMALL, init=str(path)), 32, 32, Ranks())
    assert caught.value.hint == "--set dim=16, or without init"


@pytest.mark.parametrize(("ranks", "told"), [(4, False), (8, True)])
def test_fewer_images_than_norm_batch_are_told(
    ranks: int, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    build_student(replace(SMALL, batch=512, norm_batch=128), 16, 16, Ranks(0, ranks))
    assert ("over the 64 images that a rank has at a time" in caplog.text) == told
