"""One HTML file that needs nothing but itself: no network, no scripts, no fonts.

A content security policy holds it to that, whatever a sample may contain. Every name and text given
here is escaped here; contents are HTML already, made by the functions of this package.
"""

import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from abyssal.errors import DataError
from abyssal.report.notation import escape
from abyssal.report.theme import CSS


class Section(NamedTuple):
    """A part of a page; one without content is left out."""

    anchor: str
    name: str
    content: str


def document(title: str, lede: str, sections: Iterable[Section], css: str = "") -> str:
    """The whole page: a heading, a sentence about it, links to the sections, the sections.

    `css` is added to the theme, for what is on this page alone.
    """
    body, links = "", []
    for anchor, name, inside in sections:
        if inside:
            links.append(f'<a href="#{anchor}">{escape(name)}</a>')
            body += f'<section id="{anchor}"><h2>{escape(name)}</h2>{inside}</section>'
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{CSS}{css}</style></head><body>"
        f"<header><h1>{escape(title)}</h1><p class=lede>{escape(lede)}</p></header>"
        f"<nav aria-label=sections>{''.join(links)}</nav><main>{body}</main></body></html>\n"
    )


def figures(values: Sequence[tuple[str, str, str]]) -> str:
    """(name, value, remark) of each as a card; nothing of none."""
    cards = "".join(
        f"<div><dt>{escape(name)}</dt><dd class=value>{escape(value)}</dd>"
        f"<dd class=remark>{escape(remark)}</dd></div>"
        for name, value, remark in values
    )
    return f'<dl class="figures">{cards}</dl>' if cards else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """Rows of text under a heading, the last `numbers` columns set as numbers; nothing of none."""
    first = len(head) - numbers

    def line(cells: Sequence[str], tag: str) -> str:
        classes = ["" if i < first else " class=num" for i in range(len(cells))]
        inside = (
            f"<{tag}{kind}>{escape(cell)}</{tag}>"
            for cell, kind in zip(cells, classes, strict=True)
        )
        return f"<tr>{''.join(inside)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return (
        f'<div class="scroll"><table><thead>{line(head, "th")}</thead><tbody>{body}</tbody>'
        "</table></div>"
        if body
        else ""
    )


def write(path: str | Path, page: str) -> None:
    """Write a page as one file that is either whole or not there.

    Raises:
        DataError: the file cannot be written.
    """
    target = Path(path)
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(page, encoding="utf-8", newline="\n")
        os.replace(draft, target)
    except OSError as error:
        raise DataError(f"the report cannot be written to {path}: {error}") from error
    finally:
        if draft.is_file():
            draft.unlink()
