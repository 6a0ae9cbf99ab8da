"""Milenage (3GPP TS 35.206) and what a SIM answers with it (TS 33.102, TS 31.102 7.1).

No kept library has the whole set: own code on AES, pinned by the published test sets of TS 35.208.
"""

from __future__ import annotations

from hmac import compare_digest
from typing import NamedTuple

from cardlib.crypto.aes import AesKey
from cardlib.crypto.keys import xor
from cardlib.errors import MacMismatch

RESYNC_AMF = bytes(2)


class Answers(NamedTuple):
    """RES 8, CK 16, IK 16, AK 6, AK* 6 (f2 to f5*)."""

    res: bytes
    ck: bytes
    ik: bytes
    ak: bytes
    ak_star: bytes


class Milenage:
    """The algorithm set under ``k`` and ``opc`` (16 bytes each); all others are 16-byte RANDs, 6-byte SQNs."""

    def __init__(self, k: bytes, opc: bytes) -> None:
        self._encrypt = AesKey(k).encrypt_block
        self._opc = opc

    def _out(self, value: bytes, rotation: int, constant: int) -> bytes:
        """OUTn of TS 35.206 4.1: ``rotation`` in bytes, ``constant`` in the last byte."""
        mixed = xor(value, self._opc)
        mixed = mixed[rotation:] + mixed[:rotation]
        return xor(self._encrypt(mixed[:15] + bytes((mixed[15] ^ constant,))), self._opc)

    def macs(self, rand: bytes, sqn: bytes, amf: bytes) -> tuple[bytes, bytes]:
        """MAC-A and MAC-S (f1 and f1*)."""
        temp = self._encrypt(xor(rand, self._opc))
        mixed = xor((sqn + amf) * 2, self._opc)
        out = xor(self._encrypt(xor(temp, mixed[8:] + mixed[:8])), self._opc)
        return out[:8], out[8:]

    def answers(self, rand: bytes) -> Answers:
        """f2 to f5*."""
        temp = self._encrypt(xor(rand, self._opc))
        second = self._out(temp, 0, 1)
        return Answers(second[8:], self._out(temp, 4, 2), self._out(temp, 8, 4), second[:6], self._out(temp, 12, 8)[:6])

    def check(self, rand: bytes, autn: bytes) -> tuple[int, Answers]:
        """The sequence number in AUTN (SQN xor AK 6, AMF 2, MAC 8), and the answers. Raises MacMismatch."""
        answers = self.answers(rand)
        sqn = xor(autn[:6], answers.ak)
        if not compare_digest(self.macs(rand, sqn, autn[6:8])[0], autn[8:]):
            raise MacMismatch("the network's AUTN is wrong")
        return int.from_bytes(sqn, "big"), answers

    def auts(self, rand: bytes, sqn: int) -> bytes:
        """AUTS for a network whose sequence number is behind this one's (TS 33.102 6.3.3)."""
        own = sqn.to_bytes(6, "big")
        return xor(own, self.answers(rand).ak_star) + self.macs(rand, own, RESYNC_AMF)[1]


def gsm(answers: Answers) -> tuple[bytes, bytes]:
    """SRES 4 and Kc 8 of the 2G context (conversions c2 and c3 of TS 33.102 6.8.1.2)."""
    both = xor(answers.ck, answers.ik)
    return xor(answers.res[:4], answers.res[4:]), xor(both[:8], both[8:])
