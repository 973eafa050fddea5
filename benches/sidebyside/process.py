"""One measured process: what it printed, how long it took, and the most memory it held."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time


class Failed(Exception):
    """A process that ended with an error or was stopped; says which and why."""


@dataclasses.dataclass
class Done:
    out: str
    seconds: float
    peak_rss: int

    def line(self):
        """The JSON of the last line of standard output."""
        return json.loads(self.out.strip().splitlines()[-1])


def run(command, env=None, cwd=None, memory_limit=None):
    """Runs to the end. Above `memory_limit` bytes the process is stopped, before the machine swaps."""
    command = [str(word) for word in command]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begun = time.perf_counter()
        child = subprocess.Popen(
            command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, cwd=cwd,
            env={**os.environ, **(env or {})},
        )
        over = threading.Event()
        ended = threading.Event()
        if memory_limit:
            watch = (child.pid, memory_limit, over, ended)
            threading.Thread(target=_guard, args=watch, daemon=True).start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()
            raise
        finally:
            ended.set()
        seconds = time.perf_counter() - begun
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        # Linux counts kibibytes, macOS bytes.
        peak = usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024
        if over.is_set():
            raise Failed(f"needs more than {memory_limit / 2**30:.0f} GiB")
        if child.returncode != 0:
            told = err.read().decode(errors="replace").strip().splitlines()[-12:]
            raise Failed("\n".join([f"{' '.join(command)}: exit {child.returncode}", *told]))
        return Done(out.read().decode(errors="replace"), seconds, peak)


def _guard(pid, limit, over, ended):
    page = os.sysconf("SC_PAGE_SIZE")
    while not ended.wait(0.2):
        try:
            with open(f"/proc/{pid}/statm") as statm:
                held = int(statm.read().split()[1]) * page
        except (OSError, IndexError):
            return
        if held > limit:
            over.set()
            os.kill(pid, signal.SIGKILL)
            return
