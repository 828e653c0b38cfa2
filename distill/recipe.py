"""Recipes: every knob of a training, in one flat TOML file.

`--set key=value` wins over the file, the file over the defaults below. Knows nothing of torch.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..documents import parse_toml, read_toml
from ..errors import DataError, UsageError

METHODS = ("adadistill", "centres", "features", "arcface", "cosface", "elasticface")

FROM_SCRATCH = ("arcface", "cosface", "elasticface")

_SHIPPED = Path(__file__).parent / "recipes"

_CHOICES = {
    "method": METHODS,
    "margin": ("arcface", "cosface"),
    "alpha": ("product", "cosine"),
    "gradient": ("exact", "straight"),
    "compat": ("", "official"),
    "feature_loss": ("mse", "cosine"),
    "schedule": ("step", "polynomial", "cosine", "constant"),
    "amp": ("auto", "bf16", "fp16", "off"),
    "qat": ("", "int8"),
}

_RANGES: dict[str, tuple[float, float]] = {
    "dim": (0, 4096),
    "m": (0, 1.5),
    "s": (1, 256),
    "sigma": (0, 1),
    "weight": (0, 1e6),
    "epochs": (1, 10_000),
    "qat_epochs": (1, 10_000),
    "batch": (2, 1 << 20),
    "accumulate": (1, 4096),
    "lr": (1e-8, 100),
    "momentum": (0, 0.9999),
    "weight_decay": (0, 1),
    "warmup": (0, 1),
    "gamma": (0, 1),
    "power": (0, 10),
    "clip": (0, 1e6),
    "ema": (0, 0.99999),
    "shift": (0, 56),
    "light": (0, 1),
    "verify_identities": (0, 1 << 30),
    "verify_every": (1, 10_000),
    "bad_images": (0, 1 << 30),
    "workers": (0, 256),
    "memory_mb": (0, 1 << 30),
    "checkpoint_s": (0, 1e6),
    "seed": (0, (1 << 31) - 1),
}


@dataclass(frozen=True)
class Recipe:
    """One training. Lengths are in epochs, `lr` is the peak rate for `batch` as it stands."""

    method: str = "adadistill"
    network: str = "mobilefacenet"
    dim: int = 0
    """Embedding size; 0 is the teacher's, or 512 without one."""

    margin: str = "arcface"
    m: float = 0.45
    s: float = 64.0
    alpha: str = "product"
    """How much of a centre stays: "product" is the paper's alpha', "cosine" its alpha."""
    gradient: str = "exact"
    """Of the ArcFace margin: "exact", or "straight" through as insightface does."""
    compat: str = ""
    """"official": of several images of one person in a batch the last moves the centre alone."""
    sigma: float = 0.0125
    """ElasticFace: spread of the margin."""
    feature_loss: str = "mse"
    weight: float = 1.0
    """Of the feature loss."""

    teacher_preset: str = ""
    """The contract of a teacher that does not carry one."""
    teacher_arch: str = ""
    """The network of a teacher checkpoint that does not name it."""

    epochs: int = 26
    batch: int = 512
    """Images per step, over all ranks and accumulated parts."""
    accumulate: int = 1
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "step"
    milestones: tuple[int, ...] = (7, 13, 19, 24)
    gamma: float = 0.1
    power: float = 1.0
    warmup: float = 0.0
    """Share of all steps in which the rate climbs."""
    clip: float = 5.0
    """Largest L2 norm of the gradient; 0 does not clip."""
    ema: float = 0.0
    """Decay of the averaged weights that are saved instead; 0 does not average."""

    qat: str = ""
    """"int8": the last epochs train on the rounding that INT8 will do."""
    qat_epochs: int = 2

    shift: int = 0
    """Random translation in pixels; with it the teacher sees every image anew."""
    light: float = 0.0
    """Random brightness and contrast, as a share; as `shift`."""

    amp: str = "auto"
    compile: bool = False
    verify_identities: int = 0
    """The last so many identities are not trained on but verified."""
    verify_pairs: str = ""
    """A pair list or .bin set to verify on instead."""
    verify_every: int = 1
    """Epochs."""
    tensorboard: str = ""
    """A folder for TensorBoard's scalars."""
    bad_images: int = 0
    """So many images that cannot be read are skipped; one more stops the run."""
    workers: int = 0
    memory_mb: int = 1024
    """Decoded faces are kept in memory when they all fit."""
    cache: str = ""
    """Where the teacher's embeddings are kept; by default with the checkpoint, until the end."""
    checkpoint_s: float = 300.0
    seed: int = 0

    def __post_init__(self) -> None:
        for key, allowed in _CHOICES.items():
            if getattr(self, key) not in allowed:
                found = getattr(self, key)
                names = ", ".join(repr(a) for a in allowed)
                raise UsageError(f"recipe: {key} is one of {names}; found {found!r}")
        for key, (low, high) in _RANGES.items():
            # Written so that NaN is refused too.
            if not low <= getattr(self, key) <= high:
                raise UsageError(
                    f"recipe: {key} is {getattr(self, key)}, outside {low:g} to {high:g}"
                )
        if any(m < 0 for m in self.milestones) or list(self.milestones) != sorted(self.milestones):
            raise UsageError(f"recipe: milestones are epochs in order; found {self.milestones}")
        if self.qat and self.qat_epochs >= self.epochs:
            raise UsageError(
                f"recipe: qat_epochs is {self.qat_epochs} of {self.epochs} epochs; the first ones"
                " train without rounding"
            )
        if self.batch % self.accumulate:
            raise UsageError(
                f"recipe: batch {self.batch} does not split into {self.accumulate} equal parts"
            )

    @property
    def needs_teacher(self) -> bool:
        return self.method not in FROM_SCRATCH

    @property
    def only_flips(self) -> bool:
        """Whether an image has exactly two forms, so that the teacher need see each only once."""
        return self.shift == 0 and self.light == 0


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with fr-edge."""
    return sorted(path.stem for path in _SHIPPED.glob("*.toml"))


def read_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A shipped recipe by name, or a TOML file; `overrides` are texts `key=value`.

    Raises UsageError for a recipe that is not there, an unknown key (with the nearest one), or a
    value of the wrong type or range.
    """
    path = _find(name_or_path)
    try:
        values = read_toml(path)
    except DataError as error:
        raise UsageError(error.message) from error
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set takes key=value, found {text!r}", "--set epochs=10")
        values[key.strip()] = _value(value.strip())
    return recipe_from_json(values)


