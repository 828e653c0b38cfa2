"""Limits that cannot hold, pair lists that prove nothing, and reports of something else: what each
is answered, and that nothing is lost."""

import csv
import io
import json
import pickle
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from fr_edge.cli.main import run

Captured = pytest.CaptureFixture[str]
ENGINE = "engines/onnxruntime-int8.onnx"


def content(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def answer(args: list[str], capsys: Captured) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = run([*args, "--json", "-q"])
    document = json.loads(capsys.readouterr().out)
    assert "error" not in document, document
    return code, document


def gates(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {gate["name"]: gate for gate in result["gates"]}


# Policies.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("min_tar = 1.1", "min_tar is a fraction, 0 to 1, found 1.1"),
        ("min_tar = nan", "min_tar is a fraction, 0 to 1, found nan"),
        ("max_tar_drop = -inf", "max_tar_drop is a fraction"),
        ("[evaluate]\nmax_eer = nan", "max_eer is a fraction"),
        ("[benchmark]\nmax_p99_ms = inf", "max_p99_ms is a number above 0"),
        ("min_tarr = 0.9", "'min_tarr'"),
        (
            "[int8]\nmin_tar = 0.9\n[verify.int8]\nmin_tar = 0.8",
            "contradicts itself: min_tar is 0.9",
        ),
        ("far = 1e-3\n[verify]\nfar = 1e-4", "contradicts itself: far is 0.001 in the top level"),
        ("min_tar = 0.9\nmin_tar = 0.8", "TOML"),
        ("[evaluate]\nmax_eer = [0.1]", "max_eer in [evaluate] is a number"),
    ],
)
@pytest.mark.parametrize("command", ["verify", "evaluate"])
def test_a_policy_that_cannot_hold(
    command: str, text: str, message: str, bundle: Path, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "p.toml").write_text(text)
    before = content(bundle)
    more = ["--protocol", "synthetic:24x3"] if command == "evaluate" else []
    policy = ["--policy", str(tmp_path / "p.toml")]
    assert run([command, str(bundle), "--engine", "int8", *more, *policy, "-q"]) == 4
    error = capsys.readouterr().err
    assert message in error
    assert "p.toml" in error
    assert "Traceback" not in error
    assert content(bundle) == before


def test_evaluate_reads_its_table_of_a_policy_and_the_bundle_keeps_it(
    bundle: Path, distinct: Path, tmp_path: Path, capsys: Captured
) -> None:
    policy = tmp_path / "p.toml"
    policy.write_text("[evaluate]\nmin_tar = 0.2\nfar = 1e-2\n[evaluate.int8]\nmax_eer = 0.001\n")
    args = ["evaluate", str(bundle), "--protocol", str(distinct), "--engine"]
    code, result = answer([*args, "int8", "--policy", str(policy)], capsys)
    assert {g["limit"] for g in result["gates"]} == {0.2, 0.001}
    assert (code, result["passed"]) == (0 if result["verdict"] == "PASSED" else 1, not code)
    assert (bundle / "policy.toml").read_text() == policy.read_text()
    code, again = answer([*args, "int8"], capsys)  # by the policy that the bundle kept
    assert again["gates"] == result["gates"]
    code, fp32 = answer([*args, "fp32", "--min-tar", "0.1"], capsys)  # a flag goes before it
    assert (code, [gate["limit"] for gate in fp32["gates"]]) == (0, [0.1])
    sha256 = result["provenance"]["files"]["policy.toml"]
    assert sha256 == again["provenance"]["files"]["policy.toml"]


# Pair lists.


def write_pairs(people: Path, file: Path, *, count: int = 20, first: int = 0) -> Path:
    """As many genuine as impostor pairs in ten folds; the list lies beside the people's folders."""
    folders = sorted(path for path in people.iterdir() if path.is_dir())
    with file.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["fold", "path1", "path2", "same"])
        for number in range(first, first + count):
            a, b = folders[number % len(folders)], folders[(number + 1) % len(folders)]
            for other, same in ((a, 1), (b, 0)):
                paths = (f"{folder.name}/{face}.png" for folder, face in ((a, 0), (other, 1)))
                rows.writerow([number % 10, *paths, same])
    return file


