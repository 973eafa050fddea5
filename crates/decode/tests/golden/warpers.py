"""Writes warpers.json: what transformers' own logits processors make of a few logits.

Made with transformers 5.23.0 and torch 2.15.0:  python warpers.py > warpers.json
"""

import json

import torch
import transformers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.generation.logits_process import LogitsProcessorList

torch.manual_seed(7)
VOCAB = 24
model = LlamaForCausalLM(
    LlamaConfig(vocab_size=VOCAB, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
)

CASES = [
    dict(temperature=0.7),
    dict(temperature=1.3, top_k=5),
    dict(temperature=1.0, top_p=0.8),
    dict(temperature=1.0, min_p=0.1),
    dict(temperature=0.6, top_k=9, top_p=0.9, min_p=0.05, repetition_penalty=1.3),
    dict(temperature=2.0, top_k=12, top_p=0.5, repetition_penalty=0.8),
    dict(temperature=1.0, repetition_penalty=1.7, logit_bias={"3": 4.0, "5": -2.5}),
    dict(temperature=0.9, top_p=0.95, ban=[1, 2, 9], min_new_tokens=6, eos=[4, 11]),
    dict(temperature=0.9, top_p=0.95, ban=[1, 2, 9], min_new_tokens=2, eos=[4, 11]),
    dict(temperature=1.0, top_h=0.8),
    dict(temperature=1.5, top_h=0.7, top_k=8, top_p=0.9),
]

out = []
for case in CASES:
    prompt = torch.randint(0, VOCAB, (6,)).tolist()
    tokens = torch.randint(0, VOCAB, (3,)).tolist()
    logits = torch.randn(VOCAB) * 3
    config = GenerationConfig(
        do_sample=True,
        temperature=case["temperature"],
        top_h=case.get("top_h"),
        top_k=case.get("top_k", 0),
        top_p=case.get("top_p", 1.0),
        min_p=case.get("min_p"),
        repetition_penalty=case.get("repetition_penalty", 1.0),
        sequence_bias=[[[int(k)], v] for k, v in case.get("logit_bias", {}).items()] or None,
        suppress_tokens=case.get("ban"),
        min_new_tokens=case.get("min_new_tokens"),
        eos_token_id=case.get("eos"),
    )
    model._prepare_special_tokens(config, device=torch.device("cpu"))
    processors = model._get_logits_processor(
        generation_config=config,
        input_ids_seq_length=len(prompt),
        encoder_input_ids=None,
        prefix_allowed_tokens_fn=None,
        logits_processor=LogitsProcessorList(),
        device="cpu",
        model_kwargs={},
    )
    scores = processors(torch.tensor([prompt + tokens]), logits[None].clone())
    out.append(
        dict(
            options=case,
            prompt=prompt,
            tokens=tokens,
            logits=logits.tolist(),
            probs=scores[0].double().softmax(-1).tolist(),
            order=[type(p).__name__ for p in processors],
        )
    )
print(json.dumps(dict(transformers=transformers.__version__, cases=out), indent=0))
