"""The forward passes of a Hugging Face transformers model, and the residual stream at some layers of each."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks of a model: its longest list of modules that stands in no other (as experts do).

    Raises:
        ValueError: The model has no such list.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) > 0]
    nested = {id(inner) for outer in lists for inner in outer.modules() if inner is not outer}
    outermost = [blocks for blocks in lists if id(blocks) not in nested]
    if not outermost:
        raise ValueError(f"{type(model).__name__} has no list of decoder blocks to hook")
    return max(outermost, key=len)


class LayerRows:
    """Keeps the residual stream at some layers during each forward pass of a model.

    Layer i is the stream after i blocks, 0 to depth, before any final norm.

    Args:
        model: A decoder-only model.
        layers: Layers to keep.

    Attributes:
        rows: Hidden states of the pass under way, by layer: [batch, tokens, hidden].
    """

    def __init__(self, model: nn.Module, layers: Sequence[int]) -> None:
        blocks = decoder_blocks(model)
        if not all(0 <= layer <= len(blocks) for layer in layers):
            raise ValueError(f"layers {list(layers)} must lie within 0..{len(blocks)}")
        self.layers = tuple(layers)
        self.rows: dict[int, torch.Tensor] = {}
        self._handles = [self._hook(blocks, layer) for layer in self.layers]

    def _hook(self, blocks: nn.ModuleList, layer: int) -> torch.utils.hooks.RemovableHandle:
        # What enters block i is the stream after i blocks, whatever an architecture does to its embeddings.
        if layer < len(blocks):

            def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                self._keep(layer, args[0] if args else kwargs.get("hidden_states"))

            return blocks[layer].register_forward_pre_hook(before, with_kwargs=True)

        def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            self._keep(layer, output[0] if isinstance(output, tuple) else output)

        return blocks[-1].register_forward_hook(after)

    def _keep(self, layer: int, hidden: object) -> None:
        # A block that is called in an unknown way leaves its layer out: what is missing fails where it is looked for.
        if isinstance(hidden, torch.Tensor):
            self.rows[layer] = hidden

    def close(self) -> None:
        """Takes the hooks out."""
        for handle in self._handles:
            handle.remove()
        self.rows.clear()


class Passes:
    """Hands over what went into each forward pass of a model, with the hidden states at hand.

    Args:
        model: The model whose ``forward`` runs the batch, such as LlamaForCausalLM.
        layers: Layers whose hidden states are kept.
        take: Called after every pass that succeeded, with its arguments by name; must not raise.
    """

    def __init__(self, model: nn.Module, layers: Sequence[int], take: Callable[[dict[str, Any]], None]) -> None:
        self._kept = LayerRows(model, layers)
        self._take = take
        self._arguments = tuple(inspect.signature(model.forward).parameters)
        self._given: dict[str, Any] = {}
        # Else torch.compile traces the whole way to the client, locks and counters, anew whenever one has changed.
        untraced: Any = torch.compiler.disable
        self._handles = [
            model.register_forward_pre_hook(untraced(self._before), with_kwargs=True),
            # Also when the pass fails: its rows must not stay in memory.
            model.register_forward_hook(untraced(self._after), always_call=True),
        ]

    def rows(self) -> torch.Tensor:
        """Hidden states of the pass that is being taken, [batch, tokens, layers, hidden], in memory of their own.

        Raises:
            ValueError: A layer was not seen.
        """
        kept = self._kept
        if missing := [layer for layer in kept.layers if layer not in kept.rows]:
            raise ValueError(
                f"layers {missing} were not seen in this pass: torch.compile keeps only hooks that it finds when it "
                "traces, so hook the model before its first compiled pass"
            )
        return torch.stack([kept.rows[layer] for layer in kept.layers], dim=2).detach()

    def close(self) -> None:
        """Takes the hooks out of the model."""
        self._kept.close()
        for handle in self._handles:
            handle.remove()

    def _before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._given = {**dict(zip(self._arguments, args, strict=False)), **kwargs}

    def _after(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        given, self._given = self._given, {}
        if output is not None:
            self._take(given)
        self._kept.rows.clear()
