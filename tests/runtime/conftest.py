"""A small real network in a bundle, exported and calibrated once."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path[:0] = [str(Path(__file__).parents[1])]
from tiny_network import bundle, faces, gpu_backend, tiny  # noqa: E402, F401

from fr_edge.faces.sources import Faces, open_faces  # noqa: E402


@pytest.fixture(scope="session")
def people() -> Faces:
    """12 drawn people, 4 faces each, drawn once."""
    source = open_faces("synthetic:12x4@9")
    pixels = np.concatenate(list(source.batches(48)))
    return replace(source, read=lambda index: pixels[index])


@pytest.fixture(scope="session")
def distinct() -> Faces:
    """40 people whom a network of random weights tells apart: 4 noisy copies of a face each."""
    source, random = open_faces("synthetic:40x4@9"), np.random.default_rng(0)
    base = [source.read(4 * person) for person in range(40)]
    pixels = [
        np.clip(base[i // 4] + random.normal(0, 4, base[0].shape), 0, 255).astype(np.uint8)
        for i in range(len(source))
    ]
    return replace(source, read=lambda index: pixels[index])