def recipe_from_json(values: Mapping[str, Any]) -> Recipe:
    """A recipe from plain values; raises UsageError as `read_recipe` does."""
    known = {f.name: f.default for f in fields(Recipe)}
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.4)
            raise UsageError(
                f"a recipe has no key {key!r}",
                f"did you mean {near[0]!r}?" if near else f"keys: {', '.join(known)}",
            )
        checked[key] = _typed(key, value, known[key])
    return Recipe(**checked)


def recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    """Every key with its value, as the bundle keeps it."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(recipe).items()}


def _find(name_or_path: str | Path) -> Path:
    shipped = _SHIPPED / f"{name_or_path}.toml"
    if str(name_or_path) in shipped_recipes():
        return shipped
    path = Path(name_or_path)
    if path.is_file():
        return path
    raise UsageError(
        f"there is no recipe {name_or_path}",
        f"give a TOML file or one of {', '.join(shipped_recipes())}",
    )


def _value(text: str) -> Any:
    """As TOML would read it; what TOML cannot read is a string."""
    try:
        return parse_toml(f"value = {text}")["value"]
    except ValueError:
        return text


def _typed(key: str, value: Any, default: Any) -> Any:
    if isinstance(default, tuple):
        if isinstance(value, list) and all(type(v) is int for v in value):
            return tuple(value)
        raise UsageError(f"recipe: {key} is a list of whole numbers; found {value!r}")
    if type(default) is float and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
        raise UsageError(f"recipe: {key} is {names[type(default)]}; found {value!r}")
    return value
