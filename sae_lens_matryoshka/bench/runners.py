"""SAEBench's evals, run on one SAE at a time over a cache that is built before the first of them."""

import json
import math
import random
import shutil
from abc import ABC, abstractmethod
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sae_lens import SAE, StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata
from typing_extensions import override

from sae_lens_matryoshka.bench import seams
from sae_lens_matryoshka.bench.config import BenchConfig, TextSource
from sae_lens_matryoshka.bench.evals import SMALLEST_DICTIONARY, counts, eval_config
from sae_lens_matryoshka.bench.fidelity import activations, measure
from sae_lens_matryoshka.bench.models import device_of
from sae_lens_matryoshka.bench.outcome import FIDELITY
from sae_lens_matryoshka.bench.plan import Job

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

PROBE_STEPS = 1000  # below, absorption's numbers are mostly the probe's random start
LARGEST_PROBE_BATCH = 4096  # SAEBench's
WORDS_FOR_PROBES = 0.8  # SAEBench's split of the vocabulary
LETTERS = 26
SAE_PROBES_CONTEXT = 1024  # its own; longer texts lose their beginning


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


def reset_random_state(seed: int) -> None:
    """Put every generator that SAEBench draws from, and the grad mode, into a known state."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_grad_enabled(True)  # TPP and SCR leave it off


class FidelityRunner(Runner):
    """L0 and FVU on text; ours, not SAEBench's."""

    @override
    def build_cache(self) -> None:
        text = TextSource(**self.given)
        x = activations(self.model, self.like, text, self.batch_size)
        torch.save(x, self.cache / "activations.pt")

    @override
    def run(self, sae: SAE[Any], name: str, output: Path) -> None:
        x = torch.load(self.cache / "activations.pt", weights_only=True)
        found = measure(sae.to(self.device, getattr(torch, self.dtype)), x)
        result = {"eval_type_id": FIDELITY, "eval_result_metrics": {FIDELITY: asdict(found)}}
        (output / f"{name}_eval_results.json").write_text(json.dumps(result, indent=2))


