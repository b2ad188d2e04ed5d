"""What stores say that no test server says: regions, expired credentials, overload."""

from __future__ import annotations

import pytest
from botocore.exceptions import ClientError
from s3fs.errors import translate_boto_error

from zerogr_ray.errors import InputError
from zerogr_ray.s3 import is_url, place_of, reaching

SAYS = {
    "ExpiredToken": "the credentials have expired; renew them",
    "AuthorizationHeaderMalformed": "the bucket is in eu-central-1; set AWS_REGION",
    "PermanentRedirect": "the bucket is in eu-central-1; set AWS_REGION",
    "SlowDown": "the store is overloaded or failing, also after many attempts; run",
    "NotImplemented": "conditional writes perhaps, by which an index is published in one step; use another store",
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it",
}


def refusal(code):
    answer = {"Error": {"Code": code, "Message": "…", "Region": "eu-central-1"}}
    return translate_boto_error(ClientError(answer, "PutObject"))


def raised(url, error):
    with reaching(url):
        raise error


@pytest.mark.parametrize("code", SAYS)
def test_a_refusal_becomes_one_sentence_with_the_next_step(code):
    with pytest.raises(InputError, match=f"^s3://b/x: .*{SAYS[code]}"):
        raised("s3://b/x", refusal(code))


def test_what_is_not_there_and_what_is_not_the_store_s_stay_what_they_are():
    with pytest.raises(FileNotFoundError, match="s3://b/x"):
        raised("s3://b/x", refusal("NoSuchKey"))
    with pytest.raises(InputError, match="there is no bucket b; check the name"):
        raised("s3://b/x", refusal("NoSuchBucket"))
    for error in (KeyError("x"), ZeroDivisionError()):
        with pytest.raises(type(error)):
            raised("s3://b/x", error)
    with pytest.raises(PermissionError):
        raised("/tmp/x", PermissionError("a local folder"))


def test_urls_are_told_from_paths_even_after_pathlib(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [is_url(text) for text in ("s3://b/x", "s3:/b/x", "/a/b", "a/b", "c:/b")] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert place_of("s3:/b/x/") == "s3://b/x" == place_of("s3://b/x")
    assert place_of("a/b") == str(tmp_path / "a" / "b")
