/**
 * Connections to a daemon that may stop listening before it has said its last.
 *
 * A daemon that refuses a long body in its middle, or whose command ends before it has read its input, answers and
 * hangs up. What is still written then fails, and by itself Node.js gives up a connection whose writing failed, with all
 * that was not read yet: the answer.
 *
 * @module
 */

import * as http from 'node:http';
import { Socket } from 'node:net';

type Done = (error?: Error | null) => void;

/** A connection on which it fails nothing that nobody listens; that its end comes too early is seen by reading. */
class Connection extends Socket {
  #deaf = false;

  override _write(chunk: unknown, encoding: BufferEncoding, done: Done): void {
    if (this.#deaf) done();
    else super._write(chunk, encoding, this.#patient(done));
  }

  override _writev(chunks: { chunk: unknown; encoding: BufferEncoding }[], done: Done): void {
    if (this.#deaf) done();
    else super._writev?.(chunks, this.#patient(done));
  }

  #patient(done: Done): Done {
    return (error) => {
      const code = error instanceof Error && 'code' in error ? error.code : undefined;
      if (code !== 'EPIPE' && code !== 'ECONNRESET') {
        done(error);
        return;
      }
      this.#deaf = true;
      done();
    };
  }
}

/** Opens a connection. */
export function connect(socketPath: string): Socket {
  return new Connection().connect(socketPath);
}

/** Keeps connections for further requests. */
export class Connections extends http.Agent {
  readonly #socketPath: string;

  constructor(socketPath: string) {
    super({ keepAlive: true, maxFreeSockets: 16 });
    this.#socketPath = socketPath;
  }

  /** @internal */
  override createConnection(): Socket {
    return connect(this.#socketPath);
  }
}
