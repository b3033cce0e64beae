"""The command that compares SAEs."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from sae_lens_matryoshka.cli.input_checks import check_early
from sae_lens_matryoshka.cli.shell import (
    EXIT_RUN_FAILED,
    Debug,
    app,
    errors_shown,
    kept_when_interrupted,
    load_sae_lens,
)
from sae_lens_matryoshka.settings.strict_models import did_you_mean
from sae_lens_matryoshka.settings.yaml_file import ConfigError, parse_override, read_mapping

SAEBENCH = "saebench"
# Kinds of the repository's bench_configs that a checkout runs.
GROUND_TRUTH_KINDS = ("toy_tree", "synthetic")


@app.command()
def bench(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.yaml", help="What to compare.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Replace or add a key: --set seeds=[0,1] --set evals.absorption.max_k_value=5 "
            "--set quick=true. May be repeated; the last one wins.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="EVAL",
            help="Run this eval of those in the file. May be repeated.",
            show_default=False,
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Compare SAEs with SAEBench's evals: every nested level, several seeds, one table.

    It needs the extra [bench]. The folder bench_configs of the repository holds examples; offline.yaml runs
    without a network. After an interruption, the same command continues where it stopped.
    """
    with errors_shown(debug):
        settings = read_mapping(config)
        given = [parse_override(override) for override in overrides or []]
        _check_kind(settings.get("kind", SAEBENCH), config)
        _check_bench(settings, given, only, str(config))
        load_sae_lens()
        from sae_lens_matryoshka.bench import checked_config, run
        from sae_lens_matryoshka.bench.tables.terminal import show_report

        with kept_when_interrupted():
            checked = checked_config(settings, str(config), given)
            report = run(checked, only)
            show_report(checked, report)
        typer.echo(
            f"Everything is in {report.folder}: results.md, results.csv, plots, saebench, run.json"
        )
        if report.failed:
            typer.secho(
                f"{len(report.failed)} measurements failed; the notes below the tables say why, the logs "
                f"are in {report.folder / 'logs'}. The same command tries them again.",
                fg=typer.colors.RED,
                err=True,
            )
            raise typer.Exit(EXIT_RUN_FAILED)


def _check_kind(kind: Any, config: Path) -> None:
    if kind in GROUND_TRUTH_KINDS:
        raise ConfigError(
            f"{config}: kind: {kind} runs from a checkout of the repository: python -m research.ground_truth {config}"
        )
    if kind != SAEBENCH:
        kinds = did_you_mean(str(kind), [SAEBENCH, *GROUND_TRUTH_KINDS])
        raise ConfigError(f"{config}: kind: there is no {kind!r}.{kinds}")


def _check_bench(
    settings: dict[str, Any],
    overrides: list[tuple[str, Any]],
    only: list[str] | None,
    name: str,
) -> None:
    """Refuse what cannot be run before SAELens is imported."""
    from sae_lens_matryoshka.bench.config import checked_config  # imports nothing slow

    config = checked_config(settings, name, overrides)
    if find_spec("sae_bench") is None:
        raise ImportError(
            "SAEBench is not installed. The command needs the extra [bench]: in a checkout of the repository, "
            'pip install ".[bench]"'
        )
    check_early(
        lambda now: now.get("sae_lens_matryoshka.bench.jobs.suite", "check_input")(config, only)
    )
