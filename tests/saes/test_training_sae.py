"""One training step, against SAELens and against formulas written by hand."""

import copy

import pytest
import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput

from sae_lens_matryoshka import MatryoshkaTrainingSAE, MatryoshkaTrainingSAEConfig, engine
from sae_lens_matryoshka.saes import objective

D_IN, D_SAE, BATCH = 12, 40, 24
WIDTHS = [4, 15, 40]


@pytest.fixture(autouse=True, params=["dense", "sparse"])
def path(request):
    """Every statement of this file holds for both of the engine's paths."""
    with engine.using(request.param):
        yield request.param


def new_sae(**options) -> MatryoshkaTrainingSAE:
    """A SAE with perturbed weights, so that no symmetry hides an error."""
    options = {"d_in": D_IN, "d_sae": D_SAE, "matryoshka_widths": WIDTHS, **options}
    return perturbed(MatryoshkaTrainingSAE(MatryoshkaTrainingSAEConfig(**options)))


def perturbed(sae):
    generator = torch.Generator().manual_seed(5)
    for parameter in sae.parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.1
        parameter.data += noise.to(parameter.dtype)
        if parameter is getattr(sae, "threshold", None):
            parameter.data.abs_()
    return sae


def batch(seed: int = 0) -> torch.Tensor:
    return torch.randn(BATCH, D_IN, generator=torch.Generator().manual_seed(seed)) + 0.3


def some_dead(share: float = 0.3) -> torch.Tensor:
    return torch.rand(D_SAE, generator=torch.Generator().manual_seed(1)) < share


def step(sae: TrainingSAE, x: torch.Tensor, dead=None, log: bool = False) -> TrainStepOutput:
    coefficients = {name: c.value for name, c in sae.get_coefficients().items()}
    dead = torch.zeros(sae.cfg.d_sae, dtype=torch.bool) if dead is None else dead
    output = sae.training_forward_pass(TrainStepInput(x, coefficients, dead, 7, log))
    output.feature_acts = output.feature_acts.to_dense()
    output.hidden_pre = output.hidden_pre.to_dense()
    return output


def assert_same_step(ours: TrainingSAE, theirs: TrainingSAE, dead=None, x=None) -> None:
    """Same weights, same batch: same loss, same named losses, same gradients."""
    ours.load_state_dict(theirs.state_dict())
    x = batch() if x is None else x
    outputs = [step(sae, x.clone(), dead) for sae in (ours, theirs)]
    for output in outputs:
        output.loss.backward()
    assert_close(outputs[0].loss, outputs[1].loss)
    assert outputs[0].losses.keys() == outputs[1].losses.keys()
    for name in outputs[0].losses:
        assert_close(outputs[0].losses[name], outputs[1].losses[name])
    assert_close(outputs[0].sae_out, outputs[1].sae_out)
    assert_close(outputs[0].feature_acts, outputs[1].feature_acts)
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, gradients[name].grad)


def assert_close(actual, expected, tolerance: float = 1e-5) -> None:
    assert actual is not None
    assert (actual - expected).norm() <= tolerance * expected.norm()


