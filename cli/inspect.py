"""`fr-edge inspect`: what is in a bundle, and whether it is still what the manifest says."""

from typing import Any

from . import options
from .output import Output, size_text, table
from .output import command as make


@make("inspect")
@options.bundle
def command(output: Output, bundle: str) -> None:
    """Show what a bundle holds, and check its hashes.

    Exit code 4 when a file is missing or was changed.
    """
    from ..bundle import open_bundle, problems
    from ..errors import BundleError

    opened = open_bundle(bundle, check=False)
    wrong = list(problems(opened))
    files = {name: vars(entry) for name, entry in opened.files.items()}
    document = {
        "bundle": bundle,
        "input": opened.spec.to_json(),
        "embedding_dim": opened.embedding_dim,
        "files": files,
        "history": [dict(entry) for entry in opened.history],
        "problems": wrong,
    }
    rows = [
        [name, entry.role, size_text(entry.size), entry.sha256[:12]]
        for name, entry in opened.files.items()
    ]
    lines = [
        f"{bundle}: {opened.embedding_dim}-d embeddings, {opened.spec.describe()}",
        "",
        table(rows, ("file", "what", "size", "sha256")),
        "",
        *[_stage(dict(entry)) for entry in opened.history],
    ]
    if not wrong:
        lines += ["", "all hashes hold"]
    output.result(document, "\n".join(lines))
    if wrong:
        raise BundleError("; ".join(wrong), "restore the file, or run its stage again")


def _stage(entry: dict[str, Any]) -> str:
    options_text = ", ".join(
        f"{key}={value}" for key, value in entry.get("options", {}).items() if not _deep(value)
    )
    return f"{entry.get('time', '')}  {entry.get('stage', '')} {options_text}".rstrip()


def _deep(value: Any) -> bool:
    return isinstance(value, dict | list)
