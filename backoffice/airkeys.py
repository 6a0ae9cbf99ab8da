"""Keysets of cards over the air, and their counters (ota.md, Keysets; keys.md, Hierarchy).

Keys follow from the key store whenever they are needed. A counter is on disk before the packet that uses it leaves.
"""

from __future__ import annotations

from dataclasses import dataclass

from backoffice.database import PLATFORM, Database
from cardlib.crypto.packets import PacketAlgorithm, PacketKey
from cardlib.ota import PLATFORM_KEY_SET, KeySet, slot_key_set
from cardlib.profile import Purpose
from cardlib.wire.scp80 import Keys
from keymgmt.keys import KeyRef
from keymgmt.store import KeyStore

VERSION = 1
"""Of the master keys that keysets are made from; a card's keysets are replaced with its slot."""


@dataclass(frozen=True, slots=True)
class AirKeys:
    """One keyset of one card: its keys, its counters in ``db``. ``kik`` seals keys that are put into the card."""

    db: Database
    enterprise_id: int
    serial: bytes
    key_set: KeySet
    kik: PacketKey

    @property
    def all(self) -> list[PacketKey]:
        """KIc, KID and KIK as PUT KEY takes them."""
        kic, kid = self.key_set.keys
        return [key for key in (kic, kid, self.kik) if key is not None]

    def next_counter(self) -> int:
        """The next counter, stored before this returns; ``ota.command`` refuses the end."""
        with self.db.write() as tx:
            counter: int = tx.value(
                "INSERT INTO air_counter (enterprise_id, card_serial, key_set, sent) VALUES (?, ?, ?, 1)"
                " ON CONFLICT (enterprise_id, card_serial, key_set) DO UPDATE SET sent = air_counter.sent + 1"
                " RETURNING sent",
                (self.enterprise_id, self.serial, self.key_set.number),
            )
        return counter

    def accept(self, counter: int) -> bool:
        """Whether a counter of the menu's is higher than all before; stored before this returns."""
        with self.db.write() as tx:
            return tx.execute(
                "INSERT INTO air_counter (enterprise_id, card_serial, key_set, accepted) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (enterprise_id, card_serial, key_set) DO UPDATE SET accepted = excluded.accepted"
                " WHERE air_counter.accepted < excluded.accepted",
                (self.enterprise_id, self.serial, self.key_set.number, counter),
            ).rowcount > 0  # fmt: skip


def of_platform(
    platform: Database, store: KeyStore, serial: bytes, algorithm: PacketAlgorithm = PacketAlgorithm.AES
) -> AirKeys:
    """Keyset 1, by card serial. Raises NotFound when its master keys were not made."""
    keys = [
        store.handle(KeyRef(purpose, VERSION), serial).for_packets(algorithm)
        for purpose in (Purpose.OTA_KIC, Purpose.OTA_KID, Purpose.OTA_KIK)
    ]
    return AirKeys(platform, PLATFORM, serial, KeySet(PLATFORM_KEY_SET, Keys(*keys[:2])), keys[2])


def of_slot(
    db: Database,
    store: KeyStore,
    serial: bytes,
    enterprise_id: int,
    slot: int,
    algorithm: PacketAlgorithm = PacketAlgorithm.AES,
) -> AirKeys:
    """Keyset n + 1 of slot n, by issuer identifier and card serial. Raises NotFound as :func:`of_platform`."""
    keys = [
        store.handle(KeyRef(purpose, VERSION, enterprise_id), serial).for_packets(algorithm)
        for purpose in (Purpose.SLOT_KIC, Purpose.SLOT_KID, Purpose.SLOT_KIK)
    ]
    return AirKeys(db, enterprise_id, serial, KeySet(slot_key_set(slot), Keys(*keys[:2])), keys[2])
