/**
 * RFC 8785 canonical JSON, and the content hash made of it.
 *
 * ECMAScript's own `JSON.stringify` is what the RFC defines numbers and strings by, so only the order of keys is left
 * to do: by UTF-16 code units (section 3.2.3), which is how JavaScript compares strings.
 *
 * @module
 */

import { createHash } from 'node:crypto';

/**
 * The canonical text of a JSON value.
 *
 * @throws TypeError for what JSON does not have: `undefined`, functions, NaN, half a surrogate pair, ….
 */
export function canonicalJson(value: unknown): string {
  switch (typeof value) {
    case 'string':
      // I-JSON (RFC 7493), which the RFC builds on, has no lone surrogates.
      if (/\p{Surrogate}/u.test(value)) throw new TypeError('a string has half a surrogate pair in it');
      return JSON.stringify(value);
    case 'boolean':
      return String(value);
    case 'number':
      if (!Number.isFinite(value)) throw new TypeError(`${value} is not in JSON`);
      return JSON.stringify(value);
    case 'object': {
      if (value === null) return 'null';
      if (Array.isArray(value)) return `[${value.map(canonicalJson).join(',')}]`;
      const entries = Object.entries(value).filter(([, item]) => item !== undefined);
      entries.sort(([one], [other]) => (one < other ? -1 : 1));
      return `{${entries.map(([key, item]) => `${canonicalJson(key)}:${canonicalJson(item)}`).join(',')}}`;
    }
    default:
      throw new TypeError(`${typeof value} is not in JSON`);
  }
}

/** The content hash of `{base, steps}`: SHA-256 over its canonical text, in hexadecimal. */
export function contentHash(manifest: { base: unknown; steps: unknown }): string {
  const text = canonicalJson({ base: manifest.base, steps: manifest.steps });
  return createHash('sha256').update(text, 'utf8').digest('hex');
}
