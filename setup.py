"""Everything that needs no code to say stands in pyproject.toml."""

from setuptools import setup

setup()
