// Names of images, branches and tags, and how an export is named: image, image/branch, image@generation, image/branch@tag.

import { Failure } from '../failure.js';

const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;

export interface ExportName {
  /** `image` or `image/branch`: the name of a line. */
  line: string;
  /** A generation number, a tag, or null for the newest. */
  at: number | string | null;
}

/** What an export name says; null when it cannot be one. */
export function parseExportName(text: string): ExportName | null {
  const match = /^([^@]+)(?:@([^@]+))?$/.exec(text);
  if (match === null || !isLineName(match[1])) return null;
  if (match[2] === undefined) return { line: match[1], at: null };
  if (/^\d{1,15}$/.test(match[2])) return { line: match[1], at: Number(match[2]) };
  return isTag(match[2]) ? { line: match[1], at: match[2] } : null;
}

export function isLineName(text: string): boolean {
  const parts = text.split('/');
  return parts.length <= 2 && parts.every((part) => NAME.test(part));
}

/** A tag is a name that is not a number: `image@7` is a generation. */
export function isTag(text: string): boolean {
  return NAME.test(text) && !/^\d+$/.test(text);
}

/** The image that a line belongs to: rights are given by image. */
export function imageOf(line: string): string {
  return line.split('/')[0];
}

const ALLOWED = 'letters, digits, ".", "_" and "-", at most 64, beginning with a letter or digit';

export function checkImageName(text: string): void {
  if (!NAME.test(text)) throw new Failure(`"${text}" cannot be the name of an image: use ${ALLOWED}`);
}

export function checkLineName(text: string): void {
  if (!isLineName(text)) throw new Failure(`"${text}" is not IMAGE or IMAGE/BRANCH; each name has ${ALLOWED}`);
}

export function checkTag(text: string): void {
  if (!isTag(text)) throw new Failure(`"${text}" cannot be a tag: use ${ALLOWED}, and not digits only`);
}
