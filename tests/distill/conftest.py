"""Small trainings that take a second or two."""

from pathlib import Path

import pytest
import torch

from fr_edge.bundle.bundle import transaction
from fr_edge.distill.networks import build_network
from fr_edge.distill.recipe import Recipe, read_recipe
from fr_edge.distill.weights import save_network
from fr_edge.faces.contract import InputSpec
from fr_edge.faces.sources import Faces, open_faces


@pytest.fixture(scope="session")
def faces() -> Faces:
    return open_faces("synthetic:10x5@3").cached()  # drawn once, not in each training


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with the weights of a small network that was never trained."""
    torch.manual_seed(5)
    root = tmp_path_factory.mktemp("teacher") / "teacher.bundle"
    with transaction(root, "distill", {}) as draft:
        draft.spec, draft.embedding_dim = InputSpec(), 32
        network = build_network("iresnet-tiny", 32)
        save_network(draft.path("model.pt", "weights"), network.state_dict(), "iresnet-tiny", 32)
    return root


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    changes = ["batch=8", "epochs=2", "verify_identities=4", "lr=0.02", "checkpoint_s=0"]
    return read_recipe("tiny", changes)
