"""Scaling tried out in virtual time: a trace of jobs, a container group that is slow to start, and a policy."""
