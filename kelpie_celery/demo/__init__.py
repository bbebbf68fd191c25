"""The main job of the product, shown: real jobs on the local stack, whose nodes are killed while they run.

``python -m kelpie_celery.demo`` runs it. The programs in ``jobs`` double as examples of jobs that survive.
"""
