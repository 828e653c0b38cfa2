"""Drawn populations for `interval_coverage.py`: embeddings of people who differ, by two networks.

People differ in how alike their faces are, in how many photographs there are of them and in whom
they look like; photographs differ in quality. The second network is the first with noise and a
small drift. `TUNING` are the populations that the intervals' constants were chosen on, `FRESH` others
(docs/results/verification.md says which were looked at with which seeds).
"""

from dataclasses import dataclass

import numpy as np

from fr_edge.metrics.protocols import PairList, draw_pairs

DIM = 64
TYPES = np.random.default_rng(12345).normal(size=(500, DIM))  # what lookalikes have in common
DRIFT = np.random.default_rng(54321).normal(size=DIM)
BINS = 400_000  # of cosines, for the truth
FOLDS = 10  # of pair lists
LISTED_EACH = 2  # genuine pairs that a pair list has of a person


@dataclass(frozen=True)
class Scenario:
    """A population.

    Attributes:
        spread: Mean distance of a face from its person's centre, by the centre's length.
        shape: Of the gamma distribution of people's spread; None if all have the same.
        lognormal: Standard deviation of the logarithm of people's spread, in place of the gamma.
        alike: Squared cosine of a person's centre with its type's.
        types: Number of types.
        zipf: Exponent of how unequally frequent the types are.
        photographs: Of a person: "five", "pareto" (2 to 40), "lognormal" (1 to 50), "two" (most have
            two, one in ten 50).
        quality: Standard deviation of the logarithm of how far one photograph lies off.
        poor: Share of photographs that lie off `poor_times` as far.
        poor_times: How much farther.
        tied: How much more people with many photographs spread, as an exponent.
        noise: Of the second network, by the length of an embedding.
        drift: Of the second network, the same for all faces.
        poor_noise: How many times as much noise it has on poor photographs.
    """

    spread: float = 0.65
    shape: float | None = 6.0
    lognormal: float = 0.0
    alike: float = 0.0
    types: int = 200
    zipf: float = 0.0
    photographs: str = "pareto"
    quality: float = 0.25
    poor: float = 0.0
    poor_times: float = 1.8
    tied: float = 0.0
    noise: float = 0.12
    drift: float = 0.04
    poor_noise: float = 1.0


@dataclass(frozen=True)
class Clusters:
    """A population of another making: groups of people, pairs of lookalikes, heavy tails.

    A person's centre lies around that of a group, groups are unequally frequent and unequally tight. One
    person in eight has a double. Photographs follow Student's t distribution around a path that a
    person walks over the years, so neighbours in time are more alike. Coordinates are unequally
    wide. The second network rounds the first one's coordinates and is far off on few faces.

    Attributes:
        groups: Number of groups.
        tight: Squared cosine of a person's centre with its group's, on average.
        double: Squared cosine of two doubles.
        spread: Median distance of a photograph from the path, by the centre's length.
        tails: Degrees of freedom of that distance over photographs and people.
        step: The second network's rounding step, by the coordinates' width.
        astray: Share of faces on which it is off five times as far.
    """

    groups: int = 12
    tight: float = 0.3
    double: float = 0.45
    spread: float = 0.3
    tails: float = 6.0
    step: float = 0.5
    astray: float = 0.03

    def draw(self, people: int, random: np.random.Generator) -> "Sample":
        """Faces of so many people by both networks."""
        shape = np.random.default_rng(98765)  # of the population, the same in every draw
        kind = _unit(shape.normal(size=(self.groups, DIM)))
        tight = np.clip(self.tight * shape.gamma(4.0, 0.25, self.groups), 0, 0.8)
        width = np.exp(shape.normal(0, 0.5, DIM))
        often = 1 / np.arange(1.0, self.groups + 1)
        faces = 1 + random.negative_binomial(1.2, 0.25, people)
        groups = random.choice(self.groups, people, p=often / often.sum())
        own = _unit(random.normal(size=(people, DIM)) * width)
        share = tight[groups][:, None]
        centre = _unit(np.sqrt(share) * kind[groups] + np.sqrt(1 - share) * own)
        for first in range(0, people - 1, 16):  # a double for every sixteenth person
            mixed = np.sqrt(self.double) * centre[first] + np.sqrt(1 - self.double) * own[first + 1]
            centre[first + 1], groups[first + 1] = _unit(mixed[None])[0], groups[first]
        labels = np.repeat(np.arange(people), faces)
        each = self.spread * np.sqrt(self.tails / random.chisquare(self.tails, people))[labels]
        far = np.sqrt(self.tails / random.chisquare(self.tails, len(labels)))
        noise = _unit(random.normal(size=(len(labels), DIM)) * width)
        year = random.normal(size=len(labels))  # on the person's path
        path = _unit(random.normal(size=(people, DIM)))[labels] * (0.25 * year)[:, None]
        old = _unit(centre[labels] + path + (each * far)[:, None] * noise)
        scale = self.step * old.std(axis=0)
        off = np.where(random.random(len(labels)) < self.astray, 5.0, 1.0)[:, None]
        new = _unit(old + off * (np.round(old / scale + 0.3) * scale - old))
        return Sample(
            old.astype(np.float32),
            new.astype(np.float32),
            labels,
            {
                "poor": far > np.quantile(far, 0.75),
                "young": year < -0.7,
                "common": (groups == 0)[labels],
            },
        )


