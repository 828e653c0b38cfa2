"""Reports are bound by hash to what they judged, and weaker ones replace nothing."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fr_edge._version import __version__
from fr_edge.bundle.bundle import open_bundle, transaction
from fr_edge.bundle.derived import stale_reports
from fr_edge.bundle.provenance import foreign_reason
from fr_edge.faces.pairs import Pairs, read_pairs
from fr_edge.faces.sources import Faces
from fr_edge.metrics.protocols import draw_pairs
from fr_edge.runtime.benchmark import benchmark as module
from fr_edge.runtime.benchmark.benchmark import benchmark
from fr_edge.runtime.build import build_engine
from fr_edge.runtime.evaluation.evaluate import evaluate
from fr_edge.runtime.evaluation.stored_reports import read_report
from fr_edge.runtime.evaluation.verify import verify

ENGINE = "engines/onnxruntime-int8.onnx"
SPEED: dict[str, Any] = {"duration_s": 0.2, "warmup_s": 0.1}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _pixels(faces: Faces) -> str:
    digest = hashlib.sha256()
    for index in range(len(faces)):
        digest.update(hashlib.sha256(faces.read(index).tobytes()).digest())
    return digest.hexdigest()


@pytest.fixture
def built(mini: Path) -> Path:
    build_engine(mini, "int8", "onnxruntime")
    return mini


def test_reports_hold_the_hashes_of_what_they_judged(
    built: Path, people: Faces, tmp_path: Path
) -> None:
    policy = tmp_path / "strict.toml"
    policy.write_text("min_cosine = 0.5\n")
    results = [
        verify(built, "int8", faces=people, policy=policy),
        evaluate(built, people, "int8"),
        benchmark(built, "int8", **SPEED),
    ]
    everywhere = ["model.onnx", "model.int8.onnx", "calibration.json", ENGINE, f"{ENGINE}.json"]
    wanted = [[*everywhere, "golden.npz", "policy.toml"], everywhere, [*everywhere, "golden.npz"]]
    for result, names in zip(results, wanted, strict=True):
        provenance = json.loads((built / result.report).read_text())["provenance"]
        assert set(names) <= set(provenance["files"])
        for name, sha256 in provenance["files"].items():
            assert sha256 == _sha256(built / name), name
        assert provenance["fr_edge"] == __version__
        assert provenance["device"]["backend"] == "onnxruntime"
        assert provenance["device"]["cpu"]
        assert set(provenance["packages"]) >= {"numpy", "onnxruntime"}
        assert "torch" not in provenance["packages"]
        assert provenance["time"].endswith("Z")
    assert [result.provenance and result.provenance.images for result in results[:2]] == [
        _pixels(people)
    ] * 2
    assert results[1].provenance
    assert results[1].provenance.pairs
    calibration = json.loads((built / "reports/calibration.json").read_text())["provenance"]
    assert calibration["images"]
    for name in ("model.onnx", "model.int8.onnx", "calibration.json"):
        assert calibration["files"][name] == _sha256(built / name)
    for name in open_bundle(built).files:
        if name.startswith("reports/"):
            for key in people.keys:
                assert key not in json.dumps(json.loads((built / name).read_text())["provenance"])


def test_the_digest_is_of_the_pixels_not_of_the_names(built: Path, people: Faces) -> None:
    def digest(faces: Faces) -> str | None:
        provenance = evaluate(built, faces, "int8").provenance
        return provenance.images if provenance else None

    def changed(index: int) -> np.ndarray:
        face = people.read(index).copy()
        face[0, 0, 0] ^= index == 7
        return face

    renamed = replace(people, keys=tuple(f"x{i}" for i in range(len(people))))
    assert digest(people) == digest(renamed)
    assert digest(people) != digest(replace(people, read=changed))


def test_a_pair_list_is_bound_by_its_file_and_its_pairs(built: Path, tmp_path: Path) -> None:
    from PIL import Image

    from fr_edge.faces.sources import synthetic_faces

    faces = synthetic_faces("synthetic:4x2")
    rows = ["fold,path1,path2,same"]
    for index, key in enumerate(faces.keys):
        target = tmp_path / f"{key}.png"
        target.parent.mkdir(exist_ok=True)
        Image.fromarray(faces.read(index)).save(target)
    for person in range(4):
        other = (person + 1) % 4
        rows.append(f"{person},{person:05d}/000.png,{person:05d}/001.png,1")
        rows.append(f"{person},{person:05d}/000.png,{other:05d}/001.png,0")
    file = tmp_path / "pairs.csv"
    file.write_text("\n".join(rows) + "\n")
    first = evaluate(built, read_pairs(file), "int8").provenance
    assert first
    assert first.inputs == {"pairs": _sha256(file)}
    file.write_text("\n".join(rows[:-2]) + "\n")
    second = evaluate(built, read_pairs(file), "int8").provenance
    assert second
    assert second.pairs != first.pairs
    assert second.inputs == {"pairs": _sha256(file)}


def test_a_weaker_run_replaces_no_certificate(built: Path, people: Faces) -> None:
    pairs = Pairs(people, **vars(draw_pairs(people.labels)))
    strong = verify(built, "int8", pairs=pairs)
    before = (built / strong.report).read_bytes()
    others = [verify(built, "int8"), verify(built, "int8", artifact="graph")]
    others.append(verify(built, "int8", faces=people))
    assert (built / strong.report).read_bytes() == before
    assert len({strong.report, *(other.report for other in others)}) == 4
    assert stale_reports(open_bundle(built)) == {}


def test_another_engine_leaves_the_earlier_certificate_as_stale(built: Path, people: Faces) -> None:
    from fr_edge.calibration.calibrate import calibrate
    from fr_edge.faces.sources import open_faces

    first = verify(built, "int8", faces=people)
    before = (built / first.report).read_bytes()
    calibrate(built, open_faces("synthetic:20x4@9"))
    assert first.report in stale_reports(open_bundle(built))
    build_engine(built, "int8", "onnxruntime")
    second = verify(built, "int8", faces=people)
    assert (built / first.report).read_bytes() == before
    assert set(stale_reports(open_bundle(built))) == {first.report}
    assert second.report != first.report


def test_a_report_of_another_bundle_is_recognized(
    built: Path, calibrated_mini: Path, people: Faces, tmp_path: Path
) -> None:
    other = tmp_path / "other.bundle"
    shutil.copytree(calibrated_mini, other)
    result = verify(built, "int8", faces=people)
    report = read_report(built / result.report)
    assert report
    assert foreign_reason(report.provenance, open_bundle(built)) == ""
    # The other bundle's manifest is made to agree with the copy.
    with transaction(other, "copy", {}) as change:
        change.path(result.report, "verify").write_bytes((built / result.report).read_bytes())
    assert ENGINE in foreign_reason(report.provenance, open_bundle(other))
    assert "earlier fr-edge" in foreign_reason(None, open_bundle(built))


def test_an_invalid_run_does_not_replace_a_valid_one(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = module.summarize_run
    verdict = "VALID"

    def summarized(*args: Any) -> Any:
        return replace(plain(*args), verdict=verdict)

    monkeypatch.setattr(module, "summarize_run", summarized)
    valid = benchmark(built, "int8", **SPEED)
    before = (built / valid.report).read_bytes()
    verdict = "INVALID"
    invalid = benchmark(built, "int8", **SPEED)
    assert (built / valid.report).read_bytes() == before
    assert invalid.report != valid.report
    verdict = "VALID"
    again = benchmark(built, "int8", **SPEED)
    assert again.report == valid.report
    assert not (built / invalid.report).exists()
