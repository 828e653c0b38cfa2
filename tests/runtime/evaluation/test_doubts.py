"""What lets people judge nothing: labels that are mixed up, and another input contract."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fr_edge.export.export import export_onnx
from fr_edge.faces.contract import ContractVariant, InputSpec
from fr_edge.faces.sources import Faces
from fr_edge.metrics.decidability import mean_impostor, pair_sums
from fr_edge.runtime.evaluation.doubts import (
    ContractTrial,
    compare_contracts,
    forced_contract,
    label_doubts,
    try_contracts,
)
from fr_edge.runtime.session import embed_faces, open_session


def test_swapped_labels_are_named_and_honest_ones_are_not() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 4)
    rows = random.normal(size=(20, 16))[labels] + 0.3 * random.normal(size=(80, 16))
    keys = tuple(f"{i:02d}" for i in range(80))
    honest = label_doubts(rows.astype(np.float32), labels, keys, 1e-1)[0]
    mixed = label_doubts(rows.astype(np.float32), random.permutation(labels), keys, 1e-1)[0]
    assert honest == ""
    assert "labels are mixed up" in mixed


@pytest.mark.parametrize(("people", "images", "swapped"), [(20, 4, 2), (50, 3, 7), (9, 12, 20)])
def test_a_few_swapped_labels_are_counted(people: int, images: int, swapped: int) -> None:
    random = np.random.default_rng(people)
    labels = np.repeat(np.arange(people), images)
    rows = random.normal(size=(people, 32))[labels] + 0.4 * random.normal(size=(len(labels), 32))
    keys = tuple(f"{i:03d}" for i in range(len(labels)))
    # One of each of so many groups of faces gets the next one's label: never its own.
    moved = np.arange(swapped) * (len(labels) // swapped)
    mixed = labels.copy()
    mixed[moved] = (labels[moved] + people // 2) % people
    said, decides = label_doubts(rows.astype(np.float32), mixed, keys, 1e-1)
    assert decides == (swapped >= 0.05 * len(labels))
    # Of synthetic faces the labels are right: it is the network that confuses them.
    confused, decides = label_doubts(rows.astype(np.float32), mixed, keys, 1e-1, synthetic=True)
    assert not decides
    assert "the network confuses them" in confused
    assert "wrong folder" not in confused
    assert re.match(rf"labels: {swapped} of {len(labels)} faces .* the first is 000:", said), said
    assert label_doubts(rows.astype(np.float32), labels, keys, 1e-1)[0] == ""
    # A network that knows no person accuses no folder.
    blind = random.normal(size=rows.shape).astype(np.float32)
    assert "wrong folder" not in label_doubts(blind, labels, keys, 1e-1)[0]


def test_wrong_folders_that_set_the_threshold_decide() -> None:
    """Two of 300 faces are few, and yet most of the impostor pairs that a small FAR accepts."""
    random = np.random.default_rng(1)
    labels = np.repeat(np.arange(60), 5)
    rows = random.normal(size=(60, 32))[labels] + 0.4 * random.normal(size=(300, 32))
    mixed = labels.copy()
    mixed[[0, 100]] = labels[[150, 200]]
    keys = tuple(f"{i:03d}" for i in range(300))
    impostors = (300**2 - int((np.bincount(mixed) ** 2).sum())) // 2
    text, decides = label_doubts(rows.astype(np.float32), mixed, keys, 1e-3)
    assert decides
    assert f"up to 8 of the {int(1e-3 * impostors)} pairs that set the threshold" in text
    text, decides = label_doubts(rows.astype(np.float32), mixed, keys, 1e-2)
    assert not decides
    assert text.endswith("they lie in the wrong folder")


# The input contract.


def write_red_network(path: Path) -> Path:
    """A network that looks at the first channel alone."""
    random = np.random.default_rng(2)
    weights = random.normal(0, 0.2, (16, 3, 7, 7))
    weights[:, 1:] = 0
    arrays = {"w": weights, "dense": random.normal(0, 0.05, (16 * 256, 64)), "bias": np.zeros(64)}
    nodes = [
        helper.make_node("Conv", ["data", "w"], ["conv"], strides=[7, 7]),
        helper.make_node("Flatten", ["conv"], ["flat"]),
        helper.make_node("Gemm", ["flat", "dense", "bias"], ["out"]),
    ]
    shapes = ("data", ("N", 3, 112, 112)), ("out", ("N", 64))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes]
    stored = [numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items()]
    graph = helper.make_graph(nodes, "red", ends[:1], ends[1:], stored)
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), str(path))
    return path


def colourful_people(count: int, strength: float = 1.0) -> Faces:
    """Whose colours differ from person to person; noise hides their blue more than their red."""
    random = np.random.default_rng(5)
    tiles = strength * random.normal(0, 1, (count, 16, 16, 3))
    tiles = tiles.repeat(7, axis=1).repeat(7, axis=2)
    noise = random.normal(0, 1, (count, 2, 112, 112, 3))
    blocks = random.normal(0, 0.5, (count, 2, 16, 16, 3)) * (1, 1, 4)
    noise = noise / 4 + blocks.repeat(7, axis=2).repeat(7, axis=3)
    pixels = np.clip(127.5 + 40 * (tiles[:, None] + noise), 0, 255).astype(np.uint8)
    keys = tuple(f"{person}/{face}" for person in range(count) for face in range(2))
    return Faces("people", keys, np.repeat(np.arange(count), 2), lambda i: pixels[i // 2, i % 2])


def test_another_contract_that_leads_is_a_doubt(tmp_path: Path) -> None:
    network, faces = write_red_network(tmp_path / "red.onnx"), colourful_people(30)
    bundles = {
        channels: export_onnx(
            network, tmp_path / f"{channels}.bundle", spec=InputSpec(channels=channels)
        ).bundle
        for channels in ("RGB", "BGR")
    }

    def tried(channels: str, source: Faces = faces) -> ContractTrial:
        bundle = bundles[channels]
        with open_session(bundle, "fp32", artifact="graph") as session:
            embeddings = embed_faces(session, source)
            return try_contracts(session, embeddings, source, bundle.spec)

    assert tried("RGB") == ContractTrial()
    doubt = tried("BGR").doubt
    assert doubt is not None
    assert doubt.verdict == "CANNOT JUDGE"
    assert "BGR 112x112, (x - 127.5) / 127.5) is not the one of the network's training" in (
        doubt.reason
    )
    assert "with RGB 112x112" in doubt.reason
    assert "separates 30 of these people better" in doubt.reason
    assert "fr-edge find-preprocessing" in doubt.cure
    assert forced_contract(bundles["BGR"]) is None
    export = {"stage": "export", "summary": {"contract": {"right": False}}}
    forced = forced_contract(replace(bundles["BGR"], history=(export, {"stage": "calibrate"})))
    assert forced is not None
    assert "it was forced" in forced.reason
    few = tried("BGR", colourful_people(19))
    assert few.not_shown == "19 people have two photographs, 20 needed to show it"
    synthetic = tried("BGR", replace(faces, synthetic=True))
    assert synthetic.not_shown == "synthetic faces do not show it"
    # Better beyond chance, but such a network was trained with neither.
    weak = tried("BGR", colourful_people(30, 0.3))
    assert weak.doubt is None
    assert "hardly tells these people apart under any" in weak.not_shown


@pytest.mark.parametrize(
    ("noise", "expected"), [(0.2, "is not"), (0.45, "may not be"), (0.5, "not shown"), (0.8, "")]
)
def test_a_lead_decides_by_its_error(noise: float, expected: str) -> None:
    """Another contract's embeddings with less noise than the declared one's, as much, or more."""
    random = np.random.default_rng(2)
    labels = np.repeat(np.arange(40), 2)
    people = random.normal(size=(40, 32))[labels]
    own = (people + 0.5 * random.normal(size=people.shape)).astype(np.float32)
    other = (people + noise * random.normal(size=people.shape)).astype(np.float32)
    strangers = random.normal(size=people.shape).astype(np.float32)
    spec = InputSpec()

    def embed(variant: ContractVariant, rows: np.ndarray) -> np.ndarray:
        return (other if variant.spec == replace(spec, channels="BGR") else strangers)[rows]

    trial = compare_contracts(embed, own, labels, spec)
    if expected in ("", "not shown"):
        assert trial.doubt is None
        assert ("40 people do not show whether RGB" in trial.not_shown) == bool(expected)
    else:
        assert trial.doubt is not None
        assert f"{expected} the one of the network's training: with BGR" in trial.doubt.reason
        assert ("more people" in trial.doubt.cure) == (expected == "may not be")
    # Contracts that give the same embeddings are one, however certain a lead would be.
    assert compare_contracts(lambda _, rows: own[rows], own, labels, spec) == ContractTrial()


def test_an_untrained_network_has_no_contract() -> None:
    """Embeddings that share most of their length are of no training, however well they separate."""
    random = np.random.default_rng(3)
    labels = np.repeat(np.arange(40), 2)
    people = random.normal(size=(40, 32))[labels]
    own, other = (
        (people + 2 + noise * random.normal(size=people.shape)).astype(np.float32)
        for noise in (0.5, 0.1)
    )
    assert mean_impostor(pair_sums(other, labels)) > 0.7
    trial = compare_contracts(lambda _, rows: other[rows], own, labels, InputSpec())
    assert trial.doubt is None
    assert "hardly tells these people apart under any" in trial.not_shown
