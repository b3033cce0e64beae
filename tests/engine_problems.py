"""Problems for the engine: weights, a batch, and one step through either path."""

from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from sae_lens_matryoshka import engine
from sae_lens_matryoshka.saes import objective


@dataclass(repr=False)
class Problem:
    """What one step of an SAE with a batch top-k needs."""

    x: torch.Tensor
    W_enc: torch.Tensor
    b_enc: torch.Tensor
    W_dec: torch.Tensor
    b_dec: torch.Tensor
    norm: torch.Tensor | None
    k: float
    widths: list[int]
    order: torch.Tensor | None = None
    detach_inner: bool = False
    refinement_step: float = 0.3  # for the activation "refined"

    @staticmethod
    def random(
        batch=9,
        d_in=5,
        d_sae=24,
        k=3.0,
        widths=(4, 10, 24),
        with_norm=True,
        with_order=False,
        detach_inner=False,
        seed=0,
    ) -> "Problem":
        g = torch.Generator().manual_seed(seed)
        W_dec = torch.randn(d_sae, d_in, generator=g)
        return Problem(
            x=torch.randn(batch, d_in, generator=g),
            W_enc=torch.randn(d_in, d_sae, generator=g),
            b_enc=torch.randn(d_sae, generator=g) / 4,
            W_dec=W_dec,
            b_dec=torch.randn(d_in, generator=g),
            norm=W_dec.norm(dim=-1) if with_norm else None,
            k=k,
            widths=list(widths),
            order=torch.randperm(d_sae, generator=g) if with_order else None,
            detach_inner=detach_inner,
        )

    def to(self, target: torch.dtype | str) -> "Problem":
        """On another device, or in another dtype, which indices have not."""

        def is_moved(value: object) -> bool:
            if not isinstance(value, torch.Tensor):
                return False
            return value.is_floating_point() or not isinstance(target, torch.dtype)

        moved = {name: value.to(target) for name, value in vars(self).items() if is_moved(value)}
        return replace(self, **moved)

    def __repr__(self) -> str:
        batch, (d_in, d_sae) = len(self.x), self.W_enc.shape
        return f"Problem({batch=}, {d_in=}, {d_sae=}, k={self.k}, widths={self.widths})"

    @property
    def encoder(self) -> engine.Encoder:
        return engine.Encoder(self.x, self.W_enc, self.b_enc, self.norm)

    def dense_code(self, activation: str = "batchtopk") -> engine.DenseCode:
        hidden_pre = self.x @ self.W_enc + self.b_enc
        if self.norm is not None:
            hidden_pre = hidden_pre * self.norm
        if activation == "relu":
            acts = hidden_pre.relu()
        elif activation == "topk":
            acts = engine.token_top_k(hidden_pre, int(self.k))
        else:
            acts = engine.batch_top_k(hidden_pre, self.k)
        if activation == "refined":
            norm = torch.ones(len(self.b_enc)).to(acts) if self.norm is None else self.norm
            residual = self.x - acts @ (self.W_dec / norm[:, None]) - self.b_dec
            correction = (residual.detach() @ self.W_enc) * norm
            hidden_pre = hidden_pre + self.refinement_step * correction
            acts = engine.batch_top_k(hidden_pre, self.k)
        return engine.DenseCode(acts, hidden_pre, self.norm)

    def sparse_code(
        self, activation: str = "batchtopk", memory: engine.Engine | None = None
    ) -> engine.SparseCode:
        memory = memory or engine.Engine()
        encoder = self.refined_encoder() if activation == "refined" else self.encoder
        with engine.using("sparse"):
            if activation == "relu":
                code = memory.above(encoder, 0.0)
            elif activation == "topk":
                code = memory.token_top_k(encoder, int(self.k))
            else:
                code = memory.batch_top_k(encoder, self.k)
        assert code is not None
        return code

    def refined_encoder(self) -> engine.Encoder:
        first = self.sparse_code()
        return engine.refined(self.encoder, first, self.W_dec, self.b_dec, self.refinement_step)

    def step(self, path: str, activation: str = "batchtopk") -> dict[str, torch.Tensor]:
        """Loss, reconstructions, activations and gradients of one step."""
        names = ("W_enc", "b_enc", "W_dec", "b_dec")
        leaves = {name: getattr(self, name).detach().clone().requires_grad_() for name in names}
        problem = replace(self, **leaves)
        code = (
            problem.dense_code(activation) if path == "dense" else problem.sparse_code(activation)
        )
        recons = code.nested_decode(
            problem.W_dec, problem.b_dec, self.widths, self.order, self.detach_inner
        )
        errors = objective.nested_squared_error(self.x, recons)
        weights = torch.arange(1, len(errors) + 1, device=errors.device)
        loss = (errors * weights).sum() + 0.1 * code.latent_sums().sum()
        loss.backward()
        return {
            "loss": loss.detach(),
            "recons": recons.detach(),
            "acts": code.tensors()[0].to_dense().detach(),
            "firing_counts": code.firing_counts,
            "square_sums": code.square_sums(),
            **{f"d {name}": leaf.grad for name, leaf in leaves.items()},
        }


def assert_same_numbers(actual: dict, expected: dict, tolerance: float = 1e-5) -> None:
    """Every output and gradient agrees in relative error of its norm."""
    assert actual.keys() == expected.keys()
    # a sum that cancels keeps the rounding of its terms
    terms = max(expected[name].double().norm() for name in ("recons", "acts", "d W_dec"))
    rounding = tolerance / 3 * terms
    for name, value in expected.items():
        assert actual[name].shape == value.shape, name
        error = (actual[name].double() - value.double()).norm()
        assert error <= tolerance * value.double().norm() + rounding, f"{name}: {error}"


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation returned."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided:
                storage = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.numel = max(self.numel, storage)
        return result


@st.composite
def problems(draw) -> Problem:
    """Problems of any shape: one token, one latent, widths that no block divides."""
    d_sae = draw(st.integers(1, 70))
    inner = draw(st.sets(st.integers(1, d_sae), max_size=5))
    return Problem.random(
        batch=draw(st.integers(1, 20)),
        d_in=draw(st.integers(1, 19)),
        d_sae=d_sae,
        k=draw(st.floats(0, d_sae)),
        widths=sorted(inner | {d_sae}),
        with_norm=draw(st.booleans()),
        with_order=draw(st.booleans()),
        detach_inner=draw(st.booleans()),
        seed=draw(st.integers(0, 2**20)),
    )
