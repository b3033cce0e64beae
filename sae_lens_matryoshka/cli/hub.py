"""The commands around the Hub: publish, and convert what other libraries trained."""

import json
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from sae_lens_matryoshka.cli.input_checks import check_early, unusable_input
from sae_lens_matryoshka.cli.shell import Debug, app, errors_shown, load_sae_lens
from sae_lens_matryoshka.loading.sae_folder import CFG_FILENAME, require_sae
from sae_lens_matryoshka.settings.yaml_file import ConfigError

MAIN = "main"


@app.command()
def publish(
    saes: Annotated[
        list[str],
        typer.Argument(
            metavar="[ID=]FOLDER...",
            help="Saved SAEs. ID is the folder in the repo, and what users load by; without one it is "
            "the SAE's hook.",
            show_default=False,
        ),
    ],
    repo_id: Annotated[
        str, typer.Option("--repo-id", metavar="USER/NAME", help="The repo.", show_default=False)
    ],
    levels: Annotated[
        bool,
        typer.Option("--levels", help="Publish each nested level as an SAE of its own as well."),
    ] = False,
    results: Annotated[
        Path | None,
        typer.Option(
            "--results",
            metavar="FOLDER",
            help="Output folder of a benchmark of these SAEs, for the card.",
            show_default=False,
        ),
    ] = None,
    license_id: Annotated[
        str | None,
        typer.Option("--license", metavar="ID", help="Such as mit.", show_default=False),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repo private.")] = False,
    revision: Annotated[
        str, typer.Option("--revision", metavar="BRANCH", help="Branch to publish to.")
    ] = MAIN,
    dry_run: Annotated[
        Path | None,
        typer.Option(
            "--dry-run",
            metavar="FOLDER",
            help="Write the repo's files there and upload nothing.",
            show_default=False,
        ),
    ] = None,
    allow_plugin_only: Annotated[
        bool,
        typer.Option("--allow-plugin-only", help="Also an SAE that stock SAELens cannot load."),
    ] = False,
    debug: Debug = False,
) -> None:
    """Publish SAEs on the Hub, so that stock SAELens loads them by name.

    Before anything is uploaded, stock SAELens reloads it in a process of its own and must give the same
    outputs; the upload is one commit. Log in first: hf auth login.
    """
    with errors_shown(debug):
        given = _by_id(saes)
        module = "sae_lens_matryoshka.hub.publishing"
        request: dict[str, Any] = {
            "revision": revision,
            "private": private,
            "dry_run": dry_run,
            "results": results,
        }
        check_early(lambda now: now.get(module, "check_request")(given, repo_id, **request))
        load_sae_lens()
        _quiet()
        from sae_lens_matryoshka import hub

        with unusable_input():
            place = hub.publish(
                given,
                repo_id,
                **request,
                license=license_id,
                levels=levels,
                allow_plugin_only=allow_plugin_only,
            )
        if dry_run is not None:
            typer.echo(f"Nothing was uploaded. What would be is in {place}; its card is README.md.")
            return
        typer.echo(f"Published: {place}")
        typer.echo("To load:")
        pinned = "" if revision == MAIN else f', revision="{revision}"'
        loader = "MatryoshkaSAE" if pinned else "SAE"  # stock SAELens knows the main branch only
        for sae_id in given:
            typer.echo(f'  {loader}.from_pretrained("{repo_id}", "{sae_id}"{pinned})')
        if allow_plugin_only:
            typer.echo("What needs a package, and which one, is in the card.")


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER|USER/NAME", help="A checkpoint, here or on the Hub.", show_default=False
        ),
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Where the SAE goes.", show_default=False)
    ],
    subfolder: Annotated[
        str | None,
        typer.Option("--subfolder", metavar="PATH", help="Its folder in the Hub repo."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="REVISION", help="Of the Hub repo.")
    ] = None,
    hook_name: Annotated[
        str | None,
        typer.Option(
            "--hook-name",
            metavar="HOOK",
            help="Where the checkpoint does not say it, or another is wanted.",
        ),
    ] = None,
    model_name: Annotated[
        str | None,
        typer.Option(
            "--model-name",
            metavar="NAME",
            help="Where the checkpoint does not say it, or another is wanted.",
        ),
    ] = None,
    context_size: Annotated[
        int | None,
        typer.Option("--context-size", metavar="N", help="Where the checkpoint does not say it."),
    ] = None,
    dataset_path: Annotated[
        str | None,
        typer.Option(
            "--dataset-path", metavar="NAME", help="Where the checkpoint does not say it."
        ),
    ] = None,
    widths: Annotated[
        str | None,
        typer.Option(
            "--widths", metavar="64,256,1024", help="Where the checkpoint names no levels."
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Convert a Matryoshka SAE of another library: dictionary_learning, the paper authors', SAELens.

    Nothing in a checkpoint is executed: pickles are read as weights only.
    """
    with errors_shown(debug):
        chosen = None if widths is None else _whole_numbers("--widths", widths)
        request: dict[str, Any] = {
            "subfolder": subfolder,
            "revision": revision,
            "widths": chosen,
        }
        module = "sae_lens_matryoshka.convert.convert"
        check_early(lambda now: now.get(module, "check_request")(source, out, **request))
        load_sae_lens()
        _quiet()
        from sae_lens_matryoshka import hub

        with unusable_input():
            matryoshka = hub.convert(
                source,
                out,
                **request,
                hook_name=hook_name,
                model_name=model_name,
                context_size=context_size,
                dataset_path=dataset_path,
            )
        typer.echo(f"{matryoshka} is in {out}. To open it:")
        typer.echo(f"  MatryoshkaSAE.load_from_disk({str(out)!r})")


def _quiet() -> None:
    """SAELens says how to load the model of every SAE that it opens; no model is loaded here."""
    warnings.filterwarnings(
        "ignore", message="\nThis SAE has non-empty model_from_pretrained_kwargs"
    )


def _by_id(saes: list[str]) -> dict[str, str | Path]:
    """ID=FOLDER as given; without an ID, the hook that the SAE was trained on."""
    found: dict[str, str | Path] = {}
    for given in saes:
        sae_id, is_named, folder = given.partition("=")
        if not is_named or Path(given).exists():  # a folder's name may hold a "="
            sae_id, folder = _hook_of(Path(given)), given
        if sae_id in found:
            raise ConfigError(
                f"Two SAEs would be called {sae_id!r}. Give each an id: ID=FOLDER ID=FOLDER."
            )
        found[sae_id] = Path(folder)
    return found


def _hook_of(folder: Path) -> str:
    try:
        require_sae(folder)
    except FileNotFoundError as error:
        raise ConfigError(str(error)) from None
    metadata = json.loads((folder / CFG_FILENAME).read_text()).get("metadata") or {}
    if not metadata.get("hook_name"):
        raise ConfigError(f"{folder} does not name its hook. Give it an id: ID={folder}.")
    return str(metadata["hook_name"])


def _whole_numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"{option} {text}: give whole numbers with commas between them, such as 64,256,1024."
        ) from None
