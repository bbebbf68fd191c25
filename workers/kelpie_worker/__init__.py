"""The runtime inside a GPU container: attempts, their commands, their storage."""
