"""luthier merge beside mergekit: the same models, the same file, in turn.

    python3 benches/merge.py [--work DIR] [--repeat 3] [--only linear] [--mergekit BIN] [--luthier BINARY]

Makes three random models of 1.1 billion bf16 parameters in DIR (a base and two tuned ones, 6.6 GB),
merges them with `linear` and `ties`, and prints a table: wall time, peak memory, ratios, and by how
much the two results differ. A copy of one model's file by `cp` is the measure of the disk; all inputs
are read once before each run, so that nobody reads them for somebody else.

Without --mergekit, mergekit 0.1.5 is set up in DIR. It runs with its usual settings and with
--lazy-unpickle --low-cpu-memory, whichever is faster counts.
"""

import argparse
import json
import pathlib
import shutil
import statistics
import subprocess
import sys

from sidebyside import machine, process

ROOT = pathlib.Path(__file__).resolve().parent.parent
VOCAB, WIDTH, INNER, LAYERS, HEADS, KV = 32_000, 2048, 8192, 16, 32, 8

MAKE = r"""
import json, pathlib, sys
import torch
from safetensors.torch import save_file

work, v, d, f, layers, h, k = pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:])
shapes = {"model.embed_tokens.weight": (v, d)}
for i in range(layers):
    p = f"model.layers.{i}."
    for name, shape in {
        "self_attn.q_proj": (d, d), "self_attn.k_proj": (d * k // h, d), "self_attn.v_proj": (d * k // h, d),
        "self_attn.o_proj": (d, d), "mlp.gate_proj": (f, d), "mlp.up_proj": (f, d), "mlp.down_proj": (d, f),
        "input_layernorm": (d,), "post_attention_layernorm": (d,),
    }.items():
        shapes[p + name + ".weight"] = shape
shapes |= {"model.norm.weight": (d,), "lm_head.weight": (v, d)}
config = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": v, "hidden_size": d,
    "intermediate_size": f, "num_hidden_layers": layers, "num_attention_heads": h, "num_key_value_heads": k,
    "head_dim": d // h, "rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "hidden_act": "silu",
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}
drawn = torch.Generator().manual_seed(0)
models = {"base": {}, "a": {}, "b": {}}
for name, shape in shapes.items():
    base = torch.randn(shape, generator=drawn) * 0.02 if len(shape) == 2 else torch.ones(shape)
    models["base"][name] = base.bfloat16()
    for tuned in ("a", "b"):
        models[tuned][name] = (base + torch.randn(shape, generator=drawn) * 0.002).bfloat16()
for name, weights in models.items():
    (work / name).mkdir(parents=True, exist_ok=True)
    save_file(weights, work / name / "model.safetensors", metadata={"format": "pt"})
    (work / name / "config.json").write_text(json.dumps(config))
"""

COMPARE = r"""
import pathlib, sys
import torch
from safetensors import safe_open

def tensors(folder):
    for file in sorted(pathlib.Path(folder).glob("*.safetensors")):
        with safe_open(file, "pt") as f:
            for name in f.keys():
                yield name, f.get_tensor(name)

ours = dict(tensors(sys.argv[1]))
worst, other, n = 0.0, 0, 0
for name, theirs in tensors(sys.argv[2]):
    a, b = ours.pop(name).float(), theirs.float()
    worst = max(worst, float((a - b).abs().max()))
    other += int((a != b).sum())
    n += a.numel()
assert not ours, sorted(ours)
print(worst, other / n)
"""


