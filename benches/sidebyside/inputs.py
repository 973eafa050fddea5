"""Data files for both sides: what luthier reads as text, the peers get as luthier's token ids.

So both see the same tokens, the same trained ones, in the same rows and the same order.
`peers/tokens.py` checks the ids against the tokenizer and chat template of transformers.
"""

import json
import random

# A step is 16 rows in the gsm8k work and 4 in the one with rows of 512 tokens.
BATCH = 16
ROW = 512


def read(path, count=None, skip=0):
    with open(path) as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    return rows[skip:None if count is None else skip + count]


def write(path, rows):
    with open(path, "w") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return path


class Inputs:
    """Files of one comparison; each is a pair (text for luthier, tokens for the peer)."""

    def __init__(self, folder, data, show):
        """`show(path)` gives the rows as `luthier show --json` prints them."""
        self.folder, self.data, self.show = folder, data, show

    def pair(self, name, make):
        text, tokens = self.folder / f"{name}.jsonl", self.folder / f"{name}.tokens.jsonl"
        if not tokens.exists():
            write(text, make())
            shown = self.show(text)
            write(tokens, [{"ids": row["ids"], "weights": row["weights"]} for row in shown])
        return text, tokens

    def gsm8k(self, order):
        """The first 1,000 rows, shuffled once; `grouped`: rows of like length share a step."""
        return self.pair(f"gsm8k-{order}", lambda: self._ordered(order))

    def _ordered(self, order):
        rows = read(self.data, 1000)
        chance = random.Random(0)
        if order == "shuffled":
            chance.shuffle(rows)
            return rows
        lengths = [len(row["ids"]) for row in read(self.gsm8k("shuffled")[1])]
        shuffled = read(self.gsm8k("shuffled")[0])
        by_length = sorted(range(len(rows)), key=lambda i: (lengths[i], i))
        steps = [by_length[i:i + BATCH] for i in range(0, len(rows) - BATCH + 1, BATCH)]
        chance.shuffle(steps)
        return [shuffled[i] for step in steps for i in step]

    def held_out(self):
        """200 rows after the first 1,000, for scoring."""
        return self.pair("gsm8k-scored", lambda: read(self.data, 200, skip=1000))

    def prompts(self, count):
        """Questions of the rows after those, for sampling."""
        return self.pair(f"prompts-{count}", lambda: read(self.data, count, skip=1200))

    def plain(self, length):
        """Plain text in rows of exactly `length` tokens, every one of them trained."""
        return self.pair(f"plain-{length}", lambda: self._plain(length))

    def _plain(self, length):
        # Text without the bytes that the tokenizer writes as other letters is cut by tokens.
        rows = [f"{r['question']}\n{r['answer']}\n\n" for r in read(self.data)]
        rows = [text for text in rows if text.isascii()][:max(2000, length // 16)]
        whole = self.folder / f"plain-{length}.whole.jsonl"
        tokens = self.show(write(whole, [{"text": "".join(rows)}]))[0]["tokens"][:-1]
        spelled = [token.replace("Ġ", " ").replace("Ċ", "\n").replace("ĉ", "\t") for token in tokens]
        # A text is closed by one end token.
        pieces = ["".join(spelled[i:i + length - 1]) for i in range(0, len(spelled), length - 1)]
        candidates = write(whole, [{"text": piece} for piece in pieces])
        shown = self.show(candidates)
        # A cut within a run of blanks or letters can change the tokens at the seam.
        exact = [p for p, row in zip(pieces, shown, strict=True) if len(row["ids"]) == length]
        return [{"text": piece} for piece in exact]
