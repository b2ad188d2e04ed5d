"""Kubernetes manifests: no server is asked, so what only a server knows (admission, storage, quotas) is not tested.

- Kinds of Kubernetes itself, and the pod templates in RayJob and RayService: strictly, by the schemas that
  kubernetes-validate carries.
- RayJob and RayService themselves: strictly, by `kuberay.yaml` beside this file, which is not KubeRay's CRD but its
  fields that we use. The published CRDs are a megabyte each and not kept here; with $KUBERAY_CRDS naming a folder of
  them (helm-chart/kuberay-operator/crds of github.com/ray-project/kuberay at v1.7.1), they are applied too.
- PodMonitor: only that it fits the pods. Its CRD is the Prometheus Operator's.
"""

from __future__ import annotations

import copy
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.deploy.files import INFRA, MANIFESTS, ROOT, documents, groups, manifest, ray_cluster, values

KUBERNETES = "1.34"
RAY_KINDS = ("RayJob", "RayService")
CUSTOM = (*RAY_KINDS, "PodMonitor")
OURS = [document for file in MANIFESTS for document in documents(file)]
STANDARD = [document for document in OURS if document["kind"] not in CUSTOM]
by_ray_kind = pytest.mark.parametrize("kind", RAY_KINDS)


def name_of(document):
    return f"{document['kind']}-{document['metadata'].get('name', '')}"


def check_standard(document):
    """Raises where a document of Kubernetes' own kinds has a wrong or an unknown field."""
    pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate").validate(
        document, KUBERNETES, strict=True
    )


def check_ray(document):
    """Raises where a RayJob or a RayService has a wrong field or one that `kuberay.yaml` does not know."""
    schemas = yaml.safe_load(Path(__file__).with_name("kuberay.yaml").read_text())
    jsonschema.validate(document, {"$defs": schemas["$defs"], **schemas[document["kind"]]})


def check_published(document, crd):
    """Raises where a document has a wrong field or one that its CustomResourceDefinition does not know."""
    (version,) = (one for one in crd["spec"]["versions"] if document["apiVersion"].endswith("/" + one["name"]))
    jsonschema.validate(document, strict(version["schema"]["openAPIV3Schema"]))


