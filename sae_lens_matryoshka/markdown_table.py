"""Tables in Markdown, aligned for those who read the source; the words that they share."""

from collections.abc import Sequence
from statistics import mean, stdev

ARROWS = {"higher": "↑", "lower": "↓", None: ""}


def pipe_table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int) -> str:
    """
    A Markdown table with aligned columns.

    Args:
        header: Column headings.
        rows: Cells; pipes in them are escaped.
        text_columns: Number of leading columns aligned left; the others are aligned right.
    """
    lines = [[cell.replace("|", r"\|") for cell in line] for line in (header, *rows)]
    widths = [max(3, *(len(cell) for cell in column)) for column in zip(*lines, strict=True)]
    rule = [
        "-" * width if i < text_columns else "-" * (width - 1) + ":"
        for i, width in enumerate(widths)
    ]
    padded = [
        [
            cell.ljust(width) if i < text_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (padded[0], rule, *padded[1:]))


def level_label(index: int, n_levels: int) -> str:
    """A level's index, with the word for the two ends; "-" for a flat SAE."""
    if n_levels == 1:
        return "-"
    ends = {0: f"{index} (innermost)", n_levels - 1: f"{index} (outermost)"}
    return ends.get(index, str(index))


def spread(values: Sequence[float], form: str) -> str:
    """
    Mean and sample standard deviation, or one value alone.

    Args:
        values: At least one.
        form: As format() takes it; the deviation gets no sign.
    """
    text = f"{mean(values):{form}}"
    return text if len(values) == 1 else f"{text} ± {stdev(values):{form.lstrip('+')}}"


def with_arrow(label: str, better: str | None) -> str:
    """A heading with the direction that is better: "higher", "lower", or None for neither."""
    return f"{label} {ARROWS[better]}".strip()
