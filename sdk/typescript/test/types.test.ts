import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';

import { packageRoot } from './support/places.js';
import { shapesOfOpenApi, shapesOfTypeScript } from './support/shapes.js';
import type { Shapes } from './support/shapes.js';

const types = path.join(packageRoot, 'src/types');
const sources = readdirSync(types).map((name) => readFileSync(path.join(types, name), 'utf8'));
const ours: Shapes = shapesOfTypeScript(sources.join('\n'));

// The path of what a daemon says at /v1/openapi.json.
const openapi = process.env['SPORE_OPENAPI'] ?? '';
const skip =
  openapi === '' ? 'SKIPPED: SPORE_OPENAPI names no OpenAPI file to compare the types with' : false;

test('src/types and the daemon say the same', { skip }, async (t) => {
  const theirs = shapesOfOpenApi(JSON.parse(readFileSync(openapi, 'utf8')));
  await t.test('there are the same types', () => {
    assert.deepEqual([...ours.keys()].sort(), [...theirs.keys()].sort());
  });
  for (const [name, shape] of theirs) {
    await t.test(`${name} is the same`, () => {
      assert.deepEqual(ours.get(name), shape);
    });
  }
});

test('the comparison sees every kind of difference', () => {
  const document = {
    components: {
      schemas: {
        Kind: { type: 'string', enum: ['a', 'b'] },
        Base: { type: 'object', required: ['id'], properties: { id: { type: 'string' } } },
        Thing: {
          allOf: [
            { $ref: '#/components/schemas/Base' },
            {
              type: 'object',
              required: ['kind', 'sizes'],
              properties: {
                kind: { $ref: '#/components/schemas/Kind' },
                sizes: { type: 'array', items: { type: 'integer' } },
                note: { type: ['string', 'null'] },
                base: { oneOf: [{ $ref: '#/components/schemas/Base' }, { type: 'null' }] },
                env: { type: 'object', additionalProperties: { type: 'string' } },
                more: { type: 'object', additionalProperties: true },
              },
            },
          ],
        },
        Said: {
          oneOf: [
            { type: 'object', required: ['type'], properties: { type: { type: 'string', enum: ['end'] } } },
            {
              allOf: [
                { $ref: '#/components/schemas/Base' },
                {
                  type: 'object',
                  required: ['type'],
                  properties: { type: { type: 'string', enum: ['base'] } },
                },
              ],
            },
          ],
        },
        Event: {
          allOf: [
            { $ref: '#/components/schemas/Said' },
            { type: 'object', required: ['at'], properties: { at: { type: 'number' } } },
          ],
        },
        Policy: {
          oneOf: [
            { type: 'string', enum: ['none'] },
            { type: 'string', enum: ['nat'] },
            {
              type: 'object',
              required: ['allow'],
              properties: { allow: { type: 'array', items: { type: 'string' } } },
            },
          ],
        },
      },
    },
  };
  const source = `
    export type Kind = 'b' | 'a';
    export interface Base { id: string; }
    export interface Thing extends Base {
      kind: Kind; sizes: number[]; note?: string; base?: Base; env?: Record<string, string>;
      more?: Record<string, unknown>;
    }
    export type Said = { type: 'end' } | ({ type: 'base' } & Base);
    export type Event = { at: number } & Said;
    export type Policy = 'none' | 'nat' | { allow: string[] };`;
  const expected = shapesOfOpenApi(document);
  const compare = (text: string): void => {
    assert.deepEqual(shapesOfTypeScript(text), expected);
  };
  compare(source);
  const changes: [string, string][] = [
    ["'b' | 'a'", "'b'"],
    ['note?: string', 'note: string'],
    ['note?: string', 'note?: number'],
    ['note?: string', 'remark?: string'],
    ['sizes: number[]', 'sizes: number'],
    ['base?: Base', 'base?: Thing'],
    ['Record<string, string>', 'Record<string, number>'],
    ['extends Base', ''],
    ["{ type: 'end' }", "{ type: 'stop' }"],
    ['{ at: number } & ', ''],
    ['{ allow: string[] }', '{ allow: string }'],
    ["export type Kind = 'b' | 'a';", "export type Kind = 'b' | 'a'; export type Other = string;"],
  ];
  for (const [from, to] of changes) {
    assert.ok(source.includes(from), from);
    assert.throws(() => {
      compare(source.replace(from, to));
    }, `${from} → ${to}`);
  }
});
