// The ATA device: one state, one event at a time, one step function ([ATA-6] clause 9, device state diagrams).
//
// The front end posts an event and shows BSY; the device answers with an order, at once or when the volume has moved. The
// state is set before the order is given, because the order may bring the next event with it.

import { nowMs } from '../clock';
import { SECTOR_SIZE } from '../config';
import {
  block,
  describeBlock,
  FrontEndEvent,
  FrontEndOrder,
  issueOrder,
  LINE_DEVICE_1,
  LINE_PEER_PASSED,
  LINE_PEER_PRESENT,
  ORDER_INTRQ,
  ORDER_LAST,
  ORDER_PDIAG,
} from '../front-end/block';
import { LogLevel, logEnd, logText, logValue } from '../log';
import { DATA_BUFFER } from '../memory-map';
import { MUTANT, Mutant } from '../mutant';
import { statistics } from '../statistics';
import { volumeCancel, volumeReady, volumeSectors } from '../volume/volume';
import { ACTION_DMA, ACTION_EXT, ACTION_MASK, ACTION_MULTIPLE, Action, commandAction, initCommands } from './commands';
import {
  CMD_EXECUTE_DEVICE_DIAGNOSTIC,
  DEVICE_DEV,
  DEVICE_OBSOLETE,
  DIAGNOSTIC_DEVICE_1_FAILED,
  DIAGNOSTIC_PASSED,
  ERROR_ABRT,
  ERROR_IDNF,
  ERROR_UNC,
  STATUS_DF,
  STATUS_DRDY,
  STATUS_DRQ,
  STATUS_DSC,
  STATUS_ERR,
} from './constants';
import {
  featuresMultipleSectors,
  featuresRevertOnReset,
  featuresWriteCache,
  initFeatures,
  setFeatures,
  setMultipleMode,
} from './features';
import { initGeometry, resetGeometry, setGeometry } from './geometry';
import { identifyDevice } from './identify';
import { checkPowerMode, initPower, PowerMode, powerAccess, powerEnter, setStandbyTimer } from './power';
import { decodeTaskfile, decodeTaskfileAddress, showAddress, showCount, taskfileCount, taskfileLba } from './taskfile';
import {
  beginFlush,
  beginRead,
  beginWrite,
  chunkOffset,
  chunkSize,
  finishWrite,
  readEnds,
  submitWrite,
  TransferState,
  takeRead,
  transferFailedLba,
  transferFault,
} from './transfer';

export enum DeviceState {
  /** DI1 Device_Idle_S, DI2 Device_Idle_NS: which of them is the front end's business. */
  IDLE = 0,
  /** D0SR0, D1SR0: SRST is set. */
  SRST = 1,
  /** D0HR2, D0SR2, D0ED2 Sample_PDIAG-: Device 0 waits for Device 1's diagnostics. */
  SAMPLE_PDIAG = 2,
  /** D0HR3, D1HR1 and so on, Set_status: waiting for the capacity, as a disk that spins up. */
  SET_STATUS = 3,
  /** DND0 Command_Execution */
  COMMAND_EXECUTION = 4,
  /** DPI0, DDMAI0 Prepare: waiting for the volume. */
  DATA_IN_PREPARE = 5,
  /** DPI1, DDMAI1 Transfer_Data */
  DATA_IN_TRANSFER = 6,
  /** DPO0, DDMAO0 Prepare: a chunk is full and the volume has not done the one before. */
  DATA_OUT_PREPARE = 7,
  /** DPO1, DDMAO1 Transfer_Data */
  DATA_OUT_TRANSFER = 8,
  /** DPO0, DDMAO0 after the last sector: waiting for the volume. */
  DATA_OUT_FINISH = 9,
  /** Sleep: only a reset ends it ([ATA-6] 8.50). */
  SLEEP = 10,
}

const STATUS_READY: u8 = STATUS_DRDY | STATUS_DSC;
const NEVER: u32 = 0xffffffff;
/** D0ED2: how long Device 0 waits for PDIAG-. After a reset the standard allows 31 s; a second card that has not answered
 * within this has lost its power or its firmware. */
const PDIAG_TIMEOUT_MS: u32 = 6000;

