"""Whether a plan will load is said before it is loaded."""

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from fr_edge.bundle.bundle import open_bundle
from fr_edge.cli.main import run
from fr_edge.errors import DataError, MachineError
from fr_edge.files import sha256
from fr_edge.runtime.build import build_engine
from fr_edge.runtime.fingerprint import differences, machine_fingerprint
from fr_edge.runtime.machine import backends, device
from fr_edge.runtime.machine.backends import same_version
from fr_edge.runtime.machine.device import Gpu, GpuList, find_gpus
from fr_edge.runtime.trt.plan_file import check_plan, ensure_loadable, read_header

no_gpu = pytest.mark.skipif(bool(find_gpus().gpus), reason="says what a machine without GPU says")


def header(tag: bytes, version: tuple[int, ...], size: int = 64) -> bytes:
    """The start of a plan as trtexec's source and TensorRT-RTX 1.7's plans have it."""
    head = bytearray(size)
    head[:4] = tag
    head[16:24] = size.to_bytes(8, "little")
    head[28 - len(version) : 28] = bytes(version)
    return bytes(head)


def plan(folder: Path, data: bytes, **sidecar: object) -> Path:
    path = folder / "engine.plan"
    path.write_bytes(data)
    if sidecar:
        path.with_name("engine.plan.json").write_text(json.dumps(sidecar))
    return path


def test_the_header_of_each_library(tmp_path):
    full = read_header(plan(tmp_path, header(b"ftrt", (10, 3, 0, 26))))
    assert (full.backend, full.version) == ("tensorrt", (10, 3, 0, 26))
    rtx = read_header(plan(tmp_path, header(b"vtrt", (1, 7, 1, 116))))
    assert (rtx.backend, rtx.version, rtx.size) == ("tensorrt-rtx", (1, 7, 1, 116), 64)


@pytest.mark.parametrize("data", [b"", b"ftrt", b"\x08\x07onnx" * 20, b"\0" * 4096])
def test_files_that_are_no_plan(tmp_path, data):
    with pytest.raises(DataError, match="is not a TensorRT plan"):
        check_plan(plan(tmp_path, data))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        check_plan(tmp_path / "none.plan")


@no_gpu
def test_a_plan_of_a_board_says_why_not_and_what_to_do(tmp_path):
    check = check_plan(
        plan(tmp_path, header(b"ftrt", (10, 3, 0, 26)), precision="fp16", backend="tensorrt")
    )
    assert check.version == "10.3.0.26"
    assert any("not installed" in text or "driver" in text for text in check.problems)
    assert "build-engine BUNDLE --fp16 --backend tensorrt" in check.hint
    assert not check.loads


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_damaged_sidecar(tmp_path, text):
    path = plan(tmp_path, header(b"ftrt", (10, 3, 0, 26)))
    path.with_name("engine.plan.json").write_text(text)
    with pytest.raises(DataError, match=r"engine\.plan\.json"):
        check_plan(path)


def test_a_cut_plan_is_damaged_not_foreign(tmp_path):
    path = plan(tmp_path, header(b"vtrt", (1, 7, 1, 116))[:40])
    assert any("40 bytes, expected 64" in text for text in check_plan(path).problems)
    with pytest.raises(DataError, match="cut or damaged"):
        ensure_loadable(path)


def test_a_sidecar_of_another_backend(tmp_path):
    path = plan(tmp_path, header(b"vtrt", (1, 7, 1, 116)), backend="tensorrt", size=64)
    with pytest.raises(DataError, match="its sidecar names 'tensorrt'"):
        ensure_loadable(path)