TUNING = {
    "even": Scenario(spread=0.95, shape=None, photographs="five", quality=0.0),
    "uneven": Scenario(),
    "alike": Scenario(alike=0.5),
    "hard": Scenario(shape=3.0, alike=0.6),
    "tied": Scenario(shape=10.0, alike=0.3, tied=0.15),
}

FRESH = {
    "snapshots": Scenario(0.75, None, 0.35, photographs="lognormal", quality=0.35, noise=0.2),
    "families": Scenario(
        0.7, 8.0, alike=0.6, types=500, zipf=0.5, photographs="lognormal", noise=0.15
    ),
    "celebrities": Scenario(0.7, None, 0.25, alike=0.3, photographs="two", noise=0.15),
    "quality": Scenario(0.55, 8.0, alike=0.3, poor=0.2, poor_noise=2.5, photographs="lognormal"),
    "crowd": Scenario(0.6, 5.0, alike=0.5, types=60, zipf=1.0, noise=0.2, drift=0.1),
    "lossless": Scenario(0.7, None, 0.3, alike=0.4, zipf=0.5, noise=0.02, drift=0.005),
}

SCENARIOS: dict[str, "Scenario | Clusters"] = {
    **TUNING,
    **FRESH,
    "clusters": Clusters(),
    "distinct": Scenario(0.35, 8.0, alike=0.3, photographs="five"),  # errors of lookalikes alone
}


@dataclass(frozen=True, eq=False)
class Sample:
    """Faces of drawn people.

    Attributes:
        old: Embeddings by the first network, `(N, 64) float32`.
        new: Embeddings of the same faces by the second network.
        labels: Person of each face, `(N,) int64`.
        groups: Name -> which faces are of this kind, `(N,) bool`.
    """

    old: np.ndarray
    new: np.ndarray
    labels: np.ndarray
    groups: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Curves:
    """Rates of one network in a large population, by the bin of the threshold, `(BINS,)` each.

    Attributes:
        tar: Of all genuine pairs.
        far: Of all impostor pairs.
        strata: The TAR of the pairs that touch a group, by its name.
        listed: TAR and FAR of pairs as `draw_pairs` samples them, or empty.
    """

    tar: np.ndarray
    far: np.ndarray
    strata: dict[str, np.ndarray]
    listed: tuple[np.ndarray, np.ndarray]

    def at_far(self, far: float, listed: bool = False) -> int:
        """The lowest bin whose FAR is at most `far`."""
        ascending = (self.listed[1] if listed else self.far)[::-1]
        return BINS - int(np.searchsorted(ascending, far, side="right"))

    @property
    def eer(self) -> float:
        at = int(np.argmin(np.abs(self.far - 1 + self.tar)))
        return float(self.far[at] + 1 - self.tar[at]) / 2


