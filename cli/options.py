"""Arguments and options that several commands share, and the faces that they name."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ..bundle.keys import SigningKey
    from ..bundle.manifest import Bundle
    from ..faces.pairs import Pairs
    from ..faces.sources import Faces
    from ..runtime.evaluation.rank_exchange import RankShare
    from .output import Output

Body = TypeVar("Body", bound=Callable[..., Any])


def bundle(body: Body) -> Body:
    return click.argument("bundle", metavar="BUNDLE")(body)


_SRC = "a folder of images, a RecordIO folder, .tar shards, or synthetic:IDSxIMAGES"


def faces(*, required: bool = False, what: str = "Faces") -> Callable[[Body], Body]:
    return click.option("--faces", required=required, metavar="SRC", help=f"{what}: {_SRC}.")


def photos(*, what: str) -> Callable[[Body], Body]:
    return click.option(
        "--photos",
        metavar="DIR",
        help=f"{what}: whole photographs, one folder per person, in which the bundle's detector finds"
        " the largest face.",
    )


def rank_share(photos: str | None) -> "RankShare":
    """Which of the processes that share the faces this is, by RANK and WORLD_SIZE.

    Args:
        photos: As `--photos` gives it; photographs are not shared.

    Raises:
        UsageError: There are several processes and photographs, or the variables are no ranks.
    """
    from ..runtime.evaluation.rank_exchange import share_of_environment

    ranks = share_of_environment()
    if photos and ranks.size > 1:
        raise click.UsageError(
            f"--photos is not shared by {ranks.size} processes: cut the faces out first with"
            " `fr-edge align`, in one process"
        )
    return ranks


def role(body: Body) -> Body:
    return click.option(
        "--role",
        type=click.Choice(["network", "detector"]),
        default="network",
        show_default=True,
        help="The bundle's face network, or its detector.",
    )(body)


def backend(body: Body) -> Body:
    return click.option(
        "--backend",
        default="auto",
        show_default=True,
        metavar="NAME",
        help="auto, onnxruntime, tensorrt or tensorrt-rtx.",
    )(body)


def _select_gpu(context: click.Context, _: click.Parameter, index: int | None) -> None:
    from ..runtime.machine.device import use_gpu

    if index is not None:
        context.with_resource(use_gpu(index))


def device(body: Body) -> Body:
    return click.option(
        "--device",
        type=click.IntRange(min=0),
        metavar="N",
        expose_value=False,
        callback=_select_gpu,
        help="The GPU to use where there are several, in the driver's order; by default 0.",
    )(body)


def sign(*, what: str) -> Callable[[Body], Body]:
    return click.option("--sign", metavar="KEY", help=f"{what}; `fr-edge keygen` makes one.")


def trust(body: Body) -> Body:
    return click.option(
        "--trust", multiple=True, metavar="KEY.pub", help="Trust this public key, or this folder's."
    )(body)


def _require_signature(context: click.Context, _: click.Parameter, required: bool) -> None:
    from ..bundle.trust import requiring_signatures

    if required:
        context.with_resource(requiring_signatures(required=True))


def _trust_keys(context: click.Context, _: click.Parameter, keys: tuple[str, ...]) -> None:
    from ..bundle.trust import requiring_signatures

    if keys:
        context.with_resource(requiring_signatures(required=None, named=map(Path, keys)))


def require_signature(body: Body) -> Body:
    """`--require-signature` and `--trust`, for commands that open engines."""
    body = click.option(
        "--trust",
        multiple=True,
        metavar="KEY.pub",
        expose_value=False,
        callback=_trust_keys,
        help="Trust this public key, or this folder's, besides those of this machine.",
    )(body)
    return click.option(
        "--require-signature",
        is_flag=True,
        expose_value=False,
        callback=_require_signature,
        help="Use only files that a trusted key has signed, as FR_EDGE_REQUIRE_SIGNATURE=1 does.",
    )(body)


def artifact(body: Body) -> Body:
    return click.option(
        "--artifact",
        type=click.Choice(["engine", "graph"]),
        default="engine",
        show_default=True,
        help="Judge the engine as it was built, or the ONNX graph with every rounding.",
    )(body)


class EngineName(click.Choice[str]):
    """A precision, alone or with what the engine takes: int8, int8-crop, int8-frame.

    Args:
        auto: Whether "auto" is one.
    """

    def __init__(self, *, auto: bool) -> None:
        self.shown = [*(["auto"] if auto else []), "fp32", "fp16", "fp8", "int8"]
        kinds = [f"{name}-{kind}" for name in self.shown for kind in ("tensor", "crop", "frame")]
        super().__init__([*self.shown, *kinds])

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return f"[{'|'.join(self.shown)}][-crop|-frame]"


def engine(default: str = "auto") -> Callable[[Body], Body]:
    return click.option(
        "--engine",
        type=EngineName(auto=True),
        default=default,
        show_default=True,
        help="Which engine; auto takes int8, else fp8 (on TensorRT), else fp16, else fp32, of those"
        " that were built. int8-crop and int8-frame name what it takes too.",
    )


def require_torch(reason: str) -> None:
    """Refuse a command on an installation without torch.

    Args:
        reason: Why the command needs torch.

    Raises:
        MachineError: torch is not installed.
    """
    from importlib.util import find_spec

    from ..errors import MachineError, install_hint

    if find_spec("torch") is None:
        raise MachineError(f"{reason}, which is not installed", install_hint("train"))


def load_signing_key(path: str | None) -> "SigningKey | None":
    """The private key of `--sign`; the passphrase of an encrypted one is asked for on a terminal.

    Args:
        path: As `--sign` takes it.
    """
    import sys

    from ..bundle.keys import read_signing_key

    def ask() -> str:
        if not sys.stdin.isatty():
            return ""
        return str(click.prompt(f"passphrase of {path}", hide_input=True, err=True))

    return read_signing_key(Path(path), ask) if path else None


def load_faces(source: str) -> "Faces":
    """Index a source of faces.

    Args:
        source: As `--faces` takes it.
    """
    from ..faces.sources import open_faces

    return open_faces(source)


def columns(body: Body) -> Body:
    return click.option(
        "--columns",
        metavar="A,B,SAME[,FOLD]",
        callback=lambda _context, _option, text: None if text is None else text.split(","),
        help="A pair list's columns, where its header has other names.",
    )(body)


def photograph_faces(
    bundle: "Bundle", folder: str, backend: str, output: "Output"
) -> "tuple[Faces, tuple[str, ...]]":
    """The faces that a bundle's detector finds in photographs.

    Args:
        bundle: An open bundle with a detector.
        folder: As `--photos` takes it.
        backend: As `--backend` takes it.
        output: Shows progress and notes.

    Returns:
        The faces, and the files of the bundle that decided which they are.
    """
    from ..faces.photographs import FOUND, cut_faces, find_faces, open_photographs
    from ..faces.stored_detector import DETECTOR_SPEC
    from ..runtime.detector_engine import open_bundle_detector
    from ..runtime.frames import check_frame

    opened = open_photographs(folder)
    with open_bundle_detector(bundle, backend=backend) as detector:
        chosen = find_faces(opened, detector, "largest", output.track, check=check_frame)
        output.note(f"detector: {detector.describe()}")
    counts = {state: chosen.states.count(state) for state in dict.fromkeys(chosen.states)}
    if others := [f"{count} {state}" for state, count in counts.items() if state != FOUND]:
        output.note(f"of {len(opened)} photographs: {', '.join(others)}")
    return cut_faces(opened, chosen), (detector.file, DETECTOR_SPEC)


def load_judged(
    faces: str | None, pairs: str | None, columns: "Sequence[str] | None" = None
) -> "tuple[Faces | None, Pairs | None]":
    """The faces to judge on.

    Args:
        faces: As `--faces` takes it; with `pairs` the folder of its images.
        pairs: A pair list.
        columns: As `--columns` takes them.

    Returns:
        A source of faces or a pair list; neither when nothing is given.
    """
    from ..faces.pairs import read_pairs

    if pairs:
        return None, read_pairs(pairs, faces, columns)
    if columns:
        raise click.UsageError("--columns is for a pair list")
    return (load_faces(faces), None) if faces else (None, None)


def source_name(source: str | None) -> str:
    """The name of a source of faces or a pair list in reports.

    Args:
        source: As `--faces`, `--pairs` or `--protocol` takes it.

    Returns:
        `lfw` for `sets/lfw.bin`, the name of a folder, a synthetic source as it is; "" for None.
    """
    if source is None or source.startswith("synthetic:"):
        return source or ""
    path = Path(os.path.realpath(source))
    return path.name if path.is_dir() else path.stem


_GATES = {
    "--min-tar": "Gate: floor of the TAR at --far.",
    "--min-accuracy": "Gate: floor of the 10-fold accuracy, a fraction.",
    "--max-eer": "Gate: ceiling of the equal error rate, a fraction.",
}


def absolute_gates(body: Body) -> Body:
    for name, text in reversed(_GATES.items()):
        body = click.option(name, type=float, metavar="X", help=text)(body)
    return body


def far(body: Body) -> Body:
    return click.option(
        "--far", type=float, metavar="X", help="The FAR at which TAR is gated.  [default: 1e-4]"
    )(body)


def policy(body: Body) -> Body:
    return click.option(
        "--policy", metavar="FILE.toml", help="Gates from a file, which the bundle keeps."
    )(body)


def junit(body: Body) -> Body:
    return click.option("--junit", metavar="FILE.xml", help="Write the gates as JUnit XML too.")(
        body
    )


def check_junit(file: str | None) -> None:
    """Refuses a file that cannot be written before the work, not after it."""
    if file is None:
        return
    path = Path(file)
    if path.is_dir():
        raise click.UsageError(f"--junit: {file} is a folder, expected a file")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise click.UsageError(f"--junit: the folder of {file} cannot be written")
