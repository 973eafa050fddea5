"""Scores of texts by sacrebleu and rouge_score, for crates/probe/tests/metrics.rs.

    pip install sacrebleu==2.6.0 rouge_score==0.1.2
    python make_metrics.py

Writes golden/metrics.json.
"""

import json
import pathlib

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

# Answers and expected texts: marks, numbers, entities, other scripts, empty and short ones.
PAIRS = [
    ["The cat sat on the mat.", "The cat sat on the mat."],
    ["A dog sat on a mat, it seems", "The dog sat on the mat, or so it seems."],
    ["He paid $3,000.50 (in cash) in 1990-2000.", "He paid 3,000.50 dollars in cash, 1990-2000!"],
    ["yes", "Yes, of course it is true"],
    ["", "nothing was said here"],
    ["one two three four five six seven", "one three two four six five seven eight nine"],
    ["&quot;Well-known&quot; &amp; &lt;loved&gt; <skipped>things-\nhere", "\"Well-known\" & <loved> thingshere"],
    ["Er geht über die Straße; schön!  ", "Sie geht über die Straßen, sehr schön."],
    ["他买了3,000本书。很好!", "她买了3000本书,很好。"],
    ["v1.2 costs 5. and .5 a,b 7,x x,7", "v1.2 costs 5 . and 0.5 a, b 7 , x x , 7"],
    ["the the the the the the the", "the cat is on the mat"],
    ["completely different words", "nothing alike whatsoever, friend"],
    ["tab\tand\u00a0space (hi) 'x'", "tab and space hi) 'x"],
    ["short", "short"],
    ["The quick brown fox jumps over the lazy dog again and again", "The quick brown foxes jumped over a lazy dog again"],
]
BLEUS = [
    dict(),
    dict(lowercase=True),
    dict(tokenize="char"),
    dict(tokenize="zh"),
    dict(tokenize="none"),
    dict(smooth_method="floor"),
    dict(smooth_method="floor", smooth_value=0.4),
    dict(smooth_method="add-k"),
    dict(smooth_method="add-k", smooth_value=0.5),
    dict(smooth_method="none"),
    dict(max_ngram_order=2),
    dict(effective_order=True, max_ngram_order=6),
]
CHRFS = [
    dict(),
    dict(word_order=2),
    dict(word_order=1, lowercase=True),
    dict(char_order=3, beta=1),
    dict(whitespace=True, word_order=2),
    dict(eps_smoothing=True, word_order=2),
]
# Sets whose numbers are taken: all pairs, short answers alone, and nothing alike.
SETS = [list(range(len(PAIRS))), [3, 13], [11], [3, 4, 11]]


def corpus(metric, chosen):
    answers, expected = zip(*(PAIRS[i] for i in chosen))
    return metric.corpus_score(list(answers), [list(expected)]).score


def case(kind, settings):
    whole = kind(**settings)
    alone = kind(**{**settings, **({"effective_order": True} if kind is BLEU else {})})
    sentences = [alone.sentence_score(answer, [expected]).score for answer, expected in PAIRS]
    return {"settings": settings, "sets": [corpus(whole, chosen) for chosen in SETS], "sentences": sentences}


def rouge(answer, expected):
    score = RougeScorer(["rougeL"], use_stemmer=False).score(expected, answer)["rougeL"]
    return [score.precision, score.recall, score.fmeasure]


def main():
    golden = {
        "pairs": PAIRS,
        "sets": SETS,
        "bleu": [case(BLEU, settings) for settings in BLEUS],
        "chrf": [case(CHRF, settings) for settings in CHRFS],
        "rouge_l": [rouge(*pair) for pair in PAIRS],
    }
    path = pathlib.Path(__file__).with_name("metrics.json")
    path.write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
