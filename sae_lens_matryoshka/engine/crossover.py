"""Which path is faster: the sparse one, or the dense one, by device and precision."""

from dataclasses import dataclass

import torch

from sae_lens_matryoshka.engine import kernels
from sae_lens_matryoshka.engine.screening import float32_is_exact
from sae_lens_matryoshka.engine.selection import Encoder


@dataclass(frozen=True)
class Crossover:
    """Where the sparse path stops being the faster one.

    Args:
        density: Fraction of active entries up to which it is faster.
        entries: Entries of (batch, d_sae) from which on its bookkeeping pays.
    """

    density: float
    entries: int


# Measured: `python -m benchmarks.crossover`, docs/results/step.md.
CPU = Crossover(density=0.17, entries=2**17)

# Arithmetic, not measured, for an H200 (4.3 TB/s; 790 TFLOP/s in bfloat16, 400 in TF32, 50 in
# float32) and d_in 2304. Per active entry the sparse path moves about four rows of 9.2 KB: 8 ns. Per
# entry of (batch, d_sae) the dense path takes four products of 4,608 floating-point operations each
# and .02 ns of memory passes: .043 ns in bfloat16, .066 in TF32, .39 in float32. `density` is the
# quotient. Launches and synchronizations of the sparse path take about 4 ms of host time; the dense
# path handles `entries` entries in that time, rounded to a power of two.
CUDA_HALF = Crossover(density=0.005, entries=2**27)
CUDA_TF32 = Crossover(density=0.01, entries=2**26)
CUDA_FLOAT32 = Crossover(density=0.05, entries=2**23)


def crossover_of(encoder: Encoder) -> Crossover:
    """Where the paths cross on the encoder's device, in the precision of its products."""
    if encoder.x.device.type == "cpu":
        return CPU
    dtype = encoder.matmul_dtype
    if dtype in (torch.bfloat16, torch.float16):
        return CUDA_HALF
    return CUDA_TF32 if dtype == torch.float32 and not float32_is_exact() else CUDA_FLOAT32


def sparse_pays(encoder: Encoder, density: float) -> bool:
    """Whether the sparse path is the faster one.

    Args:
        encoder: Of the batch.
        density: Fraction of the entries of (batch, d_sae) that are active.
    """
    batch, d_sae = encoder.shape
    limits = crossover_of(encoder)
    return (
        density <= limits.density
        and batch * d_sae >= limits.entries
        and kernels.work_on(
            encoder.x.device, encoder.x.dtype, encoder.W_enc.dtype, encoder.matmul_dtype
        )
    )
