"""Every code block of every page is run by a test, or says here why it is not; links and anchors exist.

A mark is the block's language, and the test that runs it as it stands; "like" a test that runs the same commands with other
files or options; or "not run" and why.
"""

import re
from pathlib import Path

import pytest

from fr_edge.bundle.bundle import open_bundle
from fr_edge.runtime.benchmark.conditions import required_power_mode
from fr_edge.runtime.evaluation.limits import BenchmarkLimits, read_policy

ROOT = Path(__file__).parents[1]
GENERATED = {ROOT / "docs" / "cli.md"}  # compared with the commands themselves, whose examples run
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if "man" not in p.parts),
    *sorted(p for folder in ("examples", "deploy", "benchmarks", ".github")
            for p in (ROOT / folder).rglob("*.md")),
]  # fmt: skip

FLEET, JETSON_PAGE = ROOT / "docs" / "fleet.md", ROOT / "docs" / "jetson.md"
CARD = "tests/boards/test_documented_commands.py::test_a_card"
JETSON = "tests/boards/test_documented_commands.py::test_a_jetson"
PHOTOS = "tests/cli/test_page_blocks.py::test_detectors_and_photographs"
PACKS = "tests/cli/test_page_blocks.py::test_signed_packs"
HELP = "like tests/cli/test_examples.py::test_an_example_runs_and_prints_lines_of_80_columns"
TUTORIAL = "tests/cli/test_tutorial.py::test_every_command_of_the_tutorial"
SITE = "not run: a directive of the site; `make docs` fails where it is wrong"
OUTPUT = "not run: what a command printed"
DRAWING = "not run: a drawing"
EXCERPT = "not run: an excerpt of an interface, whose names test_every_public_name checks"
INSTALL = (
    "not run: installs packages; `.ci/run` and tests/boards do the same in Makefile and doubles"
)
CLUSTER = "not run: needs several GPUs or machines; its lines parse, and test_manifests runs deploy/ with doubles"
REAL = "not run: needs networks and faces that are not in the repository; the lines parse"

BLOCKS: dict[str, list[str]] = {
    "README.md": [
        "python tests/cli/test_readme.py::test_the_first_screen_compares_two_photographs",
        f"bash {CARD}",
        "bash like tests/cli/test_run.py::test_photographs_are_aligned_first",
        "python tests/runtime/recognition/test_recogniser.py::test_the_code_of_the_readme_runs",
        f"bash {PHOTOS}",
        "bash not run: what .ci/run runs",
        f"bash {CARD}",
        f"bash like {TUTORIAL}",
        f"bash {CLUSTER}",
        f"bash {CLUSTER}",
        f"bash {JETSON}",
    ],
    "docs/api.md": [f"{{eval-rst}} {SITE}"] * 6,
    "docs/architecture.md": [
        f" {DRAWING}",
        "text tests/test_docs.py::test_the_map_names_every_folder_and_the_readme_the_first_commands",
    ],
    "docs/ci.md": [
        "toml tests/cli/test_ci.py::test_every_limit_is_on_the_page",
        "sh tests/cli/test_ci.py::test_the_script_certifies_a_good_engine_and_stops_at_a_bad_one",
        *["yaml tests/cli/test_ci.py::test_the_snippets_run_the_script_and_keep_its_files"] * 2,
    ],
    "docs/contract.md": [
        "python tests/runtime/packages/test_package.py::test_the_pages_python_reads_a_contract",
        "cpp tests/runtime/packages/test_cpp_package.py::test_the_pages_cpp_reads_a_contract",
    ],
    "docs/decisions/index.md": [f"{{toctree}} {SITE}"],
    "docs/deploy/cpp.md": [
        *["bash tests/runtime/packages/test_cpp_package.py::test_the_sample_proves_itself"] * 2,
        "cpp like tests/runtime/packages/test_cpp_package.py::test_the_sample_proves_itself",
    ],
    "docs/deploy/deepstream.md": [
        "bash tests/runtime/packages/test_deepstream_package.py::test_the_numbers_prove_themselves_and_wrong_ones_fail",
        "text not run: a pipeline of GStreamer, which needs DeepStream and a GPU",
    ],
    "docs/deploy/index.md": [f"{{toctree}} {SITE}"],
    "docs/deploy/onnx.md": [
        "bash tests/runtime/packages/test_package.py::test_a_package_proves_itself"
    ],
    "docs/deploy/python.md": [
        "bash tests/runtime/packages/test_package.py::test_a_package_proves_itself",
        "bash tests/runtime/packages/test_package.py::test_a_package_proves_itself",
        "python tests/runtime/packages/test_package.py::test_the_pages_python_compares_frames",
    ],
    "docs/deploy/triton.md": [
        "bash tests/runtime/packages/test_triton_package.py::test_the_repositorys_models_prove_themselves",
        "bash not run: needs docker, NVIDIA's image and a GPU; test_triton_package checks what it serves",
    ],
    "docs/fleet.md": [
        "bash not run: needs boards; tests/fleet/test_roll_out.py runs these commands on boards behind sshd",
        "yaml tests/test_code_blocks.py::test_the_inventory_of_the_page_is_one",
        "bash not run: needs boards; tests/fleet/test_roll_out.py runs the playbooks on boards behind sshd",
    ],
    "docs/frame-engine.md": [f"bash {PHOTOS}", f"python {PHOTOS}"],
    "docs/help.md": [f"bash {HELP}"],
    "docs/index.md": [f"{{toctree}} {SITE}"] * 6,
    "docs/install.md": [*[f"bash {INSTALL}"] * 5, f"text {OUTPUT}"],
    "docs/jetson.md": [
        *[f"bash {JETSON}"] * 2, f"console {JETSON}", f"text {OUTPUT}", *[f"bash {JETSON}"] * 2,
        "toml tests/test_code_blocks.py::test_the_policies_of_the_pages_are_read",
    ],
    "docs/own-network.md": [
        "bash tests/cli/test_page_blocks.py::test_a_network_of_your_own",
        f"bash {HELP}",
    ],
    "docs/packs.md": [f"bash {PACKS}", f"bash {PACKS}"],
    "docs/recognition.md": [
        "python tests/test_code_blocks.py::test_the_first_code_about_photographs_is_the_readmes",
        f"text {EXCERPT}",
        f"bash {PHOTOS}",
        "python tests/runtime/recognition/test_recogniser.py::test_the_service_of_the_documentation_answers",
        f"text {EXCERPT}",
        f"text {EXCERPT}",
    ],
    "docs/releasing.md": [
        "bash not run: takes an hour; tests/fleet/test_release_script.py and tests/test_release.py run its parts",
        "bash not run: signs a tag with the maintainer's key",
        "bash not run: needs a published release; `make release-check` runs the same lines",
    ],
    "docs/results/first-run.md": [f"bash {REAL}"],
    "docs/results/gallery.md": ["bash not run: a measurement of minutes", f"text {OUTPUT}"],
    "docs/results/index.md": [f"{{toctree}} {SITE}"],
    "docs/results/int8.md": [f"bash {REAL}"],
    "docs/training.md": [
        *[f"bash {CLUSTER}"] * 6,
        f"yaml {CLUSTER}",
        f"bash {CLUSTER}",
        "bash not run: needs several GPUs; test_data_split and test_manifests share a set by RANK",
    ],
    "docs/tutorial.md": [
        "text not run: a folder's content",
        *[f"bash {TUTORIAL}"] * 5,
        f"python {TUTORIAL}",
    ],
    "examples/README.md": ["text not run: what examples/all.sh does; `make examples` runs it"],
}  # fmt: skip


