"""The command that compares SAEs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sae_lens_matryoshka.cli.shell import (
    EXIT_RUN_FAILED,
    Debug,
    app,
    errors_shown,
    load_sae_lens,
)
from sae_lens_matryoshka.config_file import ConfigError, parse_override, read_mapping

if TYPE_CHECKING:
    from sae_lens_matryoshka.bench import BenchReport

GROUND_TRUTH_KINDS = ("toy_tree", "synthetic")  # need nothing of SAEBench


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

    Files of `kind: saebench`, which is the default, need the extra [bench]. In two kinds the true features are
    known: `kind: toy_tree` is the paper's toy, `kind: synthetic` trains SAEs on SynthSAEBench's models. The
    folder bench_configs of the repository holds examples; offline.yaml runs without a network. Interrupted,
    the same command goes on where it stopped, but for the toy tree's.
    """
    with errors_shown(debug):
        settings = read_mapping(config)
        given = [parse_override(override) for override in overrides or []]
        kind = settings.get("kind")
        if kind in GROUND_TRUTH_KINDS:
            _run_ground_truth(kind, settings, given, only, str(config))
            return
        load_sae_lens()
        with _kept_when_interrupted():
            report = _run_bench(settings, given, only, str(config))
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


@contextmanager
def _kept_when_interrupted() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("What is finished is kept; the same command goes on from there.", err=True)
        raise


def _run_ground_truth(
    kind: str,
    settings: dict[str, Any],
    overrides: list[tuple[str, Any]],
    only: list[str] | None,
    name: str,
) -> None:
    if only:
        raise ConfigError(f"--only {only[0]} has no effect on kind: {kind}. Leave it out.")
    load_sae_lens()
    from sae_lens_matryoshka.terminal_table import console, show_markdown

    run = _run_toy_tree if kind == "toy_tree" else _run_synthetic
    text, output, files = run(settings, overrides, name)
    show_markdown(text, console())
    typer.echo(f"Everything is in {output}: {files}")


def _run_toy_tree(
    settings: dict[str, Any], overrides: list[tuple[str, Any]], name: str
) -> tuple[str, Path, str]:
    """The table, the folder and what is in it."""
    from sae_lens_matryoshka.ground_truth.toy_bench import ToyTreeConfig, run
    from sae_lens_matryoshka.schema import validated

    config = validated(ToyTreeConfig, settings, name, overrides)
    _, text = run(config)
    return text, config.output, "results.md, results.json, heat_maps.png, saes"


def _run_synthetic(
    settings: dict[str, Any], overrides: list[tuple[str, Any]], name: str
) -> tuple[str, Path, str]:
    """The table, the folder and what is in it."""
    from sae_lens_matryoshka.ground_truth.synthetic_bench import run
    from sae_lens_matryoshka.ground_truth.synthetic_config import SyntheticConfig
    from sae_lens_matryoshka.schema import validated

    config = validated(SyntheticConfig, settings, name, overrides)
    with _kept_when_interrupted():
        _, text = run(config)
    return text, config.output, "results.md, results.json, runs, saes, model"


def _run_bench(
    settings: dict[str, Any],
    overrides: list[tuple[str, Any]],
    only: list[str] | None,
    name: str,
) -> "BenchReport":
    try:
        from sae_lens_matryoshka.bench import checked_config, run
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{error}. The command needs the extra [bench]: in a checkout of the repository, "
            'pip install ".[bench]"'
        ) from error
    from sae_lens_matryoshka.bench.terminal import show_report

    checked = checked_config(settings, name, overrides)
    report = run(checked, only)
    show_report(checked, report)
    return report
