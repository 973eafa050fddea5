"""Records rotary frequencies of transformers 5 in rope_frequencies.json.

pip install transformers torch; python make_rope_frequencies.py
"""

import json
from pathlib import Path

import torch
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

BASE = dict(
    hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, vocab_size=100, bos_token_id=0, eos_token_id=1,
)
LLAMA3 = dict(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)


def old(theta, scaling=None, **more):
    return dict(BASE, model_type="llama", rope_theta=theta, rope_scaling=scaling, **more)


def new(parameters, model_type="llama", **more):
    return dict(BASE, model_type=model_type, rope_parameters=parameters, **more)


CASES = {
    "plain, old": old(10000.0),
    "plain, new": new({"rope_type": "default", "rope_theta": 100000.0}),
    "width 96 of odd exponents": new({"rope_type": "default", "rope_theta": 1e6}, head_dim=96),
    "theta by default": new(None, "smollm3"),
    "linear, old name": old(10000.0, {"type": "linear", "factor": 4.0}),
    "linear, new": new({"rope_type": "linear", "factor": 2.5, "rope_theta": 5e5}, "qwen2"),
    "llama3, old": old(500000.0, dict(LLAMA3, rope_type="llama3"), head_dim=64, max_position_embeddings=131072),
    "llama3, new": new(dict(LLAMA3, rope_type="llama3", rope_theta=500000.0, factor=8.0), head_dim=128),
    "yarn, plain": new({"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6,
                        "original_max_position_embeddings": 32768}, "qwen3", head_dim=128,
                       max_position_embeddings=131072),
    "yarn, old name": dict(old(10000.0, {"type": "yarn", "factor": 4.0,
                                         "original_max_position_embeddings": 2048}), max_position_embeddings=8192),
    "yarn, betas and mscale": new({"rope_type": "yarn", "factor": 40.0, "rope_theta": 10000.0, "beta_fast": 16,
                                   "beta_slow": 2, "mscale": 1.0, "mscale_all_dim": 0.7,
                                   "original_max_position_embeddings": 4096}),
    "yarn, not truncated, given attention": new({"rope_type": "yarn", "factor": 8.0, "rope_theta": 150000.0,
                                                 "truncate": False, "attention_factor": 1.25,
                                                 "original_max_position_embeddings": 4096}, head_dim=64),
    "yarn, original from maximum": new({"rope_type": "yarn", "factor": 2.0, "rope_theta": 10000.0},
                                       max_position_embeddings=4096),
}


def record(name, given):
    arguments = {k: v for k, v in given.items() if k != "model_type"}
    arguments = json.loads(json.dumps(arguments))
    config = AutoConfig.for_model(given["model_type"], **arguments)
    # One class computes the frequencies of all five architectures.
    rotary = LlamaRotaryEmbedding(config)
    values = rotary.inv_freq.to(torch.float64).tolist()
    return dict(name=name, config=given, inv_freq=values, attention_factor=float(rotary.attention_scaling))


cases = [record(name, given) for name, given in CASES.items()]
out = Path(__file__).with_name("rope_frequencies.json")
out.write_text(json.dumps(cases, indent=1) + "\n")
