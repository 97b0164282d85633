"""The worker process of the fake backend."""

from backends.fake.engine import open_engine
from backends.worker import main

main(open_engine)
