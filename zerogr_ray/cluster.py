"""The Ray that the work runs on: the one that is there, the one $RAY_ADDRESS names, or a local one for this command."""

from __future__ import annotations

import logging
import math
import os
import re
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from zerogr_ray.cache import locked
from zerogr_ray.config import LLMConfig, PoolConfig, TrainingConfig
from zerogr_ray.errors import BuildError, InputError, ModelError
from zerogr_ray.store import Folder, key_of


class Ask(NamedTuple):
    """What a table of the settings asks of a cluster."""

    actors: int
    """At once."""
    each: dict[str, float]
    """Resources that one of them reserves, on one node."""
    labels: dict[str, str] = {}  # noqa: RUF012  a default, never changed
    """Of that node."""


class Node(NamedTuple):
    """What a node of a cluster has."""

    resources: dict[str, float]
    labels: dict[str, str] = {}  # noqa: RUF012


Asked = dict[str, Ask]
"""By table of the settings."""

LOCAL_OBJECT_STORE = 1 << 30
"""Bytes. Shards travel by name, not through the object store, so that a small one is enough."""


def cores() -> int:
    """CPU cores that this process may use: those it is bound to, or fewer if its container is given less of their time.

    A limit of 1.5 cores counts as 2: one thread would leave the half unused.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(bound, _cpu_limit(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))))


def _cpu_limit(membership: Path, root: Path) -> float:
    """Cores' worth of time that cgroup v2 grants: the least of cpu.max = QUOTA PERIOD from our group up to the root.

    Inside a container the root shown is the container's own group, and so is the path in `membership`.
    """
    try:
        [path] = [line[3:] for line in membership.read_text().splitlines() if line.startswith("0::")]
    except (OSError, ValueError):
        return math.inf
    own = root / path.strip("/")
    limits = [math.inf]
    for group in (own, *own.parents):
        if not group.is_relative_to(root):
            break
        try:
            quota, period = (group / "cpu.max").read_text().split()
        except (OSError, ValueError):  # the whole machine's group has no such file
            continue
        if quota != "max":
            limits.append(int(quota) / int(period))
    return min(limits)


def spare_cpus() -> int:
    """CPUs of the Ray that is running, less one for what reads and collects; at least 1."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)) - 1)


@contextmanager
def ray_cluster(
    object_store: int = LOCAL_OBJECT_STORE, cpus: int | None = None, metrics_port: int | None = None
) -> Iterator[None]:
    """Join the running Ray, or start one that ends with the block.

    One that is started gets `object_store` bytes, counts `cpus` CPUs, and exports metrics on `metrics_port`. Its own
    ports are open on every address of the machine, whatever one asks for, and want its token (~/.ray/auth_token); the
    metrics answer whoever reaches them.

    Ray must not count less than 4 CPUs on a small machine: Ray Train's controller and worker, an engine and a
    reader are four actors, and Ray waits for ever rather than sharing a core between them.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ notices would run through our progress bars
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    if address := os.environ.get("RAY_ADDRESS"):
        _knock(address)
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            if type(error.__cause__).__name__ == "AuthenticationError":
                raise InputError(
                    f"Ray at RAY_ADDRESS={address} refuses us; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
                    "RAY_AUTH_TOKEN_PATH to the cluster's token"
                ) from error
            if "mismatch" in str(error):
                raise InputError(f"RAY_ADDRESS={address}: {' '.join(str(error).split())}") from error
            raise InputError(f"no Ray answers at RAY_ADDRESS={address}: {error}") from error
    else:
        ray.init(
            "local",  # without it Ray would join whatever was started last on this machine
            num_cpus=cpus or max(4, cores()),
            object_store_memory=object_store,
            **({"_metrics_export_port": metrics_port} if metrics_port else {}),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    logging.getLogger("ray").setLevel(logging.ERROR)  # after init, which sets it
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raises InputError if nothing listens at HOST:PORT: Ray itself would try for 20 seconds and fill the screen."""
    host = re.fullmatch(r"(?:ray://)?\[?([^/\]]+)\]?:(\d+)", address)
    if host is None:  # auto, local, a named cluster
        return
    try:
        socket.create_connection((host[1], int(host[2])), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"no Ray answers at RAY_ADDRESS={address}: {error}") from None


def asked_of(training: TrainingConfig, llm: LLMConfig | None = None, pool: PoolConfig | None = None) -> Asked:
    """What the settings ask of a cluster; GPUs count where a number of them was given."""
    each = {"CPU": training.cpus, "GPU": training.gpus or 0, **training.resources}
    asked = {"training": Ask(training.workers, each, training.labels)}
    if llm is not None:
        asked["llm"] = Ask(1, {"CPU": llm.cpus, "GPU": llm.gpus or 0, **llm.resources}, llm.labels)
    if pool is not None:
        asked["workers"] = Ask(1, {"CPU": 1, **pool.resources}, pool.labels)
    return asked


