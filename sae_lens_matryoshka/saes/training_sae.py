"""The Matryoshka SAE that SAELens's trainers drive: the objective of one training step."""

import dataclasses
from typing import cast

import torch
from sae_lens.saes.jumprelu_sae import Step
from sae_lens.saes.sae import TrainCoefficientConfig, TrainStepInput, TrainStepOutput, mse_loss
from typing_extensions import override

from sae_lens_matryoshka import engine
from sae_lens_matryoshka.engine.compiling import not_compiled
from sae_lens_matryoshka.saes import latent_order, objective, resampling
from sae_lens_matryoshka.saes.auxiliary_loss import (
    HiddenPre,
    as_encoded,
    auxiliary_loss,
    encoded_again,
)
from sae_lens_matryoshka.saes.config_rules import check_lengths
from sae_lens_matryoshka.saes.metrics import Metrics, level_metrics
from sae_lens_matryoshka.saes.optimizer_hook import call_after_steps, trainer_of
from sae_lens_matryoshka.saes.overrides import is_hooked, is_overridden, overridable
from sae_lens_matryoshka.saes.saving import SavedAsStockSAE
from sae_lens_matryoshka.saes.thresholds import follow_cut

# Share by which the L1 weight moves per step towards target_l0 (the authors' code).
L1_CONTROLLER_RATE = 3e-4

# Where SAELens's normalizations keep what they know of a batch's rows until it is decoded.
ROW_STATISTICS = ("ln_mu", "ln_std", "x_norm_coeff")


