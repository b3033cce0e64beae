"""The command line: sae-lens-matryoshka {quickstart, train, bench}.

SAELens and PyTorch are imported inside the commands only, so that help and simple errors are instant.
"""

import io
import logging
import re
import shlex
import signal
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sae_lens_matryoshka import __version__
from sae_lens_matryoshka.config_file import (
    ConfigError,
    Setting,
    parse_override,
    read_mapping,
    read_settings,
)

if TYPE_CHECKING:
    from sae_lens.config import LanguageModelSAERunnerConfig

    from sae_lens_matryoshka.bench import BenchReport

PROGRAM = "sae-lens-matryoshka"
EXIT_RUN_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_SIGNAL = 128  # plus the signal's number, as shells count
RUNNER_CFG_FILENAME = "runner_cfg.json"  # SAELens's name, kept here since importing it is slow

app = typer.Typer(
    name=PROGRAM,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[  # noqa: ARG001
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Matryoshka sparse autoencoders for language models, on SAELens."""


@app.command()
def quickstart(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the results go.")
    ] = Path("quickstart"),
    small: Annotated[
        bool, typer.Option("--small", help="A short run that only shows that everything works.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Train, evaluate and look at a Matryoshka SAE of a small language model. No network needed.

    The model comes with this package, its texts with the extra [demo].
    """
    with _errors_shown(debug):
        _load_sae_lens()
        from sae_lens_matryoshka.demo import quickstart as demo
        from sae_lens_matryoshka.interruption import TrainingInterrupted

        try:
            demo.run(output=output, small=small)
        except TrainingInterrupted as stop:
            raise typer.Exit(EXIT_SIGNAL + stop.signum) from stop


@app.command(context_settings={"ignore_unknown_options": True})
def train(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CONFIG.yaml | --FLAG VALUE",
            help="A YAML file, or SAELens's own flags. See above.",
            show_default=False,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Replace or add a key of CONFIG.yaml: --set sae.k=40 --set lr=3e-4. "
            "May be repeated; the last one wins.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="FOLDER",
            help="Go on from this checkpoint. Without CONFIG.yaml, with the configuration saved in it.",
            show_default=False,
        ),
    ] = None,
    list_flags: Annotated[
        bool, typer.Option("--list-flags", help="List SAELens's flags and exit (takes seconds).")
    ] = False,
    debug: Debug = False,
) -> None:
    """Train a Matryoshka SAE, or any SAE of SAELens, on a language model.

    **With a file:** `sae-lens-matryoshka train CONFIG.yaml --set sae.k=40`

    Its keys are the arguments of LanguageModelSAERunnerConfig; those of the SAE may stand under
    `sae:`, those of LoggingConfig stand under `logger:`. The folder train_configs of the repository
    holds examples.

    **With flags:** `sae-lens-matryoshka train --d_in 768 --d_sae 16384 --k 40 ...`

    They are SAELens's own (`--architecture` is matryoshka unless given). Lists are written as
    `--matryoshka_widths 512 2048 16384`, whole numbers without exponent. What SAELens's parser
    cannot read goes into a file: 5e8 for a whole number, a list of ids for exclude_special_tokens.
    """
    with _errors_shown(debug):
        if list_flags:
            _load_sae_lens()
            _parse_flags([*(arguments or []), "--help"])
        elif arguments and arguments[0].startswith("-"):
            _train(_config_from_flags(arguments, overrides or [], resume))
        else:
            _train(_config_from_file(arguments or [], overrides or [], resume))


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

    Needs the extra [bench]. The folder bench_configs of the repository holds examples;
    offline.yaml runs without a network. Interrupted, the same command goes on where it stopped.
    """
    with _errors_shown(debug):
        settings = read_mapping(config)
        given = [parse_override(override) for override in overrides or []]
        _load_sae_lens()
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


def _config_from_file(
    arguments: list[str], overrides: list[str], resume: Path | None
) -> "LanguageModelSAERunnerConfig[Any]":
    if len(arguments) > 1:
        raise ConfigError(
            f"Beside the config file {arguments[0]} there is {' '.join(arguments[1:])!r}, but "
            "SAELens's flags replace a config file. Use --set KEY=VALUE to change a key of the file."
        )
    if not arguments and resume is None:
        raise ConfigError(
            f"Nothing to train. Give a config file ({PROGRAM} train CONFIG.yaml), SAELens's flags "
            f"({PROGRAM} train --architecture matryoshka ...) or a checkpoint (--resume FOLDER)."
        )
    path = Path(arguments[0]) if arguments else Path(str(resume), RUNNER_CFG_FILENAME)
    settings = read_settings(path, overrides)
    if resume is not None:
        settings.append(
            Setting("resume_from_checkpoint", str(resume), "--resume", is_override=True)
        )

    _load_sae_lens()
    from sae_lens_matryoshka.config_check import checked_config

    return checked_config(settings, str(path), is_saved=not arguments)


def _config_from_flags(
    arguments: list[str], overrides: list[str], resume: Path | None
) -> "LanguageModelSAERunnerConfig[Any]":
    if overrides:
        raise ConfigError(
            f"--set {overrides[0]} changes a config file, but there are only SAELens's flags. Write "
            f"--{overrides[0].replace('=', ' ', 1)} instead."
        )
    if resume is not None:
        arguments = [*arguments, "--resume_from_checkpoint", str(resume)]
    _load_sae_lens()
    return _parse_flags(arguments)


def _parse_flags(arguments: list[str]) -> "LanguageModelSAERunnerConfig[Any]":
    """SAELens's parser of flags, a private function of its runner; raises instead of exiting."""
    from sae_lens.llm_sae_training_runner import _parse_cfg_args

    if not any(re.match("--(architecture|sae)(=|$)", argument) for argument in arguments):
        arguments = ["--architecture", "matryoshka", *arguments]
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            config = _parse_cfg_args(arguments)
    except (ArgumentError, ValueError) as error:
        raise ConfigError(_with_nearest_flag(str(error))) from error
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        # argparse writes the whole usage, then one line that says what is wrong
        reason = complaint.getvalue().rpartition("error: ")[2].strip()
        raise ConfigError(_with_nearest_flag(reason)) from stop
    typer.echo(complaint.getvalue(), nl=False, err=True)  # warnings
    return config


