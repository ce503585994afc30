"""Numbers for people."""


def short(count: float) -> str:
    """Three significant digits and a decimal prefix: 93.9 k, 11.2 M."""
    power = 0
    while count >= 999.5 and power < 3:
        count, power = count / 1000, power + 1
    return f"{count:.3g} {' kMG'[power]}".rstrip()
