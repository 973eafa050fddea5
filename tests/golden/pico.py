"""What the golden scripts share: seeded weights, ragged batches, and a loss without padding.

Random numbers come from numpy's PCG64, drawn in name order, so that neither a new torch nor a new
order of construction changes the weights.
"""

import json
import os
import pathlib

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).resolve().parent
VOCAB = 96

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)


def fill(named, seed, std=0.2):
    """Random values for every parameter: norms near 1, embeddings wider, all else `std`."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, p in sorted(named, key=lambda item: item[0]):
            z = torch.from_numpy(rng.standard_normal(tuple(p.shape), dtype=np.float32))
            if "norm" in name:
                z = 1 + 0.2 * z
            elif "embed_tokens" in name:
                z = 0.5 * z
            else:
                z = std * z
            p.copy_(z.to(p.dtype))


def make_rows(lengths, seed, vocab=VOCAB):
    """Rows of `lengths` positions: input ids, targets (the next token), token weights.

    About a third of the weights is 0, the rest is one of 0.25, 0.5, 1, 2; the last position of
    every row counts.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for n in lengths:
        text = rng.integers(0, vocab, n + 1)
        weights = rng.choice([0.0, 0.0, 0.25, 0.5, 1.0, 2.0], n)
        weights[-1] = 1.0
        rows.append((text[:-1].tolist(), text[1:].tolist(), weights.tolist()))
    return rows


def columns(rows, prefix=""):
    """The flat columns of a batch, as luthier lays them out."""
    flat = lambda i: [x for row in rows for x in row[i]]
    offsets = np.cumsum([0] + [len(row[0]) for row in rows])
    return {
        f"{prefix}ids_n": torch.tensor(flat(0), dtype=torch.uint32),
        f"{prefix}targets_n": torch.tensor(flat(1), dtype=torch.uint32),
        f"{prefix}weights_n": torch.tensor(flat(2), dtype=torch.float32),
        f"{prefix}offsets": torch.tensor(offsets, dtype=torch.uint32),
    }


def forward(model, rows):
    """Logits of every position, each row on its own: `(n, v)`."""
    return torch.cat([model(input_ids=torch.tensor([ids])).logits[0] for ids, _, _ in rows])


def weighted_nll(logits_nv, rows):
    """Sum of weight times nll, over the sum of weights."""
    targets = torch.tensor([t for _, ts, _ in rows for t in ts])
    weights = torch.tensor([w for _, _, ws in rows for w in ws])
    nll = torch.nn.functional.cross_entropy(logits_nv.float(), targets, reduction="none")
    return (weights * nll).sum() / weights.sum()


def save(tensors, path):
    """A safetensors file; tensors are copied so that views do not matter."""
    path = HERE / path
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, path)
    path.chmod(0o644)


def save_json(value, path):
    """Two spaces of indent, final newline."""
    path = HERE / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def ten_steps(model, named, batches, lr, weight_decay):
    """A plain AdamW run: losses, gradient norms before clipping, learning rates."""
    from transformers import get_cosine_schedule_with_warmup

    params = [p for _, p in named]
    optimizer = torch.optim.AdamW(
        params, lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, 2, len(batches))
    losses, norms, rates = [], [], []
    for rows in batches:
        loss = weighted_nll(forward(model, rows), rows)
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(params, 1.0)))
        rates.append(schedule.get_last_lr()[0])
        losses.append(float(loss.detach()))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return {
        "losses": torch.tensor(losses, dtype=torch.float32),
        "grad_norms": torch.tensor(norms, dtype=torch.float32),
        "learning_rates": torch.tensor(rates, dtype=torch.float64),
    }


def run_batches(seed):
    """Ten batches of three ragged rows that repeat two texts, so that a run can learn."""
    two = [make_rows([11, 5, 18], seed), make_rows([7, 20, 2], seed + 1)]
    return [two[t % 2] for t in range(10)]
