"""Are luthier's token ids and trained tokens those of transformers? Exits 1 if not.

    python tokens.py --base FOLDER --text DATA.jsonl --rows TOKENS.jsonl
"""

import argparse
import json
import sys

import setting

from transformers import AutoTokenizer


def rendered(row, tokenizer):
    """Ids and weights as TRL makes them of a prompt and its completion, or of plain text."""
    if "text" in row:
        ids = tokenizer(row["text"])["input_ids"] + [tokenizer.eos_token_id]
        return ids, [1] * len(ids)
    prompt = [{"role": "user", "content": row["question"]}]
    whole = prompt + [{"role": "assistant", "content": row["answer"]}]
    opened = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    ids = tokenizer.apply_chat_template(whole, return_dict=True)["input_ids"]
    weights = [0] * len(opened) + [1] * (len(ids) - len(opened))
    # What the template writes after the end token is no part of the answer.
    last = len(ids) - 1 - ids[::-1].index(tokenizer.eos_token_id)
    return ids, weights[:last + 1] + [0] * (len(ids) - last - 1)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--base", required=True)
    p.add_argument("--text", required=True)
    p.add_argument("--rows", required=True)
    a = p.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(a.base)
    count = 0
    with open(a.text) as texts, open(a.rows) as rows:
        for text, row in zip(texts, rows, strict=True):
            count += 1
            row = json.loads(row)
            ids, weights = rendered(json.loads(text), tokenizer)
            if ids != row["ids"] or weights != [int(w > 0) for w in row["weights"]]:
                sys.exit(f"{a.text}:{count}: transformers reads other tokens than luthier")
    setting.answer({"rows": count, "same": True})


if __name__ == "__main__":
    main()
