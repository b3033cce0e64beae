"""What others change in an SAE is what training uses, and sees as SAELens shows it."""

from collections import defaultdict
from typing import Any

import pytest
import torch
from sae_lens import (
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import nn

from sae_lens_matryoshka import MatryoshkaTrainingSAE, MatryoshkaTrainingSAEConfig, engine

D_IN, D_SAE, BATCH, WIDTHS = 12, 40, 24, [4, 15, 40]
POINTS = [
    "hook_sae_input",
    "hook_sae_acts_pre",
    "hook_sae_acts_post",
    "hook_sae_recons",
    "hook_sae_output",
    "hook_sae_error",
]
SHARED: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE, "k": 3}


@pytest.fixture(autouse=True)
def sparse():
    """What looks at dense activations gets them even where the sparse path is to be taken."""
    with engine.using("sparse"):
        yield


def ours(sae_class: type = MatryoshkaTrainingSAE, **options) -> MatryoshkaTrainingSAE:
    options = {**SHARED, "matryoshka_widths": list(WIDTHS), **options}
    return perturbed(sae_class(MatryoshkaTrainingSAEConfig(**options)))


def theirs(
    sae_class: type = MatryoshkaBatchTopKTrainingSAE, **options
) -> MatryoshkaBatchTopKTrainingSAE:
    options = {**SHARED, "matryoshka_widths": list(WIDTHS), **options}
    return perturbed(sae_class(MatryoshkaBatchTopKTrainingSAEConfig(**options)))


def perturbed(sae):
    generator = torch.Generator().manual_seed(5)
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        parameter = getattr(sae, name)
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return sae


def step(sae: TrainingSAE, **options) -> TrainStepOutput:
    x = torch.randn(BATCH, D_IN, generator=torch.Generator().manual_seed(0)) + 0.3
    dead = torch.arange(D_SAE) % 3 == 0
    coefficients = {name: c.value for name, c in sae.get_coefficients().items()}
    output = sae.training_forward_pass(
        TrainStepInput(x, coefficients, dead, 7, **{"is_logging_step": True, **options})
    )
    output.loss.backward()
    return output


def assert_same(sae: TrainingSAE, other: TrainingSAE) -> None:
    """The same loss, named losses and gradients."""
    outputs = step(sae), step(other)
    torch.testing.assert_close(outputs[0].loss, outputs[1].loss)
    for name, loss in outputs[1].losses.items():
        torch.testing.assert_close(outputs[0].losses[name], loss)
    gradients = dict(other.named_parameters())
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad)


class TestHooks:
    @pytest.mark.parametrize("aux_loss", ["global", "per_level"])
    @pytest.mark.parametrize("watched", [*POINTS, "all"])
    def test_see_what_saelens_shows(self, watched, aux_loss):
        def shown(sae: TrainingSAE) -> dict[str, list[Any]]:
            calls = defaultdict(list)
            for point in POINTS if watched == "all" else [watched]:
                sae.add_hook(point, lambda tensor, hook: calls[hook.name].append(tensor.detach()))
                sae.add_hook(
                    point,
                    lambda grad, hook: calls[f"{hook.name} gradient"].append(grad),
                    dir="bwd",
                )
            step(sae)
            return calls

        stock = shown(theirs(use_matryoshka_aux_loss=aux_loss == "per_level"))
        seen = shown(ours(aux_loss=aux_loss))
        assert seen.keys() == stock.keys()
        for name, tensors in stock.items():
            assert [t.shape for t in seen[name]] == [t.shape for t in tensors], name
            for tensor, expected in zip(seen[name], tensors):
                torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("point", POINTS[:4])
    def test_change_what_they_change_in_saelens(self, point):
        saes = ours(), theirs()
        for sae in saes:
            sae.add_hook(point, lambda tensor, hook: 0.5 * tensor)  # noqa: ARG005
        assert_same(*saes)

    def test_a_module_in_place_of_a_hook_point(self):
        class Doubled(nn.Module):
            def forward(self, x):
                return 2 * x

        saes = ours(), theirs()
        for sae in saes:
            sae.hook_sae_acts_post = Doubled()
        assert_same(*saes)


class ScaledEncoder:
    """SAELens's extension point, by its documented contract."""

    def encode_with_hidden_pre(self, x):
        hidden_pre = self.hook_sae_acts_pre(
            1.5 * self.process_sae_in(x) @ self.W_enc + self.b_enc.abs()
        )
        if self.cfg.rescale_acts_by_decoder_norm:
            hidden_pre = hidden_pre * self.W_dec.norm(dim=-1)
        return self.hook_sae_acts_post(self.activation_fn(hidden_pre)), hidden_pre


class CallsTheOriginal:
    def encode_with_hidden_pre(self, x):
        acts, hidden_pre = super().encode_with_hidden_pre(x.tanh())
        return acts * 0.5, hidden_pre * 2


class ShiftedInput:
    def process_sae_in(self, sae_in):
        return super().process_sae_in(sae_in) * self.b_dec.exp()


class ShiftedOutput:
    def decode(self, feature_acts):
        return super().decode(feature_acts) * 1.5 + self.b_dec


