"""The ledger: every job's record in Redis, changed by fenced, atomic transitions only."""
