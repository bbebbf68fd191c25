"""What the API and IMDS accept as bodies, checked as their specifications say.

Limits: of ``networking``, the probes and ``queue_connection`` the shape is checked and the content kept and shown; no
probe runs, and there is no gateway and no job queue. Unknown fields of a group are ignored, as the specification allows
them; those of an instance's patch are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from kelpie_celery.local.salad.errors import Refusal

MAX_REPLICAS = 500
MAX_DELETION_COST = 100_000
NAME = r"^[a-z][a-z0-9-]{0,61}[a-z0-9]$"

Name = Annotated[str, StringConstraints(pattern=NAME)]
DisplayName = Annotated[str, StringConstraints(min_length=2, max_length=63, pattern=r"^[ ,-.0-9A-Za-z]+$")]
Replicas = Annotated[int, Field(ge=0, le=MAX_REPLICAS)]
Port = Annotated[int, Field(ge=1, le=65535)]
Country = Annotated[str, StringConstraints(pattern=r"^[a-z]{2}$")]
Variable = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Word = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Image = Annotated[str, StringConstraints(min_length=1, max_length=2048)]
GpuClasses = Annotated[list[Annotated[UUID, Field(strict=False)]], Field(max_length=100)]
Priority = Literal["high", "medium", "low", "batch"]
Cpu = Annotated[int, Field(ge=1, le=1024)]
Memory = Annotated[int, Field(ge=1024, le=1_073_741_824)]
SharedMemory = Annotated[int, Field(ge=64, le=1_073_741_824)]
Storage = Annotated[int, Field(ge=1_073_741_824, le=1_125_899_906_842_624)]

M = TypeVar("M", bound=BaseModel)


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", hide_input_in_errors=True)


class Resources(_Body):
    """``container.resources`` at the creation."""

    cpu: Cpu
    memory: Memory
    gpu_classes: GpuClasses | None = None
    shm_size: SharedMemory | None = None
    storage_amount: Storage | None = None


class ResourcesPatch(_Body):
    """``container.resources`` of a patch."""

    cpu: Cpu | None = None
    memory: Memory | None = None
    gpu_classes: GpuClasses | None = None
    shm_size: SharedMemory | None = None
    storage_amount: Storage | None = None


class _ContainerFields(_Body):
    command: Annotated[list[Word], Field(max_length=100)] | None = None
    environment_variables: dict[str, Variable] | None = Field(None, repr=False)
    image_caching: bool | None = None
    priority: Priority | None = None


class Container(_ContainerFields):
    """``container`` at the creation."""

    image: Image
    resources: Resources


class ContainerPatch(_ContainerFields):
    """``container`` of a patch."""

    image: Annotated[str, StringConstraints(min_length=1, max_length=1024)] | None = None
    resources: ResourcesPatch | None = None


class Probe(_Body):
    """A liveness, readiness or startup probe; how it asks is kept as it is."""

    model_config = ConfigDict(strict=True, extra="ignore", hide_input_in_errors=True)

    failure_threshold: Annotated[int, Field(ge=1, le=20)]
    initial_delay_seconds: Annotated[int, Field(ge=0, le=1200)]
    period_seconds: Annotated[int, Field(ge=1, le=120)]
    success_threshold: Annotated[int, Field(ge=1, le=10)]
    timeout_seconds: Annotated[int, Field(ge=1, le=60)]
    exec: dict[str, Any] | None = None
    grpc: dict[str, Any] | None = None
    http: dict[str, Any] | None = None
    tcp: dict[str, Any] | None = None


class QueueAutoscaler(_Body):
    """The vendor's own scaling by a job queue."""

    desired_queue_length: Annotated[int, Field(ge=1, le=100)]
    max_replicas: Annotated[int, Field(ge=1, le=MAX_REPLICAS)]
    min_replicas: Annotated[int, Field(ge=0, le=100)]
    max_downscale_per_minute: Annotated[int, Field(ge=1, le=100)] | None = None
    max_upscale_per_minute: Annotated[int, Field(ge=1, le=100)] | None = None
    polling_period: Annotated[int, Field(ge=15, le=1800)] | None = None


class ScalingAction(_Body):
    """One line of the vendor's scheduled scaling."""

    replicas: Replicas
    schedule: Annotated[str, StringConstraints(pattern=r"^([0-9A-Za-z*/,-]+)([\t ]+[0-9A-Za-z*/,-]+){4}$")]


class Networking(_Body):
    """The gateway, at the creation."""

    auth: bool
    port: Port
    protocol: Literal["http"]


class NetworkingPatch(_Body):
    """The gateway, in a patch."""

    port: Port | None = None


class QueueConnection(_Body):
    """The vendor's job queue."""

    path: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    port: Port
    queue_name: Name


class _GroupFields(_Body):
    display_name: DisplayName | None = None
    country_codes: Annotated[list[Country], Field(min_length=1, max_length=500)] | None = None
    liveness_probe: Probe | None = None
    readiness_probe: Probe | None = None
    startup_probe: Probe | None = None
    queue_autoscaler: QueueAutoscaler | None = None
    scaling_actions: Annotated[list[ScalingAction], Field(max_length=100)] | None = Field(None, alias="scaling-actions")
    scheduled_scaling: bool | None = Field(None, alias="scheduled-scaling-enabled")


class Prototype(_GroupFields):
    """The body that creates a group."""

    name: Name
    container: Container
    autostart_policy: bool
    replicas: Replicas
    restart_policy: Literal["always", "on_failure", "never"]
    networking: Networking | None = None
    queue_connection: QueueConnection | None = None


class GroupPatch(_GroupFields):
    """The body that changes a group; what is missing stays as it is."""

    replicas: Replicas | None = None
    container: ContainerPatch | None = None
    networking: NetworkingPatch | None = None


class InstancePatch(_Body):
    """The body that changes an instance; ``null`` is the default again."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)

    deletion_cost: Annotated[int, Field(ge=0, le=MAX_DELETION_COST)] | None = None


class DeletionCost(_Body):
    """IMDS: the body of ``PUT /v1/deletion-cost``; the whole range of an int32, other than in the API."""

    deletion_cost: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]


class ReallocateReason(_Body):
    """IMDS: the body of ``POST /v1/reallocate``."""

    reason: Annotated[str, StringConstraints(min_length=1, max_length=1000)]


def parsed(model: type[M], body: object, code: str = "") -> M:
    """A body, checked.

    Args:
        model: What it should be.
        body: The parsed JSON.
        code: The code of the error, in IMDS.

    Raises:
        Refusal: 400; it names the fields, and no value.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        fields: dict[str, list[str]] = {}
        for one in error.errors(include_url=False, include_context=False, include_input=False):
            fields.setdefault(".".join(map(str, one["loc"])) or "body", []).append(one["msg"])
        text = "; ".join(f"{name}: {', '.join(faults)}" for name, faults in fields.items())
        raise Refusal(400, f"The request body is not valid: {text}"[:1900], code=code, fields=fields) from None
