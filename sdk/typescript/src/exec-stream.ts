/**
 * A command that is talked with while it runs.
 *
 * @module
 */

import { parseJson } from './build-log.js';
import { ExecResult, execRequest, signalNumber } from './command.js';
import type { Command, CommandOptions } from './command.js';
import { BadAnswerError, ConnectionLostError, StdinClosedError, errorFromBody } from './errors.js';
import type { Transport } from './http.js';
import type { ExecControl, ExecReport, ExecResult as WireResult, TtySize } from './types.js';
import { WebSocket } from './websocket.js';

/** A piece of what a command wrote. */
export interface ExecOutput {
  /** Where; with a terminal all is `stdout`. */
  stream: 'stdout' | 'stderr';
  /** Bytes as they came: a character may begin in one piece and end in the next. */
  data: Uint8Array;
}

/** What a command reads: all at once, or in pieces. */
export type StdinSource = string | Uint8Array | AsyncIterable<string | Uint8Array>;

/** How a command is run in a stream. */
export interface ExecStreamOptions extends CommandOptions {
  /** What it reads; its input ends with it. Default: what is sent by {@link ExecStream.sendStdin}. */
  stdin?: StdinSource | undefined;
  /** Give it a terminal: of this size, or with `true` of this process's terminal's. */
  tty?: boolean | TtySize | undefined;
  /** Called with what it writes to its standard output, as text; then that is neither iterated nor kept. */
  onStdout?: ((text: string) => void) | undefined;
  /** Likewise with its standard error. */
  onStderr?: ((text: string) => void) | undefined;
  /** Aborting it kills the command, also after the stream was opened. */
  signal?: AbortSignal | undefined;
}

/** The size of the messages that input is sent in; the daemon takes up to 1 MiB. */
const MESSAGE_BYTES = 64 * 1024;
/** Output that nobody takes may pile up to this many bytes before the command has to wait. */
const PILE_BYTES = 1024 * 1024;
/** What is kept of each output for {@link ExecStream.wait}: as much as the daemon keeps for a call. */
const KEPT_BYTES = 8 * 1024 * 1024;

/**
 * A command that runs, made by `sandbox.execStream(...)`.
 *
 * Its output is taken in one of three ways: by `onStdout` and `onStderr`; by iterating over the stream; or, by
 * {@link ExecStream.wait}, all of it at the end. A command whose output nobody takes waits, as with a full pipe.
 *
 * ```ts
 * await using stream = await sandbox.execStream('make -j');
 * for await (const { data } of stream) process.stdout.write(data);
 * const { exitCode } = await stream.wait();
 * ```
 *
 * Leaving its scope (`await using`), {@link ExecStream.close} and a lost connection all kill the command.
 */
export class ExecStream implements AsyncIterable<ExecOutput>, AsyncDisposable {
  readonly #output = new Output();
  readonly #listeners: { stdout: Listener | undefined; stderr: Listener | undefined };
  #socket: WebSocket | undefined;
  #stdinEnded = false;
  #settle!: { resolve: (result: WireResult) => void; reject: (error: Error) => void };
  readonly #ended: Promise<WireResult>;
  #kept: Promise<{ stdout: Uint8Array; stderr: Uint8Array; truncated: boolean }> | undefined;

