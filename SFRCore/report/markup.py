"""The look of the report and the small pieces of HTML it is built from."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { --ink:#1f2b37; --soft:#5c6b7a; --line:#dde3e8; --back:#f4f6f8; --blue:#1f6f8b;
  --low:#b3382a; --middle:#a86a00; --high:#3d7a45; }
* { box-sizing:border-box; }
body { margin:0; background:var(--back); color:var(--ink);
  font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif; }
main { max-width:1120px; margin:0 auto; padding:24px 16px 48px; }
h1 { font-size:1.75rem; line-height:1.25; margin:0 0 4px; }
h2 { font-size:1.25rem; margin:40px 0 8px; }
h3 { font-size:1.05rem; margin:0; overflow-wrap:anywhere; }
p { margin:6px 0; max-width:90ch; }
a { color:var(--blue); }
.soft, figcaption, footer { color:var(--soft); font-size:.9rem; }
.lead { font-size:1.15rem; margin:12px 0 18px; }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(150px,1fr)); gap:12px; margin:18px 0; }
.tile, .box, .card { background:#fff; border:1px solid var(--line); border-radius:10px; }
.tile { padding:12px 16px; } .tile b { display:block; font-size:1.7rem; line-height:1.2; }
.box { padding:14px 18px; margin:10px 0; }
.first { border-left:5px solid var(--low); }
.first ol { margin:8px 0 2px; padding-left:1.4em; } .first li { margin:5px 0; }
.steps { list-style:none; margin:0; padding:0; counter-reset:step; }
.steps li { position:relative; padding:2px 0 12px 44px; counter-increment:step; }
.steps li::before { content:counter(step); position:absolute; left:0; top:3px; width:28px; height:28px;
  border-radius:50%; background:var(--blue); color:#fff; text-align:center; line-height:28px;
  font-weight:600; }
.grid { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr)); gap:14px; }
.grid .box { margin:0; } .box img { display:block; width:100%; height:auto; }
.cards { display:grid; grid-template-columns:repeat(auto-fill,minmax(min(100%,460px),1fr)); gap:16px; }
.small { grid-template-columns:repeat(auto-fill,minmax(min(100%,250px),1fr)); }
.card { padding:14px 16px; scroll-margin-top:56px; }
.head { display:flex; flex-wrap:wrap; gap:6px 10px; align-items:baseline; justify-content:space-between; }
figure { margin:0; }
.pictures { display:flex; gap:8px; margin:10px 0 6px; align-items:flex-start; }
.pictures img { display:block; min-width:0; height:auto; max-width:100%; border-radius:4px; }
.chip { display:inline-block; font-size:.8rem; padding:1px 9px; border-radius:999px; background:#e8eef2;
  color:#33414f; margin-right:4px; white-space:nowrap; }
.swatch { display:inline-block; width:.8em; height:.8em; border-radius:3px; margin-right:.45em;
  vertical-align:-.05em; border:1px solid #0003; }
.legend { position:sticky; top:0; z-index:1; background:var(--back); padding:8px 0; display:flex;
  flex-wrap:wrap; gap:4px 18px; font-size:.92rem; border-bottom:1px solid var(--line); margin-bottom:12px; }
.dash { display:inline-block; width:1.6em; border-top:2px dashed #8a97a3; vertical-align:.25em;
  margin-right:.45em; }
.low { color:var(--low); } .middle { color:var(--middle); } .high { color:var(--high); }
.low, .middle, .high { font-weight:600; }
.scroll { overflow-x:auto; }
table { border-collapse:collapse; width:100%; font-size:.92rem; font-variant-numeric:tabular-nums; }
th, td { text-align:left; padding:5px 12px 5px 0; border-bottom:1px solid var(--line); vertical-align:top; }
th { font-weight:600; color:var(--soft); white-space:nowrap; }
td.n, th.n { text-align:right; white-space:nowrap; } td.wrap { overflow-wrap:anywhere; }
details { margin:8px 0; } summary { cursor:pointer; color:var(--blue); }
.warn { border-left:5px solid var(--middle); } .warn ul { margin:6px 0; padding-left:1.2em; }
footer { margin-top:48px; border-top:1px solid var(--line); padding-top:12px; }
@media (max-width:600px) { figure { margin:0; }
.pictures { flex-direction:column; } .pictures img { width:100%; }
  h1 { font-size:1.4rem; } main { padding:16px 12px 32px; } }
@media print { .card, .box { break-inside:avoid; } .legend { position:static; } body { background:#fff; } }
"""


def document(title: str, sections: Iterable[str]) -> str:
    """A whole page that loads nothing from anywhere; ``sections`` are HTML, ``title`` is text."""
    body = "\n".join(section for section in sections if section)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body><main>\n{body}\n</main></body>\n</html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int = 1) -> str:
    """A table that scrolls sideways on a phone; ``rows`` are HTML, columns from ``numbers_from`` on are
    numbers.
    """

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = ((' class="n"' if i >= numbers_from else ' class="wrap"') for i in range(len(cells)))
        return "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    top = f"<thead><tr>{line(head, 'th')}</tr></thead>"
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'


def picture(uri: str, alt: str, *, share: float | None = None) -> str:
    """An image; ``share`` is its part of a row of pictures."""
    style = f' style="flex:{share:.4g} 1 0"' if share else ""
    return f'<img src="{uri}" alt="{escape(alt)}"{style}>'


def swatch(color: tuple[int, int, int]) -> str:
    return f'<span class="swatch" style="background:rgb({color[0]},{color[1]},{color[2]})"></span>'


def fixed(value: float, digits: int = 2) -> str:
    """A number with so many decimals, a dash where there is none."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "&ndash;"


def rated(value: float, *, low: float, high: float) -> str:
    """A Dice between 0 and 1, coloured by whether it is below ``low``, below ``high`` or above."""
    if not math.isfinite(value):
        return fixed(value)
    level = "low" if value < low else "middle" if value < high else "high"
    return f'<span class="{level}">{value:.2f}</span>'


def moment(seconds: float) -> str:
    """An epoch time as local date and time."""
    return time.strftime("%d %b %Y, %H:%M", time.localtime(seconds))


def duration(seconds: float) -> str:
    """A length of time in words."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def count(number: int, what: str, many: str = "") -> str:
    """``1 case``, ``2 cases``."""
    return f"{number} {what if number == 1 else many or what + 's'}"