def refuse_lacking(asked: Asked, nodes: Sequence[Node]) -> None:
    """Raises BuildError where these nodes lack what is asked for: Ray would wait for it for ever."""
    for table, ask in asked.items():
        among = [node for node in nodes if all(_may_be(node.labels.get(k), v) for k, v in ask.labels.items())]
        labelled = " and ".join(f"{key}={value}" for key, value in ask.labels.items())
        if not among:
            have = sorted({f"{k}={v}" for node in nodes for k, v in node.labels.items() if k in ask.labels})
            raise BuildError(
                f"{table} asks for nodes labelled {labelled}, the Ray cluster has "
                f"{', '.join(have) or 'none with such a label'}; change {table}.labels or use another cluster"
            )
        many = f"{ask.actors} times " if ask.actors > 1 else ""
        where = f" on nodes labelled {labelled}" if labelled else ""
        whole = {name: amount for name, amount in ask.each.items() if amount}
        for name, amount in whole.items():
            found = [node.resources.get(name, 0) for node in among]
            if _fitting({name: amount}, among) < ask.actors:
                setting = f"{table}.{name.lower()}s" if name in ("CPU", "GPU") else f"{table}.resources"
                raise BuildError(
                    f"{table} asks for {many}{amount:g} {name}{where}, the Ray cluster has {sum(found):g}"
                    + (f", {max(found):g} of them on its largest node" if len(found) > 1 else "")
                    + f"; lower {setting} or use a larger cluster"
                )
        if _fitting(whole, among) < ask.actors:
            wanted = " and ".join(f"{amount:g} {name}" for name, amount in whole.items())
            nodes_have = "; ".join(
                ", ".join(f"{node.resources.get(name, 0):g} {name}" for name in whole) for node in among[:8]
            )
            raise BuildError(
                f"{table} asks for {many}{wanted} on one node{where}, the Ray cluster's nodes have {nodes_have}; "
                f"lower what {table} asks for or use a larger cluster"
            )


def _fitting(each: dict[str, float], nodes: Sequence[Node]) -> float:
    """How many actors of these needs the nodes hold together."""
    if not each:
        return math.inf
    return sum(min(int(node.resources.get(n, 0) / amount + 1e-9) for n, amount in each.items()) for node in nodes)


def _may_be(have: str | None, wanted: str) -> bool:
    """Whether a label suits; what is no plain value (!a, in(a, b)) is for Ray to judge."""
    return have == wanted or wanted.startswith("!") or "(" in wanted


def cluster_nodes() -> list[Node]:
    """The nodes of the Ray that is running."""
    import ray

    return [Node(node["Resources"], node["Labels"]) for node in ray.nodes() if node["Alive"]]


def pool_options(pool: PoolConfig) -> dict[str, Any]:
    """The options of Ray that put an actor into its pool."""
    options = {"resources": pool.resources, "label_selector": pool.labels}
    return {name: value for name, value in options.items() if value}


_held = ExitStack()
"""Locks of the cores that are this process's."""


def pin_apart(threads: int, folder: Path | None = None) -> set[int]:
    """Bind this process to `threads` cores that no other process of ours on this machine has bound itself to.

    Returns them. Each is a lock file in `folder` (the system's for temporary files), held until the process ends,
    however it ends. Where fewer are free nothing is bound: the set is empty.
    """
    place = folder or Path(tempfile.gettempdir()) / f"zerogr-cores-{os.getuid()}"
    place.mkdir(mode=0o700, exist_ok=True)
    mine: set[int] = set()
    with ExitStack() as locks:
        for core in sorted(os.sched_getaffinity(0)):
            with suppress(BlockingIOError):
                locks.enter_context(locked(place / str(core), wait=False))
                mine.add(core)
            if len(mine) == threads:
                break
        if len(mine) < threads:
            return set()
        _held.enter_context(locks.pop_all())
    for thread in os.listdir("/proc/self/task"):  # those that are there; what they start inherits it
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread), mine)
    return mine


def shared(what: str, folder: Path, work: Folder) -> str:
    """Where every node finds what is in `folder`: there, or in a copy in the work folder if that is on a store.

    Raises ModelError where a node does not see it and the work folder is no way to give it: an actor there would fail
    on it much later, and on a large cluster only some of them.
    """
    if (blind := _blind_node(folder)) is None:
        return str(folder)
    if work.local:
        raise ModelError(
            f"{what} {folder} is on the driver's machine, but not on node {blind}; "
            "put it where every node sees it: a shared folder, or the same path in every image"
        )
    files = {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*") if path.is_file()}
    name = key_of("shared", sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in files.items()))
    if not work.exists(f"shared/{name}.json"):
        (work / f"shared/{name}").upload(folder)
        work.write_json(f"shared/{name}.json", {"what": what, "from": str(folder)})
    return work.url_of(f"shared/{name}")


def _blind_node(path: Path) -> str | None:
    """Address of a node of the cluster that does not see `path`."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes: dict[str, str] = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(nodes) < 2:
        return None

    @ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
    def sees() -> bool:
        return path.exists()

    looks = {
        node: sees.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote()
        for node in nodes
    }
    for node, look in looks.items():
        with suppress(RayError):  # a node that is lost meanwhile gets no work
            if not ray.get(look):
                return nodes[node]
    return None
