/**
 * What the daemon and its clients say to each other, name for name as in `api/types` of Spore's source.
 *
 * Sizes whose name ends in `MB` are MiB, all others are bytes. `…Ms` are milliseconds, `…Us` microseconds, `…At`
 * seconds since 1970-01-01 UTC. Answers may have fields that are not known here.
 *
 * @module
 */

// Errors

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

// Images and their builds

/** What a build's steps reach: everything beyond the host if it can give a network, or nothing. */
export type BuildNetwork = 'auto' | 'none';

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

// Sandboxes

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
  /** Of that, what nobody else has. */
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

// Commands

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
  /** Send its process group this signal. */
  | ({ type: 'signal' } & ExecSignal);

/** What the daemon says in a stream, as text messages: the last one. */
export type ExecReport =
  /** It ended. */
  | ({ type: 'exit' } & ExecResult)
  /** It could not be run, or not be seen to its end. */
  | ({ type: 'error' } & ErrorBody);

// Files

/** What a name in a directory is. A symbolic link is not followed. */
export type EntryKind = 'file' | 'directory' | 'symlink' | 'other';

/** A name in a directory. */
export interface DirEntry {
  /** The name; bytes that are not UTF-8 are U+FFFD. */
  name: string;
  /** What it is. */
  kind: EntryKind;
  /** Size. */
  sizeBytes: number;
  /** Permission bits, as four octal digits. */
  mode: string;
  /** Last change of its contents. */
  modifiedAt: number;
}

/** A directory. */
export interface DirEntries {
  /** What is in it, sorted by name. */
  entries: DirEntry[];
}

/** What was written. */
export interface FileInfo {
  /** Where. */
  path: string;
  /** How much. */
  sizeBytes: number;
}

// Checkpoints

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

// The host

/** Versions. */
export interface Versions {
  /** Of the daemon. */
  spore: string;
  /** Of the API. */
  api: string;
  /** Of the host's kernel. */
  kernel: string;
  /** BLAKE3 of the guest kernel's file; absent if there is none. */
  guestKernel?: string;
}

/** Memory, and what of it is promised. */
export interface Capacity {
  /** The host's memory. */
  totalMB: number;
  /** What its kernel would give now (MemAvailable). */
  availableMB: number;
  /** Kept for the host itself. */
  reserveMB: number;
  /** What may be promised in all: (total - reserve) times the overcommit. */
  limitMB: number;
  /** What is promised: the granted memory of all sandboxes and running builds. */
  committedMB: number;
  /** Of that, what is plugged beyond floors. */
  pluggedMB: number;
  /** What VM processes have resident and do not share. */
  uniqueMB: number;
  /** By how much memory is promised more than once. */
  overcommit: number;
  /** The largest sandbox that would be admitted now. */
  largestFitMB: number;
}

/** Pressure stall information, in percent of the last 10 s. */
export interface Pressure {
  /** Some task waited for memory. */
  memorySome: number;
  /** All tasks did. */
  memoryFull: number;
  /** Some task waited for a processor. */
  cpuSome: number;
  /** Some task waited for input or output. */
  ioSome: number;
}

/** The host. */
export interface HostInfo {
  /** Whether new sandboxes and builds are refused. */
  draining: boolean;
  /** Memory. */
  memory: Capacity;
  /** Pressure; absent where the kernel does not tell. */
  pressure?: Pressure;
  /** Processors. */
  cpus: number;
  /** Load averages of 1, 5 and 15 minutes. */
  load: number[];
  /** Size of the file system with the data directory. */
  diskTotalBytes: number;
  /** What is free of it. */
  diskFreeBytes: number;
  /** Sandboxes. */
  sandboxes: number;
  /** The most there may be. */
  maxSandboxes: number;
  /** Builds that are running. */
  builds: number;
  /** Ids of the images that are here. */
  images: string[];
  /** Ids of the checkpoints that are here. */
  checkpoints: string[];
  /** Templates that are loaded. */
  templates: number;
  /** Shells that are armed. */
  shells: number;
  /** The kind of KVM: `hardware`, or `software` where that is known. */
  kvm: string;
  /** What VM processes are confined by, and what this host lacks for it. */
  confinement: string[];
  /** Versions. */
  versions: Versions;
  /** When the daemon was started. */
  startedAt: number;
}

/** Whether the host takes new work. */
export interface Drain {
  /** Whether new sandboxes and builds are refused. */
  draining: boolean;
}

// Events

/** What happened. */
export type EventKind =
  /** The daemon was started; so many sandboxes of an earlier one run on. */
  | { type: 'started'; adopted: number }
  /** A sandbox is there. */
  | { type: 'sandboxCreated'; sandbox: string }
  /** A sandbox has other memory now. */
  | { type: 'sandboxResized'; sandbox: string; grantedMB: number }
  /** A sandbox is no more: `deleted`, `expired`, or how its VM ended by itself. */
  | { type: 'sandboxEnded'; sandbox: string; cause: string }
  /** Something of an earlier daemon could not be taken over. */
  | { type: 'sandboxLost'; sandbox: string; cause: string }
  /** A build began. */
  | { type: 'buildStarted'; build: string }
  /** A build ended, with an image or with an error. */
  | { type: 'buildEnded'; build: string; image?: string; error?: ErrorCode }
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
  /** So many events are missing here, 0 if not known: the client was too slow, or follows an earlier daemon. */
  | { type: 'missed'; count: number };

/** An event. */
export type Event = {
  /** Rises from event to event, by one while the daemon runs: what to resume by. */
  id: number;
  /** When, in milliseconds since 1970-01-01 UTC. */
  timeMs: number;
} & EventKind;
