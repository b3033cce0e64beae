"""What a model card says of an SAE first: model, hook, training data, size."""

from collections.abc import Sequence
from pathlib import Path

from sae_lens_matryoshka.hub.card_entry import CardEntry, is_local_path
from sae_lens_matryoshka.hub.card_text import code, listed, plain
from sae_lens_matryoshka.hub.names import hub_model, hub_name
from sae_lens_matryoshka.levels.origin import KEY


def title(repo_id: str, entries: Sequence[CardEntry]) -> str:
    """The heading of a repo's page: what the SAEs are and the models that they are for."""
    kind = "Matryoshka SAE" if all(e.is_matryoshka for e in entries) else "Sparse autoencoder"
    if len(entries) != 1:
        kind += "s"
    models = list(dict.fromkeys(_model_name(entry) for entry in entries))
    if None in models or not 0 < len(models) <= 3:
        return f"{kind}: {plain(repo_id.split('/')[-1])}"
    return f"{kind} for {listed([plain(model) for model in models])}"


def _model_name(entry: CardEntry) -> str | None:
    """The model's name, without the folder that it lies in on somebody's machine."""
    name = entry.metadata.get("model_name")
    if not name:
        return None
    return Path(name.replace("\\", "/")).name or None if is_local_path(name) else name


def facts_of(entry: CardEntry) -> dict[str, str]:
    """What a reader asks first, by name, in Markdown."""
    found = {
        "Model": _model(entry),
        "Hook": _hook(entry),
        "Training data": _training_data(entry),
        "Context": _context(entry),
        "Part of": _parent(entry),
        "Latents": f"{entry.cfg['d_sae']:,}",
        "Levels": " · ".join(f"{w:,}" for w in entry.widths) if entry.is_matryoshka else None,
        "Activation in training": _activation(entry),
        "Architecture": f"{code(entry.cfg['architecture'])}, {code(entry.cfg.get('dtype', 'float32'))}",
    }
    return {name: value for name, value in found.items() if value}


def _model(entry: CardEntry) -> str | None:
    name, repo = _model_name(entry), hub_model(entry.metadata.get("model_name"))
    if name is None or repo is None:
        return name and plain(name)
    return f"[{plain(name)}](https://huggingface.co/{repo})"


def _hook(entry: CardEntry) -> str | None:
    hook = entry.metadata.get("hook_name")
    head = entry.metadata.get("hook_head_index")
    of_head = "" if head is None else f", head {int(head)}"
    return hook and f"{code(hook)}{of_head} ({int(entry.cfg['d_in']):,} dimensions)"


def _training_data(entry: CardEntry) -> str | None:
    path, tokens = entry.metadata.get("dataset_path"), entry.trained_tokens
    repo = hub_name(path)
    name = f"[{plain(path)}](https://huggingface.co/datasets/{repo})" if repo else None
    if name is None and path and not is_local_path(path):
        name = code(path)
    return " of ".join(part for part in (f"{tokens:,} tokens" if tokens else None, name) if part)


def _context(entry: CardEntry) -> str | None:
    size, bos = entry.metadata.get("context_size"), entry.metadata.get("prepend_bos")
    with_bos = "" if bos is None else ", the first of them BOS" if bos else ", without BOS in front"
    return size and f"{int(size):,} tokens{with_bos}"


def _parent(entry: CardEntry) -> str | None:
    """Of an SAE that was truncated: what it was truncated from."""
    origin = entry.metadata.get(KEY)
    if not origin or not origin.get("parent_widths"):
        return None
    widths, level = origin["parent_widths"], origin.get("level")
    if entry.cfg["d_sae"] >= widths[-1]:
        return None
    which = "the first latents" if level is None else f"level {int(level)}"
    return f"{which} of an SAE with {int(widths[-1]):,} latents"


def _activation(entry: CardEntry) -> str | None:
    details = entry.metadata.get("training_architecture_details") or {}
    kind, k = details.get("activation"), details.get("k", entry.cfg.get("k"))
    parts = [code(kind) if kind else "", f"k = {plain(k)}" if k is not None else ""]
    return ", ".join(filter(None, parts))
