"""What an operator is told beside its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from amct_onnx.errors import NotAvailableError

Result = Tensor | tuple[Tensor, ...]
Operator = Callable[..., Result]
"""`operator(call, *inputs)`: an omitted optional input is None; outputs that are never asked for may be missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One node at work.

    attributes: name -> value, texts as str and tensors as torch tensors.
    opset: version of the default operator set.
    outputs: how many outputs the node names.
    training: whether the module is in train mode.
    """

    attributes: Mapping[str, Any]
    opset: int
    outputs: int
    training: bool

    def get(self, name: str, default: Any = None) -> Any:
        """The value of an attribute."""
        return self.attributes.get(name, default)

    def refuse(self, name: str, allowed: Any) -> None:
        """Raise NotAvailableError unless the attribute is unset or `allowed`."""
        if (found := self.get(name, allowed)) != allowed:
            raise NotAvailableError(f"{name}={found!r} is not available for training, only {allowed!r}")

    def integers(self, name: str, given: Tensor | None) -> list[int] | None:
        """A list of integers that is an attribute in older operator sets and an input in newer ones; None if unset."""
        if given is not None:
            return [int(i) for i in given.reshape(-1).tolist()]
        value = self.get(name)
        return None if value is None else [int(i) for i in value]
