"""What luthier writes, in transformers and PEFT: greedy text, or the logits of many small adapters.

    python peft_roundtrip.py BASE [--adapter DIR] --prompts FILE.jsonl [-n 64] [--against FILE.jsonl]
    LUTHIER_PEFT_OUT=DIR cargo test --release --workspace --test peft_kinds --test lora_kinds
    python peft_roundtrip.py --written DIR

Each line of FILE holds one of `ids` (token ids as they are), `messages` (through the chat
template), `prompt` (one user turn through the chat template; with --raw, plain text) or `text`
(plain text). Prints a JSON line per prompt: {"prompt", "text", "ids", "margin"}; `ids` are the new
tokens and `margin` the smallest gap between the best and the second-best logit on the way: where
two programs part at a gap of rounding size, neither is wrong.

--against compares with luthier's lines (same order, `ids` or `text`) and exits 1 on a difference.
--merged folds the adapter into the weights first.

--written loads every adapter that luthier's tests left in DIR (each with the logits that luthier
computed) over its pico base of tests/golden, and exits 1 where logits differ by more than 1e-5 of
the largest.
"""

import argparse
import json
import os
import pathlib
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("base", nargs="?")
    p.add_argument("--adapter")
    p.add_argument("--written")
    p.add_argument("--prompts")
    p.add_argument("-n", type=int, default=64, help="new tokens at most")
    p.add_argument("--raw", action="store_true", help="`prompt` is plain text")
    p.add_argument("--merged", action="store_true")
    p.add_argument("--ignore-eos", action="store_true")
    p.add_argument("--dtype", default="float32")
    p.add_argument("--against")
    args = p.parse_args()
    if not args.written and not (args.base and args.prompts):
        p.error("expected BASE and --prompts, or --written")
    return args


def prompt_ids(line, tokenizer, raw):
    if "ids" in line:
        return line["ids"]
    if "messages" in line or ("prompt" in line and not raw):
        prompt = line.get("messages", line.get("prompt"))
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        out = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
        return out["input_ids"]
    return tokenizer(line.get("text", line.get("prompt")))["input_ids"]


def stop_ids(model, tokenizer):
    found = set()
    for source in (model.generation_config.eos_token_id, getattr(tokenizer, "eos_token_id", None)):
        found |= set(source if isinstance(source, list) else [source])
    return found - {None}


@torch.no_grad()
def greedy(model, ids, n, stops):
    """The plainest greedy loop: no processor of generate() can interfere."""
    new, margin, cache = [], float("inf"), None
    step = torch.tensor([ids])
    while len(new) < n:
        out = model(input_ids=step, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        best = out.logits[0, -1].float().topk(2)
        margin = min(margin, float(best.values[0] - best.values[1]))
        new.append(int(best.indices[0]))
        if new[-1] in stops:
            break
        step = torch.tensor([[new[-1]]])
    return new, margin


def compare(mine, path):
    theirs = [json.loads(line) for line in open(path) if line.strip()]
    bad = 0
    if len(mine) != len(theirs):
        print(f"{len(mine)} lines here, {len(theirs)} in {path}", file=sys.stderr)
        bad = 1
    for i, (a, b) in enumerate(zip(mine, theirs)):
        key = "ids" if "ids" in b else "text"
        if a[key] == b[key]:
            continue
        bad += 1
        same = next((k for k, (x, y) in enumerate(zip(a[key], b[key])) if x != y),
                    min(len(a[key]), len(b[key])))
        print(f"line {i + 1}: {key} part at {same} of {len(a[key])}; margin {a['margin']:.2e}\n"
              f"  here:  {a['text']!r}\n  there: {b.get('text')!r}", file=sys.stderr)
    print(f"{len(mine) - min(bad, len(mine))} of {len(mine)} equal", file=sys.stderr)
    return bad


@torch.no_grad()
def written(folder):
    """Adapters that PEFT does not load, or computes something else with."""
    from peft import PeftModel
    from safetensors.torch import load_file

    golden = pathlib.Path(__file__).resolve().parents[2] / "tests/golden"
    bad, all_of_them = 0, sorted(p.parent for p in pathlib.Path(folder).glob("*/golden.safetensors"))
    for adapter in all_of_them:
        config = json.loads((adapter / "adapter_config.json").read_text())
        values = load_file(adapter / "golden.safetensors")
        base = golden / config["base_model_name_or_path"]
        model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager").eval()
        model = PeftModel.from_pretrained(model, adapter).eval()
        ids, offsets = values["ids_n"].tolist(), values["offsets"].tolist()
        rows = [torch.tensor([ids[a:b]]) for a, b in zip(offsets, offsets[1:])]
        here = torch.cat([model(input_ids=row).logits[0] for row in rows])
        apart = float((here - values["logits_nv"]).abs().max() / here.abs().max())
        bad += not apart <= 1e-5
        print(f"{adapter.name}: {config['peft_type']}, apart by {apart:.1e} of the largest logit")
    print(f"{len(all_of_them) - bad} of {len(all_of_them)} equal", file=sys.stderr)
    return 1 if bad or not all_of_them else 0


def main():
    args = arguments()
    if args.written:
        return written(args.written)
    model = AutoModelForCausalLM.from_pretrained(args.base, dtype=getattr(torch, args.dtype)).eval()
    stops_of = model
    if args.adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, args.adapter).eval()
        if args.merged:
            model = model.merge_and_unload()
    try:
        tokenizer = AutoTokenizer.from_pretrained(args.base)
    except Exception as error:  # a folder without a tokenizer still serves prompts given as ids
        print(f"no tokenizer: {error}".splitlines()[0], file=sys.stderr)
        tokenizer = None
    stops = set() if args.ignore_eos else stop_ids(stops_of, tokenizer)
    lines = []
    for line in open(args.prompts):
        if not line.strip():
            continue
        line = json.loads(line)
        ids = prompt_ids(line, tokenizer, args.raw)
        new, margin = greedy(model, ids, args.n, stops)
        text = tokenizer.decode(new, skip_special_tokens=True) if tokenizer else None
        prompt = next((line[k] for k in ("prompt", "messages", "text", "ids") if k in line), None)
        lines.append({"prompt": prompt, "text": text, "ids": new, "margin": margin})
        print(json.dumps(lines[-1], ensure_ascii=False), flush=True)
    return 1 if args.against and compare(lines, args.against) else 0


if __name__ == "__main__":
    sys.exit(main())
