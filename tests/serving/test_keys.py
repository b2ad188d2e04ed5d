"""API keys and rates."""

from __future__ import annotations

import json

import pytest

from zerogr_ray.errors import InputError
from zerogr_ray.serving.keys import ANYBODY, Keys, Rates, new_key, read_keys


def test_a_key_is_found_by_its_text_and_its_text_is_nowhere(tmp_path):
    file = tmp_path / "keys.json"
    site, editor = new_key(file, "site", ["search"]), new_key(file, "editor", ["change", "search"])
    keys = Keys(read_keys(file))
    assert keys.find(site).name == "site"
    assert keys.find(site).rights == ("search",)
    assert keys.find(editor).rights == ("search", "change")
    assert keys.find(site[:-1]) is keys.find(None) is keys.find("\ud800") is None
    assert site not in file.read_text()
    assert editor not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0


def test_a_service_without_keys_knows_everybody():
    assert Keys([]).find(None) is ANYBODY


def test_what_is_wrong_with_a_key_file_is_said(tmp_path):
    file = tmp_path / "keys.json"
    with pytest.raises(InputError, match="there is no key file"):
        read_keys(file)
    new_key(file, "site", ["search"])
    with pytest.raises(InputError, match="a key 'site' already"):
        new_key(file, "site", ["search"])
    with pytest.raises(InputError, match="no right 'root'"):
        new_key(file, "other", ["root"])
    for damage in ("{", "[]", json.dumps([{"name": "a", "sha256": "short", "rights": []}])):
        file.write_text(damage)
        with pytest.raises(InputError):
            read_keys(file)


def test_a_rate_lets_a_burst_through_and_then_one_request_per_interval():
    now = 100.0
    rates = Rates(rate=2.0, burst=3, clock=lambda: now)
    assert [rates.take("a") for _ in range(3)] == [0.0] * 3
    assert rates.take("a") == pytest.approx(0.5)
    assert rates.take("b") == 0.0
    now += 0.5
    assert rates.take("a") == 0.0
    assert rates.take("a") == pytest.approx(0.5)
    now += 1000
    assert [rates.take("a") for _ in range(3)] == [0.0] * 3
    assert rates.take("a") > 0


def test_replicas_share_a_rate():
    now = 0.0
    rates = Rates(rate=2.0, burst=4, clock=lambda: now)
    assert [rates.take("a", sharers=2) for _ in range(2)] == [0.0] * 2
    assert rates.take("a", sharers=2) == pytest.approx(1.0)
