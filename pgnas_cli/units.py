"""Numbers as people read them."""


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def duration(nanoseconds: float) -> str:
    return f"{nanoseconds / 1e6:.3g} ms"


def large(number: float) -> str:
    """Three or four digits with K, M or G."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if number >= limit:
            return f"{number / limit:.4g} {unit}"
    return f"{number:.4g}"
