"""A trained SAE and its levels, against stock SAELens."""

import json

import pytest
import torch
from sae_lens import (
    SAE,
    JumpReLUSAE,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardSAE,
    StandardSAEConfig,
)
from sae_lens.saes.sae import SAEMetadata, TrainStepInput
from safetensors.torch import save_file

from sae_lens_matryoshka import (
    MatryoshkaSAE,
    MatryoshkaTrainingSAE,
    MatryoshkaTrainingSAEConfig,
    calibrate_threshold,
    engine,
)
from sae_lens_matryoshka.saes.inference_sae import build, inference_form

D_IN, D_SAE, WIDTHS = 12, 40, [4, 15, 40]


def trained(
    activation: str = "batchtopk",
    hook_name: str = "blocks.0.hook_resid_post",
    **options,
) -> MatryoshkaTrainingSAE:
    """As after training: random weights, and a batch seen to set the threshold by."""
    torch.manual_seed(0)
    if activation in ("batchtopk", "topk"):
        options["k"] = 5
    sae = MatryoshkaTrainingSAE(
        MatryoshkaTrainingSAEConfig(
            d_in=D_IN,
            d_sae=D_SAE,
            activation=activation,
            matryoshka_widths=WIDTHS,
            metadata=SAEMetadata(model_name="m", hook_name=hook_name),
            **options,
        )
    )
    for parameter in sae.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    if activation == "jumprelu":
        sae.threshold.data.abs_()
    coefficients = {name: c.value for name, c in sae.get_coefficients().items()}
    sae.training_forward_pass(TrainStepInput(data(), coefficients, None, 0, False))
    return sae


def data(n: int = 300, seed: int = 3) -> torch.Tensor:
    return torch.randn(n, D_IN, generator=torch.Generator().manual_seed(seed))


STAND_ALONE = ["batchtopk", "relu", "jumprelu"]
MODES = ["none", "layer_norm", "constant_norm_rescale"]


