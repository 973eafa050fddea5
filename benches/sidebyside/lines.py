"""Lines of the table: what was measured, its ratio, the target, and whether it is met."""

import statistics
from dataclasses import dataclass


@dataclass
class Line:
    work: str
    ours: str
    theirs: str
    ratio: str
    target: str
    met: bool | None

    def cells(self):
        met = "–" if self.met is None else "yes" if self.met else "**no**"
        return [self.work, self.ours, self.theirs, self.ratio, self.target, met]


HEAD = ["work", "luthier", "peer", "ratio", "target", "met?"]


def markdown(rows):
    head, *body = rows
    cells = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells) + "\n"


def median(rate, runs):
    return statistics.median(map(rate, runs)) if runs else None


def number(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def gib(size):
    return f"{size / 2**30:.2f} GiB"


def speed(work, ours, theirs, unit, target):
    ratio = ours / theirs if ours and theirs else None
    return Line(
        work, f"{number(ours)} {unit}" if ours else "–", f"{number(theirs)} {unit}" if theirs else "–",
        f"{ratio:.2f} ×" if ratio else "–", f"≥ {target:.1f} ×", ratio >= target if ratio else None,
    )


def memory(work, ours, theirs, share):
    """Peak memory; `share` is the part of the peer's that is allowed."""
    if not ours or not theirs:
        return Line(f"{work}: peak memory", "–", "–", "–", f"≤ 1/{1 / share:.0f}", None)
    a, b = (statistics.median(run["peak_rss"] for run in runs) for runs in (ours, theirs))
    return Line(f"{work}: peak memory", gib(a), gib(b), f"1/{b / a:.1f}", f"≤ 1/{1 / share:.0f}", a <= b * share)


def curves(work, ours, theirs, window, limit):
    """Mean losses of the first and the last `window` steps of both curves."""
    count = min(len(ours), len(theirs))
    if count < window:
        return [Line(f"{work}: loss", "–", "–", f"only {count} steps", f"≤ {limit:.0%}", None)]
    ours, theirs = ours[:count], theirs[:count]
    parts = [("first", ours[:window], theirs[:window]), ("last", ours[-window:], theirs[-window:])]
    found = []
    for which, mine, other in parts[:1 if count == window else 2]:
        a, b = statistics.fmean(mine), statistics.fmean(other)
        apart = abs(a - b) / b
        found.append(Line(f"{work}: mean loss, {which} {window} of {count} steps", f"{a:.4f}", f"{b:.4f}",
                          f"{apart:.2%} apart", f"≤ {limit:.0%}", apart <= limit))
    return found
