"""``kelpie verify``: a job is run on this machine, interrupted and resumed, and what came of it is told.

``rig`` is the stack and its storage, ``listening`` hears what the command does to its checkpoint, ``trial`` is the
order of events, ``judging`` makes findings of what was seen. Needs the extra ``local``.
"""
