"""luthier's side: every measurement through its command line, as a user runs it."""

import json
import os
import shutil
import tempfile
from pathlib import Path

from . import process

MODEL = "smollm2-135m-instruct"

RECIPE = """\
[models]
policy = "{model}"
precision = "{precision}"

[data]
train = "{data}"
max_length = {max_length}

[train]
max_steps = {steps}
shuffle = false
{size}

{params}

[train.loss.nll]

[train.update]
max_grad_norm = 1.0

[train.update.adamw]
learning_rate = {rate}
weight_decay = 0.0

[train.update.schedule.constant]
"""

LORA = """\
[train.params.lora]
r = 16
alpha = 32
dropout = 0.0
"""


class Luthier:
    """A built binary. `settings` are key=value overrides for every training run."""

    def __init__(self, root, work, threads, settings=()):
        self.root, self.work = Path(root), Path(work)
        # Relative to the root, as cargo takes it when it is called there.
        target = self.root / os.environ.get("CARGO_TARGET_DIR", "target")
        self.binary = target / "release" / "luthier"
        self.settings, self.env = list(settings), {"RAYON_NUM_THREADS": str(threads)}

    def build(self):
        process.run(["cargo", "build", "--release", "--workspace", "--all-targets"], cwd=self.root)

    def call(self, *words):
        return process.run([self.binary, *words], env=self.env)

    def version(self):
        return self.call("--version").out.strip()

    def gguf(self):
        return json.loads(self.call("pull", MODEL, "--json").out)["path"]

    def show(self, path):
        """The rows of a file as luthier renders them."""
        with open(path) as lines:
            count = sum(1 for _ in lines)
        done = self.call("show", "-m", MODEL, "-d", path, "-n", count, "--json", "overlength=split")
        return json.loads(done.out)["rows"]

    def train(self, data, steps, batch=None, batch_tokens=None, full=False, rate=2e-4,
              precision="auto", max_length=1024):
        """Losses and times of `steps` optimizer steps over the file in its order."""
        # Without `micro_tokens`, a large step is cut into passes and its memory stops growing.
        tokens = f"batch_tokens = {batch_tokens}\nmicro_tokens = {batch_tokens}"
        size = f"batch_size = {batch}" if batch else tokens
        recipe = self.work / "recipe.toml"
        recipe.write_text(RECIPE.format(
            model=MODEL, data=data, max_length=max_length, steps=steps, precision=precision,
            size=size, rate=rate, params="[train.params.full]" if full else LORA,
        ))
        folder = Path(tempfile.mkdtemp(prefix="run-", dir=self.work))
        try:
            done = self.call("train", recipe, "--out", folder / "out", "--json", *self.settings)
            with open(folder / "out" / "metrics.jsonl") as lines:
                log = [entry for entry in map(json.loads, lines) if "loss" in entry]
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if len(log) != steps:
            raise process.Failed(f"{data}: {steps} steps asked for, {len(log)} in metrics.jsonl")
        ends = [0.0] + [entry["seconds"] for entry in log]
        tokens = [0] + [entry["tokens"] for entry in log]
        return {
            "losses": [entry["loss"] for entry in log],
            "step_seconds": [b - a for a, b in zip(ends, ends[1:])],
            "step_tokens": [b - a for a, b in zip(tokens, tokens[1:])],
            "rows_per_step": batch, "peak_rss": done.peak_rss, "wall_seconds": done.seconds,
        }

    def score(self, data, rows):
        """NLL of a file; the time is without loading."""
        done = self.call("eval", "-m", MODEL, "-d", data, "--metric", "nll", "--json")
        told = json.loads(done.out)
        keys = ("seconds", "nll", "tokens")
        return {**{key: told[key] for key in keys}, "rows": rows, "peak_rss": done.peak_rss}

    def generate(self, new, *words, temperature=0.0):
        """Answers of exactly `new` tokens; times count from the prompts, without loading."""
        words = ["generate", "-m", MODEL, "--json", "--temperature", temperature, *words]
        done = self.call(*words, "--min-new-tokens", new, "--max-new-tokens", new)
        answers = json.loads(done.out)
        made = [len(answer["tokens"]) for answer in answers]
        if set(made) != {new}:
            raise process.Failed(f"answers of {min(made)} to {max(made)} tokens, {new} asked for")
        return {
            "seconds": max(answer["seconds"] for answer in answers), "tokens": sum(made),
            "first_token_seconds": max(answer["first_token_seconds"] for answer in answers),
            "ids": answers[0]["tokens"], "peak_rss": done.peak_rss,
        }

    def gemm(self):
        """The lines of the matrix product bench."""
        command = ["cargo", "bench", "--workspace", "--bench", "gemm", "--", "--json"]
        done = process.run(command, env=self.env, cwd=self.root)
        lines = [json.loads(line) for line in done.out.splitlines() if line.startswith("{")]
        return {"products": lines}
