# SPDX-License-Identifier: Apache-2.0
"""A reader of encrypted images, made from docs/encrypted-image.md alone. It shares no code with the product.

AEAD: python3-cryptography. SHA3, HMAC: hashlib. ML-KEM decapsulation: below, from FIPS 203 (the decapsulating half without its
check for manipulated ciphertexts, which the image's own authentication makes up for). Slow, and not hardened: for tests.
"""
import hashlib
import hmac
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

SECTOR = 4096


def hkdf(ikm, salt, info):
    prk = hmac.new(salt, ikm, hashlib.sha3_256).digest()
    return hmac.new(prk, info + b"\x01", hashlib.sha3_256).digest()


# ---- ML-KEM (FIPS 203) ----

Q = 3329
KEMS = {1: (2, 10, 4), 2: (3, 10, 4), 3: (4, 11, 5)}  # k, du, dv


def _bits(data, width):
    value = int.from_bytes(data, "little")
    return [value >> (i * width) & ((1 << width) - 1) for i in range(len(data) * 8 // width)]


def _reverse7(i):
    return int(f"{i:07b}"[::-1], 2)


def _ntt(f):
    f, i, length = list(f), 1, 128
    while length >= 2:
        for start in range(0, 256, 2 * length):
            zeta = pow(17, _reverse7(i), Q)
            i += 1
            for j in range(start, start + length):
                t = zeta * f[j + length] % Q
                f[j + length] = (f[j] - t) % Q
                f[j] = (f[j] + t) % Q
        length //= 2
    return f


def _inverse_ntt(f):
    f, i, length = list(f), 127, 2
    while length <= 128:
        for start in range(0, 256, 2 * length):
            zeta = pow(17, _reverse7(i), Q)
            i -= 1
            for j in range(start, start + length):
                t = f[j]
                f[j] = (t + f[j + length]) % Q
                f[j + length] = zeta * (f[j + length] - t) % Q
        length *= 2
    return [x * 3303 % Q for x in f]


def _multiply(f, g):
    h = [0] * 256
    for i in range(128):
        gamma = pow(17, 2 * _reverse7(i) + 1, Q)
        a0, a1, b0, b1 = f[2 * i], f[2 * i + 1], g[2 * i], g[2 * i + 1]
        h[2 * i] = (a0 * b0 + a1 * b1 * gamma) % Q
        h[2 * i + 1] = (a0 * b1 + a1 * b0) % Q
    return h


def ml_kem_decapsulate(kem, private, ciphertext):
    """The shared secret; @private is FIPS 203's dk."""
    k, du, dv = KEMS[kem]
    s = [_bits(private[384 * i:384 * (i + 1)], 12) for i in range(k)]
    h = private[768 * k + 32:768 * k + 64]
    total = [0] * 256
    for i in range(k):
        part = _bits(ciphertext[32 * du * i:32 * du * (i + 1)], du)
        u = _ntt([(Q * x + (1 << (du - 1))) >> du for x in part])
        total = [(a + b) % Q for a, b in zip(total, _multiply(s[i], u))]
    v = [(Q * x + (1 << (dv - 1))) >> dv for x in _bits(ciphertext[32 * du * k:], dv)]
    w = [(a - b) % Q for a, b in zip(v, _inverse_ntt(total))]
    message = sum((((x * 2 + Q // 2) // Q) & 1) << i for i, x in enumerate(w)).to_bytes(32, "little")
    return hashlib.sha3_512(message + h).digest()[:32]


# ---- the image ----

class Corrupt(Exception):
    """What the image says is not so."""


def _aead(number, key):
    return AESGCM(key) if number == 1 else ChaCha20Poly1305(key)


class Slot:
    def __init__(self, raw):
        self.raw = raw
        self.kem, = struct.unpack_from(">I", raw, 4)
        public_len, ciphertext_len = struct.unpack_from(">II", raw, 152)
        self.label = raw[72:136].rstrip(b"\0").decode()
        self.public = raw[512:512 + public_len]
        self.ciphertext = raw[2304:2304 + ciphertext_len]

    def unwrap(self, uuid, shared):
        """The data key."""
        info = (b"quantavirt kek v1" + struct.pack(">I", self.kem) + hashlib.sha3_256(self.public).digest()
                + hashlib.sha3_256(self.ciphertext).digest())
        kek = hkdf(shared, uuid + self.raw[8:40], info)
        return AESGCM(kek).decrypt(self.raw[200:212], self.raw[212:260],
                                   uuid + self.raw[:200] + self.public + self.ciphertext)


class Image:
    """@path read with @data_key, or with @private_key: the bytes of a file that holds FIPS 203's dk somewhere."""

    def __init__(self, path, data_key=None, private_key=None):
        with open(path, "rb") as file:
            self.bytes = bytearray(file.read())
        self._header()
        self._key_area(data_key, private_key)
        self._table()
        self.overrides = {}
        self._replay()

    def _at(self, offset, length):
        piece = bytes(self.bytes[offset:offset + length])
        return piece + bytes(length - len(piece))

    def _header(self):
        if self._at(0, 8) != b"QFI\xfb\0\0\0\x03":
            raise Corrupt("no qcow2 version 3")
        bits, self.size, _, l1_size, l1_at = struct.unpack_from(">IQIIQ", self.bytes, 20)
        features, = struct.unpack_from(">Q", self.bytes, 72)
        if not features >> 56 & 1:
            raise Corrupt("not encrypted")
        self.cluster = 1 << bits
        self.l1 = struct.unpack_from(f">{l1_size}Q", self.bytes, l1_at)
        pos, = struct.unpack_from(">I", self.bytes, 100)
        while True:
            kind, length = struct.unpack_from(">II", self.bytes, pos)
            if kind == 0:
                raise Corrupt("no encryption extension")
            if kind == 0x51565345:
                break
            pos += 8 + (length + 7) // 8 * 8
        version, self.area_size, area0, area1, self.log_at, self.log_size = struct.unpack_from(">IIQQQQ", self.bytes, pos + 8)
        if version != 1 or length != 56:
            raise Corrupt("unknown version")
        self.areas = (area0, area1)
        self.uuid = self._at(pos + 8 + 40, 16)

    def _copies(self):
        """Key areas whose checksum fits, newest first."""
        found = []
        for offset in self.areas:
            area = self._at(offset, self.area_size)
            used, = struct.unpack_from(">I", area, 12)
            if area[:8] == b"QVKEYA\0\1" and hashlib.sha3_256(area[:480] + area[512:used]).digest() == area[480:512]:
                found.append((struct.unpack_from(">Q", area, 16)[0], area))
        return [area for _, area in sorted(found, reverse=True)]

    def _key_area(self, data_key, private_key):
        copies = self._copies()
        if not copies:
            raise Corrupt("no whole key area")
        self.slots = [Slot(copies[0][4096 * i:4096 * (i + 1)]) for i in range(1, 9)
                      if copies[0][4096 * i:4096 * i + 4] == b"\0\0\0\1"]
        if data_key is None:
            data_key = self._unlock(private_key)
        mac_key = hkdf(data_key, self.uuid, b"quantavirt key area mac v1")
        for area in copies:
            used, = struct.unpack_from(">I", area, 12)
            mac = hmac.new(mac_key, area[:448] + area[512:used], hashlib.sha3_256).digest()
            if mac == area[448:480]:
                break
        else:
            raise Corrupt("the data key does not fit")
        aead, sector_size, slots, epochs = struct.unpack_from(">IIII", area, 40)
        if sector_size != SECTOR or slots != 8 or area[24:40] != self.uuid:
            raise Corrupt("unknown parameters")
        deks = {struct.unpack_from(">I", area, 60)[0]: data_key}
        previous, = struct.unpack_from(">I", area, 64)
        if previous:
            key = hkdf(data_key, self.uuid, b"quantavirt previous key v1")
            deks[previous] = AESGCM(key).decrypt(area[80:92], area[92:140], self.uuid)
        self.keys = {}
        self.secrets = [*deks.values(), mac_key]  # all symmetric keys of the image
        for i in range(epochs):
            number, dek, salt = struct.unpack_from(">II32s", area, 36864 + 48 * i)
            self.secrets.append(hkdf(deks[dek], salt, b"quantavirt epoch v1" + struct.pack(">I", aead)))
            self.keys[number] = _aead(aead, self.secrets[-1])

    def _unlock(self, private_key):
        for slot in self.slots:
            at = private_key.find(slot.public)  # dk = dk_PKE || ek || H(ek) || z
            k = KEMS.get(slot.kem, (0,))[0]
            if at >= 384 * k > 0:
                dk = private_key[at - 384 * k:at + len(slot.public) + 64]
                return slot.unwrap(self.uuid, ml_kem_decapsulate(slot.kem, dk, slot.ciphertext))
        raise Corrupt("no slot is for this key")

    def _table(self):
        best = None
        for i in range(2):
            root = self._at(self.log_at + 4096 * i, 64)
            generation, offset, entries = struct.unpack_from(">QQQ", root, 8)
            if (root[:8] == b"QVROOT\0\1" and hashlib.sha256(root[:32]).digest() == root[32:64]
                    and (best is None or generation > best[0])):
                best = (generation, offset, entries)
        if best is None:
            raise Corrupt("no root")
        self.blocks = struct.unpack(f">{best[2]}Q", self._at(best[1], best[2] * 8))

    def entry(self, host):
        """The 32 bytes of host sector @host."""
        if host in self.overrides:
            return self.overrides[host]
        per_block = 128 * self.cluster // SECTOR
        index = host // per_block
        block = self.blocks[index] if index < len(self.blocks) else 0
        return self._at(block + host % per_block * 32, 32) if block else bytes(32)

    def _open(self, entry, guest, ciphertext):
        epoch, _, counter, tag = struct.unpack(">IIQ16s", entry)
        if epoch == 0:
            return bytes(SECTOR)
        aad = self.uuid + struct.pack(">QI", guest, 1)
        return self.keys[epoch].decrypt(struct.pack(">IQ", epoch, counter), ciphertext + tag, aad)

    # ---- the log ----

    def _records(self):
        """By age: what a failed write left comes before the record that was written with its number."""
        ring = self._at(self.log_at + 8192, self.log_size - 8192)
        found = []
        for at in range(0, len(ring), 4096):
            if ring[at:at + 8] != b"QVLOGR\0\1":
                continue
            seq, tail, settled, epoch, items, counter, blocks, data = struct.unpack_from(">QQQIIQII", ring, at + 8)
            head = ring[at:at + 128 + 48 * items]
            if at + blocks * 4096 > len(ring) or epoch not in self.keys:
                continue
            try:
                self.keys[epoch].decrypt(struct.pack(">IQ", epoch, counter), head[56:72], head[:56] + bytes(16) + head[72:])
            except InvalidTag:
                continue
            before = struct.unpack_from(">IQ", head, 72)
            found.append((seq, epoch, counter, tail, settled, before, head, ring[at + (blocks - data) * 4096:at + blocks * 4096]))
        return sorted(found)

    def _replay(self):
        found = self._records()
        if not found:
            return
        chain = [found[-1]]
        tail, settled = found[-1][3:5]
        for record in reversed(found[:-1]):
            seq, before = chain[0][0], chain[0][5]
            if seq > tail and record[0] == seq - 1 and before in ((0, 0), record[1:3]):
                chain.insert(0, record)
        candidates = {}
        for record in chain:
            seq, head, data = record[0], record[6], record[7]
            for at in range(128, len(head), 48):
                host, guest = struct.unpack_from(">QQ", head, at)
                entry = head[at + 16:at + 48]
                if entry[:4] == bytes(4):
                    for h in range(host, host + guest):
                        candidates[h] = [(seq, 0, bytes(32), None)]
                    continue
                own = None
                if entry[7] & 1:
                    own, data = data[:SECTOR], data[SECTOR:]
                entry = entry[:4] + bytes(4) + entry[8:]
                candidates.setdefault(host, []).append((seq, guest, entry, own))
        for host, tries in candidates.items():
            for seq, guest, entry, own in reversed(tries):
                if self._wins(host, guest, entry, own, seq <= settled):
                    self.overrides[host] = entry
                    break

    def _wins(self, host, guest, entry, own, trusted):
        if trusted or entry[:4] == bytes(4):
            return True
        for ciphertext in (self._at(host * SECTOR, SECTOR), own):
            try:
                if ciphertext is not None:
                    self._open(entry, guest, ciphertext)
                    self.bytes[host * SECTOR:(host + 1) * SECTOR] = ciphertext
                    return True
            except (InvalidTag, KeyError):
                pass
        return False

    # ---- reading ----

    def sector(self, guest):
        """The content of guest sector @guest; InvalidTag where it was changed."""
        offset = guest * SECTOR
        l2_entries = self.cluster // 8
        index = offset // self.cluster
        table = self.l1[index // l2_entries] & 0x00fffffffffffe00
        if table == 0:
            return bytes(SECTOR)
        entry, = struct.unpack(">Q", self._at(table + index % l2_entries * 8, 8))
        if entry >> 62 & 1:
            raise Corrupt("compressed cluster")
        place = entry & 0x00fffffffffffe00
        if place == 0 or entry & 1:
            return bytes(SECTOR)
        host = (place + offset % self.cluster) // SECTOR
        return self._open(self.entry(host), guest, self._at(host * SECTOR, SECTOR))

    def content(self):
        """All of the disk."""
        return b"".join(self.sector(i) for i in range((self.size + SECTOR - 1) // SECTOR))[:self.size]
