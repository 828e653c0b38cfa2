"""Teachers: loaded from everywhere, checked, and their embeddings cached."""

import errno
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
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
from fr_edge.distill.distributed import Ranks
from fr_edge.distill.networks import build_network
from fr_edge.distill.recipe import Recipe
from fr_edge.distill.teacher import (
    Teacher,
    check_teacher,
    choose_precision,
    open_teacher,
    torch_runner,
)
from fr_edge.distill.teacher_cache import cached_embeddings, open_teacher_embeddings
from fr_edge.distill.teacher_targets import unembedded
from fr_edge.distill.weights import load_network
from fr_edge.errors import DataError, FacesError, MachineError, ModelError, UsageError
from fr_edge.faces.contract import InputSpec, preprocess
from fr_edge.faces.sources import Faces
from fr_edge.progress import silent


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


@pytest.mark.parametrize("names", [("features.0.0.weight", "embed.weight"), ("a.w", "b.w")])
def test_a_checkpoint_of_no_known_network_is_told_how_to_name_it(
    names: tuple[str, str], tmp_path: Path
) -> None:
    torch.save({name: torch.zeros(8, 3, 3, 3) for name in names}, tmp_path / "t.pth")
    with pytest.raises(UsageError) as error:
        open_teacher(tmp_path / "t.pth")
    assert error.value.hint.startswith("--set teacher_arch=NAME, one of ")
    assert "--arch" not in error.value.hint


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


def both_precisions(network: torch.nn.Module) -> Teacher:
    exact, reduced = (
        teacher_module._embedder(torch_runner(network, InputSpec(), "cpu", kind))
        for kind in (None, torch.bfloat16)
    )
    return Teacher("double", InputSpec(), 16, "ab" * 32, exact, "cpu", reduced)


def test_a_teacher_runs_in_bfloat16_where_its_embeddings_stay(
    faces: Faces, caplog: pytest.LogCaptureFixture
) -> None:
    given = pictures(faces, 4)
    teacher = both_precisions(build_network("iresnet-tiny", 16).eval())
    chosen = choose_precision(teacher, given, Ranks())
    assert chosen.precision == "bfloat16"
    exact, reduced = teacher.embed(given), chosen.embed(given)
    assert not np.array_equal(reduced, exact)
    np.testing.assert_allclose(reduced, exact, atol=0.02 * float(np.abs(exact).max()))
    kept = choose_precision(
        teacher, given, Ranks(), "float32"
    )  # its embeddings go on as they began
    assert (kept.precision, kept.embed) == ("float32", teacher.embed)
    assert caplog.messages == []
    fragile = both_precisions(Differences())
    kept = choose_precision(fragile, given, Ranks())
    assert (kept.precision, kept.embed) == ("float32", fragile.embed)
    assert "the teacher runs in float32: in bfloat16 a cosine is" in caplog.text