def configurations(work):
    def models(more):
        return "models:\n" + "".join(f"  - model: {work / m}\n    parameters: {{{more}}}\n" for m in "ab")

    return {
        "linear": f"merge_method: linear\n{models('weight: 0.5')}dtype: bfloat16\n",
        "ties": f"merge_method: ties\nbase_model: {work / 'base'}\n{models('weight: 0.5, density: 0.5')}"
        "parameters: {normalize: true}\ndtype: bfloat16\n",
    }


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--work", type=pathlib.Path, default=pathlib.Path("merge-bench"))
    arguments.add_argument("--repeat", type=int, default=3)
    arguments.add_argument("--only", nargs="+", default=["linear", "ties"])
    arguments.add_argument("--mergekit", type=pathlib.Path, help="its environment's bin folder")
    arguments.add_argument("--luthier", type=pathlib.Path)
    given = arguments.parse_args()
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    peer, ours = given.mergekit, given.luthier
    if peer is None:
        peer = work / "env" / "bin"
        if not peer.exists():
            subprocess.run([sys.executable, "-m", "venv", work / "env"], check=True)
            subprocess.run([peer / "pip", "install", "-q", "mergekit==0.1.5"], check=True)
    if ours is None:
        subprocess.run(["cargo", "build", "--release", "--workspace"], cwd=ROOT, check=True)
        ours = ROOT / "target" / "release" / "luthier"
    if not (work / "b" / "config.json").exists():
        print("making models", file=sys.stderr)
        sizes = [VOCAB, WIDTH, INNER, LAYERS, HEADS, KV]
        subprocess.run([peer / "python", "-c", MAKE, work, *map(str, sizes)], check=True)

    inputs = [work / name / "model.safetensors" for name in ("base", "a", "b")]

    def measured(command, out):
        shutil.rmtree(out, ignore_errors=True)
        # Who runs first would read the disk for who runs second.
        subprocess.run(["cat", *inputs], stdout=subprocess.DEVNULL, check=True)
        return process.run(command)

    facts = machine.described(ROOT)
    rows, lean = [], ["--lazy-unpickle", "--low-cpu-memory"]
    for method, text in configurations(work).items():
        if method not in given.only:
            continue
        config = work / f"{method}.yml"
        config.write_text(text)
        out = {side: work / f"{method}-{side}" for side in ("ours", "theirs", "copy")}
        commands = {
            "ours": [ours, "merge", config, "--out", out["ours"]],
            "usual": [peer / "mergekit-yaml", config, out["theirs"]],
            "lean": [peer / "mergekit-yaml", config, out["theirs"], *lean],
        }
        file = work / "a" / "model.safetensors"
        found = {side: [] for side in [*commands, "copy"]}
        for _ in range(given.repeat):
            for side, command in commands.items():
                folder = out["ours" if side == "ours" else "theirs"]
                found[side].append(measured(command, folder))
                print(method, side, f"{found[side][-1].seconds:.1f} s", file=sys.stderr)
            found["copy"].append(measured(["cp", file, out["copy"]], out["copy"]))
            out["copy"].unlink()
        apart = process.run([peer / "python", "-c", COMPARE, out["ours"], out["theirs"]]).out.split()
        median = {
            side: (statistics.median(d.seconds for d in all), statistics.median(d.peak_rss for d in all))
            for side, all in found.items()
        }
        theirs = min(("usual", "lean"), key=lambda side: median[side][0])
        rows.append((method, median["ours"], theirs, median[theirs], median["copy"][0], apart))
        for folder in ("ours", "theirs"):
            shutil.rmtree(out[folder], ignore_errors=True)
    parameters = 2 * VOCAB * WIDTH + LAYERS * (2 * WIDTH * (WIDTH + WIDTH * KV // HEADS) + 3 * WIDTH * INNER)
    print(json.dumps(facts))
    print(f"\n{parameters / 1e9:.2f} billion bf16 parameters, medians of {given.repeat}\n")
    print("| method | luthier | mergekit 0.1.5 | times as fast | of its memory | cp of one model | apart |")
    print("|---|---|---|---|---|---|---|")
    for method, (s, m), setting, (ps, pm), copy, (worst, share) in rows:
        print(
            f"| {method} | {s:.1f} s, {m / 2**20:.0f} MiB | {ps:.1f} s, {pm / 2**20:.0f} MiB ({setting}) |"
            f" {ps / s:.1f} × | 1/{pm / m:.0f} | {copy:.1f} s | {float(share):.2%} of numbers, {worst} at most |"
        )


main()
