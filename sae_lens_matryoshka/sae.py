"""A trained Matryoshka SAE: a stock SAELens SAE whose nested levels are first-class."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from sae_lens.constants import SAE_CFG_FILENAME, SPARSITY_FILENAME
from sae_lens.saes.jumprelu_sae import JumpReLUSAE
from sae_lens.saes.sae import SAE, SAEMetadata, TrainingSAE
from sae_lens.saes.standard_sae import StandardSAE
from sae_lens.saes.topk_sae import TopKSAE

from sae_lens_matryoshka import engine, level_results
from sae_lens_matryoshka.config import resolve_widths
from sae_lens_matryoshka.fingerprint import holds_weights_of
from sae_lens_matryoshka.latent_parameters import LATENT_DIM
from sae_lens_matryoshka.nested_sae import is_hooked
from sae_lens_matryoshka.refined_sae import RefinedSAE
from sae_lens_matryoshka.whole import whole_files

UNIT_TOLERANCE = 1e-5  # SAEBench's own, which warns beyond it

S = TypeVar("S", bound=SAE[Any])


class MatryoshkaSAE:
    """
    A stock SAELens SAE with the widths of its nested levels.

    Wraps, is not a subclass: SAELens's loaders and evals get `.sae`.

    Args:
        sae: A stock inference SAE ("jumprelu", "standard" or "topk"), or a RefinedSAE of this package.
        widths: Nested widths in latents; the SAE's own width is appended when missing.

    Raises:
        ValueError: The widths do not fit the SAE.
    """

    def __init__(self, sae: SAE[Any], widths: Sequence[int]):
        self.sae = sae
        self.widths: tuple[int, ...] = tuple(resolve_widths(widths, sae.cfg.d_sae))
        self._engine = engine.Engine()

    def __repr__(self) -> str:
        return (
            f"MatryoshkaSAE({self.sae.cfg.architecture()}, d_in={self.sae.cfg.d_in}, "
            f"widths={self.widths})"
        )

    # ---- open and save

    @classmethod
    def from_sae(cls, sae: SAE[Any], widths: Sequence[int] | None = None) -> "MatryoshkaSAE":
        """
        Wrap an SAE: one that this package or SAELens's ``matryoshka_batchtopk`` trained.

        Args:
            sae: An inference SAE, or a training SAE, of which the inference form is taken.
            widths: Nested widths. None: those that training wrote into the metadata.

        Raises:
            ValueError: The metadata names no widths and none are given.
        """
        if isinstance(sae, TrainingSAE):
            sae = inference_form(sae)
        widths = widths or named_widths(sae.cfg.metadata)
        if widths is None:
            raise ValueError(
                f"This {sae.cfg.architecture()} SAE's metadata holds no matryoshka_widths, so its "
                "levels are unknown. Pass them, e.g. "
                f"widths={resolve_widths(None, sae.cfg.d_sae)}, if it was trained with levels."
            )
        return cls(sae, widths)

    @classmethod
    def load_from_disk(
        cls,
        path: str | Path,
        device: str = "cpu",
        dtype: str | None = None,
        widths: Sequence[int] | None = None,
    ) -> "MatryoshkaSAE":
        """
        Open a folder that training or `save` wrote, with stock SAELens; of a checkpoint what would be saved of it.

        Args:
            path: Folder with cfg.json and sae_weights.safetensors.
            device: Where to put the weights.
            dtype: Data type of the weights. None: as saved.
            widths: Nested widths. None: those in the metadata.

        Raises:
            FileNotFoundError: There is no SAE in the folder.
            ValueError: The metadata names no widths and none are given.
        """
        from sae_lens_matryoshka.hub.folder import open_folder

        return cls.from_sae(open_folder(Path(path), dtype, device), widths)

    def save(self, path: str | Path) -> None:
        """Write the stock SAE with its levels in the metadata, for `SAE.load_from_disk`."""
        sae = copy_of(self.sae)
        write_widths(sae.cfg.metadata, self.widths)
        path = Path(path)
        # how often the latents of another SAE fired
        outdated = [] if holds_weights_of(path, sae) else [SPARSITY_FILENAME]
        with whole_files(path, announced_by=SAE_CFG_FILENAME, outdated=outdated) as staging:
            sae.save_model(staging)

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        sae_id: str | None = None,
        revision: str | None = None,
        force_download: bool = False,
        device: str = "cpu",
        dtype: str = "float32",
        widths: Sequence[int] | None = None,
    ) -> "MatryoshkaSAE":
        """
        Open a published SAE: this package's, or one of SAELens's `matryoshka_batchtopk`.

        Args:
            repo_id: A Hub repo "user/name", a release name of SAELens, or a local folder.
            sae_id: The SAE's id in it, its folder. Only a local folder may do without.
            revision: Branch, tag or commit of the repo. None: its main branch. SAELens has no such choice.
            force_download: Whether to download files again that are in the Hub's cache.
            device: Where to put the weights.
            dtype: Data type of the weights.
            widths: Nested widths. None: those in the metadata, or in the runner's configuration that
                was published beside it.

        Raises:
            FileNotFoundError: There is no such SAE.
            ValueError: Nothing names the widths and none are given, or an argument has no effect.
        """
        from sae_lens_matryoshka.hub.load import load_published

        sae, published_widths = load_published(
            repo_id, sae_id, revision, force_download, device, dtype
        )
        return cls.from_sae(sae, widths or named_widths(sae.cfg.metadata) or published_widths)

    # ---- levels

    def level(self, index: int) -> SAE[Any]:
        """
        An SAE of the latents up to a level; see `truncate`.

        Args:
            index: Level, 0 the innermost; negative counts from the outermost.

        Raises:
            IndexError: There is no such level.
            ValueError: A topk SAE; see `truncate`.
        """
        if not -len(self.widths) <= index < len(self.widths):
            raise IndexError(
                f"level {index} does not exist: the {len(self.widths)} levels are 0 to "
                f"{len(self.widths) - 1}, of widths {self.widths}."
            )
        return self.truncate(self.widths[index])

    @torch.no_grad()
    def truncate(self, width: int) -> SAE[Any]:
        """
        An SAE of the first latents, whose reconstruction is the nested decode at that width.

        Not so for a RefinedSAE: there the cut one refines by what its own latents leave, not the whole
        SAE's, and so encodes otherwise than the first latents of the whole do.

        Args:
            width: Latents to keep, a level's width or any other up to d_sae.

        Returns:
            A new SAE of the same architecture that shares no memory with this one. The thresholds
            were set for the whole dictionary, so its L0 is the level's own.

        Raises:
            ValueError: The width is not between 1 and d_sae, or this is a topk SAE, which would
                choose its k anew inside the prefix.
        """
        cfg = self.sae.cfg
        if not 1 <= width <= cfg.d_sae:
            raise ValueError(
                f"width={width} must be between 1 and d_sae ({cfg.d_sae}); the levels are "
                f"{self.widths}."
            )
        self._require_levels_stand_alone()
        cut = copy.deepcopy(cfg)
        cut.d_sae = width
        write_widths(cut.metadata, [w for w in self.widths if w < width] + [width])
        if width < cfg.d_sae:  # what training counted was the whole dictionary's
            cut.metadata.l0 = cut.metadata.num_dead_features = None
            level_results.forget(cut.metadata)
        state_dict = {
            name: tensor.narrow(LATENT_DIM[name], 0, width).clone()
            if name in LATENT_DIM
            else tensor.clone()
            for name, tensor in self.sae.state_dict().items()
        }
        return build(type(self.sae), cut, state_dict)

    @torch.no_grad()
    def reconstructions(self, x: torch.Tensor) -> torch.Tensor:
        """
        Every level's reconstruction, as the level alone gives it, in the work of one encode and one decode.
        Those of a RefinedSAE share the first pass; each takes a refinement of its own.

        Args:
            x: Activations of the model, (batch, d_in).

        Returns:
            (levels, batch, d_in)

        Raises:
            ValueError: A topk SAE; see `truncate`.
        """
        self._require_levels_stand_alone()
        sae = self.sae
        if isinstance(sae, RefinedSAE):
            return sae.reconstructions(x, self.widths)
        decoded = self._encode(x).nested_decode(sae.W_dec, sae.b_dec, self.widths)
        return sae.reshape_fn_out(sae.run_time_activation_norm_fn_out(decoded), sae.d_head)

    def _encode(self, x: torch.Tensor) -> engine.Code:
        """What sae.encode gives, as a list of the active latents where that is faster."""
        sae = self.sae
        points = (sae.hook_sae_input, sae.hook_sae_acts_pre, sae.hook_sae_acts_post)
        is_stock = type(sae) in (JumpReLUSAE, StandardSAE)  # what is derived may encode otherwise
        is_free = is_stock and not any(map(is_hooked, points))
        if is_free and isinstance(sae, JumpReLUSAE | StandardSAE):
            sae_in = sae.process_sae_in(x)
            thresholds = sae.threshold.relu() if isinstance(sae, JumpReLUSAE) else 0.0
            encoder = engine.Encoder(sae_in, sae.W_enc, sae.b_enc, None)
            code = self._engine.above(encoder, thresholds) if sae_in.dim() == 2 else None
            if code is not None:
                return code
        acts = sae.encode(x)
        self._engine.observe((acts > 0).float().mean().item())
        return engine.DenseCode(acts, acts, None)

    def _require_levels_stand_alone(self) -> None:
        if isinstance(self.sae, TopKSAE):
            raise ValueError(
                "The levels of a topk SAE do not stand alone: a cut one would choose its k latents "
                "anew inside the prefix. Give it a threshold first: "
                "calibrate_threshold(sae, activations, target_l0, as_jumprelu=True)."
            )


def inference_form(sae: TrainingSAE[Any]) -> SAE[Any]:
    """The stock SAE that `save_inference_model` would write, in memory; shares nothing with `sae`."""
    state_dict = sae.state_dict()
    sae.process_state_dict_for_saving_inference(state_dict)
    cfg = sae.cfg.get_inference_sae_cfg_dict()
    cfg["metadata"] = copy.deepcopy(cfg["metadata"])
    cfg_class = sae.cfg.get_inference_config_class()
    inference_cfg = cfg_class.from_dict(cfg)
    sae_class = SAE.get_sae_class_for_architecture(inference_cfg.architecture())
    copies = {name: tensor.detach().clone() for name, tensor in state_dict.items()}
    return build(sae_class, inference_cfg, copies)


def copy_of(sae: S) -> S:
    """A copy that shares nothing with `sae`, unlike copy.deepcopy, whose normalization does."""
    copies = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    return build(type(sae), copy.deepcopy(sae.cfg), copies)


def build(sae_class: type[S], cfg: Any, state_dict: dict[str, torch.Tensor]) -> S:
    """An SAE of a stock class from its configuration and weights."""
    sae = sae_class(cfg)
    sae.load_state_dict(state_dict)
    return sae


def has_unit_norms(sae: SAE[Any], tolerance: float = UNIT_TOLERANCE) -> bool:
    """Whether decoder rows have norm 1, or 0 where a latent does nothing."""
    norms = sae.W_dec.flatten(1).float().norm(dim=-1)  # (d_sae,)
    return bool((((norms - 1).abs() <= tolerance) | (norms == 0)).all())


def not_finite(sae: SAE[Any]) -> list[str]:
    """The names of the weights that hold NaN or infinite numbers."""
    return [name for name, tensor in sae.state_dict().items() if not tensor.isfinite().all()]


def named_widths(metadata: SAEMetadata | dict[str, Any]) -> Sequence[int] | None:
    """The levels that an SAE's metadata names, None for a flat one."""
    return (metadata.get("training_architecture_details") or {}).get("matryoshka_widths") or None


def write_widths(metadata: SAEMetadata, widths: Sequence[int]) -> None:
    """Name the levels where SAELens's own Matryoshka SAEs name them."""
    details = dict(metadata.training_architecture_details or {})
    metadata.training_architecture_details = {**details, "matryoshka_widths": list(widths)}
