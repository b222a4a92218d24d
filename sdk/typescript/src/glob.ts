/**
 * Shell patterns as of fnmatch(3) without flags: `*` is anything, `?` one character, `[a-z]` and `[!a-z]` one of a set.
 *
 * @module
 */

/** Whether a text is matched by a pattern, whole. `*` and `?` match a slash too. */
export function matches(text: string, pattern: string): boolean {
  return toRegExp(pattern).test(text);
}

const cache = new Map<string, RegExp>();

function toRegExp(pattern: string): RegExp {
  let found = cache.get(pattern);
  if (found === undefined) {
    found = new RegExp(`^${translate(Array.from(pattern))}$`, 'su');
    if (cache.size >= 256) cache.clear();
    cache.set(pattern, found);
  }
  return found;
}

function translate(characters: readonly string[]): string {
  let source = '';
  for (let at = 0; at < characters.length; at += 1) {
    const character = characters[at] ?? '';
    if (character === '*') source += '.*';
    else if (character === '?') source += '.';
    else if (character === '[') {
      const end = setEnd(characters, at);
      if (end < 0) source += '\\[';
      else {
        source += set(characters.slice(at + 1, end));
        at = end;
      }
    } else source += quote(character);
  }
  return source;
}

/** Where the set that begins at `start` ends; `]` may be its first member. Less than 0: it is none. */
function setEnd(characters: readonly string[], start: number): number {
  let from = start + 1;
  if (characters[from] === '!') from += 1;
  if (characters[from] === ']') from += 1;
  return characters.indexOf(']', from);
}

function set(inside: readonly string[]): string {
  const negated = inside[0] === '!';
  const members = negated ? inside.slice(1) : inside;
  let source = '';
  for (let at = 0; at < members.length; at += 1) {
    const first = members[at] ?? '';
    const last = members[at + 2];
    if (members[at + 1] === '-' && last !== undefined) {
      // A range backwards has nothing in it.
      if (first <= last) source += `${quoteInSet(first)}-${quoteInSet(last)}`;
      at += 2;
    } else source += quoteInSet(first);
  }
  if (source === '') return negated ? '.' : '(?!)';
  return `[${negated ? '^' : ''}${source}]`;
}

function quote(character: string): string {
  return character.replace(/[\\^$.*+?()[\]{}|/]/, '\\$&');
}

function quoteInSet(character: string): string {
  return character.replace(/[\\^\]\-[]/, '\\$&');
}
