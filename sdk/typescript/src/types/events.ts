/**
 * Events.
 *
 * @module
 */

import type { ErrorCode } from './errors.js';
import type { Usage } from './sandboxes.js';

/** What happened. */
export type EventKind =
  /** The daemon was started; so many sandboxes of an earlier one run on. */
  | { type: 'started'; adopted: number }
  /** A sandbox is there. */
  | { type: 'sandboxCreated'; sandbox: string }
  /** A sandbox has other memory now. */
  | { type: 'sandboxResized'; sandbox: string; grantedMB: number }
  /**
   * A sandbox is no more: `deleted`, `expired`, or how its VM ended by itself; and what it had used, as far as it could
   * still be seen then.
   */
  | { type: 'sandboxEnded'; sandbox: string; cause: string; usage: Usage }
  /** Something of an earlier daemon could not be taken over. */
  | { type: 'sandboxLost'; sandbox: string; cause: string }
  /** A build began. */
  | { type: 'buildStarted'; build: string }
  /** A build ended, with an image or with an error. */
  | { type: 'buildEnded'; build: string; image?: string; error?: ErrorCode; cause?: string }
  /**
   * The process that forks of a checkpoint are copied from ended, or does not answer. Another is loaded when it is
   * wanted; sandboxes run on.
   */
  | { type: 'templateLost'; checkpoint: string; cause: string }
  /** A checkpoint is there. */
  | { type: 'checkpointCreated'; checkpoint: string }
  /** A checkpoint is no more. */
  | { type: 'checkpointDeleted'; checkpoint: string }
  /** An image is no more. */
  | { type: 'imageDeleted'; image: string }
  /** The host takes new work, or none. */
  | { type: 'draining'; draining: boolean }
  /** Memory is short: `shells`, `templates` or `balloons` were given back. */
  | { type: 'memoryPressure'; dropped: string }
  /** Memory stayed short when all that could be was given back, and new work is refused; or it is so no longer. */
  | { type: 'memoryShort'; refusing: boolean }
  /** So many events are missing here, 0 if not known: the client was too slow, or follows an earlier daemon. */
  | { type: 'missed'; count: number };

/** An event. */
export type Event = {
  /** Rises from event to event, by one while the daemon runs: what to resume by. */
  id: number;
  /** When, in milliseconds since 1970-01-01 UTC. */
  timeMs: number;
} & EventKind;