class _OtherDiffers(Ranks):
    """A rank beside one that is to compute in float32."""

    def all_max(self, values: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(values)


def test_all_ranks_embed_in_one_precision(faces: Faces) -> None:
    given = pictures(faces, 4)
    teacher = both_precisions(build_network("iresnet-tiny", 16).eval())
    assert choose_precision(teacher, given, Ranks()).precision == "bfloat16"
    kept = choose_precision(teacher, given, _OtherDiffers(0, 2))
    assert (kept.precision, kept.embed) == ("float32", teacher.embed)
    # A rank that does not compute in bfloat16 takes part in the decision, and is the reason.
    asked: list[list[float]] = []

    class Asked(Ranks):
        def all_max(self, values: torch.Tensor) -> torch.Tensor:
            asked.append(values.tolist())
            return values

    exact = replace(teacher, reduced=None)
    assert choose_precision(exact, given, Asked(0, 2)).precision == "float32"
    assert choose_precision(teacher, given, Asked(0, 2)).precision == "bfloat16"
    assert asked == [[1.0], [0.0]]


def test_a_gpu_offers_its_teacher_in_both_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    network = torch.nn.Flatten()
    runners = partial(teacher_module._torch_runners, network, InputSpec())
    assert runners("cpu")[1] is None
    monkeypatch.setattr(teacher_module, "torch_runner", lambda *given: given[3:])  # no GPU here
    for computes, reduced in ((True, (torch.bfloat16,)), (False, None)):
        monkeypatch.setattr(teacher_module, "computes_bf16", lambda computes=computes: computes)
        assert runners("cuda") == ((), reduced)


def test_a_cache_goes_on_in_the_precision_in_which_it_began(
    faces: Faces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fr_edge.distill.teacher_cache._BLOCK", 16)
    teacher = both_precisions(build_network("iresnet-tiny", 16).eval())
    alone = replace(teacher, reduced=None)  # as on a machine without bfloat16
    split = split_identities(faces, 0)
    pixels = Pixels(faces, split.train, 64)
    folder = tmp_path / "cache"
    marks, note = folder / "teacher.done", folder / "teacher.json"

    def fill(given: Teacher, force: bool = False) -> str:
        ranks = Ranks()
        return open_teacher_embeddings(
            Recipe(), given, pixels, split.labels, folder, ranks, silent, force=force
        ).teacher.precision

    assert fill(teacher) == "bfloat16"
    assert json.loads(note.read_text())["precision"] == "bfloat16"
    assert fill(alone) == "float32"  # nothing is left to embed
    marks.write_bytes(b"\1\1\0\1")
    with pytest.raises(DataError, match="was made with another precision"):
        fill(alone)
    assert fill(teacher) == "bfloat16"
    marks.write_bytes(b"\1\1\0\1")
    assert fill(alone, force=True) == "float32"
    assert json.loads(note.read_text())["precision"] == "float32"
    assert fill(teacher) == "float32"
    # Notes of older versions, whatever they were made with.
    older = json.loads(note.read_text())
    del older["precision"]
    note.write_text(json.dumps(older))
    before = note.stat().st_ino
    for given, precision in ((alone, "float32"), (teacher, "bfloat16")):
        marks.write_bytes(b"\1\1\0\1")
        assert fill(given) == precision
    assert note.stat().st_ino == before


def test_precisions_are_compared_on_64_faces_of_all_the_data(faces: Faces, tmp_path: Path) -> None:
    asked: list[Any] = []
    teacher = both_precisions(build_network("iresnet-tiny", 16).eval())

    def reduced(given: Any) -> Any:
        asked.append(given)
        return teacher.reduced(given) if teacher.reduced else None

    many = Faces(
        "many", list(faces.keys) * 4, np.repeat(np.arange(40), 5), lambda k: faces.read(k % 50)
    )
    split = split_identities(many, 0)
    pixels, ranks = Pixels(many, split.train, 64), Ranks()
    open_teacher_embeddings(
        Recipe(), replace(teacher, reduced=reduced), pixels, split.labels, tmp_path, ranks, silent
    )
    picks = np.linspace(0, 199, 64).astype(int)
    np.testing.assert_array_equal(asked[0], pixels.read_all(picks).pixels)


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


class _Files:
    """Doubles a source of faces: how often each image is read, and which cannot be, how many times."""

    def __init__(self, faces: Faces) -> None:
        self.reads: Counter[int] = Counter()
        self.failures: dict[int, int] = {}
        self._read = faces.read
        self.faces = replace(faces, read=self.read)

    def read(self, index: int) -> Any:
        self.reads[index] += 1
        if self.failures.get(index, 0) > 0:
            self.failures[index] -= 1
            raise FacesError(f"image {index} cannot be read")
        return self._read(index)


@pytest.fixture
def files(faces: Faces, monkeypatch: pytest.MonkeyPatch) -> _Files:
    monkeypatch.setattr("fr_edge.distill.teacher_cache._BLOCK", 16)
    monkeypatch.setattr("fr_edge.distill.teacher_cache._PROBES", 2)  # the first and the last
    return _Files(faces)


class _OneOfTwo(Ranks):
    """A rank whose other one has done its part."""

    def barrier(self) -> None:
        pass


def test_an_image_that_cannot_be_read_for_a_moment_is_embedded(
    teacher_and_pixels: tuple[Teacher, Pixels], files: _Files, tmp_path: Path
) -> None:
    teacher, pixels = teacher_and_pixels
    whole = cached_embeddings(tmp_path / "whole", teacher, pixels)
    files.failures = {7: 1, 8: 1, 40: 1}
    given = Pixels(files.faces, pixels.picks, 64)
    cached = cached_embeddings(tmp_path / "cache", teacher, given)
    np.testing.assert_allclose(cached, whole, atol=1e-3)
    assert len(unembedded(cached)) == 0
    assert {k for k, reads in files.reads.items() if reads != 1} == {7, 8, 40}


def test_an_image_that_cannot_be_read_is_known_and_tried_in_the_next_call(
    teacher_and_pixels: tuple[Teacher, Pixels], files: _Files, tmp_path: Path
) -> None:
    teacher, pixels = teacher_and_pixels
    whole = cached_embeddings(tmp_path / "whole", teacher, pixels)
    files.failures = {7: 99, 8: 2, 15: 99, 33: 2}
    cached = cached_embeddings(tmp_path / "cache", teacher, Pixels(files.faces, pixels.picks, 64))
    assert unembedded(cached).tolist() == [7, 8, 15, 33]
    readable = np.setdiff1d(np.arange(50), [7, 8, 15, 33])
    np.testing.assert_allclose(cached[readable], whole[readable], atol=1e-3)
    before = np.array(cached)
    files.reads.clear()
    cached = cached_embeddings(tmp_path / "cache", teacher, Pixels(files.faces, pixels.picks, 64))
    assert unembedded(cached).tolist() == [7, 15]
    np.testing.assert_array_equal(cached[readable], before[readable])
    np.testing.assert_allclose(cached[[8, 33]], whole[[8, 33]], atol=1e-3)
    assert set(files.reads) == {7, 8, 15, 33, 0, 49}  # the last two for the data's digest


def test_a_block_of_which_nothing_can_be_read_is_left_to_its_rank(
    teacher_and_pixels: tuple[Teacher, Pixels], files: _Files, tmp_path: Path
) -> None:
    """Where a disk was away, one rank is not to embed what all of them left out."""
    teacher, pixels = teacher_and_pixels
    files.failures = {k: 2 for k in range(16, 32)}
    cached = cached_embeddings(tmp_path / "cache", teacher, Pixels(files.faces, pixels.picks, 64))
    assert unembedded(cached).tolist() == list(range(16, 32))
    again = Pixels(files.faces, pixels.picks, 64)
    cached = cached_embeddings(tmp_path / "cache", teacher, again, ranks=_OneOfTwo(1, 2))
    assert len(unembedded(cached)) == 0


class _Nfs:
    """Doubles a clock, and a folder whose list alone shows what another node has done, from some time on."""

    def __init__(self, folder: Path, at_s: float, change: Callable[[], Any]) -> None:
        self.now_s = 0.0
        self._folder, self._at_s, self._change = folder, at_s, change
        self._listdir = os.listdir

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def listdir(self, folder: Any) -> list[str]:
        if folder == self._folder and self.now_s >= self._at_s:
            self._at_s = float("inf")
            self._change()
        return self._listdir(folder)

    def patch(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr("fr_edge.distill.teacher_cache.time", self)
        patch.setattr(os, "listdir", self.listdir)


@pytest.mark.parametrize("appears_s", [60.0, 200.0])
def test_a_node_that_sees_the_cache_late_waits_for_it(
    appears_s: float,
    teacher_and_pixels: tuple[Teacher, Pixels],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher, pixels = teacher_and_pixels
    out, apart = tmp_path / "out", tmp_path / "apart"
    folder = out / "checkpoint" / "teacher"
    whole = np.array(cached_embeddings(folder, teacher, pixels))
    out.rename(apart)
    nfs = _Nfs(tmp_path, appears_s, lambda: apart.rename(out))
    nfs.patch(monkeypatch)
    if appears_s > 90:
        with pytest.raises(DataError, match="rank 1 does not see the teacher cache"):
            cached_embeddings(folder, teacher, pixels, ranks=_OneOfTwo(1, 2))
    else:
        cached = cached_embeddings(folder, teacher, pixels, ranks=_OneOfTwo(1, 2))
        np.testing.assert_array_equal(cached, whole)
    assert nfs.now_s == min(appears_s, 90)


@pytest.mark.parametrize("appears_s", [60.0, 200.0])
def test_a_node_that_sees_the_other_parts_late_waits_for_them(
    appears_s: float,
    teacher_and_pixels: tuple[Teacher, Pixels],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher, pixels = teacher_and_pixels
    folder = tmp_path / "cache"
    monkeypatch.setattr("fr_edge.distill.teacher_cache._BLOCK", 16)
    cached_embeddings(folder, teacher, pixels)
    marks = folder / "teacher.done"
    marks.write_bytes(b"\0\1\0\0")
    nfs = _Nfs(folder, appears_s, lambda: marks.write_bytes(b"\1\1\1\1"))
    nfs.patch(monkeypatch)
    if appears_s > 90:
        with pytest.raises(DataError, match="do not see one another's part"):
            cached_embeddings(folder, teacher, pixels, ranks=_OneOfTwo(1, 2))
        assert marks.read_bytes() == b"\0\1\0\1"
    else:
        cached_embeddings(folder, teacher, pixels, ranks=_OneOfTwo(1, 2))
    assert nfs.now_s == min(appears_s, 90)


def test_rows_of_zeros_alone_are_not_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fr_edge.distill.teacher_targets._SCANNED", 4)
    cached = np.ones((11, 2, 3), np.float16)
    cached[[2, 7, 10]] = 0
    cached[5, 0] = 0  # of one view
    cached[6, :, 0] = 0
    assert unembedded(cached).tolist() == [2, 7, 10]
    assert unembedded(cached[:2]).tolist() == []


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
    runner, *_ = teacher_module._onnx_runner(write_onnx(tmp_path / "t.onnx"), InputSpec(), "cpu")
    assert asked == [("CUDAExecutionProvider", {"device_id": 3}), ("CPUExecutionProvider", {})]
    assert len(runner(np.zeros((1, 112, 112, 3), np.uint8))) == 1
