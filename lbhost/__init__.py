"""lbhost: a dependable server for small language models on one box."""

from importlib.metadata import version

__version__ = version("lbhost")
