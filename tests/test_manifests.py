"""Files of `deploy/`: their shell and YAML can be read, and fr-edge takes the command line that they give."""

import os
import re
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

import click
import pytest

from fr_edge.cli.main import root
from fr_edge.distill.recipe import read_recipe

DEPLOY = Path(__file__).parents[1] / "deploy"
SCRIPTS = sorted([*DEPLOY.glob("*.sh"), DEPLOY / "distill.sbatch"])


def check_distill(words: list[str]) -> None:
    """The words behind `distill` are options that it has, a recipe that is shipped, and settings of it."""
    command = root.get_command(click.Context(root), "distill")
    assert command is not None
    given = command.make_context("distill", list(words)).params
    assert given["out"].endswith(".bundle")
    recipe = read_recipe(given["recipe"], given["changes"])
    assert recipe.teacher_arch == "iresnet50"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_starts_torchrun_with_a_command_line_that_fr_edge_takes(
    script: Path, tmp_path: Path
) -> None:
    """torchrun, srun and scontrol are doubles that write down their arguments."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("torchrun", "srun", "scontrol"):
        ends = "echo node0" if name == "scontrol" else f'echo "$@" >"{tmp_path}/called"'
        (tools / name).write_text(f"#!/bin/sh\n{ends}\n")
        (tools / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node[0-1]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7"}
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "HEAD": "node0", **slurm}
    subprocess.run(["bash", str(script)], env=environment, check=True)
    words = shlex.split((tmp_path / "called").read_text())
    place = words.index("distill")
    assert words[place - 2 : place] == ["-m", "fr_edge"]
    check_distill(words[place + 1 :])
    several = "--standalone" not in words
    assert not several or words[
        words.index("--rdzv-endpoint") : words.index("--rdzv-endpoint") + 2
    ] == ["--rdzv-endpoint", "node0:29500"]


@pytest.mark.parametrize("stop", [True, False], ids=["the time is up", "an error"])
def test_only_a_job_whose_time_is_up_is_queued_again(stop: bool, tmp_path: Path) -> None:
    """srun is a double that waits for its signal or fails; scancel sends that signal, as Slurm's does."""
    pid, queued = tmp_path / "pid", tmp_path / "queued"
    for name, text in {
        "srun": f"echo $$ >{pid}.new; mv {pid}.new {pid}; exec sleep 60" if stop else "exit 2",
        "scancel": f'[ "$1" = --signal=TERM ] && kill -TERM $(cat {pid})',
        "scontrol": f'[ "$1" = requeue ] && echo "$2" >{queued}; echo node0',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    with subprocess.Popen(["bash", str(DEPLOY / "distill.sbatch")], env=environment) as job:
        if stop:
            while not pid.exists():
                assert job.poll() is None
                time.sleep(0.01)
            job.terminate()
        code = job.wait(30)
    assert queued.exists() == stop
    assert code == (143 if stop else 2)


def test_tasks_of_slurm_become_ranks_that_share_the_images(tmp_path: Path) -> None:
    """A double of srun starts the last of eight tasks; a double of fr-edge writes down what it gets."""
    tools = tmp_path / "tools"
    tools.mkdir()
    slurm = "SLURM_PROCID=7 SLURM_NTASKS=8 SLURM_LOCALID=3"
    doubles = {
        "srun": f'test "$1" = --kill-on-bad-exit=1 && shift && {slurm} exec "$@"',
        "fr-edge": f'echo "$RANK $WORLD_SIZE $XDG_CACHE_HOME" "$@" >"{tmp_path}/called"',
    }
    for name, text in doubles.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    for gpus, device in (({}, []), ({"SLURM_GPUS_ON_NODE": "4"}, ["--device", "3"])):
        environment = {"PATH": f"{tools}:{os.environ['PATH']}", **gpus}
        subprocess.run(["bash", DEPLOY / "evaluate.sbatch"], env=environment, check=True)
        words = shlex.split((tmp_path / "called").read_text())
        assert words[:4] == ["7", "8", "/shared/cache", "evaluate"]
        command = root.get_command(click.Context(root), "evaluate")
        assert command is not None
        assert words[-2:] == device or not device
        rest = words[4 : len(words) - len(device)]
        given = command.make_context("evaluate", rest).params
        assert (given["protocol"], given["engine"]) == ("/data/IJBC", "int8")


def test_the_job_of_kubernetes_starts_fr_edge_in_every_pod() -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML, which ansible-core brings, is not installed")
    job: Any = yaml.safe_load((DEPLOY / "pytorchjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]
    elastic = job["spec"]["elasticPolicy"]
    assert worker["replicas"] == elastic["minReplicas"] == elastic["maxReplicas"]
    pod = worker["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == "pytorch"
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert job["spec"]["nprocPerNode"] == str(gpus)
    assert container["command"][:4] == ["torchrun", "-m", "fr_edge", "distill"]
    check_distill(container["command"][4:])
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}


def test_the_commands_on_the_page_are_ones_that_fr_edge_takes() -> None:
    """With torchrun before them, by name alone, and as the list of a Kubernetes job."""
    yaml = pytest.importorskip("yaml", reason="PyYAML, which ansible-core brings, is not installed")
    page = (DEPLOY.parent / "docs" / "training.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ").replace("$FR_SETS", "a.bin,b.bin")
    starts = re.findall(r"-m fr_edge distill (.*?)&?$", text, re.MULTILINE)
    assert len(starts) == 4  # a node, Glint360K, several, Slurm
    (job,) = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", page, re.DOTALL))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    words = container["command"][container["command"].index("distill") + 1 :]
    for each in (*map(shlex.split, starts), list(map(str, words))):
        check_distill(each)
    settings = re.findall(r"--set ([\w]+=[^\s`]+)", page)
    assert len(settings) >= 10
    for setting in settings:
        read_recipe("adadistill-plus", [setting.replace("$FR_SETS", "a.bin")])


def test_the_page_names_every_file() -> None:
    page = (DEPLOY.parent / "docs" / "training.md").read_text()
    named = set(re.findall(r"`deploy/([\w.-]+)`", page))
    assert named == {path.name for path in DEPLOY.iterdir()}
