"""SAEBench's first-letter absorption, repeatable and with a probe that is trained long enough."""

import math
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from sae_lens import SAE
from typing_extensions import override

from sae_lens_matryoshka.bench.evals import patches as seams
from sae_lens_matryoshka.bench.evals.base import NotMeasurable, Runner

PROBE_STEPS = 1000  # below, absorption's numbers are mostly the probe's random start
LARGEST_PROBE_BATCH = 4096  # SAEBench's
WORDS_FOR_PROBES = 0.8  # SAEBench's split of the vocabulary
LETTERS = 26


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
            n_words = int(WORDS_FOR_PROBES * len(self._words))
            config.k_sparse_probe_batch_size = probe_batch_size(
                n_words, config.k_sparse_probe_num_epochs
            )
        return config

    @override
    def build_cache(self) -> None:
        letters = {word.strip()[0].lower() for word in self._words}
        if len(letters) < LETTERS:
            raise NotMeasurable(
                f"the vocabulary has words of {len(letters)} first letters, of {LETTERS} needed"
            )
        config = self.eval_config()
        import_module("sae_bench.evals.absorption.common").load_or_train_probe(
            model=self.model,
            base_template=config.prompt_template,
            pos_idx=config.prompt_token_pos,
            layer=int(str(self.like.cfg.metadata.hook_name).split(".")[1]),
            probes_dir=self.cache / "probes",
            device=self.device,
        )

    @cached_property
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
