"""A step stays on the device of its tensors and gives the same numbers as on a CPU."""

import contextlib
import copy
import threading

import pytest
import torch
from engine_problems import Problem, assert_same_numbers
from sae_lens.saes.sae import TrainStepInput
from simulated_cuda import SimulatedTensor, moved, simulated_cuda

from sae_lens_matryoshka import MatryoshkaTrainingSAE, MatryoshkaTrainingSAEConfig, engine
from sae_lens_matryoshka.engine import kernels, screening, selection
from sae_lens_matryoshka.saes import resampling
from sae_lens_matryoshka.saes import thresholds as threshold

pytest.importorskip("triton")

HAS_GPU = torch.cuda.is_available()
pytestmark = [pytest.mark.gpu] if HAS_GPU else []  # with one, nothing is simulated

ACTIVATIONS = ["batchtopk", "topk", "relu", "refined"]


@pytest.fixture(autouse=True)
def cuda():
    with contextlib.nullcontext() if HAS_GPU else simulated_cuda():
        yield


def on_cuda(sae: torch.nn.Module) -> torch.nn.Module:
    return sae.to("cuda") if HAS_GPU else moved(sae)


def on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu()


@pytest.mark.skipif(HAS_GPU, reason="of the simulated device")
class TestSimulatedDevice:
    """It notices what a GPU would."""

    def test_tensors_of_two_devices(self):
        with pytest.raises(RuntimeError, match="one device"):
            torch.ones(3, device="cuda") * torch.ones(3)
        with pytest.raises(RuntimeError, match="one device"):
            torch.ones(3)[torch.arange(3, device="cuda")]

    def test_sums_whose_order_counts(self):
        sums, index = torch.zeros(2, device="cuda"), torch.tensor([0, 0, 1], device="cuda")
        assert sums.index_add(0, index, torch.ones(3, device="cuda")).tolist() == [2, 1]
        with pytest.raises(RuntimeError, match="no fixed order"):
            sums.index_add(0, index, torch.tensor([0.1, 0.2, 0.3], device="cuda"))

    def test_the_triton_kernels_run(self):
        assert kernels.work_on(torch.device("cuda:0"), torch.float32, torch.bfloat16)

    def test_gradients_stay_there(self):
        weight = torch.ones(3, 2, device="cuda", requires_grad=True)
        (weight @ weight.T).sum().backward()
        assert isinstance(weight.grad, SimulatedTensor)


