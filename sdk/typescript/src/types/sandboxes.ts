/**
 * Sandboxes.
 *
 * @module
 */

import type { ExecRequest, ExecResult } from './commands.js';
import type { ErrorBody } from './errors.js';

/**
 * What a sandbox reaches. Never the host, other sandboxes, or link-local addresses.
 *
 * - `none`: nothing.
 * - `nat`: everything beyond the host's uplink.
 * - `allow`: these, 1 to 64: networks (`198.51.100.0/24`), and hosts with or without a port (`example.com:443`).
 */
export type NetworkPolicy = 'none' | 'nat' | { allow: string[] };

/** A sandbox to make, or several. Exactly one of `image` and `checkpoint` is given. */
export interface CreateSandbox {
  /** Name or id of an image. */
  image?: string;
  /** Name or id of a checkpoint. */
  checkpoint?: string;
  /** Memory; less than the checkpoint's floor is raised to that. Absent: the floor. */
  memoryMB?: number;
  /** vCPUs, 1 to 16; absent: those of the checkpoint. */
  cpus?: number;
  /** Disk; absent: the checkpoint's. Less than that is refused. */
  diskMB?: number;
  /** Variables of every command. */
  env?: Record<string, string>;
  /** Whatever its owner wants to find again: at most 64 entries, 16 KiB in all. */
  metadata?: Record<string, string>;
  /** It is destroyed after this many seconds, 1 to 2592000; absent: never. */
  timeoutSeconds?: number;
  /**
   * It is destroyed when nobody has used it for this many seconds: no command or copy went on, and it was not forked,
   * checkpointed or changed. 0: never; absent: what the daemon was told.
   */
  idleTimeoutSeconds?: number;
  /** What it reaches; absent: `none`. */
  network?: NetworkPolicy;
  /** How many, 1 to 64; with this the answer is a list. */
  count?: number;
  /** With `count`: whether some are kept when others failed. Absent: all or none. */
  partial?: boolean;
  /** A command to run at once; its result is in the answer. */
  exec?: ExecRequest;
}

/** Where a sandbox came from: a shell that was ready, a fork of a checkpoint's template, or another sandbox. */
export type Origin = 'shell' | 'fork' | 'liveFork';

/** What a sandbox is doing: its vCPUs run, or they do not and its memory stays. */
export type SandboxState = 'running' | 'paused';

/** A sandbox's memory. */
export interface SandboxMemory {
  /** The least it can have. */
  floorMB: number;
  /** What was asked for last. */
  requestedMB: number;
  /** What it has, as verified in the guest. */
  grantedMB: number;
  /** The most it can have. */
  maxMB: number;
}

/** A sandbox's place on the network. */
export interface Network {
  /** What it reaches. */
  policy: NetworkPolicy;
  /** Its IPv4 address. */
  address?: string;
  /** Its MAC address. */
  mac?: string;
}

/** How long a sandbox's making took, from when the daemon had read the request. */
export interface SandboxTimes {
  /** All machine state set. */
  releasedUs: number;
  /** The guest's first act. */
  wokeUs: number;
  /** It is who it should be. */
  readyUs: number;
}

/** What a sandbox has used, for accounts. */
export interface Usage {
  /** Processor time of its VM process, in all. */
  cpuMs: number;
  /** Memory of its VM process that is resident, shared pages included. */
  rssBytes: number;
  /** Of that, what is its own: written by it, or by its guest, and shared with no other. */
  uniqueBytes: number;
  /** Memory plugged beyond the floor. */
  pluggedBytes: number;
  /** What its disk's own overlay takes on the host. */
  diskBytes: number;
  /** Bytes the guest received. */
  networkReceivedBytes: number;
  /** Bytes the guest sent. */
  networkSentBytes: number;
}

/** A sandbox. */
export interface Sandbox {
  /** Its id. */
  id: string;
  /** What it is doing. */
  state: SandboxState;
  /** The image it was made of. */
  image?: string;
  /** The checkpoint it was made of. */
  checkpoint?: string;
  /** The sandbox it was forked from. */
  parent?: string;
  /** Where it came from. */
  origin: Origin;
  /** Its memory. */
  memory: SandboxMemory;
  /** vCPUs. */
  cpus: number;
  /** Its network. */
  network: Network;
  /** Its owner's words. */
  metadata: Record<string, string>;
  /** When it was made. */
  createdAt: number;
  /** When it will be destroyed. */
  expiresAt?: number;
  /** After how long without use it will be destroyed. */
  idleTimeoutSeconds?: number;
  /** When it was last used. */
  lastUsedAt: number;
  /** How long its making took. */
  times: SandboxTimes;
  /** What it has used; only in the answer for one sandbox, when asked for. */
  usage?: Usage;
}

/** A sandbox that was made. */
export interface CreatedSandbox extends Sandbox {
  /** What its first command came to. */
  exec?: ExecResult;
}

/** Sandboxes that were made at once. */
export interface Forked {
  /** Those that are there. */
  sandboxes: CreatedSandbox[];
  /** Why the others are not. */
  errors?: ErrorBody[];
  /** How long the sandbox that was forked stood still. */
  pausedUs?: number;
}

/** All sandboxes, the newest first. */
export interface Sandboxes {
  /** Them. */
  sandboxes: Sandbox[];
}

/** What is to change of a sandbox; what is absent stays. */
export interface SandboxUpdate {
  /** Memory; answered when the guest shows it. */
  memoryMB?: number;
  /** Seconds from now until it is destroyed; 0: never. */
  timeoutSeconds?: number;
  /** After how many seconds without use it is destroyed; 0: never. */
  idleTimeoutSeconds?: number;
  /** All of its metadata. */
  metadata?: Record<string, string>;
}

/** How a running sandbox is forked. */
export interface ForkRequest {
  /** How many, 1 to 64; absent: 1. */
  count?: number;
  /** Memory of each; absent: what the parent has. */
  memoryMB?: number;
  /** Variables of every command, over the parent's. */
  env?: Record<string, string>;
  /** Their owner's words. */
  metadata?: Record<string, string>;
  /** Each is destroyed after this many seconds; absent: never. */
  timeoutSeconds?: number;
  /** Each is destroyed after so many seconds without use; 0: never; absent: as the parent. */
  idleTimeoutSeconds?: number;
  /** What each reaches; absent: what the parent does. */
  network?: NetworkPolicy;
  /** Whether some are kept when others failed. Absent: all or none. */
  partial?: boolean;
}
