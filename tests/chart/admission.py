"""A MutatingAdmissionPolicy at work on pods: its CEL compiled and evaluated by CEL's makers, its patch applied."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any

from cel_expr_python import cel
from google.protobuf import descriptor_pb2, descriptor_pool, struct_pb2
from google.protobuf.json_format import MessageToDict
from helm_engine import Document

_TYPES = {"op": "TYPE_STRING", "from": "TYPE_STRING", "path": "TYPE_STRING", "value": "TYPE_MESSAGE"}


class Admission:
    """Compiles a policy's expressions.

    Args:
        policy: The rendered MutatingAdmissionPolicy.

    Raises:
        RuntimeError: An expression does not parse or type-check.
    """

    def __init__(self, policy: Document) -> None:
        spec = policy["spec"]
        self._selector = spec["matchConstraints"]["objectSelector"]["matchLabels"]
        self._conditions = [self._compiled(each["expression"]) for each in spec["matchConditions"]]
        self._variables = {each["name"]: self._compiled(each["expression"]) for each in spec["variables"]}
        self._mutations = [self._compiled(each["jsonPatch"]["expression"]) for each in spec["mutations"]]

    def is_for(self, pod: Document) -> bool:
        """Whether labels and conditions let the policy at a pod."""
        labels = pod["metadata"].get("labels", {})
        chosen = all(labels.get(name) == value for name, value in self._selector.items())
        return chosen and all(self._value(each, pod, {}) for each in self._conditions)

    def admit(self, pod: Document) -> Document:
        """The pod as it is admitted.

        Raises:
            ValueError: The patch does not fit the pod, on which failurePolicy decides.
        """
        if not self.is_for(pod):
            return pod
        admitted = copy.deepcopy(pod)
        for mutation in self._mutations:
            variables = {name: _plain(self._value(each, admitted, {})) for name, each in self._variables.items()}
            for patch in [MessageToDict(each.value()) for each in self._value(mutation, admitted, variables)]:
                _add(admitted, patch)
        return admitted

    @cached_property
    def _environment(self) -> Any:
        return cel.NewEnv(_pool(), variables={"object": cel.Type.DYN, "variables": cel.Type.DYN})

    def _compiled(self, expression: str) -> Any:
        return self._environment.compile(expression)

    def _value(self, compiled: Any, pod: Document, variables: Document) -> Any:
        found = compiled.eval(data={"object": pod, "variables": variables})
        if "ERROR" in str(found.type()):
            raise ValueError(str(found.value()))
        return found.value()


def _plain(value: Any) -> Any:
    """A value of CEL as one that CEL takes again."""
    return [each.value() for each in value] if isinstance(value, list) else value


def _pool() -> descriptor_pool.DescriptorPool:
    """Knows JSONPatch as Kubernetes declares it."""
    file = descriptor_pb2.FileDescriptorProto(
        name="jsonpatch.proto", syntax="proto3", dependency=["google/protobuf/struct.proto"]
    )
    message = file.message_type.add(name="JSONPatch")
    for number, (name, kind) in enumerate(_TYPES.items(), 1):
        field = message.field.add(name=name, number=number, label="LABEL_OPTIONAL", type=kind)
        if kind == "TYPE_MESSAGE":
            field.type_name = ".google.protobuf.Value"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(struct_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return pool


def _add(document: Any, patch: dict[str, Any]) -> None:
    """Applies an "add" of RFC 6902 in place.

    Raises:
        ValueError: There is no such place.
    """
    if patch["op"] != "add":
        raise ValueError(f"the policy only adds, and this is {patch['op']}")
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in patch["path"].split("/")[1:]]
    at = document
    try:
        for part in parents:
            at = at[int(part)] if isinstance(at, list) else at[part]
    except (KeyError, IndexError):
        raise ValueError(f"{patch['path']} is no place in the pod") from None
    if isinstance(at, list):
        at.append(patch["value"])
    else:
        at[last] = patch["value"]