@pytest.mark.parametrize("path", ["sparse", "dense"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    "options", [{"with_norm": False}, {"with_order": True, "detach_inner": True}]
)
def test_the_engine(path, activation, options):
    problem = Problem.random(**options)
    actual = problem.to("cuda").step(path, activation)
    assert all(tensor.is_cuda for tensor in actual.values())
    actual = {name: on_cpu(tensor) for name, tensor in actual.items()}
    assert_same_numbers(actual, problem.step("dense", activation))


def test_problems_move_as_a_whole():
    problem = Problem.random(with_order=True).to("cuda")
    assert problem.order is not None and problem.order.is_cuda
    half = problem.to(torch.bfloat16)
    assert half.order is not None and half.order.dtype == torch.int64
    assert half.W_enc.dtype == torch.bfloat16


ACTIVATION_OPTIONS = {
    "batchtopk": {"k": 3},
    "topk": {"k": 3},
    "relu": {"l1_coefficient": 0.5, "target_l0": 3.0},
    "jumprelu": {"l0_coefficient": 0.5, "jumprelu_init_threshold": 0.3, "target_l0": 3.0},
}


def step(sae: MatryoshkaTrainingSAE, x: torch.Tensor, dead: torch.Tensor, path: engine.Path):
    """Numbers of one training step with logging: losses, metrics, gradients and state."""
    coefficients = {name: c.value for name, c in sae.get_coefficients().items()}
    with engine.using(path):
        output = sae.training_forward_pass(TrainStepInput(x, coefficients, dead, 7, True))
        output.loss.backward()
    metrics = {
        name: value() if callable(value) else value for name, value in output.metrics.items()
    }
    return {
        "recons": output.sae_out,
        "acts": output.feature_acts.to_dense(),
        **output.losses,
        **{name: value for name, value in metrics.items() if isinstance(value, torch.Tensor)},
        **{f"d {name}": parameter.grad for name, parameter in sae.named_parameters()},
        **dict(sae.named_buffers()),
    }


OPTIONS = [
    {},
    {"aux_loss": "none"},
    {"aux_loss": "per_level"},
    {"latent_order": "energy"},
    {"latent_order": "energy", "rescale_acts_by_decoder_norm": False},
    {"latent_order": "frequency", "detach_inner_levels": True},
    {"prefix_sampling": "random", "n_prefixes": 3, "matryoshka_widths": None},
    {"apply_b_dec_to_input": False, "aux_loss": "per_level", "k_aux": 2},
    {"b_dec_init": "geometric_median", "normalize_activations": "layer_norm"},
]


@pytest.mark.parametrize("path", ["sparse", "dense"])
@pytest.mark.parametrize("activation", ACTIVATION_OPTIONS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_training_step(path, activation, options):
    options = {"matryoshka_widths": [4, 10, 20], **ACTIVATION_OPTIONS[activation], **options}
    cfg = MatryoshkaTrainingSAEConfig(d_in=6, d_sae=20, activation=activation, **options)
    generator = torch.Generator().manual_seed(0)
    sae = MatryoshkaTrainingSAE(cfg)
    for parameter in sae.parameters():
        parameter.data += torch.rand(parameter.shape, generator=generator) * 0.1
    x = torch.randn(8, 6, generator=generator)
    dead = torch.rand(20, generator=generator) < 0.3
    there = on_cuda(copy.deepcopy(sae))
    actual = step(there, x.to("cuda"), dead.to("cuda"), path)
    expected = step(sae, x, dead, "dense")
    assert all(tensor.is_cuda for tensor in actual.values())
    assert_same_numbers({name: on_cpu(tensor) for name, tensor in actual.items()}, expected)


class TestScreening:
    """It leaves cuBLAS's settings alone, and holds whatever they are."""

    @staticmethod
    def settings() -> tuple[object, ...]:
        matmul = torch.backends.cuda.matmul
        return (
            matmul.allow_bf16_reduced_precision_reduction,
            matmul.allow_fp16_reduced_precision_reduction,
            matmul.allow_tf32,
        )

    def test_no_thread_sees_another_setting(self, monkeypatch):
        before, seen, is_done = self.settings(), set(), threading.Event()

        def watch() -> None:
            while not is_done.is_set():
                seen.add(self.settings())

        def product(*args, _product=screening._product, **kwargs):
            seen.add(self.settings())
            return _product(*args, **kwargs)

        monkeypatch.setattr(screening, "_product", product)
        problem, memory = (
            Problem.random(batch=64, d_sae=90, widths=[90]).to("cuda"),
            engine.Engine(),
        )
        watcher = threading.Thread(target=watch)
        watcher.start()
        for _ in range(3):  # the first one learns where to cut
            problem.sparse_code(memory=memory)
        is_done.set()
        watcher.join()
        assert seen == {before}

    def test_holds_where_partial_sums_are_added_in_the_dtype_of_the_result(self):
        """Adversarial: in bfloat16, each part of the inner dimension would be rounded down."""
        d_in = 4096
        x, W = torch.ones(3, d_in), torch.ones(d_in, 5)
        x[:, 32:] = 0.99 * 2**-8  # beside a large first part, the others are lost one by one
        encoder = engine.Encoder(x, W, torch.zeros(5), None)
        exact = x.double() @ W.double()
        ours = screening.screened(moved_encoder(encoder))
        assert isinstance(ours, screening.ScreenedEncoder)
        bounds = torch.cat([block.clone() for _, block in ours.latent_blocks()]).T
        assert bounds.dtype == torch.float32
        assert (on_cpu(bounds) >= exact).all()
        if not HAS_GPU:  # whose cuBLAS may take another way
            low = torch.mm(x.bfloat16().to("cuda"), W.bfloat16().to("cuda"))
            norms = x.norm(dim=-1)[:, None] * W.norm(dim=0)
            lost = (exact - on_cpu(low).double()) / norms
            assert (lost > 2**-7).any()  # more than the certificate allows for

    def test_selects_what_float32_selects(self):
        problem = Problem.random(batch=64, d_in=40, d_sae=300, k=5, widths=[100, 300])
        there, memory = problem.to("cuda"), engine.Engine()
        assert screening.pays(there.encoder)
        for _ in range(2):
            code = there.sparse_code(memory=memory)
        torch.testing.assert_close(
            on_cpu(code.tensors()[0].to_dense()), problem.dense_code().acts, rtol=1e-5, atol=1e-6
        )

    def test_not_without_such_a_product(self, monkeypatch):
        """Before torch 2.8."""

        def product(*_, **__):
            raise TypeError("mm() got an unexpected keyword argument 'out_dtype'")

        screening._multiplies_into_float32.cache_clear()
        monkeypatch.setattr(screening, "_product", product)
        problem = Problem.random().to("cuda")
        assert not screening.pays(problem.encoder)
        screening._multiplies_into_float32.cache_clear()


def moved_encoder(encoder: engine.Encoder) -> engine.Encoder:
    return engine.Encoder(
        encoder.x.to("cuda"), encoder.W_enc.to("cuda"), encoder.b_enc.to("cuda"), None
    )


def test_blocks_are_limited_by_the_weights_that_they_hold(monkeypatch):
    """A small batch must not make a block of all latents, whose weights are copied."""
    monkeypatch.setattr(selection, "DEVICE_BLOCK_ELEMENTS", 2**10)
    problem = Problem.random(batch=2, d_in=64, d_sae=300, widths=[300]).to("cuda")
    for encoder in (problem.encoder, screening.screened(problem.encoder)):
        assert encoder.latents_per_block * 64 <= 2**10
        sizes = [len(block) for _, block in encoder.latent_blocks()]
        assert max(sizes) * 64 <= 2**10 and sum(sizes) == 300


def test_thresholds():
    problem = Problem.random(batch=50)
    factors = torch.rand(24, generator=torch.Generator().manual_seed(0))
    factors[:3] = 0  # no threshold
    results = [
        threshold.thresholds_for_l0(lambda: [given.encoder], factors.to(device), 6.0)
        for device, given in (("cuda", problem.to("cuda")), ("cpu", problem))
    ]
    assert results[0].is_cuda
    torch.testing.assert_close(on_cpu(results[0]), results[1])


def test_resampling():
    cfg = MatryoshkaTrainingSAEConfig(d_in=6, d_sae=20, k=3, matryoshka_widths=[4, 10, 20])
    sae = on_cuda(MatryoshkaTrainingSAE(cfg))
    optimizer = torch.optim.Adam(sae.parameters(), foreach=False)
    dead = torch.arange(20) < 4
    chosen = resampling.choose(dead.to("cuda"), torch.randn(8, 6).to("cuda"), step=5)
    resampling.apply(chosen, sae, optimizer, None)
    rows = torch.nn.functional.normalize(on_cpu(sae.W_dec)[:4], dim=-1)
    torch.testing.assert_close(rows, on_cpu(chosen.directions))
