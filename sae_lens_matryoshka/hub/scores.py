"""Results of a benchmark for the SAEs that they were measured on, known by their fingerprints."""

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE

from sae_lens_matryoshka.levels import measurements as level_results
from sae_lens_matryoshka.levels.fingerprint import fingerprint
from sae_lens_matryoshka.markdown_table import with_arrow
from sae_lens_matryoshka.saes.inference_sae import copy_of, has_unit_norms


class Scores:
    """
    The results of a benchmark.

    Args:
        folder: Its output folder.

    Raises:
        FileNotFoundError: It holds no results.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            self.run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
                self.rows = [row for row in csv.DictReader(file) if row["published"] == "false"]
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{folder} holds no results of a benchmark: {Path(error.filename).name} is missing. "
                "Give the output folder of `sae-lens-matryoshka bench`."
            ) from None
        self.found_any = False

    def attach(self, sae: SAE[Any]) -> None:
        """Write the SAE's results into its metadata, in the place of others; none if it has none."""
        mark = fingerprint(measured_form(sae))
        names = {name for name, key in self.run["fingerprints"]["saes"].items() if key == mark}
        if names:
            self.found_any = True
            level_results.forget(sae.cfg.metadata)
            level_results.record(sae, self._measurements(names))
            sae.cfg.metadata[level_results.NOTES] = _notes(self.run)

    def require_any(self, sae_ids: Iterable[str]) -> None:
        """
        Check that they were of at least one SAE.

        Raises:
            ValueError: They were of none.
        """
        if not self.found_any:
            measured = ", ".join(self.run["fingerprints"]["saes"])
            raise ValueError(
                f"{self.folder} measured {measured}, whose weights or settings are not those of "
                f"{', '.join(sae_ids)}. Results belong to the SAE that they were measured on: run the "
                "benchmark on what you publish."
            )

    def _measurements(self, names: set[str]) -> dict[int, dict[str, level_results.Measurement]]:
        """Mean and spread over seeds, by width and label, in the order of the benchmark's table."""
        values: dict[tuple[int, str, str], dict[str, float]] = defaultdict(dict)
        for row in self.rows:
            if row["sae"] in names and row["value"]:
                key = int(row["width"]), row["eval"], row["metric"]
                values[key][row["seed"]] = float(row["value"])
        found: dict[int, dict[str, level_results.Measurement]] = defaultdict(dict)
        for metric in self.run["metrics"]:
            label = with_arrow(metric["label"], metric["better"])
            for (width, eval_name, key), by_seed in values.items():
                is_it = (eval_name, key) == (metric["eval"], metric["key"])
                if is_it and metric["in_table"] and all(map(math.isfinite, by_seed.values())):
                    found[width][label] = level_results.measurement(list(by_seed.values()))
        return found


@torch.no_grad()
def measured_form(sae: SAE[Any]) -> SAE[Any]:
    """What a benchmark measures of an SAE: a copy in float32 with decoder norms of 1."""
    copied = copy_of(sae).to(dtype=torch.float32)
    if not has_unit_norms(copied):
        with suppress(NotImplementedError):  # then a benchmark has refused it
            copied.fold_W_dec_norm()
    return copied


def _notes(run: dict[str, Any]) -> list[str]:
    labels: dict[str, list[str]] = defaultdict(list)
    for metric in run["metrics"]:
        if metric["caveat"] and metric["in_table"]:
            labels[metric["caveat"]].append(metric["label"])
    versions = run["versions"]
    source = run["config"]["model"]
    model = source["name"] or Path(source["folder"]).name  # where it lies is nobody's business
    return [
        f"Measured with sae-bench {versions['sae-bench']}, sae-lens {versions['sae-lens']} on {model}; "
        "mean ± sample standard deviation over the evals' seeds where there are several",
        "L0 and FVU leave out special tokens (BOS, EOS, padding)",
        *(f"{', '.join(group)}: {caveat}" for caveat, group in labels.items()),
    ]