def strict(schema):
    """A CRD's schema with unknown fields refused, as `kubectl` does with --validate=strict."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


@pytest.mark.parametrize("document", STANDARD, ids=name_of)
def test_kubernetes_knows_every_field(document):
    check_standard(document)


@by_ray_kind
def test_kuberay_knows_every_field(kind):
    check_ray(manifest(kind))


@by_ray_kind
def test_kubernetes_knows_every_field_of_the_pods(kind):
    for name, group in groups(kind).items():
        pods = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": name}, "template": group["template"]}
        check_standard(pods)


@by_ray_kind
def test_the_published_definitions_know_every_field(kind):
    folder = os.environ.get("KUBERAY_CRDS")
    if not folder:
        pytest.skip("no $KUBERAY_CRDS: a folder of KubeRay's CustomResourceDefinitions")
    check_published(manifest(kind), yaml.safe_load((Path(folder) / f"ray.io_{kind.lower()}s.yaml").read_text()))


@by_ray_kind
def test_a_typo_would_be_found(kind):
    wrong = copy.deepcopy(manifest(kind))
    wrong["spec"]["shutdownAfterJobFinish"] = True
    with pytest.raises(jsonschema.ValidationError, match="shutdownAfterJobFinish"):
        check_ray(wrong)
    wrong = copy.deepcopy(manifest(kind))
    next(values(wrong, "workerGroupSpecs"))[0]["maxReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        check_ray(wrong)
    pod = groups(kind)["cpu"]["template"]
    pods = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "a"}, "template": copy.deepcopy(pod)}
    pods["template"]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(jsonschema.ValidationError, match="volumeMount"):
        check_standard(pods)


def test_a_definition_is_applied_strictly():
    field = {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": True}
    spec = {"type": "object", "properties": {"cpu": field, "free": {"x-kubernetes-preserve-unknown-fields": True}}}
    schema = {"type": "object", "properties": {"apiVersion": {"type": "string"}, "spec": spec}}
    crd = {"spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": schema}}]}}
    check_published({"apiVersion": "ray.io/v1", "spec": {"cpu": 1, "free": {"a": 2}}}, crd)
    with pytest.raises(jsonschema.ValidationError, match="cpus"):
        check_published({"apiVersion": "ray.io/v1", "spec": {"cpus": 1}}, crd)


@by_ray_kind
def test_pods_use_the_ray_that_is_installed_with_the_package(kind):
    pinned = pytest.importorskip("packaging.requirements").Requirement(
        next(line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("ray = ["))
        .removeprefix('ray = ["')
        .removesuffix('"]')
    )
    assert ray_cluster(kind)["rayVersion"] in pinned.specifier


def test_the_job_calls_a_command_that_there_is():
    import typer

    from zerogr_ray.cli import app
    from zerogr_ray.config import IndexConfig, read_config

    program, verb, *arguments = shlex.split(manifest("RayJob")["spec"]["entrypoint"])
    assert (program, verb) == ("zerogr", "index")
    given = typer.main.get_command(app).commands[verb].make_context(verb, arguments).params
    assert given["out"].startswith("/shared/"), "the next job and the service look for it there"
    assert read_config(ROOT / "pipelines" / "gpu.toml", IndexConfig).llm.gpus, "what brings up the group gpu"


@pytest.mark.ray
def test_the_service_deploys_what_there_is():
    pytest.importorskip("torch")
    from importlib import import_module

    from ray.serve.schema import HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

    from zerogr_ray.config import make_config
    from zerogr_ray.serving.config import ServiceConfig

    here = yaml.safe_load(manifest("RayService")["spec"]["serveConfigV2"])
    for said in (here, yaml.safe_load((ROOT / "serve" / "service.yaml").read_text())):
        deployed = ServeDeploySchema.model_validate(said)
        assert said.keys() <= ServeDeploySchema.model_fields.keys(), "the schema lets unknown keys pass"
        assert said["http_options"].keys() <= HTTPOptionsSchema.model_fields.keys()
        (application,) = deployed.applications
        assert said["applications"][0].keys() <= ServeApplicationSchema.model_fields.keys()
        module, _, name = application.import_path.partition(":")
        assert callable(getattr(import_module(module), name))
        cfg = make_config(ServiceConfig, application.args)
        assert (cfg.host, cfg.port) == (deployed.http_options.host, deployed.http_options.port)
        assert cfg.keys, "it listens beyond loopback"
        assert cfg.limits.seconds < deployed.http_options.request_timeout_s
    group = groups("RayService")["cpu"]
    cpus = float(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    args = here["applications"][0]["args"]
    assert args["cpus"] * args["replicas"] <= cpus * group["minReplicas"], "the first replicas wait for no machine"
    assert args["cpus"] * args["max_replicas"] <= cpus * group["maxReplicas"]


@by_ray_kind
def test_what_pods_mount_is_made_by_the_kustomization(kind):
    made = yaml.safe_load((INFRA / "kustomization.yaml").read_text())
    secrets = {secret["name"] for secret in made["secretGenerator"]}
    assert secrets == {"ray-token", "search-keys"}
    assert made["namespace"] == manifest(kind)["metadata"]["namespace"] == manifest("Namespace")["metadata"]["name"]
    cluster = ray_cluster(kind)
    assert {secret["secretName"] for secret in values(cluster, "secret")} <= secrets
    assert set(values(cluster, "claimName")) == {manifest("PersistentVolumeClaim")["metadata"]["name"]}
    for group in groups(kind).values():
        pod = group["template"]["spec"]
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_the_keys_are_where_the_service_looks_for_them():
    args = yaml.safe_load(manifest("RayService")["spec"]["serveConfigV2"])["applications"][0]["args"]
    for group in groups("RayService").values():
        (mount,) = (one for one in next(values(group, "volumeMounts")) if one["name"] == "keys")
        assert args["keys"] == mount["mountPath"] + "/keys.json"


def test_the_cluster_is_closed_but_for_those_who_are_named():
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in OURS if policy["kind"] == "NetworkPolicy"}
    everybody = policies.pop("among-themselves")
    assert everybody["podSelector"] == {}
    assert everybody["policyTypes"] == ["Ingress", "Egress"]
    assert everybody["ingress"] == [{"from": [{"podSelector": {}}]}]
    for spec in policies.values():
        for rule in spec["ingress"]:
            assert rule["ports"], "an ingress rule without ports opens all"
            assert all(peer["namespaceSelector"]["matchLabels"] for peer in rule["from"])


def test_nothing_is_reached_from_outside():
    assert not {document["kind"] for document in OURS} & {"Service", "Ingress", "Gateway", "HTTPRoute"}
    for document in OURS:
        for key in ("hostNetwork", "hostPort", "serviceType", "enableIngress", "nodePort", "headService"):
            assert not list(values(document, key)), key


@by_ray_kind
def test_ray_asks_for_the_token(kind):
    assert ray_cluster(kind)["authOptions"] == {"mode": "token", "secretName": "ray-token"}


def test_pods_have_no_rights_to_spare():
    pods = [manifest("Pod")["spec"]]
    pods += [group["template"]["spec"] for kind in RAY_KINDS for group in groups(kind).values()]
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]


def test_no_secret_is_in_the_repository():
    assert not [document for document in OURS if document["kind"] == "Secret"]
    assert "/infra/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


def test_prometheus_finds_the_pods():
    monitor = manifest("PodMonitor")
    assert monitor["spec"]["namespaceSelector"]["matchNames"] == [manifest("Namespace")["metadata"]["name"]]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    (policy,) = (one for one in OURS if one["metadata"].get("name") == "from-prometheus")
    assert monitor["spec"]["selector"] == policy["spec"]["podSelector"]
    assert set(values(policy, "kubernetes.io/metadata.name")) == {monitor["metadata"]["namespace"]}
    for group in groups("RayService").values():
        ports = {port["name"]: port["containerPort"] for port in next(values(group, "ports"))}
        assert ports[endpoint["port"]] == next(values(policy["spec"]["ingress"], "ports"))[0]["port"]


def test_kubectl_renders_the_kustomization(tmp_path):
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    shutil.copytree(INFRA, tmp_path / "infra", ignore=shutil.ignore_patterns("secrets"))
    render = [kubectl, "kustomize", tmp_path / "infra"]
    without = subprocess.run(render, capture_output=True, text=True, check=False)
    assert without.returncode != 0, "a deployment without its secrets must not be applied"
    (tmp_path / "infra" / "secrets").mkdir()
    for name in ("auth_token", "keys.json"):
        (tmp_path / "infra" / "secrets" / name).write_text("only a test")
    rendered = list(yaml.safe_load_all(subprocess.run(render, capture_output=True, text=True, check=True).stdout))
    for document in rendered:
        check_standard(document)
    assert {one["metadata"]["name"] for one in rendered if one["kind"] == "Secret"} == {"ray-token", "search-keys"}
    assert {one["metadata"]["namespace"] for one in rendered if one["kind"] != "Namespace"} == {"zerogr"}
