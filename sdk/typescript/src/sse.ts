/**
 * Server-sent events (HTML living standard, section 9.2) out of bytes that come in pieces cut anywhere.
 *
 * @module
 */

import { BadAnswerError } from './errors.js';

/** One event. */
export interface ServerSentEvent {
  /** Its type; `message` if none was given. */
  event: string;
  /** Its data; lines are apart by `\n`. */
  data: string;
  /** The last id there was, of this or an earlier event; empty if there was none. */
  id: string;
}

/** The most characters one event may have: a stream that never ends a line may not fill the memory. */
const MOST_CHARACTERS = 64 * 1024 * 1024;

/** A parser for one stream. */
export class SseParser {
  readonly #decoder = new TextDecoder(); // Drops the byte order mark, and keeps what is cut within a character.
  #rest = '';
  #afterReturn = false;
  #event = '';
  #data: string[] = [];
  #size = 0;
  #id = '';

  /**
   * Takes the next bytes, and gives the events that are complete with them. What was not complete when a stream ends
   * is no event.
   *
   * @throws BadAnswerError if an event is longer than 64 Mi characters.
   */
  push(bytes: Uint8Array): ServerSentEvent[] {
    let text = this.#decoder.decode(bytes, { stream: true });
    if (text === '') return [];
    // A line's end is \n, \r or \r\n, and the last may be cut in two.
    if (this.#afterReturn && text.startsWith('\n')) text = text.slice(1);
    this.#afterReturn = text === '' ? false : text.endsWith('\r');
    this.#count(text.length);

    const lines = text.split(/\r\n|\r|\n/);
    lines[0] = this.#rest + (lines[0] ?? '');
    this.#rest = lines.pop() ?? '';
    const events: ServerSentEvent[] = [];
    for (const line of lines) {
      const event = this.#line(line);
      if (event !== undefined) events.push(event);
    }
    return events;
  }

  #count(length: number): void {
    this.#size += length;
    if (this.#size > MOST_CHARACTERS) throw new BadAnswerError('an event of the stream is too long');
  }

  #line(line: string): ServerSentEvent | undefined {
    if (line === '') return this.#dispatch();
    const colon = line.indexOf(':');
    if (colon === 0) return undefined; // A comment.
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? '' : line.slice(line.startsWith(' ', colon + 1) ? colon + 2 : colon + 1);
    if (field === 'data') this.#data.push(value);
    else if (field === 'event') this.#event = value;
    else if (field === 'id' && !value.includes('\0')) this.#id = value;
    return undefined;
  }

  #dispatch(): ServerSentEvent | undefined {
    const [event, data] = [this.#event, this.#data];
    this.#event = '';
    this.#data = [];
    this.#size = this.#rest.length;
    if (data.length === 0) return undefined;
    return { event: event === '' ? 'message' : event, data: data.join('\n'), id: this.#id };
  }
}

/** The events of a stream of bytes. */
export async function* serverSentEvents(
  stream: AsyncIterable<Uint8Array>,
): AsyncGenerator<ServerSentEvent, void, undefined> {
  const parser = new SseParser();
  for await (const bytes of stream) yield* parser.push(bytes);
}
