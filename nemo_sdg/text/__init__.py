"""Text as columns: count tokens, split, pack and join, clean and measure."""
