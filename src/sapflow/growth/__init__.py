"""GROW: slots in a host, the seeds that grow in them, and the life that a seed leads."""
