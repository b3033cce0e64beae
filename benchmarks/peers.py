"""One training step of every implementation, each in the trainer that its users run it in."""

import sys
import types
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import torch
from sae_lens import LoggingConfig, TrainingSAE
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.matryoshka_batchtopk_sae import (
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
)
from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer

from benchmarks.shape import Shape
from sae_lens_matryoshka import MatryoshkaTrainingSAE, MatryoshkaTrainingSAEConfig
from sae_lens_matryoshka.training.adam import speed_up_adam

Step = Callable[[], Any]

LR = 3e-4


def in_stock_trainer(
    sae: TrainingSAE[Any],
    batches: list[torch.Tensor],
    share_dead: float = 0.0,
    fused_adam: bool = False,
    lr: float = LR,
    autocast: bool = False,
) -> Step:
    """A step of SAELens's own SAETrainer.

    Args:
        sae: What it trains.
        batches: What it trains on, in turn.
        share_dead: Share of the latents that are counted as dead in every step.
        fused_adam: As this package's runner sets it.
        lr: Learning rate of Adam.
        autocast: Whether products are in bfloat16, as in the shipped configurations for GPUs.
    """
    device = str(batches[0].device)
    cfg = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=10**12,
        device=device,
        autocast=autocast,
        lr=lr,
        lr_end=lr,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=0,
        n_restart_cycles=1,
        train_batch_size_samples=len(batches[0]),
        dead_feature_window=1000,
        feature_sampling_window=2000,
        logger=LoggingConfig(log_to_wandb=False),
    )
    data: Iterator[torch.Tensor] = cycle(batches)
    trainer = SAETrainer(cfg=cfg, sae=sae.to(device), data_provider=data, evaluator=None)
    if fused_adam:
        speed_up_adam(trainer.optimizer)
    n_dead = int(share_dead * sae.cfg.d_sae)
    dead = torch.randperm(sae.cfg.d_sae, generator=torch.Generator().manual_seed(0))[:n_dead]
    dead = dead.to(device)

    def step() -> None:
        trainer.n_forward_passes_since_fired[dead] = cfg.dead_feature_window + 1
        trainer.step(next(data))
        trainer.n_training_steps += 1

    return step


def ours(shape: Shape, **options: Any) -> MatryoshkaTrainingSAE:
    """This package's SAE."""
    if options.get("activation", "batchtopk") in ("batchtopk", "topk"):
        options["k"] = shape.k
    return MatryoshkaTrainingSAE(
        MatryoshkaTrainingSAEConfig(
            d_in=shape.d_in, d_sae=shape.d_sae, matryoshka_widths=shape.widths, **options
        )
    )


def saelens_matryoshka(shape: Shape, **options: Any) -> TrainingSAE[Any]:
    """SAELens's Matryoshka SAE, which has fixed levels and a batch top-k."""
    return MatryoshkaBatchTopKTrainingSAE(
        MatryoshkaBatchTopKTrainingSAEConfig(
            d_in=shape.d_in,
            d_sae=shape.d_sae,
            k=shape.k,
            matryoshka_widths=shape.widths,
            **options,
        )
    )


def saelens_batchtopk(shape: Shape) -> TrainingSAE[Any]:
    """SAELens's BatchTopK SAE: no levels."""
    return BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(d_in=shape.d_in, d_sae=shape.d_sae, k=shape.k)
    )


def saelens_topk(shape: Shape, **options: Any) -> TrainingSAE[Any]:
    """SAELens's TopK SAE: no levels."""
    return TopKTrainingSAE(
        TopKTrainingSAEConfig(d_in=shape.d_in, d_sae=shape.d_sae, k=shape.k, **options)
    )


def saelens_standard(shape: Shape) -> TrainingSAE[Any]:
    """SAELens's ReLU SAE with an L1 penalty: no levels."""
    return StandardTrainingSAE(StandardTrainingSAEConfig(d_in=shape.d_in, d_sae=shape.d_sae))


@torch.no_grad()
def fire_about_k(sae: Any, shape: Shape, x: torch.Tensor) -> Any:
    """Set the encoder's bias so that k latents per token are active, as late in a ReLU's training."""
    hidden_pre = sae.process_sae_in(x.cpu()) @ sae.W_enc
    n_active = shape.k * len(x)
    sae.b_enc -= hidden_pre.flatten().kthvalue(hidden_pre.numel() - n_active).values
    return sae


