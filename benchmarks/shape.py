"""What is trained on: the size of the problem, and activations that look like a model's."""

from dataclasses import dataclass

import torch

from sae_lens_matryoshka.saes.config import resolve_widths


@dataclass(frozen=True)
class Shape:
    """Size of one training step."""

    batch: int = 2048
    d_in: int = 512
    d_sae: int = 16384
    k: int = 32
    levels: int = 5
    device: str = "cpu"

    @property
    def widths(self) -> list[int]:
        """The paper's nested widths for five levels, equal groups for another number."""
        if self.levels == 5:
            return resolve_widths(None, self.d_sae)
        return [self.d_sae * (i + 1) // self.levels for i in range(self.levels)]

    def __str__(self) -> str:
        return (
            f"batch {self.batch}, d_in {self.d_in}, d_sae {self.d_sae}, k {self.k}, "
            f"{self.levels} level{'s' if self.levels > 1 else ''}"
        )


def activations(shape: Shape, n_batches: int = 8) -> list[torch.Tensor]:
    """Batches of sparse sums of random directions whose frequencies fall by a power law."""
    generator = torch.Generator().manual_seed(0)
    n_features, active = 2 * shape.d_in, 24
    directions = torch.randn(n_features, shape.d_in, generator=generator)
    directions /= directions.norm(dim=-1, keepdim=True)
    frequency = torch.arange(1, n_features + 1).float() ** -0.7
    batches = []
    for _ in range(n_batches):
        chosen = torch.multinomial(
            frequency.expand(shape.batch, -1), active, generator=generator
        )  # (batch, active)
        strength = torch.rand(chosen.shape, generator=generator) + 0.5
        codes = torch.zeros(shape.batch, n_features).scatter_(-1, chosen, strength)
        noise = torch.randn(shape.batch, shape.d_in, generator=generator) / shape.d_in**0.5
        batches.append((codes @ directions + 0.3 * noise).to(shape.device))
    return batches
