"""The worker process of the MLX backend."""

from backends.mlx.opening import open_engine
from backends.worker import main

main(open_engine)
