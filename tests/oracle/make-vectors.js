// SPDX-License-Identifier: Apache-2.0
// Answers of another implementation, in files of the shape of Project Wycheproof's, for test_crypto_vectors.
//
//     node make-vectors.js FOLDER [SEED]
import { chacha20poly1305 } from '@noble/ciphers/chacha.js';
import { gcm } from '@noble/ciphers/aes.js';
import { hkdf } from '@noble/hashes/hkdf.js';
import { sha3_256, shake256 } from '@noble/hashes/sha3.js';
import { ml_kem512, ml_kem768, ml_kem1024 } from '@noble/post-quantum/ml-kem.js';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const [folder, seed = '1'] = process.argv.slice(2);
const hex = (bytes) => Buffer.from(bytes).toString('hex');
let drawn = 0;

// The same bytes in every run with that seed.
const bytes = (n) => shake256(new TextEncoder().encode(`${seed}/${drawn++}`), { dkLen: n });
const number = (below) => new DataView(bytes(4).buffer).getUint32(0) % below;

function flipped(data) {
  const copy = Uint8Array.from(data);
  const bit = number(copy.length * 8);
  copy[bit >> 3] ^= 1 << (bit & 7);
  return copy;
}

function save(name, groups) {
  let id = 0;
  for (const group of groups) {
    for (const test of group.tests) test.tcId = ++id;
  }
  writeFileSync(join(folder, name), JSON.stringify({ numberOfTests: id, testGroups: groups }));
}

// ---- ML-KEM ----

function refuses(what) {
  try {
    what();
    return false;
  } catch {
    return true;
  }
}

function kemGroups(kem, parameterSet, k, count) {
  const tests = { MLKEMKeyGen: [], MLKEMEncapsTest: [], MLKEMTest: [], MLKEMDecapsValidationTest: [] };
  for (let i = 0; i < count; i++) {
    const d = bytes(64);
    const m = bytes(32);
    const { publicKey: ek, secretKey: dk } = kem.keygen(d);
    const { cipherText: c, sharedSecret: K } = kem.encapsulate(ek, m);
    const damaged = flipped(c);
    const key = { ek: hex(ek), result: 'valid' };

    tests.MLKEMKeyGen.push({ ...key, seed: hex(d), dk: hex(dk) });
    tests.MLKEMEncapsTest.push({ ...key, m: hex(m), c: hex(c), K: hex(K) });
    for (const [what, secret] of [['MLKEMTest', { seed: hex(d) }], ['MLKEMDecapsValidationTest', { dk: hex(dk) }]]) {
      tests[what].push({ ...key, ...secret, c: hex(c), K: hex(K) });
      // Implicit rejection, FIPS 203, 6.3: another secret, which both must agree on.
      tests[what].push({ ...key, ...secret, c: hex(damaged), K: hex(kem.decapsulate(damaged, dk)) });
      tests[what].push({ ...key, ...secret, c: hex(c.slice(0, -1)), K: '', result: 'invalid' });
    }
    // A coefficient that is no residue: 4095 in the first twelve bits of one of the 256 * k.
    const bad = Uint8Array.from(ek);
    const at = 3 * number(128 * k);
    bad[at] = 0xff;
    bad[at + 1] |= 0x0f;
    if (!refuses(() => kem.encapsulate(bad, m))) throw new Error('the oracle takes a bad key');
    tests.MLKEMEncapsTest.push({ ek: hex(bad), m: hex(m), c: '', K: '', result: 'invalid' });
    // A private key whose hash of the public one is wrong: FIPS 203, 7.3.
    const wrong = Uint8Array.from(dk);
    wrong[wrong.length - 64 + number(32)] ^= 1;
    if (!refuses(() => kem.decapsulate(c, wrong))) throw new Error('the oracle takes a bad private key');
    tests.MLKEMDecapsValidationTest.push({ ek: hex(ek), dk: hex(wrong), c: hex(c), K: '', result: 'invalid' });
  }
  return Object.entries(tests).map(([type, list]) => ({ type, parameterSet, tests: list }));
}

// ---- AEAD, HKDF ----

function aeadGroups(cipher) {
  const tests = [];
  for (const length of [0, 1, 15, 16, 17, 64, 511, 512, 4095, 4096, 4096, 4097, 65536]) {
    for (const associated of [0, 13, 28, 128, 1000]) {
      const [key, iv, aad, msg] = [bytes(32), bytes(12), bytes(associated), bytes(length)];
      const sealed = cipher(key, iv, aad).encrypt(msg);
      const ct = sealed.slice(0, length);
      const tag = sealed.slice(length);
      const common = { key: hex(key), iv: hex(iv), aad: hex(aad), msg: hex(msg), ct: hex(ct), tag: hex(tag) };

      tests.push({ ...common, result: 'valid' });
      tests.push({ ...common, tag: hex(flipped(tag)), result: 'invalid' });
      if (length > 0) tests.push({ ...common, ct: hex(flipped(ct)), result: 'invalid' });
      if (associated > 0) tests.push({ ...common, aad: hex(flipped(aad)), result: 'invalid' });
    }
  }
  return [{ type: 'AeadTest', keySize: 256, ivSize: 96, tagSize: 128, tests }];
}

function hkdfGroups() {
  const tests = [];
  for (const ikm of [1, 32, 64, 200]) {
    for (const salt of [0, 16, 32, 48, 136, 137, 300]) {
      for (const [info, size] of [[0, 32], [21, 32], [80, 32], [200, 33], [5, 1], [5, 255 * 32]]) {
        const [i, s, n] = [bytes(ikm), bytes(salt), bytes(info)];
        tests.push({ ikm: hex(i), salt: hex(s), info: hex(n), size, okm: hex(hkdf(sha3_256, i, s, n, size)), result: 'valid' });
      }
    }
  }
  return [{ type: 'HkdfTest', tests }];
}

mkdirSync(folder, { recursive: true });
save('mlkem_512.json', kemGroups(ml_kem512, 'ML-KEM-512', 2, 40));
save('mlkem_768.json', kemGroups(ml_kem768, 'ML-KEM-768', 3, 40));
save('mlkem_1024.json', kemGroups(ml_kem1024, 'ML-KEM-1024', 4, 40));
save('aes_gcm.json', aeadGroups(gcm));
save('chacha20_poly1305.json', aeadGroups(chacha20poly1305));
save('hkdf_sha3_256.json', hkdfGroups());
