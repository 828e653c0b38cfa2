"""`fr-edge accept` on this CPU as a rehearsal, and on a pretend board of doubles.

The doubles compute with onnxruntime: calls, words and verdicts are shown here, nothing of a GPU.
"""

import getpass
import hashlib
import json
import shlex
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from fr_edge.bundle.bundle import transaction
from fr_edge.bundle.trust import REQUIRE_SIGNATURE
from fr_edge.calibration.calibrate import calibrate
from fr_edge.cli.accept import command
from fr_edge.cli.main import run
from fr_edge.faces.sources import open_faces
from fr_edge.interruption import Interrupted
from fr_edge.runtime.acceptance import accept, engine_check
from fr_edge.runtime.acceptance.accept import choose_engine
from fr_edge.runtime.acceptance.disclosure import machine_names
from fr_edge.runtime.acceptance.engine_check import EngineCheck
from fr_edge.runtime.machine.backends import lacking

SUMMARY = """\
[11/27/2026-10:00:00] [I] === Performance summary ===
[11/27/2026-10:00:00] [I] Throughput: 1234.5 qps
[11/27/2026-10:00:00] [I] Latency: min = 0.2 ms, max = 0.3 ms, mean = 0.25 ms, median = 0.24 ms, percentile(99%) = 0.3 ms
[11/27/2026-10:00:00] [I] GPU Compute Time: min = 0.1 ms, max = 0.2 ms, mean = 0.13 ms, median = 0.125 ms, percentile(99%) = 0.2 ms
"""


def accepted(file: Path, *line: str) -> tuple[int, dict[str, Any]]:
    code = run(["accept", *line, "--out", str(file)])
    return code, json.loads(file.read_text())


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def mine(mini: Path, tmp_path: Path) -> Path:
    """A user's bundle, calibrated for FP8 too, whose folder and layers have telling names."""
    calibrate(mini, open_faces("synthetic:8x2@5"), precision="fp8")
    names = ("model.onnx", "model.fp16.onnx", "model.int8.onnx", "model.fp8.onnx")
    models = {name: onnx.load(mini / name) for name in names}
    with transaction(mini, "test", {}) as draft:
        for name, model in models.items():
            for node in model.graph.node:
                node.name = f"/home/ada/Lovelace-door/{node.name}"
            draft.path(name, "model").write_bytes(model.SerializeToString())
    return Path(shutil.move(mini, tmp_path / "Lovelace-door.bundle"))


def test_a_rehearsal_is_never_passed_and_its_file_has_no_names(
    short: None, mine: Path, tmp_path: Path, monkeypatch: Any, terminal: Any
) -> None:
    monkeypatch.setattr(accept, "_ORDER", ("int8", "fp32"))
    monkeypatch.setattr("socket.gethostname", lambda: "lovelace-box")
    gossip = f"{mine}/model.onnx on lovelace-box"
    monkeypatch.setattr(accept, "machine_facts", lambda: {"texts": {"nvpmodel": gossip}})
    before = digests(mine)
    line = (str(mine), "--backend", "onnxruntime")
    with terminal() as lines:
        code, document = accepted(tmp_path / "out-of-lovelace.json", *line)
    assert code == 0
    assert (document["verdict"], document["rehearsal"]) == ("CANNOT JUDGE", True)
    assert "rehearsal, no GPU" in document["reasons"][0]
    engines = {(e["bundle"], e["precision"]): e for e in document["engines"]}
    expected = {(b, p) for b in ("sample", "yours") for p in ("int8", "fp32")}
    assert set(engines) == expected | {("yours", "fp8")}
    assert {e["verdict"] for e in engines.values()} == {"PASSED"}
    assert [c["bundle"] for c in document["choices"]] == ["sample", "yours"]
    assert digests(mine) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [mine.name, "out-of-lovelace.json"]
    text = (tmp_path / "out-of-lovelace.json").read_text().lower()
    private = {"lovelace", "ada/", str(tmp_path), str(Path.home()) + "/", "/tmp", sys.prefix}
    private |= {name for name in machine_names() if name.lower() in text}
    assert [name for name in private if name.lower() in text] == []
    for name in (socket.gethostname(), getpass.getuser()):
        assert name.lower() not in json.dumps(document["engines"]).lower()
    assert document["machine"] == {"texts": {"nvpmodel": "<path> on <removed>"}}
    out = " ".join(line.strip() for line in lines)
    assert "CANNOT JUDGE: rehearsal, no GPU" in out
    assert "PASSED:" not in out


