"""What a commit of a checkpoint is on the storage: its keys, its manifest, and which objects nothing refers to."""
