"""docs/ci.md: its script runs in a shell with its policy, and its snippets run that script."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from networks import write_distinct_people

from fr_edge.runtime.evaluation.limits import BenchmarkLimits, EvaluateLimits, Limits

PAGE = (Path(__file__).parents[2] / "docs" / "ci.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def _run(home: Path) -> "subprocess.CompletedProcess[str]":
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["sh", "certify.sh"],
        cwd=home,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def home(bundle: Path, tmp_path: Path) -> Path:
    shutil.move(bundle, tmp_path / "mine.bundle")
    # No error among 40 people bounds the equal error rate at .047 to .051, by how INT8 rounds on
    # the CPU at hand; among 100 it is far below the page's limit of .05.
    write_distinct_people(tmp_path / "faces" / "judging", people=100)
    (script,), (policy,) = _blocks("sh"), _blocks("toml")
    # A run on a machine that tests share is INVALID, which the limits of [benchmark] do not allow.
    policy = policy.replace("min_throughput", "# min_throughput").replace("max_p99", "# max_p99")
    # Nor can 100 people bound the FAR at a threshold kept from FAR 1e-3.
    policy = policy.replace("max_kept_far", "# max_kept_far")
    (tmp_path / "certify.sh").write_text(script)
    (tmp_path / "policy.toml").write_text(policy)
    return tmp_path


def test_the_script_certifies_a_good_engine_and_stops_at_a_bad_one(home: Path) -> None:
    done = _run(home)
    assert done.returncode == 0, done.stderr
    for name in ("verify", "evaluate", "benchmark"):
        suite = ElementTree.parse(home / "junit" / f"{name}.xml").getroot()
        assert suite.get("failures") == "0"
        assert name == "benchmark" or suite.get("errors") == "0"
        assert suite.findall("testcase")
    assert (home / "mine.bundle" / "report.html").is_file()
    shutil.rmtree(home / "junit")
    policy = home / "policy.toml"
    policy.write_text(policy.read_text().replace("min_tar = 0.5", "min_tar = 1.0"))
    done = _run(home)
    assert done.returncode == 1
    assert "CANNOT JUDGE" in done.stderr
    assert [path.name for path in (home / "junit").iterdir()] == ["verify.xml"]


def test_every_limit_is_on_the_page() -> None:
    for limits in (Limits, EvaluateLimits, BenchmarkLimits):
        for name in vars(limits()):
            assert f"`{name}`" in PAGE


def test_the_snippets_run_the_script_and_keep_its_files() -> None:
    snippets = _blocks("yaml")
    assert len(snippets) == 2
    for text in snippets:
        assert "sh certify.sh" in text
        assert "junit/*.xml" in text
        assert "mine.bundle/report.html" in text
