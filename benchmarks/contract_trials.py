"""How often people show a wrong input contract, and how often they doubt a right one.

    python benchmarks/contract_trials.py FACES NETWORK.onnx PRESET [--size HxW] [--grey]
        [--people N] [--draws N] [--numbers 20,40,60,130]

FACES is a folder per person. Two photographs of each of at most N people are embedded once under every
usual contract, the right one (PRESET) among them; then people are drawn again and again, and `verify`'s
trial of the contract is made of each draw, with each contract as the declared one: wrong ones in a quarter
as many draws, those with less than half of the right one's d' with the fewest people alone. One line for a contract and a number of people: its d' and the shares of draws that end in
CANNOT JUDGE, in "not shown" and without a word. `--grey` feeds the network the luma of each face in all three channels.
"""

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from fr_edge.faces.contract import ContractVariant, contract_variants, make_spec
from fr_edge.metrics.decidability import d_prime, pair_sums
from fr_edge.runtime.evaluation.doubts import compare_contracts

_STEP = 32  # faces embedded at once


def photographs(root: Path, count: int) -> np.ndarray:
    """Two of each person, `(2P, 112, 112, 3) uint8`."""
    people = [folder for folder in sorted(root.iterdir()) if len(list(folder.iterdir())) > 1]
    picks = np.linspace(0, len(people) - 1, min(count, len(people))).astype(int)
    files = [file for pick in picks for file in sorted(people[pick].iterdir())[:2]]
    return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("faces", type=Path)
    parser.add_argument("network")
    parser.add_argument("preset")
    parser.add_argument("--size")
    parser.add_argument("--grey", action="store_true")
    parser.add_argument("--people", type=int, default=400)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--numbers", default="20,40,60,130")
    args = parser.parse_args()
    spec = make_spec(args.preset, size=args.size, channels="grey" if args.grey else None)
    images = photographs(args.faces, args.people)
    session = onnxruntime.InferenceSession(args.network)
    name, batch = session.get_inputs()[0].name, session.get_inputs()[0].shape[0]
    step = batch if isinstance(batch, int) else _STEP

    def embed(variant: ContractVariant) -> np.ndarray:
        inputs = variant.inputs(images)
        inputs = np.repeat(inputs, 3, 1) if args.grey else inputs
        starts = range(0, len(inputs), step)
        rows = [session.run(None, {name: inputs[i : i + step]})[0] for i in starts]
        return np.concatenate([part.reshape(len(part), -1) for part in rows])

    variants = [v for v in contract_variants(spec) if v.view == "upright"]
    tables = {(variant.spec.mean, variant.spec.std, variant.spec.channels): embed(variant)
              for variant in variants}  # fmt: skip
    total = len(images) // 2
    random, top = np.random.default_rng(0), 0.0
    for variant in sorted(variants, key=lambda variant: variant.spec != spec):
        declared = variant.spec
        own = tables[declared.mean, declared.std, declared.channels]
        draws = args.draws if declared == spec else args.draws // 4
        figure = d_prime(pair_sums(own, np.repeat(np.arange(total), 2)))
        top = max(top, figure)  # the right one comes first
        numbers = sorted(map(int, args.numbers.split(",")))
        for people in numbers if figure >= top / 2 else numbers[:1]:
            counts = {"CANNOT JUDGE": 0, "not shown": 0, "no word": 0}
            for _ in range(draws):
                drawn = random.permutation(total)[:people]
                faces = np.stack([2 * drawn, 2 * drawn + 1], axis=1).reshape(-1)

                def looked_up(other: ContractVariant, rows: np.ndarray, faces=faces) -> np.ndarray:
                    key = (other.spec.mean, other.spec.std, other.spec.channels)
                    return tables[key][faces[rows]]

                labels = np.repeat(np.arange(len(drawn)), 2)
                trial = compare_contracts(looked_up, own[faces], labels, declared)
                kind = "not shown" if trial.not_shown else "no word"
                counts["CANNOT JUDGE" if trial.doubt else kind] += 1
            shares = ", ".join(f"{kind} {n / draws:.3f}" for kind, n in counts.items())
            right = "right" if declared == spec else "wrong"
            print(f"{right}: {declared.describe()}, d' {figure:.2f}, {people} people: {shares}",
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
