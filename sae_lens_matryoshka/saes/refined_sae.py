"""What an SAE with refinement to the end is saved as: a JumpReLU SAE whose encoder takes one more step."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from sae_lens.saes.sae import SAE, SAEConfig
from torch import nn
from typing_extensions import override

from sae_lens_matryoshka.engine.dense import nested_decode

REFINED_ARCHITECTURE = "matryoshka_refined"


@dataclass
class RefinedSAEConfig(SAEConfig):
    """
    Configuration of a RefinedSAE.

    Args:
        refinement_step (float): Share of the first pass's residual that is added to the input.
    """

    refinement_step: float = field(kw_only=True)

    @override
    @classmethod
    def architecture(cls) -> str:
        return REFINED_ARCHITECTURE


class RefinedSAE(SAE[RefinedSAEConfig]):
    """
    An inference SAE that encodes twice: latents above a first threshold reconstruct the input, a share of
    what they leave of it is added to the input, and that is encoded with a second threshold.

    Its first latents alone are an SAE of the same kind, whose residual is that of their own
    reconstruction. They do not encode as they do in the whole SAE.

    Args:
        cfg: The configuration.
        use_error_term: As SAELens.
    """

    b_enc: nn.Parameter
    start_threshold: nn.Parameter  # of the first pass, (d_sae,)
    threshold: nn.Parameter  # of the second pass, (d_sae,)

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        for name in ("b_enc", "start_threshold", "threshold"):
            zeros = torch.zeros(self.cfg.d_sae, dtype=self.dtype, device=self.device)
            setattr(self, name, nn.Parameter(zeros))

    @override
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """
        Activations after the refinement.

        Args:
            x: Activations of the model, (..., d_in).

        Returns:
            (..., d_sae)
        """
        sae_in = self.process_sae_in(x)
        (reconstruction,) = self._decode_input(self.first_pass(sae_in), [self.cfg.d_sae])
        refined = self._refined(sae_in, reconstruction)
        hidden_pre = self.hook_sae_acts_pre(refined @ self.W_enc + self.b_enc)
        return self.hook_sae_acts_post(hidden_pre * (hidden_pre > self.threshold))

    def first_pass(self, sae_in: torch.Tensor) -> torch.Tensor:
        """Activations before the refinement, (..., d_sae), of what process_sae_in gives."""
        hidden_pre = sae_in @ self.W_enc + self.b_enc
        return hidden_pre * (hidden_pre > self.start_threshold)

    def _decode_input(self, acts: torch.Tensor, widths: Sequence[int]) -> torch.Tensor:
        """Reconstructions in the space of what process_sae_in gives, (levels, ..., d_in)."""
        bias = torch.zeros_like(self.b_dec) if self.cfg.apply_b_dec_to_input else self.b_dec
        return nested_decode(acts, self.W_dec, bias, widths)

    def _refined(self, sae_in: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
        """What the second pass encodes, (..., d_in)."""
        return sae_in + self.cfg.refinement_step * (sae_in - reconstruction)

    @override
    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        """
        Reconstruct from all latents.

        Args:
            feature_acts: (..., d_sae)

        Returns:
            (..., d_in)
        """
        return self._out(feature_acts @ self.W_dec + self.b_dec)

    def _out(self, recons: torch.Tensor) -> torch.Tensor:
        recons = self.run_time_activation_norm_fn_out(self.hook_sae_recons(recons))
        return self.reshape_fn_out(recons, self.d_head)

    def reconstructions(self, x: torch.Tensor, widths: Sequence[int]) -> torch.Tensor:
        """
        What the SAEs of the first latents alone reconstruct, each with its own refinement.

        Args:
            x: Activations of the model, (..., d_in).
            widths: How many latents each of them has, increasing, the last one d_sae.

        Returns:
            (levels, ..., d_in)
        """
        sae_in = self.process_sae_in(x)
        acts = self.first_pass(sae_in)  # the same for all: a threshold looks at no other latent
        levels: list[torch.Tensor] = []
        for width, first in zip(widths, self._decode_input(acts, widths), strict=True):
            hidden_pre = self._refined(sae_in, first) @ self.W_enc[:, :width] + self.b_enc[:width]
            level_acts = hidden_pre * (hidden_pre > self.threshold[:width])
            levels.append(level_acts @ self.W_dec[:width] + self.b_dec)
        return self._out(torch.stack(levels))

    @override
    @torch.no_grad()
    def fold_W_dec_norm(self) -> None:
        """Fold decoder norms into encoder and thresholds without changing the reconstructions."""
        norms = self.fold_and_get_W_dec_norm()
        self.start_threshold.data.mul_(norms)
        self.threshold.data.mul_(norms)
