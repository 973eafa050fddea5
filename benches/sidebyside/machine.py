"""What the numbers were measured on."""

import datetime
import os
import platform
import shutil
import subprocess

FLAGS = ["avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "bf16"]


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def described(root):
    facts = {"date": datetime.date.today().isoformat(), "system": f"{platform.system()} {platform.release()}"}
    facts["cores"] = cores()
    try:
        with open("/proc/cpuinfo") as lines:
            info = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
        facts["processor"] = "{}, family {} model {}".format(
            info.get("model name", "?"), info.get("cpu family", "?"), info.get("model", "?"))
        has = (info.get("flags") or info.get("Features", "")).split()
        facts["instructions"] = " ".join(flag for flag in FLAGS if flag in has)
        with open("/proc/meminfo") as lines:
            facts["memory"] = f"{int(lines.readline().split()[1]) / 2**20:.0f} GiB"
    except (OSError, ValueError, IndexError):
        facts["processor"] = platform.processor() or platform.machine()
    facts["load before"] = f"{os.getloadavg()[0]:.2f}"
    facts["rustc"] = printed("rustc", "--version")
    facts["commit"] = printed("git", "-C", str(root), "describe", "--always", "--dirty")
    facts["luthier"] = "unknown"
    return facts


def printed(*command):
    if not shutil.which(command[0]):
        return "unknown"
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"
