"""Merges of pico models as mergekit 0.1.5 makes them, in f32.

Writes merges/{base,a,b,c}/ (the models), merges/*.yml (the files that both programs read) and
merges/expected.safetensors, where `<file>/<tensor>` is a tensor of that file's merge. merges/tokens/
has the same for models with differing vocabularies, and the vocabulary of every merge (the ids of
added tokens are mergekit's draws, so rows are compared by token). merges/drawn/ has the methods that
draw, with draws of a plain formula in place of torch's (`draw`), what they were drawn with (`chances`)
and from (`delta`). Needs mergekit in the environment; nothing else of the golden values does. The
name of a part as argument (`drawn`) makes that part alone.
"""

import json
import os
import pathlib
import shutil
import sys
import tempfile

from pico import HERE, fill, save

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

FOLDER = HERE / "merges"
SIZES = dict(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
             num_attention_heads=4, num_key_value_heads=2, head_dim=4, max_position_embeddings=64,
             bos_token_id=1, eos_token_id=2, tie_word_embeddings=False)
# A table, a matrix of each half of a block in different layers, a vector of a block and the last one.
KEPT = ["model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight",
        "model.layers.0.mlp.down_proj.weight", "model.layers.1.input_layernorm.weight",
        "model.norm.weight"]

GRADIENT = "[{filter: self_attn, value: [0, 0.5, 0.3]}, {filter: mlp, value: [1, 0.2]}, {value: 0.4}]"


def models(*rows):
    lines = ["models:"]
    for name, parameters in rows:
        lines.append(f"  - model: {name}")
        if parameters:
            lines.append(f"    parameters: {{{parameters}}}")
    return "\n".join(lines) + "\n"


def merge(method, inputs, parameters="", base=None, more="dtype: float32"):
    text = f"merge_method: {method}\n{inputs}"
    text += f"base_model: {base}\n" if base else ""
    text += f"parameters: {{{parameters}}}\n" if parameters else ""
    return text + more + "\n"


PAIR = models(("base", ""), ("a", ""))
WEIGHTED = models(("a", "weight: 0.7"), ("b", "weight: [0.2, 0.9]"))
SPARSE = models(("a", "weight: 0.7, density: 0.4"), ("b", "weight: 0.5, density: 0.65"),
                ("c", "weight: -0.3, density: 0.3"))
