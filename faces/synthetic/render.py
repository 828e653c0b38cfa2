"""Synthetic faces: people who do not exist, for tests and for a trial without photographs.

An identity is a set of shape and colour parameters; an image adds its own pose, light, expression,
blur, noise, crop and accessories, and these change more pixels than the identity does.
"""

import numpy as np

from ...arrays import U8
from .parameters import PERSON, SHOT, Values, random_values
from .raster import Canvas, blank_canvas, mix, oval, paint, region_around


def draw_face(identity: int, image: int, seed: int = 0) -> U8:
    """Paint one picture of a synthetic person. Equal numbers give equal bytes on every machine.

    Args:
        identity: Number of the person, 0 or more.
        image: Number of the picture, 0 or more.
        seed: Other seeds give other people.

    Returns:
        `(112, 112, 3) uint8` RGB.
    """
    person = random_values(np.random.SeedSequence([0, seed, identity]), PERSON)
    source = np.random.SeedSequence([1, seed, identity, image])
    shot = random_values(source, SHOT)
    face = blank_canvas(shot)
    skin, hair = _skin_colour(person), _hair_colour(person)
    _background(face, shot)
    _head(face, person, shot, skin, hair)
    for side in (-1, 1):
        _eye(face, person, shot, skin, hair, side)
    _nose(face, person, shot, skin)
    _mouth(face, person, shot, skin, hair)
    _accessories(face, person, shot)
    grain = np.random.Generator(np.random.PCG64(source.spawn(1)[0]))
    return _photograph(face, shot, grain)


def _skin_colour(person: Values) -> list[float]:
    tone = mix((84, 56, 42), (240, 205, 182), person["skin"])
    return mix(tone, (215, 130, 105), 0.25 * person["ruddy"])


def _hair_colour(person: Values) -> list[float]:
    tone = mix((22, 18, 18), (196, 164, 112), person["hair"])
    return mix(tone, (140, 60, 30), 0.4 * person["hair_red"])


def _background(face: Canvas, shot: Values) -> None:
    colour = np.array([shot["back1"], shot["back2"], shot["back3"]], np.float32)[:, None, None]
    face.pixels[:] = colour + face.u * np.float32(shot["back_slope"])


def _head(face: Canvas, person: Values, shot: Values, skin: list[float], hair: list[float]) -> None:
    yaw, pitch = shot["yaw"], shot["pitch"]
    width, chin = person["width"], person["chin"] + 2 * pitch
    middle = -5 * yaw  # the outline lies behind the eyes, so it turns the other way
    volume = person["hair_volume"]
    u = face.u - np.float32(middle)
    back = oval(face, middle, -2, width + volume, 48 + volume)
    strands = np.maximum(np.abs(u) - np.float32(width + volume), -face.v)
    length = person["hair_length"] + shot["hair_move"]
    paint(face, np.maximum(np.minimum(back, strands), face.v - np.float32(length)), hair)
    neck = np.maximum(np.abs(u) - np.float32(width * 0.62), 30 - face.v)
    paint(face, neck, [0.8 * c for c in skin])
    cloth = np.float32(chin + 8) - face.v - np.abs(u) * np.float32(0.25)
    paint(face, cloth, (shot["cloth1"], shot["cloth2"], shot["cloth3"]))
    for side in (-1, 1):
        shown = person["ears"] - 3 * side * yaw
        ear = oval(face, middle + side * (width - 1), 8, max(shown, 1), 10)
        paint(face, ear, [0.86 * c for c in skin])
    # Between an ellipse and a rounded box, narrower towards the chin.
    y = face.v / np.float32(chin)
    x = u / np.float32(width) * (1 + np.maximum(y, 0) * np.float32(person["taper"]))
    xx, yy = x * x, y * y
    square = np.float32(person["square"])
    radius = np.sqrt((1 - square) * (xx + yy) + square * np.sqrt(xx * xx + yy * yy))
    outline = (radius - 1) * np.float32(width)
    light = 1 - 0.22 * xx + u * np.float32(shot["light_x"] / 45)
    light = light + face.v * np.float32(shot["light_y"] / 55)
    tint = np.array(skin, np.float32)[:, None, None]
    paint(face, outline, tint * light)
    for side in (-1, 1):
        cheek = region_around(face, side * 22 + 2 * yaw, 22, 10)
        red = mix(skin, (205, 90, 80), 0.5)
        paint(cheek, oval(cheek, side * 22 + 2 * yaw, 22, 9, 7) / 6, red, 0.3 * person["ruddy"])
    for mole in ("mole1", "mole2"):
        mole_u, mole_v, size = person[mole + "_x"] + 2 * yaw, person[mole + "_y"], person[mole]
        if size > 0.3:
            spot = region_around(face, mole_u, mole_v, 3)
            paint(spot, oval(spot, mole_u, mole_v, size, size), [0.4 * c for c in skin])
    bent = u - np.float32(person["parting"])
    line = face.v - np.float32(person["hairline"] + 2 * pitch)
    line = line - bent * bent * np.float32(person["fringe"])
    crown = np.minimum(oval(face, middle, -2, width + 1, 50), outline - 1)
    paint(face, np.maximum(crown, line), hair)


