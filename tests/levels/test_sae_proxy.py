"""A MatryoshkaSAE does what a user expects of an SAE, or names the object that does."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from sae_lens import SAE, HookedSAETransformer
from transformer_lens import HookedTransformerConfig

from sae_lens_matryoshka import (
    MatryoshkaSAE,
    MatryoshkaTrainingSAE,
    MatryoshkaTrainingSAEConfig,
)
from sae_lens_matryoshka.saes.inference_sae import copy_of

D_IN, D_SAE, WIDTHS = 16, 40, (4, 15, 40)
HOOK = "blocks.0.hook_resid_post"


def new_sae(activation: str = "batchtopk", **options) -> MatryoshkaSAE:
    torch.manual_seed(0)
    options = {"d_in": D_IN, "d_sae": D_SAE, "matryoshka_widths": list(WIDTHS), **options}
    if activation in ("batchtopk", "topk"):
        options["k"] = 3
    sae = MatryoshkaTrainingSAE(MatryoshkaTrainingSAEConfig(activation=activation, **options))
    sae.b_enc.data += 0.1 * torch.randn(D_SAE)
    sae.cfg.metadata.hook_name = HOOK
    return MatryoshkaSAE.from_sae(sae)


@pytest.fixture
def sae() -> MatryoshkaSAE:
    return new_sae()


@pytest.fixture(scope="module")
def model() -> HookedSAETransformer:
    torch.manual_seed(0)
    return HookedSAETransformer(
        HookedTransformerConfig(
            n_layers=2, d_model=D_IN, n_ctx=8, d_head=8, d_vocab=30, act_fn="relu", seed=0
        )
    )


X = torch.randn(5, D_IN, generator=torch.Generator().manual_seed(1))
TOKENS = torch.arange(12).view(2, 6)


def test_computes_what_its_sae_does(sae):
    assert torch.equal(sae.encode(X), sae.sae.encode(X))
    assert torch.equal(sae.decode(sae.encode(X)), sae.sae(X))
    assert torch.equal(sae(X), sae.sae(X))
    assert torch.equal(sae.forward(X), sae.sae(X))
    assert torch.equal(sae.process_sae_in(X), sae.sae.process_sae_in(X))
    output, cache = sae.run_with_cache(X)
    assert torch.equal(output, sae.sae(X))
    assert torch.equal(cache["hook_sae_acts_post"], sae.encode(X))


@pytest.mark.parametrize(
    "name",
    ["cfg", "W_enc", "W_dec", "b_enc", "b_dec", "threshold", "device", "dtype", "training"]
    + ["hook_dict", "hook_sae_acts_post", "use_error_term", "d_head", "activation_fn"],
)
def test_has_what_its_sae_has(sae, name):
    assert getattr(sae, name) is getattr(sae.sae, name)
    assert name in dir(sae)


def test_sizes(sae):
    assert (sae.d_in, sae.d_sae, len(sae)) == (D_IN, D_SAE, 3)
    assert isinstance(sae, SAE)
    assert "widths=(4, 15, 40)" in repr(sae)


@pytest.mark.parametrize("name", ["levels", "config", "metadata", "hook_name", "from_dicts", "_x"])
def test_names_that_nothing_has(sae, name):
    with pytest.raises(AttributeError, match=rf"'{name}'.*\.sae, .*\.level\(i\)"):
        getattr(sae, name)
    assert not hasattr(sae, name)


def test_parameters_are_those_of_its_sae(sae):
    assert set(sae.parameters()) == set(sae.sae.parameters())
    assert list(dict(sae.named_parameters())) == list(dict(sae.sae.named_parameters()))
    before = sae.W_dec.clone()
    sae(X).sum().backward()
    torch.optim.SGD(sae.parameters(), lr=1.0).step()
    assert not torch.equal(sae.sae.W_dec, before)
    sae.zero_grad()
    assert sae.W_dec.grad is None
    state_dict = {name: tensor + 1 for name, tensor in sae.state_dict().items()}
    sae.load_state_dict(state_dict)
    assert torch.equal(sae.sae.b_dec, state_dict["b_dec"])


@pytest.mark.parametrize(
    ("move", "dtype"),
    [
        (lambda sae: sae.half(), torch.float16),
        (lambda sae: sae.bfloat16(), torch.bfloat16),
        (lambda sae: sae.double(), torch.float64),
        (lambda sae: sae.half().float(), torch.float32),
        (lambda sae: sae.to(torch.bfloat16), torch.bfloat16),
        (lambda sae: sae.to("cpu", torch.float64), torch.float64),
        (lambda sae: sae.to(device=torch.device("cpu"), dtype=torch.float16), torch.float16),
        (lambda sae: sae.cpu(), torch.float32),
    ],
)
def test_moves_and_keeps_its_configuration_up_to_date(sae, move, dtype, tmp_path):
    assert move(sae) is sae
    assert {tensor.dtype for tensor in sae.state_dict().values()} == {dtype} == {sae.dtype}
    assert (sae.cfg.dtype, sae.cfg.device) == (str(dtype).removeprefix("torch."), "cpu")
    assert sae(X).dtype == sae.level(0)(X).dtype == dtype
    sae.save(tmp_path)
    assert MatryoshkaSAE.load_from_disk(tmp_path).dtype == dtype


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize(
    "move",
    [lambda sae: sae.cuda(), lambda sae: sae.cuda(1), lambda sae: sae.to("cuda", torch.half)],
)
def test_stays_usable_where_it_cannot_be_moved(sae, move):
    expected = sae(X)
    with pytest.raises((AssertionError, RuntimeError)):
        move(sae)
    assert (sae.cfg.device, sae.cfg.dtype, sae.dtype) == ("cpu", "float32", torch.float32)
    assert sae.device == torch.device("cpu")
    assert torch.equal(sae.level(-1)(X), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_moves_to_a_gpu(sae):
    assert sae.cuda() is sae
    assert sae(X.cuda()).device.type == sae.level(0).W_dec.device.type == "cuda"
    assert sae.cpu().device.type == "cpu"


def test_methods_that_return_the_sae_return_the_matryoshka_sae(sae):
    assert sae.eval() is sae.train() is sae.requires_grad_(False) is sae
    assert not any(parameter.requires_grad for parameter in sae.sae.parameters())
    assert sae.eval().training is sae.sae.training is False


def test_setting_reaches_the_sae(sae):
    point = torch.nn.Identity()
    sae.hook_sae_error = point
    assert sae.sae.hook_sae_error is point
    for name in ("widths", "sae"):
        with pytest.raises(AttributeError, match=r"MatryoshkaSAE\(sae, widths\)"):
            setattr(sae, name, None)


def test_folding_keeps_the_reconstruction(sae):
    sae.W_dec.data *= 2
    before = sae(X)
    sae.fold_W_dec_norm()
    torch.testing.assert_close(sae(X), before)
    torch.testing.assert_close(sae.sae.W_dec.norm(dim=-1), torch.ones(D_SAE))


class TestLevels:
    def test_by_index(self, sae):
        assert [level.cfg.d_sae for level in sae] == list(WIDTHS)
        assert [level.cfg.d_sae for level in sae[:2]] == [4, 15]
        assert [level.cfg.d_sae for level in reversed(sae)] == [40, 15, 4]
        for index in (1, -2, np.int64(1), torch.tensor(1)):
            assert torch.equal(sae[index](X), sae.level(index)(X))
            assert sae[index].cfg.d_sae == 15

    @pytest.mark.parametrize("index", [3, -4, 15])
    def test_that_do_not_exist(self, sae, index):
        with pytest.raises(IndexError, match=r"levels are 0 to 2.*truncate"):
            sae[index]

    @pytest.mark.parametrize("index", ["0", 0.5, None, (0, 1)])
    def test_by_what_is_no_index(self, sae, index):
        with pytest.raises(TypeError, match="must be a whole number"):
            sae.level(index)
        with pytest.raises(TypeError, match="must be a whole number"):
            sae.truncate(index)

    def test_of_a_topk_sae(self):
        topk = new_sae("topk")
        assert topk(X).shape == X.shape
        with pytest.raises(ValueError, match=r"\.sae.*calibrate_threshold"):
            list(topk)


class TestCopies:
    def test_shallow(self, sae):
        assert copy.copy(sae).sae is sae.sae
        assert copy.copy(sae).widths == sae.widths

    @pytest.mark.parametrize("normalize", ["none", "layer_norm"])
    @pytest.mark.parametrize(
        "copied",
        [copy.deepcopy, lambda sae: pickle.loads(pickle.dumps(sae))],
        ids=["deep", "pickle"],
    )
    def test_deep(self, copied, normalize):
        sae = new_sae(normalize_activations=normalize).requires_grad_(False).eval()
        again, expected = copied(sae), sae(X)
        sae.W_dec.data.zero_()
        sae.cfg.metadata.hook_name = "elsewhere"
        assert torch.equal(again(X), expected)
        assert again.widths == sae.widths
        assert again.cfg.metadata.hook_name == HOOK

    def test_keeps_what_is_frozen(self, sae):
        assert not copy.deepcopy(sae.requires_grad_(False)).W_dec.requires_grad


class TestFromSAE:
    def test_a_matryoshka_sae(self, sae):
        again = MatryoshkaSAE.from_sae(sae)
        assert again.sae is sae.sae
        assert again.widths == sae.widths
        assert MatryoshkaSAE.from_sae(sae, widths=[10]).widths == (10, 40)
        with pytest.raises(ValueError, match="names no levels"):
            MatryoshkaSAE.from_sae(sae, widths=[])

    @pytest.mark.parametrize("wrong", ["folder", Path("folder"), None, torch.nn.Linear(2, 2)])
    def test_what_is_no_sae(self, wrong):
        with pytest.raises(TypeError, match=r"from_sae takes an SAE.*load_from_disk"):
            MatryoshkaSAE.from_sae(wrong)

    def test_the_constructor_takes_inference_saes(self, sae):
        for wrong in (sae, "folder", MatryoshkaTrainingSAE(MatryoshkaTrainingSAEConfig(2, 4, k=1))):
            with pytest.raises(TypeError, match="from_sae"):
                MatryoshkaSAE(wrong, [4])


class TestPaths:
    def test_home_and_text(self, sae, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        weights, cfg = sae.save("~/sae")
        assert weights.parent == cfg.parent == tmp_path / "sae"
        assert weights.is_file()
        for path in ("~/sae", Path("~/sae"), str(tmp_path / "sae")):
            assert MatryoshkaSAE.load_from_disk(path).widths == WIDTHS
            assert MatryoshkaSAE.from_pretrained(path).widths == WIDTHS

    def test_saelens_names_save_the_levels_too(self, sae, tmp_path):
        flat = copy_of(sae.sae)
        flat.cfg.metadata.training_architecture_details = None
        for name in ("save_model", "save_inference_model"):
            getattr(MatryoshkaSAE(flat, [4, 15]), name)(tmp_path / name)
            assert MatryoshkaSAE.load_from_disk(tmp_path / name).widths == WIDTHS

    @pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
    @pytest.mark.parametrize("dtype", ["float16", torch.float16])
    def test_devices_and_data_types_as_torch_names_them(self, sae, tmp_path, device, dtype):
        sae.save(tmp_path)
        for loaded in (
            MatryoshkaSAE.load_from_disk(tmp_path, device=device, dtype=dtype),
            MatryoshkaSAE.from_pretrained(tmp_path, device=device, dtype=dtype),
        ):
            assert loaded.dtype == torch.float16
            loaded.save(tmp_path / "again")  # as JSON


class TestInSAELens:
    @pytest.mark.parametrize("as_list", [True, False])
    def test_run_with_saes(self, model, sae, as_list):
        expected = model.run_with_saes(TOKENS, saes=[sae.sae])
        saes = [sae] if as_list else sae
        assert torch.equal(model.run_with_saes(TOKENS, saes=saes), expected)
        _, cache = model.run_with_cache_with_saes(TOKENS, saes=saes)
        assert cache[f"{HOOK}.hook_sae_acts_post"].shape == (2, 6, D_SAE)
        assert not model.acts_to_saes

    def test_the_attached_sae_comes_back(self, model, sae):
        model.add_sae(sae)
        try:
            model.run_with_saes(TOKENS, saes=sae.level(0))
            assert model.acts_to_saes[HOOK] is sae
        finally:
            model.reset_saes()

    def test_with_the_error_term(self, model, sae):
        plain = model(TOKENS)
        with_error = model.run_with_saes(TOKENS, saes=sae, use_error_term=True)
        torch.testing.assert_close(with_error, plain)
        assert not torch.allclose(model.run_with_saes(TOKENS, saes=sae), plain)
        assert torch.equal(model(TOKENS), plain)
