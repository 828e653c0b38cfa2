"""Recipes: the options of a training, in one flat TOML file. Without torch.

`--set key=value` overrides the file, the file overrides the defaults below.
"""

import difflib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from os.path import expanduser
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ..documents import convert, parse_toml, read_toml
from ..errors import DataError, UsageError

FROM_SCRATCH = ("arcface", "cosface", "elasticface", "adaface")  # losses without a teacher
LOSSES = ("adadistill", "centres", "mse", "cosine", "relational", "bank", *FROM_SCRATCH)

_SHIPPED = Path(__file__).parent / "recipes"
_MAX_WEIGHT = 1e6  # of a loss

_CHOICES = {
    "margin": ("arcface", "cosface", "adaface"),
    "alpha": ("product", "cosine"),
    "gradient": ("exact", "straight"),
    "compat": ("", "official"),
    "output": ("affine", "plain"),
    "teacher_views": ("mean", "each"),
    "optimizer": ("sgd", "adamw", "muon"),
    "schedule": ("step", "polynomial", "cosine", "constant"),
    "amp": ("auto", "bf16", "fp16", "off"),
    "qat": ("", "int8"),
}

_RANGES: dict[str, tuple[float, float]] = {
    "dim": (0, 4096),
    "m": (0, 1.5),
    "s": (1, 256),
    "sigma": (0, 1),
    "sample": (1e-4, 1),
    "bank_s": (1, 256),
    "bank_mb": (1, 1 << 20),
    "norm_batch": (0, 1 << 20),
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
    "crop": (0, 0.5),
    "blur": (0, 8),
    "low_resolution": (0, 0.95),
    "occlusion": (0, 0.5),
    "augment": (0, 1),
    "per_identity": (0, 1024),
    "verify_identities": (0, 1 << 30),
    "verify_every": (1e-3, 10_000),
    "patience": (0, 10_000),
    "bad_images": (0, 1 << 30),
    "workers": (0, 256),
    "memory_mb": (0, 1 << 30),
    "checkpoint_s": (0, 1e6),
    "seed": (0, (1 << 31) - 1),
}

_OTHER_NAMES = {  # what other trainers call a key -> ours
    "method": "losses",
    "loss": "losses",
    "learning_rate": "lr",
    "batch_size": "batch",
    "num_epochs": "epochs",
    "embedding_size": "dim",
    "num_workers": "workers",
    "backbone": "network",
    "wd": "weight_decay",
    "sample_rate": "sample",
    "resume": "init",
}

_LISTS = (tuple[int, ...], tuple[str, ...])
_PATHS = {"init", "exclude", "data_report", "tensorboard", "csv", "cache"}
_OWN_M = {"cosface": 0.35, "adaface": 0.4}  # arXiv 2407.01332, section 4.1; arXiv 2204.00964

_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple[int, ...]: "a list of whole numbers",
    tuple[str, ...]: "a list of texts",
}


