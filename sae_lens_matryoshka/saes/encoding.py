"""What is trained: parameters, encode and decode."""

import dataclasses
from abc import ABC
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from sae_lens.saes.jumprelu_sae import JumpReLU
from sae_lens.saes.sae import TrainingSAE
from torch import nn
from typing_extensions import override

from sae_lens_matryoshka import engine
from sae_lens_matryoshka.engine.compiling import not_compiled
from sae_lens_matryoshka.saes.config import MatryoshkaTrainingSAEConfig
from sae_lens_matryoshka.saes.latent_order import order_of
from sae_lens_matryoshka.saes.overrides import is_hooked, is_overridden, overridable
from sae_lens_matryoshka.saes.thresholds import COUNTED_THRESHOLD, RecentActivations

# What keeps its own data type, whatever the SAE's.
PRECISION = {
    "threshold": torch.float32,
    "topk_threshold": torch.double,
    "start_topk_threshold": torch.double,
    "l1_scale": torch.double,
    "latent_scores": torch.float32,
    "prefix_seed": torch.int64,
    "b_dec_is_set": torch.bool,
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
    start_topk_threshold: torch.Tensor  # saved refined only: the first pass's running value
    l1_scale: torch.Tensor  # relu with target_l0 only: the controller's factor
    b_dec_is_set: torch.Tensor  # b_dec_init="geometric_median" only
    prefix_seed: torch.Tensor  # prefix_sampling="random" only
    latent_scores: torch.Tensor  # latent_order other than "fixed" only: (d_sae,)

    def __init__(self, cfg: MatryoshkaTrainingSAEConfig, use_error_term: bool = False):
        cfg.validate()
        super().__init__(cfg, use_error_term)
        self.recent_activations = RecentActivations()
        # of the weights that SAELens loads next; until activations are seen again
        self.counted_threshold: float | None = vars(cfg.metadata).pop(COUNTED_THRESHOLD, None)
        n_passes = 1 if cfg.refinement_step is None else 2
        self._engines = [engine.Engine() for _ in range(n_passes)]
        self.refines_now = cfg.is_saved_refined
        self.k_now = cfg.k  # while k_start is annealed: what the last training step had
        if cfg.activation == "batchtopk":
            self._register_scalar("topk_threshold", 0.0)
        if cfg.is_saved_refined:
            self._register_scalar("start_topk_threshold", 0.0)
        if cfg.activation == "relu" and cfg.target_l0 is not None:
            self._register_scalar("l1_scale", 1.0)
        if cfg.b_dec_init == "geometric_median":
            self.register_buffer("b_dec_is_set", torch.tensor(False, device=self.W_dec.device))
        if cfg.prefix_sampling == "random":
            seed = torch.randint(2**31, ())  # by torch's seed, so that runs differ
            self.register_buffer("prefix_seed", seed.to(self.W_dec.device))
        if cfg.latent_order != "fixed":
            self.register_buffer("latent_scores", torch.zeros(cfg.d_sae, device=self.W_dec.device))

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
        return nn.ReLU() if self.cfg.activation == "relu" else self._activate

    def _activate(self, hidden_pre: torch.Tensor) -> torch.Tensor:
        # a method, which a deep copy of the SAE binds to itself
        if self.cfg.activation == "jumprelu":
            return self._at_threshold(JumpReLU, hidden_pre, self.threshold)
        if self.cfg.activation == "topk":
            return engine.token_top_k(hidden_pre, int(cast(float, self.k_now)))
        return engine.batch_top_k(hidden_pre, cast(float, self.k_now))

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
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """
        Activations, times the decoder norms if rescale_acts_by_decoder_norm.

        Args:
            x: Activations of the model, (..., d_in).

        Returns:
            (..., d_sae)
        """
        if torch.is_grad_enabled() or x.numel() == 0 or self._needs_dense(x):
            return super().encode(x)
        encoder = self.encoder(x)
        rows = dataclasses.replace(encoder, x=encoder.x.reshape(-1, self.cfg.d_in))
        acts = self.encode_to_codes(rows)[-1].tensors()[0].to_dense()
        return acts.view(*encoder.x.shape[:-1], self.cfg.d_sae)

    @override
    @overridable
    def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Activations and pre-activations, times the decoder norms if rescale_acts_by_decoder_norm.

        Args:
            x: Activations of the model, (..., d_in).

        Returns:
            Activations and pre-activations, both (..., d_sae).
        """
        encoder = engine.Encoder(self.process_sae_in(x), self.W_enc, self.b_enc, self.acts_norm())
        return self.encode_to_codes(encoder, dense=True)[-1].tensors()

    @property
    def engine_memory(self) -> list[tuple[float, float]]:
        """What the engine of each of the encoder's passes remembers of the last batch."""
        return [memory.memory for memory in self._engines]

    @engine_memory.setter
    def engine_memory(self, remembered: Sequence[tuple[float, float]]) -> None:
        for memory, values in zip(self._engines, remembered):
            memory.memory = values

    def encode_to_codes(self, encoder: engine.Encoder, dense: bool = False) -> list[engine.Code]:
        """
        Activations as the engine's faster path keeps them: all entries, or the active ones only.

        Args:
            encoder: Gives the pre-activations of (batch, d_in) activations.
            dense: All entries, whatever is faster: someone wants to see them.

        Returns:
            Of each pass of the encoder. The last one's are the SAE's activations.
        """
        first, *others = self._engines if self.refines_now else self._engines[-1:]
        codes = [self._code(encoder, first, dense)]
        for memory in others:
            encoder = self.refined(encoder, codes[-1])
            codes.append(self._code(encoder, memory, dense))
        return codes

    def refined(self, encoder: engine.Encoder, first: engine.Code) -> engine.Encoder:
        """What gives the pre-activations of the second pass, after the code that came of the first one."""
        b_dec = None if self.cfg.apply_b_dec_to_input else self.b_dec
        step = cast(float, self.cfg.refinement_step)
        return engine.refined(encoder, first, self.W_dec, b_dec, step)

    def _code(self, encoder: engine.Encoder, memory: engine.Engine, dense: bool) -> engine.Code:
        code = None if dense else self._sparse_code(encoder, memory)
        if code is not None:
            return code
        code = self._dense_code(encoder, observed=memory is self._engines[-1])
        if not self.cfg.uses_top_k and code.hidden_pre.numel() > 0:
            found = (code.hidden_pre > self._least_of_interest()).sum()
            memory.observe(found.item() / code.hidden_pre.numel())
        return code

    def _dense_code(self, encoder: engine.Encoder, observed: bool) -> engine.DenseCode:
        hidden_pre = encoder.x @ encoder.W_enc + encoder.b_enc
        if observed:
            hidden_pre = self.hook_sae_acts_pre(hidden_pre)
        if encoder.norm is not None:
            hidden_pre = hidden_pre * encoder.norm
        acts = self.activation_fn(hidden_pre)
        if observed:
            acts = self.hook_sae_acts_post(acts)
        return engine.DenseCode(acts, hidden_pre, encoder.norm)

    def encoder(self, x: torch.Tensor) -> engine.Encoder:
        """What gives the pre-activations of x, (..., d_in); W_enc, b_enc and b_dec get gradients."""
        sae_in, b_enc = self.process_sae_in(x), self.b_enc
        if not self._is_observed(x):
            sae_in = sae_in.detach()
            if self.cfg.apply_b_dec_to_input:
                b_enc = engine.shifted_bias(b_enc, self.b_dec, self.W_enc)
        # the norms' gradients through encoder and decoder cancel
        norm = self.get_W_dec_norm().detach() if self.cfg.rescale_acts_by_decoder_norm else None
        return engine.Encoder(sae_in, self.W_enc, b_enc, norm)

    def acts_norm(self) -> torch.Tensor | None:
        """The decoder norms that activations carry, (d_sae,), with gradients; None: they carry none."""
        if not self.cfg.rescale_acts_by_decoder_norm:
            return None
        return self.W_dec.norm(dim=-1).clamp(min=1e-8)

    def _is_observed(self, x: torch.Tensor) -> bool:
        """True if the encoder's input or dense tensors are visible: to a hook, a gradient, an override."""
        points = (self.hook_sae_input, self.hook_sae_acts_pre, self.hook_sae_acts_post)
        hooked = any(map(is_hooked, points))
        return x.requires_grad or hooked or is_overridden(self, "process_sae_in")

    def _needs_dense(self, x: torch.Tensor) -> bool:
        """True if something outside this package needs the activations of all latents."""
        methods = ("encode_with_hidden_pre", "decode", "calculate_aux_loss")
        overridden = any(is_overridden(self, method) for method in methods)
        return overridden or self._is_observed(x) or not self._has_own_activation()

    def _has_own_activation(self) -> bool:
        if self.cfg.activation == "relu":
            return type(self.activation_fn) is nn.ReLU
        return self.activation_fn == self._activate

    def _least_of_interest(self) -> torch.Tensor | float:
        """What a pre-activation must exceed for it to count, or to move its threshold."""
        if self.cfg.activation == "relu":
            return 0.0
        threshold = self.threshold.detach()
        # as it is applied, and a little more: the window's edge is rounded as well
        rounded = threshold.to(self.dtype).to(torch.promote_types(self.dtype, threshold.dtype))
        return rounded - cast(float, self.cfg.jumprelu_bandwidth) * (0.5 + 2**-7)

    @not_compiled
    def _sparse_code(
        self, encoder: engine.Encoder, memory: engine.Engine
    ) -> engine.SparseCode | None:
        if self.cfg.activation == "batchtopk":
            return memory.batch_top_k(encoder, cast(float, self.k_now))
        if self.cfg.activation == "topk":
            return memory.token_top_k(encoder, int(cast(float, self.k_now)))
        code = memory.above(encoder, self._least_of_interest())
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

    def latent_order(self) -> torch.Tensor | None:
        """The latent at each place that prefixes count, (d_sae,); None: as they are."""
        if self.cfg.latent_order == "fixed":
            return None
        return order_of(self.latent_scores)

    def decoder(self) -> torch.Tensor:
        """The decoder for activations as encode gives them, (d_sae, d_in).

        Its rows have norm 1 if activations carry the decoder norms.
        """
        norm = self.acts_norm()
        return self.W_dec if norm is None else self.W_dec / norm[:, None]

    @override
    @overridable
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
