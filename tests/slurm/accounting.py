"""The private cluster with a database behind it: MariaDB and slurmdbd, so that `sacct`, accounts and their limits are real."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import private_cluster
from private_cluster import Cluster, free_ports, until, which

PROGRAMS = ("slurmdbd", "sacctmgr", "sacct", "mariadbd", "mariadb-install-db", "mariadb")
ACCOUNT = "vision"
DATABASE = """\
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
LogFile={root}/slurmdbd.log
PidFile={root}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={storage}
StorageUser=slurm
StoragePass=private
StorageLoc=slurm_acct_db
"""
SLURM = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={root}/munge.socket
AccountingStorageEnforce=associations,limits,qos"""


def missing() -> str | None:
    """Why there can be no accounting database here, in one line; None where there can."""
    if why := private_cluster.missing():
        return why
    absent = [name for name in PROGRAMS if which(name) is None]
    return f"no {absent[0]} here: apt install slurmdbd mariadb-server" if absent else None


class AccountedCluster(Cluster):
    """A `Cluster` whose controller forgets an ended job within seconds; root may use the account `vision` only."""

    def __init__(self, cpus: int = 4) -> None:
        super().__init__(cpus, memory=2)

    def start(self) -> None:
        self.start_munge()
        port, storage = free_ports(2)
        self._start_mariadb(storage)
        conf = self.root / "slurmdbd.conf"
        conf.write_text(DATABASE.format(root=self.root, host=self.host, port=port, storage=storage))
        conf.chmod(0o600)  # slurmdbd insists
        self.accounting = SLURM.format(port=port, root=self.root)
        self.write_config()
        self.daemon("slurmdbd", "-D", SLURM_CONF=str(self.root / "slurm.conf"))
        until(self._answers, 600, f"slurmdbd did not start: {self.tail('slurmdbd')}")
        self.run("sacctmgr", "--immediate", "add", "cluster", "private")
        self.run("sacctmgr", "--immediate", "add", "account", ACCOUNT, "cluster=private")
        self.run("sacctmgr", "--immediate", "add", "user", "root", f"account={ACCOUNT}", "cluster=private")
        self.start_daemons()

    def _start_mariadb(self, port: int) -> None:
        data, sock = self.root / "db", self.root / "mariadb.socket"
        place = ["--no-defaults", "--user=root", f"--datadir={data}"]
        install = [str(which("mariadb-install-db")), *place, "--auth-root-authentication-method=normal", "--skip-test-db"]
        subprocess.run(install, check=True, capture_output=True, timeout=600)
        options = [f"--port={port}", "--bind-address=127.0.0.1", f"--socket={sock}", f"--pid-file={self.root / 'mariadb.pid'}"]
        small = ["--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0", "--skip-name-resolve"]
        self.daemon("mariadbd", *place, *options, *small)
        admit = (
            "CREATE DATABASE slurm_acct_db; CREATE USER slurm@'127.0.0.1' IDENTIFIED BY 'private'; "
            "GRANT ALL ON slurm_acct_db.* TO slurm@'127.0.0.1'"
        )
        until(sock.exists, 600, f"mariadbd did not start: {self.tail('mariadbd')}")
        self.run("mariadb", "--no-defaults", f"--socket={sock}", "--user=root", f"--execute={admit}")

    def _answers(self) -> bool:
        with suppress(subprocess.TimeoutExpired):
            return bool(self.run("sacctmgr", "--noheader", "--parsable2", "show", "stats", check=False).strip())
        return False


@contextmanager
def accounted(cpus: int = 4) -> Iterator[AccountedCluster]:
    """A cluster with accounting that is up."""
    made = AccountedCluster(cpus)
    try:
        made.start()
        yield made
    finally:
        made.stop()
