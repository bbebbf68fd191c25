"""Brings directories to the storage and back, from outside of jobs: inputs up, outputs down.

    from kelpie_celery.staging import download, fetch_outputs, upload

    upload("data", "my-bucket", "sets/a/")
    fetch_outputs(kelpie, job, "out")

What is there already with the same content is left alone, so a call that was interrupted goes on when it is made again.
The storage is found by the same variables as workers have (``AWS_...``); profiles and files in ``~/.aws`` are not read.

Limits: synchronous; object storage keeps neither owners, modes and times nor links and empty folders.
"""

from kelpie_celery.staging.fetching import Fetched, download
from kelpie_celery.staging.job_outputs import JobOutputs, fetch_outputs
from kelpie_celery.staging.sending import Uploaded, upload

__all__ = ["Fetched", "JobOutputs", "Uploaded", "download", "fetch_outputs", "upload"]
