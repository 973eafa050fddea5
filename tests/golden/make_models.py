"""Pico models of every supported architecture with logits, loss and gradients of transformers.

Writes models/<name>/{config.json, model.safetensors, golden.safetensors} and a few variants.
"""

import copy
import json
import shutil

from pico import HERE, VOCAB, columns, fill, forward, make_rows, run_batches, save, save_json
from pico import ten_steps, weighted_nll

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=128,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=None,
)
PLAIN = dict(rope_type="default", rope_theta=10000.0)
# Theta 100 over 32 positions puts one of the four frequencies in each branch of the formula:
# kept, blended, divided, divided.
LLAMA3 = dict(rope_type="llama3", rope_theta=100.0, factor=8.0, low_freq_factor=1.0,
              high_freq_factor=4.0, original_max_position_embeddings=32)
LINEAR = dict(rope_type="linear", rope_theta=10000.0, factor=4.0)
# The ramp of these values is 0, 1/3, 2/3, 1 over the four frequencies.
YARN = dict(rope_type="yarn", rope_theta=100.0, factor=4.0, beta_fast=2.0, beta_slow=0.25,
            original_max_position_embeddings=32)
# Default betas, as released models have them; the ramp is 0, 0, 1/2, 1.
YARN_PLAIN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0,
                  original_max_position_embeddings=4096)

MODELS = {
    "llama": ("llama", dict(rope_parameters=PLAIN, tie_word_embeddings=False)),
    "llama-tied-llama3": ("llama", dict(rope_parameters=LLAMA3, tie_word_embeddings=True)),
    "llama-linear": ("llama", dict(rope_parameters=LINEAR, tie_word_embeddings=False)),
    "llama-yarn": ("llama", dict(rope_parameters=YARN, tie_word_embeddings=False)),
    "llama-bias": ("llama", dict(rope_parameters=PLAIN, tie_word_embeddings=False,
                                 attention_bias=True, mlp_bias=True)),
    "mistral": ("mistral", dict(rope_parameters=PLAIN, tie_word_embeddings=False,
                                sliding_window=None, rms_norm_eps=0.02)),
    "qwen2": ("qwen2", dict(rope_parameters=dict(PLAIN, rope_theta=1000000.0),
                            tie_word_embeddings=True, head_dim=None)),
    "qwen2-yarn": ("qwen2", dict(rope_parameters=YARN_PLAIN, tie_word_embeddings=True,
                                 max_position_embeddings=16384, head_dim=None)),
    "qwen3": ("qwen3", dict(rope_parameters=dict(PLAIN, rope_theta=1000000.0),
                            tie_word_embeddings=False, head_dim=16)),
    "smollm3": ("smollm3", dict(rope_parameters=dict(PLAIN, rope_theta=5000.0),
                                tie_word_embeddings=True, no_rope_layers=[1, 0], head_dim=None)),
}
# Logits only: it repeats an architecture whose gradients are already pinned.
NO_GRADIENTS = {"qwen2-yarn"}
LENGTHS = [41, 9, 1]
# A large norm epsilon (mistral) shows in the logits; the usual 1e-6 could be ignored unnoticed.


def build(kind, over, seed):
    sizes = {k: v for k, v in {**SIZES, **over}.items() if v is not None or k == "pad_token_id"}
    config = AutoConfig.for_model(kind, **sizes)
    config.dtype = "float32"
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    fill(model.named_parameters(), seed)
    return model


def golden(model, rows, gradients=True):
    model.zero_grad()
    logits = forward(model, rows)
    loss = weighted_nll(logits, rows)
    out = {**columns(rows), "logits_nv": logits, "loss": loss.reshape(1)}
    if gradients:
        loss.backward()
        out |= {f"grad.{name}": p.grad for name, p in model.named_parameters()}
    return out


def write(model, name, **options):
    folder = HERE / "models" / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, **options)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)
    return folder


def to_v4(config, type_key="rope_type"):
    """The same config.json as transformers 4 wrote it."""
    old = copy.deepcopy(config)
    rope = old.pop("rope_parameters")
    old["torch_dtype"] = old.pop("dtype")
    old["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    old["rope_scaling"] = None if kind == "default" else {type_key: kind, **rope}
    old.pop("head_dim", None)
    old["transformers_version"] = "4.46.0"
    return old


def main():
    for i, (name, (kind, over)) in enumerate(MODELS.items()):
        model = build(kind, over, seed=100 + i)
        folder = write(model, name)
        # Read back what was written: the golden values belong to the file.
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
        rows = make_rows(LENGTHS, seed=200 + i)
        values = golden(model, rows, gradients=name not in NO_GRADIENTS)
        save(values, folder / "golden.safetensors")
        print(f"{name}: loss {float(values['loss'].detach()):.6f}, {len(values)} tensors")

    for name, key in [("llama-tied-llama3", "rope_type"), ("llama-linear", "type"),
                      ("llama-yarn", "type"), ("qwen2", "rope_type")]:
        folder = HERE / "models" / name
        old = to_v4(json.loads((folder / "config.json").read_text()), key)
        save_json(old, folder / "config.v4.json")
        check_v4(folder)

    llama = AutoModelForCausalLM.from_pretrained(HERE / "models/llama")
    write(llama, "llama-sharded", max_shard_size="40KB")

    half = AutoModelForCausalLM.from_pretrained(HERE / "models/llama").to(torch.bfloat16)
    folder = write(half, "llama-bf16")
    # Weights rounded to bf16, arithmetic in f32: what a loader that widens must reproduce.
    wide = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager").eval()
    save(golden(wide, make_rows(LENGTHS, seed=200), gradients=False), folder / "golden.safetensors")

    # Ten steps of full fine-tuning, weight decay on every parameter, tied embeddings.
    model = AutoModelForCausalLM.from_pretrained(
        HERE / "models/llama-tied-llama3", attn_implementation="eager").eval()
    batches = run_batches(seed=300)
    named = sorted(model.named_parameters())
    out = ten_steps(model, named, batches, lr=1e-2, weight_decay=0.01)
    print("full run:", [round(x, 6) for x in out["losses"].tolist()])
    for t, rows in enumerate(batches):
        out |= columns(rows, f"step.{t}.")
    out |= {f"final.{name}": p for name, p in named}
    save(out, "models/llama-tied-llama3/run.safetensors")


def check_v4(folder):
    """The old form must mean the same to transformers, or the golden file would be wrong."""
    import tempfile, pathlib
    with tempfile.TemporaryDirectory() as temporary:
        temporary = pathlib.Path(temporary)
        shutil.copy(folder / "config.v4.json", temporary / "config.json")
        shutil.copy(folder / "model.safetensors", temporary)
        ids = torch.arange(40)[None]
        one = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        two = AutoModelForCausalLM.from_pretrained(temporary)(ids).logits
        assert torch.equal(one, two), folder


if __name__ == "__main__":
    main()
