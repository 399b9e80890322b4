"""Which knobs a baseline has, one file a baseline, with the source of each range."""
