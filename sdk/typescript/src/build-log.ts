/**
 * What a build tells, read, and made into lines for people.
 *
 * @module
 */

import { BadAnswerError, errorFromBody } from './errors.js';
import type { ServerSentEvent } from './sse.js';
import type { BuildMessage } from './types.js';

/**
 * A message of a build.
 *
 * @throws what it says went wrong; BadAnswerError if it is not understood.
 */
export function readBuildMessage(event: ServerSentEvent): Exclude<BuildMessage, { type: 'error' }> {
  const message = parseJson(event.data, 'a message of the build') as BuildMessage;
  if (message.type === 'error') throw errorFromBody(message.error);
  return message;
}

/** JSON that is an object with a `type`. */
export function parseJson(text: string, what: string): { type: string } {
  let found: unknown;
  try {
    found = JSON.parse(text);
  } catch (cause) {
    throw new BadAnswerError(`${what} is no JSON: ${text.slice(0, 200)}`, { cause });
  }
  if (typeof found !== 'object' || found === null || !('type' in found) || typeof found.type !== 'string') {
    throw new BadAnswerError(`${what} has no type: ${text.slice(0, 200)}`);
  }
  return found as { type: string };
}

/** Makes whole lines of a build's messages. */
export class BuildLines {
  #begun = '';

  /** The lines that are complete with this message. */
  take(message: BuildMessage): string[] {
    if (message.type === 'output') {
      const lines = (this.#begun + message.text).split('\n');
      this.#begun = lines.pop() ?? '';
      return lines.map(withoutReturn);
    }
    const said = saidBy(message);
    return said === undefined ? this.end() : [...this.end(), said];
  }

  /** The line that was begun. */
  end(): string[] {
    const begun = this.#begun;
    this.#begun = '';
    return begun === '' ? [] : [withoutReturn(begun)];
  }
}

function withoutReturn(line: string): string {
  return line.endsWith('\r') ? line.slice(0, -1) : line;
}

function saidBy(message: BuildMessage): string | undefined {
  switch (message.type) {
    case 'stepStarted':
      return `[${message.step + 1}/${message.of}] ${message.label}`;
    case 'stepCached':
      return `[${message.step + 1}/${message.of}] ${message.label} (cached)`;
    case 'stepDone':
      return `[${message.step + 1}] done in ${(message.tookMs / 1000).toFixed(1)} s`;
    case 'phase':
      return message.message === '' ? message.phase : `${message.phase}: ${message.message}`;
    default:
      return undefined; // Also what a newer daemon says.
  }
}
