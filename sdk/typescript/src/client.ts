/**
 * A host, as programs see it.
 *
 * @module
 */

import { setTimeout as sleep } from 'node:timers/promises';

import { BuildLines, parseJson, readBuildMessage } from './build-log.js';
import { ConnectionLostError, DaemonUnreachableError } from './errors.js';
import { Transport, segment, withJson } from './http.js';
import type { Request } from './http.js';
import type { Image, Manifest } from './image.js';
import { serverSentEvents } from './sse.js';
import type {
  Build,
  BuildAccepted,
  BuildMessage,
  BuildNetwork,
  BuildRequest,
  Checkpoint,
  Checkpoints,
  Event,
  HostInfo,
  Image as ImageInfo,
  Images,
} from './types.js';

/** Where a daemon is, and how it is asked. */
export interface ClientOptions {
  /** Path of the daemon's socket. Default: the environment's `SPORE_SOCKET`, else `/run/spore/spore.sock`. */
  socketPath?: string | undefined;
  /** How often a call is made again that a daemon or a connection was lost for. Default: 3, within a second. */
  retries?: number | undefined;
}

/** What every call takes. */
export interface CallOptions {
  /** Aborting it ends the call, on the host too, and what it made is undone; it rejects with the signal's reason. */
  signal?: AbortSignal | undefined;
}

/** What calls that make something take. */
export interface MakeOptions extends CallOptions {
  /**
   * Up to 128 printable characters that stand for this call: made again with the same key within an hour, also by
   * another process, it answers the same. Aborting a call with such a key undoes nothing. Default: a new one a call,
   * for the call's own retries.
   */
  idempotencyKey?: string | undefined;
}

/** How an image is built. */
export interface BuildOptions extends CallOptions {
  /** Called with each line that the build says, without its end: `console.log` will do. */
  onLog?: ((line: string) => void) | undefined;
  /** Called with each of the build's messages but the last that says that it failed; a newer daemon may have more. */
  onMessage?: ((message: BuildMessage) => void) | undefined;
  /** Run every step, whatever is known of earlier builds. */
  noCache?: boolean | undefined;
  /** How long one step may take, 1 to 86400. Default: 1800. */
  stepTimeoutSeconds?: number | undefined;
  /**
   * What steps reach: `auto`, everything beyond the host where the host can give a network; or as a sandbox's: `none`,
   * `nat`, `{ allow: [...] }`.
   */
  network?: BuildNetwork | undefined;
}

/** How events are followed. */
export interface EventsOptions extends CallOptions {
  /** Begin after this one. Default: with what happens from now on. */
  lastEventId?: number | undefined;
  /** How long it is tried to reach a daemon that was lost. Default: 60. */
  reconnectSeconds?: number | undefined;
}

const DEFAULT_SOCKET = '/run/spore/spore.sock';
const DEFAULT_RETRIES = 3;
const RECONNECT_WAIT_MS = 200;

/**
 * The way to a host's daemon. Connections are opened as they are needed, and none keeps the process alive.
 *
 * A call whose connection is lost is made again where that is safe: an idempotency key sees to it that what it makes is
 * made once. A command is never run twice.
 *
 * All methods reject with a {@link SporeError}: `DaemonUnreachableError` where there is no daemon, `NotFoundError` for
 * what is not there, and what their own documentation names.
 */
export class Client {
  static readonly #shared = new Map<string, Client>();

  /** @internal */
  readonly transport: Transport;

  constructor(options: ClientOptions = {}) {
    const socketPath = options.socketPath ?? defaultSocketPath();
    this.transport = new Transport(socketPath, options.retries ?? DEFAULT_RETRIES);
  }

  /** The client that is used where none is given: one for each socket that `SPORE_SOCKET` has named. */
  static shared(): Client {
    const path = defaultSocketPath();
    let client = Client.#shared.get(path);
    if (client === undefined) {
      client = new Client({ socketPath: path });
      Client.#shared.set(path, client);
    }
    return client;
  }

  /** Path of the daemon's socket. */
  get socketPath(): string {
    return this.transport.socketPath;
  }

  /** Closes connections that are idle. Later calls open new ones. */
  close(): void {
    this.transport.close();
  }

  // Images and builds.

