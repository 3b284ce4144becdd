#!/usr/bin/env python3
"""Draws a result of data_plane.py as an SVG: plot.py RESULT.json OUT.svg. Bars are the processor
seconds of each program as a multiple of Leeward's, medians of the rounds; needs no library."""
import html, json, statistics, sys

WIDTH, LEFT, LINE = 760, 300, 24


def bars(result):
    for case, ours in (("initial", "leeward 1"), ("resync", "leeward"), ("incremental", "leeward --changes"),
                       ("restore", "leeward")):
        rows = result["rows"].get(case, {})
        if ours not in rows:
            continue
        cpu = {who: statistics.median(one["cpu"] for one in many) for who, many in rows.items()}
        yield case, [(who, seconds / cpu[ours]) for who, seconds in cpu.items()]


def draw(result):
    groups = list(bars(result))
    widest = max((value for _, rows in groups for _, value in rows), default=1)
    y, parts = 40, []
    text = lambda x, y, words, more="": parts.append(
        '<text x="%d" y="%d" %s>%s</text>' % (x, y, more, html.escape(words)))
    text(12, 24, "Processor seconds, as multiples of Leeward's (%g GiB disk, %d rounds)" % (
        result["gib"], result["rounds"]), 'font-weight="bold"')
    for case, rows in groups:
        y += LINE
        text(12, y, case, 'font-weight="bold"')
        for who, value in rows:
            y += LINE
            length = max(2, value / widest * (WIDTH - LEFT - 70))
            colour = "#2b6cb0" if who.startswith("leeward") else "#a0aec0"
            text(24, y, who)
            parts.append('<rect x="%d" y="%d" width="%.1f" height="16" fill="%s"/>' % (LEFT, y - 13, length, colour))
            text(int(LEFT + length + 6), y, "%.2f" % value)
    return ('<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" '
            'font-size="13">\n<rect width="100%%" height="100%%" fill="white"/>\n%s\n</svg>\n' % (
                WIDTH, y + 20, "\n".join(parts)))


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        drawn = draw(json.load(file))
    with open(sys.argv[2], "w") as out:
        out.write(drawn)
