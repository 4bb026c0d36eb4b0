"""How the tables of commands show a figure."""


def cell(value: float | None) -> str:
    """Two decimals, or a dash where there is no figure."""
    return "-" if value is None else f"{value:.2f}"