  private constructor(options: ExecStreamOptions) {
    this.#listeners = { stdout: listener(options.onStdout), stderr: listener(options.onStderr) };
    this.#ended = new Promise((resolve, reject) => {
      this.#settle = { resolve, reject };
    });
    this.#ended.catch(() => undefined); // Who iterates hears of it there, and need not wait() too.
  }

  /** @internal */
  static async open(
    transport: Transport,
    path: string,
    command: Command,
    options: ExecStreamOptions,
  ): Promise<ExecStream> {
    const { stdin, tty, ...rest } = options;
    const request = execRequest(command, { ...rest, stdin: undefined });
    delete request.encoding; // Of a call only.
    if (tty !== undefined && tty !== false) request.tty = tty === true ? ownTerminal() : tty;
    const stream = new ExecStream(options);
    stream.#socket = await WebSocket.connect(
      transport,
      path,
      {
        onText: (text) => {
          stream.#report(text);
        },
        onBinary: (bytes) => {
          stream.#take(bytes);
        },
        onEnd: (error) => {
          stream.#end(error ?? new ConnectionLostError('the daemon ended the stream before the command did'));
        },
      },
      options.signal,
    );
    stream.#output.flow = (go) => {
      if (go) stream.#socket?.resume();
      else stream.#socket?.pause();
    };
    await stream.#socket.sendText(JSON.stringify(request));
    if (stdin !== undefined) void stream.#feed(stdin);
    return stream;
  }

  /** What the command writes, as it comes. Ends when the command does; throws what ended it otherwise. */
  async *[Symbol.asyncIterator](): AsyncGenerator<ExecOutput, void, undefined> {
    for (let next = await this.#output.next(); next !== undefined; next = await this.#output.next())
      yield next;
    await this.#ended;
  }

  /**
   * How the command ended. What it wrote and nobody has taken is in the result, of each output the first 8 MiB.
   *
   * @throws GuestRefusedError if its directory or its user is not there; ConnectionLostError, or what the signal was
   * aborted with, if it was not seen to its end.
   */
  async wait(): Promise<ExecResult> {
    this.#kept ??= this.#output.keep();
    const [wire, kept] = await Promise.all([this.#ended, this.#kept]);
    return new ExecResult(wire, kept);
  }

  /**
   * Writes to the command's standard input. Resolves when more can be sent without piling up.
   *
   * @throws StdinClosedError if the command has ended, or its input was closed.
   */
  async sendStdin(data: string | Uint8Array): Promise<void> {
    const bytes = typeof data === 'string' ? Buffer.from(data, 'utf8') : data;
    for (let at = 0; at === 0 || at < bytes.byteLength; at += MESSAGE_BYTES) {
      if (this.#socket === undefined || this.#stdinEnded) throw new StdinClosedError();
      const piece = bytes.subarray(at, at + MESSAGE_BYTES);
      if (piece.byteLength > 0) await this.#socket.sendBinary(piece);
    }
  }

  /** Ends the command's standard input. To do so again, or after its end, does nothing. */
  async closeStdin(): Promise<void> {
    if (this.#stdinEnded) return;
    this.#stdinEnded = true;
    await this.#control({ type: 'stdinEnd' });
  }

  /** Tells the command that its terminal has another size. */
  async resize(size: TtySize): Promise<void> {
    await this.#control({ type: 'resize', rows: size.rows, cols: size.cols });
  }

  /** Sends the command's process group a signal: by Linux's number, or a name such as `SIGINT`. */
  async sendSignal(signal: number | string): Promise<void> {
    await this.#control({ type: 'signal', signal: signalNumber(signal) });
  }

  /** Hangs up. A command that runs is killed. */
  close(): void {
    this.#end(new ConnectionLostError('the stream was closed before the command ended'));
  }

  /** As {@link ExecStream.close}. */
  [Symbol.asyncDispose](): Promise<void> {
    this.close();
    return Promise.resolve();
  }

  /** Says something. A command that has ended meanwhile does not hear it, which is no mistake of who says it. */
  async #control(control: ExecControl): Promise<void> {
    await this.#socket?.sendText(JSON.stringify(control));
  }

  async #feed(source: StdinSource): Promise<void> {
    try {
      if (typeof source === 'string' || source instanceof Uint8Array) await this.sendStdin(source);
      else for await (const piece of source) await this.sendStdin(piece);
      await this.closeStdin();
    } catch (error) {
      // A command need not read all its input. But a source that breaks is no end of input.
      if (error instanceof StdinClosedError) return;
      this.#end(error instanceof Error ? error : new Error(String(error)));
    }
  }

  #take(message: Uint8Array): void {
    const name = message[0] === 1 ? 'stdout' : message[0] === 2 ? 'stderr' : undefined;
    if (name === undefined) throw new BadAnswerError('output of a stream that is neither stdout nor stderr');
    const data = message.subarray(1);
    const listener = this.#listeners[name];
    if (listener === undefined) this.#output.push({ stream: name, data });
    else listener.push(data);
  }

  #report(text: string): void {
    const report = parseJson(text, 'a message of the stream') as ExecReport;
    switch (report.type) {
      case 'exit':
        this.#settle.resolve(report);
        this.#close();
        break;
      case 'error':
        this.#end(errorFromBody(report));
        break;
      default:
        break; // A newer daemon may say more.
    }
  }

  #end(error: Error): void {
    this.#settle.reject(error);
    this.#close();
  }

  #close(): void {
    for (const listener of [this.#listeners.stdout, this.#listeners.stderr]) listener?.end();
    this.#listeners.stdout = this.#listeners.stderr = undefined;
    this.#output.end();
    this.#socket?.close();
    this.#socket = undefined;
  }
}

