/**
 * Files of this machine as parts of an image's steps.
 *
 * @module
 */

import * as fs from 'node:fs';
import * as path from 'node:path';

import { matches } from './glob.js';

/** A file's permission bits: a number (`0o755`) or octal digits (`'0755'`). */
export type Mode = number | string;

/** What a file in a step is. */
export interface FileFields {
  content: string;
  mode?: string;
}

/** The most bytes of files that one image can have: a manifest has at most 64 MiB, and base64 takes a third more. */
export const MOST_BYTES = 48 * 1024 * 1024;

/** Writes a mode as octal digits. */
export function modeText(mode: Mode): string {
  if (typeof mode === 'string') return mode;
  if (!Number.isInteger(mode) || mode < 0 || mode > 0o7777) {
    throw new RangeError(`${mode} is no mode; permission bits are 0 to 0o7777`);
  }
  return mode.toString(8).padStart(4, '0');
}

/** A file with this content. */
export function fileFields(content: Uint8Array, mode: Mode | undefined): FileFields {
  checkSize('the file', content.byteLength);
  const fields: FileFields = { content: Buffer.from(content).toString('base64') };
  if (mode !== undefined) fields.mode = modeText(mode);
  return fields;
}

/**
 * A file from here. Of its mode only whether its owner may execute it is kept, so that the same files give the same
 * image wherever they are checked out.
 */
export function localFile(file: string, mode: Mode | undefined): FileFields {
  const found = fs.statSync(file);
  if (!found.isFile()) throw new TypeError(`${file} is no regular file`);
  checkSize(file, found.size);
  const executable = (found.mode & 0o100) !== 0;
  return fileFields(fs.readFileSync(file), mode ?? (executable ? '0755' : undefined));
}

/** The files below a directory, in the order of their paths. */
export function localDirectory(
  root: string,
  ignore: readonly string[],
): ({ relativePath: string } & FileFields)[] {
  const found = [...walk(root, '', ignore)];
  // By code points, as Python sorts: JavaScript's own order is by UTF-16 code units.
  found.sort((one, other) => Buffer.compare(Buffer.from(one), Buffer.from(other)));
  let total = 0;
  return found.map((relativePath) => {
    const fields = localFile(path.join(root, relativePath), undefined);
    total += Buffer.byteLength(fields.content, 'base64');
    checkSize(`the directory ${root}`, total);
    return { relativePath, ...fields };
  });
}

function* walk(root: string, below: string, ignore: readonly string[]): Generator<string, void, undefined> {
  for (const entry of fs.readdirSync(path.join(root, below), { withFileTypes: true, encoding: 'buffer' })) {
    const name = nameOf(entry.name);
    const relative = below === '' ? name : `${below}/${name}`;
    if (ignore.some((pattern) => matches(relative, pattern) || matches(name, pattern))) continue;
    const whole = path.join(root, relative);
    if (entry.isDirectory()) yield* walk(root, relative, ignore);
    else if (entry.isSymbolicLink() && fs.statSync(whole).isDirectory()) {
      throw new TypeError(`${whole} is a link to a directory; leave it out with \`ignore\``);
    } else yield relative;
  }
}

function nameOf(bytes: Uint8Array): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw new TypeError(`${JSON.stringify(Buffer.from(bytes).toString('latin1'))} is no name in UTF-8`);
  }
}

function checkSize(what: string, bytes: number): void {
  if (bytes <= MOST_BYTES) return;
  throw new RangeError(
    `${what} has more than an image's steps can carry (${MOST_BYTES} bytes): ` +
      'leave something out, or fetch it in a step',
  );
}
