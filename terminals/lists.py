"""The terminal's blacklist on disk: taken atomically, never an older one, never another enterprise's (blacklist.md)."""

from __future__ import annotations

from pathlib import Path

from cardlib.blacklist import MAGIC, Blacklist, FileKind, Head, ListReason, ListStore
from cardlib.errors import DatabaseError, FormatError, MacMismatch, Refused
from terminals.journal import Journal
from terminals.reasons import Reason

WORDS = {
    ListReason.LOST: Reason.LOST,
    ListReason.CANCELLED: Reason.CANCELLED,
    ListReason.REPLACED: Reason.REPLACED,
    ListReason.FRAUD: Reason.FRAUD,
    ListReason.SAM_LOST: Reason.FRAUD,
}


class TerminalLists:
    """What the runtime asks about listed cards. The journal remembers the newest version, should the file be lost.

    A damaged file, or one put back from an older copy, is as good as none: ``trouble`` says so and the terminal
    refuses by the list's age until it gets a newer list.
    """

    def __init__(self, path: Path, enterprise_id: int, root_key: bytes, journal: Journal) -> None:
        self._path = path
        self._args = (path, enterprise_id, root_key)
        self._journal = journal
        self.trouble = ""
        try:
            self._store = ListStore(*self._args)
        except (FormatError, MacMismatch, Refused, OSError) as e:
            self._start_anew(f"{path} is damaged ({e})")
        if self._store.current.version < journal.list_version and not self.trouble:
            self._start_anew(f"{path} is older than version {journal.list_version}, which was here before")

    def _start_anew(self, trouble: str) -> None:
        aside = self._path.with_name(self._path.name + ".damaged")
        try:
            if self._path.exists():
                self._path.replace(aside)
        except OSError as e:
            raise DatabaseError(f"{self._path} can't be moved aside: {e.strerror}") from e
        self.trouble = f"{trouble}: get a snapshot"
        self._store = ListStore(*self._args)

    @property
    def version(self) -> int:
        """Version in force, 0 for none."""
        return self._store.current.version

    @property
    def created_ms(self) -> int | None:
        """When the list was last known to be true; None for none."""
        return self._store.current.created_ms if self.version else None

    @property
    def current(self) -> Blacklist:
        """The list itself."""
        return self._store.current

    def lookup(self, card_serial: bytes) -> Reason | None:
        """Why a card is listed, or None."""
        reason = self._store.current.reason(card_serial)
        return None if reason is None else WORDS[reason]

    def take(self, raw: bytes) -> int:
        """Take a list file or certificate and return the version in force, on disk. A repeat changes nothing.

        Raises FormatError, MacMismatch, Refused (``list_foreign``, ``list_older``, ``list_gap``, ``list_key``) with
        the old list still in force, DatabaseError when the disk fails.
        """
        before = self._store.current
        if raw.startswith(MAGIC):  # the store checks the signature; what is older needs none to be refused
            head = Head.decode(raw[9 : 9 + int.from_bytes(raw[5:9], "big")])
            if head.to < self._journal.list_version and head.kind is FileKind.SNAPSHOT:
                raise Refused("list_older", f"list version {head.to} is older than {self._journal.list_version}")
        try:
            now = self._store.take(raw)
        except OSError as e:
            raise DatabaseError(f"{self._path} can't be written: {e.strerror}") from e
        if now is not before:
            self.trouble = ""
            self._journal.list_taken(now.version, now.created_ms)
        return now.version
