"""The pieces of work that are compared, one object per line of the issue's table of targets.

A work measures either side once (`ours`, `theirs`), says which settings of the peer are tried first
(`stages`), and turns what was measured into lines of the table (`lines`).
"""

import statistics
from dataclasses import dataclass

from . import lines
from .inputs import BATCH, ROW
from .process import Failed

# The window of the loss curves that is compared.
WINDOW = 20


@dataclass
class Bench:
    """What every work needs."""

    ours: object
    theirs: object
    inputs: object
    steps: int
    tune_steps: int
    curve_steps: int


class Work:
    """Defaults: five repeats, no tuning, no loss curve."""

    repeats, unit, peer, memory = None, "", True, None

    def start(self):
        """The setting of the peer that the first stage changes."""
        return {}

    def stages(self):
        """Settings to try: each stage is a list of changes to the best one so far."""
        return []

    def tried(self, bench, setting):
        return self.theirs(bench, setting)

    def quick(self, measured):
        return self.rate(measured)

    def curve(self, bench, setting):
        return None

    def lines(self, raw, all_raw):
        ours, theirs = lines.median(self.rate, raw["ours"]), lines.median(self.rate, raw["theirs"])
        found = [lines.speed(self.title, ours, theirs, self.unit, self.target)]
        if self.memory:
            found.append(lines.memory(self.title, raw["ours"], raw["theirs"], self.memory))
        return found

    def details(self, raw):
        """A table of its own below the main one."""
        return None


class Training(Work):
    """Fine-tuning against TRL and PEFT, on the same rows in the same steps."""

    unit = "rows/s"

    def __init__(self, name, title, target, memory=None, weights=("autocast", "bf16", "f32"),
                 batch=BATCH, plain=False, full=False, precision="auto", curve_limit=0.01):
        self.name, self.title, self.target, self.memory = name, title, target, memory
        self.weights, self.batch, self.plain, self.full = weights, batch, plain, full
        self.precision, self.rate_of, self.curve_limit = precision, 1e-5 if full else 2e-4, curve_limit

    def start(self):
        layout = "padded" if self.plain else "grouped"
        return {"weights": self.weights[0], "layout": layout, "micro": 4, "loss": "trl"}

    def stages(self):
        layouts = ("padded", "packed") if self.plain else ("grouped", "padded", "packed")
        micros = [m for m in (1, 2, 8, 16) if m <= self.batch]
        return [
            [{"weights": w, "layout": layout} for w in self.weights for layout in layouts],
            [{"loss": "logits"}],
            [{"micro": m} for m in micros],
        ]

    def data(self, bench, setting):
        if self.plain:
            return bench.inputs.plain(ROW)
        return bench.inputs.gsm8k("grouped" if setting["layout"] == "grouped" else "shuffled")

    def ours(self, bench, setting, steps=None):
        text, _ = self.data(bench, setting)
        return bench.ours.train(text, steps or bench.steps + 1, batch=self.batch, full=self.full,
                                rate=self.rate_of, precision=self.precision)

    def theirs(self, bench, setting, steps=None):
        layout = "packed" if setting["layout"] == "packed" else "padded"
        words = ["--steps", steps or bench.steps + 1, "--batch", self.batch, "--lr", self.rate_of,
                 "--weights", setting["weights"], "--layout", layout, "--micro", setting["micro"],
                 "--loss", setting["loss"], *(["--full"] if self.full else [])]
        return bench.theirs.with_model("train", self.data(bench, setting)[1], *words)

    def tried(self, bench, setting):
        return self.theirs(bench, setting, bench.tune_steps + 1)

    def quick(self, measured):
        # Other orders have other rows in the first steps: tokens are what compares.
        return sum(measured["step_tokens"][1:]) / sum(measured["step_seconds"][1:])

    def rate(self, measured):
        timed = measured["step_seconds"][1:]
        return measured["rows_per_step"] * len(timed) / sum(timed)

    def curve(self, bench, setting):
        ours = self.ours(bench, setting, bench.curve_steps)
        theirs = self.theirs(bench, setting, bench.curve_steps)
        if ours["step_tokens"] != theirs["step_tokens"]:
            raise Failed("the two sides did not train on the same tokens in each step")
        return {"ours": ours["losses"], "theirs": theirs["losses"], "order": setting["layout"] == "grouped"}

    def lines(self, raw, all_raw):
        found = super().lines(raw, all_raw)
        curve = raw.get("curve")
        if curve:
            found += lines.curves(self.title, curve["ours"], curve["theirs"], WINDOW, self.curve_limit)
            # bf16 swallows small updates in PyTorch; its f32 run on the same rows says who is right.
            exact = all_raw.get("exact", {}).get("curve")
            if self.name == "lora" and exact and exact["order"] == curve["order"]:
                found += lines.curves(f"{self.title}, peer in f32", curve["ours"], exact["theirs"],
                                      WINDOW, self.curve_limit)
        return found


class Products(Work):
    """Matrix products; every shape must be as fast."""

    name, title, unit, target = "gemm", "matrix products", "GFLOP/s", 1.0

    def ours(self, bench, setting):
        return bench.ours.gemm()

    def theirs(self, bench, setting):
        return bench.theirs.measure("gemm")

    @staticmethod
    def rates(runs):
        """The median over runs, by shape."""
        found = {}
        for run in runs:
            for p in run["products"]:
                key = (p["precision"], p["op"], p["m"], p["n"], p["k"])
                found.setdefault(key, []).append(p["gflops"])
        return {key: statistics.median(rates) for key, rates in found.items()}

    def lines(self, raw, all_raw):
        ours, theirs = self.rates(raw["ours"]), self.rates(raw["theirs"])
        found = []
        for precision in ("f32", "bf16"):
            keys = [key for key in theirs if key[0] == precision and key in ours]
            if not keys:
                found.append(lines.speed(f"matrix products, {precision}", None, None, self.unit, self.target))
                continue
            ratios = {key: ours[key] / theirs[key] for key in keys}
            worst = min(ratios, key=ratios.get)
            mean = statistics.geometric_mean
            found.append(lines.Line(
                f"matrix products, {precision}, mean of {len(keys)}",
                f"{mean([ours[k] for k in keys]):.0f} GFLOP/s", f"{mean([theirs[k] for k in keys]):.0f} GFLOP/s",
                f"{mean(ratios.values()):.2f} × (worst {ratios[worst]:.2f} ×: {shape(worst)})",
                "≥ 1.0 ×", ratios[worst] >= 1.0,
            ))
        return found

    def details(self, raw):
        ours, theirs = self.rates(raw["ours"]), self.rates(raw["theirs"])
        rows = [["product", "luthier", "peer", "ratio"]]
        for key, rate in theirs.items():
            mine = ours.get(key)
            ratio = "–" if mine is None else f"{mine / rate:.2f} ×"
            rows.append([f"{key[0]} {shape(key)}", "–" if mine is None else f"{mine:.0f}", f"{rate:.0f}", ratio])
        return "Matrix products, GFLOP/s (rows × out × in of the layer):\n\n" + lines.markdown(rows)


def shape(key):
    _, op, m, n, k = key
    return f"{op} {m}×{n}×{k}"
