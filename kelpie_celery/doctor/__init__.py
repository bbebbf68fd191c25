"""``kelpie doctor``: looks at Redis, the storage, SaladCloud and this machine, and says what is not as it should be.

``running`` makes each look end in time and keeps it from spoiling the others; ``redis_checks``, ``helper_checks`` and
``storage_checks`` are the library's. What only a deployable knows is in ``kelpie_worker.doctor`` and
``kelpie_scaler.doctor``, which ``kelpie_celery.cli.doctor`` names.
"""
