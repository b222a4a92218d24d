/**
 * Commands: how they are asked for, and what they come to.
 *
 * @module
 */

import { inspect } from 'node:util';

import { CommandFailedError } from './errors.js';
import type { ExecRequest, ExecResult as WireResult } from './types.js';

/** A line for `/bin/sh -c`, or a program and its arguments; with an empty list, the image's own command. */
export type Command = string | readonly string[];

/** How a command is run. */
export interface CommandOptions {
  /** Variables over those of the sandbox. */
  env?: Readonly<Record<string, string>> | undefined;
  /** Absolute path of the working directory. Default: the image's. */
  cwd?: string | undefined;
  /** As whom: `user`, `uid`, `user:group`, `uid:gid`. Default: the image's. */
  user?: string | undefined;
  /** It is killed after this many seconds, 1 to 86400. Default: 3600; none for a stream. */
  timeoutSeconds?: number | undefined;
}

/** How a command ended, and what it wrote. */
export class ExecResult {
  /** As a shell has it: 128 and the signal's number if one killed it; 124 if the time limit did. */
  readonly exitCode: number;
  /** The number of the signal that killed it. */
  readonly signal: number | undefined;
  /** Whether it was killed at its time limit. */
  readonly timedOut: boolean;
  /** Processes the guest killed for want of memory meanwhile. */
  readonly oomKills: number;
  /** How long it ran, in milliseconds, as the daemon saw it. */
  readonly tookMs: number;
  /** The largest resident set of its processes, in bytes. */
  readonly maxRssBytes: number;
  /** What it wrote to its standard output, byte for byte. */
  readonly stdoutBytes: Uint8Array;
  /** Likewise its standard error. */
  readonly stderrBytes: Uint8Array;
  /** Whether more was written than is kept (8 MiB each): what came after is missing. */
  readonly truncated: boolean;
  #stdout: string | undefined;
  #stderr: string | undefined;

  constructor(wire: WireResult, output: { stdout: Uint8Array; stderr: Uint8Array; truncated: boolean }) {
    this.exitCode = wire.exitCode;
    this.signal = wire.signal;
    this.timedOut = wire.timedOut;
    this.oomKills = wire.oomKills;
    this.tookMs = wire.tookMs;
    this.maxRssBytes = wire.maxRssBytes;
    this.stdoutBytes = output.stdout;
    this.stderrBytes = output.stderr;
    this.truncated = output.truncated;
  }

  /** Its standard output as text; bytes that are not UTF-8 are U+FFFD. */
  get stdout(): string {
    return (this.#stdout ??= decoded(this.stdoutBytes));
  }

  /** Its standard error as text; bytes that are not UTF-8 are U+FFFD. */
  get stderr(): string {
    return (this.#stderr ??= decoded(this.stderrBytes));
  }

  /** Whether its exit code is 0. */
  get ok(): boolean {
    return this.exitCode === 0;
  }

  /** It with its output as text. */
  toJSON(): WireResult & { ok: boolean } {
    const { exitCode, ok, signal, timedOut, oomKills, tookMs, maxRssBytes, truncated } = this;
    const { stdout, stderr } = this;
    const killed = signal !== undefined && { signal };
    return { exitCode, ok, ...killed, timedOut, oomKills, tookMs, maxRssBytes, truncated, stdout, stderr };
  }

  /**
   * As `console.log` shows it.
   *
   * @internal
   */
  [inspect.custom](): object {
    return this.toJSON();
  }
}

/** A command as program and arguments. */
export function argv(command: Command): string[] {
  if (typeof command === 'string') return ['/bin/sh', '-c', command];
  if (!Array.isArray(command) || !command.every((word) => typeof word === 'string')) {
    throw new TypeError('a command is text, or a list of texts');
  }
  return [...(command as readonly string[])];
}

/** The request for a command. What is read and written goes as base64: a command's bytes need not be text. */
export function execRequest(
  command: Command,
  options: CommandOptions & { stdin?: string | Uint8Array | undefined } = {},
): ExecRequest {
  const { env, cwd, user, stdin, timeoutSeconds } = options;
  return {
    cmd: argv(command),
    encoding: 'base64',
    ...(env && { env: { ...env } }),
    ...(cwd !== undefined && { cwd }),
    ...(user !== undefined && { user }),
    ...(timeoutSeconds !== undefined && { timeoutSeconds }),
    ...(stdin !== undefined && { stdin: base64(stdin) }),
  };
}

/** What the daemon answered to such a request. */
export function execResult(wire: WireResult): ExecResult {
  const [stdout, stderr] = [Buffer.from(wire.stdout, 'base64'), Buffer.from(wire.stderr, 'base64')];
  return new ExecResult(wire, { stdout, stderr, truncated: wire.truncated });
}

/**
 * The result, if it is good or need not be.
 *
 * @throws CommandFailedError if `check` is set and it is not good.
 */
export function checked(command: Command, result: ExecResult, check = false): ExecResult {
  if (check && !result.ok) throw new CommandFailedError(shown(command), result);
  return result;
}

function shown(command: Command): string {
  if (typeof command === 'string') return command;
  return command
    .map((word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`))
    .join(' ');
}

function base64(data: string | Uint8Array): string {
  return Buffer.from(typeof data === 'string' ? Buffer.from(data, 'utf8') : data).toString('base64');
}

function decoded(bytes: Uint8Array): string {
  return new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytes);
}

const SIGNALS: Readonly<Record<string, number>> = {
  SIGHUP: 1,
  SIGINT: 2,
  SIGQUIT: 3,
  SIGABRT: 6,
  SIGKILL: 9,
  SIGUSR1: 10,
  SIGUSR2: 12,
  SIGPIPE: 13,
  SIGALRM: 14,
  SIGTERM: 15,
  SIGCONT: 18,
  SIGSTOP: 19,
  SIGTSTP: 20,
  SIGWINCH: 28,
};

/** A signal's number in the guest, which is Linux whatever this side is. */
export function signalNumber(signal: number | string): number {
  if (typeof signal === 'number') return signal;
  const number = SIGNALS[signal];
  if (number === undefined) throw new TypeError(`${signal} is not among ${Object.keys(SIGNALS).join(', ')}`);
  return number;
}
