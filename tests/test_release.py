"""The version is the same everywhere, and docs/releasing.md says what the code does."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from fr_edge import __version__
from fr_edge.bundle import manifest, signature
from fr_edge.calibration import table
from fr_edge.cli.main import ALIASES, COMMANDS, run
from fr_edge.errors import DataError
from fr_edge.runtime.acceptance import accept
from fr_edge.runtime.benchmark.result import BENCHMARK_SCHEMA
from fr_edge.runtime.evaluation.result import REPORT_SCHEMA
from fr_edge.runtime.evaluation.stored_reports import decode_report
from fr_edge.runtime.packages.package import PACKAGE_SCHEMA
from fr_edge.runtime.packages.package_models import CONTRACT_SCHEMA

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "releasing.md").read_text()


def load(file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(file).stem, ROOT / file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_file_names_this_version() -> None:
    dated = re.findall(
        r"^## \[([\d.]+)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.M
    )
    assert dated[0] == __version__
    assert f"\nversion: {__version__}\n" in (ROOT / "fleet/collection/galaxy.yml").read_text()
    for page in ("install.md", "ci.md"):
        wheels = re.findall(r"fr_edge-([\d.]+)-py3", (ROOT / "docs" / page).read_text())
        assert wheels
        assert set(wheels) == {__version__}


def test_the_readmes_links_become_addresses_by_the_pages_line() -> None:
    """An index shows README, and has no files that relative links could lead to."""
    (pattern, folders) = re.findall(r"sed -i -E 's#(.*?)#\]\(ADDRESS/(.*?)#' README", PAGE)[0]
    assert (pattern, folders) == (r"\]\((docs|examples)/", r"\1/")
    text = re.sub(pattern, r"](https://address/\1/", (ROOT / "README.md").read_text())
    assert [
        target for target in re.findall(r"\]\(([^)]+)\)", text) if "https://" not in target
    ] == []


def test_deprecated_commands_say_what_takes_their_place(capfd: pytest.CaptureFixture[str]) -> None:
    for name, present in ALIASES.items():
        assert f"| `fr-edge {name}` | 0.2 | `fr-edge {present}` |" in PAGE
        assert run([name, "--help"]) == 0
        assert f"`{name}` is deprecated: use `{present}`" in capfd.readouterr().err
        assert run([name, "--help", "-q"]) == 0
        assert "deprecated" not in capfd.readouterr().err
    run(["doctor", "preprocess", "missing.onnx", "--faces", "missing"])
    assert "use `fr-edge find-preprocessing`" in capfd.readouterr().err


def test_the_page_has_the_schema_numbers() -> None:
    numbers = [int(n) for n in re.findall(r"\| `(?:schema|acceptance)` \| (\d+) \|", PAGE)]
    assert numbers == [
        manifest.SCHEMA, REPORT_SCHEMA, BENCHMARK_SCHEMA, table._SCHEMA, signature._SCHEMA,
        CONTRACT_SCHEMA, PACKAGE_SCHEMA, accept._SCHEMA,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["cosine", "accuracy", "tar_at_far", "detection", "runs", "frames"]
)
def test_a_report_of_a_newer_version_is_refused(kind: str) -> None:
    document = {kind: {}, "schema": 1 + max(REPORT_SCHEMA, BENCHMARK_SCHEMA)}
    with pytest.raises(
        DataError, match=f"schema 3, this fr-edge {__version__} reads up to"
    ) as info:
        decode_report(document, Path("report.json"))
    assert info.value.hint == "upgrade fr-edge"


def test_every_command_has_a_man_page(tmp_path: Path) -> None:
    pages = load("docs/write_man.py").pages()
    assert set(pages) == {"fr-edge.1", *(f"fr-edge-{name}.1" for name in COMMANDS)}
    assert '.SH "EXAMPLE' in pages["fr-edge-export.1"]
    assert "\\-\\-log\\-file" in pages["fr-edge-verify.1"]
    if shutil.which("groff") is None:
        pytest.skip("groff, which reads man pages, is not installed")
    for name, text in pages.items():
        (tmp_path / name).write_text(text)
    shown = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8", "-P-cbou", *pages],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stderr == ""
    assert max(map(len, shown.stdout.splitlines())) <= 80


@pytest.mark.parametrize("key", ["", "no/key"])
def test_the_check_of_a_release_refuses_before_it_works(key: str, tmp_path: Path) -> None:
    """A key that is no file; a changelog without this version's date."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "release-check", tmp_path / ".ci")
    shutil.copy(ROOT / "_version.py", tmp_path)
    (tmp_path / "CHANGELOG.md").write_text(f"## [{__version__}]\n")
    done = subprocess.run(
        ["bash", str(tmp_path / ".ci" / "release-check")],
        env={"PATH": os.environ["PATH"], "RELEASE_KEY": key},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == (2 if key else 1)
    assert ("no file" if key else "no dated section") in done.stderr


def test_the_oldest_python_can_read_every_file() -> None:
    """The grammar of Python 3.10, by pyproject's `requires-python`; other versions' runs are in CI's matrix."""
    oldest = re.search(r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert oldest is not None
    folders = [folder for folder in ROOT.iterdir() if (folder / "__init__.py").is_file()]
    files = [
        f for folder in [*folders, ROOT / "docs", ROOT / "examples"] for f in folder.rglob("*.py")
    ]
    assert len(files) > 200
    for file in [*files, *ROOT.glob("*.py")]:
        ast.parse(file.read_text(), str(file), feature_version=(3, int(oldest[1])))
