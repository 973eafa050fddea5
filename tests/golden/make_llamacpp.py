"""Samplers as llama.cpp has them (llama-cpp-python 0.3.36), which transformers has not.

Writes llamacpp.json. `dry`: settings, a text, and what is taken from the logit of each token behind
it (others: nothing). `mirostat`: runs of mirostat 2.0 with their logits; at every step the tokens
that were kept, their probabilities, and the token that was drawn, which moves the limit of the
next step.
"""

import ctypes
import os
import sys
import tempfile

import gguf
import llama_cpp as lc
import numpy as np

from pico import save_json

VOCAB = 12
BREAK = 3


def model(path):
    """The least that llama.cpp takes for a model: its sampler asks a vocabulary for the breakers."""
    writer = gguf.GGUFWriter(path, "llama")
    for add, value in [(writer.add_block_count, 1), (writer.add_context_length, 64),
                       (writer.add_embedding_length, 32), (writer.add_feed_forward_length, 32),
                       (writer.add_head_count, 1), (writer.add_head_count_kv, 1),
                       (writer.add_layer_norm_rms_eps, 1e-5), (writer.add_vocab_size, VOCAB),
                       (writer.add_tokenizer_model, "gpt2"), (writer.add_tokenizer_pre, "gpt-2"),
                       (writer.add_bos_token_id, 0), (writer.add_eos_token_id, 0)]:
        add(value)
    tokens = [chr(ord("a") + i) for i in range(VOCAB)]
    writer.add_token_list(tokens)
    writer.add_token_types([1] * VOCAB)
    writer.add_token_merges(["a b"])
    ones = lambda *shape: np.ones(shape, dtype=np.float32)
    for name, shape in [("token_embd", (VOCAB, 32)), ("output_norm", (32,)), ("blk.0.attn_norm", (32,)),
                        ("blk.0.ffn_norm", (32,)), *((f"blk.0.{n}", (32, 32)) for n in
                        ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"])]:
        writer.add_tensor(f"{name}.weight", ones(*shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    lc.llama_backend_init()
    settings = lc.llama_model_default_params()
    settings.use_mmap = False
    return lc.llama_model_load_from_file(str(path).encode(), settings)


def candidates(logits):
    data = (lc.llama_token_data * len(logits))()
    for i, logit in enumerate(logits):
        data[i].id, data[i].logit, data[i].p = i, float(logit), 0.0
    array = lc.llama_token_data_array(data=data, size=len(logits), selected=-1, sorted=False)
    return array, data


def dry(vocab, rng):
    cases = []
    for case in range(60):
        settings = {"multiplier": [0.8, 1.3][case % 2], "base": [1.75, 1.2][case // 2 % 2],
                    "allowed_length": 1 + case % 3}
        breakers = [BREAK] if case % 4 else []
        text = rng.integers(0, 3 + case % 3, 4 + case % 25).tolist()
        if case % 5 == 0:
            text += text[-7:-1]
        texts = (ctypes.c_char_p * 1)(chr(ord("a") + BREAK).encode())
        sampler = lc.llama_sampler_init_dry(vocab, settings["multiplier"], settings["base"],
                                            settings["allowed_length"], 64, texts, len(breakers))
        for token in text:
            lc.llama_sampler_accept(sampler, token)
        array, data = candidates([0.0] * VOCAB)
        lc.llama_sampler_apply(sampler, ctypes.byref(array))
        taken = {array.data[i].id: -array.data[i].logit for i in range(array.size)}
        lc.llama_sampler_free(sampler)
        cases.append({**settings, "breakers": breakers, "text": text,
                      "taken": [round(taken[i], 6) + 0.0 for i in range(VOCAB)]})
    return cases


def mirostat(rng):
    runs = []
    for tau, eta in [(2.0, 0.1), (3.0, 0.5), (1.0, 0.3)]:
        sampler = lc.llama_sampler_init_mirostat_v2(7, tau, eta)
        steps = []
        for step in range(15):
            logits = (2.0 * rng.standard_normal(40)).astype(np.float32).round(3)
            array, data = candidates(logits)
            lc.llama_sampler_apply(sampler, ctypes.byref(array))
            kept = [(array.data[i].id, array.data[i].p) for i in range(array.size)]
            steps.append({"logits": [float(f"{x:.3f}") for x in logits],
                          "kept": [i for i, _ in kept], "p": [round(p, 6) for _, p in kept],
                          "token": array.data[array.selected].id})
        lc.llama_sampler_free(sampler)
        print("mirostat", tau, eta, [len(s["kept"]) for s in steps])
        runs.append({"tau": tau, "eta": eta, "steps": steps})
    return runs


def main():
    rng = np.random.default_rng(12)
    with tempfile.TemporaryDirectory() as folder:
        loaded = model(os.path.join(folder, "tiny.gguf"))
        if not loaded:
            sys.exit("llama.cpp does not take the model")
        cases = dry(lc.llama_model_get_vocab(loaded), rng)
    print("dry: cases with something taken", sum(any(c["taken"]) for c in cases))
    save_json({"dry": cases, "mirostat": mirostat(rng)}, "llamacpp.json")


if __name__ == "__main__":
    main()