class TestParityWithSAELens:
    """The defaults are a drop-in replacement for matryoshka_batchtopk."""

    @pytest.mark.parametrize("k", [3, 2.7])
    @pytest.mark.parametrize("rescale", [True, False])
    @pytest.mark.parametrize("per_level", [False, True])
    @pytest.mark.parametrize("share_dead", [0, 0.1, 0.5])
    @pytest.mark.parametrize("normalize", ["none", "expected_average_only_in"])
    def test_matryoshka_batchtopk(self, k, rescale, per_level, share_dead, normalize):
        shared = {
            "d_in": D_IN,
            "d_sae": D_SAE,
            "k": k,
            "rescale_acts_by_decoder_norm": rescale,
            "normalize_activations": normalize,
        }
        theirs = MatryoshkaBatchTopKTrainingSAE(
            MatryoshkaBatchTopKTrainingSAEConfig(
                **shared,
                matryoshka_widths=list(WIDTHS),
                use_matryoshka_aux_loss=per_level,
            )
        )
        ours = new_sae(**shared, aux_loss="per_level" if per_level else "global")
        assert_same_step(ours, perturbed(theirs), some_dead(share_dead))

    def test_one_level_is_batchtopk(self):
        theirs = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=3))
        ours = new_sae(matryoshka_widths=[D_SAE], k=3)
        assert_same_step(ours, perturbed(theirs), some_dead())

    @pytest.mark.parametrize("rescale", [True, False])
    def test_one_level_of_topk_is_topk(self, rescale):
        shared = {"d_in": D_IN, "d_sae": D_SAE, "k": 3, "rescale_acts_by_decoder_norm": rescale}
        theirs = TopKTrainingSAE(TopKTrainingSAEConfig(**shared))
        ours = new_sae(**shared, matryoshka_widths=[D_SAE], activation="topk")
        assert_same_step(ours, perturbed(theirs), some_dead())

    def test_one_level_of_relu_is_standard(self):
        shared = {"d_in": D_IN, "d_sae": D_SAE, "l1_coefficient": 0.7}
        theirs = StandardTrainingSAE(StandardTrainingSAEConfig(**shared))
        for rescale in (False, True):  # for ReLU the same objective in other units
            ours = new_sae(
                **shared,
                matryoshka_widths=[D_SAE],
                activation="relu",
                rescale_acts_by_decoder_norm=rescale,
            )
            if not rescale:
                assert_same_step(ours, perturbed(theirs))
                continue
            theirs.zero_grad()
            ours.load_state_dict(theirs.state_dict())
            for sae in (ours, theirs):
                step(sae, batch()).loss.backward()
            for name, parameter in theirs.named_parameters():
                assert_close(dict(ours.named_parameters())[name].grad, parameter.grad)

    @pytest.mark.parametrize("target_l0", [None, 6])
    def test_one_level_of_jumprelu_is_jumprelu(self, target_l0):
        shared = {
            "d_in": D_IN,
            "d_sae": D_SAE,
            "target_l0": target_l0,
            "jumprelu_bandwidth": 0.4,
            "jumprelu_init_threshold": 0.2,
            "l0_coefficient": 0.3,
        }
        mode = "step" if target_l0 is None else "quadratic"
        theirs = JumpReLUTrainingSAE(
            JumpReLUTrainingSAEConfig(**shared, jumprelu_sparsity_loss_mode=mode)
        )
        ours = new_sae(
            **shared,
            matryoshka_widths=[D_SAE],
            activation="jumprelu",
            rescale_acts_by_decoder_norm=False,
        )
        assert_same_step(ours, perturbed(theirs))

    def test_the_same_start(self):
        kwargs = {"d_in": D_IN, "d_sae": D_SAE, "k": 3}
        torch.manual_seed(0)
        theirs = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**kwargs))
        torch.manual_seed(0)
        ours = MatryoshkaTrainingSAE(MatryoshkaTrainingSAEConfig(**kwargs))
        for name, parameter in theirs.named_parameters():
            assert torch.equal(parameter, dict(ours.named_parameters())[name])

    def test_a_saelens_checkpoint_opens_as_ours(self, tmp_path):
        theirs = perturbed(
            MatryoshkaBatchTopKTrainingSAE(
                MatryoshkaBatchTopKTrainingSAEConfig(
                    d_in=D_IN, d_sae=D_SAE, k=3, matryoshka_widths=list(WIDTHS)
                )
            )
        )
        theirs.save_model(tmp_path)
        ours = new_sae(k=3)
        ours.load_weights_from_checkpoint(tmp_path)
        assert_close(ours(batch()), theirs(batch()))


