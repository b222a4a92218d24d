/**
 * Sandboxes.
 *
 * @module
 */

import { randomUUID } from 'node:crypto';

import { Client } from './client.js';
import type { CallOptions, MakeOptions } from './client.js';
import { checked, execRequest, execResult } from './command.js';
import type { Command, CommandOptions, ExecResult } from './command.js';
import { NotFoundError, SandboxEndedError, errorFromBody } from './errors.js';
import type { SporeError } from './errors.js';
import { ExecStream } from './exec-stream.js';
import type { ExecStreamOptions } from './exec-stream.js';
import { Files } from './files.js';
import { segment } from './http.js';
import { Image } from './image.js';
import type {
  Checkpoint,
  CheckpointRequest,
  CreateSandbox,
  CreatedSandbox,
  ExecResult as WireResult,
  ForkRequest,
  Forked,
  Image as ImageInfo,
  NetworkPolicy,
  Sandbox as SandboxInfo,
  SandboxMemory,
  SandboxUpdate,
  Sandboxes,
  Usage,
} from './types.js';

/** What is said of every new sandbox. */
export interface SandboxOptions {
  /** Its memory in MiB; less than the floor is raised to that. Default: the floor. For a fork: what the parent has. */
  memoryMB?: number | undefined;
  /** Variables of every command; for a fork, over the parent's. */
  env?: Readonly<Record<string, string>> | undefined;
  /** Words to find it again by: at most 64, 16 KiB in all. */
  metadata?: Readonly<Record<string, string>> | undefined;
  /** It is ended after so many seconds, 1 to 2592000. Default: never. */
  timeoutSeconds?: number | undefined;
  /**
   * It is ended when nobody has used it for so many seconds, at most 2592000: no command or copy went on, and it was
   * not forked, checkpointed or changed. 0: never. Default: what the daemon was told; for a fork, as its parent.
   */
  idleTimeoutSeconds?: number | undefined;
  /**
   * What it reaches: `'none'`; `'nat'`, everything beyond the host's uplink; or `{ allow: [...] }` of 1 to 64 networks
   * (`198.51.100.0/24`) and hosts (`example.com:443`). Default: `'none'`; for a fork, what the parent reaches.
   */
  network?: NetworkPolicy | undefined;
}

/** How a sandbox is made of a checkpoint. */
export interface FromCheckpointOptions extends SandboxOptions, MakeOptions {
  /** vCPUs, 1 to 16. Default: the image's. One that was not booted with so many is booted once. */
  cpus?: number | undefined;
  /** Its disk in MiB. Default: the image's; less than that is refused. */
  diskMB?: number | undefined;
  /** A command to run at once; what it came to is in {@link Sandbox.firstResult}. */
  exec?: Command | undefined;
  /** The host. Default: {@link Client.shared}. */
  client?: Client | undefined;
}

/** How a sandbox is made of an image. */
export interface CreateOptions extends FromCheckpointOptions {
  /** Name or id of an image; or an {@link Image}, which is built first, and found if it was built before. */
  image: string | Image | Pick<ImageInfo, 'id' | 'contentHash'>;
  /** Called with the lines of the build, if an {@link Image} is built. */
  onBuildLog?: ((line: string) => void) | undefined;
}

/** How several sandboxes are made at once. */
export type CreateManyOptions = (CreateOptions | (FromCheckpointOptions & { checkpoint: CheckpointLike })) &
  PartialOption;

/** How a sandbox is forked. */
export type ForkOptions = SandboxOptions & MakeOptions & PartialOption;

interface PartialOption {
  /** Whether some are kept when others failed: see {@link SandboxGroup.errors}. Default: all or none. */
  partial?: boolean | undefined;
}

/** A checkpoint: its name or id, or what {@link Sandbox.checkpoint} gave. */
export type CheckpointLike = string | Pick<Checkpoint, 'id' | 'floorMB'>;

