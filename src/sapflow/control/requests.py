"""What people ask of an env by hand: taken at its epoch ends, answered, and carried out in step, on all ranks."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import torch
import torch.distributed as dist

from sapflow.control.actions import SlotActions
from sapflow.control.responses import Responses
from sapflow.growth.guard import device_of
from sapflow.growth.ranks import broadcast_from_first
from sapflow.growth.slot import SeedSlot
from sapflow.telemetry.inbox import Inbox, answer
from sapflow.telemetry.mailbox import Request
from sapflow.telemetry.stream import EventStream
from sapflow.telemetry.vocabulary import SeedStage

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

BY_HAND = "by hand"  # in place of a rule


class Requests:
    """Answers what people ask of one env, and does it.

    Args:
        inbox: where it is asked; None on ranks that do not lead, and where nobody can ask.
        actions: prune, hold and resume.
        responses: end the env.
        stream: where it is answered.
        process_group: the ranks that train the env together; the first asks for them all.
    """

    def __init__(
        self,
        inbox: Inbox | None,
        actions: SlotActions,
        responses: Responses,
        stream: EventStream,
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        self._inbox = inbox
        self._actions = actions
        self._responses = responses
        self._stream = stream
        self._process_group = process_group

    def carry_out(self, epoch: int) -> None:
        """Answer what was asked when this epoch was lived through before, and what is asked now."""
        again = self._shared(lambda inbox: inbox.again(self._stream, epoch))
        self._answer(epoch, again)
        self._answer(epoch, self._shared(lambda inbox: inbox.new(self._stream)))

    def _answer(self, epoch: int, requests: list[Request]) -> None:
        for request in requests:
            slot = self._actions.slots.get(request.slot_id)
            refusal = "" if request.action == "stop" else _refusal(slot, request)
            # The answer comes before what it sets off: where the journal has any of that, it knows what was asked.
            self._stream.emit(
                answer(
                    request,
                    epoch,
                    done=not refusal,
                    outcome=refusal or _promise(slot, request),
                    blueprint_id=slot.state.blueprint_id if slot is not None and not refusal else "",
                )
            )
            if not refusal:
                self._perform(epoch, slot, request)
        if requests and self._inbox is not None:
            self._inbox.answered(*requests)

    def _perform(self, epoch: int, slot: SeedSlot | None, request: Request) -> None:
        if request.action == "stop":
            self._responses.stop_reason = f"{BY_HAND}: {_asked_by(request)}"
            return
        assert slot is not None
        if request.action == "prune":
            self._actions.prune(epoch, slot, rule=BY_HAND, evidence=_asked_by(request))
        elif request.action == "hold":
            self._actions.hold(slot)
        else:
            self._actions.resume(slot)

    def _shared(self, take: Callable[[Inbox], list[Request]]) -> list[Request]:
        """What the first rank takes from its inbox, on every rank."""
        taken = take(self._inbox) if self._inbox is not None else []
        if self._process_group is None:
            return taken
        content = _from_first(msgspec.msgpack.encode(taken), self._process_group, device_of(self._actions.host))
        return msgspec.msgpack.decode(content, type=list[Request])


def _refusal(slot: SeedSlot | None, request: Request) -> str:
    """Why it cannot be done, in words; empty if it can."""
    if slot is None:
        return f"there is no slot {request.slot_id!r}"
    if not slot.alive or slot.state.seed_id != request.seed_id:
        return f"the seed is gone: the slot is {slot.state.stage}"
    if slot.state.stage is SeedStage.FOSSILIZED:
        return "the seed is fossilized: a part of its host for good"
    return ""


def _promise(slot: SeedSlot | None, request: Request) -> str:
    """What will have come of it, in words."""
    if request.action == "stop":
        return "the env ends after this epoch"
    assert slot is not None
    if request.action == "prune":
        return f"pruned in {slot.state.stage}"
    return f"held in {slot.state.stage}" if request.action == "hold" else f"goes on in {slot.state.stage}"


def _asked_by(request: Request) -> str:
    return f"asked for by {request.by}" if request.by else "asked for by a person"


def _from_first(content: bytes, group: "ProcessGroup", device: torch.device) -> bytes:
    """What the first rank of the group gives, on every rank of it."""
    leads = dist.get_rank(group) == 0
    size = torch.tensor([len(content)], device=device)
    broadcast_from_first([size], group)
    filled = list(content) if leads else [0] * int(size)
    letters = torch.tensor(filled, dtype=torch.uint8, device=device)
    broadcast_from_first([letters], group)
    return bytes(letters.tolist())
