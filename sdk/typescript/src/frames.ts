/**
 * WebSocket frames (RFC 6455, section 5.2) as bytes: a client's written, a server's read.
 *
 * @module
 */

import { randomBytes } from 'node:crypto';

import { BadAnswerError } from './errors.js';

/** The most bytes a message may have. */
export const MOST_BYTES = 64 * 1024 * 1024;

/** What a frame is. */
export const Opcode = { continuation: 0, text: 1, binary: 2, close: 8, ping: 9, pong: 10 } as const;

/** A frame that was read. */
export interface Frame {
  opcode: number;
  /** Whether the message ends with it. */
  last: boolean;
  payload: Buffer;
}

/** A message as a client sends it: one frame, masked. */
export function encodeFrame(opcode: number, payload: Uint8Array): Buffer {
  const { length } = payload;
  const extended = length < 126 ? 0 : length < 65536 ? 2 : 8;
  const frame = Buffer.allocUnsafe(2 + extended + 4 + length);
  frame[0] = 0x80 | opcode;
  frame[1] = 0x80 | (extended === 0 ? length : extended === 2 ? 126 : 127);
  if (extended === 2) frame.writeUInt16BE(length, 2);
  else if (extended === 8) frame.writeBigUInt64BE(BigInt(length), 2);
  const mask = randomBytes(4);
  mask.copy(frame, 2 + extended);
  const start = 6 + extended;
  for (let at = 0; at < length; at += 1) frame[start + at] = (payload[at] ?? 0) ^ (mask[at & 3] ?? 0);
  return frame;
}

/** Frames as a server sends them, unmasked, out of bytes that come in pieces cut anywhere. */
export class FrameReader {
  #pieces: Buffer[] = [];
  #have = 0;
  #need = 2;

  push(bytes: Buffer): void {
    this.#pieces.push(bytes);
    this.#have += bytes.length;
  }

  /** The next frame, if all of it is there. */
  next(): Frame | undefined {
    // What is not enough is left in its pieces: they are put together once for a frame, not once for a piece.
    while (this.#have >= this.#need) {
      const bytes = whole(this.#pieces);
      const size = frameSize(bytes);
      this.#pieces = [bytes];
      if (size.known && bytes.length >= size.bytes) {
        const frame = parseFrame(bytes.subarray(0, size.bytes), size.header);
        const rest = bytes.subarray(size.bytes);
        this.#pieces = rest.length === 0 ? [] : [rest];
        this.#have = rest.length;
        this.#need = 2;
        return frame;
      }
      this.#need = size.bytes;
    }
    return undefined;
  }
}

function whole(pieces: readonly Buffer[]): Buffer {
  const [first] = pieces;
  return first !== undefined && pieces.length === 1 ? first : Buffer.concat(pieces);
}

/** How many bytes a frame has, or are needed to know it. */
function frameSize(bytes: Buffer): { known: boolean; bytes: number; header: number } {
  const [first, second] = [bytes.readUInt8(0), bytes.readUInt8(1)];
  if ((first & 0x70) !== 0)
    throw new BadAnswerError('a WebSocket frame of an extension that was not asked for');
  if ((second & 0x80) !== 0) throw new BadAnswerError('a WebSocket frame from a server is masked');
  const short = second & 0x7f;
  const control = (first & 0x08) !== 0;
  if (control && (short > 125 || (first & 0x80) === 0)) {
    throw new BadAnswerError('a WebSocket control frame is too long or in parts');
  }
  if (short < 126) return { known: true, bytes: 2 + short, header: 2 };
  const header = short === 126 ? 4 : 10;
  if (bytes.length < header) return { known: false, bytes: header, header };
  const length = short === 126 ? bytes.readUInt16BE(2) : Number(bytes.readBigUInt64BE(2));
  if (length > MOST_BYTES) throw new BadAnswerError('a WebSocket message is too long');
  return { known: true, bytes: header + length, header };
}

function parseFrame(bytes: Buffer, header: number): Frame {
  const first = bytes.readUInt8(0);
  return { opcode: first & 0x0f, last: (first & 0x80) !== 0, payload: bytes.subarray(header) };
}
