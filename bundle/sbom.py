"""The list of what a bundle is made of and what made it (an SBOM), as a CycloneDX 1.6 document.

The document follows from the manifest alone, so that packing the same bundle again, elsewhere and
later, gives the same bytes: times are the bundle's, the serial number is derived from the manifest.
Format: https://cyclonedx.org/docs/1.6/json/
"""

import platform
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from urllib.parse import quote

from .._version import __version__
from ..documents import encode_json
from .manifest import Bundle, FileEntry

SBOM = "bundle.sbom.json"  # beside the manifest, which does not list it

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://github.com/fr-edge/bundle")

_MODULES = {  # module -> package: what can shape a bundle's files
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "msgspec": "msgspec",
    "numpy": "numpy",
    "onnx": "onnx",
    "onnx_ir": "onnx-ir",
    "onnxruntime": "onnxruntime",
    "onnxscript": "onnxscript",
    "onnxsim": "onnxsim",
    "safetensors": "safetensors",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "torch": "torch",
}
_MODELS = (".onnx", ".pt", ".safetensors", ".plan")


def loaded_packages() -> dict[str, str]:
    """The packages that this program has loaded and that can shape a bundle's files.

    Returns:
        Package -> version, and "python" -> its version.
    """
    versions = {"python": platform.python_version()}
    for module, package in _MODULES.items():
        if module in sys.modules:
            # Without metadata: from the system, or under another name.
            loaded = str(getattr(sys.modules[module], "__version__", "unknown"))
            versions[package] = installed_version(package) or loaded
    return versions


@cache
def installed_version(package: str) -> str:
    """The version in a package's metadata, which are read once: parsing takes milliseconds.

    Args:
        package: Its name on the package index.

    Returns:
        The version, "" where no such package is installed.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def bundle_sbom(bundle: Bundle, manifest_sha256: str) -> bytes:
    """The CycloneDX document of a bundle.

    Args:
        bundle: An open bundle; only its manifest is used.
        manifest_sha256: Of the manifest, hexadecimal.

    Returns:
        JSON. Components are the bundle's files with their sha256, and the versions of fr-edge,
        Python and the packages that its stages have recorded.
    """
    serial = uuid.uuid5(_NAMESPACE, manifest_sha256)
    tools = [_library("fr-edge", v) for v in _fr_edge_versions(bundle.history)]
    metadata: dict[str, Any] = {
        "tools": {"components": tools or [_library("fr-edge", __version__)]},
        "component": {
            "bom-ref": "bundle",
            "type": "machine-learning-model",
            "name": "fr-edge-bundle",
            "version": manifest_sha256[:12],
            "hashes": _hashes(manifest_sha256),
        },
    }
    times = [str(entry["time"]) for entry in bundle.history if entry.get("time")]
    if times:
        metadata["timestamp"] = max(times)
    files = [_file(path, entry) for path, entry in sorted(bundle.files.items())]
    packages = [_library(*pair) for pair in sorted(_packages(bundle.history))]
    return encode_json(
        {
            "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "serialNumber": f"urn:uuid:{serial}",
            "version": 1,
            "metadata": metadata,
            "components": [*files, *packages],
            "dependencies": _dependencies(bundle.files),
        },
        indent=2,
    )


def _fr_edge_versions(history: Iterable[Mapping[str, Any]]) -> list[str]:
    return sorted({str(entry["version"]) for entry in history if entry.get("version")})


def _packages(history: Iterable[Mapping[str, Any]]) -> set[tuple[str, str]]:
    """Name and version of every package that a stage has recorded."""
    recorded = (entry.get("packages") for entry in history)
    return {
        (str(package), str(number))
        for packages in recorded
        if isinstance(packages, Mapping)
        for package, number in packages.items()
    }


def _library(name: str, number: str) -> dict[str, Any]:
    python = name == "python"
    purl = f"pkg:generic/python@{quote(number)}" if python else f"pkg:pypi/{name}@{quote(number)}"
    return {
        "bom-ref": purl,
        "type": "platform" if python else "library",
        "name": name,
        "version": number,
        "purl": purl,
    }


def _file(path: str, entry: FileEntry) -> dict[str, Any]:
    model = path.endswith(_MODELS)
    return {
        "bom-ref": f"file:{path}",
        "type": "machine-learning-model" if model else "data",
        "name": path,
        "description": entry.role,
        "hashes": _hashes(entry.sha256),
    }


def _hashes(sha256: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": sha256}]


def _dependencies(files: Mapping[str, FileEntry]) -> list[dict[str, Any]]:
    """Which files are made of which, as far as they are in the bundle as they were then."""

    def rows() -> Iterator[dict[str, Any]]:
        for path, entry in sorted(files.items()):
            sources = [
                f"file:{source}"
                for source, sha256 in sorted(entry.of.items())
                if source in files and files[source].sha256 == sha256
            ]
            yield (
                {"ref": f"file:{path}", "dependsOn": sources}
                if sources
                else {"ref": f"file:{path}"}
            )

    contents = {"ref": "bundle", "dependsOn": [f"file:{path}" for path in sorted(files)]}
    return [contents, *rows()]
