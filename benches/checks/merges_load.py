"""Merges small models by every method of luthier and loads each result in transformers.

    python merges_load.py [--luthier target/release/luthier] [--only NAME] [--keep DIR]

Models of three layers with a byte-level tokenizer and a chat template are made first: a base, tuned
ones, an adapter of PEFT, a GGUF file, models with other vocabularies, Fisher values and inner
products by `luthier probe`. Every merge must then load in transformers without a missing or
left-over tensor, its tokenizer must agree with its table, a forward pass must give finite logits,
and the log-probabilities that `luthier eval` reads from the folder in f32 must be those of
transformers to 1e-4. Prints a JSON line per merge and exits 1 if any failed.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

SIZES = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=6,
             num_key_value_heads=2, head_dim=8, max_position_embeddings=512, bos_token_id=256,
             eos_token_id=257, rope_theta=10000.0)
TEMPLATE = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
CHOICES = [chr(c) for c in range(33, 127)]
PROMPTS = ["q", "to the point", "12 + 30 = ", "\u00e4\u00f6 and \u2603 in a line\nand the next one: ", "x" * 40]


def tokenizer(folder, turned=False, added=()):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = letters[::-1] if turned else letters
    tokens = letters + ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "QQ", *added]
    inner = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [("Q", "Q")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    special = [t for t in tokens if t.startswith("<|")]
    inner.add_special_tokens([AddedToken(t, normalized=False) for t in special])
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<|im_start|>",
                                   eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return tokens


def make(folder, seed, near=None, tied=True, dtype=torch.float32, sizes=(), **vocabulary):
    tokens = tokenizer(folder, **vocabulary)
    config = AutoConfig.for_model("llama", **{**SIZES, **dict(sizes)}, vocab_size=len(tokens),
                                  tie_word_embeddings=tied)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for name, p in model.named_parameters():
            own = torch.randn_like(p) * 0.15 + (1.0 if "norm" in name else 0.0)
            p.copy_(own if near is None else near[name] + 0.2 * own)
    model.to(dtype).save_pretrained(folder)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def make_lora(folder):
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32)
    settings = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, settings)
    torch.manual_seed(9)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(0.2 * torch.randn_like(p))
    model.save_pretrained(folder)
    return model.merge_and_unload()


def make_gguf(path, weights):
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_context_length(SIZES["max_position_embeddings"])
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_head_count(SIZES["num_attention_heads"])
    writer.add_head_count_kv(SIZES["num_key_value_heads"])
    writer.add_rope_dimension_count(SIZES["head_dim"])
    writer.add_rope_freq_base(SIZES["rope_theta"])
    writer.add_layer_norm_rms_eps(1e-6)
    tokens = json.loads(pathlib.Path("base/tokenizer.json").read_text())["model"]["vocab"]
    tokens = sorted(tokens, key=tokens.get)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if t.startswith("<|") else 1 for t in tokens])
    writer.add_token_merges(["Q Q"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_chat_template(TEMPLATE)

    def turned(w, heads):
        return w.reshape(heads, 2, -1, w.shape[1]).swapaxes(1, 2).reshape(w.shape)

    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm",
             "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down", "post_attention_layernorm": "ffn_norm",
             "input_layernorm": "attn_norm", "model.layers": "blk"}
    for name, w in weights.items():
        if "q_proj" in name or "k_proj" in name:
            heads = SIZES["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            w = turned(w, heads)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, w.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def prepare(run):
    base = make("base", 1)
    for seed, name in enumerate(["a", "b", "c"], 2):
        make(name, seed, near=base)
    half = {name: p.half().float() for name, p in base.items()}
    make("half", 5, near=half, dtype=torch.bfloat16)
    make("untied", 6, near={**base, "lm_head.weight": base["model.embed_tokens.weight"]}, tied=False)
    make("more", 7, added=("<|tool|>", "<|end_tool|>"))
    make("turned", 8, turned=True)
    adapted = make_lora("lora")
    make_gguf("base.gguf", base)
    rows = [{"prompt": f"say {i}", "completion": f"{i} {i * i}"} for i in range(12)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    pathlib.Path("rows.jsonl").write_text(lines)
    for name in ["a", "b"]:
        run("probe", "fisher", "--model", name, "--data", "rows.jsonl", "--rows", "6",
            "--out", f"fisher-{name}.safetensors", "--recipe", "full.toml")
        run("probe", "gram", "--model", name, "--data", "rows.jsonl", "--rows", "6",
            "--out", f"gram-{name}.safetensors")
    return adapted


def cases():
    """The merges by name, as the contents of their files."""
    def models(*names, **parameters):
        return [{"model": name, "parameters": {k: v[i] for k, v in parameters.items()}}
                for i, name in enumerate(names)]

    base = {"base_model": "base"}
    pair = dict(base, models=[{"model": "base"}, {"model": "a"}])
    sparse = dict(base, models=models("a", "b", weight=[0.7, 0.5], density=[0.4, 0.6]))
    plain = dict(base, models=models("a", "b", weight=[0.7, 0.4]))
    all_of = dict(base, models=[{"model": name} for name in ["base", "a", "b", "c"]])
    mean = dict(models=models("a", "b", "c", weight=[1, 1, 1]))
    search = {"data": "rows.jsonl", "metric": "nll", "limit": 4}
    union = dict(models=models("base", "more", weight=[0.5, 0.5]), tokenizer={"source": "union"})
    spelt = {"<|tool|>": {"source": {"kind": "model_token", "model": "base", "token": "<|im_start|>"}},
             "<|new|>": {"source": {"kind": "zero"}}}
    text = {
        "linear": mean,
        "slerp": dict(pair, parameters={"t": [0, 0.5, 0.3]}),
        "nuslerp": dict(base, models=models("a", "b", weight=[0.7, 0.4])),
        "multislerp": plain,
        "karcher": dict(models=[{"model": "a"}, {"model": "b"}]),
        "task_arithmetic": plain, "ties": sparse, "dare_linear": sparse, "dare_ties": sparse,
        "breadcrumbs": sparse, "breadcrumbs_ties": sparse, "della": sparse, "della_linear": sparse,
        "sce": dict(all_of, parameters={"select_topk": 0.5}), "model_stock": all_of,
        "nearswap": dict(pair, parameters={"t": 0.02}), "arcee_fusion": pair,
        "passthrough": {"slices": [{"sources": [{"model": "a", "layer_range": [0, 2]}]},
                                   {"sources": [{"model": "b", "layer_range": [1, 3]}]}]},
        "ram": dict(all_of), "ramplus_tl": dict(all_of),
        "wise_ft": dict(base, models=[{"model": "a"}], parameters={"alpha": 0.3}),
        "transfer": dict(base_model="more", models=[{"model": "a"}, {
            "model": "base", "parameters": {"source": True}}]),
        "fisher": dict(models=[{"model": n, "fisher": f"fisher-{n}.safetensors"} for n in "ab"]),
        "graft": dict(base, models=[{"model": "a"}], parameters={"top": 0.05}),
        "regmean": dict(models=[{"model": n, "gram": f"gram-{n}.safetensors"} for n in "ab"]),
    }
    files = {name: dict(body, merge_method=name) for name, body in text.items()}
    files |= {
        "lines": dict(files["ties"], lines={"alpha": "auto", "beta": 0.8}),
        "soup": dict(files["linear"], search=dict(search, greedy={})),
        "learned": dict(files["linear"], search=dict(search, learned={"steps": 4})),
        "grid": dict(files["wise_ft"], search=dict(search, grid={"alpha": [0, 0.5, 1]})),
        "coordinate": dict(files["wise_ft"], search=dict(search, coordinate={"alpha": [0, 0.5]})),
        "bf16": dict(files["ties"], dtype="bfloat16"),
        "from_bf16": dict(merge_method="linear", models=models("half", "a", weight=[0.5, 0.5])),
        "f16": dict(files["linear"], out_dtype="float16"),
        "union": dict(union, merge_method="linear"),
        "union_turned": dict(merge_method="linear", tokenizer={"source": "union"},
                             models=models("turned", "more", weight=[0.5, 0.5])),
        "of_model": dict(files["task_arithmetic"], models=models("turned", weight=[0.5]),
                         tokenizer={"source": "turned"}),
        "tokens": dict(union, merge_method="linear", chat_template="chatml", tokenizer={
            "source": "union", "tokens": spelt, "pad_to_multiple_of": 16}),
        "untied": dict(merge_method="linear", models=models("untied", "a", weight=[0.5, 0.5])),
        "adapter": dict(merge_method="passthrough", models=[{"model": "base+lora"}]),
        "adapter_scaled": dict(files["task_arithmetic"], models=models("base+lora", "a", weight=[0.5, 0.3])),
        "gguf": dict(merge_method="linear", models=models("base.gguf", "a", weight=[0.5, 0.5])),
        "gguf_alone": dict(merge_method="passthrough", models=[{"model": "base.gguf"}]),
        "several": [dict(files["linear"], name="mean"), dict(files["ties"], name="sparse"),
                    dict(files["slerp"], base_model="mean", name="both",
                         models=[{"model": "mean"}, {"model": "sparse"}])],
    }
    return files


def expected(folder):
    """What transformers makes of a folder, and what is wrong with it."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32,
                                                       output_loading_info=True)
    faults = [f"{kind}: {sorted(names)}" for kind, names in info.items() if names]
    words = AutoTokenizer.from_pretrained(folder)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(words) > rows:
        faults.append(f"{len(words)} tokens, {rows} rows")
    model.eval()
    logps = []
    for prompt in PROMPTS:
        ids = words(prompt, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            out = model(torch.tensor([ids])).logits[0, -1]
        if not torch.isfinite(out).all():
            faults.append(f"logits that are not finite after {prompt!r}")
        logps.append(torch.log_softmax(out, -1)[words.convert_tokens_to_ids(CHOICES)])
    return torch.stack(logps), faults, model, words


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--luthier", default="target/release/luthier")
    p.add_argument("--only")
    p.add_argument("--keep", help="work in this folder, and leave it")
    args = p.parse_args()
    program = str(pathlib.Path(args.luthier).resolve())
    kept = tempfile.TemporaryDirectory() if args.keep is None else None
    os.makedirs(args.keep or kept.name, exist_ok=True)
    os.chdir(args.keep or kept.name)
    os.environ |= {"LUTHIER_HOME": os.path.abspath("home"), "LUTHIER_OFFLINE": "1"}

    def run(*words):
        done = subprocess.run([program, *words], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"luthier {' '.join(words)}: {done.stderr}")
        return done.stdout

    pathlib.Path("full.toml").write_text("[train.params.full]\n[train.loss.nll]\n")
    adapted = prepare(run)
    asked = [{"prompt": p, "choices": CHOICES, "label": 0} for p in PROMPTS]
    pathlib.Path("asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    failed = 0
    for name, file in cases().items():
        if args.only not in (None, name):
            continue
        files = file if isinstance(file, list) else [file]
        pathlib.Path(f"{name}.yml").write_text("\n---\n".join(json.dumps(one) for one in files))
        out, told = f"out-{name}", {"merge": name}
        done = subprocess.run([program, "merge", f"{name}.yml", "--out", out], capture_output=True, text=True)
        faults = [done.stderr.strip()] if done.returncode else []
        if not faults:
            want, faults, model, words = expected(out)
            run("eval", "--model", out, "--data", "asked.jsonl", "--metric", "choice", "--raw",
                "--precision", "f32", "--answers", f"{name}.jsonl")
            got = [json.loads(line)["logps"] for line in open(f"{name}.jsonl")]
            told["difference"] = float((torch.tensor(got) - want).abs().max())
            if not told["difference"] <= 1e-4:
                faults.append("luthier reads other log-probabilities")
            if name == "adapter":
                ids = torch.tensor([words(PROMPTS[1])["input_ids"]])
                with torch.no_grad():
                    told["peft"] = float((model(ids).logits - adapted(ids).logits).abs().max())
                if not told["peft"] <= 1e-4:
                    faults.append("PEFT gives other logits")
        print(json.dumps(told | {"faults": faults}), flush=True)
        failed += bool(faults)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
