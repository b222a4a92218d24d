import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import { canonicalJson } from '../src/canonical.js';
import { Image } from '../src/index.js';
import type { Manifest } from '../src/index.js';
import { vectorsFile } from './support/places.js';

interface Vector {
  name: string;
  manifest: Manifest;
  canonical: string;
  sha256: string;
}

test('the vectors shared with Rust and Python hold', () => {
  const vectors = JSON.parse(readFileSync(vectorsFile(), 'utf8')) as Vector[];
  assert.ok(vectors.length >= 15);
  for (const { name, manifest, canonical, sha256 } of vectors) {
    assert.equal(canonicalJson({ steps: manifest.steps, base: manifest.base }), canonical, name);
    assert.equal(Image.fromManifest(manifest).contentHash(), sha256, name);
  }
});

test('keys are ordered by UTF-16 code units and strings escaped as RFC 8785 says', () => {
  // The example of section 3.2.3: U+1F600 (D83D DE00) comes before U+FB33.
  const given = { '\u20ac': 1, '\r': 2, '\ufb33': 3, '1': 4, '\ud83d\ude00': 5, '\u0080': 6, '\u00f6': 7 };
  const expected = '{"\\r":2,"1":4,"\u0080":6,"ö":7,"€":1,"😀":5,"\ufb33":3}';
  assert.equal(canonicalJson(given), expected);
  assert.equal(
    canonicalJson('\u0001\b\t\n\f\r\u001f"\\/<>&\'\u007f\u2028'),
    '"\\u0001\\b\\t\\n\\f\\r\\u001f\\"\\\\/<>&\'\u007f\u2028"',
  );
  assert.equal(canonicalJson([1.0, 1e21, -0, 1e-7, 333333333.3333333]), '[1,1e+21,0,1e-7,333333333.3333333]');
});

test('a field that is undefined is not there', () => {
  assert.equal(canonicalJson({ b: undefined, a: [true, null] }), '{"a":[true,null]}');
});

test('what JSON does not have is refused', () => {
  for (const value of [undefined, NaN, Infinity, 1n, () => 1, '\ud83d', { '\ude00': 1 }, [undefined]]) {
    assert.throws(() => canonicalJson(value), TypeError);
  }
});
