"""Drawn faces: the same everywhere, different where they should be, hard for plain pixels."""

import hashlib

import numpy as np
import numpy.typing as npt
import pytest

from fr_edge.faces.contract import ARCFACE_TEMPLATE
from fr_edge.faces.synthetic.parameters import PERSON, SHOT
from fr_edge.faces.synthetic.render import draw_face


def test_the_same_numbers_give_the_same_bytes_on_every_machine() -> None:
    faces = [draw_face(identity, image, 3) for identity in range(8) for image in range(4)]
    assert all(face.shape == (112, 112, 3) and face.dtype == np.uint8 for face in faces)
    digest = hashlib.sha256(b"".join(face.tobytes() for face in faces)).hexdigest()
    assert digest == "f4f921aa0c7ce7484d2e2794074fac8fcb4859feeb248ac4ecafbc3569e9b9f9"


def test_identity_image_and_seed_each_change_the_picture() -> None:
    pictures = [draw_face(*numbers) for numbers in [(1, 1, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0)]]
    for index, one in enumerate(pictures):
        for other in pictures[index + 1 :]:
            assert np.abs(one.astype(int) - other).mean() > 4


def test_eyes_are_where_aligned_eyes_are() -> None:
    """The mean over many pictures is darker at an eye than on the cheek below it and beside it."""
    mean = np.mean([draw_face(i, 0) for i in range(300)], axis=0).mean(axis=2)

    def at(x: float, y: float) -> float:
        return float(mean[round(y) - 2 : round(y) + 3, round(x) - 2 : round(x) + 3].mean())

    for x, y in ARCFACE_TEMPLATE[:2]:
        assert at(x, y) < at(x, y + 14) - 8
    left, right = ARCFACE_TEMPLATE[3], ARCFACE_TEMPLATE[4]
    mouth = (left[0] + right[0]) / 2, left[1]
    assert at(*mouth) < at(mouth[0], mouth[1] - 10) - 8


def test_every_parameter_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parameter that changes nothing would be a lie in the table."""
    unseen = []
    for table in (PERSON, SHOT):
        for name, span in list(table.items()):
            seen = False
            for identity in range(40):  # some show only with a hat or a mole
                pictures = []
                for value in span:
                    monkeypatch.setitem(table, name, (value, value))
                    pictures.append(draw_face(identity, 0))
                if seen := not np.array_equal(*pictures):
                    break
            if not seen:
                unseen.append(name)
            monkeypatch.setitem(table, name, span)
    assert unseen == []


def test_pixels_alone_do_not_tell_people_apart() -> None:
    people, images = 40, 6
    faces = np.stack([draw_face(i, j, 7) for i in range(people) for j in range(images)])
    flat = faces.reshape(len(faces), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    scores, label = flat @ flat.T, np.arange(len(faces)) // images
    upper = np.triu_indices(len(faces), 1)
    same = (label[:, None] == label)[upper]
    accuracy = _best_accuracy(scores[upper][same], scores[upper][~same])
    assert 0.5 < accuracy < 0.65


def _best_accuracy(genuine: npt.NDArray[np.float32], impostor: npt.NDArray[np.float32]) -> float:
    thresholds = np.quantile(np.concatenate([genuine, impostor]), np.linspace(0, 1, 400))
    return float(max(((genuine >= t).mean() + (impostor < t).mean()) / 2 for t in thresholds))
