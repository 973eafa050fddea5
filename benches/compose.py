"""What composition costs: k equal models against one, in turn, in time per token.

    python3 benches/compose.py [--model smollm2-135m-instruct] [--tokens 128] [--repeat 5] [--luthier BINARY]

Greedy decoding of one sequence, and of eight side by side, by `[decode.combine.linear]` over k sources
that are the same model, each with a cache of its own. A token's time is that of all after the first, so
neither loading nor the prompt counts. Prints a table: milliseconds per step and their ratio to one model,
which should not be above k + 0.1.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROMPT = "Tell me in a few sentences how rain comes about."


def table(model, k):
    if k == 1:
        return ""
    names = [f"s{i}" for i in range(k)]
    text = f'[models]\npolicy = "{model}"\n'
    text += "".join(f'[decode.sources.{name}]\nmodel = "policy"\n' for name in names)
    return text + f"[decode.combine.linear]\nsources = {json.dumps(names)}\ncoefficients = {[1 / k] * k}\n"


def step(args, folder, k, rows):
    """Seconds of a step: one token for each of the rows."""
    words = [args.luthier, "generate", "--model", args.model, "--prompt", PROMPT, "--n", str(rows),
             "--max-new-tokens", str(args.tokens), "--min-new-tokens", str(args.tokens), "--json"]
    if k > 1:
        recipe = pathlib.Path(folder) / f"{k}.toml"
        recipe.write_text(table(args.model, k))
        words += ["--decode", str(recipe)]
    out = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    last = max(answer["seconds"] for answer in out)
    first = max(answer["first_token_seconds"] for answer in out)
    return (last - first) / (args.tokens - 1)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--model", default="smollm2-135m-instruct")
    p.add_argument("--tokens", type=int, default=128)
    p.add_argument("--repeat", type=int, default=5)
    p.add_argument("--luthier", default=str(ROOT / "target/release/luthier"))
    args = p.parse_args()
    print("| sequences | models | ms a step | of one model | target | met |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for rows in [1, 8]:
            times = {k: [] for k in [1, 2, 3]}
            for _ in range(args.repeat):
                for k, found in times.items():
                    found.append(step(args, folder, k, rows))
            for k in times:
                # In each round against the single model of that round: the machine drifts.
                ratio = statistics.median(t / one for t, one in zip(times[k], times[1]))
                met = "" if k == 1 else ("yes" if ratio <= k + 0.1 else "**no**")
                target = "" if k == 1 else f"≤ {k}.1"
                milli = 1000 * statistics.median(times[k])
                print(f"| {rows} | {k} | {milli:.2f} | {ratio:.2f} × | {target} | {met} |", flush=True)


if __name__ == "__main__":
    main()
