"""The provenance of what a session computed: engine, model, images, pairs, machine and versions."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from ...bundle.manifest import Bundle
from ...bundle.provenance import ImageDigests, Provenance, digest_pairs, make_provenance
from ...files import sha256
from ...metrics.protocols import ListedPairs
from ..fingerprint import SOURCES, machine_fingerprint
from ..onnxruntime_session import ONNXRUNTIME
from ..session import Session
from .gates import POLICY_NAME

_DRIVER_PACKAGES = {"cuda": ("cuda-python", "cuda-bindings"), "pycuda": ("pycuda",)}


def session_provenance(
    bundle: Bundle,
    session: Session,
    *,
    images: ImageDigests | None = None,
    pairs: ListedPairs | None = None,
    list_sha256: str = "",
    reads: Mapping[str, Path | None] | None = None,
    also: Iterable[str] = (),
    policy: Path | None = None,
) -> Provenance:
    """The provenance of a report about an open session.

    Args:
        bundle: The bundle as it was opened.
        session: What was judged or timed.
        images: Digests of the images.
        pairs: The pair list, where there is one.
        list_sha256: Of the pair list's file.
        reads: Name -> another file that was read, None where it was not given.
        also: Other files of the bundle that decide the result: golden faces, policy.
        policy: A policy that takes the place of the bundle's.
    """
    files = [session.file, "model.onnx", SOURCES[session.precision]]
    files += [f"{session.file}.json"] if session.artifact == "engine" else []
    files += ["calibration.json"] if session.precision == "int8" else []
    files += also
    inputs = {name: sha256(path) for name, path in (reads or {}).items() if path is not None}
    if list_sha256:
        inputs["pairs"] = list_sha256
    packages = [ONNXRUNTIME]  # runs the reference, where it does not run the engine itself
    if session.backend != ONNXRUNTIME:
        packages.append(session.backend)
        for module, names in _DRIVER_PACKAGES.items():
            packages += names if module in sys.modules else ()
    provenance = make_provenance(
        bundle,
        files,
        images=images,
        pairs=digest_pairs(pairs.fold, pairs.first, pairs.second, pairs.same) if pairs else None,
        inputs=inputs,
        device=machine_fingerprint(session.backend),
        packages=packages,
    )
    judged = {**provenance.files, session.file: session.sha256}  # exactly the bytes it opened
    if policy is not None:
        judged[POLICY_NAME] = sha256(policy)
    return replace(provenance, files=judged)
