"""Which of several processes this one is, that compute one stage together: what torchrun says, or SLURM."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pagoda_bench.errors import UserError

FIRST_PORT, PORTS = 20_000, 20_000


@dataclass(frozen=True)
class Place:
    """Process `rank` of `size`, `local_rank` on its machine. They meet at `address`:`port`, a port of rank 0's machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = "127.0.0.1"
    port: int = FIRST_PORT

    @property
    def first(self) -> bool:
        """Whether this is the one that saves, publishes and reports."""
        return self.rank == 0


def place(environment: Mapping[str, str] | None = None) -> Place:
    """Read from RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, where there is a RANK; else from SLURM's variables
    of a task, where a step has several tasks (the address is the first of its nodes, the port follows from the job's id, and
    MASTER_ADDR and MASTER_PORT go before both); else this process is alone.

    Raises:
        UserError: the variables contradict each other, or are no numbers.
    """
    said = os.environ if environment is None else environment
    if "RANK" in said and "WORLD_SIZE" in said:
        names, address, port = ("RANK", "WORLD_SIZE", "LOCAL_RANK"), "127.0.0.1", FIRST_PORT
    elif said.get("SLURM_NTASKS", "1") != "1" and "SLURM_STEP_ID" in said:  # a batch script is no task of a step
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
        address = first_host(said.get("SLURM_STEP_NODELIST") or said.get("SLURM_JOB_NODELIST", "127.0.0.1"))
        port = FIRST_PORT + int(re.sub(r"\D", "", said.get("SLURM_JOB_ID", "")) or 0) % PORTS
    else:
        return Place()
    try:
        rank, size, local = (int(said.get(name, "0")) for name in names)
        found = Place(rank, size, local, said.get("MASTER_ADDR", address), int(said.get("MASTER_PORT", port)))
    except ValueError:
        raise UserError(
            f"{', '.join(names)} and MASTER_PORT must be whole numbers: unset them, or let the launcher set them"
        ) from None
    if not 0 <= found.rank < found.size:
        raise UserError(
            f"{names[0]}={found.rank} is not below {names[1]}={found.size}: unset both, or let the launcher set them"
        )
    return found


def first_host(nodes: str) -> str:
    """The first host of SLURM's list: "a" of "a,b"; "gpu03" of "gpu[03-05,9],x"; "r1n07" of "r[1-2]n[07,08]"."""
    head = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes.strip())
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", head[0] if head else "") or "127.0.0.1"
