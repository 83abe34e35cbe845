// Reads the statistics record out of a card's memory (SPEC.md "Statistics").

import { ACKNOWLEDGEMENT_POINTS, type AcknowledgementPoint } from './settings.js';

export const STATISTICS_OFFSET = 0x3000;
export const STATISTICS_SIZE = 232;
const MAGIC = 0x53534252; // "RBSS"
const VERSION = 3;

export const LINK_STATES = ['down', 'connecting', 'negotiating', 'up', 'refused'] as const;
export type LinkState = (typeof LINK_STATES)[number];

export const STORE_STATES = ['starting', 'ready', 'refused', 'failed'] as const;
export type StoreState = (typeof STORE_STATES)[number];

/** The firmware's StoreError, from 1 on. */
export const STORE_ERRORS = [
  'too-small',
  'foreign',
  'damaged',
  'newer',
  'shrunk',
  'memory',
  'other-image',
  'log-damaged',
  'device',
  'no-room',
] as const;
export type StoreError = (typeof STORE_ERRORS)[number];

export interface CardStatistics {
  linkState: LinkState;
  /** The last NbdError of the firmware, 0 when there was none. */
  linkError: number;
  sectors: number;
  commands: number;
  commandsFailed: number;
  sectorsRead: number;
  sectorsWritten: number;
  blockHits: number;
  blockMisses: number;
  bytesFromServer: number;
  bytesToServer: number;
  epochsCommitted: number;
  lagBytes: number;
  lagEpochs: number;
  /** Milliseconds since the oldest uncommitted write, 0 when there is none. */
  lagMs: number;
  connects: number;
  eventsIgnored: number;
  protocolErrors: number;
  resets: number;
  storeState: StoreState;
  /** Why the local store is refused, null when it is not. */
  storeError: StoreError | null;
  /** Blocks of the log, image blocks that it holds, and those of them that the server does not have. */
  storeBlocks: number;
  storeBlocksUsed: number;
  storeBlocksDirty: number;
  storeSegmentsFree: number;
  storeBlocksRead: number;
  storeBlocksWritten: number;
  storeFlushes: number;
  storeBlocksBad: number;
  writesStalled: number;
  writesFailed: number;
  acknowledgementPoint: AcknowledgementPoint;
  merges: number;
  /** The image server's generation that the clean blocks are right for; 0: none, or a plain NBD server's. */
  generation: number;
  /** Clean blocks forgotten because others had changed them. */
  blocksForgotten: number;
  /** Conflicts that were settled on a branch since power-on. */
  conflicts: number;
  onBranch: boolean;
}

/** `nowMs` is the card's clock_ms(). */
export function decodeStatistics(record: Uint8Array, nowMs: number): CardStatistics {
  const view = new DataView(record.buffer, record.byteOffset, record.byteLength);
  if (view.getUint32(0, true) !== MAGIC) throw new Error('the card has no statistics record');
  const version = view.getUint16(4, true);
  if (version !== VERSION) throw new Error(`statistics record has version ${version}, this program knows ${VERSION}`);
  const u64 = (offset: number): number => Number(view.getBigUint64(offset, true));
  const u32 = (offset: number): number => view.getUint32(offset, true);
  const lagBytes = u64(96);
  return {
    linkState: LINK_STATES[u32(8)] ?? 'down',
    linkError: u32(12),
    sectors: u64(16),
    commands: u64(24),
    commandsFailed: u64(32),
    sectorsRead: u64(40),
    sectorsWritten: u64(48),
    blockHits: u64(56),
    blockMisses: u64(64),
    bytesFromServer: u64(72),
    bytesToServer: u64(80),
    epochsCommitted: u64(88),
    lagBytes,
    lagEpochs: u32(104),
    lagMs: lagBytes > 0 ? (nowMs - u32(108)) >>> 0 : 0,
    connects: u32(112),
    eventsIgnored: u32(116),
    protocolErrors: u32(120),
    resets: u32(124),
    storeState: STORE_STATES[u32(128)] ?? 'starting',
    storeError: STORE_ERRORS[u32(132) - 1] ?? null,
    storeBlocks: u32(136),
    storeBlocksUsed: u32(140),
    storeBlocksDirty: u32(144),
    storeSegmentsFree: u32(148),
    storeBlocksRead: u64(152),
    storeBlocksWritten: u64(160),
    storeFlushes: u64(168),
    storeBlocksBad: u64(176),
    writesStalled: u32(184),
    writesFailed: u32(188),
    acknowledgementPoint: ACKNOWLEDGEMENT_POINTS[u32(192)] ?? 'stored',
    merges: u32(196),
    generation: u64(208),
    blocksForgotten: u64(216),
    conflicts: u32(224),
    onBranch: u32(228) !== 0,
  };
}
