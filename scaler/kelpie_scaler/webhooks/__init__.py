"""Sending webhooks: bodies and signatures, which addresses may be reached, and how often a try is repeated."""
