"""What made embeddings: a network by the hashes of its files, its input contract, and the engine.

Kept with the embeddings, so that a file made with another network is told from a bad engine.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...bundle import Bundle
from ...errors import DataError, FacesError
from ...faces.contract import InputSpec, spec_from_json

NETWORK = ("model.pt", "model.onnx")
"""One network in two forms; a bundle may hold either or both."""


@dataclass(frozen=True)
class Origin:
    """`models` maps the network's files to their sha256; `precision` is fp32, fp16 or int8."""

    models: Mapping[str, str]
    spec: InputSpec
    precision: str
    backend: str

    def to_json(self) -> dict[str, Any]:
        return {
            "models": dict(self.models),
            "input": self.spec.to_json(),
            "engine": self.precision,
            "backend": self.backend,
        }


def origin_of(bundle: Bundle, precision: str, backend: str) -> Origin:
    """The origin of embeddings that a bundle's engine makes."""
    models = {name: bundle.files[name].sha256 for name in NETWORK if name in bundle}
    return Origin(models, bundle.spec, precision, backend)


def origin_from_json(text: str) -> Origin:
    """The inverse of `Origin.to_json`, from its JSON text; raises ValueError when it is none."""
    try:
        data = json.loads(text)
        models = {str(name): str(sha256) for name, sha256 in data["models"].items()}
        spec = spec_from_json(data["input"])
        return Origin(models, spec, str(data["engine"]), str(data["backend"]))
    except (AttributeError, KeyError, TypeError, DataError) as error:
        raise ValueError(f"what made them cannot be read: {error}") from error


def refuse_stranger(origin: Origin | None, bundle: Bundle, who: str) -> None:
    """Raises FacesError unless embeddings of this origin may speak for the bundle's original.

    They may when one of the network's files is the bundle's, the contract is, and no engine in
    lower precision made them: such a one would be its own witness. `who` names them.
    """
    again = "make it again with `fr-edge embed BUNDLE --engine fp32 [--backend torch] --faces SRC --out F.npz`"
    if origin is None:
        raise FacesError(f"{who} does not say which network made it", again)
    ours = origin_of(bundle, "fp32", "").models
    if not any(ours.get(name) == sha256 for name, sha256 in origin.models.items()):
        raise FacesError(
            f"{who} holds embeddings of another bundle: its network is {_named(origin.models)}, "
            f"this bundle's {_named(ours)}",
            f"{again}; a gallery of another network goes into --teacher",
        )
    if origin.spec != bundle.spec:
        raise FacesError(
            f"{who} was made with faces as {origin.spec.describe()}, "
            f"this bundle's contract is {bundle.spec.describe()}",
            again,
        )
    if origin.precision != "fp32":
        raise FacesError(
            f"{who} was made by the {origin.precision} engine on {origin.backend}, "
            "expected the original in fp32",
            again,
        )


def _named(models: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {sha256[:12]}..." for name, sha256 in models.items()) or "unknown"
