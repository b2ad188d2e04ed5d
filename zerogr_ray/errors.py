"""Errors a user can act on. Each message says what was found, where, and the next command."""

from __future__ import annotations


class ZeroGRError(Exception):
    """Base of every error that zerogr_ray raises on purpose. The command line prints it and exits with 2."""


class InputError(ZeroGRError):
    """Something the user gave cannot be read: a path, a corpus, a query, a setting."""


class ModelError(ZeroGRError):
    """A model folder is missing, incomplete, or not what the index was built with."""


class IndexRefused(ZeroGRError):
    """An index folder is truncated, edited, of another format, or does not match its model."""


class BuildError(ZeroGRError):
    """A stage could not finish. What it had finished is kept; the same command goes on from there."""
