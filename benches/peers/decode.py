"""Greedy decoding of one prompt with llama.cpp's Python package: one JSON line.

    python decode.py --gguf MODEL.gguf --rows ROWS.jsonl --new 256

The prompt is what stands before the first trained token of the first row.
Times count from the prompt, as on luthier's side.
"""

import argparse
import time

import setting

from llama_cpp import Llama


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--gguf", required=True)
    p.add_argument("--rows", required=True)
    p.add_argument("--new", type=int, default=256)
    p.add_argument("--threads", type=int)
    a = p.parse_args()
    threads = a.threads or setting.cores()
    ids = setting.prompt(setting.rows(a.rows)[0])
    llm = Llama(model_path=a.gguf, n_ctx=max(512, len(ids) + a.new + 1), n_threads=threads,
                n_threads_batch=threads, n_gpu_layers=0, verbose=False)
    made, begun, first = [], time.perf_counter(), None
    for token in llm.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0):
        made.append(token)
        now = time.perf_counter()
        first = first or now
        if len(made) == a.new:
            break
    setting.answer({
        "peer": setting.versions("llama-cpp-python"), "threads": threads, "setting": "same GGUF file",
        "tokens": len(made), "seconds": now - begun, "first_token_seconds": first - begun, "ids": made,
    })


if __name__ == "__main__":
    main()
