"""How long a training step takes, against SAELens, dictionary_learning and the authors' code.

python -m benchmarks.step [--threads N] [--rounds N] [--device cuda] [--only SECTION ...]
"""

import argparse
import gc
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from benchmarks import peers
from benchmarks.peers import in_stock_trainer
from benchmarks.shape import Shape, activations
from benchmarks.timing import interleaved, machine, ratio, say, table

CPU = Shape()
GPU = Shape(batch=4096, d_in=2304, d_sae=65536, k=40, device="cuda")


def main() -> None:
    """Print every section's table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    shape = GPU if args.device == "cuda" else CPU
    say(machine(args.device))
    say(f"{shape}; medians of {args.rounds} rounds, every arm once per round\n")
    for name in args.only:
        SECTIONS[name](shape, args.rounds)
        gc.collect()


def against_peers(shape: Shape, rounds: int) -> None:
    """The whole step, everyone in the trainer that users run."""
    x = activations(shape)
    arms: dict[str, Callable[[], Any] | None] = {
        "SAELens matryoshka_batchtopk": in_stock_trainer(peers.saelens_matryoshka(shape), x),
        "the same, rescale off": in_stock_trainer(
            peers.saelens_matryoshka(shape, rescale_acts_by_decoder_norm=False), x
        ),
        "SAELens batchtopk (no levels)": in_stock_trainer(peers.saelens_batchtopk(shape), x),
        "dictionary_learning Matryoshka": peers.dictionary_learning(shape, x),
        "authors' formula": peers.AuthorsFormula(shape, x),
        "ours, SAELens's trainer": in_stock_trainer(peers.ours(shape), x),
        "ours, our runner (fused Adam)": in_stock_trainer(peers.ours(shape), x, fused_adam=True),
        "floor: float32 encoder product + fused Adam": peers.floor(shape, x),
    }
    steps = {name: step for name, step in arms.items() if step is not None}
    times = interleaved(steps, rounds)
    say("### Against the peers\n")
    _ratios(
        times,
        {
            "ours, SAELens's trainer": "times faster than this",
            "ours, our runner (fused Adam)": "with our runner",
        },
    )
    over = ratio(
        times, "ours, our runner (fused Adam)", "floor: float32 encoder product + fused Adam"
    )
    say(f"\nOurs with our runner takes {over:.2f} times the floor.\n")


def variants(shape: Shape, rounds: int) -> None:
    """The other objectives, each against SAELens's nearest equivalent."""
    x = activations(shape)
    say("### Variants\n")
    arms: dict[str, tuple[Callable[[], Any], Callable[[], Any], dict[str, float]]] = {
        "20 % of latents dead": (
            lambda: peers.saelens_matryoshka(shape),
            lambda: peers.ours(shape),
            {"share_dead": 0.2},
        ),
        "ten random prefixes / five fixed levels": (
            lambda: peers.saelens_matryoshka(shape),
            lambda: peers.ours(shape, prefix_sampling="random"),
            {},
        ),
        "topk, five levels / topk without levels": (
            lambda: peers.saelens_topk(shape),
            lambda: peers.ours(shape, activation="topk"),
            {},
        ),
        "topk, one level / topk without levels": (
            lambda: peers.saelens_topk(shape),
            lambda: peers.ours(replace(shape, levels=1), activation="topk"),
            {},
        ),
        # with rescaling, SAELens's sparse activations raise on a CPU
        "topk, one level, rescale off / topk, rescale off, use_sparse_activations": (
            lambda: peers.saelens_topk(
                shape, use_sparse_activations=True, rescale_acts_by_decoder_norm=False
            ),
            lambda: peers.ours(
                replace(shape, levels=1), activation="topk", rescale_acts_by_decoder_norm=False
            ),
            {},
        ),
        # a learning rate that does nothing, so that L0 stays what it is late in training
        f"relu at L0 {shape.k}, five levels / standard without levels": (
            lambda: peers.fire_about_k(peers.saelens_standard(shape), shape, x[0]),
            lambda: peers.fire_about_k(peers.ours(shape, activation="relu"), shape, x[0]),
            {"lr": 1e-12},
        ),
    }
    rows = []
    for name, (theirs, mine, options) in arms.items():
        steps = {
            "SAELens": in_stock_trainer(theirs(), x, **options),
            "ours": in_stock_trainer(mine(), x, **options),
            "our runner": in_stock_trainer(mine(), x, fused_adam=True, **options),
        }
        times = interleaved(steps, rounds)
        medians = [f"{statistics.median(times[arm]):,.0f}" for arm in steps]
        ratios = [f"{ratio(times, 'SAELens', arm):.1f}" for arm in ("ours", "our runner")]
        rows.append([name, *medians, *ratios])
        del steps
        gc.collect()
    header = [
        "ours / SAELens's nearest",
        "SAELens, ms",
        "ours in its trainer",
        "ours in our runner",
    ]
    table([*header, "ratio", "with our runner"], rows)
    say()


def levels(shape: Shape, rounds: int) -> None:
    """What nesting costs."""
    x = activations(shape)
    steps = {
        str(n): in_stock_trainer(peers.ours(replace(shape, levels=n)), x, fused_adam=True)
        for n in (1, 2, 5, 10)
    }
    times = interleaved(steps, 3 * rounds)
    say("### Cost per level, our runner\n")
    rows = [
        [n, f"{statistics.median(times[n]):,.0f}", f"{ratio(times, n, '1'):.2f}"] for n in steps
    ]
    table(["levels", "ms", "over one level"], rows)
    say()


def _ratios(times: Mapping[str, list[float]], columns: Mapping[str, str]) -> None:
    rows = [
        [
            name,
            f"{statistics.median(ms):,.0f}",
            f"{min(ms):,.0f}-{max(ms):,.0f}",
            *(f"{ratio(times, name, ours):.1f}" for ours in columns),
        ]
        for name, ms in times.items()
    ]
    table(["step", "ms", "range", *columns.values()], rows)


SECTIONS = {"peers": against_peers, "variants": variants, "levels": levels}

if __name__ == "__main__":
    main()
