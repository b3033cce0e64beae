"""Before an upload: SAELens, in a process of its own, must compute what the original computes. Stock SAELens,
unless the SAE needs a package: then that one is imported first.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sae_lens
import torch
from sae_lens import SAE
from safetensors.torch import save_file

from sae_lens_matryoshka.hub import reload
from sae_lens_matryoshka.hub.sae_ids import level_id
from sae_lens_matryoshka.hub.staging import StagedSAE, needed_package
from sae_lens_matryoshka.levels.matryoshka_sae import MatryoshkaSAE
from sae_lens_matryoshka.saes.inference_sae import copy_of
from sae_lens_matryoshka.saes.refined_sae import RefinedSAE

TOLERANCE = 1e-5
TOKENS_PER_SCALE = 8
SCALES = torch.logspace(-1, 5, 13)  # norms of inputs: some latent fires at one of them
LATENTS_PER_TOKEN = 8
ROUNDING = 4e-6  # of a sum of some thousand float32 products


class BrokenRepoError(RuntimeError):
    """What would be published cannot be loaded, or computes something else. Nothing was uploaded."""


@dataclass(frozen=True)
class Expectation:
    """
    What an SAE has to give once it is published.

    Args:
        x: Inputs, (tokens, d_in).
        out: What the original makes of them, (tokens, d_in).
        package: What has to be imported before SAELens can load it; None: stock SAELens can.
    """

    x: torch.Tensor
    out: torch.Tensor
    package: str | None


@torch.no_grad()
def expectations(staged: StagedSAE, levels: bool) -> dict[str, Expectation]:
    """
    The original's outputs, by sae_id. Those of inner levels come from the SAE, not from truncated ones.

    Args:
        staged: The SAE.
        levels: Whether its inner levels will be published as well.

    Raises:
        ValueError: No latent fires, so that there is nothing to compare.
    """
    # a copy: an SAE keeps the shape of what it saw first
    sae = copy_of(staged.original).to(device="cpu", dtype=torch.float32)  # as loaded from the Hub
    package = needed_package(staged.sae)
    widths = staged.widths if levels else None
    x = _inputs(sae, staged.sae_id, widths or ())
    found = {staged.sae_id: Expectation(x, sae(x), package)}
    if widths is not None:
        matryoshka = MatryoshkaSAE(sae, widths)
        for index, out in enumerate(matryoshka.reconstructions(x)[:-1]):
            name = level_id(staged.sae_id, index, matryoshka.widths[index])
            found[name] = Expectation(x, out, package)
    return found


def verify(expected: Mapping[str, Expectation], root: Path) -> None:
    """
    Reload everything that was staged and compare with the originals.

    Args:
        expected: By sae_id.
        root: Folder with the staged tree in `repo`; more files are written beside it.

    Raises:
        BrokenRepoError: An SAE cannot be loaded by stock SAELens, or gives other outputs.
    """
    packages = {one.package for one in expected.values()}
    for number, package in enumerate(sorted(packages, key=str)):  # stock ones apart from the others
        folder = root / f"check_{number}"
        folder.mkdir()
        chosen = {sae_id: one for sae_id, one in expected.items() if one.package == package}
        _write_spec(folder, root / "repo", chosen, package)
        _judge(_reload(folder), list(chosen))


def _write_spec(
    folder: Path, tree: Path, expected: Mapping[str, Expectation], package: str | None
) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for number, one in enumerate(expected.values()):
        tensors[f"{number}.x"] = one.x.clone()
        tensors[f"{number}.out"] = one.out.flatten(1).contiguous()
    save_file(tensors, folder / "expected.safetensors")
    spec = {
        "tree": str(tree),
        "sae_ids": list(expected),
        "package": package,
        "sae_lens": sae_lens.__version__,
    }
    (folder / "spec.json").write_text(json.dumps(spec))


@torch.no_grad()
def _inputs(sae: SAE[Any], sae_id: str, widths: Sequence[int]) -> torch.Tensor:
    """Inputs that make latents fire: mixtures of decoder rows and noise, of many norms."""
    generator = torch.Generator().manual_seed(0)
    n, d_sae = len(SCALES) * TOKENS_PER_SCALE, sae.cfg.d_sae
    rows = sae.W_dec.flatten(1)  # (d_sae, d_out)
    if rows.shape[1] != sae.cfg.d_in:  # a transcoder writes elsewhere
        rows = sae.W_enc.T
    chosen = torch.randint(d_sae, (n, LATENTS_PER_TOKEN), generator=generator)
    mixture = rows[chosen].sum(dim=1)  # (n, d_in)
    noise = torch.randn(mixture.shape, generator=generator)
    x = mixture / mixture.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    x = x + 0.3 * noise / noise.norm(dim=-1, keepdim=True)
    x = x * SCALES.repeat_interleave(TOKENS_PER_SCALE)[:, None]
    if sae.cfg.reshape_activations == "hook_z":
        x = x[:, None]  # one head of all channels
    if not (sae.encode(x) > 0).any():
        raise ValueError(
            f"{sae_id!r}: no latent fires on inputs of norms up to {SCALES.max():.0e}, so that nothing "
            "could be checked. Look at its thresholds and its b_enc."
        )
    return x[_steady(sae, x, widths, generator)]


def _steady(
    sae: SAE[Any], x: torch.Tensor, widths: Sequence[int], generator: torch.Generator
) -> torch.Tensor:
    """Which tokens have no latent so near its threshold that rounding decides over it, (tokens,)."""
    change = ROUNDING * (torch.randint(0, 2, x.shape, generator=generator) * 2 - 1)
    same = torch.ones(len(x), dtype=torch.bool)
    for factor in (1 + change, 1 - change):
        for fired, fires in zip(_fired(sae, x, widths), _fired(sae, x * factor, widths)):
            same &= (fires == fired).all(dim=-1)
    return same if same.any() else ~same


def _fired(sae: SAE[Any], x: torch.Tensor, widths: Sequence[int]) -> Iterator[torch.Tensor]:
    """Which latents exceed their thresholds, (tokens, latents), at every comparison that is made."""
    yield sae.encode(x) > 0
    if isinstance(sae, RefinedSAE):
        yield sae.first_pass(sae.process_sae_in(x)) > 0
        for width in widths:  # elsewhere a level's latents fire as they do in the whole
            yield MatryoshkaSAE(sae, widths).truncate(width).encode(x) > 0


def _reload(folder: Path) -> dict[str, float | str]:
    done = subprocess.run(
        [sys.executable, reload.__file__, str(folder)],
        # the same packages as here, whatever put them on the path
        env=os.environ
        | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    answer = folder / "answer.json"
    if not answer.is_file():
        raise BrokenRepoError(
            f"The check with SAELens ended with code {done.returncode}, nothing was uploaded. "
            f"It printed: {done.stdout[-2000:]}"
        )
    return json.loads(answer.read_text())


def _judge(answer: dict[str, float | str], sae_ids: list[str]) -> None:
    for sae_id in sae_ids:
        error = answer[sae_id]
        if isinstance(error, str):
            raise BrokenRepoError(f"SAELens cannot load {sae_id!r}: {error}. Nothing was uploaded.")
        if not error <= TOLERANCE:  # NaN too
            raise BrokenRepoError(
                f"{sae_id!r}, reloaded by SAELens, differs from the original by {error:.1e} of "
                f"the output ({TOLERANCE:.0e} is allowed). Nothing was uploaded."
            )
