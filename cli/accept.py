"""`fr-edge accept`: everything that a board is for, tried at once, and one file to send."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options
from .command import define_command
from .output import Output, table

if TYPE_CHECKING:
    from ..runtime.acceptance.accept import AcceptResult
    from ..runtime.acceptance.engine_check import EngineCheck


@define_command(
    "accept",
    example="fr-edge accept mine.bundle\nfr-edge accept --backend onnxruntime --out rehearsal.json",
)
@click.argument("bundle", metavar="[BUNDLE]", required=False)
@click.option(
    "--backend",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="auto takes TensorRT, else TensorRT-RTX; onnxruntime rehearses without a GPU.",
)
@options.device
@click.option(
    "--out", metavar="FILE", help="The file to send; by default accept-DEVICE.json, in this folder."
)
def command(output: Output, bundle: str | None, backend: str, out: str | None) -> None:
    """Try this board in one go, and write one file to send.

    A small sample network, made on the spot, and BUNDLE, if given, become FP32, FP16 and INT8
    engines. Each is verified in runs that are replayed as CUDA graphs, timed (beside the board's own
    trtexec, where it has one) and compared with the others: which one to ship. Takes less than ten
    minutes; what has no time left, or was interrupted, is done when the same command is run again.

    BUNDLE is not changed. The file holds versions, power mode, clocks, sensors and layers; no names,
    paths or serial numbers. Exit code 1 when something failed, or nothing ran.
    """
    from ..documents import to_builtins
    from ..runtime.acceptance.accept import accept

    result, file = accept(bundle, backend, Path(out) if out else None, output.track)
    output.result(to_builtins(result) | {"file": str(file)}, _text(result, file))
    if not result.engines:
        output.fail_gate(f"nothing ran: {'; '.join(result.reasons)}")
    complete = not result.left and all(e.verdict == "PASSED" for e in result.engines)
    if not (complete if result.rehearsal else result.verdict == "PASSED"):
        output.fail_gate(f"{result.verdict}: {'; '.join(result.reasons)}")


def _text(result: "AcceptResult", file: Path) -> str:
    head = ("network", "engine", "", "build s", "min cosine", "p50 ms", "trtexec", "PReLU")
    lines = [table([_row(check) for check in result.engines], head)] if result.engines else []
    lines += ["", *(choice.text for choice in result.choices), *result.notes]
    lines += [f"{result.verdict}: {reason}" for reason in result.reasons]
    if result.verdict == "PASSED":
        lines.append(
            "PASSED: this board computes what the networks compute; whether people are told apart"
            " is for `fr-edge verify --faces`"
        )
    lines += ["", f"{file} holds everything, without names, paths and serial numbers: send it"]
    return "\n".join(lines).strip()


def _row(check: "EngineCheck") -> list[str]:
    run = check.benchmark["runs"][0] if check.benchmark else None
    p50 = (
        f"{run['latency_ms']['p50']:.3f}{'' if run['verdict'] == 'VALID' else ' INVALID'}"
        if run
        else "-"
    )
    ratio = check.trtexec.compute_ratio if check.trtexec else None
    return [
        check.bundle,
        check.precision,
        check.verdict,
        f"{check.build_s:.1f}" if check.size else "-",
        f"{check.cosine['min']:.5f}" if check.cosine else "-",
        p50,
        "-" if ratio is None else f"x{ratio:.2f}",
        str(check.fingerprint.get("prelu", "-")),
    ]
