"""Text of others on a model card: shown as it is, never read as Markdown or HTML."""

import re
from collections.abc import Sequence
from typing import Any

MOST_CHARACTERS = 300
_HARMLESS_CODE = r"[\w.,:;/+=()\[\]{}'\"@%$ -]+"
# what may open markup anywhere in a line, an address that would become a link, a mention
_MARKUP = re.compile(r"[^\w\s.,:;/+=()%'\"±↑↓·-]|(?<=:)/(?=/)|(?<=www)\.", re.IGNORECASE)


def plain(value: Any) -> str:
    """A text in one line, its markup escaped."""
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", _one_line(value))


def code(value: Any) -> str:
    """A text in one line as code."""
    text = _one_line(value)
    if re.fullmatch(_HARMLESS_CODE, text):
        return f"`{text}`"
    return f"<code>{re.sub(r'[^ A-Za-z0-9]', lambda found: f'&#{ord(found[0])};', text)}</code>"


def listed(values: Sequence[Any]) -> str:
    """As in "1, 2 and 3"."""
    *most, last = [f"{value:,}" if isinstance(value, int) else str(value) for value in values]
    return f"{', '.join(most)} and {last}" if most else last


def _one_line(value: Any) -> str:
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} …"
