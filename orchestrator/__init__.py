"""Who runs it, where, and what it cost."""
