"""The Matryoshka SAE that SAELens's trainers drive."""

from collections.abc import Callable
from typing import Any, cast

import torch
from sae_lens.saes.jumprelu_sae import JumpReLU, Step
from sae_lens.saes.sae import (
    TrainCoefficientConfig,
    TrainingSAE,
    TrainStepInput,
    TrainStepOutput,
)
from torch import nn
from typing_extensions import override

from sae_lens_matryoshka import engine, objective
from sae_lens_matryoshka.config import MatryoshkaTrainingSAEConfig
from sae_lens_matryoshka.threshold import RecentActivations, cut_for_count

# Share by which the L1 weight moves per step towards target_l0 (the authors' code).
L1_CONTROLLER_RATE = 3e-4

# Share of the newest batch in the running threshold that is logged and kept in checkpoints.
THRESHOLD_RATE = 0.1

Metrics = dict[str, torch.Tensor | float | int | Callable[[], torch.Tensor | float | int]]


class MatryoshkaTrainingSAE(TrainingSAE[MatryoshkaTrainingSAEConfig]):
    """
    Trains nested dictionaries at once: the first m latents reconstruct the input without the rest
    (Bussmann et al. 2025, arXiv 2503.17547).

    Saved for inference as a stock SAELens SAE: "jumprelu" for activation="batchtopk" and "jumprelu",
    "topk" for "topk", "standard" for "relu".

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

    def __init__(self, cfg: MatryoshkaTrainingSAEConfig, use_error_term: bool = False):
        cfg.validate()
        super().__init__(cfg, use_error_term)
        self.recent_activations = RecentActivations()
        if cfg.activation == "batchtopk":
            self._register_scalar("topk_threshold", 0.0)
        if cfg.activation == "relu" and cfg.target_l0 is not None:
            self._register_scalar("l1_scale", 1.0)
        if cfg.b_dec_init == "geometric_median":
            self.register_buffer(
                "b_dec_is_set", torch.tensor(False, device=self.W_dec.device)
            )

    def _register_scalar(self, name: str, value: float) -> None:
        # double: the steps of a running value round away in bfloat16
        scalar = torch.tensor(value, dtype=torch.double, device=self.W_dec.device)
        self.register_buffer(name, scalar)

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        cfg = self.cfg
        self.b_enc = nn.Parameter(
            torch.zeros(cfg.d_sae, dtype=self.dtype, device=self.device)
        )
        if cfg.activation == "jumprelu":
            start = torch.full((cfg.d_sae,), cast(float, cfg.jumprelu_init_threshold))
            self.threshold = nn.Parameter(start.to(self.device))

    @override
    def _apply(self, *args: Any, **kwargs: Any) -> "MatryoshkaTrainingSAE":
        # like SAELens's JumpReLU: what moves by tiny steps keeps its precision through .to(dtype)
        names = ("threshold", "topk_threshold", "l1_scale")
        before = {name: getattr(self, name).data for name in names if hasattr(self, name)}
        super()._apply(*args, **kwargs)
        for name, data in before.items():
            moved = getattr(self, name)
            moved.data = data.to(moved.device)
        return self

    @override
    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        cfg = self.cfg
        if cfg.activation == "relu":
            name, value, steps = "l1", cfg.l1_coefficient, cfg.l1_warm_up_steps
        elif cfg.activation == "jumprelu":
            name, value, steps = "l0", cfg.l0_coefficient, cfg.l0_warm_up_steps
        else:
            return {}
        return {name: TrainCoefficientConfig(cast(float, value), cast(int, steps))}

    # ---- encode and decode

    @override
    def get_activation_fn(self) -> Callable[[torch.Tensor], torch.Tensor]:
        activation, k = self.cfg.activation, self.cfg.k
        if activation == "relu":
            return nn.ReLU()
        if activation == "jumprelu":
            return lambda hidden_pre: self._with_threshold(JumpReLU, hidden_pre)
        top_k = {"batchtopk": engine.batch_top_k, "topk": engine.token_top_k}[activation]
        return lambda hidden_pre: top_k(hidden_pre, k)

    def _with_threshold(
        self, function: type[torch.autograd.Function], hidden_pre: torch.Tensor
    ) -> torch.Tensor:
        # SAELens's default: the straight-through gradient reaches the threshold only
        threshold = self.threshold.to(hidden_pre.dtype)
        bandwidth = self.cfg.jumprelu_bandwidth
        return cast(
            torch.Tensor, function.apply(hidden_pre, threshold, bandwidth, False)
        )

    @override
    def encode_with_hidden_pre(
        self, x: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
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
        return self.reshape_fn_out(
            self.run_time_activation_norm_fn_out(recons), self.d_head
        )

    # ---- one training step

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """
        Loss and metrics of one batch.

        Args:
            step_input: The batch, (batch, d_in), and the trainer's state.

        Returns:
            Losses under SAELens's names. On logging steps, metrics per level: fvu (share of the
            variance unexplained), l0, active (share of the level's latents that fired in the batch)
            and dead (how many of them the trainer counts as dead).

        Raises:
            ValueError: The activations or the loss are not finite. No weight has changed yet.
        """
        cfg, x = self.cfg, step_input.sae_in
        self._prepare_parameters(x)
        feature_acts, hidden_pre = self.encode_with_hidden_pre(x)

        prefixes = self._draw_prefixes()
        weights = objective.level_weights(
            len(prefixes), cfg.level_weights, cfg.level_weight_mu
        )
        reported = cfg.widths if step_input.is_logging_step else []
        widths = sorted({*prefixes, *reported})
        recons = engine.nested_decode(
            feature_acts, self.decoder(), self.b_dec, widths
        )  # (widths, batch, d_in)
        # one call for all levels: it forgets the rows' statistics afterwards
        recons = self.run_time_activation_norm_fn_out(self.hook_sae_recons(recons))
        nested = _select(recons, widths, prefixes)

        errors = objective.nested_squared_error(x, nested)  # (prefixes,)
        losses = self._sparsity_loss(
            step_input, feature_acts, hidden_pre, prefixes, weights
        ) | self.calculate_aux_loss(step_input, feature_acts, hidden_pre, nested)
        loss = (errors * errors.new_tensor(weights)).sum() + sum(losses.values())
        _require_finite(loss, step_input)
        self._follow(x, feature_acts)

        metrics = self._threshold_metrics()
        if reported:
            metrics |= self._level_metrics(
                step_input, feature_acts, _select(recons, widths, reported)
            )
        return TrainStepOutput(
            sae_in=x,
            sae_out=nested[-1],
            feature_acts=feature_acts,
            hidden_pre=hidden_pre,
            loss=loss,
            losses={**self._named_errors(errors, prefixes), **losses},
            metrics=metrics,
        )

    @torch.compiler.disable
    def _draw_prefixes(self) -> list[int]:
        cfg = self.cfg
        if cfg.prefix_sampling == "fixed":
            return cfg.widths
        return objective.draw_prefixes(cfg.d_sae, cfg.n_prefixes, cfg.pareto_power)

    @torch.compiler.disable
    @torch.no_grad()
    def _prepare_parameters(self, x: torch.Tensor) -> None:
        if self.cfg.activation == "jumprelu":
            # below zero the gate would let negative pre-activations through
            self.threshold.data.clamp_(min=0.0)
        if self.cfg.b_dec_init == "geometric_median" and not self.b_dec_is_set:
            center = objective.geometric_median(self.run_time_activation_norm_fn_in(x))
            self.b_dec.data.copy_(center)
            self.b_dec_is_set.fill_(True)

    @torch.compiler.disable
    @torch.no_grad()
    def _follow(self, x: torch.Tensor, feature_acts: torch.Tensor) -> None:
        """Update what is not a parameter: the running threshold, the L1 controller."""
        if self.cfg.activation == "batchtopk":
            self.recent_activations.add(x)
            fired = feature_acts[feature_acts > 0]
            if len(fired):
                smallest = fired.min().double()
                old = self.topk_threshold if self.topk_threshold > 0 else smallest
                self.topk_threshold.copy_(old + THRESHOLD_RATE * (smallest - old))
        if self.cfg.activation == "relu" and self.cfg.target_l0 is not None:
            l0 = (feature_acts > 0).sum(dim=-1).float().mean()
            too_many = l0 > self.cfg.target_l0
            self.l1_scale *= 1 + L1_CONTROLLER_RATE if too_many else 1 - L1_CONTROLLER_RATE

    # ---- losses and metrics

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: torch.Tensor,
        hidden_pre: torch.Tensor,
        sae_out: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """
        What the dead latents leave unexplained of the residual, as SAELens's TopK SAEs.

        Args:
            step_input: The batch, (batch, d_in), and the trainer's mask of dead latents.
            feature_acts: Activations, (batch, d_sae).
            hidden_pre: Pre-activations, (batch, d_sae).
            sae_out: Every level's reconstruction, (levels, batch, d_in).
        """
        cfg, x = self.cfg, step_input.sae_in
        if cfg.aux_loss == "none":
            return {}
        dead = step_input.dead_neuron_mask
        loss = sae_out.new_tensor(0.0)
        if dead is not None and dead.any():
            if cfg.aux_loss == "global":
                groups = [(0, cfg.d_sae, sae_out[-1])]
            else:
                groups = list(zip([0, *cfg.widths], cfg.widths, sae_out))
            decoder, k_aux = self.decoder(), cfg.k_aux or max(1, cfg.d_in // 2)
            for lo, hi, reconstruction in groups:
                if dead[lo:hi].any():
                    loss = loss + objective.dead_latent_loss(
                        hidden_pre[:, lo:hi],
                        decoder[lo:hi],
                        x - reconstruction,
                        dead[lo:hi],
                        k_aux,
                        row_scale(x, cfg.normalize_activations),
                    )
        coefficient = 1.0 if cfg.aux_loss_coefficient is None else cfg.aux_loss_coefficient
        return {"auxiliary_reconstruction_loss": coefficient * loss}

    def _sparsity_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: torch.Tensor,
        hidden_pre: torch.Tensor,
        prefixes: list[int],
        weights: list[float],
    ) -> dict[str, torch.Tensor]:
        cfg, coefficients = self.cfg, step_input.coefficients
        if cfg.activation == "relu":
            if not cfg.rescale_acts_by_decoder_norm:
                feature_acts = feature_acts * self.W_dec.norm(dim=-1)
            coefficient = coefficients["l1"]
            if cfg.target_l0 is not None:
                coefficient = coefficient * self.l1_scale.item()
            l1 = objective.nested_l1(feature_acts, prefixes, weights)
            return {"l1_loss": coefficient * l1}
        if cfg.activation == "jumprelu":
            l0 = self._with_threshold(Step, hidden_pre).sum(dim=-1)  # (batch,)
            if cfg.target_l0 is not None:  # Gemma Scope 2
                l0 = 2 / cfg.target_l0 * (l0 - cfg.target_l0) ** 2
            return {"l0_loss": coefficients["l0"] * l0.mean()}
        return {}

    def _named_errors(
        self, errors: torch.Tensor, prefixes: list[int]
    ) -> dict[str, torch.Tensor]:
        """Squared errors under SAELens's names; random prefixes share one, since they vary."""
        inner = {
            f"inner_mse_loss_{width}": error
            for width, error in zip(prefixes[:-1], errors)
        }
        if self.cfg.prefix_sampling == "random":
            inner = {"inner_mse_loss": errors[:-1].sum()}
        return {"mse_loss": errors[-1], **inner}

    def _threshold_metrics(self) -> Metrics:
        if self.cfg.activation == "batchtopk":
            return {"topk_threshold": self.topk_threshold}
        if self.cfg.activation == "jumprelu":
            return {"mean_threshold": lambda: self.threshold.detach().mean()}
        return {}

    @torch.compiler.disable
    @torch.no_grad()
    def _level_metrics(
        self,
        step_input: TrainStepInput,
        feature_acts: torch.Tensor,
        recons: torch.Tensor,
    ) -> Metrics:
        fired = feature_acts > 0  # (batch, d_sae)
        fvu = objective.fraction_of_variance_unexplained(step_input.sae_in, recons)
        metrics: Metrics = {}
        for level, width in enumerate(self.cfg.widths):
            name = f"level_{level}_width_{width}"
            metrics[f"{name}/fvu"] = fvu[level]
            metrics[f"{name}/l0"] = fired[:, :width].sum(dim=-1).float().mean()
            metrics[f"{name}/active"] = fired[:, :width].any(dim=0).float().mean()
            if step_input.dead_neuron_mask is not None:
                metrics[f"{name}/dead"] = step_input.dead_neuron_mask[:width].sum()
        return metrics

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
        self.recent_activations.transform(
            lambda z: (z.to(mean.dtype) @ unwhitening_matrix + mean).to(z.dtype)
        )

    @override
    @torch.no_grad()
    def process_state_dict_for_saving_inference(
        self, state_dict: dict[str, Any]
    ) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        for name in ("topk_threshold", "l1_scale", "b_dec_is_set"):
            state_dict.pop(name, None)
        if self.cfg.activation == "batchtopk":
            threshold = self.calibrated_threshold()
            state_dict["threshold"] = torch.full_like(self.b_enc, threshold)
        if self.cfg.activation == "jumprelu":
            state_dict["threshold"] = self.threshold.clamp(min=0.0).to(self.dtype)
        if self.cfg.rescale_acts_by_decoder_norm:
            norm = self.get_W_dec_norm()
            state_dict["W_enc"] = self.W_enc * norm
            state_dict["b_enc"] = self.b_enc * norm
            state_dict["W_dec"] = self.W_dec / norm[:, None]

    @torch.no_grad()
    def calibrated_threshold(self) -> float:
        """
        The batchtopk threshold that lets k latents per token fire on the last training activations.

        Counted with the present weights over up to 32,768 tokens; the running threshold stands in
        where there are none, as after loading a checkpoint.
        """
        tokens = len(self.recent_activations)
        if tokens == 0:
            return self.topk_threshold.item()
        blocks = self.recent_activations.blocks(self.cfg.d_sae)
        pre_activations = (self.encode_with_hidden_pre(x)[1] for x in blocks)
        return cut_for_count(pre_activations, round(cast(float, self.cfg.k) * tokens))

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


def row_scale(x: torch.Tensor, normalize_activations: str) -> torch.Tensor | None:
    """Factor from SAELens's normalized to raw units per row, (..., 1); None where they agree."""
    if normalize_activations == "layer_norm":
        return x.std(dim=-1, keepdim=True)
    if normalize_activations == "constant_norm_rescale":
        return x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
    return None


def _select(
    recons: torch.Tensor, widths: list[int], wanted: list[int]
) -> torch.Tensor:
    """The reconstructions at the wanted widths, out of (widths, batch, d_in)."""
    if wanted == widths:
        return recons
    return recons[[widths.index(width) for width in wanted]]


@torch.compiler.disable
def _require_finite(loss: torch.Tensor, step_input: TrainStepInput) -> None:
    if torch.isfinite(loss):
        return
    step = step_input.n_training_steps
    bad_rows = (~torch.isfinite(step_input.sae_in)).any(dim=-1).sum().item()
    if bad_rows:
        raise ValueError(
            f"Training step {step}: {bad_rows} of {len(step_input.sae_in)} activations are NaN or "
            "infinite. No weight was changed. Check the model's dtype (float16 overflows) and the "
            "dataset, then resume from the last checkpoint."
        )
    raise ValueError(
        f"Training step {step}: the loss is {loss.item()} although the activations are finite. No "
        "weight was changed in this step. Lower lr or the loss coefficients and resume from the "
        "last checkpoint."
    )
