"""A Slurm cluster of this one machine, for the time of a test: controller, node, two made-up GPUs.

By hand, as root: `CI=true python tests/support/slurm_node.py up`, and `down` when done.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ETC = Path("/etc/slurm")
STATE = Path("/run/needlework-slurm")
MARK = "# Written by needlework's tests/support/slurm_node.py, which takes it away again.\n"
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"

_SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation={state}/state
SlurmdSpoolDir={state}/spool
SlurmctldPidFile={state}/slurmctld.pid
SlurmdPidFile={state}/slurmd.pid
SlurmctldLogFile={state}/slurmctld.log
SlurmdLogFile={state}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
MinJobAge=3600
GresTypes=gpu
NodeName={host} CPUs={cpus} RealMemory={memory} Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
_GRES_CONF = "NodeName={host} Name=gpu File={state}/gpu[0-1]\n"


@contextlib.contextmanager
def node() -> Iterator[None]:
    """Slurm, up for the time of a `with` block; whoever else wants it on this machine waits."""
    with Path(f"{STATE}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        up()
        try:
            yield
        finally:
            down()


def up(timeout_seconds: float = 60) -> None:
    """Start Slurm and wait until its node takes jobs.

    Raises:
        RuntimeError: not asked for by CI=true or NEEDLEWORK_TEST_SLURM=1; another Slurm is
            configured here; a program is missing; the node does not come up.
    """
    if os.environ.get("CI") != "true" and os.environ.get("NEEDLEWORK_TEST_SLURM") != "1":
        raise RuntimeError("starts Slurm on this machine only with NEEDLEWORK_TEST_SLURM=1")
    programs = ("munge", "munged", "slurmctld", "slurmd", "sbatch", "scontrol")
    missing = [name for name in programs if shutil.which(name, path=PATH) is None]
    if missing:
        raise RuntimeError(f"not installed: {', '.join(missing)} (Debian: slurm-wlm, munge)")
    for file in (ETC / "slurm.conf", ETC / "gres.conf"):
        if file.exists() and not _ours(file):
            raise RuntimeError(f"{file} is there already: this machine belongs to a Slurm cluster")
    down()

    for folder in ("state", "spool"):
        (STATE / folder).mkdir(parents=True)
    for i in range(2):
        os.mknod(STATE / f"gpu{i}", 0o666 | 0o020000, os.makedev(1, 3))
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    facts = {
        "host": socket.gethostname().split(".")[0],
        "state": STATE,
        "cpus": os.cpu_count(),
        "memory": int(0.9 * pages / 2**20),
    }
    (ETC / "slurm.conf").write_text(MARK + _SLURM_CONF.format(**facts))
    (ETC / "gres.conf").write_text(MARK + _GRES_CONF.format(**facts))
    try:
        _start_munge()
        _run("slurmctld")
        _run("slurmd")
        _wait_idle(time.monotonic() + timeout_seconds)
    except BaseException:
        down()
        raise


def down() -> None:
    """End what `up` started and every job of it, and take its files away, where there are any."""
    if (STATE / "slurmctld.pid").exists():
        _cancel_jobs(time.monotonic() + 15)
    for name in ("slurmd", "slurmctld", "munged"):
        _end(STATE / f"{name}.pid", name)
    for file in (ETC / "slurm.conf", ETC / "gres.conf"):
        if file.exists() and _ours(file):
            file.unlink()
    shutil.rmtree(STATE, ignore_errors=True)


def jobs(folder: Path) -> list[dict[str, str]]:
    """What Slurm knows of each job that was submitted from `folder`, by scontrol's names."""
    lines = _run("scontrol", "--oneliner", "show", "job").splitlines()
    found = [dict(p.split("=", 1) for p in line.split() if "=" in p) for line in lines]
    return [job for job in found if job.get("WorkDir") == str(folder)]


def _start_munge() -> None:
    if subprocess.run(["munge", "-n"], capture_output=True, env={"PATH": PATH}).returncode == 0:
        return
    _run("install", "-d", "-o", "munge", "-g", "munge", "-m", "755", "/run/munge")
    _run("runuser", "-u", "munge", "--", shutil.which("munged", path=PATH))
    # That munged.pid is in STATE says that it was started here, so that `down` may end it.
    shutil.copy("/run/munge/munged.pid", STATE / "munged.pid")


def _cancel_jobs(deadline: float) -> None:
    """Cancel all jobs and wait until none is left; a controller that is gone has none."""
    with contextlib.suppress(RuntimeError):
        while _run("squeue", "--noheader") and time.monotonic() < deadline:
            _run("scancel", "--user", "root")
            time.sleep(0.5)


def _wait_idle(deadline: float) -> None:
    while "State=IDLE" not in (shown := _run("scontrol", "show", "node")):
        if time.monotonic() > deadline:
            logs = [f.read_text()[-2000:] for f in sorted(STATE.glob("*.log"))]
            raise RuntimeError("\n".join(["the Slurm node does not come up", shown, *logs]))
        time.sleep(0.5)


def _ours(file: Path) -> bool:
    return file.read_text().startswith(MARK)


def _end(pid_file: Path, name: str) -> None:
    """End process `name` whose id is in `pid_file`, by force after ten seconds."""
    try:
        pid = int(pid_file.read_text())
        for number in (*[signal.SIGTERM] * 100, signal.SIGKILL):
            if Path(f"/proc/{pid}/comm").read_text().strip() != name:
                return
            os.kill(pid, number)
            time.sleep(0.1)
    except (FileNotFoundError, ProcessLookupError):
        return


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": PATH})
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


if __name__ == "__main__":
    {"up": up, "down": down}[sys.argv[1]]()
