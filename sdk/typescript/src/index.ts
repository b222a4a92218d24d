/**
 * Build images, and run, fork, grow and checkpoint sandboxes with a Spore daemon.
 *
 * @packageDocumentation
 */

export { Client } from './client.js';
export type { BuildOptions, CallOptions, ClientOptions, EventsOptions, MakeOptions } from './client.js';
export { ExecResult } from './command.js';
export type { Command, CommandOptions } from './command.js';
export {
  AboveMaximumError,
  BadAnswerError,
  BaseDamagedError,
  BelowFloorError,
  BuildDiskFullError,
  BuildFailedError,
  BuildOomError,
  BusyError,
  CommandFailedError,
  ConflictError,
  ConnectionLostError,
  DaemonUnreachableError,
  DamagedError,
  DrainingError,
  GuestRefusedError,
  GuestUnreachableError,
  InsufficientCapacityError,
  InternalError,
  InvalidManifestError,
  InvalidRequestError,
  NoSuchCallError,
  NotFoundError,
  OperationCancelledError,
  SandboxEndedError,
  SporeError,
  StdinClosedError,
  TimedOutError,
  TooLargeError,
  UnknownBaseError,
  UnsupportedError,
} from './errors.js';
export type { LocalErrorCode, SporeErrorOptions } from './errors.js';
export { ExecStream } from './exec-stream.js';
export type { ExecOutput, ExecStreamOptions, StdinSource } from './exec-stream.js';
export { Files } from './files.js';
export type { FileStream } from './files.js';
export { Image } from './image.js';
export type { Manifest, Step } from './image.js';
export type { Mode } from './local-files.js';
export { Sandbox, SandboxGroup } from './sandbox.js';
export type {
  CheckpointLike,
  CreateManyOptions,
  CreateOptions,
  ExecOptions,
  ForkOptions,
  FromCheckpointOptions,
  SandboxOptions,
} from './sandbox.js';
export type {
  Build,
  BuildMessage,
  BuildNetwork,
  BuildState,
  Capacity,
  Checkpoint as CheckpointInfo,
  CheckpointKind,
  CheckpointRequest,
  DirEntry,
  EntryKind,
  ErrorCode,
  Event,
  EventKind,
  FileInfo,
  HostInfo,
  Image as ImageInfo,
  ImageCheckpoint,
  Network,
  NetworkPolicy,
  Origin,
  Pressure,
  Sandbox as SandboxInfo,
  SandboxMemory,
  SandboxState,
  SandboxTimes,
  TtySize,
  Usage,
  Versions,
} from './types.js';
