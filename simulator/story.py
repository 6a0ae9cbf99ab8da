"""What happened in a demonstration: told to people while it happens, kept for machines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Story:
    """What happened, told while it happens; ``facts`` is the same for machines."""

    tell: Callable[[str], None]
    facts: dict[str, Any] = field(default_factory=dict)

    def chapter(self, title: str) -> None:
        """Begin a screen."""
        self.tell(f"\n{title}\n{'-' * len(title)}")

    def fact(self, name: str, value: object, line: str) -> None:
        """One thing that happened."""
        self.facts[name] = value
        self.tell(f"  {line}")
