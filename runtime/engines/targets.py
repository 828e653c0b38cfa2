"""What is known of boards, GPUs and the software they run; docs/targets.md holds the sources.

Facts only: what follows from them is `plan`'s. What is not here is unknown, not guessed.
"""

from dataclasses import dataclass

AS_OF = "2026-11-24"
"""When the table was last compared with its sources."""


@dataclass(frozen=True)
class Target:
    """`compute` is the compute capability; `dla_cores` as text, since modules of a name differ.

    `jetpack` lists the JetPack releases that serve the board, empty for a card in a PCIe slot.
    """

    name: str
    compute: str
    dla_cores: str = "0"
    jetpack: tuple[str, ...] = ()


@dataclass(frozen=True)
class JetPack:
    """`tensorrt` is the version that comes with it, as far as its source names it."""

    tensorrt: str
    cuda: str
    python: str


_ORIN_JETPACKS = ("5.1", "6.0", "6.1", "6.2", "7.2")

TARGETS = {
    target.name: target
    for target in (
        Target("nano", "5.3", "0", ("4.6",)),
        Target("tx2", "6.2", "0", ("4.6",)),
        Target("xavier-nx", "7.2", "2", ("4.6", "5.1")),
        Target("agx-xavier", "7.2", "2", ("4.6", "5.1")),
        Target("orin-nano", "8.7", "0", _ORIN_JETPACKS),
        Target("orin-nx", "8.7", "1 or 2", _ORIN_JETPACKS),
        Target("agx-orin", "8.7", "2", (*_ORIN_JETPACKS, "7.2.2")),
        Target("thor", "11.0", "0", ("7.0", "7.1", "7.2", "7.2.2")),
        Target("t4", "7.5"),
        Target("a10", "8.6"),
        Target("a30", "8.0"),
        Target("a100", "8.0"),
        Target("l4", "8.9"),
        Target("l40s", "8.9"),
        Target("h100", "9.0"),
        Target("h200", "9.0"),
        Target("rtx-20", "7.5"),
        Target("rtx-30", "8.6"),
        Target("rtx-40", "8.9"),
        Target("rtx-50", "12.0"),
    )
}

JETPACKS = {
    "4.6": JetPack("8.2", "10.2", "3.6"),
    "5.1": JetPack("8.5", "11.4", "3.8"),
    "6.0": JetPack("8.6", "12.2", "3.10"),
    "6.1": JetPack("10.3", "12.6", "3.10"),
    "6.2": JetPack("10.3", "12.6", "3.10"),
    "7.0": JetPack("10.13", "13.0", "3.12"),
    "7.1": JetPack("10.13", "13.0", "3.12"),
    "7.2": JetPack("10", "13", "3.12"),
    "7.2.2": JetPack("11.4", "13", "3.12"),
}
