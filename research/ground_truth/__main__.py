"""Benchmarks whose true features are known: python -m research.ground_truth CONFIG.yaml.

`kind: toy_tree` is the paper's toy, `kind: synthetic` trains SAEs on SynthSAEBench's models.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from sae_lens_matryoshka.cli.input_checks import check_early
from sae_lens_matryoshka.cli.shell import (
    Debug,
    errors_shown,
    kept_when_interrupted,
    load_sae_lens,
)
from sae_lens_matryoshka.settings.definitions import Definitions
from sae_lens_matryoshka.settings.strict_models import did_you_mean, validated
from sae_lens_matryoshka.settings.writable import check_output
from sae_lens_matryoshka.settings.yaml_file import ConfigError, parse_override, read_mapping

# Where the configuration of each kind is defined.
KINDS = {
    "toy_tree": ("research.ground_truth.toy_bench", "ToyTreeConfig"),
    "synthetic": ("research.ground_truth.synthetic_config", "SyntheticConfig"),
}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.yaml", help="What to compare.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace or add a key. May be repeated."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Train SAEs on data whose true features are known, and count what they found.

    After an interruption, the same command continues where it stopped, except for the toy tree.
    """
    with errors_shown(debug):
        settings = read_mapping(config)
        given = [parse_override(override) for override in overrides or []]
        kind = settings.get("kind")
        if kind not in KINDS:
            kinds = did_you_mean(str(kind), KINDS)
            raise ConfigError(f"{config}: kind: there is no {kind!r}.{kinds}")

        def checked(definitions: Definitions) -> Any:
            found = validated(definitions.get(*KINDS[kind]), settings, str(config), given)
            check_output("output", found.output)
            return found

        check_early(checked)
        load_sae_lens()
        from sae_lens_matryoshka.terminal_table import console, show_markdown

        comparison = checked(Definitions())
        run = _run_toy_tree if kind == "toy_tree" else _run_synthetic
        text, files = run(comparison)
        show_markdown(text, console())
        typer.echo(f"Everything is in {comparison.output}: {files}")


def _run_toy_tree(config: Any) -> tuple[str, str]:
    """The table, and the files that are written."""
    from research.ground_truth.toy_bench import run

    _, text = run(config)
    return text, "results.md, results.json, heat_maps.png, saes"


def _run_synthetic(config: Any) -> tuple[str, str]:
    """The table, and the files that are written."""
    from research.ground_truth.synthetic_bench import run

    with kept_when_interrupted():
        _, text = run(config)
    return text, "results.md, results.json, runs, saes, model"


if __name__ == "__main__":
    app(prog_name="python -m research.ground_truth")
