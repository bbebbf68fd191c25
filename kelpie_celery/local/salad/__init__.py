"""A SaladCloud on this machine: its API, its IMDS, and instances that are real processes.

``SaladSim`` of ``kelpie_celery.local.salad.sim`` is the whole; ``kelpie salad-sim`` runs it in a terminal. Below it,
``world.py`` and ``fleet.py`` are a pure state machine, ``containers.py`` the processes, ``server.py`` the HTTP side.

Source of what the platform does: the public OpenAPI specs of the API (0.9.0-alpha.17) and of IMDS (0.9.0-alpha.3),
docs.salad.com, and measurements by others. Where neither says, ``refusals.py`` and ``docs/salad-sim.md`` name what was
assumed.
"""
