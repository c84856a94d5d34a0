"""Stages: verbs that map over the partitions of a dataset, pandas and cuDF alike."""
