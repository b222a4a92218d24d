/**
 * Images and their builds.
 *
 * @module
 */

import type { ErrorBody } from './errors.js';

/**
 * What a build's steps reach: `auto`, everything beyond the host if it can give a network and nothing otherwise; or as
 * a sandbox's, on a host that can give it.
 */
export type BuildNetwork = 'auto' | 'none' | 'nat' | { allow: string[] };

/** An image to build. */
export interface BuildRequest {
  /** `{base, steps: [{type, args}], name?, builderMemoryMB?, runtimeMemoryMB?, diskMB?}`. */
  manifest: object;
  /** Run every step, whatever is known of earlier builds. */
  noCache?: boolean;
  /** How long one step may take, 1 to 86400; absent: 1800. */
  stepTimeoutSeconds?: number;
  /** What the steps reach; absent: `auto`. */
  network?: BuildNetwork;
}

/** A build that was begun. */
export interface BuildAccepted {
  /** For `/v1/builds/{id}`. */
  buildId: string;
}

/** How a build is. */
export type BuildState = 'running' | 'succeeded' | 'failed';

/** A build. */
export interface Build {
  /** Its id. */
  id: string;
  /** How it is. */
  state: BuildState;
  /** The manifest's name. */
  name?: string;
  /** When it was begun. */
  startedAt: number;
  /** How long it took, or has taken. */
  tookMs: number;
  /** What it came to. */
  image?: Image;
  /** Why it came to nothing. */
  error?: ErrorBody;
}

/** What a build tells, in order. `image` or `error` is the last. */
export type BuildMessage =
  /** It was begun; `buildId` is for `/v1/builds/{id}`. */
  | { type: 'build'; buildId: string }
  /**
   * Where it is, for people; not a step. `phase` is one of `waiting`, `booting`, `booted`, `sealed`, `finalizing`,
   * `settled`, `checkpointed`, `noNetwork`, `disksCached`.
   */
  | { type: 'phase'; phase: string; message: string }
  /** Step number `step` (from 0) of `of` begins. */
  | { type: 'stepStarted'; step: number; of: number; label: string }
  /** A step need not run: its disk is known. */
  | { type: 'stepCached'; step: number; of: number; label: string }
  /** The running step wrote something. Bytes that are not UTF-8 are U+FFFD. */
  | { type: 'output'; text: string }
  /** A step succeeded. */
  | { type: 'stepDone'; step: number; tookMs: number }
  /** There is an image. */
  | { type: 'image'; image: Image }
  /** There is none. */
  | { type: 'error'; error: ErrorBody };

/** A checkpoint of an image: its disks, booted. */
export interface ImageCheckpoint {
  /** Its id. */
  id: string;
  /** The memory it holds: the least a fork of it has. */
  floorMB: number;
  /** vCPUs. */
  cpus: number;
}

/** An image. */
export interface Image {
  /** Its id. */
  id: string;
  /** The names that mean it now. */
  names: string[];
  /** SHA-256 over what it was built from, as {@link Image.contentHash} computes it too. */
  contentHash: string;
  /** BLAKE3 of the base's disk. */
  baseDigest: string;
  /** When it was built. */
  createdAt: number;
  /** What its disk layers take on the host. */
  sizeBytes: number;
  /** Memory of the VM it was built in. */
  builderMemoryMB: number;
  /** What its disk was grown to; absent where it has its base's size. */
  diskMB?: number;
  /** Its checkpoints. */
  checkpoints: ImageCheckpoint[];
}

/** All images, the newest first. */
export interface Images {
  /** Them. */
  images: Image[];
}