class TestParityWithOtherPeers:
    def test_group_weights_of_dictionary_learning(self):
        """Its trainer weighs each group's prefix by 1/n and averages over n levels."""
        n = len(WIDTHS)
        sae = new_sae(
            k=3,
            level_weights=[1 / n**2] * n,
            aux_loss="none",
            rescale_acts_by_decoder_norm=False,
        )
        x = batch()
        W_dec, W_enc = sae.W_dec, sae.W_enc
        pre = torch.relu((x - sae.b_dec) @ W_enc + sae.b_enc)
        kept = pre.flatten().topk(3 * BATCH)
        acts = torch.zeros(pre.numel()).scatter(0, kept.indices, kept.values).view_as(pre)
        total, recon, lo = torch.tensor(0.0), sae.b_dec, 0
        for hi in WIDTHS:
            recon = recon + acts[:, lo:hi] @ W_dec[lo:hi]
            total = total + (1 / n) * (x - recon).pow(2).sum(dim=-1).mean()
            lo = hi
        assert_close(step(sae, x).loss, total / n)

    def test_the_authors_code(self):
        """Mean over dimensions and batch, averaged over levels and a bias-only term.

        The bias-only term depends on b_dec alone; everything else is ours over d_in * (n + 1).
        """
        n = len(WIDTHS)
        scale = 1 / (D_IN * (n + 1))
        sae = new_sae(
            k=3, level_weights=[scale] * n, aux_loss="none", rescale_acts_by_decoder_norm=False
        )
        sae.b_enc.data.zero_()  # never used there
        x = batch()
        pre = torch.relu((x - sae.b_dec) @ sae.W_enc)
        kept = pre.flatten().topk(3 * BATCH)
        acts = torch.zeros(pre.numel()).scatter(0, kept.indices, kept.values).view_as(pre)
        terms = [(sae.b_dec - x).pow(2).mean()]
        for width in WIDTHS:
            recon = acts[:, :width] @ sae.W_dec[:width] + sae.b_dec
            terms.append((recon - x).pow(2).mean())
        expected = torch.stack(terms).mean()
        assert_close(step(sae, x).loss + terms[0] / (n + 1), expected)

    def test_the_relu_objective_of_tinystories(self):
        """Squared error and cumulative L1 of act * |W_dec| over the prefixes."""
        weights = [0.5, 1.0, 2.0]
        sae = new_sae(activation="relu", l1_coefficient=0.2, level_weights=weights)
        x = batch()
        acts = torch.relu((x - sae.b_dec) @ sae.W_enc + sae.b_enc)
        l1 = acts * sae.W_dec.norm(dim=-1)
        expected = 0.0
        for width, weight in zip(WIDTHS, weights):
            recon = acts[:, :width] @ sae.W_dec[:width] + sae.b_dec
            error = (x - recon).pow(2).sum(dim=-1).mean()
            expected = expected + weight * (error + 0.2 * l1[:, :width].sum(dim=-1).mean())
        expected_grads = torch.autograd.grad(expected, list(sae.parameters()), retain_graph=True)
        output = step(sae, x)
        assert_close(output.loss, expected)
        output.loss.backward()
        for parameter, grad in zip(sae.parameters(), expected_grads):
            assert_close(parameter.grad, grad)


class TestGradients:
    @pytest.mark.parametrize("activation", ["batchtopk", "topk", "relu"])
    @pytest.mark.parametrize("aux_loss", ["global", "per_level"])
    @pytest.mark.parametrize("normalize", ["none", "layer_norm"])
    def test_by_finite_differences(self, activation, aux_loss, normalize):
        top_k = {} if activation == "relu" else {"k": 2}
        sae = new_sae(
            activation=activation,
            aux_loss=aux_loss,
            normalize_activations=normalize,
            dtype="float64",
            **top_k,
        )
        x, dead = batch().double(), some_dead()

        def loss_without_aux() -> torch.Tensor:
            # its residual is detached, which finite differences do not know
            output = step(sae, x, dead)
            return output.loss - output.losses["auxiliary_reconstruction_loss"]

        for name, parameter in sae.named_parameters():
            sae.zero_grad()
            loss_without_aux().backward()
            assert parameter.grad is not None
            direction = torch.randn_like(parameter)
            expected = (parameter.grad * direction).sum()
            h, original = 1e-6, parameter.data.clone()
            parameter.data = original + h * direction
            above = loss_without_aux()
            parameter.data = original - h * direction
            below = loss_without_aux()
            parameter.data = original
            assert ((above - below) / (2 * h)).item() == pytest.approx(
                expected.item(), rel=1e-4, abs=1e-6
            )


