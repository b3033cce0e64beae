"""Results of a benchmark for the SAEs that they were measured on, known by their fingerprints."""

import csv
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from sae_lens import SAE

from sae_lens_matryoshka import level_results
from sae_lens_matryoshka.fingerprint import fingerprint

ARROWS = {"higher": " ↑", "lower": " ↓", None: ""}


def attach_scores(saes: dict[str, SAE[Any]], results: Path) -> None:
    """
    Write a benchmark's results into the metadata of the SAEs that it measured.

    Args:
        saes: By sae_id; their metadata is changed.
        results: The benchmark's output folder.

    Raises:
        FileNotFoundError: It holds no results.
        ValueError: They are of none of these SAEs.
    """
    try:
        run = json.loads((results / "run.json").read_text())
        with (results / "results.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{results} holds no results of a benchmark: {Path(error.filename).name} is missing. Give "
            "the output folder of `sae-lens-matryoshka bench`."
        ) from None
    name_of = {print_: name for name, print_ in run["fingerprints"]["saes"].items()}
    known = {sae_id: name_of.get(fingerprint(sae)) for sae_id, sae in saes.items()}
    if not any(known.values()):
        raise ValueError(
            f"{results} measured {', '.join(name_of.values())}, whose weights or settings are not those "
            f"of {', '.join(saes)}. Results belong to the SAE that they were measured on: run the "
            "benchmark on what you publish."
        )
    notes = _notes(run)
    for sae_id, name in known.items():
        if name is not None:
            level_results.record(saes[sae_id], _measurements(run, rows, name))
            saes[sae_id].cfg.metadata[level_results.NOTES] = notes


def _measurements(
    run: dict[str, Any], rows: list[dict[str, str]], name: str
) -> dict[int, dict[str, level_results.Measurement]]:
    """Mean and spread over seeds, by width and label, in the order of the benchmark's table."""
    values: dict[tuple[int, str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row["sae"] == name and row["published"] == "false" and row["value"]:
            values[int(row["width"]), row["eval"], row["metric"]].append(float(row["value"]))
    found: dict[int, dict[str, level_results.Measurement]] = defaultdict(dict)
    for metric in run["metrics"]:
        if not metric["in_table"]:
            continue
        label = metric["label"] + ARROWS[metric["better"]]
        for (width, eval_name, key), seeds in values.items():
            is_it = (eval_name, key) == (metric["eval"], metric["key"])
            if is_it and all(map(math.isfinite, seeds)):
                found[width][label] = level_results.measurement(seeds)
    return found


def _notes(run: dict[str, Any]) -> list[str]:
    labels: dict[str, list[str]] = defaultdict(list)
    for metric in run["metrics"]:
        if metric["caveat"] and metric["in_table"]:
            labels[metric["caveat"]].append(metric["label"])
    versions = run["versions"]
    model = run["config"]["model"]["name"] or run["config"]["model"]["folder"]
    return [
        f"Measured with sae-bench {versions['sae-bench']}, sae-lens {versions['sae-lens']} on {model}; "
        "mean ± sample standard deviation over the evals' seeds where there are several",
        *(f"{', '.join(group)}: {caveat}" for caveat, group in labels.items()),
    ]
