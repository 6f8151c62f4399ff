#!/usr/bin/env python3
"""Turns what `tmux capture-pane -e -p` prints (standard input) into an SVG (standard output). Knows the sixteen colours,
bold, dim, underline and reverse: what nvcli uses. The characters stay text; each stands where its cell is."""
import html, re, sys, unicodedata

PALETTE = [
    "#1b1f27", "#ef6f7b", "#8fc98a", "#e3b866", "#6ca9e8", "#c08be0", "#5fc4c9", "#c9d1db",
    "#6b7483", "#ff8a94", "#a9dfa4", "#f3cf86", "#8cc2f7", "#d6a8f2", "#84dde1", "#f2f5f9",
]
BACK, FORE = "#12151b", "#c9d1db"
WIDE, HIGH, EDGE, BAR = 8.4, 18, 18, 34
BARS = "▁▂▃▄▅▆▇█"


def cells(line):
    """The characters of a line with their attributes."""
    style, at = {}, 0
    while at < len(line):
        escape = re.compile(r"\x1b\[([0-9;]*)m").match(line, at)
        if escape:
            codes = iter([int(code or 0) for code in escape[1].split(";")])
            for code in codes:
                if code == 38 and next(codes) == 5:
                    style = {**style, "fore": next(codes)}
                elif code == 0:
                    style = {}
                elif code in (1, 2, 4, 7):
                    style = {**style, code: True}
                elif 30 <= code <= 37 or 90 <= code <= 97:
                    style = {**style, "fore": code - 30 if code < 90 else code - 82}
                elif code == 39:
                    style = {key: value for key, value in style.items() if key != "fore"}
            at = escape.end()
            continue
        if line[at] not in "\x0e\x0f":
            yield line[at], style
        at += 1


def width(character):
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


lines = [list(cells(line)) for line in sys.stdin.read().rstrip("\n").split("\n")]
columns = int(sys.argv[1]) if len(sys.argv) > 1 else max(map(len, lines))
size = (columns * WIDE + 2 * EDGE, len(lines) * HIGH + 2 * EDGE + BAR - EDGE)
out = [
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]:.0f} {size[1]:.0f}" width="{size[0]:.0f}" '
    f'height="{size[1]:.0f}" font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, \'DejaVu Sans Mono\', monospace" '
    f'font-size="14">',
    f'<rect width="100%" height="100%" rx="9" fill="{BACK}"/>',
]
for number, colour in enumerate(("#ef6f7b", "#e3b866", "#8fc98a")):
    out.append(f'<circle cx="{EDGE + 5 + number * 18}" cy="17" r="5.5" fill="{colour}"/>')
for row, line in enumerate(lines):
    top, column, runs = BAR + row * HIGH, 0, []
    for character, style in line:
        if runs and runs[-1][2] == style and (character in BARS) == (runs[-1][1][-1] in BARS):
            runs[-1][1].append(character)
        else:
            runs.append((column, [character], style))
        column += width(character)
    for start, text, style in runs:
        x, text = EDGE + start * WIDE, "".join(text)
        cells_wide = sum(map(width, text))
        fore = PALETTE[style["fore"]] if "fore" in style else FORE
        if style.get(7):
            out.append(f'<rect x="{x:.1f}" y="{top}" width="{cells_wide * WIDE:.1f}" height="{HIGH}" fill="{fore}"/>')
            fore = BACK
        if not text.strip():
            continue
        if text[0] in BARS:
            # Drawn: fonts differ in where their blocks begin and end.
            for offset, character in enumerate(text):
                high = (BARS.index(character) + 1) * (HIGH - 4) / 8
                out.append(
                    f'<rect x="{x + offset * WIDE:.1f}" y="{top + HIGH - 2 - high:.1f}" width="{WIDE - 1:.1f}" '
                    f'height="{high:.1f}" fill="{fore}"/>'
                )
            continue
        marks = (' font-weight="600"' if style.get(1) else "") + (' opacity="0.6"' if style.get(2) else "")
        if style.get(4):
            marks += ' text-decoration="underline"'
        stripped = text.lstrip()
        x += sum(map(width, text[: len(text) - len(stripped)])) * WIDE
        stripped = stripped.rstrip()
        length = sum(map(width, stripped)) * WIDE
        out.append(
            f'<text x="{x:.1f}" y="{top + 13.5:.1f}" fill="{fore}" textLength="{length:.1f}" xml:space="preserve"{marks}>'
            f"{html.escape(stripped)}</text>"
        )
out.append("</svg>")
print("\n".join(out))
