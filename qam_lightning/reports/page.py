"""A page of text, tables and figures, written once and rendered as HTML and as Markdown."""

import re
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

GENERATOR = '<meta name="generator" content="qam_lightning report">'
"""A line of every HTML page, by which a later report knows an earlier one."""


class Table(NamedTuple):
    """A table; the first column holds names, the others numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Figure(NamedTuple):
    """A picture ``name``.png, with ``name``.pdf beside it; its width is in inches."""

    name: str
    caption: str
    width: float


class Bullets(NamedTuple):
    """A list of lines."""

    lines: Sequence[str]


class Link(NamedTuple):
    """A file beside the page, and what it holds."""

    name: str
    text: str


Block = str | Table | Figure | Bullets | Link


class Section(NamedTuple):
    """A heading and what follows it; a text is a paragraph."""

    title: str
    blocks: Sequence[Block]


# On a phone, wide tables and figures scroll by themselves. In print, tables break between rows.
_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
  max-width: 70rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; border-bottom: 1px solid #ddd; }
p, li { max-width: 48rem; }
h1, h2, p, li, figcaption { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid #e4e4e4; }
th { border-bottom: 2px solid #888; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
small { color: #595959; }
figure { margin: 1.5rem 0; }
img { max-width: 100%; height: auto; }
figcaption { font-size: .9rem; color: #444; max-width: 48rem; }
@media (max-width: 40rem) {
  figure { overflow-x: auto; }
  figure img { max-width: none; }
  figcaption { position: sticky; left: 0; }
}
@media print {
  body { font-size: 10pt; max-width: none; padding: 0; }
  .scroll { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { padding: .15rem .3rem; white-space: normal; }
  th:first-child, td:first-child { position: static; }
  tr, figure { break-inside: avoid; }
  h2 { break-after: avoid; }
}
"""


def html(title: str, sections: Sequence[Section]) -> str:
    """Return a page that needs nothing but the figures beside it."""
    body = [f"<h1>{escape(title)}</h1>"]
    for section in sections:
        body.append(f"<h2>{escape(section.title)}</h2>")
        for block in section.blocks:
            body += _html(block)
    head = [
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        GENERATOR,
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style>",
    ]
    parts = ["<!DOCTYPE html>", '<html lang="en">', "<head>", *head, "</head>", "<body>"]
    return "\n".join([*parts, *body, "</body>", "</html>", ""])


def _html(block: Block) -> Iterator[str]:
    if isinstance(block, str):
        yield f"<p>{escape(block)}</p>"
    elif isinstance(block, Bullets):
        yield "<ul>"
        yield from (f"<li>{escape(line)}</li>" for line in block.lines)
        yield "</ul>"
    elif isinstance(block, Link):
        name = escape(block.name)
        yield f'<p><a href="{name}">{name}</a>: {escape(block.text)}</p>'
    elif isinstance(block, Figure):
        name, caption = escape(block.name), escape(block.caption)
        size = f'width="{96 * block.width:.0f}"'  # CSS has 96 pixels an inch
        yield "<figure>"
        yield f'<a href="{name}.pdf"><img src="{name}.png" alt="{caption}" {size}></a>'
        yield f"<figcaption>{caption}</figcaption></figure>"
    else:
        yield '<div class="scroll"><table>'
        yield f"<thead><tr>{''.join(f'<th>{escape(x)}</th>' for x in block.header)}</tr></thead>"
        yield "<tbody>"
        for row in block.rows:
            first, *others = map(escape, row)
            numbers = "".join(f"<td>{_faint(cell)}</td>" for cell in others)
            yield f"<tr><td>{first}</td>{numbers}</tr>"
        yield "</tbody></table></div>"


def _faint(cell: str) -> str:
    """Set what stands in brackets, an interval, smaller."""
    return re.sub(r"\(.*\)", lambda found: f"<small>{found[0]}</small>", cell)


def markdown(title: str, sections: Sequence[Section]) -> str:
    """Return the same page as Markdown."""
    parts = [f"# {_plain(title)}"]
    for section in sections:
        parts.append(f"## {_plain(section.title)}")
        parts += [_markdown(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, str):
        return _plain(block)
    if isinstance(block, Bullets):
        return "\n".join(f"- {_plain(line)}" for line in block.lines)
    if isinstance(block, Link):
        return f"[{_plain(block.name)}]({block.name}): {_plain(block.text)}"
    if isinstance(block, Figure):
        picture = f"[![{_plain(block.caption)}]({block.name}.png)]({block.name}.pdf)"
        return f"{picture}\n\n{_plain(block.caption)}"
    lines = [block.header, ["---", *["---:"] * (len(block.header) - 1)]]
    rows = [" | ".join(map(_plain, row)) for row in [lines[0], *block.rows]]
    rows.insert(1, " | ".join(lines[1]))
    return "\n".join(f"| {row} |" for row in rows)


def _plain(text: str) -> str:
    """Escape what Markdown would take for markup, on one line."""
    return re.sub(r"([\\`*<>|\[\]]|(?<!\w)_|_(?!\w)|^[#+-](?=\s))", r"\\\1", " ".join(text.split()))
