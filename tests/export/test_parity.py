"""The proof: it measures what it says, and catches what is wrong."""

from types import SimpleNamespace

import numpy as np
import pytest

from fr_edge.errors import ModelError
from fr_edge.export.parity import (
    check_parity,
    measure_parity,
    probe_inputs,
    reference_embeddings,
)
from fr_edge.faces.contract import PRESETS, make_spec
from fr_edge.graph.run import onnx_embedder

RANDOM = np.random.default_rng(1)


def test_probes_are_faces_and_noise() -> None:
    for spec in (PRESETS["insightface"], make_spec("raw", size="112x96")):
        inputs = probe_inputs(spec)
        assert inputs.shape == (16, *spec.shape)
        assert inputs.dtype == np.float32
        np.testing.assert_array_equal(inputs, probe_inputs(spec))
    assert (probe_inputs(PRESETS["raw"]) % 1 == 0).all()


def test_every_batch_is_run() -> None:
    sizes: list[int] = []

    def embed(batch: np.ndarray) -> np.ndarray:
        sizes.append(len(batch))
        return batch.reshape(len(batch), -1)[:, :4]

    inputs = RANDOM.normal(size=(16, 3, 8, 8)).astype(np.float32)
    result = measure_parity(embed, inputs, inputs.reshape(16, -1)[:, :4])
    assert set(sizes) == {1, 7}
    assert sum(sizes) == 16
    assert (result.max_abs_difference, round(result.min_cosine, 9)) == (0, 1)


@pytest.mark.parametrize("row", [0, 6, 15])
def test_one_wrong_embedding_is_caught(row: int) -> None:
    inputs = RANDOM.normal(size=(16, 3, 8, 8)).astype(np.float32)
    right = inputs.reshape(16, -1)[:, :4]
    wrong = right.copy()
    wrong[row] = -wrong[row]
    places = {inputs[i].tobytes(): i for i in range(16)}
    with pytest.raises(ModelError, match="not the original: cosine -1"):
        check_parity(lambda b: wrong[[places[x.tobytes()] for x in b]], inputs, right)


def test_a_fixed_batch_is_caught(tools: SimpleNamespace) -> None:
    model = tools.build(batch=1, flatten="Reshape")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    inputs = probe_inputs(PRESETS["insightface"])
    expected = RANDOM.normal(size=(16, 16)).astype(np.float32)
    with pytest.raises(ModelError, match=r"does not take 7 face\(s\)"):
        check_parity(onnx_embedder(model.SerializeToString()), inputs, expected, min_cosine=-1)


def test_another_embedding_size_is_caught() -> None:
    inputs = RANDOM.normal(size=(16, 3, 8, 8)).astype(np.float32)
    with pytest.raises(ModelError, match=r"gives \(1, 5\) for 1 face"):
        check_parity(
            lambda b: np.ones((len(b), 5), np.float32), inputs, np.ones((16, 4), np.float32)
        )


REFERENCES = [
    (lambda b: np.full((len(b), 4), np.nan, np.float32), "not finite"),
    (lambda b: np.ones((len(b), 4), np.float32), "same embedding"),
    (lambda b: np.zeros((len(b), 4), np.float32), "same embedding"),
    (lambda b: b, "expected"),
    (lambda b: b.reshape(len(b), -1)[:, :1], "expected"),
]


@pytest.mark.parametrize(("embed", "match"), REFERENCES)
def test_references_that_prove_nothing(embed, match: str) -> None:
    with pytest.raises(ModelError, match=match):
        reference_embeddings(embed, probe_inputs(PRESETS["insightface"]))
