"""A finished run in an experiment tracker: written where it is told, and nowhere else."""
