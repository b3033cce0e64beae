"""Lets `SAE.load_from_disk` open what `save_model` wrote of an SAE in training, as its inference SAE."""

from dataclasses import dataclass
from typing import Any

import torch
from sae_lens.saes.sae import SAE, SAEMetadata
from typing_extensions import override

from sae_lens_matryoshka.saes.config import MatryoshkaTrainingSAEConfig
from sae_lens_matryoshka.saes.inference_sae import FOLDED_NORMALIZATIONS, inference_cfg_of
from sae_lens_matryoshka.saes.training_sae import MatryoshkaTrainingSAE


@dataclass
class SavedTrainingSAEConfig(MatryoshkaTrainingSAEConfig):
    """The configuration of training, as SAELens reads configurations of inference SAEs."""

    @override
    def __post_init__(self) -> None:
        if isinstance(self.metadata, dict):
            self.metadata = SAEMetadata(**self.metadata)
        super().__post_init__()


class SavedTrainingSAE(SAE[MatryoshkaTrainingSAEConfig]):
    """
    Registered with SAELens for inference under the name of the training architecture.

    Has no instances: it makes the SAE that training saves for inference, whose weights are converted
    when SAELens loads them.

    Args:
        cfg: The configuration of training.
        use_error_term: As SAELens.

    Raises:
        ValueError: The weights alone are not enough to use the SAE.
    """

    def __new__(cls, cfg: MatryoshkaTrainingSAEConfig, use_error_term: bool = False) -> SAE[Any]:
        if cfg.normalize_activations in FOLDED_NORMALIZATIONS:
            raise ValueError(
                f"This checkpoint needs the activation statistics beside it (normalize_activations="
                f"{cfg.normalize_activations!r}). Open its folder with "
                "sae_lens_matryoshka.MatryoshkaSAE.load_from_disk, whose .sae is the SAELens SAE."
            )
        trained = MatryoshkaTrainingSAE(cfg)
        inference_cfg = inference_cfg_of(cfg)
        sae_class: Any = SAE.get_sae_class_for_architecture(inference_cfg.architecture())
        sae = sae_class(inference_cfg, use_error_term)

        def convert(_: Any, state_dict: dict[str, torch.Tensor], *__: Any) -> None:
            handle.remove()
            trained.process_state_dict_for_loading(state_dict)
            trained.load_state_dict(state_dict, assign=True)
            weights = trained.to(state_dict["W_dec"].device).state_dict()
            trained.process_state_dict_for_saving_inference(weights)
            state_dict.clear()
            state_dict.update(weights)

        handle = sae.register_load_state_dict_pre_hook(convert)
        return sae

    @override
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    @override
    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError
