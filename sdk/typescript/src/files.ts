/**
 * A sandbox's files.
 *
 * @module
 */

import { randomUUID } from 'node:crypto';
import { open, rename, rm } from 'node:fs/promises';

import type { CallOptions } from './client.js';
import type { Body, Request, Transport } from './http.js';
import { modeText } from './local-files.js';
import type { Mode } from './local-files.js';
import type { DirEntries, DirEntry, FileInfo } from './types.js';

/** A file as it comes. Read it to its end, or leave the loop: that closes it. */
export interface FileStream extends AsyncIterable<Uint8Array> {
  /** Permission bits, as octal digits. */
  readonly mode: string | undefined;
}

/**
 * A sandbox's files: `sandbox.files`. Paths are absolute, and are the guest's: they lead nowhere else.
 *
 * What the guest refuses (no such file, a full disk) is a `GuestRefusedError`.
 */
export class Files {
  readonly #transport: Transport;
  readonly #path: string;

  /** @internal */
  constructor(transport: Transport, sandboxPath: string) {
    this.#transport = transport;
    this.#path = sandboxPath;
  }

  /** Reads a file. */
  async read(path: string, options: CallOptions = {}): Promise<Uint8Array> {
    const { bytes } = await this.#transport.bytes(this.#read(path, options));
    return bytes;
  }

  /** Reads a file of text in UTF-8. Bytes that are not UTF-8 are U+FFFD. */
  async readText(path: string, options: CallOptions = {}): Promise<string> {
    return new TextDecoder('utf-8', { ignoreBOM: true }).decode(await this.read(path, options));
  }

  /** Reads a file piece by piece, for one that is larger than memory should hold. */
  async readStream(path: string, options: CallOptions = {}): Promise<FileStream> {
    const { headers, body } = await this.#transport.open({ ...this.#read(path, options), repeatable: false });
    const mode = headers['x-spore-mode'];
    return {
      mode: typeof mode === 'string' ? mode : undefined,
      [Symbol.asyncIterator]: () => body[Symbol.asyncIterator](),
    };
  }

  /**
   * Writes a file: the whole of it, or not at all. Directories on the way are made. At most 1 GiB.
   *
   * @param data - Text goes as UTF-8. A stream (`fs.createReadStream(...)`) is not held in memory.
   * @param options - `mode`: permission bits, `0o755` or `'0755'`. Default: `0644`.
   */
  write(
    path: string,
    data: Body,
    options: CallOptions & { mode?: Mode | undefined } = {},
  ): Promise<FileInfo> {
    const { mode, signal } = options;
    return this.#transport.sent<FileInfo>({
      method: 'PUT',
      path: `${this.#path}/files`,
      query: { path, mode: mode === undefined ? undefined : modeText(mode) },
      headers: { 'content-type': 'application/octet-stream' },
      body: data,
      repeatable: true,
      signal,
    });
  }

  /**
   * Writes a file of this machine into the sandbox, without having it all in memory; otherwise as {@link Files.write}.
   *
   * @param local - Path of a regular file here.
   */
  async upload(
    local: string,
    path: string,
    options: CallOptions & { mode?: Mode | undefined } = {},
  ): Promise<FileInfo> {
    const file = await open(local, 'r');
    try {
      return await this.write(path, file.createReadStream({ autoClose: false }), options);
    } finally {
      await file.close();
    }
  }

  /**
   * Writes a file of the sandbox to this machine, without having it all in memory. There is the whole of it, or what
   * was there before.
   *
   * @returns Its size in bytes.
   */
  async download(path: string, local: string, options: CallOptions = {}): Promise<number> {
    const stream = await this.readStream(path, options);
    const beside = `${local}.${randomUUID()}.part`;
    const file = await open(beside, 'wx');
    let size = 0;
    try {
      for await (const piece of stream) {
        await file.writeFile(piece);
        size += piece.byteLength;
      }
      await file.close();
      await rename(beside, local);
    } catch (error) {
      await file.close();
      await rm(beside, { force: true });
      throw error;
    }
    return size;
  }

  /** What is in a directory, sorted by name. */
  async list(path: string, options: CallOptions = {}): Promise<DirEntry[]> {
    const { signal } = options;
    const request = {
      method: 'GET',
      path: `${this.#path}/ls`,
      query: { path },
      repeatable: true,
      signal,
    } as const;
    return (await this.#transport.json<DirEntries>(request)).entries;
  }

  /**
   * Removes a file, or a directory.
   *
   * @param options - `recursive`: with all that is in it. Without it a directory has to be empty.
   */
  remove(path: string, options: CallOptions & { recursive?: boolean | undefined } = {}): Promise<void> {
    const { recursive, signal } = options;
    const query = { path, recursive: recursive === true ? 1 : undefined };
    return this.#transport.delete({ method: 'DELETE', path: `${this.#path}/files`, query, signal });
  }

  /**
   * Makes a directory, and those on the way. One that is there already is fine.
   *
   * @param options - `mode`: permission bits, `0o755` or `'0755'`. Default: `0755`.
   */
  async mkdir(path: string, options: CallOptions & { mode?: Mode | undefined } = {}): Promise<void> {
    const { mode, signal } = options;
    const query = { path, mode: mode === undefined ? undefined : modeText(mode) };
    await this.#transport.bytes({
      method: 'POST',
      path: `${this.#path}/mkdir`,
      query,
      repeatable: true,
      signal,
    });
  }

  #read(path: string, options: CallOptions): Request {
    const { signal } = options;
    return { method: 'GET', path: `${this.#path}/files`, query: { path }, repeatable: true, signal };
  }
}