class TestRefinement:
    @pytest.mark.parametrize("rescale", [True, False])
    @pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
    @pytest.mark.parametrize("normalize", ["none", "layer_norm"])
    def test_against_the_formula(self, rescale, apply_b_dec_to_input, normalize):
        sae = new_sae(
            k=3,
            refinement_step=4.0,
            aux_loss="none",
            rescale_acts_by_decoder_norm=rescale,
            apply_b_dec_to_input=apply_b_dec_to_input,
            normalize_activations=normalize,
        )
        x, mu, std = batch(), torch.zeros(1), torch.ones(1)
        if normalize == "layer_norm":
            mu, std = x.mean(dim=-1, keepdim=True), x.std(dim=-1, keepdim=True) + 1e-5
        inside = (x - mu) / std
        sae_in = inside - sae.b_dec if apply_b_dec_to_input else inside
        norm = sae.W_dec.norm(dim=-1).detach() if rescale else torch.ones(D_SAE)

        def top_k(pre: torch.Tensor) -> torch.Tensor:
            kept = pre.flatten().topk(3 * BATCH)
            return torch.zeros(pre.numel()).scatter(0, kept.indices, kept.values).view_as(pre)

        hidden_pre = (sae_in @ sae.W_enc + sae.b_enc) * norm
        first = top_k(hidden_pre)
        residual = (inside - (first / norm) @ sae.W_dec - sae.b_dec).detach()
        acts = top_k(hidden_pre + 4 * norm * (residual @ sae.W_enc))
        assert not torch.equal(acts > 0, first > 0)
        expected = torch.tensor(0.0)
        raw_std = x.std(dim=-1, keepdim=True) if normalize == "layer_norm" else std
        for width in WIDTHS:
            recon = (acts[:, :width] / norm[:width]) @ sae.W_dec[:width] + sae.b_dec
            expected = expected + (x - recon * raw_std - mu).pow(2).sum(dim=-1).mean()
        expected_grads = torch.autograd.grad(expected, list(sae.parameters()), retain_graph=True)
        output = step(sae, x)
        assert_close(output.feature_acts, acts)
        assert_close(output.loss, expected)
        output.loss.backward()
        for parameter, grad in zip(sae.parameters(), expected_grads):
            assert_close(parameter.grad, grad)
        with torch.no_grad():
            assert_close(sae.encode(x), acts)
            assert_close(sae.encode(x.view(2, -1, D_IN)).flatten(0, 1), acts)

    def test_both_passes_have_the_annealed_k(self):
        sae = new_sae(k=2, refinement_step=4.0, k_start=9, k_anneal_steps=14)
        acts = step(sae, batch()).feature_acts  # its step is the 7th
        assert (acts > 0).sum() == objective.annealed_k(7, 2, 9, 14) * BATCH
        for code in sae.encode_to_codes(sae.encoder(batch())):
            assert code.firing_counts.sum() == (acts > 0).sum()

    def test_running_thresholds_of_both_passes(self):
        sae = new_sae(k=3, refinement_step=4.0)
        for seed in range(3):
            step(sae, batch(seed))
        first, _ = sae.encode_to_codes(sae.encoder(batch()))
        assert sae.start_topk_threshold.dtype == sae.topk_threshold.dtype == torch.double
        assert sae.start_topk_threshold == pytest.approx(first.smallest_active().item(), rel=0.3)
        assert sae.start_topk_threshold != sae.topk_threshold

    def test_running_threshold_is_of_the_pass_that_is_saved(self):
        until, once = new_sae(k=3, refinement_step=4.0, refine_until=100), new_sae(k=3)
        once.load_state_dict(until.state_dict())
        step(until, batch())
        step(once, batch())
        assert until.topk_threshold == once.topk_threshold > 0
        assert "start_topk_threshold" not in until.state_dict()

    def test_hooks_see_the_last_pass(self):
        sae, seen = new_sae(k=3, refinement_step=4.0), {}
        for point in (sae.hook_sae_acts_pre, sae.hook_sae_acts_post):
            point.add_hook(lambda tensor, hook: seen.update({hook.name: tensor.detach()}))
        output = step(sae, batch())
        norm = sae.W_dec.norm(dim=-1)
        assert_close(seen["hook_sae_acts_pre"] * norm, output.hidden_pre)
        assert_close(seen["hook_sae_acts_post"], output.feature_acts)