@dataclass(frozen=True)
class Recipe:
    """The options of a training. Lengths are in epochs where no unit is named.

    Attributes:
        losses: Names of losses that are added up, each as "name" or "name:weight": "adadistill";
            "centres", whose centres stay the teacher's class means; "mse", "cosine" to its embedding;
            "relational", similarities within the batch; "bank", to the teacher's embeddings of all
            images; "arcface", "cosface", "elasticface" or "adaface", whose centres are learned.
        network: A name in `networks.NETWORKS`.
        output: Of a student with a teacher: "affine" ends in a BatchNorm with weight and bias, without
            which its embeddings have zero mean and cannot equal the teacher's; "plain" is the paper's.
        init: Weights to start from: a bundle or a checkpoint of this network.
        dim: Embedding size; 0 is the teacher's, or 512 without one. A smaller one learns the teacher's
            principal components, a larger one through a linear layer that is thrown away.
        margin: Of AdaDistill: "arcface", "cosface", or "adaface", by the length of the embedding.
        m: Margin: radians, cosine for CosFace (0.35 by default), both for AdaFace (0.4).
        s: Scale of the logits.
        sample: Share of the learned centres, besides those of the batch, that a step compares with.
        alpha: How much of a centre stays: "product" is the paper's alpha', "cosine" its alpha.
        gradient: Of the ArcFace margin: "exact", or "straight" through as in insightface.
        compat: "official": of several images of a person in a batch the last alone moves the centre.
        sigma: Standard deviation of ElasticFace's margin.
        bank_s: Scale of the similarities to the bank: the softmax's inverse temperature.
        bank_mb: Memory for the bank: all images, else the classes' means, else a sample of them.
        teacher_views: "mean": the target is the mean of the teacher's embeddings of an image and its
            mirror, of unit length; "each": that of the view that the student sees.
        teacher_preset: Input contract of a teacher that carries none.
        teacher_arch: Network of a teacher checkpoint that does not name it.
        epochs: Passes over the training images.
        batch: Images per step, over all ranks and accumulated parts.
        accumulate: Parts of a batch whose gradients are added up before a step.
        lr: Peak learning rate, for `batch` as it stands.
        optimizer: "sgd", "adamw", or "muon": orthogonal steps of weights that are matrices, else AdamW's.
        momentum: Of SGD.
        weight_decay: Of the optimizer; not applied to INT8 scales.
        schedule: "step", "polynomial", "cosine" or "constant".
        milestones: Epochs, from 0, at which "step" multiplies the rate by `gamma`.
        gamma: Factor of "step".
        power: Exponent of "polynomial".
        warmup: Share of all steps in which the rate rises.
        clip: Largest L2 norm of the gradient; 0 does not clip.
        ema: Decay of the averaged weights that are saved instead; 0 does not average.
        qat: "int8": the last epochs train on the rounding that INT8 will do.
        qat_epochs: Number of those epochs.
        norm_batch: Most images over which BatchNorm takes its statistics in training; 0 is all of
            a process's part, and on GPUs all of the batch.
        shift: Largest random translation in pixels. This and the next five change what the student
            sees; the teacher's target stays that of the clean image.
        light: Largest random change of brightness and contrast, as a share.
        crop: Largest share of the height and width that a random crop cuts away; the rest is black.
        blur: Largest standard deviation of a Gaussian blur, in pixels.
        low_resolution: Largest share of the resolution that is lost.
        occlusion: Largest share of the area that a grey rectangle hides.
        augment: Probability with which each of these six applies to an image.
        per_identity: Images of each person that stand together in a batch; 0 shuffles all images.
        balanced: Everybody has equally many images in an epoch, which is as long as without: those
            of people with few come several times, of people with many a part of them.
        amp: Precision of the student: "auto", "bf16", "fp16" or "off".
        compile: Compile the student with torch.compile.
        exclude: A list of images that are not trained on, as `data_report` writes one.
        data_report: A folder for a report on the training images, and a list of those that may not
            belong where they are.
        verify_identities: Number of last identities that are not trained on but verified.
        verify_pairs: Pair lists, .bin sets or folders of IJB to verify on instead.
        verify_every: Epochs between two verifications; 0.5 is twice an epoch.
        best: Figure whose best verification gives the weights that are saved, for example "accuracy",
            "accuracy_lfw" or "tar@1e-4_IJBC"; by default the last weights are saved.
        patience: Verifications without a better figure after which the training ends; 0 never does.
        tensorboard: A folder for TensorBoard's scalars.
        csv: A file for the curves, a row a step.
        bad_images: Number of unreadable images that are skipped; one more stops the training.
        workers: Processes that read images.
        memory_mb: Decoded faces are kept in memory when they all fit.
        cache: Folder of the teacher's embeddings; by default with the checkpoint, until the end.
        checkpoint_s: Seconds between two checkpoints.
        seed: Of weights, order and augmentation.
    """

    losses: tuple[str, ...] = ("adadistill",)
    network: str = "mobilefacenet"
    output: str = "affine"
    init: str = ""
    dim: int = 0
    margin: str = "arcface"
    m: float = 0.45
    s: float = 64.0
    sample: float = 1.0
    alpha: str = "product"
    gradient: str = "exact"
    compat: str = ""
    sigma: float = 0.0125
    bank_s: float = 14.0
    bank_mb: int = 256
    teacher_views: str = "mean"
    teacher_preset: str = ""
    teacher_arch: str = ""
    epochs: int = 26
    batch: int = 512
    accumulate: int = 1
    lr: float = 0.1
    optimizer: str = "sgd"
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
    norm_batch: int = 0
    shift: int = 0
    light: float = 0.0
    crop: float = 0.0
    blur: float = 0.0
    low_resolution: float = 0.0
    occlusion: float = 0.0
    augment: float = 1.0
    per_identity: int = 0
    balanced: bool = False
    amp: str = "auto"
    compile: bool = False
    exclude: str = ""
    data_report: str = ""
    verify_identities: int = 0
    verify_pairs: tuple[str, ...] = ()
    verify_every: float = 1.0
    best: str = ""
    patience: int = 0
    tensorboard: str = ""
    csv: str = ""
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
                    f"recipe: {key} is {getattr(self, key)}, outside {low:.10g} to {high:.10g}"
                )
        loss_weights(self.losses)
        if any(m < 0 for m in self.milestones) or list(self.milestones) != sorted(self.milestones):
            raise UsageError(f"recipe: milestones are epochs in order; found {self.milestones}")
        if self.qat and self.qat_epochs >= self.epochs:
            first = f"{self.epochs} epochs; the first ones train without rounding"
            raise UsageError(f"recipe: qat_epochs is {self.qat_epochs} of {first}")
        if self.qat and (self.best or self.patience):
            raise UsageError(
                "recipe: best and patience choose among weights that INT8's rounding has not trained",
                "--set best= --set patience=0, or --set qat=",
            )
        people = f"do not hold {self.per_identity} images each of a whole number of people"
        parts = f"do not split into {self.accumulate} equal parts"
        for number, problem in ((self.per_identity, people), (self.accumulate, parts)):
            if number and self.batch % number:
                raise UsageError(f"recipe: the {self.batch} images of a batch {problem}")

    @property
    def needs_teacher(self) -> bool:
        """Whether one of the losses learns from a teacher."""
        return bool(set(loss_weights(self.losses)) - set(FROM_SCRATCH))


