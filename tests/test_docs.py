"""The documentation says what the program does."""

import importlib.util
import re
import shlex
from pathlib import Path

import click
import pytest

import fr_edge
from fr_edge.cli.main import COMMANDS, root
from fr_edge.runtime.compatibility import JETPACKS
from fr_edge.runtime.machine.device import cuda_python_requirement

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def command(name: str) -> click.Command:
    result = root.get_command(click.Context(root), name)
    assert result is not None
    return result


def lines_in(page: Path) -> list[str]:
    """The `fr-edge ...` lines of a page's fenced blocks, continued lines joined."""
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", page.read_text(), re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    return [
        line.removeprefix("$ ") for line in text.splitlines() if re.match(r"(\$ )?fr-edge ", line)
    ]


def test_cli_page_is_what_the_commands_say() -> None:
    spec = importlib.util.spec_from_file_location("write_cli", ROOT / "docs" / "write_cli.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "cli.md").read_text() == module.page(), "run `make docs`"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help(name: str) -> None:
    result = command(name)
    assert result.help
    assert len(result.get_short_help_str(limit=200)) < 65
    for option in result.params:
        if isinstance(option, click.Option):
            assert option.help or option.metavar, option.name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_line_in_the_documentation_parses(page: Path) -> None:
    for line in lines_in(page):
        words = shlex.split(line, comments=True)[1:]
        if not words or words[0].startswith("-"):
            continue
        result = command(words[0])
        result.make_context(f"fr-edge {words[0]}", words[1:])


def test_options_that_messages_name_exist() -> None:
    """But those of other programs: pip, docker, tegrastats, nvidia-smi, cmake, and Ansible in cli/fleet."""
    other = {
        *("system-site-packages", "runtime", "gpus", "interval", "query-gpu", "format", "build"),
        *("shapes", "load", "warm", "help"),  # trtexec's begin so
        *("ignore-zeros", "sparse"),  # GNU tar's
        "table",  # of a script in benchmarks
    }
    known = {
        option.lstrip("-")
        for name in COMMANDS
        for made in (command(name), *getattr(command(name), "commands", {}).values())
        for parameter in made.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    outside = {".venv", "build", "tests", "docs", "benchmarks", "examples", "demo"}
    for path in (p for p in ROOT.rglob("*.py") if p.relative_to(ROOT).parts[0] not in outside):
        if path.name.startswith("fleet"):
            continue
        named = set(re.findall(r"(?<![\w-])--([a-z][a-z0-9-]+)", path.read_text(encoding="utf-8")))
        assert named <= known | other, f"{path}: {named - known - other}"


def test_links_point_at_files() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_map_names_every_folder_and_the_readme_the_first_commands() -> None:
    """Folders that git knows; each room is a package of the root."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    for folder in rooms | {"tests", "examples", "deploy", "benchmarks", "docs"}:
        assert re.search(rf"(?m)^{folder}/ ", text), folder
    for target in ("make demo", "make test"):
        assert target in (ROOT / "README.md").read_text()


def test_the_jetson_commands_fit_the_table_of_jetpacks() -> None:
    """The packages are those that `fr-edge doctor` names on a board with that JetPack."""
    page, readme = (ROOT / "docs" / "jetson.md").read_text(), (ROOT / "README.md").read_text()
    for name, pack in JETPACKS.items():
        if pack.cuda >= "12" and name != "7.2.2":
            row = next(
                line for line in page.splitlines()
                if line.startswith("| ") and name in line.split("|")[1].replace(" ", "").split(",")
            )  # fmt: skip
            assert f'"{cuda_python_requirement(pack.cuda)}"' in row
    for text in (page, readme):
        assert f'pip install "{cuda_python_requirement(JETPACKS["6.2"].cuda)}"' in text
        assert "--system-site-packages" in text
        assert "python3-venv" in text
        assert "nvpmodel -m 0" not in text
        assert not re.search(r"pip install fr-edge\b", text)
        # constraints.txt pins CI's cuda-bindings, which no JetPack 6 driver serves.
        assert not re.search(r"pip install.*constraints\.txt.*cuda-python", text)
    for block in re.findall(r"```bash\n(.*?)```", page + readme, re.DOTALL):
        if "venv --system-site-packages" in block:
            assert "/bin/activate\n" in block  # `fr-edge` is found only in an active environment


def test_every_public_name_is_in_the_python_reference() -> None:
    """`docs/api.md` names them by their module; errors come with their module."""
    text = (ROOT / "docs" / "api.md").read_text()
    for name in fr_edge.__all__:
        value = getattr(fr_edge, name)
        if name != "__version__" and value.__module__ != "fr_edge.errors":
            assert f"{value.__module__}.{name}\n" in text, name


def test_issue_forms_ask_for_what_a_fault_needs() -> None:
    yaml = pytest.importorskip("yaml")
    forms = {
        path.stem: yaml.safe_load(path.read_text())
        for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")
    }
    asked = {field.get("id"): field for field in forms["bug"]["body"]}
    assert "fr-edge doctor --json" in asked["doctor"]["attributes"]["label"]
    assert asked["doctor"]["validations"]["required"]
    for form in (forms["bug"], forms["measurement"]):
        assert {"name", "description", "body"} <= set(form)
        assert "accept" in {field.get("id") for field in form["body"]}
