"""Checkpoints as a source of export: weights in many wrappings are found, code is never run."""

import json
import os
import pickle
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from fr_edge.cli.main import run
from fr_edge.distill.networks import build_network
from fr_edge.errors import DataError, ModelError, UsageError
from fr_edge.export.export import export_onnx
from fr_edge.export.torch_network import load_torch_network
from fr_edge.faces.contract import PRESETS
from fr_edge.graph.run import onnx_embedder

ARCH = "mobilefacenet-0.25"


class Trap:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.fixture
def network() -> torch.nn.Module:
    torch.manual_seed(3)
    network = build_network(ARCH, 48)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2)
    return network.eval()


def wrap(kind: str, state: dict) -> object:
    return {
        "alone": state,
        "named": {"network": ARCH, "dim": 48, "state": state},
        "in a dict": {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}},
        "all of a training": {"epoch": 3, "global_step": 9, "state_dict_backbone": state,
                              "state_dict_softmax_fc": {"weight": torch.zeros(3, 48)}},
        "parallel": {f"module.{k}": v for k, v in state.items()},
        "compiled": {f"_orig_mod.module.{k}": v for k, v in state.items()},
        "beside a head": {"model": {f"backbone.{k}": v for k, v in state.items()}
                          | {"head.weight": torch.zeros(3)}},
        "half precision": {k: v.half() if v.is_floating_point() else v for k, v in state.items()},
        "without counters": {k: v for k, v in state.items() if "num_batches" not in k},
    }[kind]  # fmt: skip


KINDS = ("alone", "named", "in a dict", "parallel", "compiled", "beside a head", "half precision")
KINDS += ("without counters", "all of a training")


@pytest.mark.parametrize(("kind", "zipped"), [("alone", False), *product(KINDS, [True])])
def test_wrappings(kind: str, zipped: bool, network: torch.nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(wrap(kind, network.state_dict()), path, _use_new_zipfile_serialization=zipped)
    found, name, dim = load_torch_network(path, None if kind == "named" else ARCH)
    assert (name, dim) == (ARCH, 48)
    assert not found.training
    faces = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        tolerance = 0.05 if kind == "half precision" else 0
        expected = network(faces)
        torch.testing.assert_close(
            found.float()(faces), expected, rtol=0, atol=tolerance * float(expected.abs().max())
        )


@pytest.mark.parametrize("zipped", [True, False, None])
def test_code_is_never_run(zipped: bool | None, network: torch.nn.Module, tmp_path: Path) -> None:
    path, trap = tmp_path / "w.pt", tmp_path / "sprung"
    if zipped is None:
        path.write_bytes(pickle.dumps(Trap(trap)))
    else:
        saved = {"state_dict": network.state_dict(), "more": Trap(trap)}
        torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match="could run code: refused|not a PyTorch checkpoint"):
        export_onnx(path, tmp_path / "b", arch=ARCH, spec=PRESETS["insightface"])
    assert not trap.exists()
    assert not (tmp_path / "b").exists()


def test_a_pickle_under_another_name(tmp_path: Path) -> None:
    path, trap = tmp_path / "w.onnx", tmp_path / "sprung"
    path.write_bytes(pickle.dumps(Trap(trap)))
    with pytest.raises(DataError):
        export_onnx(path, tmp_path / "b", spec=PRESETS["insightface"])
    assert not trap.exists()


def test_whole_modules_are_refused(network: torch.nn.Module, tmp_path: Path) -> None:
    torch.save(network, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="refused") as caught:
        load_torch_network(tmp_path / "w.pt", ARCH)
    assert "state_dict()" in caught.value.hint


def refused(saved: object, tmp_path: Path, match: str, arch: str = ARCH) -> ModelError:
    torch.save(saved, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=match) as caught:
        load_torch_network(tmp_path / "w.pt", arch)
    return caught.value