class MatryoshkaTrainingSAE(SavedAsStockSAE):
    """
    Trains nested dictionaries at once: the first m latents reconstruct the input without the rest
    (Bussmann et al. 2025, arXiv 2503.17547).

    Saved for inference as a stock SAELens SAE: "jumprelu" for activation="batchtopk" and "jumprelu",
    "topk" for "topk", "standard" for "relu". Refined to the end, as a RefinedSAE of this package.

    Training uses what subclasses override (encode_with_hidden_pre, process_sae_in, decode,
    calculate_aux_loss, get_activation_fn), a replaced mse_loss_fn and hooks as SAELens does. All of
    these but mse_loss_fn and hook_sae_recons need the dense path.

    Args:
        cfg: The configuration; checked again, since SAELens's runners may have changed it.
        use_error_term: As SAELens.

    Raises:
        ValueError: The configuration is not possible.
    """

    # what dead latents become after the optimizer's step
    _resampling: resampling.Resampling | None = None

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

    # ---- one training step

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """
        Loss and metrics of one batch.

        Args:
            step_input: The batch, (batch, d_in), and the trainer's state.

        Returns:
            Losses under SAELens's names. feature_acts and hidden_pre are for counting, without
            gradients: sparse COO tensors of the entries looked at where the engine's sparse path
            was taken. On logging steps, metrics per level: fvu (share of the
            variance unexplained), l0, active (share of the level's latents that fired in the batch)
            and dead (how many of them the trainer counts as dead).

        Raises:
            ValueError: The activations or the loss are not finite. No weight has changed yet.
        """
        cfg, x, step = self.cfg, step_input.sae_in, step_input.n_training_steps
        self._prepare_parameters(x)
        self.k_now = objective.annealed_k(step, cfg.k, cfg.k_start, cfg.k_anneal_steps)
        if cfg.refine_until is not None:
            self.refines_now = step < cfg.refine_until
        codes, dead_hidden_pre = self._encode_batch(x)
        code = codes[-1]
        feature_acts, hidden_pre = code.tensors()

        prefixes = self._prefixes(step)
        weights = objective.level_weights(len(prefixes), cfg.level_weights, cfg.level_weight_mu)
        reported = cfg.widths if step_input.is_logging_step else []
        widths = sorted({*prefixes, *reported})
        order = self.latent_order()
        recons = self._reconstructions(code, widths, order)  # (widths, batch, d_in)
        nested = _select(recons, widths, prefixes)

        squared_errors = self._squared_errors(x, nested)  # (prefixes, batch)
        errors = objective.nested_error(
            squared_errors, cfg.tilt, self._is_snapped(step)
        )  # (prefixes,)
        losses = self._sparsity_loss(step_input, code, prefixes, weights, order)
        losses |= self._aux_loss(step_input, code, nested, dead_hidden_pre)
        loss = (errors * errors.new_tensor(weights)).sum() + sum(losses.values())
        _require_finite(loss, step_input)
        self._follow(step_input, codes)
        self._plan_resampling(step_input, nested[-1])

        metrics = self._threshold_metrics()
        if reported:
            levels = _select(recons, widths, reported)
            metrics |= level_metrics(step_input, reported, levels, code.firing_counts, order)
        return TrainStepOutput(
            sae_in=x,
            sae_out=nested[-1],
            feature_acts=feature_acts,
            hidden_pre=hidden_pre,
            loss=loss,
            losses={**self._named_errors(squared_errors, prefixes), **losses},
            metrics=metrics,
        )

    def _encode_batch(self, x: torch.Tensor) -> tuple[list[engine.Code], HiddenPre]:
        """Codes of each of the encoder's passes, and what the auxiliary loss needs of dead latents."""
        if is_overridden(self, "encode_with_hidden_pre"):
            norm = self.acts_norm()
            code = engine.DenseCode(*self.encode_with_hidden_pre(x), norm)
            return [code], as_encoded(code.hidden_pre, norm)
        encoder = self.encoder(x)
        if not self._needs_dense(x):
            return self.encode_to_codes(encoder), encoded_again(encoder)
        # what others compute from the activations may have gradients to the norms
        encoder = dataclasses.replace(encoder, norm=self.acts_norm())
        codes = self.encode_to_codes(encoder, dense=True)
        return codes, as_encoded(codes[0].tensors()[1], encoder.norm)

    def _reconstructions(
        self, code: engine.Code, widths: list[int], order: torch.Tensor | None
    ) -> torch.Tensor:
        """
        Reconstructions at nested widths, (widths, batch, d_in).

        As in SAELens, `decode` and `hook_sae_recons` are those of the whole SAE only.
        """
        recons = code.nested_decode(
            self.W_dec, self.b_dec, widths, order, self.cfg.detach_inner_levels
        )
        if not is_overridden(self, "decode"):
            if is_hooked(self.hook_sae_recons):
                recons = torch.cat([recons[:-1], self.hook_sae_recons(recons[-1])[None]])
            # one call for all levels: it forgets the rows' statistics afterwards
            return self.run_time_activation_norm_fn_out(recons)
        statistics = {name: getattr(self, name) for name in ROW_STATISTICS if hasattr(self, name)}
        inner = self.run_time_activation_norm_fn_out(recons[:-1])
        for name, value in statistics.items():
            setattr(self, name, value)
        return torch.cat([inner, self.decode(code.tensors()[0])[None]])

    def _squared_errors(self, x: torch.Tensor, nested: torch.Tensor) -> torch.Tensor:
        """Error of each token at each level, (levels, batch), by SAELens's `mse_loss_fn` if replaced."""
        if self.mse_loss_fn is mse_loss:
            return objective.token_squared_errors(x, nested)
        return torch.stack([self.mse_loss_fn(recons, x).sum(dim=-1) for recons in nested])

    def _is_snapped(self, step: int) -> bool:
        return self.cfg.snap_after_steps is not None and step >= self.cfg.snap_after_steps

    @not_compiled
    def _prefixes(self, step: int) -> list[int]:
        cfg = self.cfg
        if cfg.prefix_sampling == "fixed":
            return cfg.widths
        seed = int(self.prefix_seed) + step
        return objective.draw_prefixes(cfg.d_sae, cfg.n_prefixes, cfg.pareto_power, seed)

    @not_compiled
    @torch.no_grad()
    def _prepare_parameters(self, x: torch.Tensor) -> None:
        if self.cfg.needs_trainer:
            call_after_steps(self)
        if self.cfg.activation == "jumprelu":
            # below zero the gate would let negative pre-activations through
            self.threshold.data.clamp_(min=0.0)
        if self.cfg.b_dec_init == "geometric_median" and not self.b_dec_is_set:
            center = objective.geometric_median(self.run_time_activation_norm_fn_in(x))
            if center.isfinite().all():  # else the loss will raise
                self.b_dec.data.copy_(center)
                self.b_dec_is_set.fill_(True)

    @not_compiled
    @torch.no_grad()
    def _follow(self, step_input: TrainStepInput, codes: list[engine.Code]) -> None:
        """Update what is not a parameter: the running thresholds, the L1 controller."""
        cfg, code = self.cfg, codes[-1]
        if cfg.activation != "topk" and cfg.wanted_l0 is not None:
            self.recent_activations.add(step_input.sae_in)
        if cfg.latent_order != "fixed":
            norms = None if cfg.rescale_acts_by_decoder_norm else self.get_W_dec_norm()
            latent_order.update_scores(
                self.latent_scores, cfg.latent_order, code, len(step_input.sae_in), norms
            )
        if cfg.activation == "batchtopk":
            saved = code if cfg.is_saved_refined else codes[0]
            follow_cut(self.topk_threshold, saved.smallest_active())
        if cfg.is_saved_refined:
            follow_cut(self.start_topk_threshold, codes[0].smallest_active())
        if cfg.activation == "relu" and cfg.target_l0 is not None:
            if step_input.coefficients["l1"] < cast(float, cfg.l1_coefficient):
                return  # still warming up: L0 says nothing about the final weight yet
            l0 = code.firing_counts.sum() / len(step_input.sae_in)
            too_many = l0 > cfg.target_l0
            self.l1_scale *= 1 + L1_CONTROLLER_RATE if too_many else 1 - L1_CONTROLLER_RATE

    @not_compiled
    @torch.no_grad()
    def _plan_resampling(self, step_input: TrainStepInput, recons: torch.Tensor) -> None:
        """Choose what dead latents become; the weights change after the optimizer's step."""
        cfg, step, dead = self.cfg, step_input.n_training_steps, step_input.dead_neuron_mask
        if cfg.resample_every is None or step == 0 or step % cfg.resample_every:
            return
        if cfg.resample_until is not None and step > cfg.resample_until:
            return
        if dead is None:
            raise ValueError(
                f"resample_every={cfg.resample_every} needs to know which latents are dead, but "
                "dead_neuron_mask is None. Give the mask, as SAELens's trainers do, or leave it out."
            )
        if self._resampling is not None and self._resampling.step < step:
            raise RuntimeError(
                f"Training step {step}: the latents that were to be resampled {cfg.resample_every} steps ago "
                "still wait for a step of the optimizer. resample_every works with optimizers of "
                "torch.optim that hold the SAE's own parameters, as SAELens's trainers have them."
            )
        if dead.any():
            self._resampling = resampling.choose(dead, step_input.sae_in - recons, step)

    def after_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Called after each step of the optimizer, for the options that need it or its trainer."""
        cfg, trainer = self.cfg, trainer_of(optimizer)
        if trainer is not None:  # a run of SAELens's other runners has not been checked
            check_lengths(cfg, trainer.cfg.total_training_steps, trainer.cfg.dead_feature_window)
        if self._resampling is not None:
            resampling.apply(self._resampling, self, optimizer, cfg.jumprelu_init_threshold)
            self._resampling = None
        if trainer is None or cfg.latent_order == "fixed":
            return
        if trainer.n_training_samples >= trainer.cfg.total_training_samples:
            latent_order.sort_latents(self, self.latent_scores, optimizer, trainer)

    # ---- losses and metrics

    @override
    @overridable
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: torch.Tensor,
        hidden_pre: torch.Tensor,
        sae_out: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """
        What the dead latents leave unexplained of the residual, as in SAELens's TopK SAEs.

        Args:
            step_input: The batch, (batch, d_in), and the trainer's mask of dead latents.
            feature_acts: Activations as encode_with_hidden_pre gives them, (batch, d_sae).
            hidden_pre: Pre-activations as encode_with_hidden_pre gives them, (batch, d_sae).
            sae_out: The whole SAE's reconstruction, (batch, d_in).
        """
        norm, recons = self.acts_norm(), sae_out[None]
        if self.cfg.aux_loss == "per_level":
            code = engine.DenseCode(feature_acts, hidden_pre, norm)
            self.run_time_activation_norm_fn_in(step_input.sae_in)  # the rows' statistics
            recons = self.run_time_activation_norm_fn_out(
                code.nested_decode(self.W_dec, self.b_dec, self.cfg.widths, self.latent_order())
            )
        return self._dead_latent_loss(step_input, recons, as_encoded(hidden_pre, norm))

    def _aux_loss(
        self,
        step_input: TrainStepInput,
        code: engine.Code,
        nested: torch.Tensor,
        hidden_pre: HiddenPre,
    ) -> dict[str, torch.Tensor]:
        if not is_overridden(self, "calculate_aux_loss"):
            return self._dead_latent_loss(step_input, nested, hidden_pre)
        losses = self.calculate_aux_loss(step_input, *code.tensors(), sae_out=nested[-1])
        if isinstance(losses, dict):
            return losses
        return {"auxiliary_reconstruction_loss": losses}  # SAELens takes a tensor as well

    def _dead_latent_loss(
        self, step_input: TrainStepInput, recons: torch.Tensor, hidden_pre: HiddenPre
    ) -> dict[str, torch.Tensor]:
        """The auxiliary loss of reconstructions, (levels, batch, d_in); the last one if it is global."""
        if self.cfg.aux_loss == "none":
            return {}
        loss = auxiliary_loss(
            self.cfg,
            step_input,
            recons,
            hidden_pre,
            self.get_W_dec_norm() if self.cfg.rescale_acts_by_decoder_norm else None,
            self.W_dec,
            self.latent_order(),
            self._is_snapped(step_input.n_training_steps),
        )
        return {"auxiliary_reconstruction_loss": loss}

    def _sparsity_loss(
        self,
        step_input: TrainStepInput,
        code: engine.Code,
        prefixes: list[int],
        weights: list[float],
        order: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        cfg, coefficients = self.cfg, step_input.coefficients
        if cfg.activation == "relu":
            coefficient = coefficients["l1"]
            if cfg.target_l0 is not None:
                coefficient = coefficient * self.l1_scale.item()
            sums = code.latent_sums() * objective.row_norms(self.W_dec)  # (d_sae,)
            l1 = objective.nested_l1(
                objective.placed(sums, order), prefixes, weights, cfg.detach_inner_levels
            )
            l1 = l1 / len(step_input.sae_in)
            return {"l1_loss": coefficient * l1}
        if cfg.activation == "jumprelu":
            l0 = code.token_sums(self.with_thresholds(Step, code))  # (batch,)
            if cfg.target_l0 is not None:  # Gemma Scope 2
                l0 = 2 / cfg.target_l0 * (l0 - cfg.target_l0) ** 2
            return {"l0_loss": coefficients["l0"] * l0.mean()}
        return {}

    def _named_errors(
        self, squared_errors: torch.Tensor, prefixes: list[int]
    ) -> dict[str, torch.Tensor]:
        """Squared errors under SAELens's names; random prefixes share one, since they vary."""
        errors = squared_errors.mean(dim=-1)  # (prefixes,)
        inner = {f"inner_mse_loss_{width}": error for width, error in zip(prefixes[:-1], errors)}
        if self.cfg.prefix_sampling == "random":
            inner = {"inner_mse_loss": errors[:-1].sum()}
        return {"mse_loss": errors[-1], **inner}

    def _threshold_metrics(self) -> Metrics:
        if self.cfg.activation == "batchtopk":
            return {"topk_threshold": self.topk_threshold.clone()}
        if self.cfg.activation == "jumprelu":
            return {"mean_threshold": lambda: self.threshold.detach().mean()}
        return {}


def _select(recons: torch.Tensor, widths: list[int], wanted: list[int]) -> torch.Tensor:
    """The reconstructions at the wanted widths, out of (widths, batch, d_in)."""
    if wanted == widths:
        return recons
    return recons[[widths.index(width) for width in wanted]]


@not_compiled
def _require_finite(loss: torch.Tensor, step_input: TrainStepInput) -> None:
    if torch.isfinite(loss):
        return
    step = step_input.n_training_steps
    bad_rows = (~torch.isfinite(step_input.sae_in)).any(dim=-1).sum().item()
    if bad_rows:
        raise ValueError(
            f"Training step {step}: {bad_rows} of {len(step_input.sae_in)} activations are NaN or "
            "infinite. No weight was changed. Check the model's dtype (float16 overflows) and the "
            "dataset; MatryoshkaSAETrainingRunner skips such activations."
        )
    raise ValueError(
        f"Training step {step}: the loss is {loss.item()} although the activations are finite. No "
        "weight was changed in this step. Lower the loss coefficients and resume from an earlier "
        "checkpoint, or start again with a lower lr."
    )
