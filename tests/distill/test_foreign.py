"""People's own networks: their code, TorchScript and torch.export files, and what is refused of them."""

import io
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fr_edge.distill.foreign.exported_program import load_exported_program
from fr_edge.distill.foreign.foreign_network import (
    OneEmbedding,
    is_program,
    load_program,
    open_foreign,
)
from fr_edge.distill.foreign.own_network import build_own_network
from fr_edge.distill.foreign.torchscript import load_torchscript
from fr_edge.errors import ModelError, UsageError

FACE = (3, 32, 32)

CODE = """
import torch
from torch import nn
from beside import DIM

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1, bias=False), nn.BatchNorm2d(8), nn.PReLU(8))
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Hardsigmoid())
        self.fc = nn.Linear(8 * 8 * 8, DIM)
    def forward(self, x):
        x = self.stem(x)
        x = x * self.gate(x)
        return nn.functional.normalize(self.fc(torch.flatten(x, 1)))

class Talks(Net):
    def forward(self, x):
        print("this is not a result")
        y = super().forward(x)
        return y, torch.linalg.vector_norm(y, dim=1, keepdim=True)

class Noisy(Net):
    def forward(self, x):
        return super().forward(x) + torch.randn(len(x), DIM)

class Two(Net):
    def forward(self, x):
        y = super().forward(x)
        return {"a": y, "b": 2 * y}

class Spectrum(Net):
    def forward(self, x):
        return torch.fft.fft(super().forward(x))

class OneFace(Net):
    def forward(self, x):
        return super().forward(x.reshape(1, 3, 32, 32))

def raises(): raise ValueError("not today")
def leaves(): raise SystemExit(3)
class Line(torch.nn.Linear):
    def __init__(self): super().__init__(3, 24)
def nothing(): print("this is not a result")
def needs(depth): return Net()
ready = Net()
number = 3
"""


@pytest.fixture
def code(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "beside.py").write_text("DIM = 24\n")
    return str(tmp_path / "mine.py")


@pytest.fixture
def network(code: str) -> nn.Module:
    torch.manual_seed(5)
    network = build_own_network(f"{code}:Net").eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2)
    return network


@pytest.fixture
def weights(network: nn.Module, tmp_path: Path) -> Path:
    """As Lightning saves it, with a head beside the network."""
    saved = {f"model.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": {**saved, "head.kernel": torch.ones(3)}}, tmp_path / "w.ckpt")
    return tmp_path / "w.ckpt"


def faces(count: int) -> torch.Tensor:
    return torch.rand((count, *FACE), generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.mark.parametrize("name", ["Net", "Talks", "ready"])
def test_a_network_of_a_persons_own_gets_its_weights(
    name: str, code: str, weights: Path, network: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    own = open_foreign(weights, f"{code}:{name}", None, None, FACE)
    assert own.batch is None
    with torch.no_grad():
        torch.testing.assert_close(own.module(faces(7)), network(faces(7)))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("this is not a result" in captured.err) == (name == "Talks")
    assert not list(Path(code).parent.glob("__pycache__"))


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("raises", ModelError, r"raised ValueError: not today \(mine\.py, line \d+\)"),
        ("leaves", ModelError, r"left the program \(3\)"),
        ("Line", ModelError, "Line, given faces of 1x3x32x32, raised RuntimeError"),
        ("nothing", ModelError, "gives nothing, expected a torch.nn.Module"),
        ("needs", UsageError, "needs depth"),
        ("number", UsageError, "has no function number"),
        ("absent", UsageError, "has no function absent"),
        ("1", UsageError, "is not FILE.py:FUNCTION"),
        ("Noisy", ModelError, "its output is random"),
        ("Two", ModelError, "a: 1x24 float32, b: 1x24 float32 .* 2 of them"),
        ("Spectrum", ModelError, "0: 1x24 complex64 .* none can be the embedding"),
    ],
)
def test_code_that_gives_no_network(
    name: str, kind: type[Exception], message: str, code: str, weights: Path
) -> None:
    with pytest.raises(kind, match=message):
        open_foreign(weights, f"{code}:{name}", None, None, FACE)


def test_files_and_modules_that_are_not_there(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"no file .*nowhere\.py"):
        build_own_network("nowhere.py:Net")
    with pytest.raises(UsageError, match="no module nowhere_at_all"):
        build_own_network("nowhere_at_all:Net")
    Path(code).with_name("broken.py").write_text("import nothing_like_this\n")
    monkeypatch.chdir(Path(code).parent)
    with pytest.raises(ModelError, match="ModuleNotFoundError: .*nothing_like_this"):
        build_own_network("broken:Net")


def test_an_output_is_named(code: str, weights: Path, network: nn.Module) -> None:
    own = open_foreign(weights, f"{code}:Two", None, "b", FACE)
    with torch.no_grad():
        torch.testing.assert_close(own.module(faces(3)), 2 * network(faces(3)))
    with pytest.raises(UsageError, match="--output c"):
        open_foreign(weights, f"{code}:Two", None, "c", FACE)


