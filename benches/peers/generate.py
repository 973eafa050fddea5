"""Batched sampling with transformers `generate`: one JSON line.

    python generate.py --base FOLDER --rows ROWS.jsonl --new 128 [--weights bf16] [--cache static]

The prompt of a row is what stands before its first trained token. Every answer has exactly --new
tokens. Times count from the prompts, as on luthier's side.
"""

import argparse
import time

import setting

import torch
from transformers import AutoTokenizer


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("--base", required=True)
    p.add_argument("--rows", required=True)
    p.add_argument("--new", type=int, default=128)
    p.add_argument("--weights", choices=["f32", "bf16", "autocast"], default="f32")
    p.add_argument("--cache", choices=["dynamic", "static"], default="dynamic")
    p.add_argument("--temperature", type=float, default=1.0)
    p.add_argument("--threads", type=int)
    return p.parse_args()


@torch.inference_mode()
def main():
    a = arguments()
    threads = setting.threads(a.threads)
    model, arithmetic = setting.model(a.base, a.weights)
    tokenizer = AutoTokenizer.from_pretrained(a.base, padding_side="left")
    prompts = [setting.prompt(row) for row in setting.rows(a.rows)]
    given = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    torch.manual_seed(0)

    def seconds(new):
        begun = time.perf_counter()
        out = model.generate(
            **given, do_sample=True, temperature=a.temperature, top_k=0, top_p=1.0,
            min_new_tokens=new, max_new_tokens=new, cache_implementation=a.cache,
            disable_compile=True, pad_token_id=tokenizer.pad_token_id,
        )
        assert out.shape[1] == given["input_ids"].shape[1] + new, "an answer is shorter than asked for"
        return time.perf_counter() - begun

    with arithmetic:
        first = seconds(1)
        whole = seconds(a.new)
    setting.answer({
        "peer": setting.versions("torch", "transformers"), "threads": threads,
        "setting": f"{a.weights}, {a.cache} cache, one batch of {len(prompts)}",
        "tokens": len(prompts) * a.new, "seconds": whole, "first_token_seconds": first,
    })


if __name__ == "__main__":
    main()
