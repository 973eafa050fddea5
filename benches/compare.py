#!/usr/bin/env python3
"""luthier beside its peers: one command, one table.

    python3 benches/compare.py                    everything (hours: leave the machine alone)
    python3 benches/compare.py --only lora exact  some of the work
    python3 benches/compare.py --list             what there is

Sets the peers up in a throw-away environment, builds luthier, finds the fastest setting of each
peer in a short pass, and then runs both sides alternately. Only the standard library is needed.

    --json raw.json           keeps every number; the file grows as the runs end
    --render raw.json         prints the table of such a file again
    --tuned raw.json          takes the peers' settings from such a file instead of looking for them
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from sidebyside import machine
from sidebyside.inputs import Inputs
from sidebyside.lines import HEAD, markdown
from sidebyside.more_work import Decoding, Growth, LongRow, Sampling, Scoring
from sidebyside.ours import Luthier
from sidebyside.process import Failed
from sidebyside.theirs import Peers
from sidebyside.work import Bench, Products, Training

ROOT = Path(__file__).resolve().parent.parent

WORK = [
    Products(),
    Training("lora", "LoRA SFT, gsm8k, answers only", 3.0, memory=1 / 5),
    Training("plain", "LoRA SFT, rows of 512, every token", 1.8, batch=4, plain=True),
    # bf16 weights would round most of a full fine-tuning step away: another computation.
    Training("full", "full fine-tuning, AdamW", 1.8, memory=1 / 2, weights=("autocast", "f32"), full=True),
    Training("exact", "LoRA SFT in f32", 1.5, weights=("f32",), precision="f32"),
    Scoring(),
    Sampling(),
    Decoding(),
    LongRow(),
    Growth(),
]


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", nargs="+", metavar="NAME", choices=[work.name for work in WORK])
    p.add_argument("--list", action="store_true", help="the names of the work, and end")
    p.add_argument("--repeat", type=int, default=5, help="runs of each side (long rows: 3 at most)")
    p.add_argument("--steps", type=int, default=3, help="timed steps of a training run, after one warm-up step")
    p.add_argument("--tune-steps", type=int, default=1, help="timed steps when looking for the best setting")
    p.add_argument("--curve-steps", type=int, default=40, help="steps of the loss curves; 0 leaves them out")
    p.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "gsm8k-train.jsonl")
    p.add_argument("--env", type=Path, help="environment of the peers, made there if missing [default: temporary]")
    p.add_argument("--base", type=Path, help="Hugging Face folder of the model, made if missing [default: temporary]")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="setting for luthier's training")
    p.add_argument("--memory-limit", type=float, default=20, metavar="GIB", help="a peer that needs more is stopped")
    p.add_argument("--no-build", action="store_true", help="take the built binary as it is")
    p.add_argument("--json", type=Path, metavar="OUT", help="write the raw numbers")
    p.add_argument("--render", type=Path, metavar="RAW", help="print the table of raw numbers, and end")
    p.add_argument("--tuned", type=Path, metavar="RAW", help="settings of the peers from raw numbers")
    return p.parse_args()


def say(text):
    print(text, file=sys.stderr, flush=True)


def tuned(work, bench, note):
    """The fastest setting of the peer: stage by stage, each changes the best one so far."""
    best, best_rate, seen = work.start(), 0.0, []
    for stage in work.stages():
        base = best
        for change in stage:
            setting = {**base, **change}
            if setting in seen:
                continue
            seen.append(setting)
            try:
                measured = work.tried(bench, setting)
            except Failed as failed:
                note({"setting": setting, "failed": str(failed)})
                continue
            rate = work.quick(measured)
            note({"setting": setting, "rate": rate, "peak_rss": measured["peak_rss"]})
            if rate > best_rate:
                best, best_rate = setting, rate
    return best if best_rate or not work.stages() else None


def measured(work, bench, raw, repeat, settings, save):
    """Both sides of one work, alternately; what went wrong is kept beside what went well."""
    raw.update({"tuning": [], "ours": [], "theirs": [], "failed": []})

    def attempt(side, measure):
        try:
            raw[side].append(measure())
            say(f"{work.name} {side}: {work.unit} {brief(work, raw[side][-1])}")
        except (Failed, KeyError, ValueError) as failed:
            raw["failed"].append(f"{side}: {type(failed).__name__}: {failed}")
            say(f"{work.name} {side} failed: {failed}")
        save()

    def note(entry):
        raw["tuning"].append(entry)
        say(f"{work.name} peer setting: {entry}")
        save()

    setting = settings.get(work.name) if settings else None
    if work.peer and setting is None:
        setting = tuned(work, bench, note)
    raw["setting"] = setting
    for _ in range(min(repeat, work.repeats or repeat)):
        attempt("ours", lambda: work.ours(bench, setting if setting is not None else work.start()))
        if work.peer and setting is not None:
            attempt("theirs", lambda: work.theirs(bench, setting))
    if bench.curve_steps and raw["ours"] and raw["theirs"]:
        try:
            raw["curve"] = work.curve(bench, setting)
        except (Failed, KeyError, ValueError) as failed:
            raw["failed"].append(f"curve: {failed}")
        save()


def brief(work, run):
    return f"{work.rate(run):.3g}, {run['peak_rss'] / 2**30:.2f} GiB" if hasattr(work, "rate") else "done"


def rendered(raw):
    """The Markdown of raw numbers."""
    facts = raw["machine"]
    text = "".join(f"- {key}: {value}\n" for key, value in facts.items()) + "\n"
    works = [(work, raw["works"][work.name]) for work in WORK if work.name in raw["works"]]
    rows = [HEAD]
    for work, numbers in works:
        rows += [line.cells() for line in work.lines(numbers, raw["works"])]
    text += markdown(rows)
    settings = [(work.title, numbers["setting"]) for work, numbers in works if numbers.get("setting")]
    if settings:
        text += "\nThe peers' fastest settings:\n\n"
        text += "".join(f"- {title}: {described(setting)}\n" for title, setting in settings)
    for work, numbers in works:
        detail = work.details(numbers) if numbers["ours"] and (numbers["theirs"] or not work.peer) else None
        text += f"\n{detail}" if detail else ""
    failed = [f"- {work.title}: {what}\n" for work, numbers in works for what in numbers["failed"]]
    # A setting that was tried and does not fit is a result too.
    failed += [f"- {work.title}, peer with {described(tried['setting'])}: {tried['failed'].splitlines()[-1]}\n"
               for work, numbers in works for tried in numbers["tuning"] if "failed" in tried]
    return text + ("\nNot measured:\n\n" + "".join(failed) if failed else "")


def described(setting):
    return ", ".join(f"{key} {value}" for key, value in setting.items())


def main():
    a = arguments()
    if a.list:
        return print("\n".join(f"{work.name:8} {work.title}" for work in WORK))
    if a.render:
        return print(rendered(json.loads(a.render.read_text())))
    settings = None
    if a.tuned:
        before = json.loads(a.tuned.read_text())["works"]
        settings = {name: numbers.get("setting") for name, numbers in before.items()}
    chosen = [work for work in WORK if not a.only or work.name in a.only]
    with tempfile.TemporaryDirectory(prefix="luthier-compare-") as folder:
        folder = Path(folder)
        raw = {"machine": machine.described(ROOT), "works": {}}
        if float(raw["machine"]["load before"]) > 0.5:
            say("warning: the machine is busy; the peers suffer from that more than luthier does")

        def save():
            if a.json:
                part = a.json.with_name(a.json.name + ".part")
                part.write_text(json.dumps(raw))
                os.replace(part, a.json)

        ours = Luthier(ROOT, folder, machine.cores(), a.set)
        if not a.no_build:
            say("building luthier")
            ours.build()
        raw["machine"]["luthier"] = ours.version()
        theirs = Peers(a.env or folder / "env", a.base or folder / "base", machine.cores(), a.memory_limit * 2**30)
        if any(work.peer for work in chosen):
            say("setting the peers up")
            theirs.set_up()
            theirs.convert(ours.gguf())
            raw["machine"]["peers"] = theirs.versions()
        inputs = Inputs(folder, a.data.resolve(), ours.show)
        bench = Bench(ours, theirs, inputs, a.steps, a.tune_steps, a.curve_steps)
        if any(work.peer for work in chosen):
            say("comparing the tokens of both sides")
            for pair in (inputs.gsm8k("shuffled"), inputs.held_out(), inputs.plain(512)):
                theirs.check_tokens(*pair)
        for work in chosen:
            measured(work, bench, raw["works"].setdefault(work.name, {}), a.repeat, settings, save)
        print(rendered(raw))


if __name__ == "__main__":
    main()
