"""Exact token counts on a GPU, for byte-level BPE whose split rules are known."""
