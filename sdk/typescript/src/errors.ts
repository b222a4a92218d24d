/**
 * What can go wrong: a class for each of the daemon's codes, and a few for what goes wrong on this side.
 *
 * @module
 */

import type { ExecResult } from './command.js';
import type { ErrorCode } from './types.js';

/** Codes of errors that arise on this side, where no daemon could answer. */
export type LocalErrorCode =
  'daemon_unreachable' | 'connection_lost' | 'bad_answer' | 'command_failed' | 'stdin_closed';

/** What a {@link SporeError} is made of. */
export interface SporeErrorOptions {
  code: string;
  message: string;
  details?: Readonly<Record<string, unknown>> | undefined;
  status?: number | undefined;
  cause?: unknown;
}

/**
 * Any error of the daemon or of this package. A newer daemon may have codes that no class is for; those are plain
 * `SporeError`s, with the code as it came.
 *
 * ```ts
 * try {
 *   await Sandbox.create({ image: 'app', memoryMB: 8192 });
 * } catch (error) {
 *   if (error instanceof InsufficientCapacityError) console.log(error.details);
 *   else throw error;
 * }
 * ```
 */
export class SporeError extends Error {
  /** What went wrong, for programs. Its text never changes. */
  readonly code: ErrorCode | LocalErrorCode | (string & {});
  /** What there is more to say, by code. */
  readonly details: Readonly<Record<string, unknown>>;
  /** The HTTP status it came with; `undefined` if it came in a stream, or from this side. */
  readonly status: number | undefined;

  constructor(options: SporeErrorOptions) {
    super(options.message, 'cause' in options ? { cause: options.cause } : undefined);
    this.name = new.target.name;
    this.code = options.code;
    this.details = options.details ?? {};
    this.status = options.status;
  }
}

/** The request is malformed, or asks for what nobody can have. `invalid_request`. */
export class InvalidRequestError extends SporeError {}

/** The manifest was refused; `details` names the field where there is one. `invalid_manifest`. */
export class InvalidManifestError extends SporeError {}

/** No base of this name is on the host. `unknown_base`. */
export class UnknownBaseError extends SporeError {}

/** Less memory than what the checkpoint holds. `below_floor`. */
export class BelowFloorError extends SporeError {}

/** More than this sandbox, or any, can have. `above_maximum`. */
export class AboveMaximumError extends SporeError {}

/** There is no such thing. `not_found`. */
export class NotFoundError extends SporeError {}

/** The daemon has no such call: it may be older than this package. `no_such_call`. */
export class NoSuchCallError extends SporeError {}

/** It cannot be in the present state: in use, paused, or of this name already. `conflict`. */
export class ConflictError extends SporeError {}

/** The body, or what is asked for, is larger than the daemon takes. `too_large`. */
export class TooLargeError extends SporeError {}

/** The host has no room; `details` says what would fit. `insufficient_capacity`. */
export class InsufficientCapacityError extends SporeError {}

/** The host takes no new sandboxes or builds. `draining`. */
export class DrainingError extends SporeError {}

/** Too many requests of this kind at once; try again in a moment. `busy`. */
export class BusyError extends SporeError {}

/** A build's step failed. A {@link BuildOomError} and a {@link BuildDiskFullError} are, too. `build_failed`. */
export class BuildFailedError extends SporeError {}

/** A build's step ran out of memory: build it with more {@link Image.builderMemory}. `build_oom`. */
export class BuildOomError extends BuildFailedError {}

/** A build's step found the disk full: build it with more `diskMB`, of the raw manifest. `build_disk_full`. */
export class BuildDiskFullError extends BuildFailedError {}

/** A base cannot be used; it has to be built again. `base_damaged`. */
export class BaseDamagedError extends SporeError {}

/** It was stopped by whoever asked, or with the build it waited for. `cancelled`. */
export class OperationCancelledError extends SporeError {}

/** It took the daemon longer than was allowed. `timed_out`. */
export class TimedOutError extends SporeError {}

/** The agent in the sandbox did not answer. `guest_unreachable`. */
export class GuestUnreachableError extends SporeError {}

/** The sandbox ended while it was worked with. `sandbox_ended`. */
export class SandboxEndedError extends SporeError {}

/** The sandbox itself refused: a file that is not there, a command that cannot be started. `guest_refused`. */
export class GuestRefusedError extends SporeError {}

/** What is in the host's store is damaged or of another version. `damaged`. */
export class DamagedError extends SporeError {}