class AbsorptionRunner(Runner):
    """First-letter absorption."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.remembers = False  # from the first SAE on; the probes' prompts are of other words
        seams.sort_vocabulary(self.model)

    @override
    def eval_config(self) -> Any:
        config = super().eval_config()
        if not self.upstream_defaults and "k_sparse_probe_batch_size" not in self.given:
            n_words = int(WORDS_FOR_PROBES * len(self._words()))
            config.k_sparse_probe_batch_size = probe_batch_size(
                n_words, config.k_sparse_probe_num_epochs
            )
        return config

    @override
    def build_cache(self) -> None:
        words = self._words()
        letters = {word.strip()[0].lower() for word in words}
        if len(letters) < LETTERS:
            raise NotMeasurable(
                f"the vocabulary has words of {len(letters)} first letters, of {LETTERS} needed"
            )
        config = self.eval_config()
        reset_random_state(self.seed)
        import_module("sae_bench.evals.absorption.common").load_or_train_probe(
            model=self.model,
            base_template=config.prompt_template,
            pos_idx=config.prompt_token_pos,
            layer=int(str(self.like.cfg.metadata.hook_name).split(".")[1]),
            probes_dir=self.cache / "probes",
            device=self.device,
        )

    def _words(self) -> list[str]:
        vocab = import_module("sae_bench.evals.absorption.vocab")
        return vocab.get_alpha_tokens(self.model.tokenizer)

    @override
    def run(self, sae: SAE[Any], name: str, output: Path) -> None:
        config = self.eval_config()
        if not self.remembers:
            seams.remember_activations(self.model, config.prompt_token_pos)
            self.remembers = True
        seams.hand_over_model(seams.ABSORPTION, self.model)
        seams.redirect_absorption(self.cache / "probes", output / "experiments")
        main = import_module(seams.ABSORPTION)
        results = main.run_eval(config, [(name, sae)], self.device, str(output))
        if not results:
            self._explain_empty(name, config)

    def _explain_empty(self, name: str, config: Any) -> None:
        """SAEBench returns nothing, without a file, when too few letters can be read."""
        import pandas as pd

        path = Path("artifacts", "absorption", f"{name}_custom_sae_k_sparse_probing.json")
        f1 = pd.read_json(path)["f1_probe"]
        passed = int((f1 > config.min_GT_probe_f1).sum())
        raise NotMeasurable(
            f"{passed} letters, of {config.min_feats_for_eval} needed, can be read off the model by a "
            f"probe (F1 above {config.min_GT_probe_f1})"
        )


class DatasetRunner(Runner):
    """Sparse probing, TPP and SCR: SAEBench keeps activations and probes in `artifacts_path`."""

    @property
    def _module(self) -> str:
        package = "sparse_probing" if self.name == "sparse_probing" else "scr_and_tpp"
        return f"sae_bench.evals.{package}.main"

    @override
    def build_cache(self) -> None:
        scratch = self.cache / "warm-up"
        scratch.mkdir()
        self.run(self._throwaway(), "warm_up", scratch)
        shutil.rmtree(scratch)

    def _throwaway(self) -> SAE[Any]:
        """A random SAE: the first one that SAEBench sees finds no caches, and numbers of its own."""
        width = max([SMALLEST_DICTIONARY, *counts(self.name, self.eval_config())])
        like = self.like.cfg
        config = StandardSAEConfig(
            d_in=like.d_in,
            d_sae=width,
            reshape_activations=like.reshape_activations,
            metadata=SAEMetadata(
                hook_name=like.metadata.hook_name, model_name=like.metadata.model_name
            ),
        )
        sae = StandardSAE(config)
        generator = torch.Generator().manual_seed(0)
        directions = torch.randn(width, like.d_in, generator=generator)
        sae.W_dec.data = directions / directions.norm(dim=-1, keepdim=True)
        sae.W_enc.data = sae.W_dec.data.T.contiguous()
        return sae

    @override
    def run(self, sae: SAE[Any], name: str, output: Path) -> None:
        seams.hand_over_model(self._module, self.model)
        import_module(self._module).run_eval(
            self.eval_config(),
            [(name, sae)],
            self.device,
            str(output),
            artifacts_path=str(self.cache / "artifacts"),
        )


class SaeProbesRunner(Runner):
    """sae-probes: 113 real labelled data sets, those with two classes."""

    @override
    def eval_config(self) -> Any:
        config = super().eval_config()
        config.results_path = str(self.cache / "results")
        config.model_cache_path = str(self.cache / "activations")
        return config

    @override
    def build_cache(self) -> None:
        config, hook = self.eval_config(), str(self.like.cfg.metadata.hook_name)
        generate = import_module("sae_probes.generate_model_activations")
        generate.ensure_dataset_activations(
            model_name=self.label,
            dataset_short_names=config.dataset_names,
            hook_names=[hook],
            model_cache_path=config.model_cache_path,
            device=self.device,
            max_seq_len=min(SAE_PROBES_CONTEXT, self.model.cfg.n_ctx),
            batch_size=self.batch_size,
            model=self.model,
        )
        if config.include_llm_baseline:
            import_module("sae_probes").run_baseline_evals(
                model_name=self.label,
                hook_name=hook,
                setting=config.setting,
                method=config.baseline_method,
                results_path=config.results_path,
                model_cache_path=config.model_cache_path,
                datasets=config.dataset_names,
                device=self.device,
                seed=self.seed,
            )

    @override
    def run(self, sae: SAE[Any], name: str, output: Path) -> None:
        config = self.eval_config()
        # it re-uses results by the SAE's name
        shutil.rmtree(Path(config.results_path, f"{name}_custom_sae"), ignore_errors=True)
        main = import_module("sae_bench.evals.sparse_probing_sae_probes.main")
        main.run_eval(config, [(name, sae)], self.device, str(output))


class CoreRunner(Runner):
    """SAEBench's core metrics."""

    @override
    def build_cache(self) -> None:
        pass  # core keeps nothing

    @override
    def run(self, sae: SAE[Any], name: str, output: Path) -> None:
        module = "sae_bench.evals.core.main"
        seams.hand_over_model(module, self.model)
        config = self.eval_config()
        import_module(module).multiple_evals(
            [(name, sae)],
            n_eval_reconstruction_batches=config.n_eval_reconstruction_batches,
            n_eval_sparsity_variance_batches=config.n_eval_sparsity_variance_batches,
            eval_batch_size_prompts=config.batch_size_prompts,
            compute_featurewise_density_statistics=True,  # as SAEBench's own command has it
            compute_featurewise_weight_based_metrics=True,
            exclude_special_tokens_from_reconstruction=config.exclude_special_tokens_from_reconstruction,
            dataset=config.dataset,
            context_size=config.context_size,
            output_folder=str(output),
            verbose=config.verbose,
            dtype=config.llm_dtype,
            device=self.device,
        )
        if not any(output.glob("*.json")):
            raise RuntimeError("SAEBench's core eval failed; it logs the reason and goes on.")


RUNNERS: dict[str, type[Runner]] = {
    FIDELITY: FidelityRunner,
    "absorption": AbsorptionRunner,
    "sparse_probing": DatasetRunner,
    "tpp": DatasetRunner,
    "scr": DatasetRunner,
    "sae_probes": SaeProbesRunner,
    "core": CoreRunner,
}


def probe_batch_size(n_words: int, epochs: int) -> int:
    """
    The largest batch, of SAEBench's 4,096 halved, that gives absorption's probe enough steps.

    Args:
        n_words: Words that the probe is trained on.
        epochs: Passes over them.
    """
    batch = LARGEST_PROBE_BATCH
    while batch > 1 and epochs * math.ceil(n_words / batch) < PROBE_STEPS:
        batch //= 2
    return batch