class TestAuxLossWithNormalization:
    @pytest.mark.parametrize("mode", ["layer_norm", "constant_norm_rescale"])
    @pytest.mark.parametrize("aux_loss", ["global", "per_level"])
    def test_meets_the_residual_in_raw_units(self, mode, aux_loss):
        """Where SAELens raises: scaling the input scales the loss, as it does without dead latents."""
        sae = new_sae(k=3, normalize_activations=mode, aux_loss=aux_loss)
        x, dead = batch(), some_dead()
        small = step(sae, x, dead).losses["auxiliary_reconstruction_loss"]
        large = step(sae, 100 * x, dead).losses["auxiliary_reconstruction_loss"]
        assert small > 0
        assert large.item() == pytest.approx(1e4 * small.item(), rel=1e-2)

    def test_against_a_formula(self):
        sae = new_sae(k=3, normalize_activations="layer_norm", k_aux=D_SAE)
        x, dead = batch(), some_dead()
        output = step(sae, x, dead)
        mu, std = x.mean(dim=-1, keepdim=True), x.std(dim=-1, keepdim=True)
        pre = ((x - mu) / (std + 1e-5) - sae.b_dec) @ sae.W_enc + sae.b_enc
        recon = (pre * dead) @ sae.W_dec * std  # k_aux = d_sae: every dead latent takes part
        error = (recon - (x - output.sae_out)).pow(2).sum(dim=-1).mean()
        expected = dead.sum() / D_SAE * error
        assert_close(output.losses["auxiliary_reconstruction_loss"], expected)


class TestRandomPrefixes:
    def test_loss_sums_over_the_drawn_prefixes(self):
        sae = new_sae(k=3, prefix_sampling="random", n_prefixes=6, level_weight_mu=0.5)
        output = step(sae, batch())
        seed = int(sae.prefix_seed) + 7  # the step's number
        prefixes = objective.draw_prefixes(D_SAE, 6, 0.5, seed)
        recons = torch.stack(
            [output.feature_acts[:, :w] @ sae.decoder()[:w] + sae.b_dec for w in prefixes]
        )
        errors = (recons - batch()).pow(2).sum(dim=-1).mean(dim=-1)
        expected = sum(0.5 ** (6 - i - 1) * error for i, error in enumerate(errors))
        assert len(prefixes) == 6
        assert_close(output.loss, expected)
        assert_close(output.sae_out, recons[-1])

    def test_levels_are_reported_at_the_configured_widths(self):
        sae = new_sae(k=3, prefix_sampling="random", n_prefixes=5)
        random = step(sae, batch(), log=True).metrics
        fixed_sae = new_sae(k=3)
        fixed_sae.load_state_dict(sae.state_dict(), strict=False)  # prefix_seed
        fixed = step(fixed_sae, batch(), log=True).metrics
        for name, value in fixed.items():
            if name.startswith("level_"):
                assert float(random[name]) == pytest.approx(float(value), rel=1e-5), name

    def test_names_of_losses_do_not_vary(self):
        sae = new_sae(k=3, prefix_sampling="random", n_prefixes=5)
        assert sae._prefixes(1) != sae._prefixes(2)
        names = {tuple(step(sae, batch(seed)).losses) for seed in range(5)}
        assert len(names) == 1


