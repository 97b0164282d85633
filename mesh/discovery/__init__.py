"""Where other members of the swarm may be found. Finders report addresses; `mesh.swarm` dials and proves them."""

from mesh.discovery.checks import diagnose
from mesh.discovery.finder import Check, Finder, Found, ListFinder
from mesh.discovery.lan import LanFinder

__all__ = ["Check", "Finder", "Found", "LanFinder", "ListFinder", "diagnose"]