/** How a command is run. */
export interface ExecOptions extends CommandOptions, CallOptions {
  /** What it reads. Default: nothing. */
  stdin?: string | Uint8Array | undefined;
  /** Whether another exit code than 0 is an error. */
  check?: boolean | undefined;
}

/**
 * A sandbox: a virtual machine of its own, forked from an image or a checkpoint in milliseconds.
 *
 * With `await using` it is ended when its scope is left. All methods reject with a {@link SporeError}; with
 * `NotFoundError` where the sandbox is no more, and with what their own documentation names.
 *
 * ```ts
 * await using sandbox = await Sandbox.create({ image: 'debian-tools', memoryMB: 4096 });
 * console.log((await sandbox.exec('uname -a')).stdout);
 * ```
 */
export class Sandbox implements AsyncDisposable {
  /** Its files. */
  readonly files: Files;
  /** What the command came to that it was made with (`exec`). */
  readonly firstResult: ExecResult | undefined;
  readonly #client: Client;
  readonly #path: string;
  #info: SandboxInfo;

  /** @internal */
  constructor(client: Client, info: SandboxInfo, firstResult?: WireResult) {
    this.#client = client;
    this.#info = info;
    this.#path = `/v1/sandboxes/${segment(info.id)}`;
    this.files = new Files(client.transport, this.#path);
    this.firstResult = firstResult && execResult(firstResult);
  }

  /**
   * Makes a sandbox of an image. It is ready when this resolves, with the memory that was asked for.
   *
   * @throws NotFoundError if there is no such image; InsufficientCapacityError if the host has no room (`details` says
   * what would fit); DrainingError if it takes no new sandboxes; BuildFailedError if the {@link Image} could not be
   * built.
   */
  static async create(options: CreateOptions): Promise<Sandbox> {
    const client = options.client ?? Client.shared();
    const body = { image: await imageId(client, options), ...createBody(options) };
    return Sandbox.#made(client, await createOne(client, body, options));
  }

  /**
   * Makes several sandboxes at once; otherwise as {@link Sandbox.create}, or {@link Sandbox.fromCheckpoint} with
   * `checkpoint` in place of `image`.
   *
   * @param count - How many, 1 to 64.
   */
  static async createMany(count: number, options: CreateManyOptions): Promise<SandboxGroup> {
    const client = options.client ?? Client.shared();
    const { partial } = options;
    const source =
      'checkpoint' in options
        ? { checkpoint: checkpointId(options.checkpoint) }
        : { image: await imageId(client, options) };
    const body = { ...source, ...createBody(options), count, ...(partial !== undefined && { partial }) };
    return Sandbox.#madeSeveral(client, await createSeveral(client, '/v1/sandboxes', body, options));
  }

  /** Makes a sandbox of a checkpoint; otherwise as {@link Sandbox.create}. */
  static async fromCheckpoint(
    checkpoint: CheckpointLike,
    options: FromCheckpointOptions = {},
  ): Promise<Sandbox> {
    const client = options.client ?? Client.shared();
    const body = { checkpoint: checkpointId(checkpoint), ...createBody(options) };
    return Sandbox.#made(client, await createOne(client, body, options));
  }

  /**
   * Finds a sandbox that is there.
   *
   * @throws NotFoundError if there is none.
   */
  static async connect(
    id: string,
    options: CallOptions & { client?: Client | undefined } = {},
  ): Promise<Sandbox> {
    const client = options.client ?? Client.shared();
    const path = `/v1/sandboxes/${segment(id)}`;
    const { signal } = options;
    return new Sandbox(
      client,
      await client.transport.json({ method: 'GET', path, repeatable: true, signal }),
    );
  }

  /** Finds all sandboxes, the newest first; with `metadata`, those that have all of it. */
  static async list(
    options: CallOptions & {
      metadata?: Readonly<Record<string, string>> | undefined;
      client?: Client | undefined;
    } = {},
  ): Promise<Sandbox[]> {
    const client = options.client ?? Client.shared();
    const { metadata = {}, signal } = options;
    const query = Object.fromEntries(
      Object.entries(metadata).map(([key, value]) => [`metadata.${key}`, value]),
    );
    const request = { method: 'GET', path: '/v1/sandboxes', query, repeatable: true, signal } as const;
    const { sandboxes } = await client.transport.json<Sandboxes>(request);
    return sandboxes.map((info) => new Sandbox(client, info));
  }

  static #made(client: Client, { exec, ...info }: CreatedSandbox): Sandbox {
    return new Sandbox(client, info, exec);
  }