let state: DeviceState = DeviceState.SRST;
/** The newest event: the one that an order answers. */
let eventSequence: u32 = 0;
let capacityKnown: bool = false;
/** The command being executed: an Action with its bits. */
let action: u32 = 0;
let diagnosticStartedMs: u32 = 0;
/** What is left of the chunk that the front end has: offset in the data buffer and bytes. */
let blockOffset: u32 = 0;
let chunkLeft: u32 = 0;
/** Bytes in a DRQ data block of this command. */
let blockSize: u32 = 0;
/** The write cache is off, and what was written is being committed. */
let committing: bool = false;

export function initAta(): void {
  describeBlock();
  initCommands();
  initFeatures();
  initPower();
  state = DeviceState.SRST;
  capacityKnown = false;
  eventSequence = block.eventSequence;
}

export function ataState(): DeviceState {
  return state;
}

/** Milliseconds until the device wants to be stepped, 0xFFFFFFFF for only on an event. */
export function ataTimeoutMs(): u32 {
  if (state != DeviceState.SAMPLE_PDIAG) return NEVER;
  const waited = nowMs - diagnosticStartedMs;
  return waited >= PDIAG_TIMEOUT_MS ? 0 : PDIAG_TIMEOUT_MS - waited;
}

/** Takes the newest event, or goes on where the volume has moved. Returns true when anything changed. */
export function ataStep(): bool {
  if (block.eventSequence != eventSequence) {
    eventSequence = block.eventSequence;
    handleEvent(block.event);
    return true;
  }
  switch (state) {
    case DeviceState.SAMPLE_PDIAG:
      return samplePdiag();
    case DeviceState.SET_STATUS:
      return setStatus();
    case DeviceState.COMMAND_EXECUTION:
      return continueNonData();
    case DeviceState.DATA_IN_PREPARE:
      return prepareDataIn();
    case DeviceState.DATA_OUT_PREPARE:
      return prepareDataOut();
    case DeviceState.DATA_OUT_FINISH:
      return finishDataOut();
    default:
      return false;
  }
}

function handleEvent(event: u32): void {
  switch (event) {
    case FrontEndEvent.NONE:
      abort(DeviceState.SRST);
      break;
    case FrontEndEvent.RESET:
      reset(block.eventLength != 0);
      break;
    case FrontEndEvent.COMMAND:
      // The front end takes no command while BSY or DRQ is set, so what this may cut short is a reset (EXECUTE DEVICE
      // DIAGNOSTIC reaches a Device 1 that still waits for its capacity).
      if (state == DeviceState.SLEEP && block.command != CMD_EXECUTE_DEVICE_DIAGNOSTIC) ignoreCommand();
      else execute();
      break;
    case FrontEndEvent.DATA_IN_DRAINED:
      if (state == DeviceState.DATA_IN_TRANSFER && !isDma()) dataInDone(blockSizeNow());
      else ignore(event);
      break;
    case FrontEndEvent.DATA_OUT_FILLED:
      if (state == DeviceState.DATA_OUT_TRANSFER && !isDma()) dataOutDone(blockSizeNow());
      else ignore(event);
      break;
    case FrontEndEvent.DMA_DONE:
      if (state == DeviceState.DATA_IN_TRANSFER && isDma()) dataInDone(chunkLeft);
      else if (state == DeviceState.DATA_OUT_TRANSFER && isDma()) dataOutDone(chunkLeft);
      else ignore(event);
      break;
    case FrontEndEvent.DMA_TERMINATED:
      if (isDmaTransfer()) endTerminated();
      else ignore(event);
      break;
    default:
      ignore(event);
  }
}

function ignore(event: u32): void {
  statistics.eventsIgnored += 1;
  logText('event ignored');
  logValue('event', event);
  logValue('state', state);
  logEnd(LogLevel.WARNING);
}

function isDma(): bool {
  return (action & ACTION_DMA) != 0;
}

function isDmaTransfer(): bool {
  return isDma() && (state == DeviceState.DATA_IN_TRANSFER || state == DeviceState.DATA_OUT_TRANSFER);
}

function order(what: FrontEndOrder, flags: u32, offset: u32, length: u32, status: u8): void {
  issueOrder(eventSequence, what, flags, offset, length, status, STATUS_READY);
}

