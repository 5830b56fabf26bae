"""Other servers of the same trade, to measure ours against: each an echo, and the script that runs them in turn."""