def test_misfits(network: torch.nn.Module, tmp_path: Path) -> None:
    state = network.state_dict()
    lacking = {k: v for k, v in state.items() if not k.startswith("embed")}
    refused(lacking, tmp_path, r"1 missing \(embed.weight\)")
    refused({**state, "head.weight": torch.zeros(3)}, tmp_path, r"1 too many \(head.weight\)")
    where = r"features.0.0.weight \(16, 3, 3, 3\) where \(32, 3, 3, 3\) is expected"
    refused(state, tmp_path, where, "mobilefacenet-0.5")
    error = refused(state, tmp_path, "not a iresnet18: of its keys, .* missing", "iresnet18")
    assert "too many" in error.message
    assert len(error.message) < 900


def test_safetensors(network: torch.nn.Module, tmp_path: Path) -> None:
    torch_files = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    path = tmp_path / "w.safetensors"
    torch_files.save_file(network.state_dict(), path)
    found, name, dim = load_torch_network(path, ARCH)
    assert (name, dim) == (ARCH, 48)
    torch.testing.assert_close(found.state_dict(), network.state_dict())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="not a safetensors file, or is damaged"):
        load_torch_network(path, ARCH)


def test_nan_weights(network: torch.nn.Module, tmp_path: Path) -> None:
    state = network.state_dict()
    state["norm.running_var"][7] = float("nan")
    refused(state, tmp_path, "norm.running_var holds NaN")


@pytest.mark.parametrize("data", [b"", b"junk" * 99, b"PK\x03\x04" + bytes(200)])
def test_no_checkpoint(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(data)
    with pytest.raises(ModelError, match="not a PyTorch checkpoint"):
        load_torch_network(tmp_path / "w.pt", ARCH)


def test_other_things(tmp_path: Path) -> None:
    refused([1, 2], tmp_path, "holds a list")
    refused({"epoch": 3}, tmp_path, "holds no tensors; found epoch")


def test_the_name_is_asked_for(network: torch.nn.Module, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "w.pt")
    with pytest.raises(UsageError, match="does not say which network") as caught:
        load_torch_network(tmp_path / "w.pt")
    assert ARCH in caught.value.hint
    with pytest.raises(UsageError, match="no network 'arcface'"):
        load_torch_network(tmp_path / "w.pt", "arcface")


def test_a_size_the_network_cannot_take(network: torch.nn.Module, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "w.pt")
    spec = replace(PRESETS["insightface"], width=96)
    with pytest.raises(UsageError, match="does not take faces of 112x96"):
        export_onnx(tmp_path / "w.pt", tmp_path / "b", arch=ARCH, spec=spec)


@pytest.mark.parametrize("source", ["code", "program"])
def test_own_code_and_programs_export_to_what_they_compute(
    source: str, network: torch.nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command line to the graph; the program is for two faces and starts a process."""
    small = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 7, 8),
        torch.nn.PReLU(8),
        torch.nn.Flatten(),
        torch.nn.Linear(1568, 24),
    ).eval()
    path, arch = tmp_path / "w.pth", []
    if source == "code":
        torch.save({"net._orig_mod." + k: v for k, v in small.state_dict().items()}, path)
        code = "from torch import nn\ndef net():\n    return nn.Sequential(nn.Conv2d(3, 8, 7, 8),"
        code += " nn.PReLU(8), nn.Flatten(), nn.Linear(1568, 24))\nprint('no result')\n"
        (tmp_path / "mine.py").write_text(code)
        arch = ["--arch", f"{tmp_path / 'mine.py'}:net"]
    else:
        path = tmp_path / "p.pt2"
        torch.export.save(torch.export.export(small, (torch.zeros(2, 3, 112, 112),)), path)
    bundle = tmp_path / "b"
    words = ["export", str(path), "--out", str(bundle), "--preset", "insightface", "--json", *arch]
    assert run(words) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["check"]["min_cosine"] > 0.99999
    assert ("code is run" in captured.err) == (source == "code")
    assert not (bundle / "model.pt").exists()
    assert str(tmp_path) not in (bundle / "bundle.json").read_text()
    faces = torch.randn(7, 3, 112, 112)
    embed = onnx_embedder((bundle / "model.onnx").read_bytes())
    with torch.no_grad():
        np.testing.assert_allclose(embed(faces.numpy()), small(faces).numpy(), atol=1e-5)
