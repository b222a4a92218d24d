/**
 * HTTP/1.1 over a Unix socket: requests, their retries, and errors of connections and of the API as exceptions.
 *
 * @module
 */

import * as http from 'node:http';
import type { Duplex } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';

import { Connections, connect } from './connection.js';
import {
  BadAnswerError,
  BusyError,
  ConnectionLostError,
  DaemonUnreachableError,
  NotFoundError,
  errorFromBody,
} from './errors.js';
import type { SporeError } from './errors.js';

/** What a body can be. One that is iterated can be sent only once. */
export type Body = string | Uint8Array | AsyncIterable<string | Uint8Array>;

/** A request. */
export interface Request {
  method: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE';
  path: string;
  query?: Readonly<Record<string, string | number | boolean | undefined>> | undefined;
  headers?: Readonly<Record<string, string>> | undefined;
  body?: Body | undefined;
  /** Whether it can be sent again if it is not known whether it was carried out. */
  repeatable: boolean;
  signal?: AbortSignal | undefined;
}

/** An answer whose body is still to be read. */
export interface Answer {
  status: number;
  headers: http.IncomingHttpHeaders;
  /** The body, in pieces; ended early by a {@link ConnectionLostError}. Leaving it closes the connection. */
  body: AsyncIterable<Uint8Array>;
  /** Closes the connection. */
  close(): void;
}

/** From this many bytes on the daemon is asked whether it would take the body before it is sent. */
const ASK_FIRST_BYTES = 1024 * 1024;
/** How long it is waited for that; a daemon that does not say gets the body. */
const ASK_FIRST_MS = 1000;
/** The first wait before a request is sent again; each later one is three times as long. */
const FIRST_WAIT_MS = 50;
/** The longest path that fits into a `sockaddr_un`. */
const LONGEST_PATH = 107;

/** How requests get to one daemon. */
export class Transport {
  /** For requests that can be repeated: the daemon may close an idle connection at the moment it is used. */
  readonly #kept: Connections;
  #reached = false;

  constructor(
    readonly socketPath: string,
    readonly retries: number,
  ) {
    if (Buffer.byteLength(socketPath) > LONGEST_PATH) {
      throw new RangeError(`the socket's path is longer than ${LONGEST_PATH} bytes: ${socketPath}`);
    }
    this.#kept = new Connections(socketPath);
  }

  /** Closes connections that are idle. */
  close(): void {
    this.#kept.destroy();
  }

  /** Sends a request, and gives a successful answer as soon as its head is there. */
  open(request: Request): Promise<Answer> {
    return this.#repeat(request, () => this.#send(request));
  }

