"""What is trained: parameters, encode and decode, and the stock form that is saved."""

import logging
from abc import ABC
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from sae_lens.saes.jumprelu_sae import JumpReLU
from sae_lens.saes.sae import TrainingSAE
from torch import nn
from typing_extensions import override

from sae_lens_matryoshka import engine
from sae_lens_matryoshka.config import MatryoshkaTrainingSAEConfig
from sae_lens_matryoshka.threshold import (
    RecentActivations,
    UnreachableL0Error,
    cut_for_count,
    thresholds_for_l0,
)

logger = logging.getLogger(__name__)

# What keeps its own data type, whatever the SAE's.
PRECISION = {
    "threshold": torch.float32,
    "topk_threshold": torch.double,
    "l1_scale": torch.double,
}


class NestedSAE(TrainingSAE[MatryoshkaTrainingSAEConfig], ABC):
    """
    An SAE with any of the configuration's activations, without its training objective.

    Args:
        cfg: The configuration; checked again, since SAELens's runners may have changed it.
        use_error_term: As SAELens.

    Raises:
        ValueError: The configuration is not possible.
    """

    b_enc: nn.Parameter
    threshold: nn.Parameter  # jumprelu only
    topk_threshold: torch.Tensor  # batchtopk only: running value, for logs and checkpoints
    l1_scale: torch.Tensor  # relu with target_l0 only: the controller's factor
    b_dec_is_set: torch.Tensor  # b_dec_init="geometric_median" only
    prefix_seed: torch.Tensor  # prefix_sampling="random" only

    def __init__(self, cfg: MatryoshkaTrainingSAEConfig, use_error_term: bool = False):
        cfg.validate()
        super().__init__(cfg, use_error_term)
        self.recent_activations = RecentActivations()
        self._engine = engine.Engine()
        if cfg.activation == "batchtopk":
            self._register_scalar("topk_threshold", 0.0)
        if cfg.activation == "relu" and cfg.target_l0 is not None:
            self._register_scalar("l1_scale", 1.0)
        if cfg.b_dec_init == "geometric_median":
            self.register_buffer("b_dec_is_set", torch.tensor(False, device=self.W_dec.device))
        if cfg.prefix_sampling == "random":
            seed = torch.randint(2**31, ())  # by torch's seed, so that runs differ
            self.register_buffer("prefix_seed", seed.to(self.W_dec.device))

    def _register_scalar(self, name: str, value: float) -> None:
        scalar = torch.tensor(value, dtype=PRECISION[name], device=self.W_dec.device)
        self.register_buffer(name, scalar)

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        cfg = self.cfg
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae, dtype=self.dtype, device=self.device))
        if cfg.activation == "jumprelu":
            start = torch.full((cfg.d_sae,), cast(float, cfg.jumprelu_init_threshold))
            self.threshold = nn.Parameter(start.to(self.device))

    @override
    def _apply(self, *args: Any, **kwargs: Any) -> "NestedSAE":
        # like SAELens's JumpReLU: what moves by tiny steps keeps its precision through .to(dtype)
        # and through loading, which casts everything
        before = {name: getattr(self, name).data for name in PRECISION if hasattr(self, name)}
        super()._apply(*args, **kwargs)
        for name, data in before.items():
            moved = getattr(self, name)
            moved.data = data.to(moved.device, PRECISION[name])
        return self

    # ---- encode and decode

    @override
    def get_activation_fn(self) -> Callable[[torch.Tensor], torch.Tensor]:
        activation = self.cfg.activation
        if activation == "relu":
            return nn.ReLU()
        if activation == "jumprelu":
            return lambda hidden_pre: self._at_threshold(JumpReLU, hidden_pre, self.threshold)
        k = cast(float, self.cfg.k)
        if activation == "topk":
            return lambda hidden_pre: engine.token_top_k(hidden_pre, int(k))
        return lambda hidden_pre: engine.batch_top_k(hidden_pre, k)

    def _at_threshold(
        self,
        function: type[torch.autograd.Function],
        hidden_pre: torch.Tensor,
        threshold: torch.Tensor,
    ) -> torch.Tensor:
        # SAELens's default: the straight-through gradient reaches the threshold only
        threshold = threshold.to(hidden_pre.dtype)
        bandwidth = self.cfg.jumprelu_bandwidth
        return cast(torch.Tensor, function.apply(hidden_pre, threshold, bandwidth, False))

    @override
    def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Activations and pre-activations, times the decoder norms if rescale_acts_by_decoder_norm.

        Args:
            x: Activations of the model, (..., d_in).

        Returns:
            Activations and pre-activations, both (..., d_sae).
        """
        sae_in = self.process_sae_in(x)
        hidden_pre = self.hook_sae_acts_pre(sae_in @ self.W_enc + self.b_enc)
        if self.cfg.rescale_acts_by_decoder_norm:
            hidden_pre = hidden_pre * self.W_dec.norm(dim=-1)
        return self.hook_sae_acts_post(self.activation_fn(hidden_pre)), hidden_pre

    def encode_to_code(self, x: torch.Tensor) -> engine.Code:
        """
        Activations as the engine's faster path keeps them, for training: all entries, or the
        active ones only.

        Args:
            x: Activations of the model, (batch, d_in).
        """
        cfg = self.cfg
        sae_in, b_enc = self._encoder_input(x)
        norm = self.W_dec.detach().norm(dim=-1) if cfg.rescale_acts_by_decoder_norm else None
        if not self._is_observed(x):
            code = self._sparse_code(engine.Encoder(sae_in, self.W_enc, b_enc, norm))
            if code is not None:
                return code
        hidden_pre = self.hook_sae_acts_pre(sae_in @ self.W_enc + b_enc)
        if norm is not None:
            hidden_pre = hidden_pre * norm  # its gradient cancels against the decoder's
        acts = self.hook_sae_acts_post(self.activation_fn(hidden_pre))
        if not cfg.uses_top_k:
            found = (hidden_pre > self._least_of_interest()).sum()
            self._engine.observe(found.item() / hidden_pre.numel())
        return engine.DenseCode(acts, hidden_pre, norm)

    def _encoder_input(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the encoder multiplies, (batch, d_in), and the bias that it adds, (d_sae,)."""
        sae_in = self.process_sae_in(x)
        if self._is_observed(x):
            return sae_in, self.b_enc
        if not self.cfg.apply_b_dec_to_input:
            return sae_in.detach(), self.b_enc
        return sae_in.detach(), engine.shifted_bias(self.b_enc, self.b_dec, self.W_enc)

    def _is_observed(self, x: torch.Tensor) -> bool:
        """Whether someone wants the dense tensors of an encoding: a hook, or a gradient to x."""
        points = (self.hook_sae_input, self.hook_sae_acts_pre, self.hook_sae_acts_post)
        return x.requires_grad or any(point.fwd_hooks or point.bwd_hooks for point in points)

    def _least_of_interest(self) -> torch.Tensor | float:
        """What a pre-activation must exceed for it to count, or to move its threshold."""
        if self.cfg.activation == "relu":
            return 0.0
        return self.threshold.detach() - cast(float, self.cfg.jumprelu_bandwidth) / 2

    def _sparse_code(self, encoder: engine.Encoder) -> engine.SparseCode | None:
        k = self.cfg.k
        if self.cfg.activation == "batchtopk":
            return self._engine.batch_top_k(encoder, cast(float, k))
        if self.cfg.activation == "topk":
            return self._engine.token_top_k(encoder, cast(int, k))
        code = self._engine.above(encoder, self._least_of_interest())
        if code is not None and self.cfg.activation == "jumprelu":
            code.acts = self.with_thresholds(JumpReLU, code)
        return code

    def with_thresholds(
        self, function: type[torch.autograd.Function], code: engine.Code
    ) -> torch.Tensor:
        """SAELens's JumpReLU or Step of a code's pre-activations, in their shape."""
        threshold = code.at(self.threshold)
        if isinstance(code, engine.SparseCode):  # (1, entries): its gradient sums over the first
            return self._at_threshold(function, code.hidden_pre[None], threshold)[0]
        return self._at_threshold(function, code.hidden_pre, threshold)

    def decoder(self) -> torch.Tensor:
        """The decoder for activations as encode gives them, (d_sae, d_in).

        Its rows have norm 1 if activations carry the decoder norms.
        """
        if not self.cfg.rescale_acts_by_decoder_norm:
            return self.W_dec
        return self.W_dec / self.W_dec.norm(dim=-1, keepdim=True).clamp(min=1e-8)

    @override
    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        """
        Reconstruct from all latents.

        Args:
            feature_acts: Activations as encode gives them, (..., d_sae).

        Returns:
            (..., d_in)
        """
        recons = self.hook_sae_recons(feature_acts @ self.decoder() + self.b_dec)
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(recons), self.d_head)

    # ---- fold, save, load

    @override
    @torch.no_grad()
    def fold_W_dec_norm(self) -> None:
        """
        Fold decoder norms into the encoder without changing the reconstructions.

        Raises:
            NotImplementedError: The top-k ranks pre-activations without their decoder norms, so that
                folding would change which latents fire.
        """
        if not self.cfg.rescale_acts_by_decoder_norm:
            if self.cfg.uses_top_k:
                raise NotImplementedError(
                    "Folding the decoder norms would change the top-k selection of an SAE with "
                    "rescale_acts_by_decoder_norm=False."
                )
            if self.cfg.activation == "jumprelu":
                self.threshold.data.mul_(self.get_W_dec_norm())
        super().fold_W_dec_norm()

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        super().fold_activation_norm_scaling_factor(scaling_factor)
        if self.cfg.rescale_acts_by_decoder_norm:
            # thresholds are in units of hidden_pre * |W_dec|, and W_dec was just divided
            if self.cfg.activation == "batchtopk":
                self.topk_threshold /= scaling_factor
            if self.cfg.activation == "jumprelu":
                self.threshold.data /= scaling_factor
        self.recent_activations.transform(lambda x: x / scaling_factor)

    @override
    @torch.no_grad()
    def fold_activation_whitening(
        self,
        mean: torch.Tensor,
        whitening_matrix: torch.Tensor,
        unwhitening_matrix: torch.Tensor,
    ) -> None:
        if self.cfg.rescale_acts_by_decoder_norm:
            # unwhitening changes the norms, and with them the selection: fold them first
            self.fold_W_dec_norm()
            self.cfg.rescale_acts_by_decoder_norm = False
        super().fold_activation_whitening(mean, whitening_matrix, unwhitening_matrix)

        def unwhiten(z: torch.Tensor) -> torch.Tensor:
            m = unwhitening_matrix.to(z.device)
            return (z.to(m.dtype) @ m + mean.to(m)).to(z.dtype)

        self.recent_activations.transform(unwhiten)

    @override
    @torch.no_grad()
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        for name in ("topk_threshold", "l1_scale", "b_dec_is_set", "prefix_seed"):
            state_dict.pop(name, None)
        if self.cfg.activation == "batchtopk":
            state_dict["threshold"] = torch.full_like(self.b_enc, self._top_k_threshold())
        if self.cfg.activation == "jumprelu":
            state_dict["threshold"] = self._jumprelu_thresholds().to(self.dtype)
        if self.cfg.activation == "relu":
            self._warn_if_target_is_missed()
        if self.cfg.rescale_acts_by_decoder_norm:
            norm = self.get_W_dec_norm()
            state_dict["W_enc"] = self.W_enc * norm
            state_dict["b_enc"] = self.b_enc * norm
            state_dict["W_dec"] = self.W_dec / norm[:, None]

    def _recent_hidden_pre(self) -> Iterator[torch.Tensor]:
        """Pre-activations of the last training activations under the present weights."""
        for x in self.recent_activations.blocks(self.cfg.d_sae):
            yield self.encode_with_hidden_pre(x.to(self.device))[1]

    def _top_k_threshold(self) -> float:
        """The threshold that k latents per token exceed on the last training activations."""
        tokens = len(self.recent_activations)
        if tokens == 0:  # as after loading a checkpoint
            return self.topk_threshold.item()
        count = round(cast(float, self.cfg.k) * tokens)
        return cut_for_count(self._recent_hidden_pre(), count)

    def _jumprelu_thresholds(self) -> torch.Tensor:
        """The learned thresholds, scaled by one factor to meet target_l0 if that is set."""
        thresholds, target_l0 = self.threshold.clamp(min=0.0), self.cfg.target_l0
        tokens = len(self.recent_activations)
        if target_l0 is None or tokens == 0:
            return thresholds
        try:
            return thresholds_for_l0(self._recent_hidden_pre(), tokens, thresholds, target_l0)
        except UnreachableL0Error as error:
            logger.warning("%s The thresholds are saved as they were learned.", error)
            return thresholds

    def _warn_if_target_is_missed(self) -> None:
        tokens, target_l0 = len(self.recent_activations), self.cfg.target_l0
        if target_l0 is None or tokens == 0:
            return
        fired = sum((hidden_pre > 0).sum() for hidden_pre in self._recent_hidden_pre())
        l0 = float(fired) / tokens
        if abs(l0 / target_l0 - 1) > 0.05:
            reached = cast(float, self.cfg.l1_coefficient) * self.l1_scale.item()
            logger.warning(
                "L0 is %.4g, not target_l0=%.4g: the controller has not arrived. Train longer, or "
                "start from an l1_coefficient %s %.3g, where this run ended.",
                l0,
                target_l0,
                "above" if l0 > target_l0 else "below",
                reached,
            )

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        shape = tuple(state_dict["W_dec"].shape)
        if shape != (self.cfg.d_sae, self.cfg.d_in):
            raise ValueError(
                f"The weights have d_sae, d_in = {shape}, the configuration says "
                f"{(self.cfg.d_sae, self.cfg.d_in)}. Load them with the configuration they were "
                "trained with."
            )
        if self.cfg.b_dec_init == "geometric_median":
            state_dict["b_dec_is_set"] = torch.tensor(True)  # loaded weights are no fresh start
