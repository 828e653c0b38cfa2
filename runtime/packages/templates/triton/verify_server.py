"""A health check: replays the golden faces on a running server: python verify_server.py [HOST:PORT]

Prints the lowest cosine to the bundle's embeddings; exit code 1 where it is below the limit in
golden/faces.txt, 2 where the server is not ready.
"""

import sys
from pathlib import Path

import numpy as np
from face_client import FaceClient
from verify_repository import read_golden_faces

FOLDER = Path(__file__).parent


def check_server(client: FaceClient, folder: Path) -> tuple[int, float, float]:
    """How many golden faces there are, the lowest cosine, and the limit.

    Args:
        client: Connected to the server.
        folder: The package's.
    """
    faces, limit = read_golden_faces(folder / "golden")
    cosines = []
    for kind, image, landmarks, expected in faces:
        own = client.embed_crops(image[None]) if kind == "crop" else client.embed(image, landmarks)
        cosines.append(float(own[0] @ expected))
    return len(cosines), float(np.min(cosines)), limit  # NaN stays NaN


if __name__ == "__main__":
    server = FaceClient(*sys.argv[1:2])
    if not server.ready():
        print(f"{server.url} is not ready", file=sys.stderr)
        sys.exit(2)
    count, lowest, least = check_server(server, FOLDER)
    passed = lowest >= least
    print(
        f"faces={count} min_cosine={lowest:.9f} limit={least:g} {'PASSED' if passed else 'FAILED'}"
    )
    sys.exit(0 if passed else 1)