@pytest.mark.parametrize("command", ["verify", "evaluate"])
@pytest.mark.parametrize("kind", ["one person", "no impostors", "no genuine pairs", "empty"])
def test_a_pair_list_of_one_kind(
    kind: str, command: str, bundle: Path, distinct: Path, tmp_path: Path, capsys: Captured
) -> None:
    a, b = (folder.name for folder in sorted(distinct.iterdir())[:2])
    rows = {
        "one person": [f"0,{a}/0.png,{a}/1.png,1", f"0,{a}/0.png,{a}/2.png,1"],
        "no impostors": [f"0,{a}/0.png,{a}/1.png,1", f"1,{b}/0.png,{b}/1.png,1"],
        "no genuine pairs": [f"0,{a}/0.png,{b}/1.png,0", f"1,{a}/1.png,{b}/0.png,0"],
        "empty": [],
    }[kind]
    file = tmp_path / "pairs.csv"
    file.write_text("\n".join(["fold,path1,path2,same", *rows]) + "\n")
    before = content(bundle)
    listed = ["--pairs" if command == "verify" else "--protocol", str(file)]
    assert run([command, str(bundle), *listed, "--faces", str(distinct), "-q"]) == 4
    error = capsys.readouterr().err
    assert "genuine pairs among" in error
    assert "expected both kinds" in error
    assert content(bundle) == before


def test_one_person_whom_the_list_takes_for_two(
    bundle: Path, distinct: Path, tmp_path: Path, capsys: Captured
) -> None:
    """The list contradicts the folder's name: nobody is named, and nothing passes."""
    a = min(distinct.iterdir()).name
    file = tmp_path / "pairs.csv"
    rows = [f"0,{a}/0.png,{a}/1.png,1", f"1,{a}/2.png,{a}/3.png,0"]
    file.write_text("\n".join(["fold,path1,path2,same", *rows]) + "\n")
    args = ["--faces", str(distinct)]
    code, result = answer(["verify", str(bundle), "--pairs", str(file), *args], capsys)
    assert (code, result["passed"]) == (1, False)
    gated = ["--min-tar", "0.1", "--far", "0.5", "--max-eer", "0.9", "--min-accuracy", "0.1"]
    args = ["evaluate", str(bundle), "--protocol", str(file), *args, *gated]
    code, result = answer(args, capsys)
    assert (code, result["verdict"]) == (1, "CANNOT JUDGE")
    assert {gate["verdict"] for gate in result["gates"]} == {"CANNOT JUDGE"}


def write_bin(path: Path, people: Path, seed: int = 0) -> Path:
    """A set as insightface lays it out, which does not name the people: 40 pairs of each kind."""
    folders, random = sorted(people.iterdir()), np.random.default_rng(seed)
    images, same = [], []
    for number in range(80):
        a, b = random.choice(len(folders), 2, replace=False)
        genuine = number % 2 == 0
        for person, face in ((a, 0), (a if genuine else b, 1)):
            stream = io.BytesIO()
            Image.open(folders[person] / f"{face}.png").save(stream, "PNG")
            images.append(stream.getvalue())
        same.append(genuine)
    path.write_bytes(pickle.dumps((images, same)))
    return path


@pytest.mark.parametrize("command", ["verify", "evaluate"])
def test_the_eer_of_people_without_names_cannot_be_judged(
    command: str, bundle: Path, distinct: Path, tmp_path: Path, capsys: Captured
) -> None:
    file, junit = write_bin(tmp_path / "lfw.bin", distinct), tmp_path / "j.xml"
    listed = ["--pairs" if command == "verify" else "--protocol", str(file)]
    limits = ["--max-eer", "0.9", "--junit", str(junit)]
    code, result = answer([command, str(bundle), *listed, *limits], capsys)
    gate = gates(result)["equal error rate"]
    assert (code, gate["verdict"], gate["interval_95"]) == (1, "CANNOT JUDGE", None)
    assert gate["value"] < 0.5
    assert "does not name the people" in gate["reason"]
    assert gate["cure"] == "give the faces in a folder per person"
    cases = ElementTree.parse(junit).getroot().findall("testcase")
    errors = [c.get("name") for c in cases if c.find("error") is not None]
    assert "equal error rate" in errors