THREE = models(("base", ""), ("a", ""), ("b", ""), ("c", ""))
CRUMBS = models(("a", "weight: 0.7, density: 0.5, gamma: 0.1"), ("b", "weight: 0.5, density: 0.95"))
STACK = """slices:
  - sources: [{model: base, layer_range: [0, 2]}]
  - sources: [{model: a, layer_range: [1, 2], parameters: {scale: [{filter: o_proj, value: 0.5}]}}]
  - sources: [{model: b, layer_range: [0, 2]}]
"""
SLICED = """slices:
  - sources: [{model: base, layer_range: [1, 2]}, {model: a, layer_range: [0, 1]}]
    parameters: {t: 0.25}
  - sources: [{model: base, layer_range: [0, 1]}, {model: b, layer_range: [1, 2]}]
"""
CASES = {
    "linear": merge("linear", models(("base", "weight: 1"), ("a", f"weight: {GRADIENT}"),
                                     ("b", 'weight: "3e-1"'))),
    "linear_sum": merge("linear", WEIGHTED, "normalize: false"),
    "linear_bf16": merge("linear", WEIGHTED, more="dtype: bfloat16"),
    "slerp": merge("slerp", PAIR, f"t: {GRADIENT}", "base"),
    "slerp_near": merge("slerp", models(("base", ""), ("near", "")), "t: 0.3", "base"),
    "slerp_slices": merge("slerp", SLICED, "t: 0.6", "base"),
    "nuslerp": merge("nuslerp", WEIGHTED),
    "nuslerp_base": merge("nuslerp", WEIGHTED, base="base"),
    "nuslerp_rows": merge("nuslerp", WEIGHTED, "nuslerp_flatten: false", "base"),
    "nuslerp_columns": merge("nuslerp", WEIGHTED, "nuslerp_flatten: false, nuslerp_row_wise: true"),
    "multislerp": merge("multislerp", models(("a", "weight: 0.7"), ("b", "weight: 0.5"),
                                             ("c", "weight: 0.3"))),
    "multislerp_base": merge("multislerp", WEIGHTED, "normalize_weights: false", "base"),
    "karcher": merge("karcher", models(("a", ""), ("b", ""), ("c", ""))),
    "karcher_short": merge("karcher", models(("base", ""), ("a", "")), "max_iter: 1, tol: 1e-3"),
    "task_arithmetic": merge("task_arithmetic", WEIGHTED, "lambda: 0.8", "base"),
    "task_arithmetic_mean": merge("task_arithmetic", WEIGHTED, "normalize: true", "base"),
    "ties": merge("ties", SPARSE, base="base"),
    "ties_sum": merge("ties", SPARSE, "normalize: false, lambda: 1.3, rescale: true", "base"),
    "dare_ties_all": merge("dare_ties", WEIGHTED, "density: 1", "base"),
    "dare_linear_all": merge("dare_linear", WEIGHTED, "density: 1", "base"),
    "breadcrumbs": merge("breadcrumbs", CRUMBS, base="base"),
    "breadcrumbs_ties": merge("breadcrumbs_ties", CRUMBS, "rescale: true", "base"),
    "della_all": merge("della", WEIGHTED, "density: 1", "base"),
    "della_linear_none": merge("della_linear", WEIGHTED, "density: 0", "base"),
    "sce": merge("sce", THREE, "select_topk: 0.4", "base"),
    "sce_all": merge("sce", THREE, base="base"),
    "model_stock": merge("model_stock", THREE, base="base"),
    "model_stock_rows": merge("model_stock", THREE, "filter_wise: true", "base"),
    "nearswap": merge("nearswap", PAIR, "t: 0.05", "base"),
    "arcee_fusion": merge("arcee_fusion", PAIR, base="base"),
    "passthrough": merge("passthrough", STACK),
    "ram": merge("ram", THREE, "epsilon: 0.05", "base"),
    # Adapters of one base: half of one, and one by mergekit's longer form.
    "adapters": merge("task_arithmetic",
                      models(("base+lora", "weight: 0.5"), ("{model: a, lora: lora}", "weight: -0.3")),
                      base="base"),
    "ramplus_tl": merge("ramplus_tl", THREE, "epsilon: 0.05, r: 0.5", "base"),
}


def make(name, model):
    folder = FOLDER / name
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    (folder / "generation_config.json").unlink(missing_ok=True)


def make_lora(config):
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_config(config).float()
    settings = LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"],
                          task_type="CAUSAL_LM", base_model_name_or_path="base")
    model = get_peft_model(model, settings)
    fill([(n, p) for n, p in model.named_parameters() if "lora_" in n], 710, 0.3)
    model.save_pretrained(FOLDER / "lora")
    (FOLDER / "lora" / "README.md").unlink(missing_ok=True)
    (FOLDER / "lora" / "adapter_model.safetensors").chmod(0o644)


def main():
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge
    import yaml

    shutil.rmtree(FOLDER, ignore_errors=True)
    config = AutoConfig.for_model("llama", **SIZES)
    config.dtype = "float32"
    base = AutoModelForCausalLM.from_config(config).float()
    fill(base.named_parameters(), 700)
    make("base", base)
    start = {name: p.detach().clone() for name, p in base.named_parameters()}
    for i, (name, size) in enumerate([("a", 0.5), ("b", 0.8), ("c", 0.3), ("near", 0.002)]):
        fill(base.named_parameters(), 701 + i)
        with torch.no_grad():
            for key, p in base.named_parameters():
                # What a tuned model has of its own, next to what it kept.
                p.copy_(start[key] + size * (p - p.mean()))
        make(name, base)
    make_lora(config)
    os.chdir(FOLDER)
    expected = {}
    for case, text in CASES.items():
        pathlib.Path(f"{case}.yml").write_text(text)
        parsed = MergeConfiguration.model_validate(yaml.safe_load(text))
        with tempfile.TemporaryDirectory() as out:
            options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True,
                                   lora_merge_cache=f"{out}/cache", lora_merge_dtype="float32")
            run_merge(parsed, out, options)
            for file in pathlib.Path(out).glob("*.safetensors"):
                with safe_open(file, "pt") as tensors:
                    for name in set(KEPT) & set(tensors.keys()):
                        expected[f"{case}/{name}"] = tensors.get_tensor(name).float()
        print(case, float(expected[f"{case}/model.embed_tokens.weight"].std()))
    save(expected, "merges/expected.safetensors")


