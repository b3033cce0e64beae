"""SAEBench on SAELens SAEs: every nested level, several seeds, one file in, a comparison out."""

from sae_lens_matryoshka.bench.config import BenchConfig, checked_config
from sae_lens_matryoshka.bench.suite import BenchReport, run

__all__ = ["BenchConfig", "BenchReport", "checked_config", "run"]
