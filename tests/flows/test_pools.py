"""Job templates of work pools: they keep what Prefect's own have, and what they render is what a worker can start."""

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import PrefectClient
from prefect.server.api import collections
from prefect.utilities.templating import find_placeholders
from prefect.workers.base import BaseJobConfiguration
from pydantic import ConfigDict

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"process": "prefect", "docker": "prefect-docker", "kubernetes": "prefect-kubernetes"}
KINDS = list(PACKAGES)


class Rendered(BaseJobConfiguration):
    """A configuration of a worker that takes whatever its template has."""

    model_config = ConfigDict(extra="allow")


def template(kind: str) -> dict[str, Any]:
    return json.loads((ROOT / "flows" / "pools" / f"{kind}.json").read_text())


def configured(worker: type[BaseJobConfiguration], kind: str, **values: Any) -> Any:
    """What a worker would start, with these job variables. Nothing in the templates has to be asked for: without a client one would."""
    nobody = PrefectClient("http://127.0.0.1:9/api")
    return asyncio.run(worker.from_template_and_values(template(kind), values, client=nobody))


def rendered(kind: str, **values: Any) -> dict[str, Any]:
    return configured(Rendered, kind, **values).model_dump()


@pytest.mark.parametrize("kind", KINDS)
def test_a_template_has_all_that_prefects_own_has(kind):
    views = Path(collections.__file__).parent / "collections_data" / "views" / "aggregate-worker-metadata.json"
    own = json.loads(views.read_text())[PACKAGES[kind]][kind]["default_base_job_configuration"]
    ours = template(kind)
    assert set(own["job_configuration"]) <= set(ours["job_configuration"])
    assert set(own["variables"]["properties"]) <= set(ours["variables"]["properties"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_variable_is_used_and_every_placeholder_is_a_variable(kind):
    ours = template(kind)
    variables = ours["variables"]["properties"]
    placeholders = {placeholder.name for placeholder in find_placeholders(ours["job_configuration"])}
    assert placeholders | {"env"} == set(variables)
    assert not [name for name, schema in variables.items() if not schema.get("description")]


def test_a_process_gets_its_output_folder_its_gpus_and_its_environment():
    assert rendered("process")["env"] == {}
    env = rendered("process", home="/data", visible_gpus="0,1", env={"A": "b"})["env"]
    assert env == {"POSTTRAIN_HOME": "/data", "CUDA_VISIBLE_DEVICES": "0,1", "A": "b"}


def test_a_container_gets_gpus_shared_memory_and_a_volume_for_what_lasts():
    container = rendered("docker", env={"A": "b"})
    assert container["volumes"] == ["posttrain-home:/var/lib/posttrain"]
    assert container["env"] == {"POSTTRAIN_HOME": "/var/lib/posttrain", "A": "b"}
    assert container["container_create_kwargs"] == {
        "init": True,
        "shm_size": "16g",
        "device_requests": [{"count": -1, "capabilities": [["gpu"]]}],
        "security_opt": ["no-new-privileges"],
    }
    assert rendered("docker", gpus=[])["container_create_kwargs"]["device_requests"] == []


def test_a_pod_gets_gpus_shared_memory_a_claim_a_secret_and_time_to_save():
    pod = rendered("kubernetes", gpus=8, shared_memory="64Gi")["job_manifest"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 8}, "requests": {}}
    assert container["envFrom"] == [{"secretRef": {"name": "posttrain", "optional": True}}]
    assert pod["terminationGracePeriodSeconds"] >= 60
    assert pod["volumes"] == [
        {"name": "home", "persistentVolumeClaim": {"claimName": "posttrain-home"}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}},
    ]
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/var/lib/posttrain", "/dev/shm"]
    assert pod["securityContext"]["runAsNonRoot"] and not container["securityContext"]["allowPrivilegeEscalation"]
    assert "nodeSelector" not in pod and rendered("kubernetes")["env"] == {"POSTTRAIN_HOME": "/var/lib/posttrain"}


def test_the_documented_command_sends_every_deployment_to_another_pool():
    """`prefect deploy --all` takes no --pool: one line of prefect.yaml names the pool of all."""
    change = "s/^    name: local$/    name: docker/"
    assert f"sed '{change}' prefect.yaml" in (ROOT / "docs" / "servers.md").read_text()
    command = ["sed", change, str(ROOT / "prefect.yaml")]
    sent = yaml.safe_load(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert {deployment["work_pool"]["name"] for deployment in sent["deployments"]} == {"docker"}


def test_the_workers_of_docker_and_kubernetes_take_the_templates():
    reason = "the packages of these pools are extras: pip install -e '.[docker,kubernetes]'"
    docker = pytest.importorskip("prefect_docker.worker", reason=reason).DockerWorkerJobConfiguration
    kubernetes = pytest.importorskip("prefect_kubernetes.worker", reason=reason).KubernetesWorkerJobConfiguration
    container = configured(docker, "docker")
    assert container.container_create_kwargs["shm_size"] == "16g" and container.image == "posttrain:0.1.0"
    job = configured(kubernetes, "kubernetes")
    job._populate_env_in_manifest()
    manifest = job.job_manifest["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "POSTTRAIN_HOME", "value": "/var/lib/posttrain"} in manifest["env"]
