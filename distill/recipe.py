"""Recipes: the options of a training, in one flat TOML file. Without torch.

`--set key=value` overrides the file, the file overrides the defaults below.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from ..documents import convert, parse_toml, read_toml
from ..errors import DataError, UsageError

_FROM_SCRATCH = ("arcface", "cosface", "elasticface")  # methods without a teacher

_SHIPPED = Path(__file__).parent / "recipes"

_CHOICES = {
    "method": ("adadistill", "centres", "features", *_FROM_SCRATCH),
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


_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple[int, ...]: "a list of whole numbers",
}


@dataclass(frozen=True)
class Recipe:
    """The options of a training. Lengths are in epochs where no unit is named.

    Attributes:
        method: "adadistill"; "centres", whose centres stay the teacher's class means; "features", which
            imitates embeddings; "arcface", "cosface" or "elasticface" from scratch.
        network: A name in `networks.NETWORKS`.
        dim: Embedding size; 0 is the teacher's, or 512 without one.
        margin: Of AdaDistill: "arcface" or "cosface".
        m: Margin: radians for ArcFace, cosine for CosFace.
        s: Scale of the logits.
        alpha: How much of a centre stays: "product" is the paper's alpha', "cosine" its alpha.
        gradient: Of the ArcFace margin: "exact", or "straight" through as in insightface.
        compat: "official": of several images of a person in a batch the last alone moves the centre.
        sigma: Standard deviation of ElasticFace's margin.
        feature_loss: "mse" or "cosine".
        weight: Factor of the feature loss.
        teacher_preset: Input contract of a teacher that carries none.
        teacher_arch: Network of a teacher checkpoint that does not name it.
        epochs: Passes over the training images.
        batch: Images per step, over all ranks and accumulated parts.
        accumulate: Parts of a batch whose gradients are added up before a step.
        lr: Peak learning rate, for `batch` as it stands.
        momentum: Of SGD.
        weight_decay: Of SGD; not applied to INT8 scales.
        schedule: "step", "polynomial", "cosine" or "constant".
        milestones: Epochs, from 0, at which "step" multiplies the rate by `gamma`.
        gamma: Factor of "step".
        power: Exponent of "polynomial".
        warmup: Share of all steps in which the rate rises.
        clip: Largest L2 norm of the gradient; 0 does not clip.
        ema: Decay of the averaged weights that are saved instead; 0 does not average.
        qat: "int8": the last epochs train on the rounding that INT8 will do.
        qat_epochs: Number of those epochs.
        shift: Largest random translation in pixels; with it the teacher embeds every batch.
        light: Largest random change of brightness and contrast, as a share; as `shift`.
        amp: Precision of the student: "auto", "bf16", "fp16" or "off".
        compile: Compile the student with torch.compile.
        verify_identities: Number of last identities that are not trained on but verified.
        verify_pairs: A pair list or .bin set to verify on instead.
        verify_every: Epochs between two verifications.
        tensorboard: A folder for TensorBoard's scalars.
        bad_images: Number of unreadable images that are skipped; one more stops the training.
        workers: Processes that read images.
        memory_mb: Decoded faces are kept in memory when they all fit.
        cache: Folder of the teacher's embeddings; by default with the checkpoint, until the end.
        checkpoint_s: Seconds between two checkpoints.
        seed: Of weights, order and augmentation.
    """

    method: str = "adadistill"
    network: str = "mobilefacenet"
    dim: int = 0

    margin: str = "arcface"
    m: float = 0.45
    s: float = 64.0
    alpha: str = "product"
    gradient: str = "exact"
    compat: str = ""
    sigma: float = 0.0125
    feature_loss: str = "mse"
    weight: float = 1.0

    teacher_preset: str = ""
    teacher_arch: str = ""

    epochs: int = 26
    batch: int = 512
    accumulate: int = 1
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "step"
    milestones: tuple[int, ...] = (7, 13, 19, 24)
    gamma: float = 0.1
    power: float = 1.0
    warmup: float = 0.0
    clip: float = 5.0
    ema: float = 0.0

    qat: str = ""
    qat_epochs: int = 2

    shift: int = 0
    light: float = 0.0

    amp: str = "auto"
    compile: bool = False
    verify_identities: int = 0
    verify_pairs: str = ""
    verify_every: int = 1
    tensorboard: str = ""
    bad_images: int = 0
    workers: int = 0
    memory_mb: int = 1024
    cache: str = ""
    checkpoint_s: float = 300.0
    seed: int = 0

    def __post_init__(self) -> None:
        for key, allowed in _CHOICES.items():
            if getattr(self, key) not in allowed:
                names = ", ".join(repr(a) for a in allowed)
                raise UsageError(f"recipe: {key} is one of {names}; found {getattr(self, key)!r}")
        for key, (low, high) in _RANGES.items():
            if not low <= getattr(self, key) <= high:  # refuses NaN too
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
        """Whether the method learns from a teacher."""
        return self.method not in _FROM_SCRATCH

    @property
    def only_flips(self) -> bool:
        """Whether augmentation only flips, so that two teacher embeddings per image suffice."""
        return self.shift == 0 and self.light == 0


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with fr-edge, sorted."""
    return sorted(path.stem for path in _SHIPPED.glob("*.toml"))


def read_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        name_or_path: A shipped recipe's name, or a TOML file.
        overrides: Texts `key=value`; a later one overrides an earlier one.

    Raises:
        UsageError: The recipe does not exist, has an unknown key (the nearest one is named), or a
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
        values[key.strip()] = _parse_value(value.strip())
    return make_recipe(values)


def make_recipe(values: Mapping[str, Any]) -> Recipe:
    """A recipe from plain values, as TOML or a bundle's history holds them.

    Args:
        values: Key -> value; keys that are missing take their default.

    Raises:
        UsageError: As `read_recipe`.
    """
    types = get_type_hints(Recipe)
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in types:
            near = difflib.get_close_matches(key, types, 1, 0.4)
            raise UsageError(
                f"a recipe has no key {key!r}",
                f"did you mean {near[0]!r}?" if near else f"keys: {', '.join(types)}",
            )
        try:
            checked[key] = convert(value, types[key], "recipe")
        except DataError as error:
            kind = _KINDS[types[key]]
            raise UsageError(f"recipe: {key} is {kind}; found {value!r}") from error
    return Recipe(**checked)


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


def _parse_value(text: str) -> Any:
    """A value as TOML reads it; text that is not TOML is a string."""
    try:
        return parse_toml(f"value = {text}")["value"]
    except ValueError:
        return text
