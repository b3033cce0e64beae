"""The faster path is decided by the device and the precision of its products."""

import pytest
import torch

from sae_lens_matryoshka.engine import Encoder, crossover, kernels, screening


def encoder(batch: int, d_sae: int, device: str, dtype=torch.float32) -> Encoder:
    """Without memory: what decides is the shape."""
    x = torch.empty(batch, 1, device="meta", dtype=dtype)
    W_enc = torch.empty(1, d_sae, device="meta", dtype=dtype)
    made = Encoder(x, W_enc, W_enc[0], None)
    object.__setattr__(made, "x", OnDevice(x, device))
    return made


class OnDevice:
    """A tensor that says it is on a device."""

    def __init__(self, tensor: torch.Tensor, device: str):
        self.device, self.dtype, self.shape = torch.device(device), tensor.dtype, tensor.shape

    def __len__(self) -> int:
        return self.shape[0]


@pytest.fixture(autouse=True)
def every_primitive_works(monkeypatch):
    monkeypatch.setattr(kernels, "work_on", lambda *_: True)


@pytest.fixture
def tf32(monkeypatch):
    monkeypatch.setattr(crossover, "float32_is_exact", lambda: False)


def test_a_cpu_keeps_what_was_measured():
    for density, pays in [(0.01, True), (0.16, True), (0.18, False)]:
        assert crossover.sparse_pays(encoder(2048, 4096, "cpu"), density) == pays
    assert crossover.sparse_pays(encoder(2**8, 2**9, "cpu"), 0.01)
    assert not crossover.sparse_pays(encoder(2**8, 2**8, "cpu"), 0.01)


class TestCuda:
    """Dense products are so fast that few active entries pay, and few products at all."""

    def test_float32(self):
        large = encoder(4096, 65536, "cuda")
        assert crossover.sparse_pays(large, 0.04)
        assert not crossover.sparse_pays(large, 0.1)
        assert not crossover.sparse_pays(encoder(1024, 4096, "cuda"), 0.01)

    @pytest.mark.usefixtures("tf32")
    def test_tf32(self):
        large = encoder(4096, 65536, "cuda")
        assert crossover.sparse_pays(large, 0.005)
        assert not crossover.sparse_pays(large, 0.04)

    def test_tf32_is_nothing_to_float64(self, monkeypatch):
        of_float64 = encoder(4096, 65536, "cuda", torch.float64)
        before = crossover.crossover_of(of_float64)
        monkeypatch.setattr(crossover, "float32_is_exact", lambda: False)
        assert crossover.crossover_of(of_float64) == before

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, dtype):
        large = encoder(4096, 65536, "cuda", dtype)
        assert crossover.sparse_pays(large, 40 / 65536)  # the paper's
        assert not crossover.sparse_pays(large, 0.02)
        assert not crossover.sparse_pays(encoder(1024, 65536 // 4, "cuda", dtype), 40 / 65536)

    def test_autocast_counts_as_its_dtype(self, monkeypatch):
        monkeypatch.setattr(Encoder, "matmul_dtype", torch.bfloat16)
        assert not crossover.sparse_pays(encoder(4096, 65536, "cuda"), 0.02)

    def test_the_settings_of_torch_decide_what_float32_is(self):
        before = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision("high")
            assert not screening.float32_is_exact()
            torch.set_float32_matmul_precision("highest")
            assert screening.float32_is_exact()
        finally:
            torch.set_float32_matmul_precision(before)


def test_dense_where_a_dtype_has_no_kernels(monkeypatch):
    asked = []
    monkeypatch.setattr(kernels, "work_on", lambda _, *dtypes: asked.extend(dtypes))
    monkeypatch.setattr(Encoder, "matmul_dtype", torch.bfloat16)
    assert not crossover.sparse_pays(encoder(4096, 65536, "cuda"), 0.001)
    assert set(asked) == {torch.float32, torch.bfloat16}
