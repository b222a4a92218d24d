/**
 * The client's side of a WebSocket (RFC 6455) over an upgraded connection: no extensions, no subprotocols.
 *
 * It is small enough to be our own, and so the SDK has no dependency; the tests hold it against another implementation.
 *
 * @module
 */

import { createHash, randomBytes } from 'node:crypto';
import type { Duplex } from 'node:stream';

import { BadAnswerError, ConnectionLostError } from './errors.js';
import { FrameReader, MOST_BYTES, Opcode, encodeFrame } from './frames.js';
import type { Frame } from './frames.js';
import { abortReason } from './http.js';
import type { Transport, Upgraded } from './http.js';

/** What a connection tells, until `onEnd`, which comes once and last. */
export interface WebSocketHandler {
  onText(text: string): void;
  onBinary(bytes: Uint8Array): void;
  /** It is over: closed by the other end, or, with an error, broken. */
  onEnd(error: Error | undefined): void;
}

const GUID = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11';
/** How long the other end may take to close after we did. */
const CLOSE_MS = 1000;

/** An open connection. */
export class WebSocket {
  readonly #socket: Duplex;
  readonly #handler: WebSocketHandler;
  readonly #frames = new FrameReader();
  #message: { opcode: number; pieces: Buffer[]; size: number } | undefined;
  #ended = false;
  #closing: NodeJS.Timeout | undefined;
  #release: () => void = () => undefined;

  private constructor(socket: Duplex, handler: WebSocketHandler) {
    this.#socket = socket;
    this.#handler = handler;
  }

  /** Opens one. Aborting the signal, also later, breaks the connection. */
  static async connect(
    transport: Transport,
    path: string,
    handler: WebSocketHandler,
    signal?: AbortSignal,
  ): Promise<WebSocket> {
    const key = randomBytes(16).toString('base64');
    const headers = {
      connection: 'Upgrade',
      upgrade: 'websocket',
      'sec-websocket-version': '13',
      'sec-websocket-key': key,
    };
    const upgraded = await transport.upgrade(path, headers, signal);
    const accept = createHash('sha1')
      .update(key + GUID)
      .digest('base64');
    if (upgraded.headers['sec-websocket-accept'] !== accept) {
      upgraded.socket.destroy();
      throw new BadAnswerError('the daemon did not accept the WebSocket');
    }
    const socket = new WebSocket(upgraded.socket, handler);
    socket.#open(upgraded, signal);
    return socket;
  }

  #open(upgraded: Upgraded, signal: AbortSignal | undefined): void {
    const { socket, head } = upgraded;
    const abort = (): void => {
      this.#fail(abortReason(signal));
    };
    signal?.addEventListener('abort', abort, { once: true });
    this.#release = () => signal?.removeEventListener('abort', abort);
    socket.on('error', (cause) => {
      this.#fail(new ConnectionLostError(`the connection to the command was lost: ${cause.message}`, cause));
    });
    socket.on('close', () => {
      this.#fail(new ConnectionLostError('the connection to the command was lost'));
    });
    if (signal?.aborted === true) abort();
    // After this turn, so that who opened it can keep it before the first message comes.
    setImmediate(() => {
      if (this.#ended) return;
      if (head.length > 0) this.#take(head);
      socket.on('data', (bytes: Buffer) => {
        this.#take(bytes);
      });
      socket.on('end', () => {
        this.#fail(new ConnectionLostError('the connection to the command was lost'));
      });
    });
  }

  /** Sends a text message. See {@link WebSocket.sendBinary}. */
  sendText(text: string): Promise<void> {
    return this.#send(Opcode.text, Buffer.from(text, 'utf8'));
  }

  /** Sends a binary message. Resolves when more may be sent without piling up; what is sent after its end is lost. */
  sendBinary(bytes: Uint8Array): Promise<void> {
    return this.#send(Opcode.binary, bytes);
  }

