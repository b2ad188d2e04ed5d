"""Figures as a table that reads well and can be piped."""

from __future__ import annotations


def table(rows: dict[str, dict[str, float]]) -> str:
    """Systems by metrics, three decimals, columns aligned with spaces; "-" where a system lacks a metric.

    Columns stand in the order in which the rows name them. No trailing newline.
    """
    metrics = list(dict.fromkeys(metric for values in rows.values() for metric in values))
    cells = [["system", *metrics]]
    for system, values in rows.items():
        cells.append([system, *(f"{values[metric]:.3f}" if metric in values else "-" for metric in metrics)])
    widths = [max(len(row[column]) for row in cells) for column in range(len(metrics) + 1)]
    return "\n".join(_line(row, widths) for row in cells)


def _line(row: list[str], widths: list[int]) -> str:
    name, *values = row
    return "  ".join(
        [name.ljust(widths[0]), *(value.rjust(width) for value, width in zip(values, widths[1:], strict=True))]
    )