  static #madeSeveral(client: Client, forked: Forked): SandboxGroup {
    const group = new SandboxGroup();
    for (const made of forked.sandboxes) group.push(Sandbox.#made(client, made));
    group.errors = (forked.errors ?? []).map((body) => errorFromBody(body));
    group.pausedUs = forked.pausedUs;
    return group;
  }

  /** Its id. */
  get id(): string {
    return this.#info.id;
  }

  /** What the daemon last said about it; {@link Sandbox.refresh} asks anew. */
  get info(): Readonly<SandboxInfo> {
    return this.#info;
  }

  /** Its memory, as the daemon last said. */
  get memory(): Readonly<SandboxMemory> {
    return this.#info.memory;
  }

  /** For `JSON.stringify`. */
  toJSON(): SandboxInfo {
    return this.#info;
  }

  // Commands.

  /**
   * Runs a command and waits for its end. Nobody can tell whether a command that was lost has run: it is not tried
   * again. Aborting the signal kills it.
   *
   * @param command - A line for `/bin/sh -c`, or a list of a program and its arguments without a shell between; an
   * empty list is the image's own command.
   * @throws CommandFailedError if its exit code is not 0 and `check` was asked for; GuestRefusedError if its directory or
   * its user is not there (a program that is not there is exit code 127); SandboxEndedError if the sandbox ended
   * meanwhile.
   */
  async exec(command: Command, options: ExecOptions = {}): Promise<ExecResult> {
    const { check, signal } = options;
    const request = { method: 'POST', path: `${this.#path}/exec`, repeatable: false, signal } as const;
    const wire = await this.#client.transport.json<WireResult>(request, execRequest(command, options));
    return checked(command, execResult(wire), check);
  }

