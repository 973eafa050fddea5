"""The peers' side: a Python environment, the converted model, and the scripts in `peers/`."""

import os
import subprocess
import sys
import venv
from pathlib import Path

from . import process

PEERS = Path(__file__).resolve().parent.parent / "peers"


class Peers:
    """Runs the scripts of `peers/`; each ends with one JSON line."""

    def __init__(self, environment, base, threads, memory_limit):
        self.environment, self.base = Path(environment), Path(base)
        self.threads, self.memory_limit = threads, memory_limit
        self.env = {"OMP_NUM_THREADS": str(threads)}

    @property
    def python(self):
        folder = "Scripts" if os.name == "nt" else "bin"
        return self.environment / folder / "python"

    def set_up(self):
        """A new environment with the pinned packages, unless there is one in the folder."""
        if self.python.exists():
            return
        venv.create(self.environment, with_pip=True)
        wanted = ["-r", PEERS / "requirements.txt"]
        # llama.cpp is compiled for the processor it will run on.
        env = {**os.environ, "CMAKE_ARGS": os.environ.get("CMAKE_ARGS", "-DGGML_NATIVE=ON")}
        command = [self.python, "-m", "pip", "install", "--quiet", *wanted]
        subprocess.run(command, check=True, env=env, stdout=sys.stderr)

    def versions(self):
        names = ("torch", "transformers", "peft", "trl", "llama-cpp-python")
        ask = "import importlib.metadata as m, sys; print(', '.join(f'{n} {m.version(n)}' for n in sys.argv[1:]))"
        return process.run([self.python, "-c", ask, *names]).out.strip()

    def convert(self, gguf):
        if not (self.base / "config.json").exists():
            process.run([self.python, PEERS / "convert.py", gguf, self.base], env=self.env)

    def check_tokens(self, text, tokens):
        """Both tokenizers and chat templates give the same ids and trained tokens."""
        self.call("tokens", "--base", self.base, "--text", text, "--rows", tokens)

    def call(self, script, *words):
        command = [self.python, PEERS / f"{script}.py", *words]
        return process.run(command, env=self.env, memory_limit=self.memory_limit)

    def measure(self, script, *words):
        """The script's JSON, with the peak memory that the system saw."""
        done = self.call(script, *words, "--threads", self.threads)
        return {**done.line(), "peak_rss": done.peak_rss, "wall_seconds": done.seconds}

    def with_model(self, script, tokens, *words):
        return self.measure(script, "--base", self.base, "--rows", tokens, *words)
