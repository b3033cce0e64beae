"""Names of SAEs in a repo."""

import pytest

from sae_lens_matryoshka.hub.sae_ids import check_ids, is_level_id, level_id

NO_PATHS = [
    "../a",
    "a/../b",
    "/a",
    "a/",
    "",
    ".",
    "a//b",
    "a b",
    "a\\b",
    "a/..",
    "ä/b",
    ".git/x",
    "a.",
]


@pytest.mark.parametrize("sae_id", ["a", "blocks.12.hook_resid_post", "layer_12/k_40/v1.0", "-a_"])
def test_folders(sae_id: str):
    check_ids([sae_id])


@pytest.mark.parametrize("sae_id", [*NO_PATHS, "README.md", "a/cfg.json", "a/cfg.json/b"])
def test_no_way_out_of_the_repo_nor_onto_its_files(sae_id: str):
    with pytest.raises(ValueError, match="cannot be an sae_id"):
        check_ids(["fine", sae_id])


def test_names_of_levels_are_ours():
    name = level_id("a/b", 0, 16)
    assert name == "a/b/level_0_width_16"
    assert is_level_id(name) and not is_level_id("a/b")
    with pytest.raises(ValueError, match="levels=True gives such names"):
        check_ids([name])
