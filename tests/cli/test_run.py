"""`fr-edge run`: stages are finished once, repeated where an input changed, and judged at the end."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bright_detector import write_bright_detector
from networks import write_network
from PIL import Image

from fr_edge.cli.main import run
from fr_edge.cli.output import Output
from fr_edge.cli.pipeline import EngineRow, _with_best
from fr_edge.cli.stages import PROBLEM, Work, run_stages
from fr_edge.errors import FacesError, UsageError
from fr_edge.faces.images import stored_size
from fr_edge.faces.sources import synthetic_faces
from fr_edge.faces.split import split_people
from fr_edge.runtime.recognition.recogniser import Recogniser

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def finished(
    network: Path, distinct: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """A job that was finished, and its command line."""
    home = tmp_path_factory.mktemp("job")
    model = home / "mine.onnx"
    shutil.copy(network, model)
    policy = home / "policy.toml"
    policy.write_text("[verify]\nfar = 1e-2\nmax_tar_drop = 0.2\n")
    line = ["run", str(distinct), str(model), "--preset", "insightface", "--out", str(home / "out")]
    line += ["--backend", "onnxruntime", "--precisions", "fp32,int8", "--duration", "0.2"]
    line += ["--policy", str(policy)]
    assert run([*line, "-q"]) in (0, 1)
    return home / "out", line


def result_of(capsys: Captured, line: list[str]) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = run([*line, "--json"])
    text = capsys.readouterr().out
    return code, json.loads(text)


def test_every_engine_is_built_judged_and_timed(
    finished: tuple[Path, list[str]], capsys: Captured
) -> None:
    out, line = finished
    code, result = result_of(capsys, line)
    assert [s["stage"] for s in result["stages"]] == [
        *("split", "export", "engine fp32", "verify fp32", "benchmark fp32", "calibrate int8"),
        *("engine int8", "verify int8", "benchmark int8", "report"),
    ]
    rows = {row["precision"]: row for row in result["engines"]}
    assert rows["fp32"]["verdict"] == "PASSED"
    assert rows["int8"]["verdict"] in ("PASSED", "CANNOT JUDGE", "FAILED")
    assert rows["int8"]["int8_share"] > 0.5
    for row in rows.values():
        assert (
            row["size"]
            == (out / f"model.bundle/engines/onnxruntime-{row['precision']}.onnx").stat().st_size
        )
        assert row["p50_ms"] > 0
        assert 0.9 < row["tar"] <= 1
    assert result["passed"] == all(row["verdict"] == "PASSED" for row in rows.values())
    assert code == (0 if result["passed"] else 1)
    assert Path(result["report"]).is_file()


def test_finished_stages_are_not_repeated(
    finished: tuple[Path, list[str]], capsys: Captured
) -> None:
    out, line = finished
    before = (out / "run.json").read_bytes()
    result_of(capsys, line)
    assert (out / "run.json").read_bytes() == before
    again = [
        *line[: line.index("--duration")],
        "--duration",
        "0.3",
        *line[line.index("--policy") :],
    ]
    result_of(capsys, again)
    first, second = (
        {s["stage"]: s["seconds"] for s in json.loads(text)["stages"]}
        for text in (before, (out / "run.json").read_bytes())
    )
    changed = {stage for stage in first if first[stage] != second[stage]}
    assert changed == {"benchmark fp32", "benchmark int8", "report"}


def test_the_settings_are_kept_and_taken_from_a_file(
    finished: tuple[Path, list[str]], capsys: Captured, tmp_path: Path
) -> None:
    out, line = finished
    config = tmp_path / "run.toml"
    shutil.copy(out / "run.toml", config)
    before = (out / "run.json").read_bytes()
    assert "calibration_share = 0.3" in config.read_text()
    result_of(capsys, ["run", "--config", str(config), "--out", str(out)])
    stages = {s["stage"] for s in json.loads(before)["stages"]}
    assert {s["stage"] for s in json.loads((out / "run.json").read_bytes())["stages"]} == stages
    for text, message in (
        ("photo = 'x'", "unknown keys: photo"),
        ("photos = 3\nmodel = 'x'", "Expected `str`, got `int`"),
        ("photos = 'x'", "photographs and a network are needed"),
        ("photos = [", "not a TOML file"),
        ("photos = 'x'\nmodel = 'y'\nprecisions = ['int9']", "no precision 'int9'"),
    ):
        config.write_text(text)
        assert run(["run", "--config", str(config), "--out", str(tmp_path / "o")]) in (2, 4)
        assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("options", "message", "code"),
    [
        (["--preset", "film"], "unknown preset 'film'", 2),
        (["--policy", "nowhere.toml"], "there is no file nowhere.toml", 4),
        (["--calibration-share", "2"], "between 0 and 1, found 2", 2),
        (["--duration", "0"], "the duration above 0", 2),
        (["--out", "/proc/no/run"], "/proc/no cannot be used", 2),
    ],
)
def test_what_cannot_be_done_is_said_before_the_first_stage(
    options: list[str], message: str, code: int, tmp_path: Path, capsys: Captured
) -> None:
    line = ["run", "synthetic:9x2@1", "net.onnx", "--out", str(tmp_path / "out")]
    assert run([*line, *options]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_photographs_are_aligned_first(tmp_path: Path, capsys: Captured) -> None:
    network = write_network(tmp_path / "net.onnx", side=160)
    detector = write_bright_detector(tmp_path / "bright.onnx")
    for person in range(3):
        for image in range(2):
            photo = np.full((640, 640, 3), 60, np.uint8)
            photo[96:128, 160:192] = 255 - 9 * person - image
            file = tmp_path / "photos" / str(person) / f"{image}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo).save(file)
    code, result = result_of(
        capsys,
        ["run", str(tmp_path / "photos"), str(network), "--detector", str(detector)]
        + ["--preset", "insightface", "--out", str(tmp_path / "out"), "--precisions", "fp32"]
        + ["--duration", "0.2", "--backend", "onnxruntime"],
    )
    assert result["stages"][0]["figure"].startswith("6 photographs; 0 show no face")
    assert result["engines"][0]["verdict"] == "CANNOT JUDGE"  # people who look alike
    assert code == 1
    crops = sorted((tmp_path / "out" / "faces").rglob("*.png"))
    sizes = [stored_size(crop.read_bytes(), crop.name) for crop in crops]
    assert sizes == 6 * [(160, 160)]  # the network's own
    bundle = tmp_path / "out" / "model.bundle"
    assert [s["stage"] for s in result["stages"]][:4] == ["align", "split", "export", "detector"]
    with Recogniser(bundle) as from_photographs, Recogniser(bundle, aligned=True) as from_crops:
        whole = from_photographs.embed(tmp_path / "photos" / "0" / "0.png")
        assert whole @ from_crops.embed(crops[0]) == pytest.approx(1, abs=1e-6)
        with pytest.raises(UsageError, match="112x112 pixels, expected an aligned face of 160x160"):
            from_crops.embed(np.zeros((112, 112, 3), np.uint8))


def test_people_are_in_one_part_alone() -> None:
    faces = synthetic_faces("synthetic:20x2@3")
    first, second = split_people(faces, 0.25)
    assert (first.identities, second.identities) == (5, 15)
    people = [{key.split("/")[0] for key in part.keys} for part in (first, second)]
    assert not people[0] & people[1]
    assert len(people[0] | people[1]) == 20
    assert split_people(faces, 0.25)[0].keys == first.keys
    assert split_people(faces, 0.25, seed=1)[0].keys != first.keys
    assert np.array_equal(second.read(0), faces.read(faces.keys.index(second.keys[0])))
    for share in (0, 1, -1):
        with pytest.raises(UsageError, match="between 0 and 1"):
            split_people(faces, share)
    with pytest.raises(FacesError, match="20 people, 0 of them with two faces"):
        split_people(synthetic_faces("synthetic:20x1@3"))
    single = faces.subset([*range(0, 30, 2), *range(1, 8)])
    assert split_people(single, 0.9)[1].identities == 2


def test_what_failed_is_tried_again_with_all_that_follows(tmp_path: Path) -> None:
    ran: list[str] = []

    def stage(name: str, **numbers: object) -> Work:
        after = {"verify": ("engine",), "report": ("verify",)}.get(name, ())
        return Work(lambda: (ran.append(name), (name, "", numbers))[1], None, after)

    file, output = tmp_path / "run.json", Output(quiet=True)
    rest = {name: stage(name) for name in ("other", "verify", "report")}
    failed = {"engine": stage("engine", **{PROBLEM: "no memory"}), **rest}
    run_stages(file, failed, output)
    run_stages(file, {"engine": stage("engine"), **rest}, output)
    assert ran == ["engine", "other", "verify", "report", "engine", "verify", "report"]
    run_stages(file, {"engine": stage("engine"), **rest}, output)
    assert len(ran) == 7


def test_an_engine_is_best_unless_another_is_as_good_in_all() -> None:
    small = EngineRow("int8", "PASSED", size=1, p50_ms=2.0, timing="VALID", tar=0.9)
    fast = replace(small, precision="fp16", size=2, p50_ms=1.0)
    worse = replace(small, precision="fp32", size=3)
    exact = replace(small, precision="fp8", size=9, p50_ms=9.0, tar=0.91)
    failed = replace(small, verdict="FAILED", size=0, p50_ms=0.1, tar=1.0)
    untimed = replace(fast, p50_ms=0.1, timing="INVALID")  # as in the report
    unknown = replace(fast, p50_ms=0.1, tar=None)
    rows = list(_with_best([small, fast, worse, exact, failed, untimed, unknown]))
    assert [row.best for row in rows] == [True, True, False, True, False, False, False]
    assert [bool(row.not_placed) for row in rows] == [False] * 4 + [True] * 3
