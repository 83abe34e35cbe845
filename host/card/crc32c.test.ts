import assert from 'node:assert/strict';
import { it } from 'node:test';
import { crc32c } from './crc32c.js';

const DATA = Buffer.from('123456789');
/** SPEC.md, from the polynomial's catalogue entry. */
const CHECK = 0xe3069283;

it('gives the check value of CRC-32C', () => {
  assert.equal(crc32c(DATA), CHECK);
});

it('goes on from an earlier result, at any place', () => {
  for (let i = 0; i <= DATA.length; i++) assert.equal(crc32c(DATA.subarray(i), crc32c(DATA.subarray(0, i))), CHECK);
});
