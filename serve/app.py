"""The search service as Ray Serve deploys it: `serve deploy serve/service.yaml`, or a RayService of KubeRay.

`args` of the application are the settings of zerogr_ray.serving.config.ServiceConfig, or `config`, a service file that
the cluster's nodes see; what stands beside `config` wins over the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import serve

from zerogr_ray.config import make_config, read_config
from zerogr_ray.serving.config import ServiceConfig
from zerogr_ray.serving.control import follow_settings
from zerogr_ray.serving.deploy import application
from zerogr_ray.serving.state import State


def app(args: dict[str, Any]) -> serve.Application:
    """The application of these settings."""
    given = dict(args)
    file = given.pop("config", None)
    cfg = read_config(Path(file), ServiceConfig, given) if file else make_config(ServiceConfig, given)
    built = application(cfg)
    follow_settings(State(cfg.state), cfg.indexes)
    return built
