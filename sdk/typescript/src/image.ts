/**
 * Images, as what they are built from.
 *
 * @module
 */

import { contentHash } from './canonical.js';
import { Client } from './client.js';
import type { BuildOptions } from './client.js';
import { fileFields, localDirectory, localFile } from './local-files.js';
import type { Mode } from './local-files.js';
import type { Image as ImageInfo } from './types.js';

/** A step of a build. The daemon knows which there are. */
export interface Step {
  type: string;
  args: Record<string, unknown>;
}

/** What an image is built from, as the daemon takes it. */
export interface Manifest {
  /** Name of a base. */
  base: string;
  /** What is done to it, in order. */
  steps: Step[];
  /** A name for the image. */
  name?: string;
  /** Memory of the build VM. */
  builderMemoryMB?: number;
  /** Memory that the finished image is booted with: the least a sandbox of it has (the floor). 256 to 16384. */
  runtimeMemoryMB?: number;
  /** Size of the image's disk. */
  diskMB?: number;
}

/**
 * What an image is built from: a base, and steps that are run in order.
 *
 * An `Image` never changes: every method gives a new one. Nothing is built before {@link Image.build}, or before a
 * sandbox is made of it. What is built is remembered by the host, step by step: building the same again costs next to
 * nothing.
 *
 * The daemon checks it all before anything boots. An `InvalidManifestError` names the step and the field.
 *
 * ```ts
 * const image = Image.base()
 *   .aptInstall(['build-essential'])
 *   .runCommands('make -j')
 *   .builderMemory(8192);
 * ```
 */
export class Image {
  readonly #manifest: Manifest;

  private constructor(manifest: Manifest) {
    this.#manifest = manifest;
  }

  /** Begins with a base of the host, as it is. */
  static base(name = 'debian'): Image {
    return new Image({ base: text(name), steps: [] });
  }

  /**
   * Begins with a manifest as the daemon takes it; it may say more than the methods here can, such as
   * `runtimeMemoryMB`, the floor.
   *
   * @throws TypeError if it has no `base` or no list of `steps`. All else is for the daemon to check.
   */
  static fromManifest(manifest: Manifest): Image {
    const given: Partial<Record<keyof Manifest, unknown>> = manifest;
    if (typeof given.base !== 'string' || !Array.isArray(given.steps)) {
      throw new TypeError('a manifest has a `base` and a list of `steps`');
    }
    return new Image(structuredClone(manifest));
  }

  /**
   * Installs Debian packages, without what they only recommend.
   *
   * @param packages - Names, each maybe with `:architecture` and `=version`; one by one or in lists.
   */
  aptInstall(...packages: (string | readonly string[])[]): Image {
    return this.#step('apt_install', { packages: flat(packages) });
  }

  /**
   * Installs Python packages among the system's.
   *
   * @param packages - Names, each maybe with extras and versions (`uvicorn[standard]>=0.30,<1`); no options, URLs,
   * paths or markers. One by one or in lists.
   */
  pipInstall(...packages: (string | readonly string[])[]): Image {
    return this.#step('pip_install', { packages: flat(packages) });
  }

  /**
   * Runs commands as root, each with `/bin/sh -c`, until one fails.
   *
   * @param commands - At most 131,071 bytes each; one by one or in lists.
   */
  runCommands(...commands: (string | readonly string[])[]): Image {
    return this.#step('run', { commands: flat(commands) });
  }

  /** Sets environment variables, for every later step and for every command in a sandbox. */
  env(variables: Readonly<Record<string, string>>): Image {
    for (const [name, value] of Object.entries(variables)) text(value, `the variable ${name}`);
    return this.#step('env', { vars: { ...variables } });
  }

  /**
   * Makes a directory, and starts every later step and every command in a sandbox there.
   *
   * @param path - An absolute path.
   */
  workdir(path: string): Image {
    return this.#step('workdir', { path: absolute(path) });
  }

  /**
   * Writes a file. It is read now.
   *
   * @param source - Path of a file on this machine, or, as a `Uint8Array`, what should be in it; text:
   * {@link Image.addText}.
   * @param path - Its absolute path in the image; directories on the way are made.
   * @param options - `mode`: permission bits, `0o755` or `'0755'`. Default: `0644`; `0755` for a file that is
   * executable here.
   * @throws RangeError if it has more than 48 MiB, and what `node:fs` throws if it cannot be read.
   */
  addFile(source: string | Uint8Array, path: string, options: { mode?: Mode } = {}): Image {
    const fields =
      typeof source === 'string' ? localFile(source, options.mode) : fileFields(source, options.mode);
    return this.#step('add_file', { path: absolute(path), ...fields });
  }

  /** Writes a file with this text in UTF-8; otherwise as {@link Image.addFile}. */
  addText(content: string, path: string, options: { mode?: Mode } = {}): Image {
    return this.addFile(Buffer.from(text(content), 'utf8'), path, options);
  }

  /**
   * Writes the files below a directory of this machine. They are read now.
   *
   * Links to files are followed. Directories without files are left out, and of modes only whether the owner may
   * execute the file is kept: so the same files are the same image wherever they are checked out.
   *
   * @param source - The directory on this machine.
   * @param path - Absolute path of the directory in the image.
   * @param options - `ignore`: what is left out: patterns as of a shell (`*.pyc`, `.git`), for the name or the path
   * from `source` on.
   * @throws TypeError for what can be no file of an image (a device, a link to a directory), RangeError for more than
   * 48 MiB of files, and what `node:fs` throws if something cannot be read.
   */
  addLocalDir(source: string, path: string, options: { ignore?: readonly string[] } = {}): Image {
    const { ignore = [] } = options;
    if (!Array.isArray(ignore)) throw new TypeError('`ignore` is a list of patterns');
    return this.#step('add_dir', { path: absolute(path), files: localDirectory(source, ignore) });
  }

  /**
   * Gives the image a name, by which sandboxes can be made of it. It moves from an image that had it before.
   *
   * @param name - 1 to 63 of a-z, 0-9, `.`, `_` and `-`, the first a letter or a digit.
   */
  name(name: string): Image {
    return new Image({ ...this.#manifest, name: text(name) });
  }

  /**
   * Gives the build VM this much memory. What a sandbox has is another question: `Sandbox.create({ memoryMB })`.
   *
   * @param memoryMB - MiB, from 256 to the host's memory. Default: 4096.
   */
  builderMemory(memoryMB: number): Image {
    return new Image({ ...this.#manifest, builderMemoryMB: whole(memoryMB) });
  }

  /**
   * Grows the image's disk.
   *
   * @param sizeMB - MiB. Default: the size of the base's disk, and it cannot be less.
   */
  disk(sizeMB: number): Image {
    return new Image({ ...this.#manifest, diskMB: whole(sizeMB) });
  }

  /** It as the daemon takes it; a copy of one's own. */
  manifest(): Manifest {
    return structuredClone(this.#manifest);
  }

  /** As {@link Image.manifest}, for `JSON.stringify`. */
  toJSON(): Manifest {
    return this.manifest();
  }

  /**
   * SHA-256 over the canonical JSON (RFC 8785) of base and steps, in hexadecimal. The daemon's `contentHash` of an
   * image built of this is the same. Name, memory and disk size are not in it.
   */
  contentHash(): string {
    return contentHash(this.#manifest);
  }

  /**
   * Builds it, or finds it built already. Aborting the signal cancels the build, unless somebody else wants it too.
   *
   * @throws InvalidManifestError if it was refused before anything was run; BuildFailedError if a step failed, with
   * the last that it wrote; BuildOomError if a step ran out of memory: raise {@link Image.builderMemory}. What earlier
   * steps made is kept: trying again goes on there.
   */
  build(options: BuildOptions & { client?: Client | undefined } = {}): Promise<ImageInfo> {
    return (options.client ?? Client.shared()).buildImage(this, options);
  }

  #step(type: string, args: Record<string, unknown>): Image {
    return new Image({ ...this.#manifest, steps: [...this.#manifest.steps, { type, args }] });
  }
}

// Not everyone who calls these has a compiler that checks types.

function text(value: unknown, what = 'it'): string {
  if (typeof value !== 'string') throw new TypeError(`${what} should be text, and is ${typeof value}`);
  return value;
}

function flat(items: readonly unknown[]): string[] {
  return items.flat().map((item) => text(item));
}

function absolute(path: unknown): string {
  if (!text(path, 'a path').startsWith('/')) {
    throw new TypeError(`${JSON.stringify(path)} should be an absolute path in the image, beginning with /`);
  }
  return path as string;
}

function whole(value: unknown): number {
  if (!Number.isSafeInteger(value)) throw new TypeError(`${String(value)} should be a whole number of MiB`);
  return value as number;
}
