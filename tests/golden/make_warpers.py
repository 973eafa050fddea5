"""Logits after transformers' sampling processors.

Writes warpers.json (cases, each a chain of processors) and warpers.safetensors: `logits_bv`,
`ids_bn` (the tokens before each row's next one) and `out.<case>` of the same shape as the logits.
"""

import numpy as np
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pico import VOCAB, save, save_json

MAKE = {
    "repetition_penalty": RepetitionPenaltyLogitsProcessor,
    "temperature": TemperatureLogitsWarper,
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
}
CASES = {
    "repetition_penalty_1.3": [("repetition_penalty", 1.3)],
    "repetition_penalty_0.8": [("repetition_penalty", 0.8)],
    "temperature_0.7": [("temperature", 0.7)],
    "temperature_1.8": [("temperature", 1.8)],
    "top_k_1": [("top_k", 1)],
    "top_k_5": [("top_k", 5)],
    "top_k_1000": [("top_k", 1000)],
    "top_p_0.1": [("top_p", 0.1)],
    "top_p_0.9": [("top_p", 0.9)],
    "top_p_0.999": [("top_p", 0.999)],
    "min_p_0.05": [("min_p", 0.05)],
    "min_p_0.5": [("min_p", 0.5)],
    # The order in which generate() applies them.
    "all": [("repetition_penalty", 1.2), ("temperature", 0.8), ("top_k", 20), ("top_p", 0.95),
            ("min_p", 0.02)],
}


def main():
    rng = np.random.default_rng(9)
    logits = torch.from_numpy(2.5 * rng.standard_normal((5, VOCAB), dtype=np.float32))
    best = logits[3].argsort(descending=True)
    logits[3, best[4:7]] = float(logits[3, best[4]])  # a tie at the fifth: top_k keeps all three
    logits[4] = 0.1 * logits[4]  # nearly uniform
    # The last row repeats ids: a penalty must count once per id, not once per occurrence.
    ids = torch.from_numpy(rng.integers(0, VOCAB, (5, 12)))
    ids[4] = ids[4, :3].repeat(4)
    tensors = {"logits_bv": logits, "ids_bn": ids.to(torch.uint32)}
    for name, chain in CASES.items():
        run = LogitsProcessorList([MAKE[kind](value) for kind, value in chain])
        out = run(ids, logits.clone())
        tensors[f"out.{name}"] = out
        # Which of several equal logits survives a cut is the sort's accident: no golden file
        # may depend on it.
        for row, before in zip(out, logits):
            kept, cut = before[row.isfinite()], before[~row.isfinite()]
            assert name == "all" or len(cut) == 0 or kept.min() > cut.max(), name
    save(tensors, "warpers.safetensors")
    save_json({k: [{kind: value} for kind, value in chain] for k, chain in CASES.items()},
              "warpers.json")
    kept = {k: torch.isfinite(tensors[f"out.{k}"]).sum(1).tolist() for k in CASES}
    print("kept tokens by row:", kept)


if __name__ == "__main__":
    main()