def test_evaluate_gates_a_list_without_names_by_its_folds(
    bundle: Path, distinct: Path, tmp_path: Path, capsys: Captured
) -> None:
    file = write_bin(tmp_path / "lfw.bin", distinct)
    limits = ["--min-tar", "0.05", "--far", "0.3"]
    code, result = answer(["evaluate", str(bundle), "--protocol", str(file), *limits], capsys)
    (gate,) = result["gates"]
    assert (code, gate["verdict"]) == (0, "PASSED")
    assert 0.05 < gate["interval_95"][0] < gate["value"] <= gate["interval_95"][1]
    assert result["interval_95_at_far"]["3e-1"] == gate["interval_95"]


# Two protocols of one name.


@pytest.mark.parametrize("command", ["verify", "evaluate"])
def test_two_protocols_of_one_name_are_both_kept(
    command: str, bundle: Path, distinct: Path, tmp_path: Path, capsys: Captured
) -> None:
    """Content tells them apart: another list, or other pixels under the same names."""
    people = tmp_path / "people"
    shutil.copytree(distinct, people)
    listed = ["--pairs" if command == "verify" else "--protocol", str(people / "lfw.csv")]
    args = [command, str(bundle), "--engine", "int8", *listed]
    write_pairs(people, people / "lfw.csv")
    first = answer(args, capsys)[1]["report"]
    again = answer(args, capsys)[1]["report"]
    write_pairs(people, people / "lfw.csv", first=20)
    other_pairs = answer(args, capsys)[1]["report"]
    picture = min(distinct.iterdir()) / "0.png"
    write_pairs(people, people / "lfw.csv")
    Image.fromarray(255 - np.asarray(Image.open(picture))).save(
        people / picture.parent.name / picture.name
    )
    other_pixels = answer(args, capsys)[1]["report"]
    assert first == again
    assert len({first, other_pairs, other_pixels}) == 3
    assert all((bundle / name).is_file() for name in (first, other_pairs, other_pixels))


# Reports of another bundle.


@pytest.fixture
def copied(bundle: Path, built: Path, network: Path, tmp_path: Path, capsys: Captured) -> Path:
    """A bundle with an engine of its own, and with a report of another bundle's engine that its
    manifest names as if it were its own."""
    from fr_edge.bundle.bundle import transaction

    other = tmp_path / "other.bundle"
    shutil.copytree(built, other)
    assert run(["verify", str(bundle), "--engine", "int8", "-q"]) == 0
    assert run(["calibrate", str(other), "--faces", "synthetic:16x2@6", "-q"]) == 0
    assert run(["build-engine", str(other), "--int8", "--backend", "onnxruntime", "-q"]) == 0
    (report,) = (bundle / "reports").glob("verify-int8-*.json")
    with transaction(other, "copy", {}) as change:
        change.path(f"reports/{report.name}", "verify", of=(ENGINE,)).write_bytes(
            report.read_bytes()
        )
        # Put in by hand: the manifest does not record what it judged.
        change.path("reports/verify-int8-by-hand-1.json", "verify").write_bytes(report.read_bytes())
    return other


def test_a_report_of_another_bundle_is_named_and_counts_for_nothing(
    copied: Path, bundle: Path, capsys: Captured
) -> None:
    for command in ("inspect", "check"):
        code, document = answer([command, str(copied)], capsys)
        rows = [row for row in document["reports"] if row["kind"] == "verify"]
        assert (code, len(rows)) == (0, 2)
        for row in rows:
            assert "it judged another" in row["stale"]
            assert document["stale"][row["file"]] == row["stale"]
    assert run(["compare", str(bundle), str(copied)]) == 2
    error = capsys.readouterr().err
    assert f"second: {row['file']}: it judged another" in error
    assert "left out" in error
    assert run(["report", str(copied), "-q"]) == 0
    page = (copied / "report.html").read_text()
    assert "NOT VERIFIED" in page
    assert 'class="verdict good"' not in page
    assert (copied / row["file"]).is_file()