def draw(people: int, scenario: Scenario | Clusters, random: np.random.Generator) -> Sample:
    """Faces of so many people by both networks."""
    if isinstance(scenario, Clusters):
        return scenario.draw(people, random)
    faces = _photographs(people, scenario.photographs, random)
    popular = np.arange(1, scenario.types + 1.0) ** -scenario.zipf
    kinds = random.choice(scenario.types, people, p=popular / popular.sum())
    own = _unit(random.normal(size=(people, DIM)))
    kind = _unit(TYPES)[kinds]
    centre = _unit(np.sqrt(scenario.alike) * kind + np.sqrt(1 - scenario.alike) * own)
    spread = np.full(people, scenario.spread)
    if scenario.lognormal:
        s = scenario.lognormal
        spread = scenario.spread * np.exp(random.normal(-s * s / 2, s, people))
    elif scenario.shape:
        spread = random.gamma(scenario.shape, scenario.spread / scenario.shape, people)
    spread = spread * (faces / 5.0) ** scenario.tied
    labels = np.repeat(np.arange(people), faces)
    deviation = random.normal(0, 1, len(labels))
    poor = random.random(len(labels)) < scenario.poor
    quality = np.exp(scenario.quality * deviation) * np.where(poor, scenario.poor_times, 1.0)
    noise = random.normal(size=(len(labels), DIM)) / np.sqrt(DIM)
    old = _unit(centre[labels] + (spread[labels] * quality)[:, None] * noise)
    noise = random.normal(size=old.shape) / np.sqrt(DIM)
    noise *= (scenario.noise * np.where(poor, scenario.poor_noise, 1.0))[:, None]
    new = _unit(old + noise + scenario.drift * DRIFT / np.linalg.norm(DRIFT))
    groups = {
        "poor": poor if scenario.poor else deviation > 0.7,
        "sharp": ~poor & (deviation < 0.0),
        "common": (kinds < scenario.types // 4)[labels],
    }
    return Sample(old.astype(np.float32), new.astype(np.float32), labels, groups)


def find_truth(
    scenario: Scenario | Clusters,
    people: int = 60_000,
    faces: int = 20_000,
    lists: bool = True,
    seed: int = 777,
    mixed: bool = False,
) -> tuple[Curves, Curves]:
    """The rates of both networks in a large population.

    Genuine pairs are all of `people`; impostor pairs those of two times `faces` of their faces.
    `lists` adds pairs as `draw_pairs` samples them. `mixed` matches the second network's faces with
    those that the first one has enrolled.
    """
    random = np.random.default_rng(seed)
    sample = draw(people, scenario, random)
    labels = sample.labels
    a, b = np.array_split(random.permutation(len(labels))[: 2 * faces], 2)
    starts = np.searchsorted(labels, np.arange(people + 1))
    several = int((np.bincount(labels) > 1).sum())
    listed = draw_pairs(labels, FOLDS, LISTED_EACH * -(-several // FOLDS)) if lists else None
    both = []
    for unit in (sample.old, sample.new):
        enrolled = sample.old if mixed else unit
        genuine = np.zeros(BINS, np.int64)
        touched = {name: np.zeros(BINS, np.int64) for name in sample.groups}
        impostor = np.zeros(BINS, np.int64)
        count = np.diff(starts)
        for size in np.unique(count):
            first, second = np.triu_indices(size, 1)
            members = starts[:-1][count == size][:, None] + np.arange(size)
            for part in np.array_split(members, 1 + members.size * size // 2_000_000):
                bins = _bins((enrolled[part] @ unit[part].transpose(0, 2, 1))[:, first, second])
                genuine += np.bincount(bins.ravel(), minlength=BINS)
                for name, inside in sample.groups.items():
                    touches = inside[part][:, first] | inside[part][:, second]
                    touched[name] += np.bincount(bins[touches], minlength=BINS)
        for rows in np.array_split(a, 1 + faces // 500):
            cosine = enrolled[rows] @ unit[b].T
            apart = labels[rows][:, None] != labels[b][None]
            impostor += np.bincount(_bins(cosine[apart]), minlength=BINS)
        strata = {name: _above(counts) for name, counts in touched.items()}
        both.append(Curves(_above(genuine), _above(impostor), strata, _listed(unit, listed)))
    return both[0], both[1]


def bin_of(threshold: float) -> int:
    """The bin of a threshold in `Curves`."""
    return min(BINS - 1, max(0, round((threshold + 1) * BINS / 2)))


def _photographs(people: int, kind: str, random: np.random.Generator) -> np.ndarray:
    if kind == "pareto":
        return np.minimum(40, np.floor(2 * random.random(people) ** (-1 / 1.1))).astype(int)
    if kind == "lognormal":
        return np.clip(np.round(np.exp(random.normal(1.3, 0.9, people))), 1, 50).astype(int)
    if kind == "two":
        return np.where(random.random(people) < 0.1, 50, 2)
    return np.full(people, 5)


def _listed(unit: np.ndarray, pairs: PairList | None) -> tuple[np.ndarray, np.ndarray]:
    if pairs is None:
        return np.zeros(0), np.zeros(0)
    bins = _bins(np.einsum("nd,nd->n", unit[pairs.first], unit[pairs.second]))
    return (
        _above(np.bincount(bins[pairs.same], minlength=BINS)),
        _above(np.bincount(bins[~pairs.same], minlength=BINS)),
    )


def _above(counts: np.ndarray) -> np.ndarray:
    share: np.ndarray = np.cumsum(counts[::-1])[::-1] / max(1, counts.sum())
    return share


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _bins(cosine: np.ndarray) -> np.ndarray:
    return np.clip(((cosine + 1) * (BINS / 2)).astype(np.int64), 0, BINS - 1)
