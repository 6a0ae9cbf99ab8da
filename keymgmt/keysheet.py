"""A custodian's part on paper: as text, as a page (SVG) with a QR code, or as the QR code alone (PDF).

The library ``segno`` makes the codes; it sets no text in a PDF, so whoever prints one writes on it by hand what the
program says beside. The first line of the text, and the code, are what the custodian enters again.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from xml.sax.saxutils import escape

import segno

from keymgmt.ceremony import Scheme, Slip

A4 = "210mm", "297mm"
_LINE_MM, _LEFT_MM, _CHARS = 6, 20, 60


def lines(slip: Slip) -> list[str]:
    """The sheet as text: what to enter first, then what it is."""
    terms, own = slip.ceremony.terms, slip.custodian
    ref = terms.ref
    what = "Component" if terms.scheme is Scheme.COMPONENTS else "Share"
    enough = "all are needed" if terms.needed == terms.total else f"{terms.needed} make the key"
    return [
        slip.text,
        "",
        f"SECRET. {what} {own.number} of {terms.total} ({enough}) of key {ref}, {terms.algorithm.name}.",
        f"Custodian {own.operator}. Ceremony set {slip.ceremony.set}. Check value {own.check.hex().upper()}.",
        f"Enter the first line: onecard key ceremony add-component {ref.purpose.name.lower()} {ref.version}",
        "Show it to nobody. Keep it sealed, or destroy it, as your rules say; a file of it is to be destroyed at once.",
    ]


def as_text(slip: Slip) -> bytes:
    """The sheet as UTF-8."""
    return "".join(f"{line}\n" for line in lines(slip)).encode()


def as_svg(slip: Slip) -> bytes:
    """A page of A4: the text, broken into lines, and the QR code below it."""
    rows = [row for line in lines(slip) for row in _broken(line)]
    text = "".join(
        f'<text x="{_LEFT_MM}" y="{_LEFT_MM + _LINE_MM * at}">{escape(row)}</text>\n' for at, row in enumerate(rows)
    )
    code = _code(slip).svg_inline(scale=2)
    below = _LEFT_MM + _LINE_MM * len(rows)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{A4[0]}" height="{A4[1]}" viewBox="0 0 210 297">\n'
        f'<g font-family="monospace" font-size="4">\n{text}</g>\n'
        f'<g transform="translate({_LEFT_MM} {below})">{code}</g>\n</svg>\n'
    ).encode()


def as_pdf(slip: Slip) -> bytes:
    """The QR code alone."""
    out = io.BytesIO()
    _code(slip).save(out, kind="pdf", scale=6)
    return out.getvalue()


FORMS: dict[str, Callable[[Slip], bytes]] = {".svg": as_svg, ".pdf": as_pdf}
"""By the ending of the file's name; any other is text."""


def _code(slip: Slip) -> segno.QRCode:
    return segno.make(slip.text, error="m", micro=False)


def _broken(line: str) -> list[str]:
    rows = [""]
    for word in line.split(" "):
        if len(rows[-1]) + len(word) >= _CHARS:
            rows.append("")
        rows[-1] = f"{rows[-1]} {word}".lstrip()
    return rows
