"""A private SLURM on this machine: its own munge, ports, accounts of nothing, fake GPUs, two partitions with preemption.

    python tests/slurm/private_cluster.py COMMAND...     the cluster up, COMMAND in its environment, the cluster down

It needs root, and the packages slurm-wlm and munge (Debian, Ubuntu). It never touches a SLURM that runs here already.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue")
CONFIG = """\
ClusterName=private
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0,default_queue_depth=3000
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.log
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
ReturnToService=2
SlurmdTimeout=60
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=5
MinJobAge=600
FirstJobId={first}
NodeName={host} NodeAddr=127.0.0.1 Port={node_port} CPUs={cpus} RealMemory=4000 Gres=gpu:2 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 MaxTime=1-00:00:00
PartitionName=high Nodes=ALL State=UP PriorityTier=10 PreemptMode=OFF MaxTime=01:00:00
"""


def missing() -> str | None:
    """Why there can be no private cluster here, in one line; None where there can."""
    if os.geteuid() != 0:
        return "a private SLURM needs root"
    absent = [name for name in PROGRAMS if _which(name) is None]
    return f"no {absent[0]} here: apt install slurm-wlm munge" if absent else None


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin{os.pathsep}/sbin")


class Cluster:
    """Up from `start` to `stop`. `environment` is what a command needs to speak to it."""

    def __init__(self, cpus: int = 4) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: the path of a socket has a limit
        self.root.chmod(0o755)
        self.cpus = cpus
        self.host = socket.gethostname().partition(".")[0]
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {"SLURM_CONF": str(self.root / "slurm.conf")}

    def start(self) -> None:
        ports = _free_ports(2)
        (self.root / "state").mkdir()
        (self.root / "spool").mkdir()
        values = {"host": self.host, "root": self.root, "port": ports[0], "node_port": ports[1], "cpus": self.cpus}
        (self.root / "slurm.conf").write_text(CONFIG.format(**values, first=1000 + int(time.time()) % 100_000))
        (self.root / "gres.conf").write_text("Name=gpu File=/dev/null,/dev/zero\n")
        key, sock = self.root / "munge.key", self.root / "munge.socket"
        subprocess.run([str(_which("mungekey")), "--create", "--bits=1024", f"--keyfile={key}"], check=True)
        munge = [f"--key-file={key}", f"--socket={sock}", f"--pid-file={self.root / 'munged.pid'}"]
        munge += [f"--log-file={self.root / 'munged.log'}", f"--seed-file={self.root / 'munged.seed'}"]
        self._daemon("munged", "--foreground", "--force", *munge)
        _until(sock.exists, 10, f"munged did not start: {self._tail('munged')}")
        self.start_controller()
        self._daemon("slurmd", "-D", "-f", self.environment["SLURM_CONF"])
        _until(self._idle, 30, f"the node did not come up: {self._tail('slurmd')} {self._tail('slurmctld')}")

    def start_controller(self, clean: bool = True) -> None:
        self._daemon("slurmctld", "-D", *(["-c"] if clean else []), "-f", self.environment["SLURM_CONF"])

    def kill(self, name: str) -> None:
        """Ends one daemon at once, as a crash does."""
        process = self.daemons.pop(name)
        process.kill()
        process.wait()

    def stop(self) -> None:
        for name in ("slurmctld", "slurmd", "munged"):
            if process := self.daemons.pop(name, None):
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
        self._end_steps()
        shutil.rmtree(self.root, ignore_errors=True)

    def run(self, *command: str, check: bool = True) -> str:
        """What a command prints in the cluster's environment."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(list(command), env=environment, capture_output=True, text=True, check=False, timeout=120)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def _daemon(self, name: str, *arguments: str) -> None:
        with (self.root / f"{name}.out").open("ab") as out:
            command = [str(_which(name)), *arguments]
            environment = {**os.environ, **self.environment}
            self.daemons[name] = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)

    def _idle(self) -> bool:
        return self.run("sinfo", "--noheader", "--partition=low", "--format=%T", check=False).strip() == "idle"

    def _tail(self, name: str) -> str:
        with suppress(OSError):
            return " ".join((self.root / f"{name}.out").read_text(errors="replace").splitlines()[-3:])
        return ""

    def _end_steps(self) -> None:
        """Ends what the node's daemon left: the processes that carry this cluster's configuration in their environment."""
        mark = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()
        for path in Path("/proc").glob("[0-9]*/environ"):
            pid = int(path.parent.name)
            with suppress(OSError):
                if (
                    mark in path.read_bytes().split(b"\0")
                    and pid not in (os.getpid(), os.getppid())
                    and b"slurmstepd" in (path.parent / "cmdline").read_bytes()
                ):
                    os.kill(pid, signal.SIGKILL)


@contextmanager
def cluster(cpus: int = 4) -> Iterator[Cluster]:
    """A cluster that is up."""
    made = Cluster(cpus)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _until(true: object, seconds: float, why: str) -> None:
    deadline = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise RuntimeError(why)
        time.sleep(0.1)


def main(command: list[str], environment: Mapping[str, str]) -> int:
    if why := missing():
        print(f"private cluster: {why}", file=sys.stderr)
        return 2
    with cluster() as up:
        return subprocess.run(command, env={**environment, **up.environment}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