class TestSaveAndLoad:
    @pytest.mark.parametrize("activation", [*STAND_ALONE, "topk"])
    @pytest.mark.parametrize("rescale", [True, False])
    @pytest.mark.parametrize("normalize", MODES)
    def test_stock_saelens_loads_what_was_trained(self, tmp_path, activation, rescale, normalize):
        sae = trained(
            activation, rescale_acts_by_decoder_norm=rescale, normalize_activations=normalize
        )
        before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
        sae.save_inference_model(tmp_path)
        stock = SAE.load_from_disk(tmp_path)
        assert stock.cfg.architecture() in ("jumprelu", "topk", "standard")
        x = data()
        # batchtopk on the very batch that its threshold was counted on: the same latents fire
        torch.testing.assert_close(stock(x), sae(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(inference_form(sae)(x), stock(x))
        for name, tensor in sae.state_dict().items():
            assert torch.equal(tensor, before[name]), name

    def test_decoder_norms_are_folded(self, tmp_path):
        trained().save_inference_model(tmp_path)
        norms = SAE.load_from_disk(tmp_path).W_dec.norm(dim=-1)
        torch.testing.assert_close(norms, torch.ones(D_SAE))

    def test_bfloat16(self, tmp_path):
        sae = trained(dtype="bfloat16")
        sae.save_inference_model(tmp_path)
        stock = SAE.load_from_disk(tmp_path)
        assert stock.W_dec.dtype == torch.bfloat16
        l0 = (stock.encode(data().bfloat16()) > 0).sum(dim=-1).float().mean()
        assert l0.item() == pytest.approx(5, rel=0.02)

    def test_our_own_save_is_stock_too(self, tmp_path):
        opened = MatryoshkaSAE.from_sae(trained())
        opened.save(tmp_path)
        again = MatryoshkaSAE.load_from_disk(tmp_path)
        assert again.widths == opened.widths == tuple(WIDTHS)
        assert torch.equal(again.sae(data()), opened.sae(data()))
        assert torch.equal(SAE.load_from_disk(tmp_path)(data()), opened.sae(data()))

    def test_saved_over_another_it_does_not_inherit_its_frequencies(self, tmp_path):
        opened = MatryoshkaSAE.from_sae(trained())
        opened.save(tmp_path)
        save_file({"sparsity": torch.zeros(D_SAE)}, tmp_path / "sparsity.safetensors")
        opened.sae.cfg.metadata.model_name = "renamed"
        opened.save(tmp_path)
        assert (tmp_path / "sparsity.safetensors").exists()
        opened.sae.threshold.data *= 2
        opened.save(tmp_path)
        assert not (tmp_path / "sparsity.safetensors").exists()


class TestOpen:
    @pytest.mark.parametrize(
        "name", ["cfg.json", "sae_weights.safetensors", "sparsity.safetensors"]
    )
    def test_it_is_not_saved_over_other_files(self, tmp_path, name):
        (tmp_path / name).write_text('{"mine": 1}')
        with pytest.raises(FileExistsError, match=name):
            MatryoshkaSAE.from_sae(trained()).save(tmp_path)
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [
            (name, '{"mine": 1}')
        ]

    def test_an_sae_that_saelens_trained(self, tmp_path):
        theirs = MatryoshkaBatchTopKTrainingSAE(
            MatryoshkaBatchTopKTrainingSAEConfig(
                d_in=D_IN, d_sae=D_SAE, k=5, matryoshka_widths=list(WIDTHS)
            )
        )
        theirs.save_inference_model(tmp_path)
        assert MatryoshkaSAE.load_from_disk(tmp_path).widths == tuple(WIDTHS)
        assert MatryoshkaSAE.from_sae(SAE.load_from_disk(tmp_path)).widths == tuple(WIDTHS)
        assert MatryoshkaSAE.from_sae(theirs).widths == tuple(WIDTHS)

    def test_without_level_metadata(self):
        flat = StandardSAE(StandardSAEConfig(d_in=D_IN, d_sae=D_SAE))
        with pytest.raises(
            ValueError, match=r"holds no matryoshka_widths.*widths=\[1, 3, 8, 18, 40\]"
        ):
            MatryoshkaSAE.from_sae(flat)
        assert MatryoshkaSAE.from_sae(flat, widths=[10]).widths == (10, 40)

    def test_widths_that_do_not_fit(self):
        flat = StandardSAE(StandardSAEConfig(d_in=D_IN, d_sae=D_SAE))
        with pytest.raises(ValueError, match="beyond d_sae"):
            MatryoshkaSAE.from_sae(flat, widths=[10, 41])

    def test_a_folder_without_an_sae(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no cfg.json"):
            MatryoshkaSAE.load_from_disk(tmp_path)


class TestLevels:
    @pytest.mark.parametrize("activation", STAND_ALONE)
    @pytest.mark.parametrize("normalize", MODES)
    def test_a_level_reconstructs_as_the_nested_decode(self, activation, normalize):
        matryoshka = MatryoshkaSAE.from_sae(trained(activation, normalize_activations=normalize))
        sae, x = matryoshka.sae, data()
        nested = matryoshka.reconstructions(x)
        assert nested.shape == (3, len(x), D_IN)
        for index, width in enumerate(WIDTHS):
            acts = sae.encode(x)
            acts[:, width:] = 0
            torch.testing.assert_close(matryoshka.level(index)(x), sae.decode(acts))
            sae.encode(x)  # the normalization remembers one batch
            torch.testing.assert_close(nested[index], sae.decode(acts))

    def test_levels_are_stock_saes_that_share_no_memory(self):
        matryoshka = MatryoshkaSAE.from_sae(trained())
        level = matryoshka.level(0)
        assert type(level) is type(matryoshka.sae)
        assert (level.cfg.d_sae, matryoshka.sae.cfg.d_sae) == (4, D_SAE)
        before = matryoshka.sae.W_dec.clone()
        level.W_dec.data.zero_()
        level.cfg.metadata.hook_name = "elsewhere"
        assert torch.equal(matryoshka.sae.W_dec, before)
        assert matryoshka.sae.cfg.metadata.hook_name == "blocks.0.hook_resid_post"

    def test_a_level_does_not_claim_the_whole_dictionarys_statistics(self):
        matryoshka = MatryoshkaSAE.from_sae(trained())
        matryoshka.sae.cfg.metadata.l0 = 5.0
        assert matryoshka.level(0).cfg.metadata.l0 is None
        assert matryoshka.level(-1).cfg.metadata.l0 == 5
        assert matryoshka.sae.cfg.metadata.l0 == 5

    def test_a_saved_level_opens_with_the_levels_inside_it(self, tmp_path):
        matryoshka = MatryoshkaSAE.from_sae(trained())
        matryoshka.truncate(20).save_model(tmp_path)
        again = MatryoshkaSAE.load_from_disk(tmp_path)
        assert again.widths == (4, 15, 20)
        metadata = json.loads((tmp_path / "cfg.json").read_text())["metadata"]
        assert metadata["training_architecture"] == "matryoshka"

    def test_negative_index_counts_from_the_outermost(self):
        matryoshka = MatryoshkaSAE.from_sae(trained())
        assert torch.equal(matryoshka.level(-1).W_dec, matryoshka.sae.W_dec)

    def test_levels_that_do_not_exist(self):
        matryoshka = MatryoshkaSAE.from_sae(trained())
        with pytest.raises(IndexError, match="the 3 levels are 0 to 2"):
            matryoshka.level(3)
        for width in (0, 41):
            with pytest.raises(ValueError, match="between 1 and d_sae"):
                matryoshka.truncate(width)

    def test_topk_levels_need_a_threshold(self):
        matryoshka = MatryoshkaSAE.from_sae(trained("topk"))
        for cut in (
            lambda: matryoshka.level(0),
            lambda: matryoshka.truncate(4),
            lambda: matryoshka.reconstructions(data()),
        ):
            with pytest.raises(ValueError, match="as_jumprelu=True"):
                cut()
        with_threshold = calibrate_threshold(matryoshka, data(), 5, as_jumprelu=True)
        assert with_threshold.level(0).cfg.d_sae == 4

    def test_hook_z(self):
        sae = trained(reshape_activations="hook_z", hook_name="blocks.0.attn.hook_z")
        matryoshka = MatryoshkaSAE.from_sae(sae)
        z = data().view(-1, 3, 4)
        flat = sae(data())
        torch.testing.assert_close(matryoshka.sae(z), flat.view(-1, 3, 4))
        assert matryoshka.level(0)(z).shape == z.shape
        torch.testing.assert_close(matryoshka.reconstructions(z)[-1], flat.view(-1, 3, 4))


def test_what_is_derived_from_a_stock_sae_encodes_its_own_way():
    class Doubled(JumpReLUSAE):
        def encode(self, x):
            return 2 * super().encode(x)

    stock = inference_form(trained())
    doubled = build(Doubled, stock.cfg, stock.state_dict())
    with engine.using("sparse"):
        recons = MatryoshkaSAE(doubled, WIDTHS).reconstructions(data())
    torch.testing.assert_close(recons[-1], doubled(data()))
