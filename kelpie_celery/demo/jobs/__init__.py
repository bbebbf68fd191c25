"""Programs that jobs run: plain scripts of the standard library and numpy, none of which knows of Celery."""