def test_files_that_the_manifest_does_not_name_are_named(
    copied: Path, bundle: Path, capsys: Captured
) -> None:
    """Copied into the folder by hand, without an entry in the manifest."""
    assert run(["report", str(bundle), "-q"]) == 0
    before = content(copied)
    (copied / "report.html").write_bytes((bundle / "report.html").read_bytes())
    (copied / "reports" / "verify-int8-lfw-1.json").write_text("{}")
    (copied / "checkpoint").mkdir()
    (copied / "checkpoint" / "last.pt").write_text("of a training")
    for command in ("inspect", "check"):
        code, document = answer([command, str(copied)], capsys)
        assert code == 0
        assert document["unlisted"] == ["report.html", "reports/verify-int8-lfw-1.json"]
        assert run([command, str(copied)]) == 0
        assert "not part of the bundle: report.html" in capsys.readouterr().out
    assert {name: data for name, data in content(copied).items() if name in before} == before


def test_another_report_in_the_place_of_one(bundle: Path, built: Path, capsys: Captured) -> None:
    assert run(["verify", str(bundle), "--engine", "int8", "-q"]) == 0
    (report,) = (bundle / "reports").glob("verify-int8-*.json")
    report.write_text(report.read_text().replace("PASSED", "FAILED"))
    for command in ("inspect", "check", "report"):
        capsys.readouterr()
        assert run([command, str(bundle)]) == 4
        assert f"{report.name} was changed" in capsys.readouterr().err


def test_a_verdict_against_its_own_gates(bundle: Path, capsys: Captured) -> None:
    """A failed report is called passed, and the manifest has its new sha256."""
    from fr_edge.bundle.bundle import transaction

    assert run(["verify", str(bundle), "--engine", "int8", "--min-cosine", "1", "-q"]) == 1
    (report,) = (bundle / "reports").glob("verify-int8-*.json")
    document = json.loads(report.read_text()) | {"verdict": "PASSED", "passed": True, "reasons": []}
    with transaction(bundle, "edit", {}) as change:
        change.path(f"reports/{report.name}", "verify").write_text(json.dumps(document))
    for command in ("inspect", "check", "report"):
        capsys.readouterr()
        assert run([command, str(bundle)]) == 4
        assert "it is called PASSED and its gates say FAILED" in capsys.readouterr().err


# `check`.


def test_check_names_an_engine_that_is_not_its_fingerprints(bundle: Path, capsys: Captured) -> None:
    from fr_edge.bundle.bundle import transaction

    code, document = answer(["check", str(bundle)], capsys)
    assert (code, document["problems"]) == (0, [])
    assert set(document["engines"]) == {ENGINE, ENGINE.replace("int8", "fp32")}
    assert set(document["engines"].values()) == {""}
    facts = json.loads((bundle / f"{ENGINE}.json").read_text())
    with transaction(bundle, "edit", {}) as change:
        change.path(f"{ENGINE}.json", "engine fingerprint").write_text(
            json.dumps(facts | {"source_sha256": "0" * 64})
        )
    before = content(bundle)
    capsys.readouterr()
    assert run(["check", str(bundle)]) == 4
    error = capsys.readouterr().err
    assert f"{ENGINE} was built from another model.int8.onnx" in error
    assert content(bundle) == before


def test_check_of_a_changed_file_and_of_nothing(
    bundle: Path, tmp_path: Path, capsys: Captured
) -> None:
    (bundle / ENGINE).write_bytes(b"something else")
    assert run(["check", str(bundle)]) == 4
    assert f"{ENGINE} was changed" in capsys.readouterr().err
    assert run(["check", str(tmp_path / "missing")]) == 4
    assert run(["check", str(tmp_path)]) == 4
    assert "Traceback" not in capsys.readouterr().err
