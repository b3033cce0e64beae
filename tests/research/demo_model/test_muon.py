import pytest
import torch

from research.demo_model.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (20, 20)])
def test_orthogonalize_keeps_singular_vectors(shape: tuple[int, int]):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    turned = u.T @ orthogonalize(matrix) @ vh.T  # diagonal, if the vectors are the same
    values = turned.diagonal()
    assert (turned - torch.diag(values)).abs().max() < 1e-3
    # the quintic's fixed interval for well-conditioned matrices
    assert values.min() > 0.3
    assert values.max() < 1.3


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_steps_equal_torch_s_muon(shape: tuple[int, int]):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    mine = Muon([ours], lr=0.02, momentum=0.9, weight_decay=0.1)
    torchs = torch.optim.Muon(
        [theirs], lr=0.02, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(3):
        grad = torch.randn(shape, generator=generator)
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        mine.step()
        torchs.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.03 * moved  # torch's is bfloat16 inside