class TestLevelMetrics:
    def test_against_the_definition(self):
        sae = new_sae(k=3)
        dead = some_dead()
        output = step(sae, batch(), dead, log=True)
        acts, x = output.feature_acts, batch()
        for level, width in enumerate(WIDTHS):
            name = f"level_{level}_width_{width}"
            recon = acts[:, :width] @ sae.decoder()[:width] + sae.b_dec
            fvu = (x - recon).pow(2).sum() / (x - x.mean(dim=0)).pow(2).sum()
            assert_close(output.metrics[f"{name}/fvu"], fvu)
            assert output.metrics[f"{name}/l0"] == (acts[:, :width] != 0).sum() / BATCH
            share = (acts[:, :width] != 0).any(dim=0).float().mean()
            assert output.metrics[f"{name}/active"] == share
            assert output.metrics[f"{name}/dead"] == dead[:width].sum()
        assert output.metrics["topk_threshold"] > 0

    def test_only_on_logging_steps(self):
        metrics = step(new_sae(k=3), batch()).metrics
        assert not any(name.startswith("level_") for name in metrics)


class TestFiniteness:
    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    @pytest.mark.parametrize("b_dec_init", ["zeros", "geometric_median"])
    def test_bad_activations_name_the_step_and_change_nothing(self, value, b_dec_init):
        sae = new_sae(k=3, b_dec_init=b_dec_init)
        before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
        x = batch()
        x[3, 2] = value
        with pytest.raises(ValueError, match=r"step 7: 1 of 24 activations are NaN or infinite"):
            step(sae, x)
        for name, tensor in sae.state_dict().items():
            assert torch.equal(tensor, before[name]), name
        assert len(sae.recent_activations) == 0

    def test_a_diverged_loss_is_told_apart(self):
        sae = new_sae(k=3)
        sae.W_enc.data.fill_(torch.nan)
        with pytest.raises(ValueError, match="although the activations are finite"):
            step(sae, batch())


class TestGeometricMedianInit:
    def test_once_in_a_fresh_sae(self):
        options = {"d_in": D_IN, "d_sae": D_SAE, "k": 3, "b_dec_init": "geometric_median"}
        sae = MatryoshkaTrainingSAE(MatryoshkaTrainingSAEConfig(**options))
        step(sae, batch() + 100)
        first = sae.b_dec.detach().clone()
        assert (first - (batch() + 100).median(dim=0).values).abs().max() < 1
        step(sae, batch() - 100)
        assert torch.equal(sae.b_dec, first)

    def test_never_after_loading(self, tmp_path):
        sae = new_sae(k=3, b_dec_init="geometric_median")
        sae.save_model(tmp_path)
        loaded = TrainingSAE.load_from_disk(tmp_path)
        assert isinstance(loaded, MatryoshkaTrainingSAE)
        step(loaded, batch() + 100)
        assert torch.equal(loaded.b_dec, sae.b_dec)

    def test_in_the_space_of_the_normalized_activations(self):
        sae = new_sae(k=3, b_dec_init="geometric_median", normalize_activations="layer_norm")
        step(sae, 1000 * batch())
        assert sae.b_dec.abs().max() < 5


class TestL1Controller:
    def test_moves_the_weight_by_its_rate_towards_the_target(self):
        sae = new_sae(activation="relu", target_l0=1, l1_coefficient=0.5)
        first = step(sae, batch())  # about half of 40 latents fire: too many
        assert sae.l1_scale.item() == pytest.approx(1.0003)
        second = step(sae, batch())
        ratio = second.losses["l1_loss"] / first.losses["l1_loss"]
        assert ratio.item() == pytest.approx(1.0003)
        sae.cfg.target_l0 = D_SAE
        step(sae, batch())
        assert sae.l1_scale.item() == pytest.approx(1.0003**2 * 0.9997)

    def test_waits_for_the_end_of_the_warm_up(self):
        sae = new_sae(activation="relu", target_l0=1, l1_coefficient=0.5, l1_warm_up_steps=9)
        warming_up = TrainStepInput(batch(), {"l1": 0.4}, None, 7, False)
        sae.training_forward_pass(warming_up)
        assert sae.l1_scale == 1

    def test_keeps_its_precision_in_bfloat16(self, tmp_path):
        sae = new_sae(activation="relu", target_l0=1).to(dtype=torch.bfloat16)
        sae.save_model(tmp_path)
        for loaded in (sae, TrainingSAE.load_from_disk(tmp_path)):  # which casts everything
            for _ in range(3):
                step(loaded, batch().bfloat16())
            assert loaded.l1_scale.item() == pytest.approx(1.0003**3, abs=1e-7)


