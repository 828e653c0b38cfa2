"""What travels with a bundle names nobody and no folder; files with faces are for their user alone."""

import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from networks import write_distinct_people

from fr_edge.cli.main import run
from fr_edge.faces.face_numbers import FaceNumbers, numbered_faces, read_salt, with_names
from fr_edge.faces.sources import portable_name

Captured = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def texts(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file's bytes, with those of archives unpacked."""
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = file.read_bytes()
        yield file.name, data
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(BytesIO(data)) as archive:
                for name in archive.namelist():
                    yield f"{file.name}/{name}", name.encode() + archive.read(name)


def leaks(folder: Path, *secrets: str) -> list[str]:
    """Files that hold a secret, as bytes or as numpy's text."""
    forms = [form for text in secrets for form in (text.encode(), text.encode("utf-32-le"))]
    return [name for name, data in texts(folder) if any(form in data for form in forms)]


def mode(file: Path) -> int:
    return file.stat().st_mode & 0o777


def test_a_bundle_of_the_whole_chain_names_nobody_and_no_folder(
    distinct: Path, tmp_path: Path, capsys: Captured
) -> None:
    pytest.importorskip("torch", reason="training needs torch: pip install 'fr-edge[train]'")
    bundle = str(tmp_path / "mine.bundle")
    faces = str(write_distinct_people(tmp_path / "people", people=8, faces=3))
    recipe = (
        "losses=arcface",
        "epochs=1",
        "batch=12",
        "verify_identities=3",
        "dim=32",
        "workers=0",
    )
    changes = [part for change in (*recipe, f"cache={tmp_path}/c") for part in ("--set", change)]
    for line, code in (
        (["distill", "tiny", "--faces", faces, "--out", bundle, *changes], 0),
        (["export", bundle, "--out", bundle, "--golden", faces, "--faces", faces, "--force"], 0),
        (["calibrate", bundle, "--faces", faces], 0),
        (["build-engine", bundle, "--int8", "--backend", "onnxruntime"], 0),
        (["verify", bundle, "--faces", faces], 1),  # a network that has hardly been trained
        (["evaluate", bundle, "--protocol", faces], 0),
        (["benchmark", bundle, "--duration", "0.2", "--allow-invalid"], 0),
        (["report", bundle], 0),
    ):
        assert run([*line, "-q"]) == code, capsys.readouterr().err
    places = (str(tmp_path), faces, str(ROOT), str(Path.home()), "person0")
    assert leaks(tmp_path / "mine.bundle", *(place for place in places if len(place) > 5)) == []
    assert mode(tmp_path / "mine.bundle" / "golden.npz") == 0o600
    capsys.readouterr()
    assert run(["inspect", bundle, "--names", faces, "--json"]) == 0
    names = json.loads(capsys.readouterr().out)["names"]
    assert names
    assert all(re.fullmatch("face-[0-9a-f]{16}", number) for number in names)
    assert all(name.startswith("person") for name in names.values())


def test_names_are_kept_when_asked_for(bundle: Path, tmp_path: Path, capsys: Captured) -> None:
    """A face in another person's folder, which is told by its name."""
    people = write_distinct_people(tmp_path / "people", people=12)
    shutil.copy(people / "person001" / "0.png", people / "person000" / "9.png")
    line = ["verify", str(bundle), "--faces", str(people), "--engine", "fp32", "-q"]
    run(line)
    assert leaks(bundle / "reports", "person0") == []
    shown = re.findall(r"person\d+/\d", capsys.readouterr().out)
    assert shown == ["person000/9"]  # the terminal shows this user the names
    run([*line, "--keep-names"])
    assert leaks(bundle / "reports", "person0") != []
    assert re.findall(r"person\d+/\d", capsys.readouterr().out) == shown


def test_a_number_is_turned_back_only_with_the_salt(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ["ann/1.png", "ben/1.png"]
    numbers = FaceNumbers(keys)
    assert numbers[0] != numbers[1]
    assert list(numbers[:2]) == [numbers[0], numbers[1]]
    text = f"the first is {numbers[1]}, then {numbers[0]}; face-{'0' * 16} is no one's"
    assert with_names(text, keys).startswith("the first is ben/1.png, then ann/1.png; face-000")
    assert numbered_faces(text, keys) == {numbers[0]: keys[0], numbers[1]: keys[1]}
    assert mode(state / "fr-edge" / "face-numbers.salt") == 0o600
    assert mode(state / "fr-edge") == 0o700
    assert read_salt() == read_salt()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "elsewhere"))
    assert with_names(text, keys) == text


def test_a_damaged_salt_is_replaced_and_a_missing_home_is_no_error(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read_salt()
    file = state / "fr-edge" / "face-numbers.salt"
    file.write_bytes(b"")  # a power failure
    assert read_salt() == read_salt() == file.read_bytes()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert len(read_salt()) == 32
    assert "cannot be turned back" in caplog.text


def test_embeddings_are_for_their_user_alone(bundle: Path, tmp_path: Path) -> None:
    os.umask(os.umask(0o022))
    out = tmp_path / "e.npz"
    out.touch(0o644)  # a file of an earlier fr-edge
    assert run(["embed", str(bundle), "--faces", "synthetic:2x2", "--out", str(out), "-q"]) == 0
    assert mode(out) == 0o600
    with np.load(out) as data:
        assert len(data["keys"]) == 4


def test_a_source_is_named_without_its_folders(tmp_path: Path) -> None:
    assert portable_name(str(tmp_path / "faces")) == "faces"
    assert portable_name(".") == Path.cwd().name
    assert portable_name("synthetic:4x4") == "synthetic:4x4"
