"""What screening in bfloat16 saves of a step, on a processor that multiplies it in hardware.

python -m benchmarks.screening [--threads N] [--rounds N] [--device cuda]
"""

import argparse
import gc
import statistics
from unittest import mock

import torch

from benchmarks import peers
from benchmarks.shape import Shape, activations
from benchmarks.timing import interleaved, machine, ratio, say, table
from sae_lens_matryoshka.engine import screening

# (batch, d_in, d_sae, k)
GRID = [
    (1024, 768, 4096, 25),
    (2048, 512, 16384, 32),
    (4096, 512, 16384, 32),
    (2048, 2304, 16384, 32),
    (2048, 512, 65536, 32),
]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    say(machine(args.device))
    say(f"Five levels, our runner; medians of {args.rounds} rounds\n")
    rows = []
    for batch, d_in, d_sae, k in GRID:
        times = _both(
            Shape(batch=batch, d_in=d_in, d_sae=d_sae, k=k, device=args.device), args.rounds
        )
        off, on = (f"{statistics.median(times[arm]):,.0f}" for arm in ("off", "on"))
        rows.append([str(batch), str(d_in), f"{d_sae:,}", str(k), off, on])
        rows[-1].append(f"{ratio(times, 'off', 'on'):.2f}")
        say(" ".join(rows[-1]))
        gc.collect()
    say()
    table(["batch", "d_in", "d_sae", "k", "float32, ms", "screened, ms", "ratio"], rows)


def _both(shape: Shape, rounds: int) -> dict[str, list[float]]:
    x = activations(shape, n_batches=2)

    def arm(on: bool):
        step = peers.in_stock_trainer(peers.ours(shape), x, fused_adam=True)

        def run() -> None:
            with mock.patch.object(screening, "pays", return_value=on):
                step()

        return run

    return interleaved({"off": arm(False), "on": arm(True)}, rounds)


if __name__ == "__main__":
    main()
