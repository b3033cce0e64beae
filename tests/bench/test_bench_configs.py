"""Every example configuration, resolved against SAEBench's own config classes. No network."""

from pathlib import Path

import pytest
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from transformer_lens.supported_models import MODEL_ALIASES

from sae_lens_matryoshka.bench import checked_config
from sae_lens_matryoshka.bench.config import BenchConfig
from sae_lens_matryoshka.bench.evals.catalogue import EVALS, eval_config
from sae_lens_matryoshka.bench.jobs.plan import check_evals
from sae_lens_matryoshka.settings.yaml_file import read_mapping

FOLDER = Path(__file__).parents[2] / "bench_configs"
DEMO_MODEL = ["demo_recipes", "demo_trainings"]
# those of other kinds are tested in tests/ground_truth
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml") if "kind" not in read_mapping(path))


def load(name: str, quick: bool = False) -> BenchConfig:
    return checked_config(read_mapping(FOLDER / f"{name}.yaml"), name, [("quick", quick)])


def test_the_examples_are_there():
    assert [*DEMO_MODEL, "gemma-2-2b-65k", "offline", "pythia-160m-layer8", "tinystories"] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_field_is_one_of_saebenchs(name: str):
    config = load(name)
    check_evals(config)
    for eval_name, given in config.evals.items():
        resolved = eval_config(eval_name, given)
        for key, value in given.items():
            assert repr(getattr(resolved, key)).replace("(", "[").replace(")", "]") == repr(value)
    assert config.output.name == name
    assert len(config.seeds) == 3


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("offline", *DEMO_MODEL)])
def test_models_and_releases_are_known(name: str):
    config = load(name)
    assert any(config.model.name in aliases for aliases in MODEL_ALIASES.values())
    assert config.data == "hub"
    directory = get_pretrained_saes_directory()
    for source in config.saes:
        if source.release:
            assert source.id in directory[source.release].saes_map


def test_gemma_is_the_papers_comparison():
    config = load("gemma-2-2b-65k")
    assert list(config.evals) == ["absorption", "sparse_probing", "tpp", "scr"]
    for name, given in config.evals.items():
        assert given == {}, "SAEBench's paper settings are its defaults"
        assert EVALS[name].seeded
    assert config.hook_name == "blocks.12.hook_resid_post"
    assert config.model.dtype == "bfloat16"
    matryoshka = [source for source in config.saes if source.name.startswith("matryoshka")]
    flat = [source for source in config.saes if source.name.startswith("batchtopk")]
    assert len(matryoshka) == len(flat) == 6
    widths = [round(65536 * share) for share in (1 / 32, 3 / 32, 7 / 32, 15 / 32, 1)]
    assert all(source.widths == widths for source in matryoshka)
    # the flat suite lies in the repo that SAELens names for the Matryoshka one
    directory = get_pretrained_saes_directory()
    repos = {directory[str(source.release)].repo_id for source in matryoshka}
    assert repos == {source.repo for source in flat}
    for k, (ours, theirs) in enumerate(zip(matryoshka, flat, strict=True)):
        path = directory[str(ours.release)].saes_map[str(ours.id)]
        assert path.endswith(f"trainer_{k}")
        assert theirs.id == path.replace("matryoshka_batch_top_k", "batch_top_k")


def test_recipes_are_compared_without_a_network():
    config = load("demo_recipes")
    assert config.is_offline
    assert [source.demo for source in config.saes] == ["batchtopk", "matryoshka", "best"]
    assert config.baseline == "batchtopk"


def test_trainings_are_compared_as_recipes_are():
    recipes, trainings, offline = load("demo_recipes"), load("demo_trainings"), load("offline")
    assert trainings.is_offline
    pairs = {(source.demo, source.seed) for source in trainings.saes}
    assert pairs == {(source.demo, seed) for source in recipes.saes for seed in range(4)}
    assert len(pairs) == len(trainings.saes)
    assert trainings.evals == {
        "absorption": recipes.evals["absorption"],
        "sparse_probing": offline.evals["sparse_probing"],
    }
    assert (trainings.text, trainings.seeds) == (recipes.text, recipes.seeds)


def test_offline_needs_no_network_and_compares_equals():
    config = load("offline")
    assert config.is_offline
    assert [source.demo for source in config.saes] == ["batchtopk", "matryoshka"]
    assert all(source.levels == "all" for source in config.saes)
    assert set(config.evals) == set(EVALS)
    quick = load("offline", quick=True)
    assert quick.is_offline
    assert quick.seeds == [0]
    assert set(quick.evals) == set(EVALS)
    assert quick.output != config.output
    assert quick.demo_saes != config.demo_saes