class OwnAuxLoss:
    def calculate_aux_loss(self, step_input, feature_acts, hidden_pre, sae_out):
        assert sae_out.shape == step_input.sae_in.shape
        assert feature_acts.shape == hidden_pre.shape == (BATCH, D_SAE)
        losses = super().calculate_aux_loss(
            step_input=step_input,
            feature_acts=feature_acts,
            hidden_pre=hidden_pre,
            sae_out=sae_out,
        )
        return {**losses, "mine": feature_acts.pow(2).mean() + hidden_pre.pow(2).mean()}


class AuxLossAsTensor:
    def calculate_aux_loss(self, step_input, feature_acts, hidden_pre, sae_out):
        return (feature_acts.sum() - sae_out.sum()).abs()


class OwnActivation:
    def get_activation_fn(self):
        return nn.Softplus()


MIXINS = [
    ScaledEncoder,
    CallsTheOriginal,
    ShiftedInput,
    ShiftedOutput,
    OwnAuxLoss,
    AuxLossAsTensor,
    OwnActivation,
]


class TestOverrides:
    @pytest.mark.parametrize("rescale", [True, False])
    @pytest.mark.parametrize("per_level", [False, True])
    @pytest.mark.parametrize("mixin", MIXINS)
    def test_training_uses_them_as_saelens_does(self, mixin, per_level, rescale):
        if mixin is ShiftedOutput and per_level:
            pytest.skip("SAELens's auxiliary loss per level decodes the outermost level by itself")
        our_class = type("Ours", (mixin, MatryoshkaTrainingSAE), {})
        their_class = type("Theirs", (mixin, MatryoshkaBatchTopKTrainingSAE), {})
        sae = ours(
            our_class,
            aux_loss="per_level" if per_level else "global",
            rescale_acts_by_decoder_norm=rescale,
        )
        assert_same(
            sae,
            theirs(
                their_class,
                use_matryoshka_aux_loss=per_level,
                rescale_acts_by_decoder_norm=rescale,
            ),
        )
        plain = step(ours(rescale_acts_by_decoder_norm=rescale)).loss
        assert not torch.isclose(step(sae).loss, plain)

    @pytest.mark.parametrize("mixin", [ScaledEncoder, CallsTheOriginal, ShiftedInput])
    def test_encode_uses_them_without_gradients_too(self, mixin):
        sae = ours(type("Ours", (mixin, MatryoshkaTrainingSAE), {}))
        x = torch.randn(BATCH, D_IN)
        with torch.no_grad():
            torch.testing.assert_close(sae.encode(x), sae.encode_with_hidden_pre(x)[0])

    def test_attributes_of_one_sae_and_of_the_class(self, monkeypatch):
        original, calls = MatryoshkaTrainingSAE.encode_with_hidden_pre, []

        def counted(sae, x):
            calls.append(x.shape)
            return original(sae, x)

        sae = ours()
        plain = step(sae).loss
        sae.encode_with_hidden_pre = lambda x: counted(sae, x)
        torch.testing.assert_close(step(sae).loss, plain)
        monkeypatch.setattr(MatryoshkaTrainingSAE, "encode_with_hidden_pre", counted)
        torch.testing.assert_close(step(ours()).loss, plain)
        assert calls == [(BATCH, D_IN)] * 2

    def test_another_activation_function_or_loss(self):
        saes = ours(), theirs()
        for sae in saes:
            sae.activation_fn = nn.SiLU()
            sae.mse_loss_fn = lambda prediction, target: (prediction - target).abs()
        assert_same(*saes)

    @pytest.mark.parametrize("mode", ["layer_norm", "constant_norm_rescale"])
    @pytest.mark.parametrize("mixin", [ShiftedOutput, OwnAuxLoss])
    def test_with_statistics_of_the_rows(self, mixin, mode):
        """SAELens's own Matryoshka SAE cannot be trained with them."""
        sae_class = type("Ours", (mixin, MatryoshkaTrainingSAE), {})
        sae = ours(sae_class, normalize_activations=mode, aux_loss="per_level")
        plain = ours(normalize_activations=mode, aux_loss="per_level")
        losses, expected = step(sae).losses, step(plain).losses
        torch.testing.assert_close(losses["inner_mse_loss_4"], expected["inner_mse_loss_4"])
        if mixin is OwnAuxLoss:
            name = "auxiliary_reconstruction_loss"
            torch.testing.assert_close(losses[name], expected[name])

    def test_the_ordinary_step_stays_sparse(self):
        assert step(ours()).feature_acts.is_sparse


class TestNoTokens:
    @pytest.mark.parametrize("activation", ["batchtopk", "topk", "relu", "jumprelu"])
    @pytest.mark.parametrize("grad", [True, False])
    def test_are_encoded_to_nothing(self, activation, grad):
        options = {"activation": activation, "rescale_acts_by_decoder_norm": False}
        sae = ours(**options, k=3 if activation in ("batchtopk", "topk") else None)
        with torch.set_grad_enabled(grad):
            for shape in ((0,), (0, 5), (5, 0)):
                x = torch.zeros(*shape, D_IN)
                assert sae.encode(x).shape == (*shape, D_SAE)
                assert sae(x).shape == x.shape
