"""The input contract: what is written is what is read, and the pixels follow it."""

import json

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from fr_edge.errors import DataError, UsageError
from fr_edge.faces.contract import (
    PRESETS,
    VIEWS,
    ContractVariant,
    InputSpec,
    contract_variants,
    make_spec,
    preprocess,
    spec_from_json,
    spec_from_text,
)

U8 = npt.NDArray[np.uint8]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_comes_back_from_json(name: str) -> None:
    spec = PRESETS[name]
    assert spec_from_text(json.dumps(spec.to_json())) == spec


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
@pytest.mark.parametrize(("height", "width"), [(112, 112), (112, 96), (91, 112)])
def test_pixels_follow_the_contract(pictures: U8, channels: str, height: int, width: int) -> None:
    """Per pixel, against a plain loop; sides of 112 are cropped, never scaled."""
    spec = InputSpec(height, width, channels, mean=(10, 20, 30), std=(2, 4, 8))
    out = preprocess(pictures[:2], spec)
    assert out.shape == (2, *spec.shape)
    assert out.dtype == np.float32
    assert out.flags.c_contiguous
    top, left = (112 - height) // 2, (112 - width) // 2
    for channel in range(3):
        source = channel if channels == "RGB" else 2 - channel
        pixels = pictures[:2, top : top + height, left : left + width, source].astype(np.float64)
        wanted = (pixels - spec.mean[channel]) / spec.std[channel]
        np.testing.assert_allclose(out[:, channel], wanted, rtol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(160, 160), (224, 200), (64, 64)])
def test_other_sides_are_scaled_about_the_centre(pictures: U8, height: int, width: int) -> None:
    smooth = np.broadcast_to(np.arange(112, dtype=np.uint8)[None, :, None], (112, 112, 3))
    out = preprocess(smooth[None], InputSpec(height, width, mean=(0, 0, 0), std=(1, 1, 1)))
    assert out.shape == (1, 3, height, width)
    side = max(height, width)
    column = np.arange(width) + (side - width) // 2
    wanted = np.clip((column + 0.5) * 112 / side - 0.5, 0, 111)
    assert np.abs(out[0, 0, height // 2] - wanted).max() < 1.1
    assert preprocess(smooth[None][:0], InputSpec(height, width)).shape == (0, 3, height, width)


@pytest.mark.parametrize(
    "faces",
    [
        np.zeros((112, 112, 3), np.uint8),
        np.zeros((1, 112, 112, 3), np.float32),
        np.zeros((1, 3, 112, 112), np.uint8),
    ],
)
def test_other_arrays_are_refused(faces: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="expected"):
        preprocess(faces, InputSpec())


def test_what_is_typed_becomes_a_contract() -> None:
    spec = make_spec("facenet", mean="1,2,3", std="4", channels="bgr", size="112x96")
    assert spec == InputSpec(112, 96, "BGR", (1, 2, 3), (4, 4, 4))
    assert make_spec() == PRESETS["insightface"]
    assert make_spec(size="128").shape == (3, 128, 128)
    assert make_spec("raw").describe() == "RGB 112x112, (x - 0) / 1"
    assert (
        make_spec("imagenet").describe()
        == "RGB 112x112, (x - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]"
    )


@pytest.mark.parametrize(
    "typed",
    [
        {"preset": "other"},
        {"mean": "1,2"},
        {"mean": "x"},
        {"mean": "nan"},
        {"std": "0"},
        {"std": "-1"},
        {"channels": "GBR"},
        {"size": "big"},
        {"size": "1x2x3"},
        {"size": "4"},
        {"size": "112x"},
        {"size": "99999"},
    ],
)
def test_nonsense_is_a_usage_error(typed: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        make_spec(**typed)


@pytest.mark.parametrize(
    "data",
    [
        {"height": 112, "colour": "RGB"},
        {"height": "112"},
        {"height": 112.5},
        {"height": float("nan")},
        {"height": None},
        {"mean": 5},
        {"mean": [1, 2]},
        {"mean": [1, 2, "x"]},
        {"std": [1, 1, 0]},
        {"layout": "NHWC"},
        {"channels": "L"},
    ],
)
def test_a_damaged_contract_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(DataError):
        spec_from_json(data)


@pytest.mark.parametrize("text", ["", "[1]", "{", "7"])
def test_text_that_is_no_contract_is_refused(text: str) -> None:
    with pytest.raises(DataError):
        spec_from_text(text)


def test_variants_hold_the_contract_every_normalization_and_every_view_once() -> None:
    spec = InputSpec(height=112, width=96, channels="BGR", mean=(1.0, 2.0, 3.0), std=(4.0,) * 3)
    variants = contract_variants(spec)
    assert len(set(variants)) == len(variants)
    assert ContractVariant("declared", spec) in variants
    assert {v.spec.shape for v in variants} == {(3, 112, 96)}
    assert [v.view for v in variants if v.view != "upright"] == list(VIEWS)[1:]
    assert all(v.spec == spec for v in variants if v.view != "upright")
    usual = contract_variants(InputSpec())
    assert usual[0] == ContractVariant("insightface", InputSpec())
    assert "declared" not in {v.name for v in usual}


def test_a_variant_turns_the_faces_before_it_normalizes(pictures: U8) -> None:
    mirrored = ContractVariant("insightface", InputSpec(), "mirrored").inputs(pictures)
    np.testing.assert_array_equal(mirrored, preprocess(pictures, InputSpec())[..., ::-1])


def test_grey_is_pillows_luma() -> None:
    faces = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), np.uint8)
    faces[0, 0, :4] = [[255, 255, 255], [0, 0, 0], [255, 0, 0], [1, 2, 3]]
    spec = make_spec("raw", channels="grey")
    inputs = preprocess(faces, spec)
    assert spec.channels == make_spec(None, channels="gray").channels == "GREY"
    assert inputs.shape == (3, *spec.shape) == (3, 1, 112, 112)
    expected = [np.asarray(Image.fromarray(face).convert("L")) for face in faces]
    np.testing.assert_array_equal(inputs[:, 0], np.stack(expected))
    assert {v.spec.channels for v in contract_variants(spec)} == {"GREY"}
    with pytest.raises(UsageError, match="a grey input has one mean and one std"):
        make_spec("imagenet", channels="grey")
