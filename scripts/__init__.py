"""Set-up of a source checkout. Standard library only: it runs before anything is installed."""
