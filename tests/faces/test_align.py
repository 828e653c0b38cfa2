"""Alignment: the transform against its definition, pictures that come back, folders that report."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fr_edge.errors import FacesError, UsageError
from fr_edge.faces.align import align, align_folder, similarity
from fr_edge.faces.contract import ARCFACE_TEMPLATE, aligned_template, resize_face
from fr_edge.faces.detect import DetectedFace, choose_faces, open_detector
from fr_edge.faces.sources import open_faces
from fr_edge.faces.synthetic.render import draw_face

TEMPLATE = np.array(ARCFACE_TEMPLATE)


def turned(scale: float, degrees: float, shift: tuple[float, float]) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)) * scale, np.sin(np.radians(degrees)) * scale
    return np.array([[c, -s, shift[0]], [s, c, shift[1]]])


def moved(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


@pytest.mark.parametrize("scale", [0.2, 1.0, 7.0])
@pytest.mark.parametrize("degrees", [0, 33, -120, 180])
def test_a_similarity_is_found_again(scale: float, degrees: float) -> None:
    matrix = turned(scale, degrees, (31.5, -8.25))
    np.testing.assert_allclose(similarity(TEMPLATE, moved(matrix, TEMPLATE)), matrix, atol=1e-9)


def test_it_is_the_least_squares_one() -> None:
    """No nearby similarity fits noisy points better, and none of the family is a mirror."""
    random = np.random.default_rng(0)
    noisy = moved(turned(2, 20, (5, 9)), TEMPLATE) + random.normal(size=(5, 2)) * 3

    def error(matrix: np.ndarray) -> float:
        return float(((moved(matrix, noisy) - TEMPLATE) ** 2).sum())

    best = similarity(noisy, TEMPLATE)
    a, b, x, y = best[0, 0], best[1, 0], *best[:, 2]
    for step in np.vstack([np.eye(4), -np.eye(4)]) * 1e-4:
        p, q, u, v = np.array([a, b, x, y]) + step
        assert error(np.array([[p, -q, u], [q, p, v]])) >= error(best)
    mirrored = noisy * [-1, 1]
    assert np.linalg.det(similarity(mirrored, TEMPLATE)[:, :2]) > 0


@pytest.mark.parametrize("points", [np.ones((5, 2)), np.full((5, 2), np.nan)])
def test_points_that_span_no_face(points: np.ndarray) -> None:
    with pytest.raises(FacesError, match="in one place or not finite"):
        similarity(points, TEMPLATE)


def photograph(face: np.ndarray, scale: float, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """The face somewhere in a larger picture, and where its landmarks went."""
    matrix = turned(scale, degrees, (130, 90))
    back = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    shift = back[:2, 2] + 0.5 - back[:2, :2] @ [0.5, 0.5]
    data = (*back[0, :2], shift[0], *back[1, :2], shift[1])
    side = round(200 + 160 * scale)
    image = Image.fromarray(face).transform(
        (side, side), Image.Transform.AFFINE, data, Image.Resampling.BICUBIC
    )
    return np.asarray(image), moved(matrix, TEMPLATE)


@pytest.mark.parametrize(("scale", "degrees"), [(1, 0), (1, 15), (2, -20), (3.4, 8)])
def test_an_aligned_face_comes_back(scale: float, degrees: float) -> None:
    face = draw_face(3, 0)
    crop = align(*photograph(face, scale, degrees)).astype(float)
    inside = (slice(12, 100), slice(12, 100))
    assert crop.shape == (112, 112, 3)
    assert np.corrcoef(crop[inside].ravel(), face[inside].ravel())[0, 1] > 0.98


def test_pixels_are_not_shifted() -> None:
    """The identity leaves every pixel where it was, to the rounding."""
    face = draw_face(5, 1)
    assert np.abs(align(face, TEMPLATE).astype(int) - face).max() <= 1


# Landmarks in a picture of random pixels, and what scikit-image's SimilarityTransform (in float64)
# and OpenCV 4.10's warpAffine made of them: the transform, every 25th green pixel from (5, 5), and
# the sum of each channel.
PINNED = {
    "smaller": (
        [[181.2, 120.7], [262.9, 131.4], [215.3, 168.8], [176.4, 203.1], [243.6, 212.9]],
        [[0.457578, 0.067936, -54.126828], [-0.067936, 0.457578, 9.97746]],
        [
            [41, 130, 72, 113, 189],
            [105, 143, 178, 89, 136],
            [41, 143, 134, 109, 172],
            [63, 103, 165, 91, 119],
            [47, 214, 150, 160, 151],
        ],
        [1589247, 1599599, 1598859],
    ),
    "larger": (
        [[100.5, 80.25], [119.0, 77.5], [111.75, 91.0], [104.25, 100.5], [118.5, 98.75]],
        [[1.928756, -0.185037, -141.100664], [0.185037, 1.928756, -121.417776]],
        [
            [112, 91, 103, 83, 122],
            [108, 146, 127, 106, 103],
            [97, 145, 128, 99, 133],
            [245, 91, 105, 86, 163],
            [102, 220, 81, 182, 125],
        ],
        [1611557, 1575969, 1605606],
    ),
    "beyond the edge": (
        [[-12.0, 30.5], [41.5, 8.0], [24.0, 52.5], [10.5, 88.0], [55.0, 70.25]],
        [[0.597813, -0.202281, 51.881902], [0.202281, 0.597813, 37.285499]],
        [
            [0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0],
            [0, 0, 97, 106, 84],
            [0, 0, 202, 167, 101],
            [0, 85, 223, 109, 181],
        ],
        [611943, 610085, 616890],
    ),
    "upside down": (
        [[262.0, 212.5], [179.5, 205.0], [220.0, 165.5], [252.5, 131.0], [187.0, 123.5]],
        [[-0.467125, -0.018991, 162.068027], [0.018991, -0.467125, 145.962259]],
        [
            [0, 0, 0, 0, 0],
            [120, 60, 78, 198, 159],
            [73, 100, 175, 135, 128],
            [130, 138, 138, 59, 169],
            [113, 75, 90, 192, 59],
        ],
        [1446042, 1450457, 1444025],
    ),
}
PICTURE = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)


def test_the_template_is_insightfaces() -> None:
    """`arcface_dst` in insightface/utils/face_align.py."""
    published = [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
    assert np.array_equal(TEMPLATE, published)


@pytest.mark.parametrize("case", PINNED)
def test_the_crop_is_norm_crops_to_the_grey_level(case: str) -> None:
    points, matrix, pixels, sums = (np.array(values) for values in PINNED[case])
    np.testing.assert_allclose(similarity(points, TEMPLATE), matrix, atol=1e-6)
    face = align(PICTURE, points)
    assert np.array_equal(face[5::25, 5::25, 1], pixels)
    assert np.array_equal(face.sum(axis=(0, 1)), sums)


def test_the_crop_is_that_of_the_opencv_installed_here() -> None:
    """OpenCV 4 counts in fixed point, and so does `align`; OpenCV 5 in float32."""
    cv2 = pytest.importorskip("cv2")
    random = np.random.default_rng(1)
    for _ in range(40):
        matrix = turned(np.exp(random.uniform(-2, 2)), random.uniform(0, 360), (200, 150))
        points = moved(matrix, TEMPLATE - 56) + random.normal(size=(5, 2))
        there = similarity(points, TEMPLATE)
        crop = cv2.warpAffine(PICTURE, there, (112, 112), borderValue=0.0)
        difference = np.abs(align(PICTURE, points).astype(int) - crop)
        if int(cv2.__version__.split(".")[0]) < 5:
            assert difference.max() == 0
        else:  # of random pixels, the steepest there are
            assert difference.mean() < 1


@pytest.mark.parametrize(
    (
        "side",
        "ratio",
        "shift",
    ),  # of `estimate_norm` in insightface/utils/face_align.py; 160: as of 112
    [(224, 2, 0), (160, 160 / 112, 0), (128, 1, 8), (256, 2, 16)],
)
def test_other_sizes_are_norm_crops(side: int, ratio: float, shift: float) -> None:
    """A float64 sampler of its own, with the four unknowns of a similarity by least squares."""
    there = TEMPLATE * ratio + (shift, 0)
    np.testing.assert_allclose(aligned_template(side), there, atol=1e-9)
    points = np.array(PINNED["larger"][0]) * 2
    rows = np.zeros((10, 4))
    rows[0::2] = np.column_stack([points * (1, -1), np.ones(5), np.zeros(5)])
    rows[1::2] = np.column_stack([points[:, ::-1], np.zeros(5), np.ones(5)])
    a, b, x0, y0 = np.linalg.lstsq(rows, there.reshape(-1), rcond=None)[0]
    y, x = np.mgrid[:side, :side].astype(float)
    u = (a * (x - x0) + b * (y - y0)) / (a * a + b * b)
    v = (a * (y - y0) - b * (x - x0)) / (a * a + b * b)
    waves = lambda x, y: 127 + 60 * np.sin(x / 9) + 60 * np.cos(y / 7)  # noqa: E731
    rows_, columns = np.mgrid[:300, :400]
    picture = np.rint(waves(columns, rows_)).astype(np.uint8)[..., None].repeat(3, axis=2)
    inside = (u > 1) & (u < 398) & (v > 1) & (v < 298)
    crop = align(picture, points, size=side)[..., 0].astype(float)
    assert crop.shape == (side, side)
    assert np.abs(crop - waves(u, v))[inside].max() < 1.5
    assert inside.mean() > 0.9


def test_a_larger_crop_keeps_what_an_enlarged_one_has_lost() -> None:
    board = (np.indices((300, 400)).sum(axis=0) % 2 * 255).astype(np.uint8)
    picture = np.repeat(board[..., None], 3, axis=2)
    points = aligned_template(160) + 40
    assert np.array_equal(align(picture, points, size=160), picture[40:200, 40:200])
    assert resize_face(align(picture, points), 160).std() < 0.7 * picture.std()


def test_averaging_first_sees_all_pixels_of_a_large_face() -> None:
    """A chessboard of single pixels is grey when averaged; sampled with gaps it is not."""
    board = (np.indices((600, 600)).sum(axis=0) % 2 * 255).astype(np.uint8)
    image = np.repeat(board[..., None], 3, axis=2)
    points = TEMPLATE * 4.3 + 40.5
    averaged = align(image, points, antialias=True)
    assert np.abs(averaged.astype(int) - 128).max() <= 1
    assert align(image, points).std() > 20


@pytest.mark.parametrize("scale", [2.5, 4.0, 5.7])
def test_averaging_first_does_not_move_the_face(scale: float) -> None:
    """A ramp of grey levels is the same with and without, so no pixel is shifted."""
    ramp = np.linspace(0, 255, 900)
    image = np.rint(ramp[:, None] / 2 + ramp[None, :] / 2).astype(np.uint8)
    image = np.repeat(image[..., None], 3, axis=2)
    points = moved(turned(scale, 10, (120, 60)), TEMPLATE)
    plain, averaged = align(image, points), align(image, points, antialias=True)
    assert np.abs(plain.astype(int) - averaged).max() <= 1


def test_which_of_several_faces_is_meant() -> None:
    def face(x: float, y: float, side: float) -> DetectedFace:
        return DetectedFace(0.9, np.float32([x, y, side, side]), np.zeros((5, 2), np.float32))

    middle, corner, small = face(80, 80, 40), face(0, 0, 42), face(96, 95, 10)
    faces, shape = [small, corner, middle], (200, 200, 3)
    assert choose_faces(faces, shape, "central") == [middle]
    assert choose_faces(faces, shape, "largest") == [corner]
    assert choose_faces(faces, shape, "all") == faces
    assert choose_faces([small], shape, "one") == [small]
    with pytest.raises(FacesError, match="3 faces, expected one: 10x10 at 96,95; 42x42 at 0,0"):
        choose_faces(faces, shape, "one")
    with pytest.raises(FacesError, match="no face"):
        choose_faces([], shape, "all")
    with pytest.raises(UsageError, match="no policy 'first'"):
        choose_faces(faces, shape, "first")  # type: ignore[arg-type]


@pytest.fixture
def album(tmp_path: Path) -> Path:
    root = tmp_path / "album"
    for person in ("ann", "bob/deep"):
        (root / person).mkdir(parents=True)
    image, _ = photograph(draw_face(1, 0), 1, 0)
    for name in ("ann/1.jpg", "ann/empty.png", "ann/two.png", "bob/deep/1.bmp"):
        Image.fromarray(image).save(root / name)
    (root / "ann" / "torn.jpg").write_bytes((root / "ann" / "1.jpg").read_bytes()[:300])
    return root


def test_a_folder(album: Path, tmp_path: Path) -> None:
    """Every image is accounted for; folders, and so identities, are kept."""
    _, points = photograph(draw_face(1, 0), 1, 0)
    one = DetectedFace(0.9, np.float32([140, 100, 90, 100]), points.astype(np.float32))
    counts = iter([1, 0, 2, 1])  # in the order of the names

    report = align_folder(
        album, tmp_path / "out", lambda image: [one] * next(counts), faces="largest"
    )
    assert report.crops["bob/deep/1.bmp"] == ("bob/deep/1.png",)
    assert report.written == ("ann/1.jpg", "ann/two.png", "bob/deep/1.bmp")
    assert report.none == ("ann/empty.png",)
    assert report.several == ("ann/two.png",)
    assert list(report.unreadable) == ["ann/torn.jpg"]
    faces = open_faces(tmp_path / "out")
    assert list(faces.keys) == ["ann/1.png", "ann/two.png", "bob/deep/1.png"]
    assert list(faces.labels) == [0, 0, 1]
    np.testing.assert_allclose(faces.read(2)[20:90, 20:90], draw_face(1, 0)[20:90, 20:90], atol=25)


@pytest.mark.parametrize("policy", ["one", "all"])
def test_several_faces_in_an_image(album: Path, tmp_path: Path, policy: str) -> None:
    _, points = photograph(draw_face(1, 0), 1, 0)
    one = DetectedFace(0.9, np.float32([140, 100, 90, 100]), points.astype(np.float32))
    other = DetectedFace(0.8, one.box, one.points + 9)
    counts = iter([1, 0, 2, 1])
    out = tmp_path / "out"
    report = align_folder(album, out, lambda _: [one, other][: next(counts)], faces=policy)  # type: ignore[arg-type]
    assert report.several == ("ann/two.png",)
    keys = {
        "one": ["ann/1.png", "bob/deep/1.png"],
        "all": [
            "ann/1.jpg.1.png",
            "ann/two.png.1.png",
            "ann/two.png.2.png",
            "bob/deep/1.bmp.1.png",
        ],
    }[policy]
    assert list(open_faces(out).keys) == keys
    assert [crop for crops in report.crops.values() for crop in crops] == keys
    assert report.written == tuple(report.crops)
    with pytest.raises(FacesError, match="shows one face alone") as caught:
        align_folder(album, tmp_path / "none", lambda _: [one, other])
    assert "--faces largest" in caught.value.hint


def test_nothing_is_written_where_two_photographs_would_be_one_crop(
    album: Path, tmp_path: Path
) -> None:
    (album / "ann" / "1.jpeg").write_bytes((album / "ann" / "1.jpg").read_bytes())
    _, points = photograph(draw_face(1, 0), 1, 0)
    one = DetectedFace(0.9, np.float32([140, 100, 90, 100]), points.astype(np.float32))
    with pytest.raises(FacesError, match="ann/1.jpeg and ann/1.jpg would both .* ann/1.png"):
        align_folder(album, tmp_path / "out", lambda _: [one])
    assert not (tmp_path / "out").exists()
    report = align_folder(album, tmp_path / "out", lambda _: [one], faces="all")
    assert {"ann/1.jpeg.1.png", "ann/1.jpg.1.png"} <= {
        c for cs in report.crops.values() for c in cs
    }


def test_landmarks_in_one_place_are_one_photographs_fault(album: Path, tmp_path: Path) -> None:
    _, points = photograph(draw_face(1, 0), 1, 0)
    good = DetectedFace(0.9, np.float32([140, 100, 90, 100]), points.astype(np.float32))
    bad = DetectedFace(0.9, good.box, np.ones((5, 2), np.float32))
    faces = iter([bad, good, good, good])
    report = align_folder(album, tmp_path / "out", lambda _: [next(faces)])
    assert report.unreadable["ann/1.jpg"] == "the landmarks are in one place or not finite"
    assert len(report.written) == 3


def test_no_face_anywhere(album: Path, tmp_path: Path) -> None:
    with pytest.raises(FacesError, match="none of the 5 images"):
        align_folder(album, tmp_path / "out", lambda image: [])
    assert not (tmp_path / "out").exists()


def test_folders_that_do_not_do(album: Path, tmp_path: Path) -> None:
    for out in (album, album / "aligned"):
        with pytest.raises(UsageError, match="lies in"):
            align_folder(album, out, lambda image: [])
    with pytest.raises(FacesError, match="no folder"):
        align_folder(tmp_path / "nowhere", tmp_path / "out", lambda image: [])
    (tmp_path / "bare").mkdir()
    with pytest.raises(FacesError, match="no images"):
        align_folder(tmp_path / "bare", tmp_path / "out", lambda image: [])


def test_photographs_are_turned_as_the_camera_says(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shapes: list[tuple[int, ...]] = []
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (300, 200)).save(tmp_path / "in" / "a.jpg", exif=exif)

    def detect(image: np.ndarray) -> list[DetectedFace]:
        shapes.append(image.shape)
        return []

    with pytest.raises(FacesError):
        align_folder(tmp_path / "in", tmp_path / "out", detect)
    assert shapes == [(300, 200, 3)]


@pytest.mark.real
def test_real_faces_come_back(real_data: Path) -> None:
    """Aligned faces, put turned and larger into a picture, are found and aligned again."""
    detect = open_detector(real_data / "yunet_fp32.onnx")
    faces = open_faces(real_data / "faces_dev.tar")
    alike = []
    for index in range(0, len(faces), len(faces) // 6):
        image, _ = photograph(faces.read(index), 2, 15)
        detected = detect(image)
        assert len(detected) == 1
        inside = (slice(30, 82), slice(30, 82))
        again = align(image, detected[0].points)[inside].astype(float).ravel()
        alike.append(np.corrcoef(again, faces.read(index)[inside].ravel())[0, 1])
    assert np.median(alike) > 0.75