def _with_nearest_flag(reason: str) -> str:
    from sae_lens_matryoshka.config_check import known_names

    unknown = re.match(r"unrecognized arguments: --([\w.]+)", reason)
    if unknown is None:
        return reason
    nearest = get_close_matches(unknown[1], known_names(), n=1)
    hint = f" Did you mean --{nearest[0]}?" if nearest else ""
    return f"{reason}.{hint} '{PROGRAM} train --list-flags' lists the flags."


def _load_sae_lens() -> None:
    typer.echo("Loading SAELens ...", err=True)
    logging.basicConfig(format="%(message)s")
    for name in ("sae_lens", "sae_lens_matryoshka"):
        logging.getLogger(name).setLevel(logging.INFO)
    from sae_lens_matryoshka import register

    register()


def _train(config: "LanguageModelSAERunnerConfig[Any]") -> None:
    from sae_lens_matryoshka.interruption import TrainingInterrupted
    from sae_lens_matryoshka.runner import MatryoshkaSAETrainingRunner

    try:
        MatryoshkaSAETrainingRunner(config).run()
    except TrainingInterrupted as stop:
        if stop.checkpoint is None:
            typer.echo("Nothing is saved, since checkpoint_path is null.")
        else:
            typer.echo(f"Everything is saved in {stop.checkpoint}. To go on from there:")
            typer.echo(f"{PROGRAM} train --resume {shlex.quote(str(stop.checkpoint))}")
        raise typer.Exit(EXIT_SIGNAL + stop.signum) from stop


@contextmanager
def _errors_shown(debug: bool) -> Iterator[None]:
    """Show an error as one paragraph and exit; a defect of the program keeps its traceback."""
    try:
        yield
    except typer.Exit:  # a RuntimeError
        raise
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)
        raise typer.Exit(EXIT_SIGNAL + signal.SIGINT) from None
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        if debug:
            raise
        typer.secho(f"Error: {error}", fg=typer.colors.RED, err=True)
        if isinstance(error, ConfigError):
            raise typer.Exit(EXIT_BAD_INPUT) from None
        typer.echo("Run the command again with --debug for the traceback.", err=True)
        raise typer.Exit(EXIT_RUN_FAILED) from None


def main() -> None:
    """Entry point of the console script."""
    app(prog_name=PROGRAM)
