/**
 * Errors.
 *
 * @module
 */

/** What went wrong, for programs. A daemon may know more; their text never changes. */
export type ErrorCode =
  /** The request is malformed, or asks for what nobody can have. 400. */
  | 'invalid_request'
  /** The manifest was refused; `details` names the step and the field where there is one. 400. */
  | 'invalid_manifest'
  /** No base of this name is on this host. 400. */
  | 'unknown_base'
  /** Less memory than what the checkpoint holds, where clamping was not asked for. 400. */
  | 'below_floor'
  /** More than this sandbox, or any, can have. 400. */
  | 'above_maximum'
  /** There is no such thing. 404. */
  | 'not_found'
  /** No such call, or not with this method. 404, 405. */
  | 'no_such_call'
  /** It cannot be in the present state: in use, paused, of this name or idempotency key already. 409. */
  | 'conflict'
  /** The body, or what is asked for, is larger than is taken here. 413. */
  | 'too_large'
  /** The host has no room: `details` says what would fit. 503. */
  | 'insufficient_capacity'
  /** The host takes no new sandboxes or builds. 503. */
  | 'draining'
  /** Too many requests of this kind at once; try again in a moment. 429. */
  | 'busy'
  /** A build's step failed. 422. */
  | 'build_failed'
  /** A build's step ran out of the build VM's memory: raise `builderMemory`. 422. */
  | 'build_oom'
  /** A build's step found the disk full: raise `diskMB`. 422. */
  | 'build_disk_full'
  /** A base cannot be used; it has to be built again. 500. */
  | 'base_damaged'
  /** It was stopped by whoever asked. 409. */
  | 'cancelled'
  /** It took longer than was allowed. 504. */
  | 'timed_out'
  /** The agent in the guest did not answer. 502. */
  | 'guest_unreachable'
  /** The sandbox ended while it was worked with. 410. */
  | 'sandbox_ended'
  /** The guest itself refused: a file that is not there, a command that cannot be started. 422. */
  | 'guest_refused'
  /** What is in the store is damaged or of another version. 500. */
  | 'damaged'
  /** This host lacks what is needed, for example the privilege to make networks. 501. */
  | 'unsupported'
  /** The daemon is at fault. 500. */
  | 'internal';

/** An error. */
export interface ErrorBody {
  /** For programs. */
  code: ErrorCode;
  /** For people: one line, or a few where a program's last words are in it. */
  message: string;
  /** What there is more to say, by code. */
  details?: Record<string, unknown>;
}

/** The body of every answer that is not a success. */
export interface ErrorReply {
  /** What went wrong. */
  error: ErrorBody;
}
