"""The card's end of SCP02 (i=15) and SCP03 (i=00): GlobalPlatform Card Specification Annex E and Amendment D."""

from __future__ import annotations

from abc import ABC, abstractmethod
from hmac import compare_digest

from cardlib.apdu import SW
from cardlib.crypto import make_key
from cardlib.crypto.channels import aes_cmac, cbc_decrypt, cbc_encrypt, kdf
from cardlib.crypto.keys import pad80
from cardlib.errors import FormatError
from simulator.handlers import Refusal
from simulator.uicc.memory import KeySet

MAC_BYTES = 8
C_MAC, C_DECRYPTION = 1, 2
LEVELS = (0, C_MAC, C_MAC | C_DECRYPTION)
SECURED = 0x04
S_ENC, S_MAC, S_DEK = 0x0182, 0x0101, 0x0181
CARD, HOST, K_ENC, K_MAC = 0x00, 0x01, 0x04, 0x06
ZERO8, ZERO16 = bytes(8), bytes(16)


class Session:
    """An open way to the security domain that protects nothing: remote management, whose packet was checked before."""

    __slots__ = ("level", "opened")

    def __init__(self, *, opened: bool = True) -> None:
        self.level = 0
        self.opened = opened

    def unwrap(self, command: bytes, data: bytes) -> bytes:  # noqa: ARG002  # channels look at the header
        """Check and remove what the level asks for. Raises Refusal."""
        return data

    def key(self, sealed: bytes) -> bytes:  # noqa: ARG002  # channels can
        """A key value as PUT KEY brings it. Raises Refusal."""
        raise Refusal(SW.CONDITIONS)


