"""A real S3 server for tests: SeaweedFS on free loopback ports, in a folder of its own, with two users."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.serving.ports import free_port

OWNER = ("AKIAZEROGROWNER00000", "owner-secret")
READER = ("AKIAZEROGRREADER0000", "reader-secret")
"""May read and list the bucket `docs` and nothing else."""

START = 120
"""Seconds that the server may take on a busy machine; the limit only bounds a failing test."""

BINARY = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")

PORTS = ("master", "volume", "filer", "s3")


class Server:
    """SeaweedFS. `start` and `kill` may alternate: what was written stays, at the same address."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {f"{part}.port{kind}": free_port() for part in PORTS for kind in ("", ".grpc")}
        self.url = f"http://127.0.0.1:{self.ports['s3.port']}"
        self.process: subprocess.Popen[bytes] | None = None
        identities = [
            {"name": "owner", "credentials": [_key(*OWNER)], "actions": ["Admin", "Read", "Write", "List", "Tagging"]},
            {"name": "reader", "credentials": [_key(*READER)], "actions": ["Read:docs", "List:docs"]},
        ]
        (folder / "data").mkdir(parents=True)
        (folder / "users.json").write_text(json.dumps({"identities": identities}))

    def start(self) -> None:
        """Start it; `wait` says when it answers."""
        options = {
            "dir": self.folder / "data",
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "s3.config": self.folder / "users.json",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.autoCreateBucket": "false",
            "master.volumeSizeLimitMB": 64,
            "master.telemetry": "false",
            "master.raftHashicorp": "true",  # it finds its leader again in a second, the other in twenty
            "volume.max": 64,
            "volume.preStopSeconds": 0,
            **self.ports,
        }
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(BINARY), "server", "-s3"] + [f"-{name}={value}" for name, value in options.items()],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, "HOME": str(self.folder)},
            )

    def wait(self) -> None:
        """Until it stores and gives back an object."""
        import botocore.session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        patience = Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1})
        key, secret = OWNER
        until = time.monotonic() + START
        while True:
            client = botocore.session.Session().create_client(
                "s3",
                endpoint_url=self.url,
                aws_access_key_id=key,
                aws_secret_access_key=secret,
                region_name="us-east-1",
                config=patience,
            )
            try:
                names = [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]
                for bucket in {"docs", "private"} - set(names):
                    client.create_bucket(Bucket=bucket)
                client.put_object(Bucket="private", Key="ready", Body=b"yes")
                assert client.get_object(Bucket="private", Key="ready")["Body"].read() == b"yes"
                return
            except (BotoCoreError, ClientError):
                assert self.process is not None
                if self.process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError((self.folder / "log").read_text()[-3000:]) from None
                time.sleep(0.2)

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        for port in self.ports.values():  # sockets that SeaweedFS makes beside its ports
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)

    def use(self, monkeypatch: pytest.MonkeyPatch, access: str, secret: str) -> None:
        """Let this process and its children speak to this server as this user, whatever the machine's own settings."""
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        settings = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": access,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        fresh()


def fresh() -> None:
    """Forget the open connections: they keep the credentials with which they were made."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()


def _key(access: str, secret: str) -> dict[str, str]:
    return {"accessKey": access, "secretKey": secret}
