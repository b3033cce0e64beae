"""The command that trains, from a file or from SAELens's own flags."""

import io
import re
import shlex
from argparse import ArgumentError
from collections.abc import Callable
from contextlib import redirect_stderr
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sae_lens_matryoshka.cli.input_checks import check_early, unusable_input
from sae_lens_matryoshka.cli.shell import (
    EXIT_SIGNAL,
    PROGRAM,
    Debug,
    app,
    errors_shown,
    load_sae_lens,
)
from sae_lens_matryoshka.settings.definitions import Definitions
from sae_lens_matryoshka.settings.yaml_file import ConfigError, Setting, read_settings
from sae_lens_matryoshka.training.resuming.checkpoint_folder import (
    checkpoints_below,
    damage,
    is_checkpoint,
)

if TYPE_CHECKING:
    from sae_lens.config import LanguageModelSAERunnerConfig

RUNNER_CFG_FILENAME = "runner_cfg.json"  # SAELens's name, kept here since importing it is slow


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
            help="Go on from this checkpoint, or from the newest complete one in a folder of "
            "checkpoints. Without CONFIG.yaml, with the configuration saved in it.",
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
    with errors_shown(debug):
        if resume is not None:
            resume = _checkpoint_of(resume)
        if list_flags:
            load_sae_lens()
            _parse_flags([*(arguments or []), "--help"], Definitions())
        elif arguments and arguments[0].startswith("-"):
            _train(_config_from_flags(arguments, overrides or [], resume))
        else:
            _train(_config_from_file(arguments or [], overrides or [], resume))


def _checkpoint_of(folder: Path) -> Path:
    """The checkpoint itself, or the newest complete one below a folder, which is reported."""
    below = [] if is_checkpoint(folder) else checkpoints_below(folder)
    for checkpoint in below:
        problem = damage(checkpoint)
        if problem is None:
            typer.echo(f"Resuming from {checkpoint}, the newest complete checkpoint in {folder}.")
            return checkpoint
        typer.echo(f"{checkpoint} {problem}.", err=True)
    if below:
        raise ConfigError(f"No checkpoint in {folder} is complete: see above what each one lacks.")
    return folder


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

    def checked(definitions: Definitions) -> "LanguageModelSAERunnerConfig[Any]":
        check = definitions.get("sae_lens_matryoshka.training.settings.from_file", "checked_config")
        return check(settings, str(path), is_saved=not arguments)

    return _checked_twice(checked)


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
    return _checked_twice(partial(_parse_flags, arguments))


def _checked_twice(
    config: "Callable[[Definitions], LanguageModelSAERunnerConfig[Any]]",
) -> "LanguageModelSAERunnerConfig[Any]":
    """The configuration of a run, refused before SAELens is imported where it cannot be used."""

    def check(definitions: Definitions) -> None:
        found = config(definitions)
        definitions.get("sae_lens_matryoshka.training.runner", "check_before_loading")(
            found, found.sae
        )
        definitions.get("sae_lens_matryoshka.training.runner", "check_sources")(found)

    check_early(check)
    load_sae_lens()
    return config(Definitions())


def _parse_flags(
    arguments: list[str], definitions: Definitions
) -> "LanguageModelSAERunnerConfig[Any]":
    """SAELens's parser of flags, a private function of its runner; raises instead of exiting."""
    parse = definitions.get("sae_lens.llm_sae_training_runner", "_parse_cfg_args")
    check_run = definitions.get("sae_lens_matryoshka.training.settings.run_check", "check_run")
    if not any(re.match("--(architecture|sae)(=|$)", argument) for argument in arguments):
        arguments = ["--architecture", "matryoshka", *arguments]
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            config = parse(arguments)
            check_run(config)
    except (ArgumentError, ValueError) as error:
        raise ConfigError(_with_nearest_flag(str(error), definitions)) from error
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        # argparse writes the whole usage, then one line that says what is wrong
        reason = complaint.getvalue().rpartition("error: ")[2].strip()
        raise ConfigError(_with_nearest_flag(reason, definitions)) from stop
    typer.echo(complaint.getvalue(), nl=False, err=True)  # warnings
    return config


def _with_nearest_flag(reason: str, definitions: Definitions) -> str:
    unknown = re.match(r"unrecognized arguments: --([\w.]+)", reason)
    if unknown is None:
        return reason
    checks = "sae_lens_matryoshka.training.settings.from_file"
    if unknown[1] in definitions.get(checks, "ONLY_IN_FILES"):
        return f"{reason}. {unknown[1]} is no flag of SAELens: give it in a file, '{PROGRAM} train FILE'."
    known = definitions.get(checks, "known_flags")()
    nearest = get_close_matches(unknown[1], known, n=1)
    hint = f" Did you mean --{nearest[0]}?" if nearest else ""
    return f"{reason}.{hint} '{PROGRAM} train --list-flags' lists the flags."


def _train(config: "LanguageModelSAERunnerConfig[Any]") -> None:
    from sae_lens_matryoshka.training.interruption import TrainingFailed, TrainingInterrupted
    from sae_lens_matryoshka.training.runner import MatryoshkaSAETrainingRunner

    with unusable_input():
        runner = MatryoshkaSAETrainingRunner(config)
    try:
        runner.run()
    except TrainingInterrupted as stop:
        _say_how_to_go_on(stop.checkpoint, stop.reason)
        raise typer.Exit(EXIT_SIGNAL + stop.signum) from stop
    except TrainingFailed as failure:
        _say_how_to_go_on(failure.checkpoint, failure.reason)
        raise


def _say_how_to_go_on(checkpoint: Path | None, reason: str) -> None:
    if checkpoint is None:
        typer.echo(f"Nothing is saved, {reason}.")
    else:
        typer.echo(f"Everything is saved in {checkpoint}. To go on from there:")
        typer.echo(f"{PROGRAM} train --resume {shlex.quote(str(checkpoint))}")
