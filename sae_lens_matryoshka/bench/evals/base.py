"""What every eval of a worker does: build a shared cache, then measure one SAE after another."""

import random
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sae_lens import SAE

from sae_lens_matryoshka.bench.config import BenchConfig
from sae_lens_matryoshka.bench.evals import patches as seams
from sae_lens_matryoshka.bench.evals.catalogue import eval_config
from sae_lens_matryoshka.bench.inputs.models import device_of
from sae_lens_matryoshka.bench.jobs.plan import Job

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


class NotMeasurable(Exception):
    """The eval has no number for this SAE, for a reason that is no defect."""


class Runner(ABC):
    """
    One eval under one seed.

    Args:
        config: The benchmark.
        job: The eval and its seed.
        model: The language model.
        like: Any of the SAEs, for the shape of the hook.
        cache: Folder for what all SAEs share.
    """

    def __init__(
        self,
        config: BenchConfig,
        job: Job,
        model: "HookedTransformer",
        like: SAE[Any],
        cache: Path,
    ):
        self.model, self.like, self.cache, self.name = model, like, cache, job.eval
        if job.eval != "core":  # which flattens heads itself, and puts them back
            seams.flatten_heads(model, config.hook_name)
        self.device = device_of(config.model)
        self.label = config.model.label
        self.upstream_defaults = config.upstream_defaults
        self.seed = job.seed or 0
        self.given = job.fields
        self.batch_size = config.model.batch_size
        self.dtype = config.model.dtype

    def eval_config(self) -> Any:
        """SAEBench's config object."""
        return eval_config(
            self.name,
            self.given,
            model_name=self.label,
            dtype=self.dtype,
            batch_size=self.batch_size,
            seed=self.seed,
        )

    def warm(self) -> None:
        """Build what all SAEs share, so that none of them finds other caches than the next."""
        reset_random_state(self.seed)
        self.build_cache()

    @abstractmethod
    def build_cache(self) -> None:
        """Fill `self.cache`."""

    @abstractmethod
    def run(self, sae: SAE[Any], name: str, output: Path) -> None:
        """
        Let SAEBench measure one SAE and write its JSON file into a folder.

        Args:
            sae: The SAE; SAEBench may change it.
            name: Unique among the SAEs that share the cache.
            output: An empty folder.

        Raises:
            NotMeasurable: The eval has no number for this SAE.
        """

    def notes(self) -> dict[str, str]:
        """What a reader must know of single metrics that the last run gave, by metric."""
        return {}


def reset_random_state(seed: int) -> None:
    """Put every generator that SAEBench draws from, and the grad mode, into a known state."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_grad_enabled(True)  # TPP and SCR leave it off
