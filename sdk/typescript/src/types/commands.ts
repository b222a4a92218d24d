/**
 * Commands.
 *
 * @module
 */

import type { ErrorBody } from './errors.js';

/** How bytes are put into JSON: as text (bytes that are not UTF-8 become U+FFFD), or as base64 with padding. */
export type Encoding = 'utf8' | 'base64';

/** Size of a terminal. */
export interface TtySize {
  /** Lines. */
  rows: number;
  /** Characters a line. */
  cols: number;
}

/** A command. */
export interface ExecRequest {
  /** The command and its arguments; no shell is between. Empty: the image's own command. */
  cmd?: string[];
  /** Variables over those of the sandbox. */
  env?: Record<string, string>;
  /** Absolute path of the working directory; absent: the image's. */
  cwd?: string;
  /** As whom: `user`, `uid`, `user:group`, `uid:gid`; absent: the image's. */
  user?: string;
  /** What it reads from its standard input, in `encoding`; absent: nothing. A stream sends its input otherwise. */
  stdin?: string;
  /** How `stdin`, `stdout` and `stderr` are written; absent: `utf8`. */
  encoding?: Encoding;
  /** It is killed after this many seconds, 1 to 86400; absent: 3600 for a call, no limit for a stream. */
  timeoutSeconds?: number;
  /** Only in a stream: give it a terminal of this size. Standard error then is part of standard output. */
  tty?: TtySize;
}

/** How a command ended. */
export interface ExecResult {
  /** As a shell has it: the exit code; 128 and the signal's number if one killed it; 124 if the time limit did. */
  exitCode: number;
  /** The signal that killed it. */
  signal?: number;
  /** Whether it was killed at its time limit. */
  timedOut: boolean;
  /** Processes the guest killed for want of memory meanwhile. */
  oomKills: number;
  /** How long it ran, as the daemon saw it. */
  tookMs: number;
  /** The largest resident set of its processes. */
  maxRssBytes: number;
  /** What it wrote to its standard output, in the request's `encoding`; empty in a stream. */
  stdout: string;
  /** Likewise its standard error. */
  stderr: string;
  /** Whether more was written than is kept (8 MiB each): what came after is missing. */
  truncated: boolean;
}

/** A signal, by Linux's number, 1 to 64. */
export interface ExecSignal {
  /** The number. */
  signal: number;
}

/** What a client says in a stream, as text messages after the first, which is an {@link ExecRequest}. */
export type ExecControl =
  /** There is no more standard input. */
  | { type: 'stdinEnd' }
  /** The terminal has another size. */
  | ({ type: 'resize' } & TtySize)
  /** Send its process group, or what is in the foreground of its terminal, this signal. */
  | ({ type: 'signal' } & ExecSignal);

/** What the daemon says in a stream, as text messages: the last one. */
export type ExecReport =
  /** It ended. */
  | ({ type: 'exit' } & ExecResult)
  /** It could not be run, or not be seen to its end. */
  | ({ type: 'error' } & ErrorBody);
