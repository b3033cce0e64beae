"""The command that compares SAEs."""

from collections.abc import Iterator
from contextlib import contextmanager
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
    load_sae_lens,
)
from sae_lens_matryoshka.config_file import ConfigError, parse_override, read_mapping
from sae_lens_matryoshka.definitions import Definitions
from sae_lens_matryoshka.schema import did_you_mean, validated
from sae_lens_matryoshka.writable import check_output

SAEBENCH = "saebench"
# need nothing of SAEBench: where the configuration of each kind is defined
GROUND_TRUTH_KINDS = {
    "toy_tree": ("sae_lens_matryoshka.ground_truth.toy_bench", "ToyTreeConfig"),
    "synthetic": ("sae_lens_matryoshka.ground_truth.synthetic_config", "SyntheticConfig"),
}


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
        kind = settings.get("kind", SAEBENCH)
        if kind not in (SAEBENCH, *GROUND_TRUTH_KINDS):
            kinds = did_you_mean(str(kind), [SAEBENCH, *GROUND_TRUTH_KINDS])
            raise ConfigError(f"{config}: kind: there is no {kind!r}.{kinds}")
        if kind != SAEBENCH:
            _run_ground_truth(kind, settings, given, only, str(config))
            return
        _check_bench(settings, given, only, str(config))
        load_sae_lens()
        from sae_lens_matryoshka.bench import checked_config, run
        from sae_lens_matryoshka.bench.terminal import show_report

        with _kept_when_interrupted():
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

    def checked(definitions: Definitions) -> Any:
        config = validated(definitions.get(*GROUND_TRUTH_KINDS[kind]), settings, name, overrides)
        check_output("output", config.output)
        return config

    check_early(checked)
    load_sae_lens()
    from sae_lens_matryoshka.terminal_table import console, show_markdown

    config = checked(Definitions())
    text, files = _run_toy_tree(config) if kind == "toy_tree" else _run_synthetic(config)
    show_markdown(text, console())
    typer.echo(f"Everything is in {config.output}: {files}")


def _run_toy_tree(config: Any) -> tuple[str, str]:
    """The table, and the files that are written."""
    from sae_lens_matryoshka.ground_truth.toy_bench import run

    _, text = run(config)
    return text, "results.md, results.json, heat_maps.png, saes"


def _run_synthetic(config: Any) -> tuple[str, str]:
    """The table, and the files that are written."""
    from sae_lens_matryoshka.ground_truth.synthetic_bench import run

    with _kept_when_interrupted():
        _, text = run(config)
    return text, "results.md, results.json, runs, saes, model"


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
    check_early(lambda now: now.get("sae_lens_matryoshka.bench.suite", "check_input")(config, only))
