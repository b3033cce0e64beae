"""SAEBench's evals, run on one SAE at a time over a cache that is built before the first of them."""

import json
import pickle
import shutil
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata
from typing_extensions import override

from sae_lens_matryoshka.atomic_files import save_tensor
from sae_lens_matryoshka.bench.config import TextSource
from sae_lens_matryoshka.bench.evals import patches as seams
from sae_lens_matryoshka.bench.evals.absorption import AbsorptionRunner
from sae_lens_matryoshka.bench.evals.base import NotMeasurable, Runner
from sae_lens_matryoshka.bench.evals.catalogue import SMALLEST_DICTIONARY, counts
from sae_lens_matryoshka.bench.evals.gaps import nothing_to_regain
from sae_lens_matryoshka.bench.evals.reconstruction import activations, measure
from sae_lens_matryoshka.bench.outcome import FIDELITY

SAE_PROBES_CONTEXT = 1024  # its own; longer texts lose their beginning


class FidelityRunner(Runner):
    """L0 and FVU on text, the decoder max cosine; ours, not SAEBench's."""

    @override
    def build_cache(self) -> None:
        pass  # the first SAE of each kind makes it

    @override
    def run(self, sae: SAE[Any], name: str, output: Path) -> None:
        # SAEs see the text as they were trained to, with BOS or without
        path = self.cache / f"activations_bos_{sae.cfg.metadata.prepend_bos}.pt"
        if not path.exists():
            text = TextSource(**self.given)
            save_tensor(path, activations(self.model, sae, text, self.batch_size))
        x = torch.load(path, weights_only=True)
        if bool((x == x[:1]).all()):
            raise NotMeasurable(
                f"the text gives {len(x)} activations without a difference (BOS, EOS and PAD do not count); more "
                "text.sequences or another text are needed"
            )
        found = measure(sae.to(self.device, getattr(torch, self.dtype)), x)
        result = {"eval_type_id": FIDELITY, "eval_result_metrics": {FIDELITY: asdict(found)}}
        (output / f"{name}_eval_results.json").write_text(json.dumps(result, indent=2))


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

    @override
    def notes(self) -> dict[str, str]:
        if self.name != "scr":
            return {}
        accuracies: dict[str, dict[str, float]] = {}
        for path in sorted((self.cache / "artifacts").rglob("*_probes.pkl")):
            with path.open("rb") as file:  # SAEBench has just written it
                accuracies[path.name.removesuffix("_probes.pkl")] = pickle.load(file)[
                    "llm_test_accuracies"
                ]
        return nothing_to_regain(accuracies, counts(self.name, self.eval_config()))


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
        make_float32(Path(config.model_cache_path))
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
        main.run_eval(config, [(name, sae.to(self.device))], self.device, str(output))


def make_float32(folder: Path) -> None:
    """Activations that sae-probes has stored, which it hands to numpy: that knows no bfloat16."""
    for path in folder.rglob("*.pt"):
        cached = torch.load(path, weights_only=True)
        if cached.dtype != torch.float32:
            save_tensor(path, cached.float())


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