/** Drops whatever is going on. */
function abort(next: DeviceState): void {
  volumeCancel();
  state = next;
}

// Ends of commands

function complete(flags: u32): void {
  state = DeviceState.IDLE;
  block.error = 0;
  order(FrontEndOrder.COMPLETE, flags, 0, 0, STATUS_READY);
}

function fail(error: u8, status: u8): void {
  statistics.commandsFailed += 1;
  state = DeviceState.IDLE;
  block.error = error;
  order(FrontEndOrder.COMPLETE, ORDER_INTRQ, 0, 0, STATUS_READY | status);
}

/** Command aborted: not supported, or not with these parameters. The registers stay as the PC wrote them. */
function failAborted(): void {
  logText('command aborted');
  logValue('command', block.command);
  logValue('features', block.features);
  logValue('sector_count', block.sectorCount);
  logEnd(LogLevel.DEBUG);
  fail(ERROR_ABRT, STATUS_ERR);
}

/** A transfer that the volume could not do. ERR and ABRT come with DF, for hosts that look at ERR alone. */
function failTransfer(): void {
  if (transferFault()) {
    fail(ERROR_ABRT, STATUS_DF | STATUS_ERR);
    return;
  }
  const failed = transferFailedLba();
  showAddress(failed);
  showCount(<u32>(taskfileLba() + taskfileCount() - failed));
  fail(ERROR_UNC, STATUS_ERR);
}

/** After a transfer the registers show its last sector and a count of 0, as they did up to ATA-3. */
function showEnd(): void {
  showAddress(taskfileLba() + taskfileCount() - 1);
  showCount(0);
  block.error = 0;
}

/** The PC ended the transfer: nobody waits for an interrupt, and what was not handed to the volume is dropped. */
function endTerminated(): void {
  volumeCancel();
  complete(0);
}

// Reset and diagnostics

function reset(software: bool): void {
  statistics.resets += 1;
  abort(DeviceState.SRST);
  if (!software || featuresRevertOnReset()) {
    initFeatures();
    if (capacityKnown) resetGeometry();
  }
  initPower();
  action = Action.ABORT;
  beginDiagnostic();
}

function beginDiagnostic(): void {
  diagnosticStartedMs = nowMs;
  if ((block.lines & LINE_DEVICE_1) != 0) {
    // PDIAG- says that the card works; its capacity may take longer.
    state = DeviceState.SET_STATUS;
    order(FrontEndOrder.NONE, ORDER_PDIAG, 0, 0, 0);
  } else {
    state = DeviceState.SAMPLE_PDIAG;
    block.error = DIAGNOSTIC_PASSED;
    samplePdiag();
  }
}

function samplePdiag(): bool {
  const lines = block.lines;
  if ((lines & LINE_PEER_PRESENT) != 0 && (lines & LINE_PEER_PASSED) == 0) {
    if (ataTimeoutMs() != 0) return false;
    logText('Device 1 has not passed its diagnostics');
    logEnd(LogLevel.WARNING);
    block.error = DIAGNOSTIC_DEVICE_1_FAILED;
  }
  state = DeviceState.SET_STATUS;
  return true;
}

/** Signature of a device without the PACKET command set ([ATA-6] 9.12), and the diagnostic code. */
function setStatus(): bool {
  if (!volumeReady()) return false;
  if (!capacityKnown) {
    capacityKnown = true;
    initGeometry(volumeSectors());
  }
  const isDevice1 = (block.lines & LINE_DEVICE_1) != 0;
  if (isDevice1) block.error = DIAGNOSTIC_PASSED;
  block.sectorCount = 1;
  block.lbaLow = 1;
  block.lbaMid = 0;
  block.lbaHigh = 0;
  // The front end cleared DEV when the reset began; the PC may have selected a device since.
  block.device = DEVICE_OBSOLETE | (block.device & DEVICE_DEV);
  state = DeviceState.IDLE;
  // After EXECUTE DEVICE DIAGNOSTIC Device 0 interrupts for both ([ATA-6] 9.10); after a reset none does.
  const interrupts = action == Action.DIAGNOSTIC && !isDevice1;
  action = Action.ABORT;
  // PDIAG- once more: a front end outside of the card's process may see this order before it saw the one that said it first.
  const flags = isDevice1 ? ORDER_PDIAG : interrupts ? ORDER_INTRQ : 0;
  order(FrontEndOrder.COMPLETE, flags, 0, 0, STATUS_READY);
  return true;
}

