"""The composition root: the only package that sees the API, the backends and (later) the mesh."""

from importlib.metadata import PackageNotFoundError, version

DISTRIBUTION = "mesh-inference"

try:
    __version__ = version(DISTRIBUTION)
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+unknown"
