"""Compile every Triton kernel for a CUDA capability, e.g. 90, as its launch would; needs no GPU.

The wrappers run up to the launch, with a driver that knows the capability alone, so that Triton
specializes the kernels on their arguments as it does on a GPU: 32-bit integers, aligned pointers,
dimensions that 16 divides or does not.
"""

import sys
from contextlib import nullcontext
from typing import Any
from unittest import mock

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from sae_lens_matryoshka.engine import triton as kernels

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
compiled: dict[str, set[str]] = {}  # the machine code of each kernel's variants


class Driver:
    """What Triton asks a driver before it compiles."""

    def __init__(self, capability: int):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


launch = JITFunction.run


def compile_only(self: JITFunction, *args: Any, **kwargs: Any) -> None:
    """Replaces a launch."""
    variant = launch(self, *args, **{**kwargs, "warmup": True})
    assert variant.asm["cubin"]
    compiled.setdefault(self.fn.__name__, set()).add(variant.hash)


def run_wrappers(dtype: torch.dtype, d: int, n_entries: int) -> None:
    """Every wrapper once, with the offsets of three segments."""
    table, rows = torch.ones(8, d, dtype=dtype), torch.ones(3, d, dtype=dtype)
    index = torch.zeros(n_entries, dtype=torch.int32)
    offsets = torch.tensor([0, 1, 1, n_entries], dtype=torch.int32)
    kernels.weighted_sums(table, index, torch.ones(n_entries, dtype=dtype), offsets)
    kernels.dots(rows, table, index, offsets)
    block, bounds = torch.ones(n_entries, d, dtype=dtype), torch.ones(n_entries, dtype=dtype)
    found = torch.ones(1, dtype=torch.int64)  # counts are never written: let there be some
    with mock.patch.object(torch, "empty", lambda n, **_: found.expand(n)):
        kernels.not_below(block, bounds)


def main(capability: int) -> None:
    driver.set_active(Driver(capability))
    with (
        mock.patch.object(JITFunction, "run", compile_only),
        mock.patch.object(torch.cuda, "device_of", lambda _: nullcontext()),
    ):
        for dtype in DTYPES:
            for d in (37, 300, 2304):
                run_wrappers(dtype, d, n_entries=17)
        before = {name: set(variants) for name, variants in compiled.items()}
        assert before.keys() == {"_count", "_write", "_weighted_sums", "_dots"}
        for n_entries in (1, 16, 160):  # these change from step to step
            run_wrappers(torch.float32, 2304, n_entries)
    again = {name: variants - before[name] for name, variants in compiled.items()}
    assert not any(again.values()), f"compiled again for another number of entries: {again}"


if __name__ == "__main__":
    main(int(sys.argv[1]))