/** The host lacks what is needed, for example the privilege to make networks. `unsupported`. */
export class UnsupportedError extends SporeError {}

/** The daemon is at fault. `internal`. */
export class InternalError extends SporeError {}

/** No daemon could be reached: nothing was done. `daemon_unreachable`. */
export class DaemonUnreachableError extends SporeError {
  constructor(message: string, cause: unknown) {
    super({ code: 'daemon_unreachable', message, cause });
  }
}

/** The connection ended before the answer did: it is not known whether it was done. `connection_lost`. */
export class ConnectionLostError extends SporeError {
  constructor(message: string, cause?: unknown) {
    super({ code: 'connection_lost', message, cause });
  }
}

/** What came is not what a Spore daemon says. `bad_answer`. */
export class BadAnswerError extends SporeError {
  constructor(message: string, options: { status?: number | undefined; cause?: unknown } = {}) {
    super({ code: 'bad_answer', message, ...options });
  }
}

/** Input was written to a command that takes no more. `stdin_closed`. */
export class StdinClosedError extends SporeError {
  constructor() {
    super({ code: 'stdin_closed', message: 'the command has ended, or its input was ended before' });
  }
}

/** A command ended with another exit code than 0, and `check` was asked for. `command_failed`. */
export class CommandFailedError extends SporeError {
  /** How it ended, and what it wrote. */
  readonly result: ExecResult;

  constructor(command: string, result: ExecResult) {
    super({ code: 'command_failed', message: describe(command, result) });
    this.result = result;
  }
}

const BY_CODE: Readonly<Record<ErrorCode, typeof SporeError>> = {
  invalid_request: InvalidRequestError,
  invalid_manifest: InvalidManifestError,
  unknown_base: UnknownBaseError,
  below_floor: BelowFloorError,
  above_maximum: AboveMaximumError,
  not_found: NotFoundError,
  no_such_call: NoSuchCallError,
  conflict: ConflictError,
  too_large: TooLargeError,
  insufficient_capacity: InsufficientCapacityError,
  draining: DrainingError,
  busy: BusyError,
  build_failed: BuildFailedError,
  build_oom: BuildOomError,
  build_disk_full: BuildDiskFullError,
  base_damaged: BaseDamagedError,
  cancelled: OperationCancelledError,
  timed_out: TimedOutError,
  guest_unreachable: GuestUnreachableError,
  sandbox_ended: SandboxEndedError,
  guest_refused: GuestRefusedError,
  damaged: DamagedError,
  unsupported: UnsupportedError,
  internal: InternalError,
};

/** The error that a body `{code, message, details?}` of the API tells of; whatever it really is gives an error. */
export function errorFromBody(body: unknown, status?: number): SporeError {
  if (typeof body !== 'object' || body === null || !('code' in body) || typeof body.code !== 'string') {
    const found = (JSON.stringify(body) as string | undefined) ?? 'nothing';
    return new BadAnswerError(`the daemon answered an error without a code: ${found.slice(0, 200)}`, {
      status,
    });
  }
  const { code } = body;
  const kind = Object.hasOwn(BY_CODE, code) ? BY_CODE[code as ErrorCode] : SporeError;
  const message = 'message' in body && typeof body.message === 'string' ? body.message : code;
  const details =
    'details' in body && typeof body.details === 'object' && body.details !== null
      ? (body.details as Record<string, unknown>)
      : undefined;
  return new kind({ code, message, details, status });
}

const MOST_LINES = 20;
const MOST_CHARACTERS = 200;

function describe(command: string, result: ExecResult): string {
  const how = result.timedOut
    ? 'was ended at its time limit'
    : result.signal === undefined
      ? `ended with exit code ${result.exitCode}`
      : `was ended by signal ${result.signal}`;
  const memory = result.oomKills > 0 ? ', and the sandbox ran out of memory' : '';
  const words = lastLines(result.stderr.trim() === '' ? result.stdout : result.stderr);
  return `${quoted(command)} ${how}${memory}${words === '' ? '' : `:\n${words}`}`;
}

function lastLines(text: string): string {
  const lines = text.trimEnd().split('\n');
  const kept = lines.slice(-MOST_LINES).map((line) => cut(line, MOST_CHARACTERS));
  return (lines.length > MOST_LINES ? '…\n' : '') + kept.join('\n');
}

function quoted(command: string): string {
  return JSON.stringify(cut(command.replace(/\s+/g, ' '), 80));
}

function cut(text: string, length: number): string {
  return text.length > length ? `${text.slice(0, length)}…` : text;
}
