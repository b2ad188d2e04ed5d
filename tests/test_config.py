"""Settings: strict, from TOML, with overrides by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from zerogr_ray.config import DecodeConfig, IndexConfig, make_config, read_config
from zerogr_ray.errors import InputError

ROOT = Path(__file__).parent.parent


def test_an_unknown_key_is_refused_with_the_nearest_known_one(tmp_path):
    (tmp_path / "run.toml").write_text("[training]\nepoch = 2\n")
    with pytest.raises(InputError, match=r"run.toml: unknown key 'training.epoch'; did you mean 'epochs'"):
        read_config(tmp_path / "run.toml", IndexConfig)


def test_overrides_win_over_the_file_and_reach_into_tables(tmp_path):
    (tmp_path / "run.toml").write_text("instruction = 'find'\n[training]\nepochs = 2\n")
    cfg = read_config(tmp_path / "run.toml", IndexConfig, {"training.epochs": 5, "queries.per_document": 0})
    assert (cfg.instruction, cfg.training.epochs, cfg.queries.per_document) == ("find", 5, 0)


@pytest.mark.parametrize("name", ["training.epochs", "nonsense.key", "training.epochs.deep"])
def test_an_impossible_value_names_its_key(name):
    with pytest.raises(InputError, match=name.split(".")[0]):
        make_config(IndexConfig, {}, {name: -1})


def test_a_name_that_reaches_into_a_value_is_refused():
    with pytest.raises(InputError, match="reaches into 'epochs'"):
        make_config(IndexConfig, {"training": {"epochs": 2}}, {"training.epochs.deep": 1})


def test_a_missing_or_broken_run_file_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="there is no run file"):
        read_config(tmp_path / "no.toml", IndexConfig)
    (tmp_path / "bad.toml").write_text("= 1")
    with pytest.raises(InputError, match="not valid TOML"):
        read_config(tmp_path / "bad.toml", IndexConfig)


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        DecodeConfig().draws = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    "file",
    [*sorted((ROOT / "pipelines").glob("*.toml")), ROOT / "zerogr_ray" / "demo" / "run.toml"],
    ids=lambda f: f.stem,
)
def test_every_shipped_run_file_is_valid_and_says_what_it_is_for(file):
    read_config(file, IndexConfig)
    assert file.read_text().startswith("# ")