  /**
   * Starts a command, to hear what it writes while it runs and to talk with it. See {@link ExecStream}.
   *
   * @throws NotFoundError if the sandbox is no more. All else is told by what is returned.
   */
  execStream(command: Command, options: ExecStreamOptions = {}): Promise<ExecStream> {
    return ExecStream.open(this.#client.transport, `${this.#path}/exec`, command, options);
  }

  // Its life.

  /**
   * Forks it as it runs: each child goes on from here with memory, processes and disk of its own.
   *
   * @param count - How many, 1 to 64.
   * @throws InsufficientCapacityError if the host has no room for them.
   */
  async fork(count = 1, options: ForkOptions = {}): Promise<SandboxGroup> {
    const { partial } = options;
    const body: ForkRequest = { count, ...sharedBody(options), ...(partial !== undefined && { partial }) };
    const made = await createSeveral(this.#client, `${this.#path}/fork`, body, options);
    return Sandbox.#madeSeveral(this.#client, made);
  }

  /**
   * Keeps it as it is, for {@link Sandbox.fromCheckpoint}. It runs on.
   *
   * @param options - `name`: a name for the checkpoint, unique: letters, digits, `.`, `_`, `-`, at most 64.
   * `finalizeMemoryMB`: boot its disks anew with so many MiB, 256 to 16384, and keep that: processes and memory are left
   * behind. Default: all as it runs, with the memory that it has as the least of a fork.
   * @throws ConflictError if the name is taken.
   */
  checkpoint(options: CheckpointRequest & MakeOptions = {}): Promise<Checkpoint> {
    const { name, finalizeMemoryMB } = options;
    const body: CheckpointRequest = {
      ...(name !== undefined && { name }),
      ...(finalizeMemoryMB !== undefined && { finalizeMemoryMB }),
    };
    return make(this.#client, `${this.#path}/checkpoints`, body, options, (made: Checkpoint) =>
      this.#client.deleteCheckpoint(made.id),
    );
  }

  /**
   * Gives it more memory, or less. Resolves when the guest itself shows it.
   *
   * @param memoryMB - MiB. Less than its floor is raised to that.
   * @throws AboveMaximumError if it is more than it can have; InsufficientCapacityError if the host has no room.
   */
  resize(memoryMB: number, options: CallOptions = {}): Promise<SandboxInfo> {
    return this.#update({ memoryMB }, options);
  }

  /** Ends it after so many seconds from now, at most 2592000; `null`: never. */
  setTimeout(seconds: number | null, options: CallOptions = {}): Promise<SandboxInfo> {
    return this.#update({ timeoutSeconds: seconds ?? 0 }, options);
  }

  /** Ends it when nobody has used it for so many seconds, at most 2592000; `null`: never. */
  setIdleTimeout(seconds: number | null, options: CallOptions = {}): Promise<SandboxInfo> {
    return this.#update({ idleTimeoutSeconds: seconds ?? 0 }, options);
  }

  /** Replaces all of its metadata. */
  setMetadata(metadata: Readonly<Record<string, string>>, options: CallOptions = {}): Promise<SandboxInfo> {
    return this.#update({ metadata: { ...metadata } }, options);
  }

  /** Stops its vCPUs; stopped is fine. It keeps its memory. */
  pause(options: CallOptions = {}): Promise<SandboxInfo> {
    return this.#post('pause', options);
  }

  /** Lets it go on after {@link Sandbox.pause}; running is fine. */
  resume(options: CallOptions = {}): Promise<SandboxInfo> {
    return this.#post('resume', options);
  }

  /** Asks how it is, into {@link Sandbox.info}. */
  async refresh(options: CallOptions = {}): Promise<SandboxInfo> {
    const { signal } = options;
    return this.#seen(
      await this.#client.transport.json({ method: 'GET', path: this.#path, repeatable: true, signal }),
    );
  }

  /** Asks what it has used. */
  async usage(options: CallOptions = {}): Promise<Usage> {
    const { signal } = options;
    const request = {
      method: 'GET',
      path: this.#path,
      query: { usage: 1 },
      repeatable: true,
      signal,
    } as const;
    const { usage, ...info } = await this.#client.transport.json<SandboxInfo & { usage: Usage }>(request);
    this.#seen(info);
    return usage;
  }

  /** What its console shows. */
  async logs(options: CallOptions = {}): Promise<string> {
    const request = {
      method: 'GET',
      path: `${this.#path}/logs`,
      repeatable: true,
      signal: options.signal,
    } as const;
    return (await this.#client.transport.bytes(request)).bytes.toString('utf8');
  }

  /**
   * Ends it, and everything in it.
   *
   * @returns Whether it was there.
   */
  async kill(options: CallOptions = {}): Promise<boolean> {
    try {
      await this.#client.transport.delete({ method: 'DELETE', path: this.#path, signal: options.signal });
      return true;
    } catch (error) {
      if (error instanceof NotFoundError || error instanceof SandboxEndedError) return false;
      throw error;
    }
  }

  /** As {@link Sandbox.kill}. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }

  async #update(body: SandboxUpdate, options: CallOptions): Promise<SandboxInfo> {
    const request = { method: 'PATCH', path: this.#path, repeatable: true, signal: options.signal } as const;
    return this.#seen(await this.#client.transport.json(request, body));
  }

  async #post(action: 'pause' | 'resume', options: CallOptions): Promise<SandboxInfo> {
    const path = `${this.#path}/${action}`;
    const request = { method: 'POST', path, repeatable: true, signal: options.signal } as const;
    return this.#seen(await this.#client.transport.json(request));
  }

  #seen(info: SandboxInfo): SandboxInfo {
    return (this.#info = info);
  }
}

/** Sandboxes that were made at once: an array, and with `await using` all are ended when its scope is left. */
export class SandboxGroup extends Array<Sandbox> implements AsyncDisposable {
  /** With `partial`, what those failed of that are not here. */
  errors: SporeError[] = [];
  /** How long the sandbox stood still that was forked, in microseconds. */
  pausedUs: number | undefined;

  // What map() and filter() give is no group.
  static override get [Symbol.species](): ArrayConstructor {
    return Array;
  }

  /** Ends all of them. */
  async [Symbol.asyncDispose](): Promise<void> {
    const ends = await Promise.allSettled(this.map((sandbox) => sandbox.kill()));
    const failed = ends.find((end): end is PromiseRejectedResult => end.status === 'rejected');
    if (failed !== undefined) throw failed.reason;
  }
}

/** How long something is waited for to be undone. */
const UNDO_MS = 120_000;

/**
 * A call that makes something, with a key, so that it can be made again safely.
 *
 * The daemon carries out a call with a key also when its client hangs up. So when it is aborted here, what it comes to
 * is asked for by the same key, behind the caller's back, and undone; unless the key is the caller's own.
 */
async function make<T>(
  client: Client,
  path: string,
  body: object,
  options: MakeOptions,
  undo: (made: T) => Promise<unknown>,
): Promise<T> {
  const { idempotencyKey = randomUUID(), signal } = options;
  const request = {
    method: 'POST',
    path,
    headers: { 'idempotency-key': idempotencyKey },
    repeatable: true,
  } as const;
  signal?.throwIfAborted();
  try {
    return await client.transport.json<T>({ ...request, signal }, body);
  } catch (error) {
    if (signal?.aborted === true && options.idempotencyKey === undefined) {
      const soon = AbortSignal.timeout(UNDO_MS);
      client.transport
        .json<T>({ ...request, signal: soon }, body)
        .then(undo)
        .catch(() => undefined); // Nothing was made, or nobody can be asked.
    }
    throw error;
  }
}

function createOne(client: Client, body: CreateSandbox, options: MakeOptions): Promise<CreatedSandbox> {
  return make(client, '/v1/sandboxes', body, options, (made: CreatedSandbox) =>
    new Sandbox(client, made).kill(),
  );
}

function createSeveral(client: Client, path: string, body: object, options: MakeOptions): Promise<Forked> {
  return make(client, path, body, options, ({ sandboxes }: Forked) =>
    Promise.all(sandboxes.map((made) => new Sandbox(client, made).kill())),
  );
}

async function imageId(client: Client, options: CreateOptions): Promise<string> {
  const { image, onBuildLog, signal } = options;
  if (typeof image === 'string') return image;
  return image instanceof Image
    ? (await client.buildImage(image, { onLog: onBuildLog, signal })).id
    : image.id;
}

function checkpointId(checkpoint: CheckpointLike): string {
  return typeof checkpoint === 'string' ? checkpoint : checkpoint.id;
}

type Shared = Pick<
  CreateSandbox & ForkRequest,
  'memoryMB' | 'env' | 'metadata' | 'timeoutSeconds' | 'idleTimeoutSeconds' | 'network'
>;

function sharedBody(options: SandboxOptions): Shared {
  const { memoryMB, env, metadata, timeoutSeconds, idleTimeoutSeconds, network } = options;
  return {
    ...(memoryMB !== undefined && { memoryMB }),
    ...(env && { env: { ...env } }),
    ...(metadata && { metadata: { ...metadata } }),
    ...(timeoutSeconds !== undefined && { timeoutSeconds }),
    ...(idleTimeoutSeconds !== undefined && { idleTimeoutSeconds }),
    ...(network !== undefined && { network }),
  };
}

function createBody(options: FromCheckpointOptions): CreateSandbox {
  const { cpus, diskMB, exec } = options;
  return {
    ...sharedBody(options),
    ...(cpus !== undefined && { cpus }),
    ...(diskMB !== undefined && { diskMB }),
    ...(exec !== undefined && { exec: execRequest(exec) }),
  };
}