  /** Sends a request and reads the whole answer. */
  bytes(request: Request): Promise<{ answer: Answer; bytes: Buffer }> {
    return this.#repeat(request, async () => {
      const answer = await this.#send(request);
      return { answer, bytes: await readAll(answer) };
    });
  }

  /** Sends a request with a JSON body, or none, and reads an answer in JSON. */
  json<T>(request: Omit<Request, 'body'>, body?: object): Promise<T> {
    return this.sent(withJson(request, body));
  }

  /** Sends a request and reads an answer in JSON. */
  async sent<T>(request: Request): Promise<T> {
    const { answer, bytes } = await this.bytes(request);
    try {
      return JSON.parse(bytes.toString('utf8')) as T;
    } catch (cause) {
      const { status } = answer;
      throw new BadAnswerError(`the answer to ${request.method} ${request.path} is not JSON`, {
        status,
        cause,
      });
    }
  }

  /** Deletes something. If it is gone when a lost call is made again, then by that call. */
  async delete(
    request: Omit<Request, 'body' | 'method' | 'repeatable'> & { method: 'DELETE' },
  ): Promise<void> {
    let lostBefore = false;
    await this.#repeat({ ...request, repeatable: true }, async () => {
      try {
        await readAll(await this.#send({ ...request, repeatable: true }));
      } catch (error) {
        if (lostBefore && error instanceof NotFoundError) return;
        lostBefore ||= error instanceof ConnectionLostError;
        throw error;
      }
    });
  }

  /** Sends a request for another protocol, and gives the connection with what came after the answer's head. */
  upgrade(path: string, headers: Readonly<Record<string, string>>, signal?: AbortSignal): Promise<Upgraded> {
    const request: Request = { method: 'GET', path, headers, repeatable: false, signal };
    return this.#repeat(request, () => this.#upgrade(request));
  }

  /** Makes an attempt, and further ones after what cannot have done harm. */
  async #repeat<T>(request: Request, attempt: () => Promise<T>): Promise<T> {
    for (let wait = FIRST_WAIT_MS, left = this.retries; ; wait *= 3, left -= 1) {
      try {
        request.signal?.throwIfAborted();
        return await attempt();
      } catch (error) {
        if (left <= 0 || isOneShot(request.body) || !this.#mayRepeat(request, error)) throw error;
        await sleep(wait, undefined, request.signal && { signal: request.signal }).catch(() => undefined);
        request.signal?.throwIfAborted();
      }
    }
  }

  #mayRepeat(request: Request, error: unknown): boolean {
    if (error instanceof ConnectionLostError) return request.repeatable;
    // A daemon that was there may be just starting anew. One that never was is better told of at once.
    if (error instanceof DaemonUnreachableError) return this.#reached;
    return error instanceof BusyError;
  }

  #send(request: Request): Promise<Answer> {
    return new Promise((resolve, reject) => {
      const { outgoing, where, done } = this.#start(request, reject);
      outgoing.on('response', (incoming) => {
        const answer = answerOf(incoming, where, request.signal, done);
        if (answer.status >= 200 && answer.status < 300) resolve(answer);
        else readError(answer, where).then(reject, reject);
      });
    });
  }

  #upgrade(request: Request): Promise<Upgraded> {
    return new Promise((resolve, reject) => {
      const { outgoing, where, done } = this.#start(request, reject);
      outgoing.on('upgrade', (incoming, socket, head) => {
        done();
        resolve({ headers: incoming.headers, socket, head });
      });
      outgoing.on('response', (incoming) => {
        readError(answerOf(incoming, where, request.signal, done), where).then(reject, reject);
      });
    });
  }

  /** Begins a request. What goes wrong before it is answered goes to `fail`. */
  #start(request: Request, fail: (error: unknown) => void): Started {
    const { method, body, signal } = request;
    const where = `${method} ${request.path}`;
    const headers: Record<string, string> = { ...request.headers };
    const length = lengthOf(body);
    if (length !== undefined) headers['content-length'] = String(length);
    const askFirst = body !== undefined && (length === undefined || length >= ASK_FIRST_BYTES);
    if (askFirst) headers['expect'] = '100-continue';
    const outgoing = http.request({
      socketPath: this.socketPath,
      ...(request.repeatable ? { agent: this.#kept } : { createConnection: () => connect(this.socketPath) }),
      method,
      path: request.path + queryString(request.query),
      headers,
    });

    let incoming: http.IncomingMessage | undefined;
    const abort = (): void => void (incoming ?? outgoing).destroy(abortReason(signal));
    const done = (): void => signal?.removeEventListener('abort', abort);
    signal?.addEventListener('abort', abort, { once: true });
    if (signal?.aborted === true) abort();

    let connected = false;
    outgoing.on('socket', (socket) => {
      const arrived = (): void => {
        connected = this.#reached = true;
      };
      if (socket.connecting) socket.once('connect', arrived);
      else arrived();
    });
    outgoing.on('error', (cause) => {
      done();
      // Once there is an answer this changes nothing: what happens then is seen by who reads it.
      if (signal?.aborted === true) fail(abortReason(signal));
      else fail(connected ? lost(where, cause) : this.#unreachable(cause));
    });
    outgoing.on('response', (response) => {
      incoming = response;
      // A daemon that answers before it has the whole body does not want the rest.
      response.once('close', () => {
        if (!outgoing.writableFinished) outgoing.destroy();
      });
    });
    sendBody(outgoing, body, askFirst, () => incoming !== undefined).catch((error: unknown) => {
      done();
      fail(error);
      outgoing.destroy();
    });
    return { outgoing, where, done };
  }

  #unreachable(cause: NodeJS.ErrnoException): SporeError {
    const hints: Record<string, string> = {
      ENOENT: 'there is no such socket; is `spore serve` running?',
      ECONNREFUSED: 'nobody listens there; is `spore serve` running?',
      EACCES: 'this user may not open it',
      EPERM: 'this user may not open it',
    };
    const why = hints[cause.code ?? ''] ?? cause.message;
    return new DaemonUnreachableError(`no Spore daemon at ${this.socketPath}: ${why}`, cause);
  }
}

