"""A model that scores labels and an adapter with such a head, for crates/recipe/tests/heads.rs.

    python make_heads.py

A small LlamaForSequenceClassification by transformers with its scores of two texts, and a LoRA of PEFT with
task_type SEQ_CLS over it, whose score module is among modules_to_save, with its scores of the same texts. Writes
golden/heads/.
"""

import json
import pathlib
import shutil

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForSequenceClassification

TEXTS = [[3, 7, 1, 22, 5], [9, 2, 13]]


def scores(model):
    with torch.no_grad():
        return [model(torch.tensor([ids])).logits[0].tolist() for ids in TEXTS]


def main():
    torch.manual_seed(5)
    folder = pathlib.Path(__file__).parent / "heads"
    shutil.rmtree(folder, ignore_errors=True)
    names = {0: "no", 1: "yes", 2: "perhaps"}
    config = LlamaConfig(
        vocab_size=24,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        pad_token_id=0,
        id2label=names,
        label2id={name: i for i, name in names.items()},
    )
    model = LlamaForSequenceClassification(config).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.4)
    model.save_pretrained(folder / "model")
    out = {"texts": TEXTS, "model": scores(model)}
    lora = LoraConfig(task_type="SEQ_CLS", r=2, lora_alpha=3, target_modules=["q_proj", "down_proj"])
    tuned = get_peft_model(model, lora).eval()
    for name, parameter in tuned.named_parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.5)
    tuned.save_pretrained(folder / "adapter")
    out["adapter"] = scores(tuned)
    (folder / "scores.json").write_text(json.dumps(out, indent=1) + "\n")
    for extra in ["README.md"]:
        (folder / "adapter" / extra).unlink(missing_ok=True)


main()
