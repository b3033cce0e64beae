"""What all commands share: the program, how errors are shown, when SAELens is loaded."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Annotated

import typer

from sae_lens_matryoshka import __version__
from sae_lens_matryoshka.loading.hub_access import NotFetchedError
from sae_lens_matryoshka.settings.yaml_file import ConfigError

PROGRAM = "sae-lens-matryoshka"
EXIT_RUN_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_SIGNAL = 128  # plus the signal's number, as shells count

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


def refuse_wrong_click() -> None:
    """Exit where click is too new for typer, which would take options for something else."""
    if _version("typer") < (0, 15, 4) and _version("click") >= (8, 2):
        found = f"typer {version('typer')} misreads options beside click {version('click')}"
        typer.echo(f"Error: {found}. Install an older click: pip install 'click<8.2'", err=True)
        raise SystemExit(EXIT_RUN_FAILED)


def _version(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version(package).split(".") if part.isdigit())


def load_sae_lens() -> None:
    """Import SAELens, which takes seconds, and register our architecture with it."""
    typer.echo("Loading SAELens ...", err=True)
    logging.basicConfig(format="%(message)s")
    for name in ("sae_lens", "sae_lens_matryoshka"):
        logging.getLogger(name).setLevel(logging.INFO)
    from sae_lens_matryoshka import register

    register()


@contextmanager
def errors_shown(debug: bool) -> Iterator[None]:
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
        if isinstance(error, NotFetchedError):
            raise typer.Exit(EXIT_RUN_FAILED) from None
        typer.echo("Run the command again with --debug for the traceback.", err=True)
        raise typer.Exit(EXIT_RUN_FAILED) from None


@contextmanager
def kept_when_interrupted() -> Iterator[None]:
    """Say that a command that is interrupted can be continued."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("What is finished is kept. The same command continues from there.", err=True)
        raise
