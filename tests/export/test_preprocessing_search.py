"""The diagnosis, on a network made to need one contract: it must be named, or a tie called."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from fr_edge.documents import to_builtins
from fr_edge.errors import FacesError
from fr_edge.export import preprocessing_search
from fr_edge.export.preprocessing_search import find_preprocessing, rank_contracts
from fr_edge.faces.contract import NORMALIZATIONS, PRESETS, VIEWS, InputSpec
from fr_edge.faces.sources import Faces, open_faces

PEOPLE, IMAGES = 40, 4


def patterns(view: Callable[[np.ndarray], np.ndarray] = lambda face: face) -> Faces:
    """Each person is a pattern of 14x14 colours; blue, and the lower half, are mostly noise."""
    random = np.random.default_rng(0)
    people = random.uniform(0, 255, (PEOPLE, 14, 14, 3))

    def read(index: int) -> np.ndarray:
        noise = np.random.default_rng(index + 1).uniform(0, 255, (14, 14, 3))
        share = np.full((14, 14, 3), 0.35)
        share[..., 2] = 0.9
        share[7:] = 0.95
        face = people[index // IMAGES] * (1 - share) + noise * share
        return np.ascontiguousarray(view(face.astype(np.uint8).repeat(8, 0).repeat(8, 1)))

    labels = tuple(i // IMAGES for i in range(PEOPLE * IMAGES))
    return Faces("patterns", tuple(f"{i}" for i in labels), labels, read)


def network(spec: InputSpec) -> Callable[[np.ndarray], np.ndarray]:
    """Looks at the upper half and hardly at blue, in steps around grey."""

    def embed(inputs: np.ndarray) -> np.ndarray:
        mean, std = (np.float32(v).reshape(3, 1, 1) for v in (spec.mean, spec.std))
        pixels = inputs * std + mean
        if spec.channels == "BGR":
            pixels = pixels[:, ::-1]
        small = pixels.reshape(len(pixels), 3, 14, 8, 14, 8).mean((3, 5))[:, :, :7]
        # Coarse and saturating, as trained layers are: too little contrast is lost, too much too.
        seen = np.clip(np.round((small - 127.5) / 20), -4, 4)
        seen = seen * np.float32([1, 1, 0.3]).reshape(3, 1, 1)
        return seen.reshape(len(seen), -1).astype(np.float32)

    return embed


FACES = patterns()


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_the_contract_is_named(name: str, channels: str) -> None:
    mean, std = NORMALIZATIONS[name]
    truth = InputSpec(channels=channels, mean=mean, std=std)
    result = rank_contracts(network(truth), (112, 112), FACES)
    assert result.separates
    tied = {(c.name, c.channels) for c in result.ranking if c.tied and c.view == "upright"}
    near = {"insightface", "127.5/128"}
    colours = {"127.5/1", "imagenet mean/1"}  # shifts of colour that this network hardly notices
    if name in colours:
        assert (name, channels) in tied
        assert {other for other, _ in tied} <= colours
        assert {order for _, order in tied} == {channels}
    else:
        assert tied == {(each, channels) for each in (near if name in near else {name})}
    assert result.best.view == "upright"
    assert result.right is None
    assert ("a tie" in result.verdict) == (len(tied) > 1)


def test_of_a_tie_the_usual_is_named_first() -> None:
    truth = InputSpec(std=(128.0, 128.0, 128.0))
    result = rank_contracts(network(truth), (112, 112), FACES)
    assert result.best.name == "insightface"
    assert result.verdict.startswith("trained with --preset insightface")
    assert "(x - 127.5) / 128: a tie" in result.verdict


def test_a_declared_contract_is_judged() -> None:
    truth = PRESETS["insightface"]
    embed = network(truth)
    assert rank_contracts(embed, (112, 112), FACES, truth).right is True
    # Within a tie the declared one is as good.
    near = replace(truth, std=(128.0, 128.0, 128.0), l2_normalised=True)
    assert rank_contracts(embed, (112, 112), FACES, near).right is True
    wrong = rank_contracts(embed, (112, 112), FACES, PRESETS["raw"])
    assert wrong.right is False
    assert "declared contract (RGB 112x112, (x - 0) / 1) is wrong" in wrong.verdict


def test_an_unusual_contract_that_is_declared_is_tried() -> None:
    truth = InputSpec(mean=(90.0, 100.0, 110.0), std=(60.0, 61.0, 62.0))
    result = rank_contracts(network(truth), (112, 112), FACES, truth)
    assert result.right is True
    assert result.best.name == "declared"


def test_faces_upside_down_are_noticed() -> None:
    result = rank_contracts(
        network(PRESETS["insightface"]), (112, 112), patterns(lambda face: face[::-1])
    )
    assert result.best.view == "upside down"
    assert result.best.name == "insightface"
    assert "faces are upside down" in result.verdict


def test_nothing_separates_strangers() -> None:
    shuffled = np.random.default_rng(1).permutation(FACES.labels)
    mixed = replace(FACES, labels=tuple(int(v) for v in shuffled))
    result = rank_contracts(network(PRESETS["insightface"]), (112, 112), mixed, PRESETS["raw"])
    assert not result.separates
    assert result.right is None
    assert result.verdict.startswith("no candidate separates these people")


def test_too_few_people() -> None:
    few = replace(FACES, labels=tuple(i // 2 if i < 14 else 100 + i for i in range(len(FACES))))
    with pytest.raises(FacesError, match="7 identities with two images"):
        rank_contracts(network(PRESETS["raw"]), (112, 112), few)


def test_the_number_of_images_is_limited() -> None:
    """And none is embedded twice: the best contracts are tried on the images that are left."""
    seen: list[int] = []
    embed = network(PRESETS["insightface"])

    def counted(inputs: np.ndarray) -> np.ndarray:
        seen.extend(hash(image.tobytes()) for image in inputs)
        return embed(inputs)

    result = rank_contracts(counted, (112, 112), FACES, limit=64)
    assert (result.images, result.identities) == (64, 32)
    tried = len(NORMALIZATIONS) * 2 + len(VIEWS) - 1
    assert tried * 48 // 2 < len(seen) <= tried * 64
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("scouts", [40, 48])
def test_faces_of_a_batch_that_was_not_whole_are_embedded_again(
    scouts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = network(PRESETS["insightface"])
    monkeypatch.setattr(preprocessing_search, "_SCOUTS", 64)
    at_once = rank_contracts(embed, (112, 112), FACES, limit=64).best
    monkeypatch.setattr(preprocessing_search, "_SCOUTS", scouts)
    assert rank_contracts(embed, (112, 112), FACES, limit=64).best == at_once


def test_an_onnx_file_and_its_bundle(tmp_path: Path, tools: SimpleNamespace) -> None:
    """The whole way: a file without a contract, faces on disk, the verdict in words and JSON."""
    path = tmp_path / "net.onnx"
    onnx.save(tools.build(), str(path))
    result = find_preprocessing(path, open_faces("synthetic:10x3"), limit=20)
    assert result.declared is None
    assert {c.channels for c in result.ranking} == {"RGB", "BGR"}
    assert len(result.ranking) == 2 * len(NORMALIZATIONS) + len(VIEWS) - 1
    assert to_builtins(result)["ranking"][0]["input"]["height"] == 112


@pytest.mark.real
def test_a_real_network(real_data: Path) -> None:
    """Another one, for pixels: export with faces alone."""
    faces = open_faces(real_data / "faces_dev.tar")
    result = find_preprocessing(real_data / "mobilefacenet_casia.onnx", faces, limit=96)
    tied = [(c.name, c.channels) for c in result.ranking if c.tied and c.view == "upright"]
    assert tied == [("insightface", "RGB"), ("127.5/128", "RGB")]
