"""The manifests of the service: settings that it takes, pods that may little, ports that lead somewhere."""

import importlib
import tomllib

import pytest
import yaml

from tests.infra.manifests import ROOT, SERVICES, Object, built, one, quantity, templates
from xlmr_ray.serve.settings import ServeSettings
from xlmr_ray.validation import checked

services = pytest.mark.parametrize("overlay", SERVICES)


def serve_config(objects: tuple[Object, ...]) -> Object:
    content = yaml.safe_load(one(objects, "RayService")["spec"]["serveConfigV2"])
    assert isinstance(content, dict)
    return content


def settings_of(objects: tuple[Object, ...]) -> ServeSettings:
    (application,) = serve_config(objects)["applications"]
    (deployment,) = application["deployments"]
    return checked(ServeSettings, {**application["args"], **deployment["user_config"]}, "args")


@services
def test_ray_serve_takes_the_configuration(overlay):
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(serve_config(built(overlay)))
    (application,) = config.applications
    module, _, name = application.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    assert config.http_options.host == "0.0.0.0"


@services
def test_it_is_what_the_command_prints(overlay):
    from xlmr_ray.serve.launch import serve_config as printed

    objects = built(overlay)
    wanted = printed(settings_of(objects))
    got = serve_config(objects)
    assert {**wanted, "http_options": {"host": "0.0.0.0", "port": 8000}} == got


@services
def test_the_settings_are_those_of_the_service_and_fit_the_nodes(overlay):
    objects = built(overlay)
    settings = settings_of(objects)
    cluster = one(objects, "RayService")["spec"]["rayClusterConfig"]
    (group,) = cluster["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    replicas = settings.replicas
    # A replica a node, so that nodes and replicas come and go together.
    assert (group["minReplicas"], group["maxReplicas"]) == (replicas.min, replicas.max)
    assert replicas.cpus != "auto"
    assert quantity(limits["cpu"]) / 2 < replicas.cpus < quantity(limits["cpu"])
    assert quantity(limits.get("nvidia.com/gpu", 0)) == (0 if replicas.gpus == "auto" else replicas.gpus)
    assert (settings.engine.device == "cuda") == ("nvidia.com/gpu" in limits)
    grace = group["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > replicas.graceful_shutdown_s > settings.limits.request_s
    # Keys lie where the pods have them.
    mounts = {mount["mountPath"]: mount["name"] for mount in group["template"]["spec"]["containers"][0]["volumeMounts"]}
    assert settings.keys.file is not None
    folder, _, _ = settings.keys.file.rpartition("/")
    (volume,) = [volume for volume in group["template"]["spec"]["volumes"] if volume["name"] == mounts[folder]]
    assert volume["secret"]["secretName"] == "xlmr-ray-keys"


@services
def test_pods_may_little(overlay):
    for thing in built(overlay):
        for name, template in templates(thing).items():
            pod = template["spec"]
            security = pod["securityContext"]
            assert security["runAsNonRoot"] is True, name
            assert security["runAsUser"] == security["fsGroup"] == 10001
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}
            # The autoscaler, beside the head, asks Kubernetes for nodes.
            assert pod["automountServiceAccountToken"] is (name == "head")
            assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
            kinds = {tuple(set(volume) - {"name"}) for volume in pod["volumes"]}
            assert kinds <= {("emptyDir",), ("secret",)}
            for container in pod["containers"]:
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                }
                requests, limits = (container["resources"][key] for key in ("requests", "limits"))
                assert set(requests) == set(limits) >= {"cpu", "memory", "ephemeral-storage"}
                assert all(quantity(requests[key]) <= quantity(limits[key]) for key in limits)


@services
def test_policies_open_the_service_s_port_and_no_other(overlay):
    objects = built(overlay)
    port = serve_config(objects)["http_options"]["port"]
    policies = {thing["metadata"]["name"]: thing["spec"] for thing in objects if thing["kind"] == "NetworkPolicy"}
    for thing in objects:
        for template in templates(thing).values():
            labels = template["metadata"]["labels"]
            behind = [p for p in policies.values() if p["podSelector"]["matchLabels"].items() <= labels.items()]
            assert len(behind) == 1
    policy = policies["xlmr-ray-service"]
    opened = {}
    for rule in policy["ingress"]:
        for peer in rule["from"]:
            if "namespaceSelector" in peer:
                key = next(iter(peer["namespaceSelector"].get("matchLabels", {"operator": ""})))
                opened[key] = {entry["port"] for entry in rule["ports"]}
            else:  # the cluster's own pods
                assert peer["podSelector"]["matchLabels"] == policy["podSelector"]["matchLabels"]
    assert opened == {"xlmr-ray/clients": {port}, "xlmr-ray/monitoring": {8080}, "operator": {8265, port}}


@services
def test_names_and_versions_are_right(overlay):
    objects = built(overlay)
    there = {(thing["kind"], thing["metadata"]["name"]) for thing in objects}
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    service = one(objects, "RayService")
    cluster = service["spec"]["rayClusterConfig"]
    assert f"\nray=={cluster['rayVersion']}\n" in (ROOT / "constraints.txt").read_text("utf-8")
    assert cluster["authOptions"] == {"mode": "token"}
    for template in templates(service).values():
        assert ("ServiceAccount", template["spec"]["serviceAccountName"]) in there
        for container in template["spec"]["containers"]:
            assert container["image"] in (f"xlmr-ray:{version}", f"xlmr-ray-cuda:{version}")
    store = cluster.get("gcsFaultToleranceOptions")
    assert (store is not None) == (("StatefulSet", "xlmr-ray-redis") in there)
    if store:
        redis, secret = one(objects, "StatefulSet"), store["redisPassword"]["valueFrom"]["secretKeyRef"]
        assert store["redisAddress"] == f"redis://{one(objects, 'Service')['metadata']['name']}:6379"
        assert redis["spec"]["template"]["spec"]["containers"][0]["env"][0]["valueFrom"]["secretKeyRef"] == secret
