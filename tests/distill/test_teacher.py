"""Teachers: loaded from everywhere, checked, and their embeddings cached."""

import errno
import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from fr_edge.distill import teacher as teacher_module
from fr_edge.distill.dataset import Pixels, split_identities
from fr_edge.distill.networks import build_network
from fr_edge.distill.teacher import Teacher, check_teacher, open_teacher, torch_runner
from fr_edge.distill.teacher_cache import cached_embeddings
from fr_edge.distill.weights import load_network
from fr_edge.errors import DataError, MachineError, ModelError, UsageError
from fr_edge.faces.contract import InputSpec, preprocess
from fr_edge.faces.sources import Faces


def write_onnx(path: Path, batch: int | str = "n", spec: InputSpec | None = None) -> Path:
    """Embeddings that are the face shrunk to 4x4 by averaging: 48 numbers."""
    nodes = [
        helper.make_node("AveragePool", ["x"], ["p"], kernel_shape=[28, 28], strides=[28, 28]),
        helper.make_node("Reshape", ["p", "flat"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "shrink",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 112, 112])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 48])],
        [numpy_helper.from_array(np.array([-1, 48], np.int64), "flat")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if spec is not None:
        helper.set_model_props(model, {"fr_edge.input": json.dumps(spec.to_json())})
    onnx.save(model, path)
    return path


def pictures(faces: Faces, count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.stack([faces.read(i) for i in range(count)])


@pytest.mark.parametrize("batch", ["n", 1, 3])
def test_an_onnx_teacher_embeds_any_number_of_faces(
    batch: int | str, faces: Faces, tmp_path: Path
) -> None:
    path = write_onnx(tmp_path / "t.onnx", batch)
    teacher = open_teacher(path, preset="raw")
    embeddings = teacher.embed(pictures(faces, 7))
    blocks = preprocess(pictures(faces, 7), teacher.spec).reshape(7, 3, 4, 28, 4, 28)
    plain = blocks.mean((3, 5)).reshape(7, 48)
    plain /= np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(embeddings, plain, atol=1e-5)
    assert teacher.dim == 48


def test_the_contract_comes_from_the_file_or_must_be_named(tmp_path: Path) -> None:
    spec = InputSpec(channels="BGR")
    assert open_teacher(write_onnx(tmp_path / "a.onnx", spec=spec)).spec == spec
    with pytest.raises(UsageError, match="input") as caught:
        open_teacher(write_onnx(tmp_path / "b.onnx"))
    assert "teacher_preset" in caught.value.hint


def test_a_bundle_and_a_checkpoint_are_the_same_teacher(
    teacher: Path, faces: Faces, tmp_path: Path
) -> None:
    weights = load_network(teacher / "model.pt")[0].state_dict()
    torch.save({f"module.{k}": v for k, v in weights.items()}, tmp_path / "t.pth")
    one = open_teacher(teacher)
    other = open_teacher(tmp_path / "t.pth", arch="iresnet-tiny")
    np.testing.assert_array_equal(one.embed(pictures(faces, 3)), other.embed(pictures(faces, 3)))


def test_a_teacher_that_cannot_be_used_is_refused(tmp_path: Path, faces: Faces) -> None:
    with pytest.raises(ModelError, match="no teacher"):
        open_teacher(tmp_path / "missing")
    with pytest.raises(ModelError, match="is a folder, but not a bundle"):
        open_teacher(tmp_path)
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match="is not an ONNX model, or is damaged"):
        open_teacher(tmp_path / "bad.onnx", preset="raw")
    network = build_network("iresnet-tiny", 16)
    torch.nn.init.zeros_(network.embed.weight)  # type: ignore[arg-type]
    torch.save(network.state_dict(), tmp_path / "dead.pt")
    dead = open_teacher(tmp_path / "dead.pt", arch="iresnet-tiny")
    with pytest.raises(ModelError, match="alike"):
        check_teacher(dead, pictures(faces, 8)[::5])
    silent = replace(dead, embed=lambda given: np.zeros((len(given), 16), np.float32))
    with pytest.raises(ModelError, match="all zeros"):
        check_teacher(silent, pictures(faces, 8)[::5])


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_pixels_are_normalised_on_the_device_as_the_contract_says(
    channels: str, faces: Faces
) -> None:
    spec = InputSpec(channels=channels, mean=(120.0, 110.0, 100.0), std=(60.0, 70.0, 80.0))
    given = pictures(faces, 3)
    network = torch.nn.Flatten()
    rows = torch_runner(network, spec, "cpu")(given)
    np.testing.assert_array_equal(rows, preprocess(given, spec).reshape(3, -1))
    large = replace(spec, height=64, width=64)
    rows = torch_runner(network, large, "cpu")(given)
    np.testing.assert_array_equal(rows, preprocess(given, large).reshape(3, -1))


class Differences(torch.nn.Module):
    """Tells apart what bfloat16 does not: 1 and 1 + 1/1024."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(1)[:, :64]
        return torch.mm(rows * 0 + 1 + rows / 1024, torch.eye(64)) - 1


def test_a_teacher_runs_in_bfloat16_where_its_embeddings_stay(
    faces: Faces, caplog: pytest.LogCaptureFixture
) -> None:
    given = pictures(faces, 4)
    network = build_network("iresnet-tiny", 16).eval()
    exact = torch_runner(network, InputSpec(), "cpu")(given)
    run = torch_runner(network, InputSpec(), "cpu", torch.bfloat16)
    run(np.zeros((1, 112, 112, 3), np.uint8))  # decides nothing
    np.testing.assert_array_equal(run(given), exact)  # compared, and given in float32
    reduced = run(given)
    assert not np.array_equal(reduced, exact)
    np.testing.assert_allclose(reduced, exact, atol=0.02 * float(np.abs(exact).max()))
    fragile = torch_runner(Differences(), InputSpec(), "cpu", torch.bfloat16)
    with caplog.at_level(logging.WARNING):
        first, second = fragile(given), fragile(given)
    np.testing.assert_array_equal(first, second)
    assert "the teacher runs in float32: in torch.bfloat16 a cosine is" in caplog.text


@pytest.fixture
def teacher_and_pixels(faces: Faces, tmp_path: Path) -> tuple[Teacher, Pixels]:
    teacher = open_teacher(write_onnx(tmp_path / "t.onnx"), preset="raw")
    return teacher, Pixels(faces, split_identities(faces, 0).train, 64)


def test_the_cache_is_what_the_teacher_says(
    teacher_and_pixels: tuple[Teacher, Pixels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With images read by a process beside the teacher's."""
    teacher, pixels = teacher_and_pixels
    readers = []
    read = pixels.faces.read

    def watched(index: int) -> Any:
        readers.append(os.getpid())
        return read(index)

    apart = Pixels(replace(pixels.faces, read=watched), pixels.picks, 0)
    monkeypatch.setattr("fr_edge.distill.teacher_cache._BLOCK", 16)
    cached = cached_embeddings(tmp_path / "cache", teacher, apart, workers=1)
    assert len(readers) == len(pixels)  # here for the data's digest alone
    faces = pixels.read_all(range(len(pixels))).pixels
    assert cached.shape == (50, 2, 48)
    np.testing.assert_allclose(cached[:, 0], teacher.embed(faces), atol=5e-4)
    np.testing.assert_allclose(cached[:, 1], teacher.embed(faces[:, :, ::-1]), atol=5e-4)


def test_a_cache_goes_on_where_it_stopped(
    teacher_and_pixels: tuple[Teacher, Pixels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, pixels = teacher_and_pixels
    monkeypatch.setattr("fr_edge.distill.teacher_cache._BLOCK", 16)
    asked = []

    def embed(faces: Any) -> Any:
        if len(asked) == 4:
            raise KeyboardInterrupt
        asked.append(len(faces))
        return teacher.embed(faces)

    with pytest.raises(KeyboardInterrupt):
        cached_embeddings(tmp_path / "cache", replace(teacher, embed=embed), pixels)
    asked = [0] * 10
    cached = cached_embeddings(tmp_path / "cache", replace(teacher, embed=embed), pixels)
    assert sum(asked) == 2 * (50 - 32)
    whole = cached_embeddings(tmp_path / "whole", teacher, pixels)
    np.testing.assert_array_equal(cached, whole)


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_cache_that_leads_to_another_file_is_made_anew(
    link: Any, teacher_and_pixels: tuple[Teacher, Pixels], tmp_path: Path
) -> None:
    teacher, pixels = teacher_and_pixels
    folder, outside = tmp_path / "cache", tmp_path / "outside.npy"
    whole = np.array(cached_embeddings(folder, teacher, pixels))
    (folder / "teacher.npy").rename(outside)
    outside.write_bytes(outside.read_bytes()[: -whole.nbytes] + bytes(whole.nbytes))
    link(outside, folder / "teacher.npy")
    (folder / "teacher.done").write_bytes(b"\0")  # what is not done would be written in place
    before = outside.read_bytes()
    np.testing.assert_array_equal(cached_embeddings(folder, teacher, pixels), whole)
    assert outside.read_bytes() == before


def test_a_stale_cache_is_refused_by_name(
    teacher_and_pixels: tuple[Teacher, Pixels], faces: Faces, tmp_path: Path
) -> None:
    teacher, pixels = teacher_and_pixels
    folder = tmp_path / "cache"
    cached_embeddings(folder, teacher, pixels)
    with pytest.raises(DataError, match="another teacher"):
        cached_embeddings(folder, replace(teacher, sha256="0" * 64), pixels)
    with pytest.raises(DataError, match="another contract"):
        cached_embeddings(folder, replace(teacher, spec=InputSpec()), pixels)
    other = Pixels(faces, split_identities(faces, 0).train[::-1], 64)
    with pytest.raises(DataError, match="another data"):
        cached_embeddings(folder, teacher, other)
    (folder / "teacher.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        cached_embeddings(folder, teacher, pixels)


def test_a_full_disk_is_said_before_the_teacher_runs(
    teacher_and_pixels: tuple[Teacher, Pixels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    teacher, pixels = teacher_and_pixels
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(MachineError, match="No space left"):
            cached_embeddings(tmp_path / "cache", teacher, pixels)
    assert not list((tmp_path / "cache").iterdir())
    cached_embeddings(tmp_path / "cache", teacher, pixels)


def test_an_onnx_teacher_runs_on_its_ranks_own_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A double of the machine: onnxruntime is told, and then has no GPU."""
    asked: list[Any] = []
    session = onnxruntime.InferenceSession

    def recorded(model: Any, options: Any, providers: Any) -> Any:
        asked.extend(providers)
        return session(model, options, providers=["CPUExecutionProvider"])

    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "InferenceSession", recorded)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    runner, _, _ = teacher_module._onnx_runner(write_onnx(tmp_path / "t.onnx"), InputSpec(), "cpu")
    assert asked == [("CUDAExecutionProvider", {"device_id": 3}), ("CPUExecutionProvider", {})]
    assert len(runner(np.zeros((1, 112, 112, 3), np.uint8))) == 1