  /** Builds an image, or finds it built already: see {@link Image.build}. A manifest will do as well. */
  async buildImage(image: Image | Manifest, options: BuildOptions = {}): Promise<ImageInfo> {
    const request = this.#buildRequest(image, options, undefined);
    return this.#follow(request, options);
  }

  /**
   * Begins a build that goes on by itself, also when this program ends.
   *
   * @returns The build's id, for {@link Client.getBuild}, {@link Client.followBuild} and {@link Client.cancelBuild}.
   */
  async startBuild(
    image: Image | Manifest,
    options: Omit<BuildOptions, 'onLog' | 'onMessage'> = {},
  ): Promise<string> {
    const accepted = await this.transport.json<BuildAccepted>(
      this.#buildRequest(image, options, { async: true }),
    );
    return accepted.buildId;
  }

  /** Looks at a build. It is known for an hour after its end. */
  getBuild(buildId: string, options: CallOptions = {}): Promise<Build> {
    return this.#get(`/v1/builds/${segment(buildId)}`, options);
  }

  /**
   * Hears all that a build says, from its beginning, and waits for its image.
   *
   * @throws BuildFailedError if a step failed, or why else there is no image.
   */
  followBuild(
    buildId: string,
    options: Pick<BuildOptions, 'onLog' | 'onMessage' | 'signal'> = {},
  ): Promise<ImageInfo> {
    const path = `/v1/builds/${segment(buildId)}/logs`;
    return this.#follow({ method: 'GET', path, repeatable: true, signal: options.signal }, options);
  }

  /** Cancels a build. */
  cancelBuild(buildId: string, options: CallOptions = {}): Promise<void> {
    return this.#delete(`/v1/builds/${segment(buildId)}`, options);
  }