# Tokens of three models in the order of their ids, and rows of their tables (some are nobody's).
SHARED = ["<unk>", "<s>", "</s>", "a", "b", "c", "d", "e", "f", "g"]
SPEAKERS = {
    "plain": (SHARED + ["x", "y"], 14),
    "chat": (SHARED[:6] + ["z"] + SHARED[6:] + ["<|im_start|>", "<|im_end|>"], 13),
    "code": (SHARED[:3] + list(reversed(SHARED[3:])) + ["y", "<|fim|>", "<|im_end|>"], 16),
}
ADDED = {"<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|fim|>"}
TALK = models(("chat", "weight: 0.6"), ("code", "weight: 0.9"))
ALL = models(("plain", "weight: 0.5"), ("chat", "weight: 0.6"), ("code", "weight: 0.9"))
RULES = """tokenizer:
  source: union
  tokens:
    <|im_start|>: {source: chat}
    <|im_end|>: {source: code, force: true}
    <|fim|>: {source: {kind: zero}}
    z: {source: {kind: model_token, model: plain, token: x}}
    <|new|>: {source: {kind: model_token, model: code, token_id: 4}}
  pad_to_multiple_of: 8
dtype: float32"""
SPOKEN = {
    "union": merge("linear", ALL, more="tokenizer: {source: union}\ndtype: float32"),
    "union_base": merge("task_arithmetic", TALK, "lambda: 0.8", "plain",
                        "tokenizer_source: union\ndtype: float32"),
    "of_base": merge("task_arithmetic", TALK, "", "plain",
                     "tokenizer: {source: base}\ndtype: float32"),
    "of_code": merge("linear", ALL, more="tokenizer: {source: code}\ndtype: float32"),
    "rules": merge("linear", ALL, more=RULES),
    "ties": merge("ties", models(("chat", "weight: 0.6, density: 0.5"),
                                 ("code", "weight: 0.9, density: 0.4")), base="plain",
                  # No equal numbers, of which TIES keeps whichever it meets first.
                  more="tokenizer: {source: union}\ndtype: float32"),
}


def speaker(name, seed, tied):
    from tokenizers import AddedToken, Tokenizer, models as kinds, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens, rows = SPEAKERS[name]
    tokenizer = Tokenizer(kinds.BPE({t: i for i, t in enumerate(tokens)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False)
                          for t in tokens if t in ADDED])
    folder = FOLDER / "tokens" / name
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>",
                            eos_token="</s>").save_pretrained(folder)
    sizes = dict(SIZES, vocab_size=rows, num_hidden_layers=1, tie_word_embeddings=tied)
    config = AutoConfig.for_model("llama", **sizes)
    config.dtype = "float32"
    model = AutoModelForCausalLM.from_config(config).float()
    fill(model.named_parameters(), seed)
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    (folder / "generation_config.json").unlink(missing_ok=True)


