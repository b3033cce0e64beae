"""The data sets of a benchmark: from the Hub, or from a folder that stands in for it.

`load_dataset("a/b")` prefers a folder a/b below the working folder to the Hub. So a worker that
runs in a folder with links to local data sets reads those, and SAEBench needs no change.
"""

import hashlib
import re
from pathlib import Path

from sae_lens_matryoshka.levels.fingerprint import hash_files
from sae_lens_matryoshka.loading.hub_access import fetching
from sae_lens_matryoshka.settings.strict_models import did_you_mean
from sae_lens_matryoshka.settings.yaml_file import ConfigError

# what SAEBench reads of each
COLUMNS = {
    "LabHC/bias_in_bios": ("hard_text", "profession", "gender"),
    "canrager/amazon_reviews_mcauley_1and5": ("text", "category", "rating"),
    "fancyzhx/ag_news": ("text", "label"),
    "Helsinki-NLP/europarl": ("translation",),
}
_TEXT_ONLY = ("text",)
_ONLY_TRAIN = ("Helsinki-NLP/europarl",)
_NOT_LOCAL = (
    "codeparrot/github-code"  # SAEBench passes languages=, which only the Hub's script takes
)
GIVE_DATA = (
    "Set data to a folder that holds it as Parquet files, or to demo (see the docs, Evaluate SAEs)."
)
_SAVED_TO_DISK = ("state.json", "dataset_dict.json")


def check_local(folder: Path, name: str) -> None:
    """
    Check that a folder can stand in for a data set of the Hub.

    Args:
        folder: The folder that holds all of them.
        name: The data set, "a/b".

    Raises:
        ConfigError: It is missing, in another form, lacks splits or columns, or has no text.
    """
    if name == _NOT_LOCAL:
        raise ConfigError(
            f"data: {name} can only come from the Hub. Leave it out of dataset_names."
        )
    place = folder / name
    if not folder.is_dir():
        raise ConfigError(f"data: there is no folder {folder}.")
    if not place.is_dir():
        there = [str(path.relative_to(folder)) for path in folder.glob("*/*") if path.is_dir()]
        raise ConfigError(f"data: {folder} holds no {name}.{did_you_mean(name, there)}")
    if any((place / mark).exists() for mark in _SAVED_TO_DISK):
        raise ConfigError(
            f"data: {place} was written by save_to_disk, which load_dataset misreads without an error. "
            "Write train.parquet and test.parquet instead: dataset['train'].to_parquet(...)."
        )
    one_split = name not in COLUMNS or name in _ONLY_TRAIN
    for split in ("train",) if one_split else ("train", "test"):
        _check_split(place, split, COLUMNS.get(name, _TEXT_ONLY))


def _check_split(place: Path, split: str, columns: tuple[str, ...]) -> None:
    import pyarrow.parquet as pq

    names = re.compile(rf"(^|[/._-]){split}")  # as load_dataset finds splits
    files = [p for p in place.rglob("*.parquet") if names.search(p.relative_to(place).as_posix())]
    if not files:
        raise ConfigError(f"data: {place} has no {split}*.parquet.")
    for file in sorted(files):
        try:
            there = pq.read_schema(file).names
            missing = [column for column in columns if column not in there]
            text = [] if missing else pq.read_table(file, columns=[columns[0]])[0].to_pylist()
        except (OSError, ValueError) as error:
            raise ConfigError(f"data: {file} cannot be read: {error}") from error
        if missing:
            raise ConfigError(
                f"data: {file} lacks {', '.join(missing)}; it has {', '.join(there)}."
            )
        if not text:
            raise ConfigError(f"data: {file} has no rows.")
        empty = [i for i, one in enumerate(text) if not one]
        if empty:
            raise ConfigError(
                f"data: {file} has {len(empty)} rows without {columns[0]}, the first is row {empty[0]}. "
                "SAEBench would average over nothing there. Remove them."
            )


def link_data(folder: Path, working_folder: Path) -> None:
    """Let `load_dataset("a/b")` find the folder's data sets from the working folder."""
    for owner in sorted(path for path in folder.iterdir() if path.is_dir()):
        link = working_folder / owner.name
        if link.is_symlink():
            link.unlink()  # the folder may have moved
        link.symlink_to(owner.absolute(), target_is_directory=True)


def data_fingerprints(folder: Path | None, wanted: dict[str, list[str]]) -> dict[str, str]:
    """
    Hashes of the content of data sets; of Hub data sets, of the versions that the Hub gives.

    Args:
        folder: The folder that stands in for the Hub; None for the Hub itself.
        wanted: Per eval, its data sets.

    Returns:
        One hash per eval.
    """
    content: dict[str, str] = {}
    for name in dict.fromkeys(name for names in wanted.values() for name in names):
        # all files: a README.md may say which are read
        content[name] = (
            _data_set_commit(name) if folder is None else hash_files(folder / name, ("**/*",))
        )
    lines = {
        key: "".join(f"{name} {content[name]}\n" for name in names) for key, names in wanted.items()
    }
    return {key: hashlib.sha256(text.encode()).hexdigest() for key, text in lines.items()}


def _data_set_commit(name: str) -> str:
    """The commit that the Hub's data set, "user/name", is at."""
    from huggingface_hub import HfApi

    with fetching(f"The data set {name}", GIVE_DATA):
        commit = HfApi().dataset_info(name).sha
    if not commit:
        raise ValueError(f"The Hub does not say which version of {name} it holds.")
    return commit