// Commands

/** A sleeping device does not hear commands: the PC finds neither DRQ nor an interrupt, times out and resets. */
function ignoreCommand(): void {
  ignore(FrontEndEvent.COMMAND);
  order(FrontEndOrder.COMPLETE, 0, 0, 0, STATUS_READY);
}

function execute(): void {
  statistics.commands += 1;
  action = commandAction(block.command);
  switch (action & ACTION_MASK) {
    case Action.READ:
      executeRead();
      break;
    case Action.WRITE:
      executeWrite();
      break;
    case Action.VERIFY:
      executeVerify();
      break;
    case Action.SEEK:
      if (decodeTaskfileAddress()) complete(ORDER_INTRQ);
      else fail(ERROR_IDNF, STATUS_ERR);
      break;
    case Action.RECALIBRATE:
      complete(ORDER_INTRQ);
      break;
    case Action.IDENTIFY:
      executeIdentify();
      break;
    case Action.DIAGNOSTIC:
      abort(DeviceState.SRST);
      beginDiagnostic();
      break;
    case Action.INITIALIZE_PARAMETERS:
      endNonData(setGeometry((block.device & 0x0f) + 1, block.sectorCount));
      break;
    case Action.SET_MULTIPLE:
      endNonData(setMultipleMode(block.sectorCount));
      break;
    case Action.SET_FEATURES:
      endNonData(setFeatures());
      break;
    case Action.FLUSH:
      executeFlush();
      break;
    case Action.STANDBY:
      setStandbyTimer(block.sectorCount);
      executeFlush();
      break;
    // What was written is safe before the PC may cut the power: some systems send nothing but this at shutdown.
    case Action.STANDBY_IMMEDIATE:
    case Action.SLEEP:
      if (MUTANT == Mutant.STANDBY_UNFLUSHED) complete(ORDER_INTRQ);
      else executeFlush();
      break;
    case Action.IDLE:
      setStandbyTimer(block.sectorCount);
      powerEnter(PowerMode.IDLE);
      complete(ORDER_INTRQ);
      break;
    case Action.IDLE_IMMEDIATE:
      powerEnter(PowerMode.IDLE);
      complete(ORDER_INTRQ);
      break;
    case Action.CHECK_POWER:
      block.sectorCount = checkPowerMode();
      complete(ORDER_INTRQ);
      break;
    default:
      failAborted();
  }
}

function endNonData(accepted: bool): void {
  if (accepted) complete(ORDER_INTRQ);
  else failAborted();
}

function executeIdentify(): void {
  identifyDevice(DATA_BUFFER);
  block.error = 0;
  state = DeviceState.IDLE;
  order(FrontEndOrder.DATA_IN, ORDER_INTRQ | ORDER_LAST, 0, SECTOR_SIZE, STATUS_READY | STATUS_DRQ);
}

function executeFlush(): void {
  state = DeviceState.COMMAND_EXECUTION;
  beginFlush(false);
  continueNonData();
}

function executeVerify(): void {
  if (!decodeTaskfile((action & ACTION_EXT) != 0)) {
    fail(ERROR_IDNF, STATUS_ERR);
    return;
  }
  powerAccess();
  state = DeviceState.COMMAND_EXECUTION;
  beginRead(taskfileLba(), taskfileCount());
  continueNonData();
}

/** A command without data that the volume works on. */
function continueNonData(): bool {
  const verifying = (action & ACTION_MASK) == Action.VERIFY;
  const result = verifying ? takeRead() : finishWrite();
  if (result == TransferState.WAITING) return false;
  if (result == TransferState.READY) return true;
  if (result == TransferState.FAILED) {
    failTransfer();
    return true;
  }
  if (verifying) showEnd();
  const command = action & ACTION_MASK;
  if (command == Action.STANDBY || command == Action.STANDBY_IMMEDIATE) powerEnter(PowerMode.STANDBY);
  complete(ORDER_INTRQ);
  if (command == Action.SLEEP) state = DeviceState.SLEEP;
  return true;
}

