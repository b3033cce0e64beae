"""The command that shows everything at once."""

from pathlib import Path
from typing import Annotated

import typer

from sae_lens_matryoshka.cli.input_checks import unusable_input
from sae_lens_matryoshka.cli.shell import EXIT_SIGNAL, Debug, app, errors_shown, load_sae_lens
from sae_lens_matryoshka.settings.writable import check_output


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
    from sae_lens_matryoshka.demo.text import data_folder

    with errors_shown(debug):
        with unusable_input():
            check_output("--output", output)
        data_folder()  # an error without the extra [demo]
        load_sae_lens()
        from sae_lens_matryoshka.demo import quickstart as demo
        from sae_lens_matryoshka.training.interruption import TrainingInterrupted

        try:
            demo.run(output=output, small=small)
        except TrainingInterrupted as stop:
            raise typer.Exit(EXIT_SIGNAL + stop.signum) from stop
