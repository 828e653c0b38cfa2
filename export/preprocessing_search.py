"""Finds the input contract that a network was trained with, from faces of known identity.

The likely ways to make a face an input are tried; the right one separates genuine from impostor
scores best. Two that differ by less than chance, or by less than 1 % of d', are called a tie.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..arrays import F32, I64
from ..bundle.bundle import open_bundle
from ..errors import FacesError
from ..faces.contract import (
    ALIGNED_SIZE,
    PRESETS,
    ContractVariant,
    InputSpec,
    contract_variants,
)
from ..faces.embedding_log import logged_network
from ..faces.quality import faces_for
from ..faces.sources import Faces
from ..graph.load import contract_of, image_input
from ..graph.run import Embed, onnx_embedder
from ..metrics.decidability import (
    SAME_CONTRACT,
    SEPARATES,
    PairSums,
    d_prime,
    d_prime_lead,
    pair_sums,
    separates_better,
)
from ..onnx_file import read_onnx
from ..progress import Track, silent
from ..trial_run import ensure_runnable
from .canonicalize import tidy

_SCOUTS = 48  # images on which every variant is tried

_HOPELESS = 0.5  # of the best d': variants below are not tried on all images

_BATCH = 16  # faces per run

_MIN_IDENTITIES = 8


@dataclass(frozen=True)
class ContractCandidate:
    """One way to feed the network, and how well it separates people.

    Attributes:
        name: The normalization, see `faces.contract.NORMALIZATIONS`.
        channels: "RGB", "BGR" or "GREY".
        input: The whole contract.
        view: How the faces were turned, see `faces.contract.VIEWS`.
        d_prime: Decidability of genuine and impostor scores.
        tied: Whether it cannot be told from the best.
        clearly_worse: Whether the best one separates the people better beyond doubt.
    """

    name: str
    channels: str
    input: InputSpec
    view: str
    d_prime: float
    tied: bool
    clearly_worse: bool = False


@dataclass(frozen=True)
class PreprocessingResult:
    """Which input contract the faces show.

    Attributes:
        verdict: A sentence for people.
        right: Whether the declared contract is the best or ties with it; None where none is
            declared, no candidate separates people, or it is behind by no more than chance allows.
        separates: Whether the best candidate tells these people apart.
        declared: The contract that the file or bundle declares, if any.
        identities: People in the trial.
        images: Images in the trial.
        ranking: Candidates, the best first.
    """

    verdict: str
    right: bool | None
    separates: bool
    declared: InputSpec | None
    identities: int
    images: int
    ranking: tuple[ContractCandidate, ...]

    @property
    def best(self) -> ContractCandidate:
        return self.ranking[0]


@dataclass(frozen=True, eq=False)
class _Trial:
    """How well a network separates people when it is fed in one way."""

    variant: ContractVariant
    sums: PairSums

    @property
    def d_prime(self) -> float:
        return d_prime(self.sums)


def find_preprocessing(
    source: str | Path, faces: Faces, *, limit: int = 160, track: Track = silent
) -> PreprocessingResult:
    """Find the input contract of a bundle's `model.onnx` or of an ONNX file.

    Args:
        source: A bundle or an ONNX file.
        faces: Faces of at least 8 people with two images each.
        limit: Images at most.
        track: Reports progress.

    Returns:
        The candidates and a verdict, also on the contract that the source declares.

    Raises:
        BundleError: The bundle cannot be used.
        ModelError: The network cannot be used.
        FacesError: There are too few people.
        Interrupted: A signal came; the same call goes on with what was embedded.
    """
    source = Path(source)
    bundle = open_bundle(source) if source.is_dir() else None
    file = bundle.file("model.onnx") if bundle else source
    given = read_onnx(file, side_files=bundle is None)
    ensure_runnable(given, str(source))
    model = tidy(given)
    face = image_input(model)
    size = (face.height or ALIGNED_SIZE, face.width or ALIGNED_SIZE)
    declared = bundle.spec if bundle else contract_of(model)
    embed = onnx_embedder(model.SerializeToString())
    grey = face.channels == 1
    with logged_network(embed, (1 if grey else 3, *size), faces, "contracts") as logged:
        return rank_contracts(logged, size, faces, declared, grey=grey, limit=limit, track=track)


def rank_contracts(
    embed: Embed,
    size: tuple[int, int],
    faces: Faces,
    declared: InputSpec | None = None,
    *,
    grey: bool = False,
    limit: int = 160,
    track: Track = silent,
) -> PreprocessingResult:
    """Find the input contract of a network that is given as a function.

    Args:
        embed: `(N, 3, H, W) float32 -> (N, D) float32`.
        size: H and W of the network's input, in pixels.
        faces: Faces of at least 8 people with two images each.
        declared: The contract that is declared, if any.
        grey: Whether the network takes one channel, where none is declared.
        limit: Images at most.
        track: Reports progress.

    Returns:
        The candidates and a verdict.

    Raises:
        FacesError: There are too few people.
    """
    faces = faces_for(faces, InputSpec(height=size[0], width=size[1]))
    picks, labels = _pick_images(faces, limit)
    images = np.stack([faces.read(index) for index in picks])

    embedded: dict[ContractVariant, list[F32]] = {}  # whole batches serve later trials

    def trial(variant: ContractVariant, count: int) -> _Trial:
        parts = embedded.get(variant, [])[: count // _BATCH]
        parts += [
            embed(variant.inputs(images[start : min(start + _BATCH, count)]))
            for start in range(len(parts) * _BATCH, count, _BATCH)
        ]
        embedded[variant] = parts[: count // _BATCH]
        return _Trial(variant, pair_sums(np.concatenate(parts), labels[:count]))

    def trials(variants: list[ContractVariant], label: str, count: int) -> list[_Trial]:
        return [trial(variant, count) for variant in track(variants, label, len(variants))]

    few = min(_SCOUTS, len(images))
    usual = InputSpec(channels="GREY" if grey else "RGB")
    spec = replace(declared or usual, height=size[0], width=size[1])
    variants = [v for v in contract_variants(spec) if v.view == "upright"]
    scouts = trials(variants, "trying contracts, upright", few)
    best = max(scouts, key=_score).variant
    views = [v for v in contract_variants(best.spec) if v.view != "upright"]
    turned = trials([replace(v, name=best.name) for v in views], "turning the faces", few)
    view = _better_view(max(scouts, key=_score), turned)
    if view != "upright":
        variants = [replace(variant, view=view) for variant in variants]
        scouts = trials(variants, f"trying contracts, {view}", few)
        turned = [other for other in turned if other.variant.view != view]
    # All images for those that have a chance; a few are enough for the others.
    limit_d_prime = _HOPELESS * max(map(_score, scouts))
    hopeful = [scout for scout in scouts if scout.d_prime >= limit_d_prime]
    finals = trials([scout.variant for scout in hopeful], "trying the best", len(images))
    rest = [other for other in [*scouts, *turned] if other not in hopeful]
    return _judge(_rank(finals, rest), declared, len(set(labels)), len(images))


def same_input(a: InputSpec, b: InputSpec) -> bool:
    """Tell whether two contracts make the same input of a face.

    Args:
        a: A contract.
        b: Another.

    Returns:
        Whether they agree in all but the length of the network's output.
    """
    return replace(a, l2_normalised=False) == replace(b, l2_normalised=False)


def describe_contract(candidate: ContractCandidate) -> str:
    """Describe a candidate to people.

    Args:
        candidate: The candidate.

    Returns:
        Its contract, with its preset where it has one.
    """
    text, preset = candidate.input.describe(), _preset_of(candidate.input)
    return f"--preset {preset} ({text})" if preset and candidate.channels == "RGB" else text


def contract_options(spec: InputSpec) -> str:
    """Give the options of `fr-edge export` that declare a contract.

    Args:
        spec: The contract.

    Returns:
        `--preset raw`, or mean, std, channels and size.
    """
    preset = _preset_of(spec)
    mean, std = (",".join(f"{v:g}" for v in values) for values in (spec.mean, spec.std))
    options = [f"--preset {preset}" if preset else f"--mean {mean} --std {std}"]
    if spec.channels != "RGB":
        options.append(f"--channels {spec.channels}")
    if (spec.height, spec.width) != (ALIGNED_SIZE, ALIGNED_SIZE):
        options.append(f"--size {spec.height}x{spec.width}")
    return " ".join(options)


def _preset_of(spec: InputSpec) -> str | None:
    """The preset for aligned faces with this mean and std."""
    for name, preset in PRESETS.items():
        side = max(preset.height, preset.width)
        if (preset.mean, preset.std, side) == (spec.mean, spec.std, ALIGNED_SIZE):
            return name
    return None


def _score(trial: _Trial) -> float:
    return trial.d_prime


def _better_view(upright: _Trial, turned: list[_Trial]) -> str:
    """The view in which people are separated better beyond doubt; a mirrored face is no worse."""
    best = max(turned, key=_score)
    if best.variant.view == "mirrored" or best.d_prime <= upright.d_prime:
        return "upright"
    return best.variant.view if d_prime_lead(best.sums, upright.sums)[0] > 0 else "upright"


def _rank(finals: list[_Trial], rest: list[_Trial]) -> tuple[ContractCandidate, ...]:
    """Best first; those that tie with the best in the order of `contract_variants`."""
    first = max(finals, key=_score)

    def ties(trial: _Trial) -> bool:
        gap = first.d_prime - trial.d_prime
        return (
            gap <= SAME_CONTRACT * abs(first.d_prime)
            or d_prime_lead(first.sums, trial.sums)[0] <= 0
        )

    tied = [trial for trial in finals if ties(trial)]
    others = [trial for trial in [*finals, *rest] if trial not in tied]
    return tuple(
        ContractCandidate(
            trial.variant.name,
            trial.variant.spec.channels,
            trial.variant.spec,
            trial.variant.view,
            trial.d_prime,
            trial in tied,
            # Those that had no chance were tried on a few faces and have half of the best d' at most.
            trial not in tied and (trial in rest or separates_better(first.sums, trial.sums)),
        )
        for trial in [*tied, *sorted(others, key=_score, reverse=True)]
    )


def _judge(
    ranking: tuple[ContractCandidate, ...],
    declared: InputSpec | None,
    identities: int,
    images: int,
) -> PreprocessingResult:
    best = ranking[0]
    tied = [c for c in ranking if c.tied and c.view == best.view]
    separates = best.d_prime >= SEPARATES
    right, doubted = None, False
    if declared is not None and separates:
        own = next(
            (c for c in ranking if c.view == best.view and same_input(c.input, declared)), None
        )
        doubted = own is not None and not own.tied and not own.clearly_worse
        right = None if doubted else own is not None and own.tied
    if separates:
        verdict = f"trained with {' or '.join(map(describe_contract, tied))}"
        if len(tied) > 1:
            verdict += f": a tie, d' {best.d_prime:.2f}, the faces cannot tell them apart"
        if best.view not in ("upright", "mirrored"):
            verdict += f"; the faces are {best.view}"
        if declared is not None and doubted:
            verdict += (
                f"; the declared contract ({declared.describe()}) is behind by too little to tell:"
                " give faces of more people"
            )
        elif declared is not None and not right:
            verdict += f"; the declared contract ({declared.describe()}) is wrong"
    else:
        verdict = (
            f"no candidate separates these people (best d' {best.d_prime:.2f}): the faces are not"
            " aligned, the labels are wrong, or the network does not recognize people"
        )
    return PreprocessingResult(verdict, right, separates, declared, identities, images, ranking)


def _pick_images(faces: Faces, limit: int) -> tuple[list[int], I64]:
    """Images in turns of two per identity, many identities before many images; their labels."""
    members: dict[int, list[int]] = {}
    for index, label in enumerate(faces.labels):
        members.setdefault(label, []).append(index)
    people = [indices for indices in members.values() if len(indices) > 1]
    if len(people) < _MIN_IDENTITIES:
        raise FacesError(
            f"{faces.where} has {len(people)} identities with two images or more;"
            f" {_MIN_IDENTITIES} are needed",
            "give a folder with one sub-folder of images per identity",
        )
    count = min(len(people), max(_MIN_IDENTITIES, limit // 2))
    people = [people[i * len(people) // count] for i in range(count)]
    each = max(2, limit // count)
    # The scouts are the first images: pairs of as many people as there are.
    turns = [
        (number, index)
        for start in range(0, each, 2)
        for number, indices in enumerate(people)
        for index in indices[start : min(start + 2, each)]
    ]
    return [index for _, index in turns], np.array([number for number, _ in turns], np.int64)