/** Output between the connection and whoever takes it. */
class Output {
  /** Lets the connection flow, or not. */
  flow: (go: boolean) => void = () => undefined;
  #pieces: ExecOutput[] = [];
  #size = 0;
  #held = false;
  #ended = false;
  #wake: (() => void)[] = [];

  push(piece: ExecOutput): void {
    this.#pieces.push(piece);
    this.#size += piece.data.length;
    if (this.#size > PILE_BYTES && !this.#held) {
      this.#held = true;
      this.flow(false);
    }
    this.#wake.shift()?.();
  }

  end(): void {
    this.#ended = true;
    for (const wake of this.#wake.splice(0)) wake();
  }

  /** The next piece; `undefined` at the end. */
  async next(): Promise<ExecOutput | undefined> {
    while (this.#pieces.length === 0 && !this.#ended) {
      await new Promise<void>((resolve) => {
        this.#wake.push(resolve);
      });
    }
    const piece = this.#pieces.shift();
    if (piece === undefined) return undefined;
    this.#size -= piece.data.length;
    if (this.#held && this.#size <= PILE_BYTES / 2) {
      this.#held = false;
      this.flow(true);
    }
    return piece;
  }

  /** Takes all to the end. */
  async keep(): Promise<{ stdout: Uint8Array; stderr: Uint8Array; truncated: boolean }> {
    const kept = { stdout: [] as Uint8Array[], stderr: [] as Uint8Array[] };
    const room = { stdout: KEPT_BYTES, stderr: KEPT_BYTES };
    let truncated = false;
    for (let piece = await this.next(); piece !== undefined; piece = await this.next()) {
      const data = piece.data.subarray(0, room[piece.stream]);
      truncated ||= data.length < piece.data.length;
      room[piece.stream] -= data.length;
      if (data.length > 0) kept[piece.stream].push(data);
    }
    return { stdout: Buffer.concat(kept.stdout), stderr: Buffer.concat(kept.stderr), truncated };
  }
}

interface Listener {
  push(data: Uint8Array): void;
  end(): void;
}

/** Gives a callback whole characters. */
function listener(call: ((text: string) => void) | undefined): Listener | undefined {
  if (call === undefined) return undefined;
  const decoder = new TextDecoder('utf-8', { ignoreBOM: true });
  const say = (text: string): void => {
    if (text !== '') call(text);
  };
  return {
    push: (data) => {
      say(decoder.decode(data, { stream: true }));
    },
    end: () => {
      say(decoder.decode());
    },
  };
}

function ownTerminal(): TtySize {
  const { rows, columns } = process.stdout as Partial<NodeJS.WriteStream>;
  return { rows: rows ?? 24, cols: columns ?? 80 };
}