def loss_weights(losses: Sequence[str]) -> dict[str, float]:
    """The weight of each loss.

    Args:
        losses: Each as "name" or "name:weight"; the weight is 1 where none is given.

    Raises:
        UsageError: A name is unknown or comes twice, a weight is not positive, or the list is empty.
    """
    weights: dict[str, float] = {}
    for text in losses:
        name, _, given = text.partition(":")
        if name not in LOSSES:
            near = difflib.get_close_matches(name, LOSSES, 1, 0.4)
            raise UsageError(
                f"recipe: there is no loss {name!r}",
                f"did you mean {near[0]!r}?" if near else f"losses: {', '.join(LOSSES)}",
            )
        weight = 0.0
        with suppress(ValueError):
            weight = float(given or 1)
        if not 0 < weight <= _MAX_WEIGHT:
            raise UsageError(
                f"recipe: the weight of {name} is above 0, up to {_MAX_WEIGHT:.0f}; found {given!r}",
                f"{name}:20",
            )
        if name in weights:
            raise UsageError(f"recipe: the loss {name} comes twice")
        weights[name] = weight
    if not weights:
        raise UsageError("recipe: losses is empty", f"losses: {', '.join(LOSSES)}")
    return weights


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
    try:
        values = read_toml(_find(name_or_path))
    except DataError as error:
        raise UsageError(error.message) from error
    types, given = get_type_hints(Recipe), set()
    for text in overrides:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise UsageError(f"--set takes key=value, found {text!r}", "--set epochs=10")
        given.add(key)
        values[key] = _parse_value(value, types.get(key))
    if "margin" in given and "m" not in given:  # the file's m is that of the file's margin
        values.pop("m", None)
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
        if isinstance(value, Mapping):
            raise UsageError(f"a recipe has no sections; found [{key}]", "write keys without one")
        if key not in types:
            near = difflib.get_close_matches(key, [*_OTHER_NAMES, *types], 1, 0.4)
            name = _OTHER_NAMES.get(near[0], near[0]) if near else ""
            raise UsageError(
                f"a recipe has no key {key!r}",
                f"did you mean {name!r}?" if near else f"keys: {', '.join(types)}",
            )
        if types[key] in _LISTS and not isinstance(value, list | tuple):
            value = _parse_value(value, types[key]) if isinstance(value, str) else [value]
        try:
            checked[key] = convert(value, types[key], "recipe")
        except DataError as error:
            kind = _KINDS[types[key]]
            raise UsageError(f"recipe: {key} is {kind}; found {value!r}") from error
    if checked.get("margin") in _OWN_M:
        checked.setdefault("m", _OWN_M[checked["margin"]])
    for key in _PATHS & checked.keys():
        checked[key] = expanduser(checked[key])
    checked["verify_pairs"] = tuple(map(expanduser, checked.get("verify_pairs", ())))
    return Recipe(**checked)


def _find(name_or_path: str | Path) -> Path:
    shipped = shipped_recipes()
    path = _SHIPPED / f"{name_or_path}.toml" if str(name_or_path) in shipped else Path(name_or_path)
    if path.is_file():
        return path
    hint = f"give a TOML file or one of {', '.join(shipped)}"
    raise UsageError(f"there is no recipe {name_or_path}", hint)


def _parse_value(text: str, kind: Any) -> Any:
    """A value of a key as TOML reads it or people write it: .5, True, a text or list as it is."""
    if kind in _LISTS and not text.startswith("["):
        each = get_args(kind)[0]
        return [_parse_value(part.strip(), each) for part in text.split(",") if part.strip()]
    if kind is str and not text.startswith(('"', "'")):
        return text
    with suppress(ValueError):
        if kind is float:
            return float(text)
        return parse_toml(f"value = {text.lower() if kind is bool else text}")["value"]
    return text
