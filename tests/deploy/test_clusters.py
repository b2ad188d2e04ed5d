"""Cluster-launcher files, by Ray's own validator. It checks structure; addresses and machine types are the cloud's."""

from __future__ import annotations

import copy
import re

import pytest
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.deploy.files import CLUSTERS, documents

pytestmark = pytest.mark.ray

by_file = pytest.mark.parametrize("file", CLUSTERS, ids=lambda file: file.name)


def validated(config):
    """The configuration with Ray's defaults, as `ray up` validates it before it asks for a machine."""
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_there_is_a_file_for_every_kind_of_place():
    assert [file.name for file in CLUSTERS] == ["aws.pool.yaml", "box.cpu.yaml", "box.gpu.yaml", "onprem.pool.yaml"]


@by_file
def test_ray_accepts_the_file(file):
    (config,) = documents(file)
    prepared = validated(config)
    head = prepared["available_node_types"][prepared["head_node_type"]]
    assert head.get("min_workers", 0) <= prepared["max_workers"]


@by_file
def test_ray_would_refuse_it_with_a_typo(file):
    from jsonschema import ValidationError

    (config,) = documents(file)
    with pytest.raises(ValidationError, match="head_start_ray_comands"):
        validated(config | {"head_start_ray_comands": []})
    with pytest.raises(ValidationError, match="run_option"):
        validated(config | {"docker": config["docker"] | {"run_option": []}})


@by_file
def test_ray_starts_with_a_token_and_its_dashboard_on_loopback(file):
    (config,) = documents(file)
    assert "--env=RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert "~/.ray/auth_token" in config["file_mounts"]
    commands = validated(config)["head_start_ray_commands"] + config.get("worker_start_ray_commands", [])
    starts = [command for command in commands if command.startswith("ray start")]
    hosts = [host for command in starts for host in re.findall(r"--dashboard-host=(\S+)", command)]
    assert hosts == ["127.0.0.1"]
    assert not [command for command in commands if "0.0.0.0" in command]
    alone = config["provider"].get("worker_ips") == []
    assert alone == ("--node-ip-address=127.0.0.1" in starts[0]), "a machine alone keeps all of Ray on loopback"


@by_file
def test_nothing_in_a_container_needs_the_launcher_to_install_ray(file):
    (config,) = documents(file)
    assert not validated(config)["setup_commands"]


def test_machines_in_the_cloud_have_no_public_address():
    (config,) = documents(next(file for file in CLUSTERS if file.name.startswith("aws")))
    assert config["provider"]["use_internal_ips"] is True