  /** All images, the newest first. */
  async listImages(options: CallOptions = {}): Promise<ImageInfo[]> {
    return (await this.#get<Images>('/v1/images', options)).images;
  }

  /**
   * Looks at an image.
   *
   * @param image - A name, an id, or 4 and more digits of one.
   */
  getImage(image: string, options: CallOptions = {}): Promise<ImageInfo> {
    return this.#get(`/v1/images/${segment(image)}`, options);
  }

  /** Deletes an image. Sandboxes of it run on. */
  deleteImage(image: string, options: CallOptions = {}): Promise<void> {
    return this.#delete(`/v1/images/${segment(image)}`, options);
  }

  // Checkpoints. Those of sandboxes are made by Sandbox.checkpoint.

  /** All checkpoints, the newest first. */
  async listCheckpoints(options: CallOptions = {}): Promise<Checkpoint[]> {
    return (await this.#get<Checkpoints>('/v1/checkpoints', options)).checkpoints;
  }

  /** Looks at a checkpoint, by name or id. */
  getCheckpoint(checkpoint: string, options: CallOptions = {}): Promise<Checkpoint> {
    return this.#get(`/v1/checkpoints/${segment(checkpoint)}`, options);
  }

  /**
   * Deletes a checkpoint, by name or id. Sandboxes of it run on.
   *
   * @throws ConflictError if it is an image's, and goes with that.
   */
  deleteCheckpoint(checkpoint: string, options: CallOptions = {}): Promise<void> {
    return this.#delete(`/v1/checkpoints/${segment(checkpoint)}`, options);
  }

  // The host.

  /** Looks at the host: its memory and what of it is promised, what is there, versions. */
  host(options: CallOptions = {}): Promise<HostInfo> {
    return this.#get('/v1/host', options);
  }

  /** Has the host refuse new sandboxes and builds, or take them again. What runs goes on. */
  drain(draining = true, options: CallOptions = {}): Promise<HostInfo> {
    const { signal } = options;
    return this.transport.json(
      { method: 'POST', path: '/v1/host/drain', repeatable: true, signal },
      { draining },
    );
  }

  /**
   * Follows what happens on the host, without end: leave the loop, or abort the signal.
   *
   * A connection that is lost is opened again, and goes on after the last event that came.
   *
   * ```ts
   * for await (const event of client.events()) {
   *   if (event.type === 'sandboxEnded') console.log(event.sandbox, event.cause);
   * }
   * ```
   *
   * @throws DaemonUnreachableError if the daemon is not there at first, or stays away later.
   */
  async *events(options: EventsOptions = {}): AsyncGenerator<Event, void, undefined> {
    const { signal, reconnectSeconds = 60 } = options;
    let last = options.lastEventId;
    let lostAt: number | undefined;
    for (;;) {
      try {
        const headers = last === undefined ? undefined : { 'last-event-id': String(last) };
        const path = '/v1/events';
        const answer = await this.transport.open({ method: 'GET', path, headers, repeatable: false, signal });
        lostAt = undefined;
        for await (const { data } of serverSentEvents(answer.body)) {
          const event = parseJson(data, 'an event') as Event;
          last = event.id;
          yield event;
        }
      } catch (error) {
        const isAway = error instanceof DaemonUnreachableError && lostAt !== undefined;
        if (!isAway && !(error instanceof ConnectionLostError)) throw error;
        if (lostAt !== undefined && Date.now() - lostAt > reconnectSeconds * 1000) throw error;
      }
      lostAt ??= Date.now();
      await pause(RECONNECT_WAIT_MS, signal);
    }
  }

  /** The daemon's metrics, in Prometheus' text format. */
  metrics(options: CallOptions = {}): Promise<string> {
    return this.#text('/metrics', options);
  }

  /** Whether the daemon answers. */
  async isHealthy(options: CallOptions = {}): Promise<boolean> {
    return (await this.#text('/healthz', options)).trim() === 'ok';
  }

  /** The daemon's description of its interface, OpenAPI 3.1. */
  openapi(options: CallOptions = {}): Promise<Record<string, unknown>> {
    return this.#get('/v1/openapi.json', options);
  }

  #buildRequest(image: Image | Manifest, options: BuildOptions, query: Request['query']): Request {
    const manifest = 'toJSON' in image ? image.toJSON() : image;
    const { noCache, stepTimeoutSeconds, network, signal } = options;
    const body: BuildRequest = {
      manifest,
      ...(noCache === true && { noCache }),
      ...(stepTimeoutSeconds !== undefined && { stepTimeoutSeconds }),
      ...(network !== undefined && { network }),
    };
    // Can be repeated without a key: equal builds are one.
    return withJson({ method: 'POST', path: '/v1/images', query, repeatable: true, signal }, body);
  }

  /** Follows a build to its end, also over a connection that is lost on the way. */
  async #follow(request: Request, options: Pick<BuildOptions, 'onLog' | 'onMessage'>): Promise<ImageInfo> {
    const lines = new BuildLines();
    let buildId: string | undefined;
    let heard = 0;
    for (let left = this.transport.retries; ; left -= 1) {
      try {
        const answer = await this.transport.open(request);
        // Of those to come, as many were heard before the connection was lost.
        let known = request.method === 'GET' ? heard : 0;
        for await (const event of serverSentEvents(answer.body)) {
          const message = readBuildMessage(event);
          if (message.type === 'build') {
            if (message.buildId === buildId) known = heard;
            else heard = 0;
            buildId = message.buildId;
          }
          if (known > 0) known -= 1;
          else {
            heard += 1;
            for (const line of lines.take(message)) options.onLog?.(line);
            options.onMessage?.(message);
          }
          if (message.type === 'image') return message.image;
        }
        throw new ConnectionLostError(
          "the build's stream ended before the build did; build it again to go on",
        );
      } catch (error) {
        if (left <= 0 || !(error instanceof ConnectionLostError)) {
          for (const line of lines.end()) options.onLog?.(line);
          throw error;
        }
      }
      await pause(RECONNECT_WAIT_MS, request.signal);
    }
  }

  #get<T>(path: string, options: CallOptions): Promise<T> {
    return this.transport.json<T>({ method: 'GET', path, repeatable: true, signal: options.signal });
  }

  #delete(path: string, options: CallOptions): Promise<void> {
    return this.transport.delete({ method: 'DELETE', path, signal: options.signal });
  }

  async #text(path: string, options: CallOptions): Promise<string> {
    const { bytes } = await this.transport.bytes({
      method: 'GET',
      path,
      repeatable: true,
      signal: options.signal,
    });
    return bytes.toString('utf8');
  }
}

function defaultSocketPath(): string {
  const named = process.env['SPORE_SOCKET'];
  return named === undefined || named === '' ? DEFAULT_SOCKET : named;
}

async function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  await sleep(ms, undefined, signal && { signal }).catch(() => undefined);
  signal?.throwIfAborted();
}