def tokens():
    """The merges of differing vocabularies."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge
    from transformers import AutoTokenizer
    import yaml

    shutil.rmtree(FOLDER / "tokens", ignore_errors=True)
    for i, name in enumerate(SPEAKERS):
        speaker(name, 720 + i, False)
    os.chdir(FOLDER / "tokens")
    expected, vocabularies = {}, {}
    for case, text in SPOKEN.items():
        pathlib.Path(f"{case}.yml").write_text(text + "\n")
        parsed = MergeConfiguration.model_validate(yaml.safe_load(text))
        with tempfile.TemporaryDirectory() as out:
            run_merge(parsed, out, MergeOptions(write_model_card=False, quiet=True))
            vocabularies[case] = dict(sorted(AutoTokenizer.from_pretrained(out).get_vocab().items()))
            for file in pathlib.Path(out).glob("*.safetensors"):
                with safe_open(file, "pt") as tensors:
                    for name in ["model.embed_tokens.weight", "lm_head.weight"]:
                        if name in tensors.keys():
                            expected[f"{case}/{name}"] = tensors.get_tensor(name).float()
        print(case, len(vocabularies[case]), expected[f"{case}/model.embed_tokens.weight"].shape)
    save(expected, "merges/tokens/expected.safetensors")
    pathlib.Path("vocabularies.json").write_text(json.dumps(vocabularies, indent=1) + "\n")


PARTLY = models(("a", "weight: 0.7, density: 0.4"), ("b", "weight: -0.5, density: 0.65"))
RANKED = models(("a", "weight: 0.7, density: 0.4"),
                ("b", "weight: -0.5, density: 0.65, epsilon: 0.2"))
DRAWN = {
    "dare_linear": merge("dare_linear", PARTLY, base="base"),
    "dare_ties": merge("dare_ties", PARTLY, "lambda: 0.8", "base"),
    "dare_ties_mean": merge("dare_ties", PARTLY, "rescale: false, normalize: true", "base"),
    "della": merge("della", RANKED, base="base"),
    "della_plain": merge("della", RANKED, "rescale: false, normalize: false", "base"),
    "della_linear": merge("della_linear", RANKED, "lambda: 1.3", "base"),
}


def draw(model, places):
    """For every place of a tensor of one model, a number from 0 up to 1."""
    places = torch.arange(places, dtype=torch.int64)
    return ((places * 2654435761 + model * 1640531527 + 97531) % 2**32).double() / 2**32


def drawn():
    """The merges that draw, with draws that another program can make."""
    from mergekit import sparsify
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge
    import yaml

    folder, calls = FOLDER / "drawn", []
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.chdir(FOLDER)

    def bernoulli(chances):
        # Two models, asked one after the other for every tensor.
        numbers = draw(len(calls) % 2, chances.numel()).reshape(chances.shape)
        assert (numbers - chances).abs().min() > 1e-7, "a draw that rounding decides"
        calls.append(chances)
        return (numbers < chances).to(chances.dtype)

    expected = {}
    for case, text in DRAWN.items():
        (folder / f"{case}.yml").write_text(text)
        parsed = MergeConfiguration.model_validate(yaml.safe_load(text))
        torch.bernoulli, kept = bernoulli, torch.bernoulli
        with tempfile.TemporaryDirectory() as out:
            run_merge(parsed, out, MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True))
            for file in pathlib.Path(out).glob("*.safetensors"):
                with safe_open(file, "pt") as tensors:
                    for name in set(KEPT) & set(tensors.keys()):
                        expected[f"{case}/{name}"] = tensors.get_tensor(name).float()
        torch.bernoulli = kept
        print(case, float(expected[f"{case}/model.embed_tokens.weight"].std()))
    # What della_magprune draws with, asked directly.
    torch.bernoulli, kept = bernoulli, torch.bernoulli
    weights = {}
    for name in ["base", "a", "b"]:
        with safe_open(FOLDER / name / "model.safetensors", "pt") as tensors:
            weights[name] = {key: tensors.get_tensor(key).float() for key in KEPT}
    for key in KEPT:
        calls.clear()
        deltas = [weights[name][key] - weights["base"][key] for name in ["a", "b"]]
        for delta, (density, epsilon) in zip(deltas, [(0.4, 0.15), (0.65, 0.2)]):
            sparsify.della_magprune(delta, density=density, epsilon=epsilon)
        expected[f"della/{key}/delta"] = torch.stack(deltas)
        expected[f"della/{key}/chances"] = torch.stack([c.reshape(deltas[0].shape) for c in calls])
    torch.bernoulli = kept
    save(expected, "merges/drawn/expected.safetensors")


if __name__ == "__main__":
    parts = [main, tokens, drawn]
    for part in [part for part in parts if part.__name__ in sys.argv[1:]] or parts:
        part()
