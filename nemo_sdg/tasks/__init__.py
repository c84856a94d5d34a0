"""Techniques: what is asked, how the answer is read, what is cleaned. Data, not code paths."""
