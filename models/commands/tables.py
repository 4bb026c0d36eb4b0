"""Formats figures in the tables of commands."""


def cell(value: float | None) -> str:
    """Two decimals, or a dash where there is no figure."""
    return "-" if value is None else f"{value:.2f}"