/** A request that was begun. */
interface Started {
  outgoing: http.ClientRequest;
  where: string;
  /** Lets go of the request's signal. */
  done: () => void;
}

/** A connection that speaks another protocol from here on. */
export interface Upgraded {
  headers: http.IncomingHttpHeaders;
  socket: Duplex;
  head: Buffer;
}

/** An id or a name as a part of a path. */
export function segment(name: string): string {
  // Clients and servers take these parts out of a path.
  if (typeof name !== 'string' || name === '' || name === '.' || name === '..') {
    throw new TypeError(`${JSON.stringify(name)} is no name or id`);
  }
  return encodeURIComponent(name);
}

/** A request with a JSON body. */
export function withJson(request: Omit<Request, 'body'>, body: object | undefined): Request {
  if (body === undefined) return request;
  const headers = { ...request.headers, 'content-type': 'application/json' };
  return { ...request, headers, body: JSON.stringify(body) };
}

/** What a signal was aborted with, as an error. */
export function abortReason(signal: AbortSignal | undefined): Error {
  const reason: unknown = signal?.reason;
  return reason instanceof Error ? reason : new Error('aborted', { cause: reason });
}

function queryString(query: Request['query']): string {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(query ?? {})) {
    if (value !== undefined) parameters.set(name, value === true ? '1' : String(value));
  }
  const text = parameters.toString();
  return text === '' ? '' : `?${text}`;
}

function lengthOf(body: Body | undefined): number | undefined {
  if (typeof body === 'string') return Buffer.byteLength(body);
  return body instanceof Uint8Array ? body.byteLength : undefined;
}

function isOneShot(body: Body | undefined): boolean {
  return body !== undefined && lengthOf(body) === undefined;
}

function lost(where: string, cause: unknown): SporeError {
  return new ConnectionLostError(`the connection was lost before the answer to ${where} was complete`, cause);
}

async function sendBody(
  outgoing: http.ClientRequest,
  body: Body | undefined,
  askFirst: boolean,
  answered: () => boolean,
): Promise<void> {
  if (askFirst) {
    outgoing.flushHeaders();
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, ASK_FIRST_MS);
      for (const event of ['continue', 'response', 'close'] as const) {
        outgoing.once(event, () => {
          clearTimeout(timer);
          resolve();
        });
      }
    });
    if (answered() || outgoing.destroyed) return;
  }
  if (body === undefined || typeof body === 'string' || body instanceof Uint8Array) {
    outgoing.end(body);
    return;
  }
  for await (const piece of body) {
    if (answered() || outgoing.destroyed) return;
    if (!outgoing.write(piece)) await drained(outgoing);
  }
  outgoing.end();
}

function drained(outgoing: http.ClientRequest): Promise<void> {
  return new Promise((resolve) => {
    const go = (): void => {
      outgoing.off('drain', go).off('close', go);
      resolve();
    };
    outgoing.once('drain', go).once('close', go);
  });
}

function answerOf(
  incoming: http.IncomingMessage,
  where: string,
  signal: AbortSignal | undefined,
  done: () => void,
): Answer {
  incoming.once('close', done);
  async function* pieces(): AsyncGenerator<Uint8Array, void, undefined> {
    try {
      for await (const piece of incoming) yield piece as Buffer;
      if (!incoming.complete) throw lost(where, undefined);
    } catch (error) {
      if (signal?.aborted === true) throw abortReason(signal);
      throw isConnectionError(error) ? lost(where, error) : error;
    }
  }
  return {
    status: incoming.statusCode ?? 0,
    headers: incoming.headers,
    body: pieces(),
    close: () => void incoming.destroy(),
  };
}

function isConnectionError(error: unknown): boolean {
  return error instanceof Error && 'code' in error && /^(E|HPE_)/.test(String(error.code));
}

async function readAll(answer: Answer): Promise<Buffer> {
  const pieces: Uint8Array[] = [];
  for await (const piece of answer.body) pieces.push(piece);
  return Buffer.concat(pieces);
}

async function readError(answer: Answer, where: string): Promise<SporeError> {
  const { status } = answer;
  const text = (await readAll(answer)).toString('utf8');
  let body: unknown;
  try {
    body = JSON.parse(text);
  } catch {
    return new BadAnswerError(`the daemon answered ${where} with status ${status}: ${text.slice(0, 200)}`, {
      status,
    });
  }
  const error = typeof body === 'object' && body !== null && 'error' in body ? body.error : undefined;
  return errorFromBody(error, status);
}
