"""What kelpie-celery costs, measured against what it is to cost: ``python -m benchmarks [NAME]``."""