class SecureChannel(Session, ABC):
    """Begun by INITIALIZE UPDATE, open after EXTERNAL AUTHENTICATE, gone with the first error."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(opened=False)

    @property
    @abstractmethod
    def card_cryptogram(self) -> bytes:
        """What proves the card to the host: 8 bytes."""

    @property
    @abstractmethod
    def host_cryptogram(self) -> bytes:
        """What must prove the host."""

    @abstractmethod
    def _mac(self, message: bytes) -> bytes:
        """The next C-MAC of the chain."""

    @abstractmethod
    def _decrypt(self, data: bytes) -> bytes:
        """Data of a command at level 03, with their padding."""

    def authenticate(self, level: int, command: bytes, data: bytes) -> bool:
        """EXTERNAL AUTHENTICATE: ``data`` is cryptogram and C-MAC. Whether both are right; then the channel is open."""
        cryptogram = compare_digest(self.host_cryptogram, data[:-MAC_BYTES])
        mac = compare_digest(self._mac(command[:4] + bytes((len(data),)) + data[:-MAC_BYTES]), data[-MAC_BYTES:])
        self.opened, self.level = cryptogram and mac, level
        return self.opened

    def unwrap(self, command: bytes, data: bytes) -> bytes:
        """Check and remove what the level asks for. Raises Refusal."""
        if not self.level:
            return data
        if not command[0] & SECURED or len(data) < MAC_BYTES:
            raise Refusal(SW.SECURITY)
        data, mac = data[:-MAC_BYTES], data[-MAC_BYTES:]
        return self._plain(command[:4], data, mac)

    @abstractmethod
    def _plain(self, header: bytes, data: bytes, mac: bytes) -> bytes:
        """The plain data of a command whose MAC is right. Raises Refusal."""

    def _check(self, message: bytes, mac: bytes) -> None:
        if not compare_digest(self._mac(message), mac):
            raise Refusal(SW.SECURITY)


def _unpadded(data: bytes) -> bytes:
    plain, mark, rest = data.rpartition(b"\x80")
    if not mark or rest.strip(b"\0"):
        raise Refusal(SW.SECURITY)
    return plain


class Scp02(SecureChannel):
    """3DES, implementation option 15: C-MAC over the modified command, its IV enciphered from the second one on."""

    __slots__ = ("_chain", "_dek", "_enc", "_icv_key", "_input", "_mac_key")

    def __init__(self, keys: KeySet, sequence: bytes, card: bytes, host: bytes) -> None:
        """``sequence`` 2, ``card`` 6 random bytes, ``host`` 8."""
        super().__init__()
        seed = sequence + bytes(12)
        self._enc, mac, self._dek = (
            cbc_encrypt(key, constant.to_bytes(2, "big") + seed, ZERO8, aes=False)
            for key, constant in ((keys.enc, S_ENC), (keys.mac, S_MAC), (keys.dek, S_DEK))
        )
        self._mac_key, self._icv_key = make_key(mac), make_key(mac[:8])
        self._input = (host + sequence + card, sequence + card + host)
        self._chain = ZERO8

    def _cryptogram(self, message: bytes) -> bytes:
        return cbc_encrypt(self._enc, pad80(message, 8), ZERO8, aes=False)[-8:]

    @property
    def card_cryptogram(self) -> bytes:
        return self._cryptogram(self._input[0])

    @property
    def host_cryptogram(self) -> bytes:
        return self._cryptogram(self._input[1])

    def _mac(self, message: bytes) -> bytes:
        iv = self._icv_key.encrypt(self._chain) if self.opened else self._chain
        self._chain = self._mac_key.mac_padded(pad80(message, 8), iv)
        return self._chain

    def _plain(self, header: bytes, data: bytes, mac: bytes) -> bytes:
        if self.level & C_DECRYPTION and data:
            data = _unpadded(self._decrypt(data))
        self._check(header + bytes((len(data) + MAC_BYTES,)) + data, mac)
        return data

    def _decrypt(self, data: bytes) -> bytes:
        try:
            return cbc_decrypt(self._enc, data, ZERO8, aes=False)
        except FormatError as e:
            raise Refusal(SW.SECURITY) from e

    def key(self, sealed: bytes) -> bytes:
        return make_key(self._dek).decrypt(sealed)


class Scp03(SecureChannel):
    """AES, implementation option 00: random card challenge, no R-MAC."""

    __slots__ = ("_chain", "_context", "_counter", "_dek", "_enc", "_mac_key")

    def __init__(self, keys: KeySet, card: bytes, host: bytes) -> None:
        """``card`` and ``host``: 8 random bytes each."""
        super().__init__()
        self._context = host + card
        self._enc = kdf(keys.enc, K_ENC, self._context, len(keys.enc))
        self._mac_key = kdf(keys.mac, K_MAC, self._context, len(keys.mac))
        self._dek = keys.dek
        self._chain = ZERO16
        self._counter = 0

    @property
    def card_cryptogram(self) -> bytes:
        return kdf(self._mac_key, CARD, self._context, 8)

    @property
    def host_cryptogram(self) -> bytes:
        return kdf(self._mac_key, HOST, self._context, 8)

    def _mac(self, message: bytes) -> bytes:
        self._chain = aes_cmac(self._mac_key, self._chain + message)
        return self._chain[:MAC_BYTES]

    def _plain(self, header: bytes, data: bytes, mac: bytes) -> bytes:
        self._check(header + bytes((len(data) + MAC_BYTES,)) + data, mac)
        if self.level & C_DECRYPTION:
            self._counter += 1  # for commands without data too (Amendment D 6.2.6)
            data = _unpadded(self._decrypt(data)) if data else data
        return data

    def _decrypt(self, data: bytes) -> bytes:
        iv = cbc_encrypt(self._enc, self._counter.to_bytes(16, "big"), ZERO16, aes=True)
        try:
            return cbc_decrypt(self._enc, data, iv, aes=True)
        except FormatError as e:
            raise Refusal(SW.SECURITY) from e

    def key(self, sealed: bytes) -> bytes:
        return cbc_decrypt(self._dek, sealed, ZERO16, aes=True)
