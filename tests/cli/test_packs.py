"""`keygen`, `pack` and `unpack` as they are typed: what they print, and their exit codes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fr_edge.bundle.bundle import open_bundle, transaction
from fr_edge.bundle.keys import PASSPHRASE, TRUSTED_KEYS
from fr_edge.cli.main import run


@pytest.fixture
def here(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of `mini.bundle`, as the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answer(args: list[str], capsys: Any) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = run([*args, "--json", "-q"])
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture
def maker(here: Path) -> Path:
    pytest.importorskip("cryptography", reason="cryptography is not installed")
    assert run(["keygen", "maker", "-q"]) == 0
    return here / "maker.key"


def test_a_signed_bundle_goes_elsewhere_and_is_verified_there(
    here: Path, maker: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = ["pack", "mini.bundle", "--out", "mini.frb", "--sign", "maker.key"]
    code, packed = answer(pack, capsys)
    assert code == 0
    assert packed["size"] == Path("mini.frb").stat().st_size
    code, unpacked = answer(
        ["unpack", "mini.frb", "--out", "fresh.bundle", "--trust", "maker.pub"], capsys
    )
    assert code == 0
    (signer,) = unpacked["signed_by"]
    assert signer == f"maker ({packed['signed_by'][0]})"
    assert run(["inspect", "fresh.bundle"]) == 0
    assert f"signed by {packed['signed_by'][0]}, not trusted here" in capsys.readouterr().out
    monkeypatch.setenv(TRUSTED_KEYS, "maker.pub")
    code, shown = answer(["inspect", "fresh.bundle"], capsys)
    signature = {"key": packed["signed_by"][0], "name": "maker", "trusted": True}
    assert shown["signatures"] == [{**signature, "files": packed["files"]}]
    forged = Path("fresh.bundle/bundle.signatures.json")
    genuine = forged.read_text()
    forged.write_text(genuine.replace("model.onnx", "model.0nnx"))
    assert run(["inspect", "fresh.bundle"]) == 4
    assert "does not hold" in capsys.readouterr().err
    forged.write_text(genuine)
    monkeypatch.delenv(TRUSTED_KEYS)
    verify = ["verify", "fresh.bundle", "--engine", "int8", "--require-signature", "-q"]
    assert run([*verify, "--trust", "maker.pub"]) == 0
    assert run(verify) == 4  # the option trusts for one command only
    with Path("fresh.bundle/engines/onnxruntime-int8.onnx").open("ab") as stream:
        stream.write(b"\x00")
    assert run([*verify, "--trust", "maker.pub"]) == 4


def test_exit_codes(here: Path, maker: Path, capsys: Any) -> None:
    assert run(["pack", "mini.bundle", "--out", "mini.frb", "-q"]) == 0
    unpack = ["unpack", "mini.frb", "--out", "fresh.bundle"]
    for line, expected, words in (
        (unpack, 4, "is not signed"),
        ([*unpack, "--trust", "maker.pub"], 4, "is not signed"),
        ([*unpack, "--trust", "nothing.pub"], 4, "cannot be read"),
        ([*unpack, "--allow-unsigned"], 0, ""),
        ([*unpack, "--allow-unsigned"], 0, "holds this pack already"),
        (["unpack", "mini.frb", "--out", "mini.bundle", "--allow-unsigned"], 2, "exists"),
        ([*unpack, "--allow-unsigned", "--force"], 0, ""),
        (["unpack", "mini.frb", "--out", ""], 2, "is empty"),
        (["unpack", "nothing.frb", "--out", "x"], 4, "cannot be read"),
        (["unpack", "maker.pub", "--out", "x"], 4, "not a pack"),
        (["pack", "mini.bundle", "--out", ""], 2, "is empty"),
        (["pack", "mini.bundle", "--out", "nowhere/a.frb"], 3, "no folder"),
        (["pack", "mini.bundle", "--out", "mini.bundle/a.frb"], 2, "lies in the bundle"),
        (["pack", "mini.bundle", "--out", "a.frb", "--sign", "maker.pub"], 4, "is a public key"),
        (["pack", "nothing", "--out", "a.frb"], 4, "no bundle"),
        (["keygen", "maker"], 2, "never overwritten"),
        (["keygen", ""], 2, "is empty"),
        (["keygen", "keys/.."], 2, "without its ending"),
        (["keygen", "nowhere/key"], 2, "no folder"),
    ):
        assert run(line) == expected, line
        captured = capsys.readouterr()
        assert words in captured.err, (line, captured.err)
        assert "Traceback" not in captured.err
    kept = {"fresh.bundle", "maker.key", "maker.pub", "mini.bundle", "mini.frb"}
    assert {path.name for path in here.iterdir()} == kept


def test_a_passphrase_comes_from_the_environment(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("cryptography", reason="cryptography is not installed")
    monkeypatch.setenv(PASSPHRASE, "correct horse")
    code, made = answer(["keygen", "maker", "--passphrase"], capsys)
    assert (code, made["encrypted"]) == (0, True)
    pack = ["pack", "mini.bundle", "--out", "mini.frb", "--sign", "maker.key", "-q"]
    assert run(pack) == 0
    monkeypatch.delenv(PASSPHRASE)
    assert run(pack) == 4  # and no terminal to ask on
    assert "no passphrase was given" in capsys.readouterr().err


def test_without_cryptography_signatures_are_missed_and_nothing_else(here: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['cryptography'] = None\n"
        "from fr_edge.cli.main import run\n"
        "print([run(line.split()) for line in sys.argv[1:]])"
    )
    lines = [
        "keygen maker",
        "pack mini.bundle --out a.frb --sign x",
        "pack mini.bundle --out a.frb",
        "unpack a.frb --out b --allow-unsigned",
        "inspect b",
        "embed b --faces synthetic:2x1 --out e.npz --require-signature",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *lines], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[3, 3, 0, 0, 0, 3]", done.stderr
    assert "pip install 'cryptography>=42'" in done.stderr


def test_reports_that_name_people_stay_at_home(here: Path, distinct: Path, capsys: Any) -> None:
    verify = ["verify", "mini.bundle", "--engine", "fp32", "-q"]
    for more in (["--faces", str(distinct)], []):
        assert run([*verify, *more]) in (0, 1)
    root = Path("mini.bundle")
    (named,) = [
        path
        for path in (root / "reports").glob("verify-*.json")
        if (report := json.loads(path.read_text()))["faces"] and not report["faces"]["synthetic"]
    ]
    report = json.loads(named.read_text())
    for number, worst in enumerate(report["cosine"]["worst"]):
        worst["face"] = f"ann-smith/{number}.png"  # as `verify --keep-names` writes them
    with transaction(root, "test", {}) as change:
        change.path(f"reports/{named.name}", "report").write_text(json.dumps(report))
    with transaction(root, "report", {}) as change:
        page = change.path("report.html", "page", of=open_bundle(root).files)
        page.write_text("<body>ann-smith looks like ben-jones</body>")
    pack = ["pack", "mini.bundle", "--out", "mini.frb"]
    code, packed = answer(pack, capsys)
    assert code == 0
    assert set(packed["left_out"]) == {f"reports/{named.name}", "report.html"}
    assert b"ann-smith" not in Path("mini.frb").read_bytes()
    assert b"verify-fp32" in Path("mini.frb").read_bytes()
    code, packed = answer([*pack, "--keep-names"], capsys)
    assert packed["left_out"] == {}
    assert b"ann-smith" in Path("mini.frb").read_bytes()
    code, packed = answer([*pack, "--no-reports"], capsys)
    assert b"verify-fp32" not in Path("mini.frb").read_bytes()
    for worst in report["cosine"]["worst"]:
        worst["face"] = "face-0123456789abcdef"
    with transaction(root, "test", {}) as change:
        change.path(f"reports/{named.name}", "report").write_text(json.dumps(report))
    code, packed = answer(pack, capsys)
    assert set(packed["left_out"]) == {"report.html"}  # it was written when there were names
