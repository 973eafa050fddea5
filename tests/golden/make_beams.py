"""Beam search of transformers on the pico llama: answers and their scores.

Writes beams.json. The weights are random, so texts are long unless the end is likely; a bias on the
end-of-text token and on one more makes some beams end early.
"""

import json

from pico import HERE

import torch
from transformers import AutoModelForCausalLM

CASES = [
    dict(num_beams=3, max_new_tokens=8),
    dict(num_beams=4, max_new_tokens=12, length_penalty=0.0, early_stopping="never", bias=4.5),
    dict(num_beams=4, max_new_tokens=12, length_penalty=2.0, early_stopping="never", bias=4.5),
    dict(num_beams=2, max_new_tokens=12, length_penalty=1.0, early_stopping=True, bias=4.0),
    dict(num_beams=5, max_new_tokens=10, length_penalty=-0.5, early_stopping=False, bias=4.5),
    dict(num_beams=3, max_new_tokens=10, early_stopping=False, bias=4.0, eos=[2, 17]),
    dict(num_beams=3, max_new_tokens=10, bias=4.5, repetition_penalty=1.3),
]
PROMPTS = [[1, 5, 9, 33], [1, 71], [1, 8, 8, 15, 40, 3, 22]]

model = AutoModelForCausalLM.from_pretrained(HERE / "models" / "llama", dtype=torch.float32)
model.eval()
out = []
for case in CASES:
    case = dict(dict(length_penalty=1.0, early_stopping=False, bias=0.0, eos=[2], repetition_penalty=1.0), **case)
    found = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        got = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=case["num_beams"],
            num_return_sequences=case["num_beams"],
            max_new_tokens=case["max_new_tokens"],
            length_penalty=case["length_penalty"],
            early_stopping=case["early_stopping"],
            repetition_penalty=case["repetition_penalty"],
            sequence_bias=[[[i], case["bias"]] for i in case["eos"]] if case["bias"] else None,
            eos_token_id=case["eos"],
            pad_token_id=95,
            return_dict_in_generate=True,
            output_scores=True,
        )
        answers = []
        for row, score in zip(got.sequences.tolist(), got.sequences_scores.tolist()):
            row = row[len(prompt):]
            ends = [i for i, t in enumerate(row) if t in case["eos"]]
            answers.append(dict(tokens=row[: ends[0] + 1] if ends else row, score=score))
        found.append(answers)
    out.append(dict(case, prompts=PROMPTS, found=found))
(HERE / "beams.json").write_text(json.dumps(out, indent=None) + "\n")