  /** Stops reading, so that the other end has to wait. */
  pause(): void {
    this.#socket.pause();
  }

  /** Goes on reading. */
  resume(): void {
    this.#socket.resume();
  }

  /** Says goodbye, and breaks the connection if the other end does not soon do so too. */
  close(code = 1000): void {
    if (this.#ended || this.#closing !== undefined) return;
    const payload = Buffer.alloc(2);
    payload.writeUInt16BE(code);
    this.#write(Opcode.close, payload);
    this.#closing = setTimeout(() => {
      this.#end(undefined);
    }, CLOSE_MS);
    this.#socket.resume();
  }

  /** Breaks the connection at once. */
  terminate(): void {
    this.#end(undefined);
  }

  async #send(opcode: number, bytes: Uint8Array): Promise<void> {
    if (this.#ended || this.#closing !== undefined) return;
    if (this.#write(opcode, bytes)) return;
    await new Promise<void>((resolve) => {
      const go = (): void => {
        this.#socket.off('drain', go).off('close', go);
        resolve();
      };
      this.#socket.once('drain', go).once('close', go);
    });
  }

  #write(opcode: number, payload: Uint8Array): boolean {
    return this.#socket.write(encodeFrame(opcode, payload));
  }

  #take(bytes: Buffer): void {
    try {
      this.#frames.push(bytes);
      for (let frame = this.#frames.next(); frame !== undefined; frame = this.#frames.next()) {
        if (this.#ended) return;
        this.#frame(frame);
      }
    } catch (error) {
      this.#fail(error instanceof Error ? error : new Error(String(error)));
    }
  }

  #frame(frame: Frame): void {
    switch (frame.opcode) {
      case Opcode.ping:
        if (this.#closing === undefined) this.#write(Opcode.pong, frame.payload);
        return;
      case Opcode.pong:
        return;
      case Opcode.close: {
        if (this.#closing === undefined) this.#write(Opcode.close, frame.payload.subarray(0, 2));
        const code = frame.payload.length < 2 ? 1005 : frame.payload.readUInt16BE();
        const plain = code === 1000 || code === 1001 || code === 1005;
        const why = frame.payload.subarray(2).toString('utf8');
        this.#end(
          plain ? undefined : new ConnectionLostError(`the daemon closed the connection: ${code} ${why}`),
        );
        return;
      }
      case Opcode.text:
      case Opcode.binary:
        if (this.#message !== undefined)
          throw new BadAnswerError('a WebSocket message begins within another');
        this.#message = { opcode: frame.opcode, pieces: [], size: 0 };
        break;
      case Opcode.continuation:
        break;
      default:
        throw new BadAnswerError(`a WebSocket frame of unknown kind ${frame.opcode}`);
    }
    const message = this.#message;
    if (message === undefined) throw new BadAnswerError('a WebSocket message goes on that never began');
    message.pieces.push(frame.payload);
    message.size += frame.payload.length;
    if (message.size > MOST_BYTES) throw new BadAnswerError('a WebSocket message is too long');
    if (!frame.last) return;
    this.#message = undefined;
    const bytes = message.pieces.length === 1 ? frame.payload : Buffer.concat(message.pieces);
    if (message.opcode === Opcode.text) this.#handler.onText(utf8(bytes));
    else this.#handler.onBinary(bytes);
  }

  #fail(error: Error): void {
    // After our own goodbye it is no matter how the connection ends.
    this.#end(this.#closing === undefined ? error : undefined);
  }

  #end(error: Error | undefined): void {
    if (this.#ended) return;
    this.#ended = true;
    clearTimeout(this.#closing);
    this.#release();
    if (error === undefined) this.#socket.end(() => this.#socket.destroy());
    else this.#socket.destroy();
    this.#handler.onEnd(error);
  }
}

function utf8(bytes: Uint8Array): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    throw new BadAnswerError('a WebSocket text message is not UTF-8', { cause });
  }
}
