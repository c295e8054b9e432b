"""What a method remembers between the steps of an aggregator, and its way into and out of a ``state_dict``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX as EXTRA_STATE_KEY

from gradsurgery.capture.gradients import TaskGradients
from gradsurgery.capture.tasks import TaskNames
from gradsurgery.methods import Method


class MethodMemory(nn.Module):
    """A module whose buffers are a method's memory; ``GradientAggregator`` is one.

    Memory that counts tasks begins with the first step, and what a checkpoint has of it is accepted where its names and shapes are
    those that the method declares for the tasks, groups and positions of that checkpoint.

    Args:
        method: whose memory it is.
        names: of the tasks.
    """

    def __init__(self, method: Method, names: TaskNames) -> None:
        super().__init__()
        self.method = method
        self._names = names
        self._step = 0
        self._state_tasks = 0  # for how many tasks the method's memory has room,
        self._state_groups: tuple[str, ...] = ()  # and of which groups
        self._positions: list[int] | None = None  # of the gradients that a method keeps buffers for
        for name, tensor in method.initial_state().items():
            self.register_buffer(name, tensor)

    def _state(self, grads: TaskGradients, reached: list[int], groups: tuple[str, ...]) -> dict[str, Tensor]:
        """The method's memory, on the gradients' device, with room for all tasks."""
        if self._state_tasks:
            self.method.check_fits(dict(self.named_buffers(recurse=False)), grads)
        if self.method.spec.family == "buffered":
            if self._positions not in (None, reached):
                raise ValueError(
                    f"gradients: expected some task's gradient at the positions {self._positions} as in earlier steps, for which "
                    f"method {self.method.spec.name!r} keeps buffers; found them at {reached}."
                )
            self._positions = reached
        if self._state_tasks and self._state_groups != groups and self.method.task_state(grads, max(len(groups), 1)):
            raise ValueError(
                f"group_by: expected the groups {list(self._state_groups)} of earlier steps, for which method "
                f"{self.method.spec.name!r} keeps memory; found {list(groups)}."
            )
        if self._state_tasks != grads.tasks:
            for name, fresh in self.method.task_state(grads, max(len(groups), 1)).items():
                known = self._buffers.get(name)
                if known is not None:
                    fresh[tuple(slice(size) for size in known.shape)] = known.to(fresh.device)
                self.register_buffer(name, fresh)
            self._state_tasks, self._state_groups = grads.tasks, groups
        state = dict(self.named_buffers(recurse=False))
        for name, tensor in state.items():
            if tensor.device != grads.device:  # a module that was never moved beside the model
                state[name] = self._buffers[name] = tensor.to(grads.device)
        return state

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MethodMemory:
        """Moves the memory with the model, but leaves its types: ``half()`` is meant for the parameters."""

        def keeping_type(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(keeping_type, recurse)
        return self

    # --- state_dict ---------------------------------------------------------------------------------------------------------

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """What this module has of a method's memory becomes what the checkpoint has, or nothing changes.

        Names that the method does not declare are left to torch, which calls them unexpected. Where the checkpoint lacks one that
        it declares, none is taken: half a memory is none.
        """
        extra = prefix + EXTRA_STATE_KEY
        if extra in state_dict:  # else torch says that it is missing
            saved = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix) and key != extra}
            self._refuse_others(state_dict[extra])
            expected, missing = self._declared(saved, state_dict[extra])
            if missing:
                missing_keys.extend(prefix + name for name in missing)
                return
            _check_shapes(saved, expected)
            for name in set(self._buffers) - set(expected):
                del self._buffers[name]
            for name, fresh in expected.items():
                known = self._buffers.get(name)
                if known is None or (known.shape, known.dtype) != (fresh.shape, fresh.dtype):
                    self.register_buffer(name, fresh if known is None else fresh.to(known.device))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)

    def _declared(self, saved: Mapping[str, Any], extra: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
        """What the method declares for a checkpoint's tasks, groups and positions, as before a first step; and what is missing."""
        expected = self.method.initial_state()
        if extra["state_tasks"]:
            buffers = [f"buffer_{p}" for p in range(len(extra["positions"] or ()))]
            lacking = [name for name in buffers if name not in saved]
            if lacking:
                return expected, lacking
            grads = _gradients_behind({name: saved[name] for name in buffers}, int(extra["state_tasks"]))
            expected |= self.method.task_state(grads, max(len(extra["state_groups"]), 1))
        return expected, [name for name in expected if name not in saved]

    def get_extra_state(self) -> dict[str, Any]:
        """What ``state_dict`` holds beside the method's tensors."""
        return {
            "method": self.method.spec.name,
            "variant": _variant(self.method) if set(self._buffers) - set(self.method.initial_state()) else {},
            "tasks": list(self._names.known),
            "step": self._step,
            "state_tasks": self._state_tasks,
            "state_groups": list(self._state_groups),
            "positions": self._positions,
        }

    def _refuse_others(self, state: Mapping[str, Any]) -> None:
        """Raises where a saved state is not this method's, or of other tasks."""
        own = self.method.spec.name
        if state["method"] != own:
            raise ValueError(f"state_dict: expected the state of {own!r}, found one of {state['method']!r}.")
        if state["variant"] not in ({}, _variant(self.method)):
            raise ValueError(
                f"state_dict: expected the state of {own!r} with {_variant(self.method)}, found one with {state['variant']}: what "
                "it remembers has another meaning. Build the aggregator with the options that it was saved with."
            )
        self._names.check_restorable(state["tasks"])
        if not 0 <= state["state_tasks"] <= len(state["tasks"]):
            raise ValueError(
                f"state_dict: expected memory of at most {len(state['tasks'])} tasks ({', '.join(state['tasks'])}), found "
                f"state_tasks={state['state_tasks']}."
            )

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restores it.

        Raises:
            ValueError: the state is of another method, of one built to remember otherwise, or of other tasks.
        """
        self._refuse_others(state)
        self._names.restore(state["tasks"])
        self._step = int(state["step"])
        self._state_tasks = int(state["state_tasks"])
        self._state_groups = tuple(state["state_groups"])
        self._positions = state["positions"]


def _variant(method: Method) -> dict[str, str]:
    """The options that decide what a method's memory means, by name: its choices among words, and which method it wraps.

    Numbers tune what is done with the memory, and may change when a run is resumed.
    """
    values = {name: getattr(method, name) for name in method.spec.options}
    names = {name: value.spec.name if isinstance(value, Method) else value for name, value in values.items()}
    return {name: value for name, value in names.items() if isinstance(value, str)}


def _gradients_behind(buffers: Mapping[str, Tensor], tasks: int) -> TaskGradients:
    """Gradients that buffers [T, ...] of their shape were kept of; without such buffers any of so many tasks.

    Raises:
        ValueError: a buffer that is not of so many tasks.
    """
    for name, buffer in buffers.items():
        if not isinstance(buffer, Tensor) or buffer.dim() == 0 or buffer.shape[0] != tasks:
            found = f"shape {list(buffer.shape)}" if isinstance(buffer, Tensor) else type(buffer).__name__
            raise ValueError(f"state_dict: expected {name!r} of shape [{tasks}, ...], a slice a task, found {found}.")
    if not buffers:
        return TaskGradients([torch.zeros(tasks, 1, device="cpu")], tasks, stacked=True)
    return TaskGradients(list(buffers.values()), tasks, stacked=True)


def _check_shapes(saved: Mapping[str, Any], expected: Mapping[str, Tensor]) -> None:
    """Raises unless every tensor that is declared has the shape that is declared."""
    for name, fresh in expected.items():
        tensor = saved[name]
        if not isinstance(tensor, Tensor) or tensor.shape != fresh.shape:
            found = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(
                f"state_dict: expected {name!r} of shape {list(fresh.shape)}, as the method declares for the saved tasks and "
                f"groups, found {found}."
            )
