"""Whole jobs: a recipe becomes chains of stages on a cluster, with a folder that can be resumed."""
