"""Whether faces look aligned: the eyes of their mean are where the template has them.

Eyes are darker than the bridge of the nose between them and the cheeks below. In the mean of a few
dozen aligned faces that stands out; shifted, turned or loosely cropped ones blur it away. Knows
nothing of networks.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..faces.contract import ARCFACE_TEMPLATE
from ..faces.sources import Faces

MOST, FEWEST = 64, 16
"""Faces looked at; of fewer than `FEWEST` nothing is said."""
_CONTRAST = 0.4
"""In standard deviations of a face's grey levels. Aligned faces of two sources gave 0.7 to 1.2;
shifted by 10 pixels .4 to .6, by 20 .1, cropped at 1.5 times the size .3 to .5, lying -.1."""
_CHEEK = 24.0
"""Pixels from an eye down to its cheek."""
_PATCH = 5


def framing_note(faces: Faces, picks: Sequence[int]) -> str:
    """What to tell the user when the faces at `picks` do not look aligned; else, or when they are
    too few to say, empty."""
    some = picks[:: max(1, len(picks) // MOST)][:MOST]
    if len(some) < FEWEST or faces.drawn:
        return ""
    contrast = eye_contrast(np.stack([faces.read(index) for index in some]))
    if contrast >= _CONTRAST:
        return ""
    return (
        f"the faces do not look aligned: where the ArcFace template has the eyes, their mean is"
        f" darker than around by {contrast:.2f}, aligned faces by about 0.8: see `fr-edge align`"
    )


def eye_contrast(faces: npt.NDArray[np.uint8]) -> float:
    """Of `(N, 112, 112, 3) uint8`: how much darker the mean face is at its eyes than beside and
    below them, in standard deviations of its grey levels."""
    grey = faces.astype(np.float32).mean(axis=3)
    grey -= grey.mean(axis=(1, 2), keepdims=True)
    grey /= grey.std(axis=(1, 2), keepdims=True) + 1e-6
    mean = grey.mean(axis=0)

    def level(x: float, y: float) -> float:
        column, row = round(x), round(y)
        return float(
            mean[row - _PATCH : row + _PATCH + 1, column - _PATCH : column + _PATCH + 1].mean()
        )

    eyes = ARCFACE_TEMPLATE[:2]
    bridge = ((eyes[0][0] + eyes[1][0]) / 2.0, (eyes[0][1] + eyes[1][1]) / 2.0)
    around = [bridge, *((x, y + _CHEEK) for x, y in eyes)]
    bright = sum(level(*place) for place in around) / len(around)
    return bright - sum(level(*place) for place in eyes) / len(eyes)