/** Decodes a data command and sets the size of its DRQ data blocks. False when it has failed. */
function beginData(): bool {
  if ((action & ACTION_MULTIPLE) != 0 && featuresMultipleSectors() == 0) {
    failAborted();
    return false;
  }
  if (!decodeTaskfile((action & ACTION_EXT) != 0)) {
    fail(ERROR_IDNF, STATUS_ERR);
    return false;
  }
  powerAccess();
  blockSize = (action & ACTION_MULTIPLE) != 0 ? featuresMultipleSectors() * SECTOR_SIZE : SECTOR_SIZE;
  return true;
}

/** Bytes in the DRQ data block that comes next: the last of a chunk may be shorter. */
function blockSizeNow(): u32 {
  return min(blockSize, chunkLeft);
}

// Data in

function executeRead(): void {
  if (!beginData()) return;
  state = DeviceState.DATA_IN_PREPARE;
  beginRead(taskfileLba(), taskfileCount());
  prepareDataIn();
}

function prepareDataIn(): bool {
  const result = takeRead();
  if (result == TransferState.WAITING) return false;
  if (result == TransferState.FAILED) {
    failTransfer();
  } else if (result == TransferState.DONE) {
    showEnd();
    complete(ORDER_INTRQ);
  } else {
    blockOffset = chunkOffset();
    chunkLeft = chunkSize();
    sendDataIn();
  }
  return true;
}

function sendDataIn(): void {
  state = DeviceState.DATA_IN_TRANSFER;
  if (isDma()) {
    order(FrontEndOrder.DMA_IN, 0, blockOffset, chunkLeft, 0);
    return;
  }
  const length = blockSizeNow();
  let flags = ORDER_INTRQ;
  if (length == chunkLeft && readEnds()) {
    // The front end ends the command by itself.
    showEnd();
    state = DeviceState.IDLE;
    flags = ORDER_INTRQ | ORDER_LAST;
  }
  order(FrontEndOrder.DATA_IN, flags, blockOffset, length, STATUS_READY | STATUS_DRQ);
}

function dataInDone(length: u32): void {
  blockOffset += length;
  chunkLeft -= length;
  if (chunkLeft > 0) {
    sendDataIn();
    return;
  }
  state = DeviceState.DATA_IN_PREPARE;
  prepareDataIn();
}

// Data out

function executeWrite(): void {
  if (!beginData()) return;
  committing = false;
  beginWrite(taskfileLba(), taskfileCount());
  receiveChunk(0);
}

function receiveChunk(flags: u32): void {
  blockOffset = chunkOffset();
  chunkLeft = chunkSize();
  receiveDataOut(flags);
}

/** PIO data-out: the PC waits for DRQ before the first block, for the interrupt before the others. */
function receiveDataOut(flags: u32): void {
  state = DeviceState.DATA_OUT_TRANSFER;
  if (isDma()) order(FrontEndOrder.DMA_OUT, 0, blockOffset, chunkLeft, 0);
  else order(FrontEndOrder.DATA_OUT, flags, blockOffset, blockSizeNow(), STATUS_READY | STATUS_DRQ);
}

function dataOutDone(length: u32): void {
  blockOffset += length;
  chunkLeft -= length;
  if (chunkLeft > 0) {
    receiveDataOut(ORDER_INTRQ);
    return;
  }
  state = DeviceState.DATA_OUT_PREPARE;
  prepareDataOut();
}

function prepareDataOut(): bool {
  const result = submitWrite();
  if (result == TransferState.WAITING) return false;
  if (result == TransferState.FAILED) {
    failTransfer();
  } else if (result == TransferState.READY) {
    receiveChunk(ORDER_INTRQ);
  } else {
    state = DeviceState.DATA_OUT_FINISH;
    finishDataOut();
  }
  return true;
}

function finishDataOut(): bool {
  const result = finishWrite();
  if (result == TransferState.WAITING) return false;
  if (result == TransferState.FAILED) {
    failTransfer();
  } else if (!committing && !featuresWriteCache() && MUTANT != Mutant.WRITE_CACHE_STAYS_ON) {
    committing = true;
    beginFlush(true);
  } else {
    showEnd();
    complete(ORDER_INTRQ);
  }
  return true;
}
