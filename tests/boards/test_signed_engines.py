"""On a board that requires signatures nothing unsigned reaches TensorRT, on its double.

A tampered bundle is consistent in itself: manifest and fingerprint name the new bytes.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cryptography", reason="cryptography is not installed")
from pretend import PretendBoard

from fr_edge.bundle.bundle import open_bundle, transaction
from fr_edge.bundle.keys import TRUSTED_KEYS, make_key_pair, read_signing_key, state_folder
from fr_edge.bundle.pack import pack, unpack
from fr_edge.bundle.signature import SIGNATURES
from fr_edge.bundle.trust import REQUIRE_SIGNATURE
from fr_edge.cli.main import run
from fr_edge.errors import BundleError, UsageError
from fr_edge.files import sha256
from fr_edge.runtime.build import build_engine
from fr_edge.runtime.selftest import self_test
from fr_edge.runtime.session import open_session
from fr_edge.runtime.trt.config import EngineOptions

DESERIALIZE, TIMINGS = "Runtime.deserialize_cuda_engine", "IBuilderConfig.create_timing_cache"
TENSORRT = ["--backend", "tensorrt", "-q"]


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> PretendBoard:
    return PretendBoard("jetpack6.2", monkeypatch)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder of key pairs: the maker's, the board's own and a stranger's."""
    for name in ("maker", "local", "stranger"):
        make_key_pair(tmp_path / f"{name}.key", tmp_path / f"{name}.pub")
    return tmp_path


@pytest.fixture
def signed(mini: Path, keys: Path) -> Path:
    """A calibrated bundle as it came from its maker."""
    return repacked(mini, keys, "maker")


def repacked(root: Path, keys: Path, signer: str) -> Path:
    key = read_signing_key(keys / f"{signer}.key")
    pack(root, keys / "a.frb", key)
    out = root.with_name(f"{root.name}-by-{signer}")
    unpack(keys / "a.frb", out, [key.public])
    return out


def build(root: Path, *more: str) -> int:
    return run(["build-engine", str(root), "--int8", *TENSORRT, *more])


def opened(board: PretendBoard, root: Path, *more: str) -> tuple[int, int]:
    """The exit code of `embed`, and how many plans TensorRT was given."""
    board.trt.transcript.clear()
    out = str(root.with_name("out.npz"))
    line = ["embed", str(root), "--faces", "synthetic:2x1", "--out", out, "--engine", "int8"]
    code = run([*line, *TENSORRT, *more])
    return code, len(board.trt.called(DESERIALIZE))


def engine_of(root: Path) -> str:
    return next(name for name in open_bundle(root).files if name.endswith("-int8.plan"))


def tamper(root: Path, data: bytes, **facts: object) -> str:
    """Other bytes in the engine's place, with a fitting fingerprint and manifest."""
    name = engine_of(root)
    with transaction(root, "tamper", {}) as change:
        plan, sidecar = change.path(name, "engine"), change.path(f"{name}.json", "fingerprint")
        plan.write_bytes(data)
        known = json.loads((root / f"{name}.json").read_text())
        sidecar.write_text(json.dumps(
            {**known, "sha256": sha256(plan), "size": len(data), **facts}
        ))  # fmt: skip
    return name


def test_an_unsigned_engine_never_reaches_tensorrt(
    board: PretendBoard, signed: Path, keys: Path, capsys: Any
) -> None:
    trust = ["--require-signature", "--trust", str(keys / "maker.pub")]
    assert build(signed, *trust) == 0
    assert "not signed, so this machine will not open it" not in capsys.readouterr().err  # -q
    assert opened(board, signed, *trust) == (4, 0)
    assert "is not signed by a trusted key" in capsys.readouterr().err
    assert opened(board, signed) == (0, 1)
    assert build(signed, *trust, "--sign", str(keys / "local.key")) == 0
    assert opened(board, signed, *trust) == (4, 0)  # the board's own key is not trusted yet
    trust += ["--trust", str(keys / "local.pub")]
    assert opened(board, signed, *trust) == (0, 1)
    for command in (["verify"], ["benchmark", "--duration", "0.2", "--allow-invalid"]):
        line = [command[0], str(signed), "--engine", "int8", *command[1:], *TENSORRT]
        assert run([*line, *trust]) in (0, 1)
        assert run([*line, "--require-signature", "--trust", str(keys / "stranger.pub")]) == 4
    assert run(["evaluate", str(signed), "--protocol", "synthetic:40x3", "--engine", "int8",
                *TENSORRT, "--require-signature", "--trust", str(keys / "maker.pub")]) == 4  # fmt: skip


