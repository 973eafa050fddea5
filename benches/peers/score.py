"""NLL of given rows in transformers: one JSON line with the seconds without loading the model.

    python score.py --base FOLDER --rows ROWS.jsonl [--weights bf16] [--batch 16] [--head needed]

Rows as in train.py. They are sorted by length and padded on the right, so that little is wasted.
"""

import argparse
import time

import setting

import torch


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("--base", required=True)
    p.add_argument("--rows", required=True)
    p.add_argument("--weights", choices=["f32", "bf16", "autocast"], default="f32")
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--head", choices=["all", "needed"], default="all",
                   help="logits of every token, as model(ids) gives them, or of the scored ones only")
    p.add_argument("--threads", type=int)
    return p.parse_args()


def batch_nll(model, rows, head):
    """Sum of −log p over the scored tokens of some rows, and how many they are."""
    width = max(len(row["ids"]) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    seen = torch.zeros(len(rows), width, dtype=torch.long)
    scored = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        count = len(row["ids"])
        ids[i, :count] = torch.tensor(row["ids"])
        seen[i, :count] = 1
        scored[i, :count] = torch.tensor(row["weights"]) > 0
    targets, scored = ids[:, 1:], scored[:, 1:]
    if head == "all":
        logits = model(input_ids=ids, attention_mask=seen, use_cache=False).logits[:, :-1][scored]
    else:
        hidden = model.model(input_ids=ids, attention_mask=seen, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[:, :-1][scored])
    loss = torch.nn.functional.cross_entropy(logits.float(), targets[scored], reduction="sum")
    return loss.item(), int(scored.sum())


@torch.inference_mode()
def main():
    a = arguments()
    threads = setting.threads(a.threads)
    model, arithmetic = setting.model(a.base, a.weights)
    rows = sorted(setting.rows(a.rows), key=lambda row: -len(row["ids"]))
    with arithmetic:
        batch_nll(model, rows[-1:], a.head)
        begun, total, count = time.perf_counter(), 0.0, 0
        for first in range(0, len(rows), a.batch):
            nll, tokens = batch_nll(model, rows[first:first + a.batch], a.head)
            total, count = total + nll, count + tokens
        seconds = time.perf_counter() - begun
    setting.answer({
        "peer": setting.versions("torch", "transformers"), "threads": threads,
        "setting": f"{a.weights}, sorted by length, {a.batch} rows a pass, logits of {a.head} tokens",
        "seconds": seconds, "rows": len(rows), "nll": total / count, "tokens": count,
    })


if __name__ == "__main__":
    main()