def _eye(
    face: Canvas,
    person: Values,
    shot: Values,
    skin: list[float],
    hair: list[float],
    side: int,
) -> None:
    near = 1 - 0.1 * side * shot["yaw"]
    u = side * person["eye_gap"] * (1 - 0.03 * side * shot["yaw"])
    part = region_around(face, u, -5, 16)
    width = person["eye_width"] * near
    height = person["eye_height"] * (1 - shot["squint"] - 0.15 * max(shot["smile"], 0))
    slant = np.float32(side * person["eye_slant"])
    du = part.u - np.float32(u)
    dv = part.v - du * slant
    # An almond: what two parabolas leave between them.
    bow = 1 - du * du / np.float32(width * width)
    almond = np.abs(dv) - bow * np.float32(height)
    paint(part, almond - 1.5, [0.72 * c for c in skin], 0.5)
    paint(part, almond, (238, 234, 228))
    iris = mix((52, 30, 18), (96, 140, 168), person["iris"])
    size = person["iris_size"]
    ball = oval(part, u + shot["gaze"], 0, size, size)
    paint(part, np.maximum(ball, almond), iris)
    paint(part, np.maximum(ball + np.float32(0.55 * size), almond), (12, 10, 10))
    lid = np.abs(dv + bow * np.float32(height)) - np.float32(0.4 + 0.6 * person["lid"])
    paint(part, np.maximum(lid, np.abs(du) - np.float32(width)), [0.3 * c for c in skin])
    crease = np.abs(dv + bow * np.float32(height + 2)) - np.float32(0.4)
    crease = np.maximum(crease, np.abs(du) - np.float32(width))
    paint(part, crease, [0.55 * c for c in skin], person["lid"])
    lift = person["brow_height"] + shot["brow_raise"]
    arch = du * du * np.float32(person["brow_arch"])
    middle = part.v + np.float32(lift) - arch - du * np.float32(side * person["brow_slant"])
    brow = np.abs(middle) - np.float32(person["brow_thick"])
    brow = np.maximum(brow, np.abs(du) - np.float32(person["brow_width"] * near))
    paint(part, brow, [0.75 * c for c in hair], 0.85)


def _nose(face: Canvas, person: Values, shot: Values, skin: list[float]) -> None:
    u, v = 6 * shot["yaw"], person["nose_length"] + 1.5 * shot["pitch"]
    part = region_around(face, u / 2, v / 2, 20)
    dark, bright = [0.62 * c for c in skin], mix(skin, (255, 250, 240), 0.35)
    along = np.clip(part.v / np.float32(v), 0, 1)
    du = part.u - along * np.float32(u)
    half = person["nose_bridge"] + along * along * np.float32(
        person["nose_width"] - person["nose_bridge"]
    )
    below = part.v - np.float32(v)
    for side in (-1, 1):
        wall = np.abs(du - half * side) - np.float32(0.8)
        wall = np.maximum(np.maximum(wall, below), 2 - part.v)
        shade = 0.28 + 0.5 * max(0.0, -side * shot["light_x"])
        paint(part, wall, dark, shade)
        hole = oval(
            part,
            u + side * 0.5 * person["nose_width"],
            v + 1,
            person["nostril"],
            0.8 * person["nostril"],
        )
        paint(part, hole, [0.3 * c for c in skin], 0.8)
    ridge = np.maximum(np.abs(du) - np.float32(0.45 * person["nose_bridge"]), np.abs(below + 8) - 9)
    paint(part, ridge, bright, 0.35)
    paint(part, oval(part, u, v + 2, person["nose_width"] * 0.8, 1.3), dark, 0.5)


