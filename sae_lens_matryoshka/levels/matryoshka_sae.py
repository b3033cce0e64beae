"""A trained Matryoshka SAE: a stock SAELens SAE whose nested levels are first-class."""

import copy
import operator
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME
from sae_lens.saes.jumprelu_sae import JumpReLUSAE
from sae_lens.saes.sae import SAE, TrainingSAE
from sae_lens.saes.standard_sae import StandardSAE
from sae_lens.saes.topk_sae import TopKSAE
from sae_lens.util import dtype_to_str
from typing_extensions import override

from sae_lens_matryoshka import engine
from sae_lens_matryoshka.atomic_files import whole_files
from sae_lens_matryoshka.levels.fingerprint import holds_weights_of
from sae_lens_matryoshka.levels.origin import record_origin
from sae_lens_matryoshka.levels.sae_proxy import SAEProxy
from sae_lens_matryoshka.loading.sae_folder import check_may_be_saved_in
from sae_lens_matryoshka.saes.config import resolve_widths
from sae_lens_matryoshka.saes.inference_sae import (
    build,
    copy_of,
    inference_form,
    named_widths,
    write_widths,
)
from sae_lens_matryoshka.saes.latent_parameters import LATENT_DIM
from sae_lens_matryoshka.saes.overrides import is_hooked
from sae_lens_matryoshka.saes.refined_sae import RefinedSAE


