"""Slots: the platform makes room for an enterprise's application, or takes it away (keys.md, Slots)."""

from __future__ import annotations

from dataclasses import dataclass

from cardlib.apdu import SW, Command, meaning
from cardlib.crypto import Algorithm
from cardlib.errors import Conflict, FormatError, StatusError
from cardlib.iso7816 import (
    MF,
    Protect,
    append_record,
    create_file,
    delete_df,
    erase_df,
    read_record,
    select,
    write_key_sealed,
)
from cardlib.profile import Profile, Purpose, aid, load_profile
from cardlib.tlv import Tlv, find
from cardlib.transport import Transport, send
from keymgmt.delivery import key_payload
from keymgmt.keys import KeyRef
from keymgmt.steps import ADD, DF_ALGORITHM, StepJournal, require_card
from keymgmt.store import KeyStore
from keymgmt.wash import platform_login

MAX_LABEL = 16


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """Which slot to open on which card. ``card_version`` is that of the MF's keys, ``slot_version`` the slot key's."""

    job: str
    serial: bytes
    enterprise_id: int
    label: str
    algorithm: Algorithm = Algorithm.TDES
    card_version: int = 1
    slot_version: int = 1

    def check(self) -> None:
        """Raises FormatError when label or algorithm can't be on a card."""
        if len(self.label.encode()) > MAX_LABEL:
            raise FormatError(f"the label {self.label!r} is longer than {MAX_LABEL} bytes in UTF-8")
        if self.algorithm not in DF_ALGORITHM:
            raise FormatError(f"an application works with 3DES or SM4, not {self.algorithm.name}")


def open_slot(card: Transport, plan: SlotPlan, store: KeyStore, journal: StepJournal) -> int:
    """Make an enterprise's application with all its files and its slot key; returns the FID of its DF.

    An interrupted one is erased and made again; one that is listed in DIR is left as it is. Raises Conflict when
    another card is there or no slot is free, CryptoError when the card is not of this platform.
    """
    plan.check()
    profile, name = load_profile(), aid(plan.enterprise_id)
    require_card(card, plan.serial)
    fid, begun = _find(card, profile, name)
    if begun and name in directory(card):
        journal.done(plan.job, "listed")
        return fid
    protect = platform_login(card, store, plan.serial, plan.card_version)
    if not begun:
        data = bytearray(profile.adf_create)
        data[-2:] = DF_ALGORITHM[plan.algorithm]
        create_file(card, fid, bytes(data) + name)
    select(card, fid)
    if begun:
        erase_df(card)
    for file in (profile.adf_key_file, *profile.adf_files):
        create_file(card, file.fid, file.create)
    journal.done(plan.job, "files")
    _write_slot_key(card, plan, store, profile)
    journal.done(plan.job, "slot key")
    _list(card, plan, profile, protect)
    journal.done(plan.job, "listed")
    return fid


def close_slot(
    card: Transport, serial: bytes, enterprise_id: int, store: KeyStore, journal: StepJournal, job: str,
    card_version: int = 1,
) -> None:  # fmt: skip
    """Delete an enterprise's application with all in it, money too; nothing happens when there is none.

    Raises Conflict when another card is there, CryptoError when the card is not of this platform.
    """
    require_card(card, serial)
    fid, there = _find(card, load_profile(), aid(enterprise_id), room=False)
    if there:
        protect = platform_login(card, store, serial, card_version)
        delete_df(card, fid, protect)
    journal.done(job, "deleted")


def directory(card: Transport) -> dict[bytes, str]:
    """Applications that the card's DIR lists: name → label. Leaves the MF selected."""
    select(card, MF)
    file, number = load_profile().file("dir"), 1
    found: dict[bytes, str] = {}
    while True:
        try:
            raw = read_record(card, file.fid, number)
        except StatusError as e:
            if e.sw == SW.RECORD_NOT_FOUND:
                return found
            raise
        found[find(raw, 0x61, 0x4F)] = find(raw, 0x61, 0x50).decode(errors="replace")
        number += 1


def _find(card: Transport, profile: Profile, name: bytes, *, room: bool = True) -> tuple[int, bool]:
    """FID of the application, or with ``room`` of the first free slot; and whether the application is there."""
    free = 0
    for fid in range(profile.adf_first_fid, profile.adf_first_fid + profile.slots):
        select(card, MF)
        answer = send(card, Command(0x00, 0xA4, 0x00, 0x00, fid.to_bytes(2, "big"), 0))
        if answer.sw == SW.FILE_NOT_FOUND:
            free = free or fid
            continue
        if not answer.data:
            raise StatusError(answer.sw, b"\x00\xa4\x00\x00", meaning(answer.sw))
        if find(answer.data, 0x6F, 0x84) == name:
            return fid, True
    if room and not free:
        raise Conflict(f"all {profile.slots} slots of the card are taken: close one first")
    return free, False


def _write_slot_key(card: Transport, plan: SlotPlan, store: KeyStore, profile: Profile) -> None:
    """The first key of the application, under the MF's 39/00 (keys.md, Slots, step 2)."""
    spec = profile.key(Purpose.SLOT)
    parent = store.handle(KeyRef(Purpose.CARD_CONTROL, plan.card_version), plan.serial)
    key = store.handle(KeyRef(Purpose.SLOT, plan.slot_version, plan.enterprise_id), plan.serial)
    record_header = spec.header(plan.slot_version, key.algorithm)
    write_key_sealed(
        card,
        ADD,
        spec.kid(plan.slot_version),
        lambda header, challenge: key_payload(parent, key, record_header, header, challenge),
    )


def _list(card: Transport, plan: SlotPlan, profile: Profile, protect: Protect) -> None:
    select(card, MF)
    record = Tlv(0x61, [Tlv(0x4F, aid(plan.enterprise_id)), Tlv(0x50, plan.label.encode())])
    append_record(card, profile.file("dir").fid, record, protect)
