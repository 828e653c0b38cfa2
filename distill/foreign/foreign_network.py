"""Networks of other people's PyTorch as one kind of module: faces in, one embedding out.

They are a person's own code, TorchScript and torch.export programs.
"""

import logging
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ModelError, UsageError
from ...files import real_path
from ...reading import open_file
from ...trial_run import run_apart
from ..weights import load_into
from .exported_program import is_exported_program, load_exported_program
from .own_network import build_own_network, contained, names_code
from .torchscript import is_torchscript, load_torchscript

logger = logging.getLogger(__name__)

_MIN_DIM = 16  # numbers in the shortest output that is taken for an embedding, as for ONNX files

_TRIAL = """
import resource, sys
seconds, memory = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_CPU, (8 * seconds, 8 * seconds))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
import torch
resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
torch.set_num_threads(2)
from pathlib import Path
from fr_edge.distill.foreign.foreign_network import load_program
network = load_program(Path(sys.argv[3]))
try:
    with torch.no_grad():
        network(torch.zeros(getattr(network, "batch", 1) or 1, *map(int, sys.argv[4:7])))
except MemoryError:
    sys.exit(3)
except Exception as error:
    sys.exit(3 if "alloc" in str(error).lower() else 0)  # other refusals: the caller meets them
"""


@dataclass(frozen=True, eq=False)
class ForeignNetwork:
    """A network and how it is fed.

    Attributes:
        module: `(N, C, H, W) float32 -> (N, D) float32`, in eval mode.
        name: What it is called in messages.
        batch: N, where only one number of faces is taken; None for any.
    """

    module: nn.Module
    name: str
    batch: int | None


class OneEmbedding(nn.Module):
    """Another network, of whose outputs one is given.

    Args:
        network: The network.
        name: What errors call it.
        output: The output's number or key; None where one can be an embedding.
    """

    def __init__(self, network: nn.Module, name: str, output: str | None) -> None:
        super().__init__()
        self.network, self.name, self.output = network, name, output

    def forward(self, x: Tensor) -> Tensor:
        faces = "x".join(map(str, x.shape))
        hint = (
            "expected a network that embeds face images, N x channels x height x width; add --size"
        )
        with contained(f"{self.name}, given faces of {faces},", f"{hint} if it takes another"):
            outputs = dict(_tensors(self.network(x)))
        embedding = _choose(self.name, outputs, len(x), self.output)
        return embedding.flatten(1)


def is_program(path: Path) -> bool:
    """Tell whether a file is TorchScript or a torch.export program.

    Args:
        path: A file.
    """
    members = _members(path)
    return is_torchscript(members) or is_exported_program(members)


def load_program(path: Path) -> nn.Module:
    """Load a TorchScript or torch.export file that only computes tensors.

    Args:
        path: The file.

    Returns:
        The network in eval mode.

    Raises:
        ModelError: The file is damaged, or does more.
    """
    return load_torchscript(path) if is_torchscript(_members(path)) else load_exported_program(path)


def open_foreign(
    path: Path,
    arch: str | None,
    weights: str | None,
    output: str | None,
    shape: tuple[int, int, int],
) -> ForeignNetwork:
    """Open a person's own network with its weights, or a program.

    Args:
        path: A checkpoint, or a TorchScript or torch.export file.
        arch: `FILE.py:FUNCTION` for a checkpoint; its code is run.
        weights: A part of the name of the set of weights that is meant.
        output: Number or key of the output that is the embedding.
        shape: Channels, height and width of a face.

    Returns:
        The network.

    Raises:
        UsageError: The code is not there, or the options do not fit the file.
        ModelError: The file, the code or its output cannot be used.
    """
    if names_code(arch):
        assert arch is not None
        name = f"--arch {arch}"
        network = build_own_network(arch)
        try:
            load_into(path, name, network, weights)
        except (ModelError, UsageError):
            _run(OneEmbedding(network.float().eval(), name, output), torch.zeros(1, *shape))
            raise  # it takes faces: the weights are the fault
    else:
        name = str(path)
        if weights is not None:
            raise UsageError(f"--weights {weights} is for checkpoints; {path} is a program")
        limits = run_apart(_TRIAL, (str(real_path(path)), *map(str, shape)), b"", name, "a program")
        logger.debug("%s: tried apart, %s", path, limits)
        network = load_program(path)
    module = OneEmbedding(network.float(), name, output).eval()
    return ForeignNetwork(module, name, _batch(module, network, shape))


def _members(path: Path) -> list[str]:
    try:
        with open_file(path, None, ModelError) as stream:
            if not zipfile.is_zipfile(stream):
                return []
            try:
                return zipfile.ZipFile(stream).namelist()
            except Exception:  # BadZipFile, NotImplementedError, UnicodeDecodeError
                return []
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error


def _batch(module: nn.Module, network: nn.Module, shape: tuple[int, int, int]) -> int | None:
    """How many faces the network takes at a time; None for any number."""
    declared = getattr(network, "batch", None)
    size = declared if isinstance(declared, int) and 0 < declared <= 1024 else 3
    faces = torch.rand((size, *shape), generator=torch.Generator().manual_seed(0)) * 2 - 1
    try:
        first, again = (_run(module, faces) for _ in range(2))
    except (ModelError, RuntimeError):
        if isinstance(declared, int):
            raise
        first, again = (_run(module, faces[:1]) for _ in range(2))
        size = declared = 1
    if not torch.allclose(first, again, rtol=1e-3, atol=1e-5, equal_nan=True):
        raise ModelError(
            f"{module.name} gives other embeddings for the same faces: its output is random",
            "leave out of the network what draws random numbers",
        )
    return declared


def _run(module: nn.Module, faces: Tensor) -> Tensor:
    with torch.no_grad():
        embeddings: Tensor = module(faces)
    return embeddings


def _tensors(outputs: Any, label: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors among a network's outputs, with their number or key."""
    if isinstance(outputs, Tensor):
        yield label or "0", outputs
    elif isinstance(outputs, Mapping):
        for key, value in outputs.items():
            yield from _tensors(value, f"{label}.{key}" if label else str(key))
    elif isinstance(outputs, tuple | list):
        for index, value in enumerate(outputs):
            yield from _tensors(value, f"{label}.{index}" if label else str(index))


def _choose(name: str, outputs: Mapping[str, Tensor], batch: int, wanted: str | None) -> Tensor:
    shown = ", ".join(
        f"{label}: {'x'.join(map(str, value.shape))} {str(value.dtype).removeprefix('torch.')}"
        for label, value in outputs.items()
    )
    if wanted is not None:
        if wanted not in outputs:
            raise UsageError(f"--output {wanted}: {name} gives {shown or 'no tensor'}")
        return outputs[wanted]
    candidates = [value for value in outputs.values() if _is_embedding(value, batch)]
    if len(candidates) != 1:
        count = f"{len(candidates)} of them" if candidates else "none"
        raise ModelError(
            f"{name} gives {shown or 'no tensor'} for {batch} face(s); {count} can be the embedding,"
            " one row of floats for each face",
            "name it: --output NUMBER" if candidates else "give a network that embeds faces",
        )
    return candidates[0]


def _is_embedding(value: Tensor, batch: int) -> bool:
    numbers = value.numel()
    return (
        value.is_floating_point()
        and value.ndim >= 2
        and int(value.shape[0]) == batch
        and numbers >= _MIN_DIM * batch
        and max(value.shape[1:]) * batch == numbers
    )
