"""Parameters of synthetic faces: their ranges, and random values of them.

`PERSON` makes one person differ from another, `SHOT` one picture of a person from another.
"""

import numpy as np

Values = dict[str, float]  # a value of each parameter

# Lengths are pixels of the aligned frame, angles are slopes, the rest are shares of 0..1.
# The ranges surround the template: eyes 17.6 from the middle, nose tip 20, mouth 40.6 below.
PERSON = {
    "width": (36, 44),
    "chin": (52, 63),
    "square": (0, 0.9),
    "taper": (-0.05, 0.22),
    "skin": (0.1, 0.9),
    "ruddy": (0, 1),
    "hair": (0, 1),
    "hair_red": (0, 1),
    "hair_length": (-25, 70),
    "hair_volume": (1, 11),
    "hairline": (-38, -19),
    "fringe": (-0.012, 0.014),
    "parting": (-22, 22),
    "eye_gap": (15.7, 19.5),
    "eye_width": (5.6, 8.6),
    "eye_height": (2.4, 4.6),
    "eye_slant": (-0.16, 0.16),
    "iris": (0, 1),
    "iris_size": (2.3, 3.3),
    "lid": (0, 1),
    "brow_height": (7.5, 13.5),
    "brow_width": (7, 10.5),
    "brow_thick": (0.7, 2.3),
    "brow_arch": (0, 0.05),
    "brow_slant": (-0.2, 0.2),
    "nose_length": (17, 24),
    "nose_width": (4.5, 9.5),
    "nose_bridge": (1.2, 3.4),
    "nostril": (0.9, 2.0),
    "mouth_height": (37.5, 43.5),
    "mouth_width": (11, 17),
    "lip_upper": (1.2, 4.0),
    "lip_lower": (1.8, 5.2),
    "lip_red": (0.2, 1),
    "beard": (-1.2, 0.8),
    "moustache": (-1.2, 0.8),
    "ears": (3, 8),
    "mole1_x": (-27, 27),
    "mole1_y": (4, 46),
    "mole1": (-1, 1.7),
    "mole2_x": (-27, 27),
    "mole2_y": (-18, 46),
    "mole2": (-1, 1.5),
    "fold": (0, 0.35),
}

SHOT = {
    "roll": (-0.06, 0.06),
    "scale": (0.92, 1.07),
    "shift_x": (-3, 3),
    "shift_y": (-3, 3),
    "yaw": (-1, 1),
    "pitch": (-1, 1),
    "light_x": (-0.5, 0.5),
    "light_y": (-0.3, 0.3),
    "exposure": (0.6, 1.25),
    "contrast": (0.7, 1.15),
    "cast_red": (0.85, 1.15),
    "cast_blue": (0.8, 1.2),
    "smile": (-0.5, 1),
    "open": (-1, 1),
    "squint": (0, 0.45),
    "brow_raise": (-1.5, 2),
    "gaze": (-1.6, 1.6),
    "shave": (0, 1.2),
    "hair_move": (-5, 5),
    "back1": (0, 255),
    "back2": (0, 255),
    "back3": (0, 255),
    "back_slope": (-0.9, 0.9),
    "cloth1": (10, 235),
    "cloth2": (10, 235),
    "cloth3": (10, 235),
    "glasses": (0, 1),
    "glasses_size": (9, 13),
    "hat": (0, 1),
    "hat_line": (-32, -20),
    "cover": (0, 1),
    "cover_x": (-50, 50),
    "cover_y": (15, 60),
    "cover_size": (10, 22),
    "blur": (0, 0.33),
    "noise": (1, 14),
}


def random_values(source: np.random.SeedSequence, ranges: dict[str, tuple[float, float]]) -> Values:
    """A uniform random value of each parameter.

    Only `Generator.random` is used: numpy keeps its stream, so faces stay the same.

    Args:
        source: Seed.
        ranges: Name -> lowest and highest value.
    """
    draws = np.random.Generator(np.random.PCG64(source)).random(len(ranges)).tolist()
    return {
        name: low + (high - low) * draw
        for (name, (low, high)), draw in zip(ranges.items(), draws, strict=True)
    }
