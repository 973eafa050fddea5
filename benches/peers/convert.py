"""A GGUF file as a Hugging Face folder, in f32: the same weights for both sides.

    python convert.py MODEL.gguf FOLDER
"""

import pathlib
import sys

import setting  # noqa: F401  (before transformers: no network)

import torch
from gguf import GGUFReader
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer


def pre_tokenizer(gguf):
    field = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    return bytes(field.parts[field.data[0]]).decode() if field else None


def main():
    gguf, folder = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    read = {"gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **read)
    # A model that came from a GGUF keeps a quantisation config, which makes trainers refuse it.
    fields = {k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}
    plain = type(model)(type(model.config)(**fields))
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    plain.generation_config = model.generation_config
    part = folder.with_name(folder.name + ".part")
    plain.float().save_pretrained(part)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **read)
    if pre_tokenizer(gguf) == "smollm":
        # transformers forgets this name's first step: every digit alone. llama.cpp and the published
        # tokenizer have it, and it decides what two blanks before a number become.
        digits = Digits(individual_digits=True)
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence([digits, ByteLevel(add_prefix_space=False)])
    tokenizer.save_pretrained(part)
    part.rename(folder)
    setting.answer({"folder": str(folder), "peer": setting.versions("torch", "transformers")})


if __name__ == "__main__":
    main()
