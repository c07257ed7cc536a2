"""Run by scripts/backend.py, the build backend, alone; all else is in pyproject.toml."""

from backend import setup_arguments
from setuptools import setup

setup(**setup_arguments)
