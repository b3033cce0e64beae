"""What an SAE found of a synthetic model's features."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.synthetic import (
    ActivationGenerator,
    SyntheticDataEvalResult,
    SyntheticModel,
    eval_sae_on_synthetic_data,
)

from research.ground_truth.absorption_rate import absorption_rate, children_by_parent
from research.ground_truth.stored_samples import Replay, StoredDraw
from sae_lens_matryoshka.ownership import replaced_folder


@dataclass(frozen=True)
class Measures:
    """
    All but the last are of the saved SAE, loaded again.

    Args:
        f1: How well a latent tells whether the feature fires that it matches best; mean over latents.
        mcc: Mean cosine of latents and features, matched one to one.
        precision: As f1.
        recall: As f1.
        uniqueness: Different features among the latents' best matches, by latent.
        explained_variance: Of the activations.
        dead: Share of latents that never fire.
        absorption: See absorption_rate; None where no parent is tracked.
        n_parents: Parents that absorption rests on.
        l0: Active latents per sample.
        f1_in_training: f1 of the training object, which for BatchTopK takes the largest k * batch instead
            of comparing with the threshold that is saved.
    """

    f1: float
    mcc: float
    precision: float
    recall: float
    uniqueness: float
    explained_variance: float
    dead: float
    absorption: float | None
    n_parents: int
    l0: float
    f1_in_training: float


class Judge:
    """
    Judges SAEs by the same samples.

    Args:
        model: Has the true features.
        draw: Of the model.
        batch_size: Samples that an SAE is given at a time.
    """

    def __init__(self, model: SyntheticModel, draw: StoredDraw, batch_size: int):
        self._model, self._draw, self._batch_size = model, draw, batch_size

    def measure(self, trained: TrainingSAE[Any], folder: Path) -> Measures:
        """Save an SAE in a folder, load it with stock SAELens, and measure that."""
        in_training = self._evaluate(trained)
        with replaced_folder(folder) as staging:
            trained.save_inference_model(str(staging))
        sae = SAE.load_from_disk(folder)
        found = self._evaluate(sae)
        absorption = absorption_rate(
            sae.W_dec,
            self._model.feature_dict.feature_vectors,
            children_by_parent(self._model.hierarchy),
            self._activations(sae),
        )
        return Measures(
            f1=found.classification.f1_score,
            mcc=found.mcc,
            precision=found.classification.precision,
            recall=found.classification.recall,
            uniqueness=found.uniqueness,
            explained_variance=found.explained_variance,
            dead=found.dead_latents / sae.cfg.d_sae,
            absorption=absorption.rate,
            n_parents=absorption.n_parents,
            l0=found.sae_l0,
            f1_in_training=in_training.classification.f1_score,
        )

    def _evaluate(self, sae: SAE[Any]) -> SyntheticDataEvalResult:
        return eval_sae_on_synthetic_data(
            sae,
            self._model.feature_dict,
            cast(ActivationGenerator, Replay(self._draw)),  # all that it asks for is samples
            self._draw.n_samples,
            self._batch_size,
        )

    @torch.no_grad()
    def _activations(self, sae: SAE[Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Of latents, (batch, d_sae), and of features, (batch, features)."""
        for feature_acts in self._draw.batches(self._batch_size):
            yield sae.encode(self._model.feature_dict(feature_acts)), feature_acts