class TestRealPlan:
    """A plan that TensorRT-RTX compiled here."""

    @pytest.fixture
    def path(self, bundle):
        pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
        built = build_engine(bundle, "fp32", "tensorrt-rtx")
        return open_bundle(bundle.root).file(built.engine)

    def test_its_header_is_read(self, path):
        import tensorrt_rtx

        head = read_header(path)
        assert head.backend == "tensorrt-rtx"
        assert tensorrt_rtx.__version__ == ".".join(map(str, head.version))
        assert head.size == path.stat().st_size

    @no_gpu
    def test_only_the_gpu_is_missing(self, path):
        check = check_plan(path)
        assert len(check.problems) == 1
        assert "compile check" in check.hint
        with pytest.raises(MachineError, match="will not load here"):
            ensure_loadable(path)

    def test_another_version_is_refused(self, path):
        data = bytearray(path.read_bytes())
        data[25] = 3
        path.write_bytes(bytes(data))
        assert any("built with tensorrt-rtx 1.3.1" in text for text in check_plan(path).problems)

    def test_a_flipped_bit_is_damage(self, path):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
        check = check_plan(path)
        assert check.damaged
        assert "sha256 is not its sidecar's" in check.problems[0]
        with pytest.raises(DataError, match="sha256"):
            ensure_loadable(path)

    def test_the_sidecar_says_what_it_came_from(self, path, bundle):
        facts = json.loads(path.with_name(f"{path.name}.json").read_text())
        assert facts["sha256"] == sha256(path)
        assert facts["source_sha256"] == bundle.files["model.onnx"].sha256
        assert facts["input"] == json.loads(json.dumps(bundle.spec.to_json()))

    @no_gpu
    @pytest.mark.parametrize(("spoil", "code"), [(False, 3), (True, 4)])
    def test_the_command_tells_damage_from_distance(self, path, capsys, spoil, code):
        if spoil:
            path.write_bytes(path.read_bytes()[:-100])
        assert run(["check", str(path), "--json"]) == code
        assert json.loads(capsys.readouterr().out)["damaged"] is spoil

    def test_a_cut_one_is_damaged(self, path):
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(DataError, match="cut or damaged"):
            ensure_loadable(path)


class TestVersions:
    """The header names four numbers, JetPack's module three, and the distribution may be another."""

    @pytest.fixture(params=["10.3.0", "10.3.0.30"])
    def installed(self, request, monkeypatch):
        """A double of the module `tensorrt`, installed by no distribution of that name."""
        module = ModuleType("tensorrt")
        module.__version__ = request.param
        module.__spec__ = ModuleSpec("tensorrt", None)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        gpu = Gpu("Orin", "8.7", 7620, integrated=True)
        monkeypatch.setattr(backends, "find_gpus", lambda: GpuList((gpu,), "12.6", ""))
        monkeypatch.setattr(device, "find_gpus", lambda: GpuList((gpu,), "12.6", ""))
        return str(request.param)

    def test_an_engine_loads_where_it_was_built(self, tmp_path, installed):
        path = plan(tmp_path, header(b"ftrt", (10, 3, 0, 30)))
        check = check_plan(path)
        assert check.loads
        assert check.problems == ()
        path.with_name("engine.plan.json").write_text(
            json.dumps({**machine_fingerprint("tensorrt"), "precision": "int8"})
        )
        assert machine_fingerprint("tensorrt")["tensorrt"] == installed
        ensure_loadable(path)

    @pytest.mark.parametrize("version", [(10, 3, 1, 30), (10, 13, 0, 30), (8, 6, 1, 6)])
    def test_another_version_is_named(self, tmp_path, installed, version):
        path = plan(tmp_path, header(b"ftrt", version))
        text = ".".join(map(str, version))
        with pytest.raises(MachineError, match=rf"built with tensorrt {text}, {installed} is"):
            ensure_loadable(path)
        path.with_name("engine.plan.json").write_text(
            json.dumps(
                {**machine_fingerprint("tensorrt"), "tensorrt": text, "version_compatible": True}
            )
        )
        ensure_loadable(path)

    def test_the_fingerprint_of_another_package_of_the_same_version(self, installed):
        facts = {**machine_fingerprint("tensorrt"), "tensorrt": "10.3.0.26"}
        assert list(differences(facts)) == (
            [] if installed == "10.3.0" else
            ["was built for tensorrt '10.3.0.26', this machine has '10.3.0.30'"]
        )  # fmt: skip


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("10.3.0.30", "10.3.0", True),
        ("8.6.1.6", "8.6.1.post1", True),
        ("10.3.0.30", "10.3.0.26", False),
        ("10.3.0.30", "10.3", False),
        ("10.3.0.30", "10", False),
        ("10.3.0.30", "", False),
        ("", "", True),
    ],
)
def test_versions_are_compared_in_the_numbers_that_both_have(a, b, same):
    assert same_version(a, b) is same_version(b, a) is same
