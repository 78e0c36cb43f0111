"""Whether what attach reads of a workload has the shape that Kubernetes gives it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from monitor.attach.edits import find, plain
from monitor.attach.workload import pods_of
from monitor.errors import SetupError


class _Part(BaseModel):
    """What is not named here is not read."""

    model_config = ConfigDict(alias_generator=to_camel, strict=True)


class _Item(_Part):
    name: Annotated[str, Field(min_length=1)]


class _Mount(_Item):
    mount_path: str


class _Model(_Part):
    model_format: dict[str, Any] | None = None
    image: str | None = None
    command: list[Any] | None = None
    args: list[Any] | None = None
    env: list[_Item] | None = None
    ports: list[dict[str, Any]] | None = None
    volume_mounts: list[_Mount] | None = None


class _Container(_Model, _Item):
    pass


class _Security(_Part):
    supplemental_groups: list[Any] | None = None


class _PodSpec(_Part):
    containers: list[_Container] | None = None
    init_containers: list[_Container] | None = None
    model: _Model | None = None
    security_context: _Security | None = None
    termination_grace_period_seconds: int | None = None
    volumes: list[_Item] | None = None


class _Metadata(_Part):
    annotations: dict[str, Any] | None = None
    labels: dict[str, Any] | None = None


class _Named(_Metadata, _Item):
    namespace: str | None = None


class _Spec(_Part):
    volume_claim_templates: list[Any] | None = None


def check_shape(manifest: dict[str, Any]) -> None:
    """Checks a workload, as far as it is read here.

    Raises:
        SetupError: Something in it has another shape.
    """
    parts: list[tuple[tuple[str, ...], type[_Part]]] = [(("metadata",), _Named), (("spec",), _Spec)]
    for pod in pods_of(manifest):
        parts += [(pod.metadata, _Metadata), (pod.spec, _PodSpec)]
    for path, part in parts:
        _check(path, plain(find(manifest, path)), part)


def _check(path: tuple[str, ...], value: Any, part: type[_Part]) -> None:
    try:
        part.model_validate({} if value is None else value)
    except ValidationError as error:
        first = error.errors()[0]
        told = first["msg"].partition(" or instance of")[0]
        raise SetupError(
            "/".join([*path, *map(str, first["loc"])]),
            f"is not as Kubernetes has it: {told}; kubectl apply --dry-run=server says how it should be",
        ) from None
