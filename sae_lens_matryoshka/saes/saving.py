"""The inference SAE that a trained one is saved as: folds, the measured thresholds, what is loaded."""

import logging
from abc import ABC
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from sae_lens.saes.sae import SAE
from typing_extensions import override

from sae_lens_matryoshka import engine
from sae_lens_matryoshka.engine import selection
from sae_lens_matryoshka.saes.encoding import NestedSAE
from sae_lens_matryoshka.saes.latent_order import sort_weights
from sae_lens_matryoshka.saes.thresholds import (
    COUNTED_THRESHOLD,
    UnreachableL0Error,
    cut_for_count,
    thresholds_for_l0,
)

logger = logging.getLogger(__name__)


class SavedAsStockSAE(NestedSAE, ABC):
    """A NestedSAE whose inference form is one of SAELens's own architectures, or a RefinedSAE."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the nested levels, the last one d_sae."""
        return tuple(self.cfg.widths)

    def level(self, index: int) -> SAE[Any]:
        """
        An inference SAE of the latents up to a level, as this SAE would be saved now.

        For several levels make one MatryoshkaSAE.from_sae(sae): the thresholds are counted once.

        Args:
            index: Level, 0 the innermost; negative counts from the outermost.

        Raises:
            IndexError: There is no such level.
            ValueError: A topk SAE, whose levels do not stand alone.
        """
        from sae_lens_matryoshka.levels.matryoshka_sae import MatryoshkaSAE  # a chapter above

        return MatryoshkaSAE.from_sae(self).level(index)

    def truncate(self, width: int) -> SAE[Any]:
        """
        An inference SAE of the first latents, as this SAE would be saved now; see `level`.

        Args:
            width: Latents to keep, a level's width or any other up to d_sae.

        Raises:
            ValueError: There are not as many latents, or a topk SAE, whose levels do not stand alone.
        """
        from sae_lens_matryoshka.levels.matryoshka_sae import MatryoshkaSAE  # a chapter above

        return MatryoshkaSAE.from_sae(self).truncate(width)

    @override
    @torch.no_grad()
    def save_model(self, path: str | Path) -> tuple[Path, Path]:
        """
        Save what training needs to go on; `save_inference_model` saves what everyone can load.

        Where this package is imported, SAE.load_from_disk opens the folder as the inference SAE.
        """
        metadata = self.cfg.metadata
        if self.cfg.activation == "batchtopk" and len(self.recent_activations) > 0:
            metadata[COUNTED_THRESHOLD] = self._top_k_thresholds()["threshold"]
        try:
            return super().save_model(Path(path).expanduser())
        finally:
            vars(metadata).pop(COUNTED_THRESHOLD, None)

    @override
    def save_inference_model(self, path: str | Path) -> tuple[Path, Path]:
        return super().save_inference_model(Path(path).expanduser())

    @override
    def load_weights_from_checkpoint(self, checkpoint_path: Path | str) -> None:
        super().load_weights_from_checkpoint(Path(checkpoint_path).expanduser())

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
                if self.counted_threshold is not None:
                    self.counted_threshold /= scaling_factor
            if self.cfg.is_saved_refined:
                self.start_topk_threshold /= scaling_factor
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
        for name, _ in self.named_buffers():  # what only training needs
            state_dict.pop(name, None)
        if self.cfg.activation == "batchtopk":
            for name, cut in self._top_k_thresholds().items():
                state_dict[name] = torch.full_like(self.b_enc, cut)
        if self.cfg.activation == "jumprelu":
            state_dict["threshold"] = self._jumprelu_thresholds().to(self.dtype)
        if self.cfg.activation == "relu":
            self._warn_if_target_is_missed()
        if self.cfg.rescale_acts_by_decoder_norm:
            norm = self.get_W_dec_norm()
            state_dict["W_enc"] = self.W_enc * norm
            state_dict["b_enc"] = self.b_enc * norm
            state_dict["W_dec"] = self.W_dec / norm[:, None]
        order = self.latent_order()
        if order is not None:
            sort_weights(state_dict, order)

    def _recent_encoders(self) -> Iterator[engine.Encoder]:
        """Give the pre-activations of the last training activations under the present weights."""
        norm = self.get_W_dec_norm() if self.cfg.rescale_acts_by_decoder_norm else None
        for x in self.recent_activations.batches():
            sae_in = self.process_sae_in(x.to(self.device))
            yield engine.Encoder(sae_in, self.W_enc, self.b_enc, norm)

    def _top_k_thresholds(self) -> dict[str, float]:
        """By name, what k latents per token exceed on the last training activations."""
        tokens, is_refined = len(self.recent_activations), self.cfg.is_saved_refined
        if tokens == 0:  # as after loading a checkpoint
            if self.counted_threshold is not None and not is_refined:
                return {"threshold": self.counted_threshold}
            if self.cfg.k_start is not None:
                logger.warning(
                    "The threshold is that of the last training steps, since the activations that it is set by "
                    "are not at hand. Where k_start=%s was still being annealed, more than k=%s latents will fire.",
                    self.cfg.k_start,
                    self.cfg.k,
                )
            running = {"threshold": self.topk_threshold.item()}
            if is_refined:
                running["start_threshold"] = self.start_topk_threshold.item()
            return running
        count = round(cast(float, self.cfg.k) * tokens)
        cut = cut_for_count(self._recent_encoders(), count)
        if not is_refined:
            return {"threshold": cut}
        start = self.b_enc.new_tensor(cut).item()  # as it will be saved
        return {
            "start_threshold": start,
            "threshold": cut_for_count(self._recent_refined_encoders(start), count),
        }

    def _recent_refined_encoders(self, start: float) -> Iterator[engine.Encoder]:
        """As _recent_encoders, after a first pass that a threshold, not a top k, decides."""
        for encoder in self._recent_encoders():
            entries = selection.above(encoder, start)
            first = engine.SparseCode(entries, entries.hidden_pre, encoder)
            yield self.refined(encoder, first)

    def _jumprelu_thresholds(self) -> torch.Tensor:
        """The learned thresholds, scaled by one factor to meet target_l0 if that is set."""
        thresholds, target_l0 = self.threshold.clamp(min=0.0), self.cfg.target_l0
        tokens = len(self.recent_activations)
        if target_l0 is None or tokens == 0:
            return thresholds
        try:
            return thresholds_for_l0(self._recent_encoders, thresholds, target_l0)
        except UnreachableL0Error as error:
            logger.warning("%s The thresholds are saved as they were learned.", error)
            return thresholds

    def _warn_if_target_is_missed(self) -> None:
        tokens, target_l0 = len(self.recent_activations), self.cfg.target_l0
        if target_l0 is None or tokens == 0:
            return
        fired = sum(map(selection.count_positive, self._recent_encoders()))
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
