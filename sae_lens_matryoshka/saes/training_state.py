"""What a training SAE knows beside its weights: kept in checkpoints, so that a resumed run is exact."""

from collections.abc import Mapping
from typing import Any

from sae_lens import TrainingSAE

from sae_lens_matryoshka.saes.training_sae import MatryoshkaTrainingSAE


def training_state(sae: TrainingSAE[Any]) -> dict[str, Any]:
    """What an SAE of this package knows of its last batches beside its weights; nothing of another SAE."""
    if not isinstance(sae, MatryoshkaTrainingSAE):
        return {}
    recent = [batch.cpu() for batch in sae.recent_activations.batches()]
    return {"recent_activations": recent, "engines": sae.engine_memory}


def restore_training_state(sae: TrainingSAE[Any], state: Mapping[str, Any]) -> None:
    """Give an SAE what training_state returned."""
    if isinstance(sae, MatryoshkaTrainingSAE):
        for batch in state["recent_activations"]:
            sae.recent_activations.add(batch.to(sae.device))
        sae.engine_memory = state.get("engines", ())  # not in checkpoints of earlier commits
