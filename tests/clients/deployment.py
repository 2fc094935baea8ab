"""The files of docker/: YAML that fits together, and settings that octet takes."""

import os
import re
import sys
import tomllib

import yaml

import support

DOCKER = support.ROOT / "docker"
MANIFESTS = DOCKER / "k8s"
MINIMAL = {"ConfigMap": ["data"], "Kustomization": ["resources"]}


def documents(path):
    return [d for d in yaml.safe_load_all(path.read_text()) if d]


def of_kind(kind):
    found = [d for p in sorted(MANIFESTS.rglob("*.yaml")) for d in documents(p) if d["kind"] == kind]
    assert len(found) == 1, f"{len(found)} documents of kind {kind}"
    return found[0]


def check_all_yaml_parses_and_is_named():
    count = 0
    for path in sorted(DOCKER.rglob("*.y*ml")):
        for document in documents(path):
            count += 1
            if path.is_relative_to(MANIFESTS):
                assert document["apiVersion"] and document["kind"], path
                if document["kind"] != "Kustomization":
                    assert re.fullmatch(r"[a-z0-9-]+", document["metadata"]["name"]), path
                for field in MINIMAL.get(document["kind"], ["spec"]):
                    assert document[field], f"{path}: {field}"
    for name in of_kind("Kustomization")["resources"]:
        assert (MANIFESTS / name).is_file(), name
    return f"{count} documents"


def container_of(spec, config_map=None):
    """What holds for the pod of the Deployment and of KServe's runtime."""
    (container,) = spec["containers"]
    volumes = {v["name"] for v in spec["volumes"]}
    mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    assert volumes == set(mounts), (volumes, mounts)
    ours = (DOCKER / "Dockerfile").read_text()
    assert f"OCTET_DATA_DIR={mounts['data']}" in ours
    user = str((spec.get("securityContext") or {}).get("runAsUser") or container["securityContext"]["runAsUser"])
    assert f"USER {user}\n" in ours
    safe = container["securityContext"]
    assert safe["readOnlyRootFilesystem"] and not safe["allowPrivilegeEscalation"]
    assert safe["capabilities"] == {"drop": ["ALL"]}
    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        get = container[probe]["httpGet"]
        assert get["path"] in ("/v2/health/live", "/v2/health/ready"), get
        assert ports.get(get["port"], get["port"]) == 8000, get
    # A required endpoint that cannot be loaded makes octet unready; restarting would not help.
    assert container["livenessProbe"]["httpGet"]["path"] == container["startupProbe"]["httpGet"]["path"]
    assert container["resources"]["limits"]["memory"] and container["resources"]["requests"]["cpu"]
    if config_map:
        (volume,) = [v for v in spec["volumes"] if "configMap" in v]
        assert volume["configMap"]["name"] == config_map["metadata"]["name"]
        path = container["args"][container["args"].index("--config") + 1]
        assert path == f"{mounts[volume['name']]}/{next(iter(config_map['data']))}", path
    return container, ports


def check_the_parts_of_kubernetes_fit():
    deployment, service, claim, config = (of_kind(k) for k in ("Deployment", "Service", "PersistentVolumeClaim",
                                                               "ConfigMap"))
    pod = deployment["spec"]["template"]
    labels = pod["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["selector"].items() <= labels.items()
    assert of_kind("NetworkPolicy")["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    assert of_kind("ServiceMonitor")["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert deployment["spec"]["replicas"] == 1 and deployment["spec"]["strategy"] == {"type": "Recreate"}
    container, ports = container_of(pod["spec"], config)
    assert {p["targetPort"]: p["port"] for p in service["spec"]["ports"]} == ports == {"http": 8000, "grpc": 8001}
    (data,) = [v for v in pod["spec"]["volumes"] if v["name"] == "data"]
    assert data["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    settings = tomllib.loads(config["data"]["octet.toml"])["serving"]
    drain_s = (settings["drain_delay_ms"] + settings["drain_timeout_ms"]) / 1000
    assert pod["spec"]["terminationGracePeriodSeconds"] > drain_s
    assert settings["threads"] == int(container["resources"]["limits"]["cpu"])


def check_the_parts_of_kserve_fit():
    runtime, served, claim = (of_kind(k) for k in ("ServingRuntime", "InferenceService", "PersistentVolumeClaim"))
    container, _ = container_of(runtime["spec"])
    assert container["name"] == "kserve-container"
    (data,) = [v for v in runtime["spec"]["volumes"] if v["name"] == "data"]
    assert data["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    model, predictor = served["spec"]["predictor"]["model"], served["spec"]["predictor"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] in {f["name"] for f in runtime["spec"]["supportedModelFormats"]}
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    assert predictor["minReplicas"] == predictor["maxReplicas"] == 1


def check_the_parts_of_compose_fit():
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    for name, service in compose["services"].items():
        for volume in service.get("volumes", []):
            source, target = volume.split(":")[:2]
            assert target.startswith("/")
            if source.startswith("."):
                assert (DOCKER / source).exists(), f"{name}: {source}"
            else:
                assert source in compose["volumes"], f"{name}: {source}"
        for other in service.get("depends_on", []):
            assert other in compose["services"]
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} is open to the network: {port}"
    # The image listens on all addresses, and octet refuses that without keys unless it is told.
    assert compose["services"]["octet"]["environment"] == {"OCTET_AUTH__ALLOW_PUBLIC": "true"}
    assert compose["services"]["postgres"]["profiles"] == ["postgres"]


def check_octet_takes_the_settings(binary):
    config = support.ROOT / "target/octet-k8s.toml"
    config.parent.mkdir(exist_ok=True)
    # The delay would hold up the end of the test.
    config.write_text(re.sub(r"drain_delay_ms = \d+", "drain_delay_ms = 0", of_kind("ConfigMap")["data"]["octet.toml"]))
    environment = {e["name"]: e["value"] for e in of_kind("ServingRuntime")["spec"]["containers"][0]["env"]}
    environment["OCTET_SERVING__DRAIN_DELAY_MS"] = "0"
    for settings, arguments in (({}, ["--config", config]), (environment, [])):
        with Configured(binary, settings, arguments) as server:
            assert server.get("/v2/health/ready").status == 200
            assert server.get("/v1/models").status == 401, "a cluster is no loopback"


class Configured(support.Server):
    """A server with further arguments of `octet serve`."""

    def __init__(self, binary, settings, arguments):
        self.wrapper = support.ROOT / "target/octet-configured"
        words = " ".join(f"'{a}'" for a in arguments)
        self.wrapper.write_text(f"#!/bin/sh\nexec '{os.path.abspath(binary)}' \"$@\" {words}\n")
        self.wrapper.chmod(0o755)
        super().__init__(self.wrapper, settings=settings)


if __name__ == "__main__":
    support.main(sys.modules[__name__])
