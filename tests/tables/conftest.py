"""Interruptions of the loop that all tables share."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from beit.run.progress import Progress


@pytest.fixture
def interrupt_at(interrupt_at: Callable[..., None]) -> Callable[..., None]:
    """Runs a recipe until it has computed `step` batches, and interrupts it there."""

    def interrupt(recipe: Any, config: Any, step: int) -> None:
        interrupt_at(SimpleNamespace(run=recipe.run, Progress=Progress), config, step)

    return interrupt