def _mouth(
    face: Canvas, person: Values, shot: Values, skin: list[float], hair: list[float]
) -> None:
    yaw = shot["yaw"]
    u, v = 2.5 * yaw, person["mouth_height"] + shot["pitch"]
    part = region_around(face, u, v - 1, 24)
    smile = shot["smile"]
    width = person["mouth_width"] * (1 + 0.16 * smile)
    du = part.u - np.float32(u)
    along = du / np.float32(width)
    bow = 1 - along * along
    # A smile lifts the corners, which lie where `bow` is 0.
    dv = part.v - np.float32(v) - (bow - np.float32(0.4)) * np.float32(2.2 * smile)
    gone = np.float32(1 - 0.6 * shot["shave"]) if shot["shave"] > 0.3 else np.float32(1)
    beard = max(person["beard"], 0.0) * float(gone)
    if beard > 0:
        jaw = oval(face, u / 2, 26, person["width"] - 2, person["chin"] - 27)
        bare = oval(face, u / 2, 14, person["width"] - 8, 21)  # cheeks and upper lip
        paint(face, np.maximum(jaw, -bare) / 4, hair, beard)
    if person["moustache"] > 0:
        lip = oval(part, u, v - 6.5, width * 0.9, 3)
        paint(part, lip / 2, hair, person["moustache"] * float(gone))
    for side in (-1, 1):
        fold = np.abs(du - np.float32(side * (width + 3)) - side * 0.25 * dv) - np.float32(0.7)
        fold = np.maximum(fold, np.abs(dv + 8) - 8)
        paint(part, fold, [0.6 * c for c in skin], person["fold"] * (1 + max(smile, 0)))
    red = mix([0.75 * c for c in skin], (176, 52, 62), 0.75 * person["lip_red"])
    gap = max(shot["open"], 0.0) * 4
    upper = np.maximum(-dv - bow * np.float32(person["lip_upper"]), dv)
    lower = np.maximum(dv - bow * np.float32(person["lip_lower"] + gap), -dv)
    paint(part, upper, [0.85 * c for c in red])
    paint(part, lower, red)
    inside = np.abs(dv - bow * np.float32(gap / 2)) - bow * np.float32(gap / 2) - np.float32(0.5)
    inside = np.maximum(inside, np.abs(du) - np.float32(width))
    paint(part, inside, (235, 228, 218) if gap > 1.2 else [0.35 * c for c in red])


def _accessories(face: Canvas, person: Values, shot: Values) -> None:
    """Glasses, a hat, something in front of the lens: they vary by picture, not by person."""
    if shot["glasses"] < 0.22:
        dark = [40 * shot["glasses"] * c for c in (6, 5, 7)]
        for side in (-1, 1):
            u = side * 17.6
            part = region_around(face, u, 1, 18)
            ring = oval(part, u, 1, shot["glasses_size"], 0.8 * shot["glasses_size"])
            paint(part, np.abs(ring) - np.float32(0.9), dark)
            if shot["glasses"] < 0.05:
                paint(part, ring, dark, 0.75)
        bridge = region_around(face, 0, 0, 9)
        paint(bridge, np.maximum(np.abs(bridge.v), np.abs(bridge.u) - 7) - 0.5, dark)
    if shot["hat"] < 0.12:
        brim = np.float32(shot["hat_line"]) + face.u * face.u * np.float32(0.004)
        paint(face, face.v - brim, (shot["cloth2"], shot["cloth3"], shot["cloth1"]))
    if shot["cover"] < 0.15:
        size = shot["cover_size"]
        blob = oval(face, shot["cover_x"], shot["cover_y"], size, size)
        paint(face, blob, (shot["back3"], shot["cloth1"], shot["back2"]))


def _photograph(face: Canvas, shot: Values, grain: np.random.Generator) -> U8:
    """Light and lens: cast, exposure, contrast, side light, blur, noise."""
    cast = np.array([shot["cast_red"], 1, shot["cast_blue"]], np.float32)[:, None, None]
    side = 1 + face.u * np.float32(shot["light_x"] / 90)
    image = face.pixels * (cast * np.float32(shot["exposure"])) * side
    image = 110 + (image - 110) * np.float32(shot["contrast"])
    weight = np.float32(shot["blur"])
    for _ in range(2):
        for axis in (1, 2):
            before = np.roll(image, 1, axis)
            after = np.roll(image, -1, axis)
            image = image + weight * (before + after - 2 * image)
    image = image + (grain.random(image.shape, np.float32) - np.float32(0.5)) * np.float32(
        2 * shot["noise"]
    )
    return np.ascontiguousarray(np.clip(image + 0.5, 0, 255).astype(np.uint8).transpose(1, 2, 0))