def test_a_network_that_takes_one_face_at_a_time(code: str, weights: Path) -> None:
    assert open_foreign(weights, f"{code}:OneFace", None, None, FACE).batch == 1


def test_weights_of_another_network(code: str, network: nn.Module, tmp_path: Path) -> None:
    state = network.state_dict()
    state["fc.weight"] = torch.ones(24, 7)
    state["fc.bias"] = state["fc.bias"].to(torch.complex64)
    del state["gate.1.bias"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ModelError) as caught:
        open_foreign(tmp_path / "w.pth", f"{code}:Net", None, None, FACE)
    assert "1 missing (gate.1.bias)" in str(caught.value)
    assert "fc.weight (24, 7) where (24, 512) is expected" in str(caught.value)


def traced(network: nn.Module, path: Path) -> None:
    with torch.no_grad():
        torch.jit.trace(network, faces(2), check_trace=False).save(path)


def scripted(network: nn.Module, path: Path) -> None:
    torch.jit.script(network).save(path)


def frozen(network: nn.Module, path: Path) -> None:
    torch.jit.freeze(torch.jit.script(network)).save(path)


def exported(network: nn.Module, path: Path) -> None:
    torch.export.save(torch.export.export(network, (faces(2),)), path)


def exported_freely(network: nn.Module, path: Path) -> None:
    batch = torch.export.Dim("batch", min=1, max=512)
    program = torch.export.export(network, (faces(2),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # people have such files all the same
@pytest.mark.parametrize("save", [traced, scripted, frozen, exported, exported_freely])
def test_programs_compute_what_they_computed(
    save: Callable[[nn.Module, Path], None], network: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "program.pt2"
    save(network, path)
    assert is_program(path)
    module = OneEmbedding(load_program(path), "program", None)
    with torch.no_grad():
        torch.testing.assert_close(module(faces(2)), network(faces(2)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_program_is_tried_apart_before_it_is_run(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Endless(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x.flatten(1)
            for _ in range(1 << 40):
                y = y + 1
            return y

    scripted(Endless(), tmp_path / "endless.pt")
    monkeypatch.setenv("FR_EDGE_MAX_APART_SECONDS", "4")
    with pytest.raises(ModelError, match="does not finish on one image within 4 s"):
        open_foreign(tmp_path / "endless.pt", None, None, None, FACE)


class Writes(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) + torch.from_file("sprung", shared=True, size=24)


class Waits(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while bool(x.sum() < 1e9):
            x = x + 1
        return x.flatten(1)


class Says(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print("TorchScript prints too")
        return x.flatten(1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "message"),
    [(Writes, r"a call of torch\.from_file"), (Waits, "a While"), (Says, "a call of print")],
)
def test_torchscript_that_does_more_than_compute_is_not_loaded(
    kind: type[nn.Module],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    scripted(kind(), tmp_path / "program.pt")
    with pytest.raises(ModelError, match=message):
        load_torchscript(tmp_path / "program.pt")
    assert not (tmp_path / "sprung").exists()


def rewritten(path: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """The archive with its files changed."""
    data = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(data, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    path.write_bytes(data.getvalue())
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"torch.ops.aten.relu.default", b"torch.hub.load", r"calls torch\.hub\.load"),
        (b"torch.ops.aten.relu.default", b"torch.ops.aten.from_file.default", "calls .*from_file"),
        (b"torch.ops.aten.relu.default", b"#custom.op", "calls #custom.op"),
        (b'"use_pickle": false', b'"use_pickle": true', "is a pickle"),
        (b'{"as_int": 7}', b'{"as_int": 7000000}', "fewer numbers than its shape"),
        (b'"major": 8', b'"major": 99', "schema 99"),
        (b'"graph_module"', b'"other"', "not a torch.export file|cannot be read|missing"),
    ],
)
def test_torch_export_files_that_are_refused(
    old: bytes, new: bytes, message: str, tmp_path: Path
) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 7), nn.ReLU())
    path = tmp_path / "p.pt2"
    exported(network, path)
    before = load_exported_program(path)
    assert [node.target.split(".")[3] for node in before.nodes] == ["flatten", "linear", "relu"]
    rewritten(path, lambda name, data: data.replace(old, new))
    with pytest.raises(ModelError, match=message):
        load_exported_program(path)


def test_guards_of_a_torch_export_file_are_not_run(tmp_path: Path) -> None:
    """torch.export.load compiles them as Python."""
    path, trap = tmp_path / "p.pt2", tmp_path / "sprung"
    exported(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 24)), path)

    def plant(name: str, data: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return data
        document = json.loads(data)
        document["guards_code"] = [f"__import__('os').mkdir({str(trap)!r}) is None"]
        return json.dumps(document).encode()

    with torch.no_grad(), warnings.catch_warnings():
        assert load_exported_program(rewritten(path, plant))(faces(2))[0].shape == (2, 24)
    assert not trap.exists()
