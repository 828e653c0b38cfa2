"""Say whether two photographs show the same person."""

import argparse
import sys

import numpy as np
from PIL import Image

from fr_edge import FrEdgeError, Recogniser

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("bundle")
parser.add_argument("images", nargs=2)
parser.add_argument("--detector", help="an ONNX file; without it the images are aligned faces")
options = parser.parse_args()

try:
    with Recogniser(options.bundle, detector=options.detector) as recogniser:
        images = options.images
        if options.detector is None:
            images = [np.asarray(Image.open(name).convert("RGB")) for name in images]
        result = recogniser.compare(*images)
except FrEdgeError as error:
    sys.exit(f"{error.message}\n{error.hint}")
print(f"similarity {result.similarity:.3f}, threshold {result.threshold.value:.3f}")
print("the same person" if result.same else "not the same person")
sys.exit(0 if result.same else 1)