@pytest.mark.parametrize("what", ["plan", "sidecar", "contract", "signatures", "statement", "all"])
def test_what_was_changed_after_it_was_signed_never_reaches_tensorrt(
    what: str, board: PretendBoard, signed: Path, keys: Path
) -> None:
    trust = ["--require-signature", "--trust", str(keys / "local.pub")]
    trust += ["--trust", str(keys / "maker.pub")]
    assert build(signed, "--sign", str(keys / "local.key")) == 0
    plan = (signed / engine_of(signed)).read_bytes()
    if what == "plan":
        tamper(signed, plan + b"\x00")
    elif what == "sidecar":
        tamper(signed, plan, int8_in_float=1)
    elif what == "contract":
        manifest = json.loads((signed / "bundle.json").read_text())
        manifest["input"]["channels"] = "BGR"
        (signed / "bundle.json").write_text(json.dumps(manifest))
    elif what == "signatures":
        (signed / SIGNATURES).unlink()
    elif what == "statement":
        name = engine_of(signed)
        before = open_bundle(signed).files[name].sha256
        tamper(signed, plan + b"\x00")
        after = open_bundle(signed).files[name].sha256
        text = (signed / SIGNATURES).read_text()
        assert before in text
        (signed / SIGNATURES).write_text(text.replace(before, after))
    else:  # signed by somebody else
        tamper(signed, plan + b"\x00")
        signed = repacked(signed, keys, "stranger")
    assert opened(board, signed, *trust) == (4, 0)


def test_a_name_is_signed_with_its_bytes(board: PretendBoard, signed: Path, keys: Path) -> None:
    """Another signed file's bytes in the engine's place are not the engine."""
    assert build(signed, "--sign", str(keys / "local.key")) == 0
    with transaction(signed, "swap", {}) as change:
        cache = (signed / "engines" / "tensorrt.timing").read_bytes()
        change.path(engine_of(signed), "engine").write_bytes(cache)
    trust = [part for name in ("maker", "local") for part in ("--trust", str(keys / f"{name}.pub"))]
    assert opened(board, signed, "--require-signature", *trust) == (4, 0)


def test_an_unsigned_timing_cache_never_reaches_tensorrt(
    board: PretendBoard, signed: Path, keys: Path, capsys: Any
) -> None:
    sign = ["--sign", str(keys / "local.key")]
    trust = [p for name in ("maker", "local") for p in ("--trust", str(keys / f"{name}.pub"))]

    def timings(*more: str) -> list[str]:
        board.trt.transcript.clear()
        assert build(signed, *more) == 0
        return board.trt.called(TIMINGS)

    def plant() -> None:
        with transaction(signed, "tamper", {}) as change:
            cache = change.path("engines/tensorrt.timing", "timing cache")
            cache.write_bytes((signed / "engines" / "tensorrt.timing").read_bytes() + b"theirs")

    none = timings()
    plant()
    assert timings() != none  # where no signature is required, it is used
    for more in (["--require-signature"], ["--require-signature", *sign], sign):
        plant()
        assert timings(*more, *trust) == none
    own = timings(*sign, *trust)
    assert own != none  # the one that the board has signed
    assert timings("--require-signature", *trust) == own
    plant()
    line = ["build-engine", str(signed), "--int8", "--backend", "tensorrt", "--require-signature"]
    assert run([*line, *trust]) == 0
    assert "kernels are timed anew" in capsys.readouterr().err


