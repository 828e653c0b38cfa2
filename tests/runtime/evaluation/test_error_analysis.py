"""Known mistakes get their name, and noise its size."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fr_edge.bundle.bundle import open_bundle, transaction
from fr_edge.faces.contract import PRESETS, preprocess
from fr_edge.faces.sources import Faces
from fr_edge.metrics.comparison import compare_verification
from fr_edge.metrics.rates import measure_drift
from fr_edge.runtime.evaluation.embeddings_file import origin_of, write_embeddings
from fr_edge.runtime.evaluation.error_analysis import explain, strata_doubts
from fr_edge.runtime.evaluation.verify import verify
from fr_edge.runtime.onnxruntime_session import CpuSession
from fr_edge.runtime.session import embed_faces, open_session

SPEC = PRESETS["insightface"]


def _channel_swap(fp32: CpuSession, faces: np.ndarray) -> np.ndarray:
    return fp32.embed_tensor(preprocess(np.ascontiguousarray(faces[..., ::-1]), SPEC))


def _raw_pixels(fp32: CpuSession, faces: np.ndarray) -> np.ndarray:
    return fp32.embed_tensor(preprocess(faces, SPEC) * 127.5 + 127.5)


def _mirrored(fp32: CpuSession, faces: np.ndarray) -> np.ndarray:
    return fp32.embed_tensor(np.ascontiguousarray(preprocess(faces, SPEC)[:, :, :, ::-1]))


def _rows_moved(fp32: CpuSession, faces: np.ndarray) -> np.ndarray:
    return np.roll(fp32.embed_tensor(preprocess(faces, SPEC)), 1, axis=0)


def _noise(fp32: CpuSession, faces: np.ndarray) -> np.ndarray:
    plain = fp32.embed_tensor(preprocess(faces, SPEC))
    noise = np.random.default_rng(0).normal(size=plain.shape)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    out = plain / np.linalg.norm(plain, axis=1, keepdims=True) + 0.3 * noise
    return out.astype(np.float32)


def _shift(fp32: CpuSession, faces: np.ndarray) -> np.ndarray:
    plain = fp32.embed_tensor(preprocess(faces, SPEC))
    return plain + 0.2 * np.linalg.norm(plain, axis=1).mean() * np.eye(plain.shape[1])[0].astype(
        "f4"
    )


def _mean_of_nobody(fp32: CpuSession, faces: np.ndarray) -> np.ndarray:
    wrong = replace(SPEC, mean=tuple(v + 43.0 for v in SPEC.mean))
    return fp32.embed_tensor(preprocess(faces, wrong))


def _swapped_and_raw(fp32: CpuSession, faces: np.ndarray) -> np.ndarray:
    return fp32.embed_tensor(preprocess(faces, replace(PRESETS["raw"], channels="BGR")))


def _some_mirrored(fp32: CpuSession, faces: np.ndarray) -> np.ndarray:
    out = fp32.embed_tensor(preprocess(faces, SPEC))
    out[:7] = _mirrored(fp32, faces)[:7]
    return out


def _scale_of_nobody(fp32: CpuSession, faces: np.ndarray) -> np.ndarray:
    return fp32.embed_tensor(preprocess(faces, replace(SPEC, std=tuple(v * 11 for v in SPEC.std))))


def _stranger(fp32: CpuSession, faces: np.ndarray) -> np.ndarray:
    plain = fp32.embed_tensor(preprocess(faces, SPEC))
    return np.random.default_rng(5).normal(size=plain.shape).astype(np.float32)


@pytest.mark.parametrize(
    ("mistake", "name"),
    [
        (_channel_swap, "channels are BGR"),
        (_raw_pixels, "those of 'raw'"),
        (_mirrored, "mirrored"),
        (_mean_of_nobody, r"the mean is off by \+4[0-6]\.\d levels"),
        (_swapped_and_raw, "channels are BGR, not RGB, and mean and std are those of 'raw'"),
        (_stranger, "nothing in common"),
        (_some_mirrored, "7 of 48 faces go wrong"),
        (_scale_of_nobody, r"the std is 1[01](\.\d+)? times"),
        (_rows_moved, "48 of 48 embeddings are another face's"),
        (_noise, r"noise, (2[89]|30)\.\d% of an embedding's length"),
        (_shift, "a shift that all faces share"),
    ],
)
def test_mistakes_are_named(
    mistake: Callable[[CpuSession, np.ndarray], np.ndarray],
    name: str,
    calibrated_mini: Path,
    people: Faces,
) -> None:
    fp32 = CpuSession(calibrated_mini / "model.onnx", "fp32", SPEC)
    faces = next(people.batches(48))
    expected = fp32.embed_tensor(preprocess(faces, SPEC))
    assert re.search(name, explain(mistake(fp32, faces), expected, faces, fp32, SPEC))


def test_a_reference_made_with_the_wrong_channels_is_named(
    mini: Path, people: Faces, tmp_path: Path
) -> None:
    bundle = open_bundle(mini)
    with transaction(tmp_path / "bgr", "copy", {}) as draft:
        draft.spec, draft.embedding_dim = replace(bundle.spec, channels="BGR"), bundle.embedding_dim
        draft.path("model.onnx", "model").write_bytes((mini / "model.onnx").read_bytes())
    swapped = open_bundle(tmp_path / "bgr")
    session = open_session(swapped, "fp32", artifact="graph")
    wrong = embed_faces(session, people)
    origin = origin_of(bundle, "fp32", "torch")
    write_embeddings(tmp_path / "r.npz", people.keys, people.labels, wrong, origin)
    found = verify(mini, "fp32", artifact="graph", faces=people, reference=tmp_path / "r.npz")
    assert not found.passed
    assert any(
        f.startswith("the reference embeddings") and "channels are BGR" in f for f in found.findings
    )


def test_a_good_engine_has_no_findings(mini: Path, people: Faces) -> None:
    assert not [
        f
        for f in verify(mini, "fp32", artifact="graph", faces=people).findings
        if not f.startswith("labels")
    ]


@pytest.mark.parametrize(("seed", "share"), [(0, 0.05), (3, 0.25)])
def test_a_kind_of_face_that_fails_alone_is_named(seed: int, share: float) -> None:
    """Noise everywhere, ten times as much on one kind; and the same noise on all."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(60), 4)
    old = random.normal(size=(60, 64))[labels] + 0.3 * random.normal(size=(240, 64))
    noise = 0.03 * random.normal(size=old.shape)
    odd = np.zeros(240, bool)
    odd[random.permutation(240)[: int(240 * share)]] = True
    faces = Faces("made up", tuple(f"{i:03d}" for i in range(240)), labels, lambda _: None)  # type: ignore[arg-type, return-value]
    measures = {("dark", "bright"): random.random(240).astype(np.float32)}

    def said(error: np.ndarray) -> str:
        one, other = old.astype(np.float32), (old + error).astype(np.float32)
        groups = {"bearded": odd, "others": ~odd}
        told = compare_verification(one, other, faces.labels, None, measures, 1e-2, groups)
        assert told is not None
        return strata_doubts(told.strata, measure_drift(one, other, faces.keys))[0]

    assert said(np.where(odd[:, None], 10 * noise, noise)).startswith("bearded faces alone")
    assert said(noise) == ""
    assert said(10 * noise) == ""
