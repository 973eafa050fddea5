"""The rest of the work: scoring, generation, long rows, and growth with the batch."""

import statistics

from . import lines
from .work import Work


class Scoring(Work):
    """NLL of 200 rows."""

    name, title, unit, target = "score", "scoring, NLL of 200 rows", "rows/s", 3.0

    def start(self):
        return {"weights": "bf16", "batch": 8, "head": "needed"}

    def stages(self):
        weights = [{"weights": w} for w in ("bf16", "autocast", "f32")]
        return [weights, [{"head": "all"}], [{"batch": b} for b in (1, 4, 16, 32)]]

    def ours(self, bench, setting):
        return bench.ours.score(bench.inputs.held_out()[0], 200)

    def theirs(self, bench, setting):
        words = [word for key, value in setting.items() for word in (f"--{key}", value)]
        return bench.theirs.with_model("score", bench.inputs.held_out()[1], *words)

    def rate(self, measured):
        return measured["rows"] / measured["seconds"]

    def lines(self, raw, all_raw):
        found = super().lines(raw, all_raw)
        if raw["ours"] and raw["theirs"]:
            a, b = raw["ours"][-1], raw["theirs"][-1]
            apart, same = abs(a["nll"] - b["nll"]) / b["nll"], a["tokens"] == b["tokens"]
            found.append(lines.Line(
                f"{self.title}: value", f"{a['nll']:.4f} of {a['tokens']} tokens",
                f"{b['nll']:.4f} of {b['tokens']} tokens", f"{apart:.2%} apart", "≤ 1%", same and apart <= 0.01,
            ))
        return found


class Sampling(Work):
    """32 prompts at once, 128 new tokens each, whatever the model would rather do."""

    name, title, unit, target = "sample", "batched sampling, 32 × 128 tokens", "tokens/s", 5.0
    prompts, new = 32, 128

    def start(self):
        return {"weights": "bf16", "cache": "dynamic"}

    def stages(self):
        pairs = [(w, c) for w in ("bf16", "f32", "autocast") for c in ("dynamic", "static")]
        return [[{"weights": w, "cache": c} for w, c in pairs]]

    def ours(self, bench, setting):
        text, _ = bench.inputs.prompts(self.prompts)
        return bench.ours.generate(self.new, "--prompts", text, temperature=1.0)

    def theirs(self, bench, setting):
        words = ["--new", self.new, "--weights", setting["weights"], "--cache", setting["cache"]]
        return bench.theirs.with_model("generate", bench.inputs.prompts(self.prompts)[1], *words)

    def rate(self, measured):
        return measured["tokens"] / measured["seconds"]


class Decoding(Work):
    """One greedy answer of 256 tokens, from the same GGUF file."""

    name, title, unit, target = "decode", "single-stream greedy decode, 256 tokens", "tokens/s", 1.0
    new, prompt = 256, "Write a long story about the keeper of a lighthouse and a storm that lasts for a week."

    def ours(self, bench, setting):
        return bench.ours.generate(self.new, "--prompt", self.prompt)

    def theirs(self, bench, setting):
        rows = bench.inputs.pair("story", lambda: [{"question": self.prompt, "answer": "-"}])[1]
        words = ["--gguf", bench.ours.gguf(), "--rows", rows, "--new", self.new]
        return bench.theirs.measure("decode", *words)

    def rate(self, measured):
        # The first token stands for the prompt.
        return (measured["tokens"] - 1) / (measured["seconds"] - measured["first_token_seconds"])

    def lines(self, raw, all_raw):
        found = super().lines(raw, all_raw)
        if raw["ours"] and raw["theirs"]:
            pairs = list(zip(raw["ours"][-1]["ids"], raw["theirs"][-1]["ids"]))
            same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
            parted = f"{self.title}: tokens until they part"
            found.append(lines.Line(parted, str(same), f"of {len(pairs)}", "–", "–", None))
        return found


