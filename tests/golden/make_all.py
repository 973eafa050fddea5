"""Remakes every golden file: python make_all.py"""

import pathlib
import subprocess
import sys

here = pathlib.Path(__file__).resolve().parent
# The pico models first: the adapters stand on them.
scripts = ["make_models.py", "make_lora.py"]
scripts += sorted(p.name for p in here.glob("make_*.py") if p.name not in [*scripts, "make_all.py"])
for script in scripts:
    print(f"== {script}", flush=True)
    subprocess.run([sys.executable, here / script], check=True, cwd=here)
