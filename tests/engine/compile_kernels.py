"""Compile every Triton kernel for a CUDA capability, e.g. 90; needs no GPU."""

import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sae_lens_matryoshka.engine import triton as kernels


def compile_kernel(function, signature: dict[str, str], constants: dict, capability: int) -> None:
    signature = signature | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=function, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert compiled.asm["cubin"]


def main(capability: int) -> None:
    tile = {"TILE": kernels.TILE}
    for number in ("*fp32", "*bf16"):
        search = {"block": number, "bounds": number, "n": "i64", "columns": "i32"}
        compile_kernel(kernels._count, search | {"counts": "*i64"}, tile, capability)
        places = {"starts": "*i64", "found": "*i64"}
        compile_kernel(kernels._write, search | places, tile, capability)
    for number in ("*fp32", "*bf16", "*fp64"):
        for dimensions in (16, kernels.DIMENSIONS):
            constants = {
                "ENTRIES": kernels.ENTRIES,
                "DIMENSIONS": dimensions,
                "SUM": tl.float64 if number == "*fp64" else tl.float32,
            }
            compile_kernel(
                kernels._weighted_sums,
                {
                    "table": number,
                    "index": "*i32",
                    "weights": number,
                    "offsets": "*i32",
                    "sums": number,
                    "d": "i32",
                },
                constants,
                capability,
            )
            compile_kernel(
                kernels._dots,
                {
                    "a": number,
                    "b": number,
                    "rows": "*i64",
                    "columns": "*i32",
                    "products": number,
                    "n": "i32",
                    "d": "i32",
                },
                constants,
                capability,
            )


if __name__ == "__main__":
    main(int(sys.argv[1]))
