"""A folder that stands in for the Hub."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from datasets import Dataset, load_dataset

from sae_lens_matryoshka.bench.inputs.data import check_local, data_fingerprints, link_data
from sae_lens_matryoshka.settings.yaml_file import ConfigError

NEWS = "fancyzhx/ag_news"


@pytest.fixture
def folder(data_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(data_folder, tmp_path / "data")


def test_the_demos_data_sets_pass(data_folder: Path):
    for name in (NEWS, "LabHC/bias_in_bios", "canrager/amazon_reviews_mcauley_1and5"):
        check_local(data_folder, name)
    check_local(data_folder, "demo/heldout_text")


def test_load_dataset_finds_them_from_the_working_folder(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    working = tmp_path / "cwd"
    working.mkdir()
    link_data(data_folder, working)
    link_data(data_folder, working)  # a second time is fine
    monkeypatch.chdir(working)
    loaded = load_dataset(NEWS, cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "test"}
    expected = pd.read_parquet(data_folder / NEWS / "test.parquet")
    assert loaded["test"].to_pandas().equals(expected)


def test_missing_data_sets_are_named(folder: Path):
    with pytest.raises(
        ConfigError, match="holds no fancyzhx/ag_new.*Did you mean 'fancyzhx/ag_news'"
    ):
        check_local(folder, "fancyzhx/ag_new")
    with pytest.raises(ConfigError, match="can only come from the Hub"):
        check_local(folder, "codeparrot/github-code")
    (folder / NEWS / "test.parquet").unlink()
    with pytest.raises(ConfigError, match=r"has no test\*.parquet"):
        check_local(folder, NEWS)


def test_save_to_disk_is_refused(folder: Path):
    shutil.rmtree(folder / NEWS)
    Dataset.from_dict({"text": ["a"], "label": [0]}).save_to_disk(folder / NEWS)
    with pytest.raises(ConfigError, match="written by save_to_disk"):
        check_local(folder, NEWS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"text": ["a"]}, "lacks label; it has text"),
        ({"text": [], "label": []}, "has no rows"),
        ({"text": ["a", "", "b"], "label": [0, 1, 2]}, "1 rows without text, the first is row 1"),
        ({"text": ["a", None], "label": [0, 1]}, "the first is row 1"),
    ],
)
def test_unusable_content_is_refused(folder: Path, content: dict[str, list[object]], message: str):
    pd.DataFrame(content).to_parquet(folder / NEWS / "train.parquet")
    with pytest.raises(ConfigError, match=message):
        check_local(folder, NEWS)


def test_a_broken_file_is_named(folder: Path):
    (folder / NEWS / "train.parquet").write_bytes(b"not parquet")
    with pytest.raises(ConfigError, match="train.parquet cannot be read"):
        check_local(folder, NEWS)


def _fingerprint(folder: Path | None, names: list[str]) -> str:
    return data_fingerprints(folder, {"tpp": names})["tpp"]


def test_hub_data_is_known_by_its_commit(monkeypatch: pytest.MonkeyPatch):
    from types import SimpleNamespace

    import huggingface_hub

    commits = {"Helsinki-NLP/europarl": "abc", "codeparrot/github-code": "def", "a/b": None}
    monkeypatch.setattr(
        huggingface_hub.HfApi,
        "dataset_info",
        lambda _, name: SimpleNamespace(sha=commits[name]),
    )
    both = _fingerprint(None, ["Helsinki-NLP/europarl", "codeparrot/github-code"])
    commits["codeparrot/github-code"] = "other"
    assert both != _fingerprint(None, ["Helsinki-NLP/europarl", "codeparrot/github-code"])
    with pytest.raises(ValueError, match="does not say which version of a/b"):
        _fingerprint(None, ["a/b"])


def test_a_moved_folder_is_found_again(folder: Path, tmp_path: Path):
    working = tmp_path / "cwd"
    working.mkdir()
    link_data(folder, working)
    moved = folder.rename(tmp_path / "moved")
    link_data(moved, working)
    assert (working / NEWS / "train.parquet").exists()


def test_a_fingerprint_follows_the_rows_that_are_read(folder: Path):
    before = _fingerprint(folder, [NEWS])
    assert before == _fingerprint(folder, [NEWS])
    assert before != _fingerprint(folder, [NEWS, "LabHC/bias_in_bios"])
    other = folder / "LabHC/bias_in_bios/train.parquet"
    pd.read_parquet(other)[:-1].to_parquet(other)
    assert before == _fingerprint(folder, [NEWS])
    (folder / NEWS / "README.md").write_text("configs: ...")
    assert before != _fingerprint(folder, [NEWS])
    before = _fingerprint(folder, [NEWS])
    train = folder / NEWS / "train.parquet"
    pd.read_parquet(train)[:-1].to_parquet(train)
    assert before != _fingerprint(folder, [NEWS])
