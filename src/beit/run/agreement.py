"""What the processes of a training agree on: which signal has asked it to stop."""

from typing import Any

import torch
from torch import distributed


class Agreement:
    """The highest signal of all processes, a step ago: neither host nor device waits for it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._work: Any = None  # that sends
        if device.type == "cuda":
            self._side = torch.cuda.Stream(device)
            self._result = torch.tensor(0).pin_memory()

    def highest(self, number: int, more: bool) -> int:
        """Return the highest signal after the last step; send this step's, if there are `more`."""
        highest = self._receive() if self._work else 0
        if more and not highest:
            self._send(number)
        return highest

    def _send(self, number: int) -> None:
        sent, on_gpu = torch.tensor(number), self._device.type == "cuda"
        self._sent = sent.pin_memory().to(self._device, non_blocking=True) if on_gpu else sent
        maximum = distributed.ReduceOp.MAX
        self._work = work = distributed.all_reduce(self._sent, maximum, async_op=True)
        if on_gpu:
            with torch.cuda.stream(self._side):
                work.wait()  # this stream waits, not the host
                self._result.copy_(self._sent, non_blocking=True)
                self._copied = self._side.record_event()

    def _receive(self) -> int:
        on_gpu = self._device.type == "cuda"
        if on_gpu:
            self._copied.synchronize()
        else:
            self._work.wait()
        self._work = None
        return int(self._result if on_gpu else self._sent)
