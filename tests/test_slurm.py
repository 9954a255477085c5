"""The grid on a Slurm of one node: the same outcomes as on this machine, also after a job was killed."""

import shutil
import subprocess
import time

import pandas as pd
import pytest
from shared.checkout import Checkout, save_model

from helpers import ROOT

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo")
pytestmark = [
    pytest.mark.rare,
    pytest.mark.skipif(not all(map(shutil.which, NEEDED)), reason="Slurm is not installed here"),
]
SCRIPT = ROOT / "workflow" / "one_node_slurm.sh"
SLOW = "time.sleep(10)\n"
IMPATIENT = "executor: slurm\nseconds-between-status-checks: 3\nslurm-init-seconds-before-status-checks: 3\n"


@pytest.fixture
def slurm(tmp_path):
    folder = tmp_path / "slurm"
    started = subprocess.run([SCRIPT, "start", folder], capture_output=True, text=True)
    if started.returncode:
        pytest.skip(f"no Slurm can be started here: {started.stderr[-300:]}")
    yield
    subprocess.run([SCRIPT, "stop", folder], check=True)


def read_claims(checkout):
    table = pd.read_parquet(checkout.folder / "_build" / "grid" / "claims.parquet")
    told = table.drop(columns=["seconds", "memory_gb"])
    return told.sort_values(["model", "seed", "id"]).reset_index(drop=True)


def wait_for_job():
    """The number of a job that is running."""
    for _ in range(120):
        listed = subprocess.run(["squeue", "--noheader", "--states=R", "--format=%A"], capture_output=True, text=True)
        if listed.stdout.split():
            return listed.stdout.split()[0]
        time.sleep(0.5)
    pytest.fail("no job runs")


def test_outcomes_are_those_of_a_local_run_after_a_job_was_killed(slurm, tmp_path):
    good, other = save_model(tmp_path / "good"), save_model(tmp_path / "other", n_layers=3)
    command = ("ci", "--models", str(good), str(other), "--chapters", "first", "--seeds", "0", "1")
    local, cluster = (Checkout(tmp_path / name, good) for name in ("local", "cluster"))
    result = local.run(*command, module="workflow.grid")
    assert result.returncode == 0 and "4 of 4 done" in result.stdout
    cluster.edit("book/first.py", 'run.value("answer", answer)', f'{SLOW}run.value("answer", answer)')
    cluster.edit("workflow/profiles/slurm/config.yaml", "executor: slurm\n", IMPATIENT)
    process = cluster.start(*command, "--executor", "slurm", module="workflow.grid")
    subprocess.run(["scancel", "--full", wait_for_job()], check=True)
    output, errors = process.communicate()
    assert process.returncode == 1 and "3 of 4 done" in output, errors
    result = cluster.run(*command, "--executor", "slurm", module="workflow.grid")
    assert result.returncode == 0 and "4 of 4 done" in result.stdout, result.stderr
    pd.testing.assert_frame_equal(read_claims(cluster), read_claims(local))
    asked = subprocess.run(["squeue", "--noheader", "--states=all", "--format=%C %m"], capture_output=True, text=True)
    jobs = asked.stdout.splitlines()
    assert len(jobs) == 5, "four, and once more the one that was killed"
    assert all(job.split()[0] == "1" and job.split()[1] != "0" for job in jobs), jobs
