"""Washing: the vendor's keys of the MF give way to ours (keys.md, Washing)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from cardlib.errors import ConfigError, Conflict, CryptoError
from cardlib.iso7816 import MF, Protect, select, update_binary, write_key_sealed
from cardlib.profile import CardIdentity, KeySpec, Purpose, check_serial, load_profile
from cardlib.transport import Transport
from keymgmt.delivery import key_payload
from keymgmt.handle import KeyHandle
from keymgmt.keys import KeyRef
from keymgmt.softsam import protector
from keymgmt.steps import (
    NOT_COUNTED,
    Payload,
    StepJournal,
    attempt,
    authenticates,
    create_missing,
    initial_holds,
    put_key,
    read_identity,
)
from keymgmt.store import KeyStore

CONTROL_KID = 0
FOREIGN = "the card does not accept our control key: it was washed with another root or version"


@dataclass(frozen=True, slots=True)
class WashPlan:
    """What washing one card will do. ``initial`` is the vendor's transport key, ``key_version`` our root keys'."""

    job: str
    serial: bytes
    wash_version: int
    wash_date: date
    key_version: int
    initial: KeyHandle

    def check(self) -> None:
        """Raises FormatError for a mistyped serial, ConfigError for a wash version outside 1 to 255."""
        check_serial(self.serial)
        if not 1 <= self.wash_version <= 255:
            raise ConfigError(f"wash version {self.wash_version} is not in 1 to 255")

    def lines(self) -> list[str]:
        """The plan for people to read before it is carried out (dry run)."""
        serial, known = self.serial.hex().upper(), any(self.serial)
        return [
            f"card {serial}, a {check_serial(self.serial).name}" if known else "give the card a new serial",
            f"prove the initial key with check value {self.initial.kcv.hex().upper()}, once",
            f"write the line protection key 36/00, version {self.key_version}",
            "write the card's identity as not washed yet",
            f"replace the control key 39/00 by version {self.key_version}; from here the initial key is of no use",
            "prove both new keys",
            f"write wash version {self.wash_version} of {self.wash_date}; from here no key is loaded in clear",
        ]


def wash(card: Transport, plan: WashPlan, store: KeyStore, journal: StepJournal) -> CardIdentity:
    """Wash a card, or finish one whose washing was interrupted; a washed one is only proven again.

    Raises CryptoError when the initial key is wrong: it was tried once and this job never tries it again.
    Conflict when the card has another serial already.
    """
    plan.check()
    identity = CardIdentity(plan.serial, plan.serial[0], plan.wash_version, plan.wash_date)
    begun = CardIdentity(plan.serial, plan.serial[0], 0, None)
    control = store.handle(KeyRef(Purpose.CARD_CONTROL, plan.key_version), plan.serial)
    line = store.handle(KeyRef(Purpose.CARD_MAINTENANCE, plan.key_version), plan.serial)
    found = read_identity(card)
    if found and found.serial not in (plan.serial, bytes(8)):
        raise Conflict(f"the card has serial {found.serial.hex().upper()} already: continue with that one")
    if found and found.wash_version:
        prove_washed(card, found, plan.key_version, store, journal)
        journal.done(plan.job, "washed")
        return found
    if control.algorithm != plan.initial.algorithm:
        raise ConfigError(
            f"the card's MF works with {plan.initial.algorithm.name}, our keys are {control.algorithm.name}"
        )
    job, ours = (f"card {plan.serial.hex()}", control.cryptogram) if found == begun else (plan.job, None)
    if initial_holds(card, job, plan.initial, ours, journal):
        _replace_keys(card, plan, control, line, begun, journal)
    _prove_control(card, control)
    journal.done(plan.job, "control key proven")
    file = load_profile().file("identity").fid
    update_binary(card, file, begun.encode(), protect=protector(line))
    journal.done(plan.job, "line protection proven")
    update_binary(card, file, identity.encode(), protect=protector(line))
    journal.done(plan.job, "washed")
    return identity


def prove_washed(card: Transport, found: CardIdentity, key_version: int, store: KeyStore, journal: StepJournal) -> None:
    """Use our control key on a card that says it is washed, once: another platform's may count what it refuses.

    Raises CryptoError when it is not this platform's.
    """
    control = store.handle(KeyRef(Purpose.CARD_CONTROL, key_version), found.serial)
    job, step = f"card {found.serial.hex()}", f"our key {control.kcv.hex().upper()} refused"
    if step in journal.steps(job):
        raise CryptoError(f"{FOREIGN}; it was tried once and is not tried again")
    select(card, MF)
    left = attempt(card, CONTROL_KID, control.cryptogram)
    if left is not None:
        if left != NOT_COUNTED:
            journal.done(job, step)
        raise CryptoError(FOREIGN)


def _replace_keys(
    card: Transport, plan: WashPlan, control: KeyHandle, line: KeyHandle, begun: CardIdentity, journal: StepJournal
) -> None:
    """Write 36/00, then the identity as not washed, then 39/00 (keys.md, step 3)."""
    profile = load_profile()
    for file in profile.mf_files:
        create_missing(card, file)
    spec = profile.key(Purpose.CARD_MAINTENANCE)
    put_key(card, spec.key_type, spec.kid(1), _payload(plan, spec, line))
    journal.done(plan.job, "line protection key")
    update_binary(card, profile.file("identity").fid, begun.encode(), protect=protector(line))
    journal.done(plan.job, "identity")
    spec = profile.key(Purpose.CARD_CONTROL)
    write_key_sealed(card, spec.key_type, CONTROL_KID, _payload(plan, spec, control))
    journal.done(plan.job, "control key")


def _payload(plan: WashPlan, spec: KeySpec, key: KeyHandle) -> Payload:
    record_header = spec.header(plan.key_version, key.algorithm)
    return lambda header, challenge: key_payload(plan.initial, key, record_header, header, challenge)


def _prove_control(card: Transport, control: KeyHandle) -> None:
    """Raises CryptoError when 39/00 of the MF is not the managed key of this serial."""
    select(card, MF)
    if not authenticates(card, CONTROL_KID, control.cryptogram):
        raise CryptoError(FOREIGN)


def platform_login(card: Transport, store: KeyStore, serial: bytes, key_version: int) -> Protect:
    """Select the MF, authenticate to it (state 8), give its secure messaging. Raises CryptoError."""
    _prove_control(card, store.handle(KeyRef(Purpose.CARD_CONTROL, key_version), serial))
    return protector(store.handle(KeyRef(Purpose.CARD_MAINTENANCE, key_version), serial))
