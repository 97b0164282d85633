"""`python -m node.cli`, where the script is not on the path."""

from node.cli import main

main()