class LongRow(Work):
    """LoRA on one row as long as the model's context."""

    name, title, unit, repeats, length = "long", "one row of 8,192 tokens, LoRA", "tokens/s", 3, 8192
    limit = 4 * 2**30

    def start(self):
        return {"weights": "bf16", "recompute": True}

    def stages(self):
        weights = ("bf16", "autocast")
        return [[{"weights": w, "recompute": r} for r in (True, False) for w in weights]]

    def ours(self, bench, setting):
        return bench.ours.train(bench.inputs.plain(self.length)[0], 2, batch=1, max_length=self.length)

    def theirs(self, bench, setting):
        words = ["--steps", 2, "--batch", 1, "--weights", setting["weights"]]
        words += ["--recompute"] if setting["recompute"] else []
        return bench.theirs.with_model("train", bench.inputs.plain(self.length)[1], *words)

    def rate(self, measured):
        return sum(measured["step_tokens"][1:]) / sum(measured["step_seconds"][1:])

    def lines(self, raw, all_raw):
        ours, theirs = lines.median(self.rate, raw["ours"]), lines.median(self.rate, raw["theirs"])
        line = lines.speed(self.title, ours, theirs, self.unit, 0.0)
        line.target, line.met = "–", None
        found = [line]
        if raw["ours"]:
            held = [max(run["peak_rss"] for run in raw[side]) if raw[side] else None for side in ("ours", "theirs")]
            found.append(lines.Line(
                f"{self.title}: peak memory", lines.gib(held[0]), lines.gib(held[1]) if held[1] else "does not fit",
                f"1/{held[1] / held[0]:.1f}" if held[1] else "–", "≤ 4 GiB", held[0] <= self.limit,
            ))
        return found


class Growth(Work):
    """Speed and memory of LoRA over the tokens of a step; luthier alone."""

    name, title, peer, repeats = "growth", "growth, 1k to 16k tokens a step", False, 1
    sizes = (1024, 2048, 4096, 8192, 16384)

    def ours(self, bench, setting):
        text, _ = bench.inputs.gsm8k("shuffled")
        found = []
        for size in self.sizes:
            # At least as much work for small steps as for large ones, or noise decides.
            steps = 1 + max(3, self.sizes[-1] // size)
            run = bench.ours.train(text, steps, batch_tokens=size)
            seconds, tokens = run["step_seconds"][1:], run["step_tokens"][1:]
            found.append({"batch_tokens": size, "tokens_per_second": sum(tokens) / sum(seconds),
                          "largest_step": max(run["step_tokens"]), "peak_rss": run["peak_rss"]})
        return {"sizes": found}

    def points(self, raw):
        """Medians over repeats: (batch_tokens, tokens/s, tokens of the largest step, bytes)."""
        runs = list(zip(*(run["sizes"] for run in raw["ours"])))
        pick = lambda group, key: statistics.median(point[key] for point in group)
        return [(g[0]["batch_tokens"], pick(g, "tokens_per_second"), pick(g, "largest_step"), pick(g, "peak_rss"))
                for g in runs]

    def lines(self, raw, all_raw):
        points = self.points(raw)
        if not points:
            return []
        rates = [p[1] for p in points]
        middle = statistics.median(rates)
        apart = max(abs(rate - middle) / middle for rate in rates)
        slope, start, fit = line_through([p[2] for p in points], [p[3] for p in points])
        return [
            lines.Line(f"{self.title}: speed", f"{min(rates):.0f} to {max(rates):.0f} tokens/s", "–",
                       f"±{apart:.0%}", "±10 %", apart <= 0.10),
            lines.Line(f"{self.title}: peak memory", f"{start / 2**20:.0f} MiB + {slope / 1024:.1f} KiB per token",
                       "–", f"R² {fit:.4f}", "affine", fit >= 0.99),
        ]

    def details(self, raw):
        rows = [["batch_tokens", "tokens/s", "largest step", "peak memory"]]
        for size, rate, tokens, held in self.points(raw):
            rows.append([str(size), f"{rate:.0f}", f"{tokens:.0f}", lines.gib(held)])
        return "Growth with the tokens of a step:\n\n" + lines.markdown(rows)


def line_through(xs, ys):
    """Least squares: slope, value at 0, share of the variance explained."""
    slope, start = statistics.linear_regression(xs, ys)
    middle = statistics.fmean(ys)
    left = sum((y - start - slope * x) ** 2 for x, y in zip(xs, ys))
    spread = sum((y - middle) ** 2 for y in ys)
    return slope, start, 1 - left / spread if spread else 1.0
