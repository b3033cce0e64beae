"""An SAE as its card needs it."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting

from sae_lens_matryoshka.hub.staging import NEEDED_PACKAGE
from sae_lens_matryoshka.levels.measurements import Measurement, results_of
from sae_lens_matryoshka.loading.saved_folder import TRAINED_TOKENS
from sae_lens_matryoshka.saes.inference_sae import named_widths

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CardEntry:
    """
    An SAE as its card needs it.

    Args:
        sae_id: Its folder in the repo.
        cfg: Its cfg.json, in SAELens 6's form.
        runner_cfg: Its runner_cfg.json, empty if it has none.
    """

    sae_id: str
    cfg: dict[str, Any]
    runner_cfg: dict[str, Any]

    @classmethod
    def of_any_version(
        cls,
        sae_id: str,
        cfg: dict[str, Any],
        runner_cfg: dict[str, Any],
        check: Callable[["CardEntry"], Any],
    ) -> "CardEntry | None":
        """
        An SAE that some version of SAELens saved.

        Args:
            sae_id: Its folder in the repo.
            cfg: Its cfg.json.
            runner_cfg: Its runner_cfg.json, empty if it has none.
            check: Raises where the entry cannot be shown.

        Returns:
            The entry; None where it cannot be shown.
        """
        try:
            current = handle_config_defaulting({**cfg, "metadata": cfg.get("metadata") or {}})
            entry = cls(sae_id, {**current, "d_sae": int(current["d_sae"])}, runner_cfg)
            check(entry)
            return entry
        except Exception as error:  # somebody else's file may be anything
            logger.warning(
                "The card leaves out %r, whose cfg.json cannot be shown: %r", sae_id, error
            )
            return None

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata in its cfg.json."""
        return self.cfg["metadata"]

    @property
    def widths(self) -> list[int]:
        """Its nested widths; of a flat SAE its own."""
        return list(named_widths(self.metadata) or [self.cfg["d_sae"]])

    @property
    def is_matryoshka(self) -> bool:
        """Whether it has levels inside it."""
        return len(self.widths) > 1

    @property
    def can_be_cut(self) -> bool:
        """Whether it has levels that stand alone."""
        return self.is_matryoshka and self.cfg["architecture"] != "topk"

    @property
    def decodes_by_prefix(self) -> bool:
        """Whether a level's reconstruction is a plain product of its latents and decoder rows."""
        return (
            self.is_matryoshka
            and self.cfg["architecture"] in ("jumprelu", "standard", "topk")
            and self.cfg.get("normalize_activations", "none") == "none"
            and self.cfg.get("reshape_activations", "none") == "none"
        )

    @property
    def needed_package(self) -> str | None:
        """The package without which SAELens cannot load it; None for most."""
        package = self.metadata.get(NEEDED_PACKAGE)
        if package and not all(part.isidentifier() for part in package.split(".")):
            raise ValueError(f"{NEEDED_PACKAGE}={package!r} is no name of a package")
        return package

    @property
    def trained_tokens(self) -> int | None:
        """Tokens that it was trained on, if known."""
        return self.metadata.get(TRAINED_TOKENS) or self.runner_cfg.get("training_tokens")

    def measured(self, width: int) -> dict[str, Measurement]:
        """What was measured of the level of that width, by label."""
        return results_of(self.metadata, width)

    def points(self, label: str) -> list[tuple[int, float]]:
        """The widths of the levels that a label was measured of, and the measured means."""
        measured = [(width, self.measured(width).get(label)) for width in self.widths]
        return [(width, float(one["mean"])) for width, one in measured if one]


def is_local_path(value: Any) -> bool:
    """Whether a value is the place of something on somebody's machine."""
    return isinstance(value, str) and bool(re.match(r"[/~.]|[A-Za-z]:|.*\\", value))
