"""One claim: what was published, what we find, and how far apart the two may be."""

from dataclasses import dataclass

Value = float | str | bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A published value beside ours; `ok` is None where nothing is built that could be checked."""

    claim: str
    published: Value
    ours: Value | None
    ok: bool | None
    note: str = ""

    def cells(self) -> tuple[str, str, str, str, str]:
        """As the table shows it."""
        verdict = {True: "yes", False: "NO", None: "not built"}[self.ok]
        ours = "" if self.ours is None else _text(self.ours)
        note = f" ({self.note})" if self.note else ""
        return self.claim + note, _text(self.published), ours, self.difference, verdict

    @property
    def difference(self) -> str:
        """Ours less the published value, in percent of the latter where that is not exact."""
        if isinstance(self.published, str | bool) or isinstance(self.ours, str | bool | None):
            return ""
        apart = self.ours - self.published
        if not apart:
            return "0"
        return f"{100 * apart / self.published:+.3g}%" if self.published else f"{apart:+.3g}"

    def to_dict(self) -> dict[str, object]:
        """As JSON has it."""
        return {
            "claim": self.claim, "published": self.published, "ours": self.ours, "ok": self.ok,
            "difference": self.difference, "note": self.note,
        }  # fmt: skip


def exact(claim: str, published: Value, ours: Value, note: str = "") -> Row:
    """Equal to the last digit."""
    return Row(claim=claim, published=published, ours=ours, ok=published == ours, note=note)


def near(claim: str, published: float, ours: float, within: float, note: str = "") -> Row:
    """Apart by at most that share of the published value."""
    ok = abs(ours - published) <= within * abs(published)
    return Row(claim=claim, published=published, ours=ours, ok=ok, note=note)


def holds(claim: str, ours: bool, note: str = "") -> Row:
    """A law."""
    return Row(claim=claim, published="holds", ours="holds" if ours else "does not", ok=ours,
               note=note)  # fmt: skip


def absent(claim: str, published: Value, note: str = "") -> Row:
    """Nothing to check it with yet."""
    return Row(claim=claim, published=published, ours=None, ok=None, note=note)


def _text(value: Value) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.7g}"
