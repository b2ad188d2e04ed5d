"""Object stores: one way to reach them, patience with them, and one sentence where they refuse.

Endpoint, region and credentials come the usual way: AWS_ENDPOINT_URL, AWS_REGION, AWS_PROFILE, AWS_ACCESS_KEY_ID and
so on, or the files in ~/.aws, or the machine's role.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zerogr_ray.errors import InputError, ZeroGRError

ATTEMPTS = 14
"""Tries of one request, a minute and a half of backing off together; $AWS_MAX_ATTEMPTS says otherwise."""

CONNECT_SECONDS = 5
"""An address that does not answer at all is asked again after this long."""

SAY_AFTER = 3
"""Seconds of trouble with a store after which it is said that it is waited for."""

QUIET = 30
"""Seconds without a failed request, longer than any pause between two attempts: what fails then is new trouble."""

PARTS_AT_ONCE = 4
"""Parts of 50 MB of one large file that travel at the same time."""

_AGAIN = "and run the same command again"
_REGION = f"the bucket is in {{region}}; set AWS_REGION to that {_AGAIN}"
_BUSY = "the store is overloaded or failing, also after many attempts; run the same command again later"

_REFUSALS = {
    "NoSuchBucket": "there is no bucket {bucket}; check the name and the endpoint (AWS_ENDPOINT_URL), or create it: "
    "aws s3 mb s3://{bucket}",
    "InvalidBucketName": "{bucket} cannot be the name of a bucket; check the address",
    "AccessDenied": "these credentials may not {operation} there; have the right granted, or choose others with "
    "AWS_PROFILE",
    "InvalidAccessKeyId": f"the store does not know this access key; correct AWS_ACCESS_KEY_ID or AWS_PROFILE {_AGAIN}",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key; correct AWS_SECRET_ACCESS_KEY or "
    f"AWS_PROFILE {_AGAIN}",
    "ExpiredToken": "the credentials have expired; renew them (aws sso login, or another AWS_SESSION_TOKEN) "
    f"{_AGAIN}: it goes on from what is done",
    "RequestTimeTooSkewed": f"this machine's clock is wrong; set it {_AGAIN}",
    "PermanentRedirect": _REGION,
    "SlowDown": _BUSY,
    "NotImplemented": "the store lacks what is needed here, conditional writes perhaps, by which an index is published "
    "in one step; use another store",
}
_REFUSALS |= {
    **dict.fromkeys(("InvalidToken", "TokenRefreshRequired", "RequestExpired"), _REFUSALS["ExpiredToken"]),
    **dict.fromkeys(("AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301", "307"), _REGION),
    **dict.fromkeys(("ServiceUnavailable", "InternalError", "500", "502", "503", "504"), _BUSY),
    **dict.fromkeys(("AllAccessDisabled", "AccountProblem", "403"), _REFUSALS["AccessDenied"]),
}

log = logging.getLogger(__name__)

_OPERATIONS = {"Get": "read", "Head": "read", "List": "list", "Put": "write", "Delete": "delete"}


def is_url(place: str | Path) -> bool:
    """Whether `place` is a URL, even one that went through pathlib: Path("s3://b/x") has become "s3:/b/x"."""
    return re.match(r"\w\w+:/", str(place)) is not None


def place_of(path: str | Path) -> str:
    """`path` as an absolute local path, or as the URL that it is, without a slash at its end."""
    if is_url(path):
        return re.sub(r"^(\w+):/+", r"\1://", str(path)).rstrip("/")
    return str(Path(path).expanduser().absolute())


def open_url(url: str) -> tuple[Any, str]:
    """The filesystem of a path or URL and what that calls it. What it lists is always asked anew."""
    from fsspec.core import url_to_fs

    if not url.startswith("s3://"):
        fs, path = url_to_fs(url)
        return fs, str(path)
    from s3fs.core import set_custom_error_handler

    # botocore gives up early where many requests fail together (its quota of retries), so s3fs does the waiting.
    once_more = {"retries": {"mode": "standard", "total_max_attempts": 2}, "connect_timeout": CONNECT_SECONDS}
    fs, path = url_to_fs(url, use_listings_cache=False, max_concurrency=PARTS_AT_ONCE, config_kwargs=once_more)
    wanted = os.environ.get("AWS_MAX_ATTEMPTS", "")
    fs.retries = max(1, int(wanted)) if wanted.isdecimal() else ATTEMPTS
    set_custom_error_handler(_tried_again)
    return fs, str(path)


def _tried_again(error: Exception) -> bool:
    """Whether to send the same request again a little later; one line on the log says so where that takes long."""
    passes = _passes(error)
    if passes:
        _trouble.met(error)
    return passes


def _passes(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    from botocore.exceptions import ConnectionError, SSLError

    if isinstance(error, ConnectionError):
        return not isinstance(error, SSLError)
    return _REFUSALS.get(refused_for(error)) == _BUSY


class Trouble:
    """Since when requests have been failing, and whether that was said."""

    def __init__(self) -> None:
        self.since = self.last = -float("inf")
        self.said = False

    def met(self, error: Exception) -> None:
        """One more request has failed."""
        now = time.monotonic()
        if now - self.last > QUIET:
            self.since, self.said = now, False
        self.last = now
        if now - self.since >= SAY_AFTER and not self.said:
            self.said = True
            log.warning("zerogr: waiting for the store, which is tried again for a while: %s", _one_line(error))


_trouble = Trouble()


def info_of(fs: Any, path: str) -> dict[str, Any] | None:
    """What is known of a file or folder, None where there is none. Raises FileNotFoundError without its bucket."""
    try:
        return dict(fs.info(path))
    except FileNotFoundError as error:
        if refused_for(error) == "NoSuchBucket":
            raise
        return None


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turn what an object store refuses in this block into InputError.

    What is not there stays FileNotFoundError, unless the bucket itself is missing; local errors stay what they are.
    """
    try:
        yield
    except ZeroGRError:
        raise
    except Exception as error:  # botocore's errors have no common base with OSError
        if not url.startswith("s3://"):
            raise
        if said := _sentence(url, error):
            raise InputError(f"{url}: {said}") from error
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(errno.ENOENT, "there is no such object", url) from error
        raise


