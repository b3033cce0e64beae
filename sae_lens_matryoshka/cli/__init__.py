"""The command line: sae-lens-matryoshka {quickstart, train, bench, publish, convert}.

SAELens and PyTorch are imported inside the commands only, so that help and simple errors are instant.
"""

# isort: off
from sae_lens_matryoshka.cli import quickstart, train, bench, hub  # the order of the help

# isort: on
from sae_lens_matryoshka.cli.shell import PROGRAM, app, refuse_wrong_click

COMMANDS = (quickstart, train, bench, hub)
"""Importing them is what makes them commands."""


def main() -> None:
    """Entry point of the console script."""
    refuse_wrong_click()
    app(prog_name=PROGRAM)
