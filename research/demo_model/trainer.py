"""The demo model's trainer: model, letter head, optimizers, one step, checkpoints."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from research.demo_model.muon import Muon
from research.demo_model.settings import TrainSettings
from research.demo_model.tokenizer import END_OF_TEXT_ID, alphabetic_tokens, letter_index
from research.demo_model.windows import BatchStream
from sae_lens_matryoshka.atomic_files import whole_files

CHECKPOINT = "checkpoint.pt"

if TYPE_CHECKING:
    import numpy as np
    from transformers import GPTNeoXForCausalLM, PreTrainedTokenizerFast

IGNORED = -100
"""Target that counts for nothing."""


class LetterHead(torch.nn.Module):
    """Linear classifier of a token's first letter, read from the residual stream.

    Trained along and thrown away: it makes the first letter a linear feature there, as
    it is in large models, so that first-letter absorption can be measured.
    """

    letters: torch.Tensor

    def __init__(self, width: int, tokenizer: "PreTrainedTokenizerFast"):
        """Create the head.

        Args:
            width: Width of the residual stream.
            tokenizer: Says which tokens are words, and their letters.
        """
        super().__init__()
        letters = torch.full((len(tokenizer),), IGNORED)
        for index, word in alphabetic_tokens(tokenizer).items():
            letters[index] = letter_index(word)
        self.register_buffer("letters", letters)  # (vocab,)
        self.linear = torch.nn.Linear(width, 26)

    def loss(self, resid: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy over tokens that are words.

        Args:
            resid: Residual stream.  # (batch, context, width)
            tokens: Token ids.  # (batch, context)

        Returns:
            Mean loss in nats.
        """
        logits = self.linear(resid).flatten(0, 1)  # (batch * context, 26)
        letters = self.letters[tokens].flatten()
        return F.cross_entropy(logits, letters, ignore_index=IGNORED)


@dataclass
class Trainer:
    """Model, optimizers and progress of one run."""

    settings: TrainSettings
    model: "GPTNeoXForCausalLM"
    head: LetterHead
    stream: BatchStream
    optimizers: list[torch.optim.Optimizer]
    step: int = 0
    seconds: float = 0.0

    def train_step(self) -> tuple[float, float]:
        """Train on the next batch.

        Returns:
            Language-model loss and letter loss, nats.
        """
        tokens = self.stream.batch(self.step)
        factor = self.settings.learning_rate_factor(self.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = factor * group["peak_lr"]
        output = self.model(
            tokens, output_hidden_states=self.settings.letter_weight > 0, use_cache=False
        )
        loss = next_token_loss(output.logits, tokens)
        letter_loss = torch.zeros(())
        if self.settings.letter_weight > 0:
            # hidden_states begins with the embedding
            resid = output.hidden_states[self.settings.letter_layer + 1]
            letter_loss = self.head.loss(resid, tokens)
        (loss + self.settings.letter_weight * letter_loss).backward()
        params = [p for o in self.optimizers for g in o.param_groups for p in g["params"]]
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return loss.item(), letter_loss.item()

    def save(self) -> None:
        """Write the checkpoint, which is complete or absent."""
        state = {
            "identity": self.settings.identity(),
            "model": self.model.state_dict(),
            "head": self.head.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "torch_rng": torch.get_rng_state(),
            "step": self.step,
            "seconds": self.seconds,
        }
        with whole_files(self.settings.folder) as staging:
            torch.save(state, staging / CHECKPOINT)

    def restore(self) -> bool:
        """Load the checkpoint, if there is one.

        Returns:
            Whether there was one.
        """
        path = self.settings.folder / CHECKPOINT
        if not path.exists():
            return False
        state: dict[str, Any] = torch.load(path, weights_only=True)
        self.settings.check_same(state["identity"])
        self.model.load_state_dict(state["model"])
        self.head.load_state_dict(state["head"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        torch.set_rng_state(state["torch_rng"])
        self.step, self.seconds = state["step"], state["seconds"]
        return True


def next_token_loss(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of predicting every token but the first.

    Args:
        logits: Logits.  # (batch, context, vocab)
        tokens: Token ids.  # (batch, context)

    Returns:
        Mean loss in nats.
    """
    # padding the targets is cheaper than cutting the logits
    targets = F.pad(tokens[:, 1:], (0, 1), value=IGNORED)  # (batch, context)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def build_model(settings: TrainSettings, vocab_size: int) -> "GPTNeoXForCausalLM":
    """Return an untrained model.

    Args:
        settings: Sizes and seed.
        vocab_size: Number of tokens.

    Returns:
        The model, float32.
    """
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(settings.seed)
    config = GPTNeoXConfig(
        vocab_size=vocab_size,
        hidden_size=settings.width,
        intermediate_size=4 * settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=settings.max_positions,
        bos_token_id=END_OF_TEXT_ID,
        eos_token_id=END_OF_TEXT_ID,
        pad_token_id=None,  # an embedding's padding row would never train, and 0 is bos
        tie_word_embeddings=False,
    )
    model = GPTNeoXForCausalLM(config)
    for name, param in model.named_parameters():
        # what writes into the residual stream starts small, as in GPT-2
        if name.endswith(("attention.dense.weight", "dense_4h_to_h.weight")):
            param.data /= math.sqrt(2 * settings.layers)
    return model


def build_optimizers(
    settings: TrainSettings, model: "GPTNeoXForCausalLM", head: LetterHead
) -> list[torch.optim.Optimizer]:
    """Return Muon for the hidden matrices and AdamW for all else.

    Args:
        settings: Learning rates and weight decay.
        model: The model.
        head: The letter head.

    Returns:
        The optimizers; every group knows its "peak_lr".
    """
    hidden = [p for p in model.gpt_neox.layers.parameters() if p.ndim == 2]
    taken = {id(p) for p in hidden}
    others = [p for p in model.parameters() if id(p) not in taken]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(hidden, lr=settings.matrix_lr, weight_decay=settings.weight_decay),
        torch.optim.AdamW(
            [*others, *head.parameters()],
            lr=settings.other_lr,
            betas=(0.9, 0.95),
            weight_decay=0.0,
        ),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


@torch.no_grad()
def heldout_loss(model: "GPTNeoXForCausalLM", windows: "np.ndarray") -> float:
    """Return the mean loss over windows.

    Args:
        model: The model.
        windows: Token ids.  # (n_windows, context)

    Returns:
        Nats per token.
    """
    total = 0.0
    for first in range(0, len(windows), 16):
        tokens = torch.from_numpy(windows[first : first + 16].astype("int64"))
        loss = next_token_loss(model(tokens, use_cache=False).logits, tokens)
        total += loss.item() * len(tokens)
    return total / len(windows)