def code_blocks(page: Path) -> list[tuple[str, str]]:
    """The language and the text of each fenced block of a page."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"(?ms)^ *```(\S*)[^\n]*\n(.*?)^ *```$", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    name = page.relative_to(ROOT).as_posix()
    if page in GENERATED:
        return
    marks = BLOCKS.get(name, [])
    languages = [language for language, _ in code_blocks(page)]
    assert languages == [mark.split(" ", 1)[0] for mark in marks], f"{name}: mark its blocks here"
    assert page.read_text().count("```") == 2 * len(marks)
    for mark in marks:
        proof = mark.split(" ", 1)[1]
        if not proof.startswith("not run: "):
            file, test = proof.removeprefix("like ").split("::")
            assert re.search(rf"(?m)^def {test}\(", (ROOT / file).read_text()), proof


def test_marked_pages_exist() -> None:
    assert set(BLOCKS) <= {page.relative_to(ROOT).as_posix() for page in PAGES}


def test_the_first_code_about_photographs_is_the_readmes() -> None:
    """It runs in tests/runtime/recognition."""
    pages = (ROOT / "README.md", ROOT / "docs" / "recognition.md")
    readmes, own = ([t for kind, t in code_blocks(page) if kind == "python"] for page in pages)
    assert own[0] == readmes[1]


def test_the_inventory_of_the_page_is_one() -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML, which ansible-core brings, is not installed")
    (inventory,) = (text for language, text in code_blocks(FLEET) if language == "yaml")
    groups = yaml.safe_load(inventory)["all"]["children"]
    hosts = [host for group in groups.values() for host in group["hosts"].values()]
    assert all(set(host) == {"ansible_host"} for host in hosts)
    variables = {name for group in groups.values() for name in group.get("vars", ())}
    role = (ROOT / "fleet" / "collection").rglob("*.yml")
    assert variables <= set(re.findall(r"\bfr_edge_\w+", " ".join(p.read_text() for p in role)))


def test_the_policies_of_the_pages_are_read(calibrated_mini: Path, tmp_path: Path) -> None:
    (text,) = (text for language, text in code_blocks(JETSON_PAGE) if language == "toml")
    (tmp_path / "policy.toml").write_text(text)
    read_policy(tmp_path / "policy.toml", "int8", BenchmarkLimits)  # refuses unknown keys
    bundle = open_bundle(calibrated_mini)
    assert required_power_mode(bundle, tmp_path / "policy.toml") == "MAXN"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    text = re.sub(r"(?ms)^ *```.*?^ *```$", "", page.read_text())
    titles = re.findall(r"(?m)^#{1,4} (.*)$", text)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).lower() for title in titles)
    return {re.sub(r"[^\w\- ]", "", title).strip().replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    text = re.sub(r"(?ms)^ *```.*?^ *```$", "", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page.name}: {target}"
