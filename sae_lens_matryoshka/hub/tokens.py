"""What must not be published: tokens, wherever a configuration may have written them."""

import re
from pathlib import Path

from huggingface_hub import get_token

_TEXT = (".json", ".md")
_TOKEN = r"\bhf_[A-Za-z0-9]{30,}\b"  # the Hub's form


def refuse_secrets(tree: Path) -> None:
    """
    Look for tokens of the Hub in all text files below a folder.

    Raises:
        ValueError: There is one; the message names the file, not the token.
    """
    for path in sorted(path for path in tree.rglob("*") if path.suffix in _TEXT):
        text = path.read_text(encoding="utf-8")
        if without_token(text) != text or re.search(_TOKEN, text):
            raise ValueError(
                f"{path.relative_to(tree)} would publish a token of the Hub. Take it out of the SAE's "
                "metadata or of that file (model_from_pretrained_kwargs is a usual place), and have the "
                "token replaced if it was ever shared."
            )


def without_token(text: str) -> str:
    """A text for others' eyes."""
    token = get_token()
    return text.replace(token, "...") if token else text
