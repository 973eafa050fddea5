"""Virtual tokens of PEFT over pico models: what its prompt and prefix tuning compute.

Writes prompts/<name>/{adapter_config.json, adapter_model.safetensors, golden.safetensors}.
"""

import os

from pico import HERE, columns, fill, make_rows, save, weighted_nll

import torch
from peft import PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

VIRTUAL = 5
LENGTHS = [13, 4, 1]
CASES = {
    "prompt": ("models/llama", PromptTuningConfig),
    "prefix": ("models/llama", PrefixTuningConfig),
    # Keys have a norm there, and heads are wider than width / heads.
    "prefix-qwen3": ("models/qwen3", PrefixTuningConfig),
    # Cosine and sine have a factor there.
    "prefix-yarn": ("models/llama-yarn", PrefixTuningConfig),
}


def base(path):
    return AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()


def forward(model, rows):
    """Logits of every real position, each row on its own: `(n, v)`."""
    all_rows = []
    for ids, _, _ in rows:
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        # Prompt tuning gives logits at the virtual tokens too.
        all_rows.append(logits[-len(ids):])
    return torch.cat(all_rows)


def make(name, path, kind, seed):
    folder = HERE / "prompts" / name
    config = kind(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL)
    model = get_peft_model(base(path), config).eval()
    fill([(n, p) for n, p in model.named_parameters() if p.requires_grad], seed, std=1.0)
    model.save_pretrained(folder)
    (folder / "adapter_model.safetensors").chmod(0o644)
    (folder / "README.md").unlink(missing_ok=True)

    # Read back what was written: the golden values belong to the file.
    model = PeftModel.from_pretrained(base(path), folder).eval()
    learned = model.prompt_encoder["default"].embedding.weight.requires_grad_(True)
    rows = make_rows(LENGTHS, seed=seed + 50)
    logits = forward(model, rows)
    loss = weighted_nll(logits, rows)
    loss.backward()
    out = {**columns(rows), "logits_nv": logits, "loss": loss.reshape(1)}
    out["grad.prompt_embeddings"] = learned.grad
    rotary = base(path).model.rotary_emb
    out["inv_freq"] = rotary.inv_freq
    out["attention_factor"] = torch.tensor([rotary.attention_scaling])
    plain = forward(base(path), rows)
    shift = float((logits - plain).abs().max().detach())
    assert shift > 0.1, shift
    save(out, folder / "golden.safetensors")
    print(f"{name}: loss {float(loss.detach()):.6f}, moves logits by {shift:.3f}")


def main():
    os.chdir(HERE)
    for i, (name, (path, kind)) in enumerate(CASES.items()):
        make(name, path, kind, seed=700 + i)


if __name__ == "__main__":
    main()
