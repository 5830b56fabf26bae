"""The machines, each tested through its protocol."""
