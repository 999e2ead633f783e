"""A private SLURM on this machine: its own munge, ports, fake GPUs, two partitions with preemption, one node or several.

    python tests/slurm/private_cluster.py COMMAND...     the cluster up, COMMAND in its environment, the cluster down

It needs root, and the packages slurm-wlm and munge (Debian, Ubuntu); for an accounting database (see accounting.py) also
slurmdbd and mariadb-server. It never touches a SLURM that runs here already.
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

NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=4000 Gres=gpu:2 State=UNKNOWN"
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
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
{accounting}
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
ReturnToService=1
SlurmdTimeout=60
MessageTimeout=60
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=5
MinJobAge={memory}
FirstJobId={first}
{nodes}
PartitionName=low Nodes=ALL Default=YES State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 MaxTime=1-00:00:00
PartitionName=high Nodes=ALL State=UP PriorityTier=10 PreemptMode=OFF MaxTime=01:00:00
"""


def missing() -> str | None:
    """Why there can be no private cluster here, in one line; None where there can."""
    if os.geteuid() != 0:
        return "a private SLURM needs root"
    absent = [name for name in PROGRAMS if which(name) is None]
    return f"no {absent[0]} here: apt install slurm-wlm munge" if absent else None


def which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin{os.pathsep}/sbin")


class Cluster:
    """Up from `start` to `stop`. `environment` is what a command needs to speak to it. `memory`: seconds for which the
    controller remembers a job that ended."""

    def __init__(self, cpus: int = 4, nodes: int = 1, memory: int = 600) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: the path of a socket has a limit
        self.root.chmod(0o755)
        self.cpus, self.memory = cpus, memory
        self.host = socket.gethostname().partition(".")[0]
        self.nodes = [self.host] if nodes == 1 else [f"n{i}" for i in range(1, nodes + 1)]
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {"SLURM_CONF": str(self.root / "slurm.conf")}
        self.accounting = "AccountingStorageType=accounting_storage/none"

    def start(self) -> None:
        self.start_munge()
        self.write_config()
        self.start_daemons()

    def start_munge(self) -> None:
        key, sock = self.root / "munge.key", self.root / "munge.socket"
        subprocess.run([str(which("mungekey")), "--create", "--bits=1024", f"--keyfile={key}"], check=True)
        munge = [f"--key-file={key}", f"--socket={sock}", f"--pid-file={self.root / 'munged.pid'}"]
        munge += [f"--log-file={self.root / 'munged.log'}", f"--seed-file={self.root / 'munged.seed'}"]
        self.daemon("munged", "--foreground", "--force", *munge)
        until(sock.exists, 30, f"munged did not start: {self.tail('munged')}")

    def write_config(self) -> None:
        port, *node_ports = free_ports(1 + len(self.nodes))
        (self.root / "state").mkdir()
        lines = []
        for name, node_port in zip(self.nodes, node_ports, strict=True):
            (self.root / f"spool-{name}").mkdir()
            lines.append(NODE.format(name=name, host=self.host, port=node_port, cpus=self.cpus))
        values = {"host": self.host, "root": self.root, "port": port, "accounting": self.accounting, "memory": self.memory}
        first = 1000 + int(time.time()) % 100_000
        (self.root / "slurm.conf").write_text(CONFIG.format(**values, first=first, nodes="\n".join(lines)))
        (self.root / "gres.conf").write_text("Name=gpu File=/dev/null,/dev/zero\n")

    def start_daemons(self) -> None:
        self.start_controller()
        for name in self.nodes:
            self.start_node(name)
        until(self._idle, 60, f"the nodes did not come up: {self.tail('slurmctld')}")

    def start_controller(self, clean: bool = True) -> None:
        self.daemon("slurmctld", "-D", *(["-c"] if clean else []), "-f", self.environment["SLURM_CONF"])

    def start_node(self, name: str) -> None:
        self.daemon(f"slurmd-{name}", "-D", "-N", name, "-f", self.environment["SLURM_CONF"], PRIVATE_NODE=name)

    def crash_node(self, name: str) -> None:
        """Ends a node's daemon and all that runs there at once, and tells the controller, which would find out in a minute."""
        self.kill(f"slurmd-{name}")
        for _ in range(2):  # what was about to start something the first time
            for pid in {*self._processes(f"PRIVATE_NODE={name}"), *self._processes(f"SLURMD_NODENAME={name}")}:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        self.run("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=crash")

    def wait_for_end(self, name: str) -> None:
        """Until nothing of any job runs on a node: what is started before that, SLURM holds."""
        until(lambda: not self._processes(f"SLURMD_NODENAME={name}"), 120, f"jobs on {name} do not end")

    def revive_node(self, name: str) -> None:
        if f"slurmd-{name}" not in self.daemons:
            self.start_node(name)
        self.run("scontrol", "update", f"NodeName={name}", "State=RESUME")
        until(self._idle, 60, f"{name} did not come back: {self.tail(f'slurmd-{name}')}")

    def kill(self, name: str) -> None:
        """Ends one daemon at once, as a crash does."""
        process = self.daemons.pop(name)
        process.kill()
        process.wait()

    def stop(self) -> None:
        for name in reversed(list(self.daemons)):  # whoever started last is needed by nobody
            process = self.daemons.pop(name)
            process.terminate()
            try:
                process.wait(20)
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

    def daemon(self, name: str, *arguments: str, **more: str) -> None:
        """Starts one; the program is the part of `name` before a hyphen. `more`: variables of its environment."""
        with (self.root / f"{name}.out").open("ab") as out:
            command = [str(which(name.partition("-")[0])), *arguments]
            environment = {**os.environ, **self.environment, **more}
            self.daemons[name] = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)

    def _idle(self) -> bool:
        seen = self.run("sinfo", "--noheader", "--Node", "--partition=low", "--format=%T", check=False).split()
        return len(seen) == len(self.nodes) and set(seen) <= {"idle", "mixed", "allocated", "completing"}

    def tail(self, name: str) -> str:
        with suppress(OSError):
            return " ".join((self.root / f"{name}.out").read_text(errors="replace").splitlines()[-3:])
        return ""

    def _end_steps(self) -> None:
        """Ends what the daemons left: the nodes' helpers, and what runs in jobs."""
        for pid in self._processes():
            with suppress(OSError):
                in_job = b"\0SLURM_JOB_ID=" in Path(f"/proc/{pid}/environ").read_bytes()
                if in_job or b"slurmstepd" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)

    def _processes(self, *marks: str) -> list[int]:
        """Processes of this cluster whose environment holds all the `marks`."""
        wanted = {f"SLURM_CONF={self.environment['SLURM_CONF']}".encode(), *(mark.encode() for mark in marks)}
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            pid = int(path.parent.name)
            with suppress(OSError):
                if wanted <= set(path.read_bytes().split(b"\0")) and pid not in (os.getpid(), os.getppid()):
                    found.append(pid)
        return found


@contextmanager
def cluster(cpus: int = 4, nodes: int = 1) -> Iterator[Cluster]:
    """A cluster that is up."""
    made = Cluster(cpus, nodes)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def until(true: object, seconds: float, why: str) -> None:
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
