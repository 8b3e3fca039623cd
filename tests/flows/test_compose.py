"""The compose file, by its structure: nothing is open, nothing is secret, everything is watched. It needs no Docker."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "mlflow" / "compose.yaml").read_text()
COMPOSE = yaml.safe_load(TEXT)
SERVICES = COMPOSE["services"]
SECRETS = ("POSTGRES_PASSWORD", "MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY", "PREFECT_SERVER_API_AUTH_STRING")
DOCKERFILE = (ROOT / "mlflow" / "Dockerfile").read_text()


def test_the_services_of_a_team_are_there():
    assert list(SERVICES) == ["postgres", "mlflow", "prefect", "worker"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_watched_restarted_and_may_little(name):
    service = SERVICES[name]
    assert service["healthcheck"]["test"][0] == "CMD" and service["restart"] == "unless-stopped"
    assert "no-new-privileges:true" in service["security_opt"] and "privileged" not in service
    assert re.fullmatch(r"[a-z-]+:\d+\.[\w.-]+", service["image"]), "the version of an image is not pinned"


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_loopback_only(name):
    for port in SERVICES[name].get("ports", []):
        assert port.startswith("${PUBLISH_ON:-127.0.0.1}:")
    assert "network_mode" not in SERVICES[name]
    assert bool(SERVICES[name].get("ports")) == (name in ("mlflow", "prefect"))


def test_no_password_has_a_default_or_is_written_down():
    for name in SECRETS:
        used = re.findall(r"\$\{" + name + r"([^}]*)", TEXT)
        assert used and all(rest.startswith(f":?set {name}") for rest in used)
    for service in SERVICES.values():
        for name, value in service["environment"].items():
            if re.search(r"PASSWORD|SECRET|AUTH_STRING", name):
                assert str(value).startswith("${") and ":?" in str(value), name


def test_a_service_waits_for_what_it_needs():
    needs = {name: service.get("depends_on", {}) for name, service in SERVICES.items()}
    assert {name: list(needed) for name, needed in needs.items()} == {
        "postgres": [],
        "mlflow": ["postgres"],
        "prefect": ["postgres"],
        "worker": ["prefect", "mlflow"],
    }
    assert all(one["condition"] == "service_healthy" for needed in needs.values() for one in needed.values())
    assert int(SERVICES["worker"]["stop_grace_period"].removesuffix("s")) >= 60


def test_what_lasts_is_in_volumes():
    named = {volume.split(":")[0] for service in SERVICES.values() for volume in service["volumes"] if not volume.startswith("./")}
    assert named == set(COMPOSE["volumes"])
    mounted = [volume.split(":")[0] for service in SERVICES.values() for volume in service["volumes"] if volume.startswith("./")]
    assert mounted and all((ROOT / "mlflow" / path).exists() for path in mounted)


def test_the_images_are_built_as_constrained_and_run_as_nobody_special():
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    assert [stage.split()[2] for stage in stages] == ["base", "servers", "worker"]
    assert re.match(r"python:\d+\.\d+\.\d+-", stages[0])
    for stage in stages[1:]:
        assert all("-c constraints.txt" in line for line in re.findall(r"pip install.*", stage))
        assert stage.rindex("USER posttrain") > stage.rindex("COPY")
    copied = [path for line in re.findall(r"^COPY (.*)", DOCKERFILE, re.MULTILINE) for path in line.split()[:-1]]
    assert copied and all((ROOT / path).exists() for path in copied)
    sent = [line[1:] for line in (ROOT / "mlflow" / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")]
    assert set(copied) <= set(sent)


def test_the_scripts_that_the_servers_run_can_be_run():
    for name in ("mlflow", "prefect"):
        assert SERVICES[name]["build"]["target"] == "servers"
        script = ROOT / SERVICES[name]["command"][0]
        assert subprocess.run(["bash", "-n", str(script)]).returncode == 0 and script.stat().st_mode & 0o111
