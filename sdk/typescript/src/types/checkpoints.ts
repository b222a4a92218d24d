/**
 * Checkpoints.
 *
 * @module
 */

/** How a sandbox is checkpointed. */
export interface CheckpointRequest {
  /** A name for it, unique among checkpoints: letters, digits, `.`, `_`, `-`, at most 64. */
  name?: string;
  /**
   * Cold-boot the sandbox's disks at this size and checkpoint that: processes and memory are left behind. Absent: the
   * sandbox as it runs, with the memory it has as the floor.
   */
  finalizeMemoryMB?: number;
}

/** What a checkpoint is of: an image, with which it goes, or a sandbox. */
export type CheckpointKind = 'image' | 'sandbox';

/** A checkpoint: a VM at rest. */
export interface Checkpoint {
  /** Its id. */
  id: string;
  /** Its name. */
  name?: string;
  /** What it is of. */
  kind: CheckpointKind;
  /** The memory it holds: the least a fork of it has. */
  floorMB: number;
  /** The most a fork of it can have. */
  maxMemoryMB: number;
  /** vCPUs. */
  cpus: number;
  /** Bytes of memory that are not zero: what its memory file takes. */
  memoryBytes: number;
  /** Size of its disk. */
  diskMB: number;
  /** When it was taken. */
  createdAt: number;
  /** How long the sandbox stood still for it; only in the answer to the call that took it, if it was running. */
  pausedUs?: number;
}

/** All checkpoints, the newest first. */
export interface Checkpoints {
  /** Them. */
  checkpoints: Checkpoint[];
}