def test_a_board_that_does_everything_passes(
    board: Any, mine: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    tool = tmp_path / "bin" / "trtexec"
    tool.parent.mkdir()
    tool.write_text(
        f"#!/bin/sh\nprintf '%s\\n' \"$@\" >> {tmp_path}/asked\ncat <<'E'\n{SUMMARY}E\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
    monkeypatch.setattr(accept, "_ORDER", ("int8", "fp16"))
    code, document = accepted(tmp_path / "a.json", str(mine))
    assert document["notes"] == ["yours fp8 was not tried: compute capability 8.7 has no FP8"]
    assert {e["precision"] for e in document["engines"]} == {"int8", "fp16"}
    assert (code, document["verdict"], document["rehearsal"]) == (0, "PASSED", False)
    assert document["machine"]["libraries"]["tensorrt"] == "10.3.0"
    for check in document["engines"]:
        assert check["layers"]["int8"] > 0 if check["precision"] == "int8" else True
        assert set(check["fingerprint"]["prelu_ms"]) == {"split", "native"}
        assert check["replay"]["replayed"] == {"1": True, "8": True}
        rows = [row["Name"] for row in check["inspector"]["Layers"]]
        assert any("conv_" in name for name in rows) or check["bundle"] == "sample"
        assert check["trtexec"]["median_ms"] == {"Latency": 0.24, "GPU Compute Time": 0.125}
        compute = check["benchmark"]["runs"][0]["breakdown_ms"]["compute"]
        assert check["trtexec"]["compute_ratio"] == pytest.approx(compute / 0.125)
        assert check["benchmark"]["runs"][0]["layers"]
    assert "lovelace" not in (tmp_path / "a.json").read_text().lower()
    asked = (tmp_path / "asked").read_text().split()
    assert asked[1] == "--shapes=face:1x3x112x112"
    assert asked[0].startswith("--loadEngine=")
    assert asked[0].endswith("-int8.plan")
    assert "PASSED: this board computes" in capsys.readouterr().out


def test_graphs_that_compute_nothing_do_not_pass(
    board: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    board.cuda.replays_compute = False
    monkeypatch.setattr(accept, "_ORDER", ("fp32",))
    code, document = accepted(tmp_path / "a.json")
    assert (code, document["verdict"]) == (1, "CANNOT JUDGE")
    assert "batch 1 is not replayed as a CUDA graph" in document["reasons"][0]
    assert any("does not compute" in line for line in document["engines"][0]["log"])


def test_an_engine_without_int8_fails_and_is_tried_again(
    board: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(accept, "_ORDER", ("int8", "fp32"))
    board.compute_no_int8(True)
    code, document = accepted(tmp_path / "a.json")
    assert (code, document["verdict"]) == (1, "FAILED")
    assert "computes in INT8" in document["reasons"][0]
    assert [e["verdict"] for e in document["engines"]] == ["FAILED", "PASSED"]
    assert set(document["choices"][0]["times_ms"]) == {"fp32"}
    board.compute_no_int8(False)
    code, document = accepted(tmp_path / "a.json")
    assert (code, document["verdict"]) == (0, "PASSED")
    assert [e["precision"] for e in document["engines"]] == ["fp32", "int8"]
    assert set(document["choices"][-1]["times_ms"]) == {"int8", "fp32"}


def test_an_interruption_says_that_the_file_is_kept(tmp_path: Path) -> None:
    def stop(items: Any, label: str, total: int) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        accept.accept(None, "onnxruntime", tmp_path / "a.json", stop)
    assert caught.value.kept == f"{tmp_path / 'a.json'} is kept"
    assert json.loads((tmp_path / "a.json").read_text())["engines"] == []


def test_where_nothing_runs_each_reason_is_listed(
    mini: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """The first example of the help, on a machine without a GPU."""
    if not lacking("tensorrt") or not lacking("tensorrt-rtx"):
        pytest.skip("this machine has a GPU")
    mini.rename(tmp_path / "mine.bundle")
    monkeypatch.chdir(tmp_path)
    assert run(shlex.split(command.example.splitlines()[0])[1:]) == 1
    document = json.loads((tmp_path / "accept-nothing-ran.json").read_text())
    assert (document["verdict"], document["engines"]) == ("CANNOT JUDGE", [])
    assert [reason.split(": ")[0] for reason in document["reasons"]] == [
        "tensorrt was not tried",
        "tensorrt-rtx was not tried",
    ]
    out = capsys.readouterr()
    assert "nothing ran: tensorrt was not tried: " in out.err
    assert "--backend onnxruntime" in out.out
    code, document = accepted(tmp_path / "accept-nothing-ran.json", "--backend", "tensorrt")
    assert (code, len(document["reasons"])) == (1, 1)


def test_the_rehearsal_of_the_help_runs(
    short: None, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(accept, "_ORDER", ("fp32",))
    assert run(shlex.split(command.example.splitlines()[1])[1:]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["rehearsal.json"]


def test_an_interrupted_acceptance_goes_on(
    short: None, mini: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(accept, "_ORDER", ("fp16", "fp32"))
    file, line = tmp_path / "a.json", (str(mini), "--backend", "onnxruntime")
    real, built = accept.check_engine_here, []

    def stopped(root: Path, bundle: str, precision: str, backend: str) -> Any:
        if (bundle, precision) == ("sample", "fp32"):
            raise KeyboardInterrupt
        return real(root, bundle, precision, backend)

    monkeypatch.setattr(accept, "check_engine_here", stopped)
    code, document = accepted(file, *line)
    assert code == 130
    assert [e["precision"] for e in document["engines"]] == ["fp16"]
    assert document["left"][0] == "sample fp32"

    def counted(root: Path, bundle: str, precision: str, backend: str) -> Any:
        built.append((bundle, precision))
        if len(built) > 3:  # of the third run: only which engines are tried counts
            return EngineCheck(bundle, precision, "FAILED", ("not tried",))
        return real(root, bundle, precision, backend)

    monkeypatch.setattr(accept, "check_engine_here", counted)
    capsys.readouterr()
    code, document = accepted(file, *line)
    assert (code, document["left"], len(document["engines"])) == (0, [], 4)
    assert built == [("sample", "fp32"), ("yours", "fp16"), ("yours", "fp32")]
    assert "1 engines passed before and are not repeated" in capsys.readouterr().err
    with transaction(mini, "test", {}) as draft:  # another network of the user's
        draft.path("policy.toml", "policy").write_text("[int8]\nmin_cosine = 0.5\n")
        draft.path("model.onnx", "model").write_bytes((mini / "model.fp16.onnx").read_bytes())
    accepted(file, *line)
    assert built[3:] == [("yours", "fp16"), ("yours", "fp32")]


def test_what_has_no_time_left_is_named_and_done_later(
    short: None, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(accept, "_BUDGET_S", 0.0)
    monkeypatch.setattr(accept, "_ORDER", ("fp32",))
    codes = []
    for done in range(2):
        code, document = accepted(tmp_path / "a.json", "--backend", "onnxruntime")
        assert len(document["left"]) == 1 - done
        assert ("the same command again goes on" in " ".join(document["reasons"])) is (done < 1)
        codes.append(code)
    assert codes == [1, 0]


def test_a_file_of_another_machine_is_not_touched(short: None, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "a.json"
    for text in ("my notes", '{"verdict": "PASSED"}', json.dumps(OTHER)):
        file.write_text(text)
        assert run(["accept", "--backend", "onnxruntime", "--out", str(file)]) == 4
        assert file.read_text() == text
        assert "choose another --out" in capsys.readouterr().err


OTHER = {
    "verdict": "PASSED",
    "rehearsal": True,
    "reasons": [],
    "backend": "onnxruntime",
    "machine_key": {"cpu": "another"},
}


def test_a_board_that_requires_signatures_is_tried_with_signed_bundles_only(
    short: None, mini: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """What accept makes itself needs no signature; an unsigned bundle is not copied."""
    pytest.importorskip("cryptography", reason="cryptography is not installed")
    monkeypatch.setenv(REQUIRE_SIGNATURE, "1")
    monkeypatch.setattr(accept, "_ORDER", ("fp32",))
    code, document = accepted(tmp_path / "a.json", "--backend", "onnxruntime")
    assert (code, [e["verdict"] for e in document["engines"]]) == (0, ["PASSED"])
    line = ["accept", str(mini), "--backend", "onnxruntime", "--out", str(tmp_path / "b.json")]
    assert run(line) == 4
    assert "signature is required" in capsys.readouterr().err
    assert not (tmp_path / "b.json").exists()


def test_bad_input_is_refused_before_anything_runs(tmp_path: Path, capsys: Any) -> None:
    assert run(["accept", str(tmp_path / "nothing.bundle")]) == 4
    assert run(["accept", "--backend", "tensorflow"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_the_fastest_engine_is_to_be_shipped_and_of_equals_the_most_exact() -> None:
    exact = {"int8": 0.97, "fp16": 0.9999, "fp32": 1.0}
    choice = choose_engine("yours", {"int8": 1.0, "fp16": 1.5, "fp32": 3.0}, exact, certain=True)
    assert choice.ship == "int8"
    assert "INT8 takes 0.67 of FP16's time" in choice.text
    choice = choose_engine("yours", {"int8": 1.0, "fp16": 1.02, "fp32": 3.0}, exact, certain=False)
    assert choice.ship == "fp16"
    assert "not certain" in choice.text


def test_a_broken_engine_fails_by_its_runs(
    short: None, mini: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Runs that repeat the run before them, as a replay without effect would."""
    opened = engine_check.open_session

    def stuck(*args: Any, **keywords: Any) -> Any:
        session = opened(*args, **keywords)
        real, last = session.embed, {}

        def embed(images: Any) -> Any:
            return last.setdefault(len(images), real(images))

        session.embed = embed
        return session

    monkeypatch.setattr(engine_check, "open_session", stuck)
    check = engine_check.check_engine_here(mini, "yours", "fp32", "onnxruntime")
    assert check.verdict == "FAILED"
    assert "runs that come again differ" in check.problems[0]