def refused_for(error: BaseException | None) -> str:
    """The store's own code of a refusal, such as NoSuchBucket; "" where it is none."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""


def _sentence(url: str, error: Exception) -> str | None:
    """What is wrong and what to do; None where the error is not the store's."""
    from botocore.exceptions import (
        BotoCoreError,
        ConnectionError,
        HTTPClientError,
        NoCredentialsError,
        PartialCredentialsError,
        ProfileNotFound,
    )
    from s3fs.utils import FileExpired

    code = refused_for(error)
    if code in ("400", "403") and (reason := _reason(url)) in _REFUSALS:  # a HEAD's answer has no body to say why
        code = reason
    if code in _REFUSALS:
        name = getattr(error.__cause__ or error, "operation_name", "")
        operation = next((verb for begin, verb in _OPERATIONS.items() if name.startswith(begin)), "write")
        bucket = url.removeprefix("s3://").partition("/")[0]
        return _REFUSALS[code].format(bucket=bucket, operation=operation, region=_region(error))
    if isinstance(error, FileExpired):
        return f"it changed while it was read; wait until nobody writes it {_AGAIN}"
    if isinstance(error, FileNotFoundError):
        return None
    if isinstance(error, (NoCredentialsError, PartialCredentialsError, ProfileNotFound)):
        return f"{_one_line(error)}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, {_AGAIN}"
    if isinstance(error, (ConnectionError, HTTPClientError, TimeoutError)):
        return f"the store does not answer ({_one_line(error)}); check AWS_ENDPOINT_URL and the network {_AGAIN}"
    if code or isinstance(error, BotoCoreError):
        return f"{_one_line(error)}; check the address, AWS_ENDPOINT_URL and your credentials"
    return None


def _reason(url: str) -> str:
    """The code with which reading is refused there; "" where it is not."""
    fs, path = open_url(url)
    bucket, key, _ = fs.split_path(path)
    try:
        fs.call_s3("get_object", Bucket=bucket, Key=key or "-", Range="bytes=0-0")
    except Exception as error:  # any refusal: its code is what is asked for
        return refused_for(error)
    return ""


def _region(error: Exception) -> str:
    """The region that the store asks for, if it says so."""
    response = getattr(error.__cause__ or error, "response", {})
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return str(response.get("Error", {}).get("Region") or headers.get("x-amz-bucket-region") or "another region")


def _one_line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split()).rstrip(".")
