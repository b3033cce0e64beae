"""Where the sparse path stops paying: both paths over widths, sparsities and batch sizes.

python -m benchmarks.crossover [--threads N] [--rounds N] [--device cuda]

On CUDA each row is measured three times: in float32, in TF32 and under autocast to bfloat16. The
results belong into the constants of sae_lens_matryoshka/engine/crossover.py.
"""

import argparse
import gc
import statistics

import torch

from benchmarks import peers
from benchmarks.shape import Shape, activations
from benchmarks.timing import interleaved, machine, ratio, say, table
from sae_lens_matryoshka import engine

# (batch, d_in, d_sae, k): width, sparsity and batch size in turn, the densest corners, small ones
GRID = [
    *((2048, 512, d_sae, 32) for d_sae in (4096, 8192, 16384, 32768, 65536, 131072)),
    *((2048, 512, 16384, k) for k in (20, 80, 160, 320)),
    *((batch, 512, 16384, 32) for batch in (1024, 4096, 8192)),
    *((2048, 512, 4096, k) for k in (20, 80, 160, 320, 640, 1024)),
    (32, 16, 64, 4),
    (64, 64, 256, 8),
    (256, 64, 256, 8),
    (256, 64, 1024, 8),
    (1024, 64, 512, 8),
    (1024, 256, 1024, 16),
]
# around the estimates of engine/crossover.py, which are lower on GPUs; there large and small ones
CUDA_GRID = [
    *((4096, 2304, 16384, k) for k in (20, 40, 80, 160, 320, 800)),
    *((4096, 2304, 65536, k) for k in (40, 320)),
    *((batch, 768, 4096, 32) for batch in (1024, 4096, 16384)),
]

PRECISIONS = {"cpu": ["float32"], "cuda": ["float32", "TF32", "autocast"]}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    say(machine(args.device))
    say(f"Five levels, our runner; medians of {args.rounds} rounds\n")
    rows = []
    for batch, d_in, d_sae, k in CUDA_GRID if args.device == "cuda" else GRID:
        shape = Shape(batch=batch, d_in=d_in, d_sae=d_sae, k=k, device=args.device)
        for precision in PRECISIONS[args.device]:
            times = _both(shape, args.rounds, precision)
            dense, sparse = (f"{statistics.median(times[path]):,.1f}" for path in times)
            row = [batch, d_in, d_sae, k, f"{k / d_sae:.2%}", precision, dense, sparse]
            rows.append([str(cell) for cell in row] + [f"{ratio(times, 'dense', 'sparse'):.1f}"])
            say(" ".join(rows[-1]))
            gc.collect()
    say()
    header = ["batch", "d_in", "d_sae", "k", "k / d_sae", "precision", "dense, ms", "sparse, ms"]
    table([*header, "ratio"], rows)


def _both(shape: Shape, rounds: int, precision: str) -> dict[str, list[float]]:
    torch.set_float32_matmul_precision("high" if precision == "TF32" else "highest")
    x, autocast = activations(shape, n_batches=2), precision == "autocast"

    def arm(path: engine.Path):
        step = peers.in_stock_trainer(peers.ours(shape), x, fused_adam=True, autocast=autocast)

        def run() -> None:
            with engine.using(path):
                step()

        return run

    return interleaved({"dense": arm("dense"), "sparse": arm("sparse")}, rounds, warm_up=2)


if __name__ == "__main__":
    main()