def test_a_deep_copy_is_on_its_own():
    for activation in ("jumprelu", "topk", "batchtopk"):
        sae = new_sae(activation=activation, **({} if activation == "jumprelu" else {"k": 3}))
        before, copied = sae.encode(batch()), copy.deepcopy(sae)
        if activation == "jumprelu":
            sae.threshold.data += 1000
        else:
            sae.k_now = 1
        assert torch.equal(copied.encode(batch()), before)
        assert not torch.equal(sae.encode(batch()), before)


class TestDtypes:
    def test_random_prefixes_are_drawn_after_loading_in_any(self, tmp_path):
        sae = new_sae(prefix_sampling="random", matryoshka_widths=None, k=3)
        sae.prefix_seed.fill_(2**31 - 1)
        sae.save_model(tmp_path)
        for dtype in ("float16", "bfloat16"):
            loaded = TrainingSAE.load_from_disk(tmp_path, dtype=dtype)
            assert step(loaded, batch().to(loaded.dtype)).loss.isfinite()

    def test_the_thresholds_window_is_that_of_the_rounded_thresholds(self):
        """In bfloat16 a threshold of 7 is up to .016 off, and the window is no wider than that."""
        gradients, x = {}, torch.cat([batch(seed) for seed in range(200)]).bfloat16()
        for path in ("sparse", "dense"):
            torch.manual_seed(0)
            sae = new_sae(activation="jumprelu", dtype="bfloat16", jumprelu_bandwidth=0.02)
            sae.threshold.data = torch.linspace(4, 10, D_SAE)
            sae.W_enc.data *= 20
            with engine.using(path):
                step(sae, x).loss.backward()
            gradients[path] = sae.threshold.grad
        assert gradients["dense"].abs().sum() > 0
        assert_close(gradients["sparse"], gradients["dense"], 0.02)

    def test_jumprelu_thresholds_stay_float32_through_loading(self, tmp_path):
        new_sae(activation="jumprelu", dtype="bfloat16").save_model(tmp_path)
        loaded = TrainingSAE.load_from_disk(tmp_path)
        assert loaded.W_dec.dtype == torch.bfloat16
        assert loaded.threshold.dtype == torch.float32

    @pytest.mark.parametrize("activation", ["batchtopk", "topk", "relu", "jumprelu"])
    def test_bfloat16_stays_near_float32(self, activation):
        top_k = {"k": 3} if activation in ("batchtopk", "topk") else {}
        sae = new_sae(activation=activation, **top_k)
        low = new_sae(activation=activation, dtype="bfloat16", **top_k)
        expected, actual = step(sae, batch()), step(low, batch().bfloat16())
        actual.loss.backward()
        assert_close(actual.loss.float(), expected.loss, 0.05)
        assert low.W_enc.grad is not None
        assert low.W_enc.grad.dtype == torch.bfloat16

    def test_autocast_is_as_near_as_saelens(self):
        theirs = perturbed(
            MatryoshkaBatchTopKTrainingSAE(
                MatryoshkaBatchTopKTrainingSAEConfig(
                    d_in=D_IN, d_sae=D_SAE, k=3, matryoshka_widths=list(WIDTHS)
                )
            )
        )
        ours = new_sae(k=3)
        ours.load_state_dict(theirs.state_dict())
        exact = step(theirs, batch(), some_dead()).loss
        with torch.autocast("cpu", torch.bfloat16):
            output = step(ours, batch(), some_dead())
        output.loss.backward()
        assert_close(output.loss, exact, 0.03)
