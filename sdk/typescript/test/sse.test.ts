import assert from 'node:assert/strict';
import { test } from 'node:test';

import { BadAnswerError } from '../src/index.js';
import { SseParser } from '../src/sse.js';
import type { ServerSentEvent } from '../src/sse.js';

const STREAM = [
  '\ufeff: a comment\n',
  'event: output\r\ndata: {"text":"Grüße 😀"}\r\nid: 1\r\n\r\n',
  'data: first\rdata:  second \r\r',
  'data\n\n', // One empty line of data.
  'event: nothing\n\n', // Without data it is no event, and its type is forgotten.
  'id: 7\nretry: 10\nunknown: x\ndata: a:b\n\n',
  'id\ndata: id is empty again\n\n',
  'data: not complete',
].join('');

const EVENTS: ServerSentEvent[] = [
  { event: 'output', data: '{"text":"Grüße 😀"}', id: '1' },
  { event: 'message', data: 'first\n second ', id: '1' },
  { event: 'message', data: '', id: '1' },
  { event: 'message', data: 'a:b', id: '7' },
  { event: 'message', data: 'id is empty again', id: '' },
];

function parse(pieces: readonly Uint8Array[]): ServerSentEvent[] {
  const parser = new SseParser();
  return pieces.flatMap((piece) => parser.push(piece));
}

test('a stream is read as the standard says', () => {
  assert.deepEqual(parse([Buffer.from(STREAM)]), EVENTS);
});

test('it is no matter where a stream is cut', () => {
  const bytes = Buffer.from(STREAM);
  for (let at = 0; at <= bytes.length; at += 1) {
    assert.deepEqual(parse([bytes.subarray(0, at), bytes.subarray(at)]), EVENTS, `cut at ${at}`);
  }
  const single = Array.from(bytes, (_, at) => bytes.subarray(at, at + 1));
  assert.deepEqual(parse(single), EVENTS);
});

test('an event comes with the byte that completes it', () => {
  const parser = new SseParser();
  assert.deepEqual(parser.push(Buffer.from('data: x\r\n\r')), [{ event: 'message', data: 'x', id: '' }]);
  assert.deepEqual(parser.push(Buffer.from('\ndata: y\n\n')), [{ event: 'message', data: 'y', id: '' }]);
});

test('an id with a NUL is none', () => {
  assert.equal(parse([Buffer.from('id: 1\n\nid: 2\0\ndata: x\n\n')])[0]?.id, '1');
});

test('a line that never ends is refused before it fills the memory', () => {
  const parser = new SseParser();
  const piece = Buffer.alloc(1024 * 1024, 'x');
  for (let sent = 0; sent < 64; sent += 1) parser.push(piece);
  assert.throws(() => parser.push(piece), BadAnswerError);
});

test('many events are not too long together', () => {
  const parser = new SseParser();
  const piece = Buffer.from(`data: ${'x'.repeat(1024 * 1024)}\n\n`);
  for (let sent = 0; sent < 80; sent += 1) assert.equal(parser.push(piece).length, 1);
});