def dictionary_learning(shape: Shape, batches: list[torch.Tensor]) -> Step | None:
    """A step of dictionary_learning's Matryoshka trainer; None where it is not installed."""
    try:
        # its model buffer imports nnsight, which its trainers do not use
        sys.modules.setdefault("nnsight", types.SimpleNamespace(LanguageModel=object))  # type: ignore
        from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
    except ImportError:
        return None
    edges = [0, *shape.widths]
    trainer = MatryoshkaBatchTopKTrainer(
        steps=10**9,
        activation_dim=shape.d_in,
        dict_size=shape.d_sae,
        k=shape.k,
        layer=0,
        lm_name="none",
        group_fractions=[(hi - lo) / shape.d_sae for lo, hi in zip(edges, edges[1:])],
        lr=LR,
        device=shape.device,
    )
    # its schedule counts steps, of which the first also sets the bias
    data, count = cycle(batches), iter(range(10**9))
    return lambda: trainer.update(next(count), next(data))


class AuthorsFormula:
    """The step of the paper authors' released code, written from its formulas (no package exists).

    Dense products; the loss averages over dimensions, batch, the levels and a bias-only term; the
    encoder has no bias; decoder rows are kept at norm 1 and lose the gradient along themselves;
    512 latents that were silent for 20 batches fit the residual, with weight 1/32.
    """

    def __init__(self, shape: Shape, batches: list[torch.Tensor]):
        self.shape, self.data = shape, cycle(batches)
        rows = torch.randn(shape.d_sae, shape.d_in)
        rows /= rows.norm(dim=-1, keepdim=True)
        self.W_dec = torch.nn.Parameter(rows.to(shape.device))
        self.W_enc = torch.nn.Parameter(rows.T.contiguous().to(shape.device))
        self.b_dec = torch.nn.Parameter(torch.zeros(shape.d_in, device=shape.device))
        self.silent = torch.zeros(shape.d_sae, device=shape.device)
        self.threshold = torch.zeros((), device=shape.device)
        self.optimizer = torch.optim.Adam(
            [self.W_enc, self.W_dec, self.b_dec], lr=LR, betas=(0.9, 0.99)
        )

    def __call__(self) -> None:
        x = next(self.data)
        pre = ((x - self.b_dec) @ self.W_enc).relu()
        top = pre.flatten().topk(self.shape.k * len(x))
        acts = torch.zeros_like(pre.flatten()).scatter(-1, top.indices, top.values)
        acts = acts.view_as(pre)
        with torch.no_grad():
            self.threshold.lerp_(acts[acts > 0].min(), 0.01)
            self.silent = torch.where(acts.sum(dim=0) > 0, 0.0, self.silent + 1)
        recon = self.b_dec.expand_as(x)
        errors = [(recon - x).pow(2).mean()]
        edges = [0, *self.shape.widths]
        for lo, hi in zip(edges, edges[1:]):
            recon = recon + acts[:, lo:hi] @ self.W_dec[lo:hi]
            errors.append((recon - x).pow(2).mean())
        loss = torch.stack(errors).mean() + self._auxiliary(pre, x - recon) / 32
        loss.backward()
        with torch.no_grad():
            assert self.W_dec.grad is not None
            rows = self.W_dec / self.W_dec.norm(dim=-1, keepdim=True)
            self.W_dec.grad -= (self.W_dec.grad * rows).sum(dim=-1, keepdim=True) * rows
            self.W_dec.copy_(rows)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _auxiliary(self, pre: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        dead = self.silent >= 20
        if not dead.any():
            return residual.new_zeros(())
        top = pre[:, dead].topk(min(512, int(dead.sum())))
        acts = torch.zeros_like(pre[:, dead]).scatter(-1, top.indices, top.values)
        return (acts @ self.W_dec[dead] - residual).pow(2).mean()


def floor(shape: Shape, batches: list[torch.Tensor]) -> Step:
    """What no dense encoder can do without: its product, and a fused Adam over all weights."""
    parameters = [
        torch.nn.Parameter(torch.randn(size, device=shape.device))
        for size in ((shape.d_in, shape.d_sae), (shape.d_sae, shape.d_in))
    ]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.Adam(parameters, lr=LR, fused=True)
    product = torch.empty(shape.batch, shape.d_sae, device=shape.device)
    data = cycle(batches)

    @torch.no_grad()
    def step() -> None:
        torch.mm(next(data), parameters[0], out=product)
        optimizer.step()

    return step
