"""The bias that stands for a subtraction: the same gradients."""

import torch
from engine_problems import Problem

from sae_lens_matryoshka import engine


class TestBiasShift:
    def test_gradient_of_b_dec_as_if_it_were_subtracted(self):
        problem = Problem.random(with_norm=False).to(torch.double)
        weights = torch.randn(9, 24, dtype=torch.double)

        def gradients(shifted: bool) -> list[torch.Tensor]:
            W, b, b_dec = (
                t.clone().requires_grad_() for t in (problem.W_enc, problem.b_enc, problem.b_dec)
            )
            if shifted:
                x = (problem.x - b_dec).detach()
                hidden_pre = x @ W + engine.shifted_bias(b, b_dec, W)
            else:
                hidden_pre = (problem.x - b_dec) @ W + b
            (hidden_pre.tanh() * weights).sum().backward()
            return [t.grad for t in (W, b, b_dec)]

        for actual, expected in zip(gradients(True), gradients(False)):
            torch.testing.assert_close(actual, expected)
