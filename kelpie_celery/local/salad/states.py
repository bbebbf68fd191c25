"""The states of a container group and of an instance, and which may follow which.

A group::

    pending -> stopped | deploying | failed
    stopped -> deploying | pending
    deploying -> running | stopped
    running -> stopped
    failed -> pending
    succeeded ->

An instance; it may leave the list (gone) in any state, and its slot then begins anew::

    allocating -> downloading
    downloading -> creating
    creating -> running | downloading
    running -> stopping | creating | downloading
    stopping ->

Source: docs.salad.com, deployment lifecycle. ``succeeded`` is in the API's enumeration and never seen.
``running`` of a group is sticky: it does not say that an instance runs now.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class GroupStatus(StrEnum):
    """``current_state.status`` of the API."""

    PENDING = "pending"
    RUNNING = "running"
    STOPPED = "stopped"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    DEPLOYING = "deploying"


class InstanceState(StrEnum):
    """``state`` of an instance in the API."""

    ALLOCATING = "allocating"
    DOWNLOADING = "downloading"
    CREATING = "creating"
    RUNNING = "running"
    STOPPING = "stopping"


ACTIVE = frozenset({GroupStatus.DEPLOYING, GroupStatus.RUNNING})

GROUP_TRANSITIONS: Mapping[GroupStatus, frozenset[GroupStatus]] = {
    GroupStatus.PENDING: frozenset({GroupStatus.STOPPED, GroupStatus.DEPLOYING, GroupStatus.FAILED}),
    GroupStatus.STOPPED: frozenset({GroupStatus.DEPLOYING, GroupStatus.PENDING}),
    GroupStatus.DEPLOYING: frozenset({GroupStatus.RUNNING, GroupStatus.STOPPED}),
    GroupStatus.RUNNING: frozenset({GroupStatus.STOPPED}),
    GroupStatus.FAILED: frozenset({GroupStatus.PENDING}),
    GroupStatus.SUCCEEDED: frozenset(),
}

INSTANCE_TRANSITIONS: Mapping[InstanceState, frozenset[InstanceState]] = {
    InstanceState.ALLOCATING: frozenset({InstanceState.DOWNLOADING}),
    InstanceState.DOWNLOADING: frozenset({InstanceState.CREATING}),
    InstanceState.CREATING: frozenset({InstanceState.RUNNING, InstanceState.DOWNLOADING}),
    InstanceState.RUNNING: frozenset({InstanceState.STOPPING, InstanceState.CREATING, InstanceState.DOWNLOADING}),
    InstanceState.STOPPING: frozenset(),
}
