"""`fr-edge pairs`, and crops divided into people that calibrate and people that judge."""

import json
from pathlib import Path

import numpy as np
import pytest
from bright_detector import write_bright_detector
from PIL import Image

from fr_edge.cli.main import run
from fr_edge.errors import FacesError, UsageError
from fr_edge.faces.pairs import read_pairs
from fr_edge.faces.split import split_folders

Captured = pytest.CaptureFixture[str]


def test_the_list_is_read_as_it_was_drawn(distinct: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "pairs.csv"
    line = ["pairs", "--faces", str(distinct), "--out", str(out), "--folds", "4", "--json"]
    assert run(line) == 0
    shown = json.loads(capsys.readouterr().out)
    pairs = read_pairs(out, distinct)
    assert (shown["pairs"], shown["genuine"]) == (len(pairs.same), int(pairs.same.sum()))
    assert set(pairs.fold) == {0, 1, 2, 3}
    people = [Path(key).parts[0] for key in pairs.faces.keys]
    for first, second, same in zip(pairs.first, pairs.second, pairs.same, strict=True):
        assert (people[first] == people[second]) == same
    for fold in range(4):
        inside, outside = (
            {people[i] for i in (*pairs.first[chosen], *pairs.second[chosen])}
            for chosen in (pairs.fold == fold, pairs.fold != fold)
        )
        assert not inside & outside
    data = out.read_bytes()
    assert run(line) == 0
    assert out.read_bytes() == data
    assert run([*line, "--seed", "1"]) == 0
    assert out.read_bytes() != data
    assert run(["pairs", "--faces", "synthetic:5x1", "--out", str(tmp_path / "no.csv")]) == 4
    assert not (tmp_path / "no.csv").exists()


def test_crops_of_a_person_lie_in_one_part(tmp_path: Path, capsys: Captured) -> None:
    detector = write_bright_detector(tmp_path / "bright.onnx")
    photo = np.full((640, 640, 3), 60, np.uint8)
    photo[96:128, 160:192] = 255
    for person in range(4):
        for image in range(2):
            file = tmp_path / "photos" / f"p{person}" / f"{image}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo).save(file)
    out = tmp_path / "faces"
    line = ["align", str(tmp_path / "photos"), "--out", str(out), "--detector", str(detector)]
    assert run([*line, "--split", "0.25", "-q"]) == 0
    parts = {
        part: sorted(p.name for p in (out / part).iterdir()) for part in ("calibration", "judging")
    }
    assert [len(people) for people in parts.values()] == [1, 3]
    assert sorted(sum(parts.values(), [])) == ["p0", "p1", "p2", "p3"]
    assert len(list(out.rglob("*.png"))) == 8
    assert run([*line, "--split", "1"]) == 2


def test_people_are_divided_by_their_folders() -> None:
    keys = [f"{person}/{image}.jpg" for person in "abcdef" for image in range(2)] + ["one/0.jpg"]
    parts = split_folders(keys, 0.3)
    assert parts["one/0.jpg"] == "calibration"  # forms no pair to judge on
    by_person = {key.split("/")[0]: set() for key in keys}  # type: ignore[var-annotated]
    for key, part in parts.items():
        by_person[key.split("/")[0]].add(part)
    assert all(len(found) == 1 for found in by_person.values())
    assert list(parts.values()).count("calibration") == 3
    assert split_folders(keys, 0.3) == parts
    with pytest.raises(UsageError, match="between 0 and 1"):
        split_folders(keys, 1.0)
    with pytest.raises(FacesError, match="0 of them with two faces"):
        split_folders(["a/1.jpg", "b/1.jpg"], 0.5)
