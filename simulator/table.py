"""One table of a TOML description, read with an error for whatever does not belong there."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any

from cardlib.errors import ConfigError


class Table:
    """One table of a description: takes typed values out, then says what nobody asked for."""

    def __init__(self, where: str, values: object) -> None:
        if not isinstance(values, Mapping):
            raise ConfigError(f"{where}: a table is expected")
        self.where = where
        self._rest = dict(values)

    def take(self, name: str, default: Any = None) -> Any:  # noqa: ANN401  # a TOML value
        return self._rest.pop(name, default)

    def fail(self, name: str, problem: str) -> ConfigError:
        return ConfigError(f"{self.where}: {name} {problem}")

    def need(self, name: str, value: Any) -> Any:  # noqa: ANN401  # a TOML value
        if value is None:
            raise self.fail(name, "is missing")
        return value

    def number(self, name: str, default: int | None, highest: int) -> int:
        value = self.need(name, self.take(name, default))
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= highest:
            raise self.fail(name, f"is not a number from 0 to {highest}")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self.need(name, self.take(name, default))
        if not isinstance(value, str):
            raise self.fail(name, "is not a text")
        return value

    def choice(self, name: str, default: str, choices: Mapping[str, int]) -> int:
        value = self.text(name, default)
        if value not in choices:
            raise self.fail(name, f"is {value!r}, use one of {', '.join(choices)}")
        return choices[value]

    def hex(self, name: str, default: bytes | None = None, *sizes: int) -> bytes:
        value = self.need(name, self.take(name, default))
        return self.bytes_of(name, value, *sizes)

    def bytes_of(self, name: str, value: object, *sizes: int) -> bytes:
        if isinstance(value, str):
            try:
                value = bytes.fromhex(value)
            except ValueError:
                raise self.fail(name, "is not hexadecimal") from None
        if not isinstance(value, bytes):
            raise self.fail(name, "is not a hexadecimal text")
        if sizes and len(value) not in sizes:
            raise self.fail(name, f"has {len(value)} bytes, not {' or '.join(map(str, sizes))}")
        return value

    def day(self, name: str, default: date | None = None) -> date | None:
        value = self.take(name, default)
        if value is not None and type(value) is not date:
            raise self.fail(name, "is not a date (2025-01-31)")
        return value

    def table(self, name: str) -> Table:
        return Table(f"{self.where}.{name}", self.take(name, {}))

    def tables(self, name: str) -> list[Table]:
        values = self.take(name, [])
        if not isinstance(values, list):
            raise self.fail(name, "is not a list of tables")
        return [Table(f"{self.where}.{name}[{i}]", value) for i, value in enumerate(values)]

    def items(self) -> list[tuple[str, Any]]:
        rest, self._rest = self._rest, {}
        return list(rest.items())

    def done(self) -> None:
        if self._rest:
            raise ConfigError(f"{self.where}: {', '.join(map(str, self._rest))} is not known here")
