"""The manifests of docs/clusters, read as their launchers would: they parse, and give each process its place."""

import itertools
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from jaxclf.cli.main import parse
from jaxclf.cli.train import Train
from jaxclf.devices.launchers import Place, place

CLUSTERS = Path(__file__).parents[2] / "docs" / "clusters"


def manifest(name: str) -> Any:
    return yaml.safe_load((CLUSTERS / name).read_text())


def test_each_pod_of_the_jobset_has_its_place() -> None:
    whole = manifest("jobset.yaml")
    (job,) = whole["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    pod = {"KUBERNETES_SERVICE_HOST": "10.4.0.1"}
    for index in range(spec["parallelism"]):
        given = {one["name"]: one.get("value", str(index)) for one in container["env"]}
        host = f"{whole['metadata']['name']}-{job['name']}-0-0.{whole['metadata']['name']}"
        expected = Place("jax", f"{host}:8476", spec["completions"], index)
        assert place(pod | {"JOB_COMPLETION_INDEX": str(index)} | given) == expected
    mounted = [one["mountPath"] for one in container["volumeMounts"]]
    check(container["command"], mounted)


def test_the_skypilot_task_trains_in_what_it_mounts() -> None:
    whole = manifest("skypilot.yaml")
    assert whole["num_nodes"] == 2
    check(whole["run"].split(), list(whole["file_mounts"]))


def test_the_slurm_script_is_bash_and_queues_itself_again_on_75() -> None:
    file = CLUSTERS / "slurm.sh"
    subprocess.run(["bash", "-n", str(file)], check=True)
    lines = file.read_text().splitlines()
    (started,) = [line.split() for line in lines if line.startswith("srun ")]
    check(list(itertools.dropwhile(lambda word: word != "jaxclf", started)), ["/shared"])
    assert "[ $? -eq 75 ] && scontrol requeue" in lines[-1]


def check(command: list[str], mounted: list[str]) -> None:
    """Hold a command against the flags of `jaxclf train`, and its run directory against what is shared."""
    program, *args = command
    assert program == "jaxclf"
    train = parse(args)
    assert isinstance(train, Train)
    assert train.recipe.exists()
    assert str(train.workdir.parent) in mounted


@pytest.mark.parametrize("name", ["jobset.yaml", "skypilot.yaml", "slurm.sh"])
def test_the_page_names_each_manifest(name: str) -> None:
    assert f"]({name})" in (CLUSTERS / "README.md").read_text()
