"""Peak memory of training, beyond weights, gradients and Adam's moments.

    python -m benchmarks.memory [--threads N] [--device cuda]

On a CPU every arm runs in a process of its own, whose peak resident size the system keeps.
"""

import argparse
import json
import resource
import subprocess
import sys
from dataclasses import asdict, replace
from typing import Any

import torch

from benchmarks import peers
from benchmarks.shape import Shape, activations
from benchmarks.timing import machine, say, table

GIB = 2**30
STEPS = 3

# Share of the latents counted as dead in the arms with an auxiliary loss.
SHARE_DEAD = 0.2


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--arm", help=argparse.SUPPRESS)  # one arm, given as JSON
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.arm:
        arm = json.loads(args.arm)
        print(_peak(arm["name"], Shape(**arm["shape"]), arm["share_dead"]))  # noqa: T201
        return
    say(machine(args.device))
    shape = Shape(device=args.device)
    say(f"Peak beyond 16 bytes per weight after {STEPS} steps of SAELens's trainer\n")
    rows = []
    for name, share_dead in (("SAELens", 0.0), ("ours", 0.0), ("SAELens", SHARE_DEAD),
                             ("ours", SHARE_DEAD)):  # fmt: skip
        peak = _in_a_process(name, shape, share_dead, args.threads)
        rows.append([name, f"{share_dead:.0%}", f"{peak / GIB:.2f}"])
    say(f"{shape}\n")
    table(["", "dead", "GiB"], rows)
    say("\nOurs by width, batch 4096\n")
    rows = []
    for d_sae in (32768, 65536, 131072, 262144):
        wide = replace(shape, batch=4096, d_sae=d_sae)
        peaks = [_in_a_process("ours", wide, dead, args.threads) for dead in (0.0, SHARE_DEAD)]
        rows.append([f"{d_sae:,}", *(f"{peak / GIB:.2f}" for peak in peaks)])
        say(" ".join(rows[-1]))
    say()
    table(["d_sae", "GiB", f"GiB, {SHARE_DEAD:.0%} dead"], rows)


def _in_a_process(name: str, shape: Shape, share_dead: float, threads: int) -> float:
    arm: dict[str, Any] = {"name": name, "shape": asdict(shape), "share_dead": share_dead}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory"]
    command += ["--arm", json.dumps(arm), "--threads", str(threads)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _peak(name: str, shape: Shape, share_dead: float) -> float:
    """Bytes at the peak beyond those that any trainer needs: weights, gradients, two moments."""
    x = activations(shape, n_batches=1)
    torch.mm(x[0][:64], x[0][:64].T)  # the libraries' own buffers
    before = _resident(shape.device)
    sae = (peers.ours if name == "ours" else peers.saelens_matryoshka)(shape)
    step = peers.in_stock_trainer(sae, x, share_dead)
    for _ in range(STEPS):
        step()
    needed = 4 * sum(p.numel() * p.element_size() for p in sae.parameters())
    return _peak_resident(shape.device) - before - needed


def _resident(device: str) -> float:
    if device == "cuda":
        return torch.cuda.memory_allocated()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def _peak_resident(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
