import type { StoreError } from './statistics.js';

/** What to tell whoever powers on a card with a store that it does not use. */
export const STORE_REFUSALS: Record<StoreError, string> = {
  'too-small': 'the local store is smaller than 17 MiB',
  foreign: 'the local store holds something else: format it (formatStore) if that is not needed any more',
  damaged: 'every superblock of the local store is damaged: format it (formatStore), what it held is lost',
  newer: 'the local store was formatted by a later firmware: update this card, or format it (formatStore)',
  shrunk: 'the local store is smaller than it was when it was formatted',
  memory: 'the card has too little memory for a local store of this size: give it more, or a smaller store',
  'other-image':
    'the local store holds writes of another image that its image server does not have: start the card with that image ' +
    'first, or format it (formatStore), which loses them',
  'log-damaged':
    'the local store has lost writes that the image server does not have: format it (formatStore) to go on without them',
  device: 'the local store does not answer',
  'no-room':
    'other images share the local store, and it has no place for this one: use a larger store, or say how much of it ' +
    'this image gets (--local-share, storeShareSegments)',
};