class MatryoshkaSAE(SAEProxy):
    """
    A SAELens SAE with the widths of its nested levels.

    Does what the SAE does (`encode`, `decode`, `cfg`, `W_dec`, `to`, ...), and is a sequence of its
    levels: `len(sae)`, `sae[0]`, `for level in sae`. The SAE itself is `sae.sae`.

    Args:
        sae: An inference SAE of SAELens ("jumprelu", "standard" or "topk"), or a RefinedSAE of this
            package. It is not copied.
        widths: Nested widths in latents; the SAE's own width is appended when missing.

    Raises:
        TypeError: `sae` is not an inference SAE.
        ValueError: The widths do not fit the SAE.
    """

    widths: tuple[int, ...]
    _engine: engine.Engine

    def __init__(self, sae: SAE[Any], widths: Sequence[int]):
        if isinstance(sae, MatryoshkaSAE | TrainingSAE) or not isinstance(sae, SAE):
            raise TypeError(
                f"MatryoshkaSAE wraps an inference SAE of SAELens, not a {type(sae).__name__}. "
                "MatryoshkaSAE.from_sae takes training SAEs as well, load_from_disk a folder."
            )
        resolved = tuple(resolve_widths(widths, sae.cfg.d_sae))
        super().__init__(sae, widths=resolved, _engine=engine.Engine())

    @override
    def __repr__(self) -> str:
        return (
            f"MatryoshkaSAE({self.sae.cfg.architecture()}, d_in={self.sae.cfg.d_in}, "
            f"widths={self.widths})"
        )

    def __copy__(self) -> "MatryoshkaSAE":
        return MatryoshkaSAE(self.sae, self.widths)

    def __deepcopy__(self, memo: dict[int, Any]) -> "MatryoshkaSAE":
        return MatryoshkaSAE(copy_of(self.sae), self.widths)

    @override
    def __reduce__(self) -> tuple[Any, ...]:  # SAELens's SAEs hold functions that no pickle takes
        sae = self.sae
        return _rebuilt, (type(sae), sae.cfg, dict(sae.state_dict()), self.widths)

    # ---- open and save

    @classmethod
    def from_sae(
        cls, sae: "SAE[Any] | MatryoshkaSAE", widths: Sequence[int] | None = None
    ) -> "MatryoshkaSAE":
        """
        Wrap an SAE: one that this package or SAELens's ``matryoshka_batchtopk`` trained.

        Args:
            sae: An inference SAE, a training SAE, of which the inference form is taken, or a
                MatryoshkaSAE, to give it other widths.
            widths: Nested widths. None: the MatryoshkaSAE's own, or those that training wrote into the
                metadata.

        Raises:
            TypeError: `sae` is not an SAE.
            ValueError: The metadata names no widths and none are given.
        """
        if isinstance(sae, MatryoshkaSAE):
            return cls(sae.sae, sae.widths if widths is None else widths)
        if isinstance(sae, TrainingSAE):
            sae = inference_form(sae)
        if not isinstance(sae, SAE):
            raise TypeError(
                f"from_sae takes an SAE, not a {type(sae).__name__}. For a saved one, use "
                "MatryoshkaSAE.load_from_disk(folder) or .from_pretrained(repo_id, sae_id)."
            )
        if widths is None:
            widths = named_widths(sae.cfg.metadata)
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
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
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
        from sae_lens_matryoshka.loading.saved_folder import open_folder

        folder = Path(path).expanduser()
        return cls.from_sae(open_folder(folder, _dtype_name(dtype), str(device)), widths)

    def save(self, path: str | Path) -> tuple[Path, Path]:
        """
        Write the SAE with its levels in the metadata, for `SAE.load_from_disk`.

        Returns:
            The files of the weights and of the configuration.

        Raises:
            FileExistsError: Files that are no SAE's have these names.
        """
        sae = copy_of(self.sae)
        write_widths(sae.cfg.metadata, self.widths)
        path = Path(path).expanduser()
        check_may_be_saved_in(path)
        # how often the latents of another SAE fired
        outdated = [] if holds_weights_of(path, sae) else [SPARSITY_FILENAME]
        with whole_files(path, announced_by=SAE_CFG_FILENAME, outdated=outdated) as staging:
            sae.save_model(staging)
        return path / SAE_WEIGHTS_FILENAME, path / SAE_CFG_FILENAME

    save_model = save_inference_model = save  # SAELens's names

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str | Path,
        sae_id: str | None = None,
        revision: str | None = None,
        force_download: bool = False,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float32",
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
        from sae_lens_matryoshka.loading.published import load_published

        sae, published_widths = load_published(
            os.path.expanduser(repo_id),
            sae_id,
            revision,
            force_download,
            str(device),
            _dtype_name(dtype) or "float32",
        )
        if widths is None:
            widths = named_widths(sae.cfg.metadata) or published_widths
        return cls.from_sae(sae, widths)

    # ---- levels

    def __len__(self) -> int:
        return len(self.widths)

    @overload
    def __getitem__(self, index: int) -> SAE[Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[SAE[Any]]: ...

    def __getitem__(self, index: int | slice) -> SAE[Any] | list[SAE[Any]]:
        if isinstance(index, slice):
            return [self.truncate(width) for width in self.widths[index]]
        return self.level(index)

    def __iter__(self) -> Iterator[SAE[Any]]:
        return map(self.truncate, self.widths)

    def level(self, index: int) -> SAE[Any]:
        """
        An SAE of the latents up to a level; see `truncate`.

        Args:
            index: Level, 0 the innermost; negative counts from the outermost.

        Raises:
            IndexError: There is no such level.
            TypeError: The index is not a whole number.
            ValueError: A topk SAE; see `truncate`.
        """
        index = _whole_number("level", index)
        if not -len(self.widths) <= index < len(self.widths):
            raise IndexError(
                f"level {index} does not exist: the {len(self.widths)} levels are 0 to "
                f"{len(self.widths) - 1}, of widths {self.widths}. For a width use .truncate(width)."
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
            were set for the whole dictionary, so its L0 is the level's own. Its metadata records
            where it comes from, as `level_origin.LevelOrigin` describes.

        Raises:
            TypeError: The width is not a whole number.
            ValueError: The width is not between 1 and d_sae, or this is a topk SAE, which would
                choose its k anew inside the prefix.
        """
        cfg, width = self.sae.cfg, _whole_number("width", width)
        if not 1 <= width <= cfg.d_sae:
            raise ValueError(
                f"width={width} must be between 1 and d_sae ({cfg.d_sae}); the levels are "
                f"{self.widths}."
            )
        self._require_levels_stand_alone()
        cut = copy.deepcopy(cfg)
        cut.d_sae = width
        write_widths(cut.metadata, [w for w in self.widths if w < width] + [width])
        state_dict = {
            name: tensor.narrow(LATENT_DIM[name], 0, width).clone()
            if name in LATENT_DIM
            else tensor.clone()
            for name, tensor in self.sae.state_dict().items()
        }
        level = build(type(self.sae), cut, state_dict)
        record_origin(level, self.sae, self.widths)
        return level

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
        if acts.numel() > 0:
            self._engine.observe((acts > 0).float().mean().item())
        return engine.DenseCode(acts, acts, None)

    def _require_levels_stand_alone(self) -> None:
        if isinstance(self.sae, TopKSAE):
            raise ValueError(
                "The levels of a topk SAE do not stand alone: a truncated one would choose its k "
                "latents anew inside the prefix. Take all latents, which are .sae, or give it a threshold first: "
                "calibrate_threshold(sae, activations, target_l0, as_jumprelu=True)."
            )


def _rebuilt(
    sae_class: type[SAE[Any]], cfg: Any, state_dict: dict[str, torch.Tensor], widths: Sequence[int]
) -> MatryoshkaSAE:
    """What a pickled MatryoshkaSAE is read as."""
    return MatryoshkaSAE(build(sae_class, cfg, state_dict), widths)


def _whole_number(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}={value!r} must be a whole number.") from None


def _dtype_name(dtype: str | torch.dtype | None) -> str | None:
    return dtype_to_str(dtype) if isinstance(dtype, torch.dtype) else dtype