def test_an_unsigned_network_is_not_built(board: PretendBoard, mini: Path, keys: Path) -> None:
    trust = ["--require-signature", "--trust", str(keys / "maker.pub")]
    board.trt.transcript.clear()
    assert build(mini, *trust) == 4
    assert board.trt.transcript == []


def test_a_device_asks_by_its_environment(
    board: PretendBoard, signed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(signed, "--sign", str(keys / "local.key"))
    bundle = open_bundle(signed)  # before anything was required
    monkeypatch.setenv(REQUIRE_SIGNATURE, "1")
    with pytest.raises(BundleError, match="no key is trusted here"):
        open_bundle(signed)
    trusted = keys / "trusted"
    trusted.mkdir()
    monkeypatch.setenv(TRUSTED_KEYS, str(trusted))
    shutil.copy(keys / "maker.pub", trusted)
    for given in (signed, bundle):
        board.trt.transcript.clear()
        with pytest.raises(BundleError, match="not signed by a trusted key"):
            open_session(given, "int8", "tensorrt")
        assert board.trt.called(DESERIALIZE) == []
    shutil.copy(keys / "local.pub", trusted)
    open_session(signed, "int8", "tensorrt").close()
    assert run(["inspect", str(signed), "-q"]) == 0
    tried = {result.backend: result for result in self_test()}  # on a bundle of its own
    assert tried["tensorrt"].outcome == "ran", tried["tensorrt"].detail
    monkeypatch.setenv(REQUIRE_SIGNATURE, "maybe")
    with pytest.raises(UsageError, match="expected 1 or 0"):
        open_bundle(signed)


def test_a_policy_asks(board: PretendBoard, signed: Path, keys: Path, capsys: Any) -> None:
    assert build(signed) == 0
    policy = keys / "policy.toml"
    policy.write_text("require_signature = true\nmin_cosine = -1.0\np1_cosine = -1.0\n")
    line = ["verify", str(signed), "--engine", "int8", *TENSORRT, "--policy", str(policy)]
    trust = ["--trust", str(keys / "maker.pub"), "--trust", str(keys / "local.pub")]
    assert run([*line, *trust]) == 4
    assert "not signed by a trusted key" in capsys.readouterr().err
    assert build(signed, "--sign", str(keys / "local.key")) == 0
    assert run([*line, *trust]) in (0, 1)
    assert run(["verify", str(signed), "--engine", "int8", *TENSORRT]) == 4  # the bundle keeps it
    policy.write_text("require_signature = 1\n")
    assert run([*line, *trust]) == 4
    assert "true or false" in capsys.readouterr().err


def test_code_in_a_plan_is_a_strangers_unless_built_here_or_signed(
    board: PretendBoard, signed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version-compatible plans carry NVIDIA's lean runtime, which runs on the CPU."""
    options = EngineOptions(version_compatible=True)
    built = build_engine(signed, "int8", "tensorrt", options=options)
    open_session(signed, "int8", "tensorrt").close()  # built here, by this user
    assert built.sha256 in (state_folder() / "built").read_text()
    assert (state_folder() / "built").stat().st_mode & 0o077 == 0
    monkeypatch.setenv("XDG_STATE_HOME", str(keys / "elsewhere"))
    board.trt.transcript.clear()
    with pytest.raises(BundleError, match="neither built by you here nor signed"):
        open_session(signed, "int8", "tensorrt")
    assert board.trt.called(DESERIALIZE) == []
    theirs = repacked(signed, keys, "stranger")
    with pytest.raises(BundleError, match="neither built by you here nor signed"):
        open_session(theirs, "int8", "tensorrt")
    ours = repacked(signed, keys, "maker")
    monkeypatch.setenv(TRUSTED_KEYS, str(keys / "maker.pub"))
    open_session(ours, "int8", "tensorrt").close()
    assert board.trt.called("Runtime.engine_host_code_allowed") == [
        "Runtime.engine_host_code_allowed = True"
    ]
