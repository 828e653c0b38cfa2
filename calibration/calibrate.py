"""The stage: faces -> table -> Q/DQ model, into the bundle."""

from collections import Counter
from pathlib import Path

import onnx

from ..bundle import Bundle, change, open_bundle
from ..errors import UsageError
from ..faces.sources import Faces, spread
from ..progress import Track, silent
from .layers import choose
from .observe import observe
from .quantize import quantize_onnx
from .ranges import METHODS, amax
from .table import CalibrationTable, table_to_json

AUTO = "percentile"
"""What `auto` means: of the simple methods it lost the fewest true accepts on real faces."""


def calibrate(
    bundle: Bundle | str | Path,
    faces: Faces,
    method: str = "auto",
    limit: int = 512,
    track: Track = silent,
) -> Bundle:
    """Write `calibration.json` and `model.int8.onnx` from at most `limit` faces.

    The faces are spread over the identities. Raises UsageError for an unknown method or limit,
    FacesError for an unreadable face, BundleError without `model.onnx`.
    """
    bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    chosen_method = AUTO if method == "auto" else method
    if chosen_method not in METHODS:
        raise UsageError(
            f"no calibration method {method!r}", f"methods: auto, {', '.join(METHODS)}"
        )
    if limit < 1:
        raise UsageError(f"--limit is at least 1, found {limit}")
    source = bundle.file("model.onnx")
    model = onnx.load(source)
    choice = choose(model)
    picks = spread(faces, limit)
    seen = observe(model, choice.tensors, bundle.spec, faces, picks, track)
    table = CalibrationTable(
        chosen_method,
        len(picks),
        len({faces.labels[i] for i in picks}),
        bundle.files["model.onnx"].sha256,
        {name: amax(histogram, chosen_method) for name, histogram in seen.items()},
    )
    quantized = quantize_onnx(model, table, choice)
    options = {"method": method, "limit": limit}
    with change(bundle.root, "calibrate", options) as draft:
        draft.drop("engines/onnxruntime-int8", "reports/verify-int8", "report.html")
        draft.path("calibration.json", "calibration table").write_text(table_to_json(table))
        target = draft.path("model.int8.onnx", "INT8 model (Q/DQ)")
        target.write_bytes(quantized.SerializeToString())
        draft.summary.update(
            method=chosen_method,
            faces=table.faces,
            identities=table.identities,
            drawn_faces=faces.drawn,
            int8_layers=len(choice.int8),
            int8_mac_share=round(choice.mac_share, 4),
            kept_float=dict(Counter(choice.kept.values())),
        )
    return open_bundle(bundle.root, check=False)
