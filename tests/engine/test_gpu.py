"""A CUDA device gives the numbers of the dense path, in every precision. Run with -m gpu."""

import pytest
import torch
from engine_problems import Problem, assert_same_numbers

from sae_lens_matryoshka import engine
from sae_lens_matryoshka.engine import screening, selection

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def problem(**options) -> Problem:
    options = {"batch": 512, "d_in": 304, "d_sae": 4096, "k": 20, **options}
    return Problem.random(**options, widths=[100, 1000, 4096]).to("cuda")


@pytest.fixture(autouse=True, params=[2**26, 2**17], ids=["one block", "many blocks"])
def _blocks(request, monkeypatch):
    monkeypatch.setattr(selection, "DEVICE_BLOCK_ELEMENTS", request.param)


@pytest.mark.parametrize("activation", ["batchtopk", "topk", "relu", "refined"])
class TestStep:
    def test_float32(self, activation):
        sparse, dense = (problem().step(path, activation) for path in ("sparse", "dense"))
        assert_same_numbers(sparse, dense)

    def test_bfloat16(self, activation):
        low = problem().to(torch.bfloat16)
        exact = problem().step("dense", activation)
        sparse, dense = (low.step(path, activation) for path in ("sparse", "dense"))
        for name in ("loss", "recons", "d W_enc", "d b_enc", "d W_dec", "d b_dec"):
            errors = [(out[name].float() - exact[name]).norm() for out in (sparse, dense)]
            assert errors[0] <= 1.5 * errors[1] + 2**-7 * exact[name].norm(), name

    def test_autocast(self, activation):
        exact = problem().step("dense", activation)
        with torch.autocast("cuda", torch.bfloat16):
            sparse, dense = (problem().step(path, activation) for path in ("sparse", "dense"))
        for name in ("loss", "recons", "d W_enc", "d b_enc", "d W_dec", "d b_dec"):
            errors = [(out[name].float() - exact[name]).norm() for out in (sparse, dense)]
            assert errors[0] <= 1.5 * errors[1] + 2**-7 * exact[name].norm(), name

    def test_the_same_twice(self, activation):
        first, second = (problem().step("sparse", activation) for _ in range(2))
        for name, value in first.items():
            assert torch.equal(value, second[name]), name


def test_the_certificate_holds_where_partial_sums_are_added():
    given = Problem.random(batch=64, d_in=8192, d_sae=64, widths=[64], k=4).to("cuda")
    exact = given.x.double() @ given.W_enc.double()
    encoder = screening.screened(given.encoder)
    bounds = torch.cat([block.clone() for _, block in encoder.latent_blocks()]).T
    assert bounds.dtype == torch.float32  # not in bfloat16, in which partial sums may be
    assert (bounds >= exact).all()


@pytest.mark.parametrize("activation", ["batchtopk", "refined"])
def test_screening_selects_what_float32_selects(activation):
    memory, given = engine.Engine(), problem()
    assert screening.pays(given.encoder)
    given.sparse_code(activation, memory)  # learns where to cut
    code = given.sparse_code(activation, memory)
    torch.testing.assert_close(code.tensors()[0].to_dense(), given.dense_code(activation).acts)


def test_only_float32_is_screened():
    encoder = problem().encoder
    assert screening.pays(encoder)
    assert not screening.pays(problem().to(torch.bfloat16).encoder)
    assert not screening.pays(problem().to(torch.double).encoder)
    with torch.autocast("cuda", torch.bfloat16):
        assert not screening.pays(encoder)
