"""Programs that tests run as jobs; each checks its own checkpoint. Plain Python that knows nothing of kelpie-celery."""
