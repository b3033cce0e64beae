"""Latents by features as heat maps side by side, as the paper draws them."""

from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from research.ground_truth.toy_tree import N_CHILDREN, N_PARENTS

PANEL_INCHES = (4.6, 4.8)


def write_heat_maps(cosines: Mapping[str, torch.Tensor], path: Path) -> None:
    """
    Draw and save.

    Args:
        cosines: By SAE, latents in the order of their features by features, (features, features).
        path: The picture.
    """
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width * len(cosines) + 0.9, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(cosines), squeeze=False)[0]
    image = None
    for axes, (name, values) in zip(panels, cosines.items(), strict=True):
        image = axes.imshow(values.numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
        axes.set_title(name)
        axes.set_xlabel("true feature")
        axes.set_ylabel("latent matched with it")
        axes.set_xticks(range(0, len(values), 5))
        axes.set_yticks(range(0, len(values), 5))
        for edge in (N_PARENTS, N_PARENTS * (1 + N_CHILDREN)):  # parents | children | independent
            axes.axvline(edge - 0.5, color="black", linewidth=0.6)
            axes.axhline(edge - 0.5, color="black", linewidth=0.6)
    if image is not None:
        figure.colorbar(image, ax=list(panels), label="cosine", shrink=0.9)
    figure.savefig(path, dpi=120)
