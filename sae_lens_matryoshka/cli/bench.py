"""The command that compares SAEs."""

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

TOY_TREE = "toy_tree"


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

    Files of `kind: saebench`, which is the default, need the extra [bench]; `kind: toy_tree` is the paper's
    toy, where the true features are known. The folder bench_configs of the repository holds examples;
    offline.yaml runs without a network. Interrupted, the same command goes on where it stopped.
    """
    with errors_shown(debug):
        settings = read_mapping(config)
        given = [parse_override(override) for override in overrides or []]
        if settings.get("kind") == TOY_TREE:
            _run_toy_tree(settings, given, only, str(config))
            return
        load_sae_lens()
        try:
            report = _run_bench(settings, given, only, str(config))
        except KeyboardInterrupt:
            typer.echo("What is finished is kept; the same command goes on from there.", err=True)
            raise
        typer.echo(report.markdown)
        typer.echo(
            f"Everything is in {report.folder}: results.md, results.csv, plots, saebench, run.json"
        )
        if report.failed:
            typer.secho(
                f"{len(report.failed)} measurements failed; the notes below the table say why, the logs "
                f"are in {report.folder / 'logs'}. The same command tries them again.",
                fg=typer.colors.RED,
                err=True,
            )
            raise typer.Exit(EXIT_RUN_FAILED)


def _run_toy_tree(
    settings: dict[str, Any], overrides: list[tuple[str, Any]], only: list[str] | None, name: str
) -> None:
    if only:
        raise ConfigError(f"--only {only[0]} has no effect on kind: {TOY_TREE}. Leave it out.")
    load_sae_lens()
    from sae_lens_matryoshka.ground_truth.toy_bench import ToyTreeConfig, run
    from sae_lens_matryoshka.schema import validated

    config = validated(ToyTreeConfig, settings, name, overrides)
    _, text = run(config)
    typer.echo(text)
    typer.echo(f"Everything is in {config.output}: results.md, results.json, heat_maps.png, saes")


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
            f'{error}. The command needs the extra [bench]: pip install "sae-lens-matryoshka[bench]"'
        ) from error
    return run(checked_config(settings, name, overrides), only)
