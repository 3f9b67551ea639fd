"""How the report writes things: numbers a person can read at a glance, and text that stays text."""

import html
import math


def escape(text: str) -> str:
    """Text as HTML that shows it and does nothing else.

    Control characters and lone surrogates, which no page may hold, become U+FFFD.
    """
    shown = "".join("\ufffd" if _is_forbidden(character) else character for character in text)
    return html.escape(shown, quote=True)


def _is_forbidden(character: str) -> bool:
    code = ord(character)
    if character in "\n\t":
        return False
    return code < 0x20 or 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000 or code & 0xFFFE == 0xFFFE


def number(value: float) -> str:
    """Three digits and a letter: 950, 16.4k, 12.3M, 1.5B, 14.8T."""
    if not math.isfinite(value):
        return plain(value)
    for limit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit * 0.9995:
            return f"{_three_digits(value / limit)}{letter}"
    return _three_digits(value)


def plain(value: float) -> str:
    """Three significant digits, and an exponent where zeros would be counted: 0.0123, 2.2e-5."""
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "not a number")
    if value and not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return _three_digits(value)


def two_decimals(value: float) -> str:
    """2.41: losses, where a hundredth is what counts."""
    return f"{value:.2f}" if math.isfinite(value) else plain(value)


def percent(value: float) -> str:
    """A part of one as 43.2%."""
    return f"{_three_digits(100 * value)}%"


def duration(seconds: float) -> str:
    """The two largest units: 48 s, 31 min 12 s, 2 h 5 min, 3 d 4 h."""
    rest, parts = round(seconds), []
    for name, size_s in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, size_s)
        if count:
            parts.append(f"{count:,} {name}")
    return " ".join(parts[:2]) or "0 s"


def gigabytes(count: int) -> str:
    """Bytes in decimal gigabytes, or megabytes below one."""
    return f"{_three_digits(count / 1e9)} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _three_digits(value: float) -> str:
    """At least the whole part, at most three significant digits, no trailing zeros."""
    decimals = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    text = f"{value:.{min(decimals, 12)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
