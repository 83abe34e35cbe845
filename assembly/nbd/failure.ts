// What is wrong with the current connection. The parts of the client report here and stop; the connection's owner
// (client.ts) looks after each step, logs it with its values and gives the connection up.

import { NbdError } from './constants';

let error: NbdError = NbdError.NONE;
let firstName: string = '';
let firstValue: u64 = 0;
let secondName: string = '';
let secondValue: u64 = 0;

/** Reports `why` with two values for the log; the first report counts. */
export function fail(why: NbdError, name1: string, value1: u64, name2: string, value2: u64): void {
  if (error != NbdError.NONE) return;
  error = why;
  firstName = name1;
  firstValue = value1;
  secondName = name2;
  secondValue = value2;
}

export function failure(): NbdError {
  return error;
}

export function failureName1(): string {
  return firstName;
}

export function failureValue1(): u64 {
  return firstValue;
}

export function failureName2(): string {
  return secondName;
}

export function failureValue2(): u64 {
  return secondValue;
}

export function clearFailure(): void {
  error = NbdError.NONE;
}
