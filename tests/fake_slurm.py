"""Programs that only pretend to be SLURM, on the PATH of a test."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

SBATCH = """#!/bin/sh
n=$(ls "$FAKE"/calls | wc -l); n=$((n + 1))
cp "$1" "$FAKE/calls/$n.sh"
if [ "$n" = "$(cat "$FAKE/refuse" 2>/dev/null)" ]; then echo "sbatch: error: invalid account" >&2; exit 1; fi
echo "Submitted batch job $((100 + n))"
"""
SCONTROL = """#!/bin/sh
case "$*" in
  *config*) echo "MaxArraySize            = 4";;
  *partition*) echo "PartitionName=low AllowGroups=ALL Default=YES MaxTime=1-00:00:00 MinNodes=0"
               echo "PartitionName=quick AllowGroups=ALL MaxTime=00:30:00"
               echo "PartitionName=endless MaxTime=UNLIMITED";;
  *"show job"*) cat "$FAKE/job";;
esac
"""
SINFO = """#!/bin/sh
echo "low*|64|257000|gpu:a100:4(S:0-1),gpu:t4:2"
echo "low*|64|257000|gpu:a100:4(S:0-1),gpu:t4:2"
echo "low*|8|16000|(null)"
echo "quick|2|4000|(null)"
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts them into `folder`, where they also write down how they are called: calls/<n>.sh, asked, cancelled. What they answer
    is read from there too: refuse (the number of the call that sbatch refuses), queue, sacct, job."""
    (folder / "calls").mkdir(parents=True)
    (folder / "bin").mkdir()
    programs = {
        "sbatch": SBATCH,
        "scontrol": SCONTROL,
        "srun": "#!/bin/sh\n",
        "squeue": '#!/bin/sh\necho "$*" >> "$FAKE/asked"\ncat "$FAKE/queue" 2>/dev/null || true\n',
        "sacct": '#!/bin/sh\ncat "$FAKE/sacct"\n',
        "sinfo": SINFO,
        "scancel": '#!/bin/sh\necho "$*" >> "$FAKE/cancelled"\n',
    }
    for name, text in programs.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("FAKE", str(folder))
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("pagoda_bench.plan.slurm.freeze", lambda area: {"path": None, "version": "test"})
    return folder


def scripts(fake: Path) -> list[str]:
    paths = sorted((fake / "calls").glob("*.sh"), key=lambda path: int(path.stem))
    return [path.read_text() for path in paths]


def options(script: str) -> dict[str, str]:
    return {name: value.strip("'") for name, value in re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script, re.MULTILINE)}
