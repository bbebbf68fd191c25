"""The Celery side alone: real workers and a real Valkey, with a runner that plays jobs instead of running them."""
