"""Parts that the tests of the benchmark share."""

from typing import Any

import torch

HOOK = "blocks.1.hook_resid_post"
D_MODEL = 256
WIDTHS = [16, 64, 160]


def random_sae(
    seed: int = 0,
    d_sae: int = WIDTHS[-1],
    widths: list[int] | None = None,
    hook_name: str | None = HOOK,
) -> Any:
    """A JumpReLU SAE with unit decoder rows and random directions."""
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    generator = torch.Generator().manual_seed(seed)
    config = JumpReLUSAEConfig(
        d_in=D_MODEL,
        d_sae=d_sae,
        metadata=SAEMetadata(
            model_name="demo",
            hook_name=hook_name,
            prepend_bos=True,
            context_size=64,
            training_architecture_details={"matryoshka_widths": widths} if widths else {},
        ),
    )
    sae = JumpReLUSAE(config)
    directions = torch.randn(d_sae, D_MODEL, generator=generator)
    sae.W_dec.data = directions / directions.norm(dim=-1, keepdim=True)
    sae.W_enc.data = sae.W_dec.data.T.contiguous()
    sae.b_enc.data = 0.1 * torch.randn(d_sae, generator=generator)
    sae.threshold.data = torch.full((d_sae,), 1.0)
    return sae


def rescaled(sae: Any, seed: int = 5) -> Any:
    """The same function with other decoder norms."""
    from sae_lens_matryoshka.saes.inference_sae import copy_of

    copied = copy_of(sae)
    generator = torch.Generator().manual_seed(seed)
    scale = 0.5 + 2 * torch.rand(sae.cfg.d_sae, generator=generator)
    copied.W_dec.data *= scale[:, None]
    copied.W_enc.data /= scale
    copied.b_enc.data /= scale
    copied.threshold.data /= scale
    return copied


def refined_sae() -> Any:
    """The weights of random_sae with levels, in an SAE that encodes twice."""
    from sae_lens_matryoshka.saes.refined_sae import RefinedSAE, RefinedSAEConfig

    jumprelu = random_sae(widths=WIDTHS)
    shared = {name: getattr(jumprelu.cfg, name) for name in ("d_in", "d_sae", "metadata")}
    sae = RefinedSAE(RefinedSAEConfig(**shared, refinement_step=0.3))
    weights = jumprelu.state_dict()
    sae.load_state_dict({**weights, "start_threshold": 1.5 * weights["threshold"]})
    return sae
