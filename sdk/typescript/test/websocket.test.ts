import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import * as http from 'node:http';
import { createServer } from 'node:net';
import type { Socket } from 'node:net';
import path from 'node:path';
import { test } from 'node:test';
import type { TestContext } from 'node:test';
import { WebSocketServer } from 'ws';

import { BadAnswerError, ConnectionLostError } from '../src/index.js';
import { FrameReader, encodeFrame } from '../src/frames.js';
import { Transport } from '../src/http.js';
import { WebSocket } from '../src/websocket.js';
import { temporary } from './support/fake.js';

const limit = { timeout: 60_000 };

/** A server's frame: not masked. */
function frame(first: number, payload: string | Uint8Array): Buffer {
  const body = Buffer.from(payload as string);
  const extended = body.length < 126 ? 0 : body.length < 65536 ? 2 : 8;
  const head = Buffer.alloc(2 + extended);
  head[0] = first;
  head[1] = extended === 0 ? body.length : extended === 2 ? 126 : 127;
  if (extended === 2) head.writeUInt16BE(body.length, 2);
  else if (extended === 8) head.writeBigUInt64BE(BigInt(body.length), 2);
  return Buffer.concat([head, body]);
}

function unexpected(what: unknown): void {
  throw new Error(`unexpected: ${String(what)}`);
}

interface Heard {
  messages: (string | Buffer)[];
  end: Promise<Error | undefined>;
  socket: WebSocket;
}

/** Opens a WebSocket to a server that sends these bytes, cut as given, after its handshake. */
async function hear(
  t: TestContext,
  pieces: readonly Buffer[],
  onSocket?: (socket: Socket) => void,
): Promise<Heard> {
  const socketPath = path.join(temporary(t), 's');
  const server = createServer((socket) => {
    socket.on('error', () => undefined);
    socket.once('data', (request) => {
      const key = /sec-websocket-key: (\S+)/i.exec(request.toString('latin1'))?.[1] ?? '';
      const accept = createHash('sha1').update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest('base64');
      const head = `HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n`;
      onSocket?.(socket);
      // The first piece comes with the head: it is no matter how the bytes are cut there either.
      const [first, ...rest] = pieces;
      socket.write(
        Buffer.concat([Buffer.from(`${head}sec-websocket-accept: ${accept}\r\n\r\n`), first ?? Buffer.of()]),
      );
      void (async () => {
        for (const piece of rest) {
          await new Promise((resolve) => setImmediate(resolve));
          socket.write(piece);
        }
      })();
    });
  });
  await new Promise<void>((resolve) => server.listen(socketPath, resolve));
  t.after(() => server.close());
  const messages: (string | Buffer)[] = [];
  let onEnd: (error: Error | undefined) => void = () => undefined;
  const end = new Promise<Error | undefined>((resolve) => {
    onEnd = resolve;
  });
  const socket = await WebSocket.connect(new Transport(socketPath, 0), '/x', {
    onText: (text) => messages.push(text),
    onBinary: (bytes) => messages.push(Buffer.from(bytes)),
    onEnd,
  });
  return { messages, end, socket };
}

const LONG = Buffer.alloc(70_000, 'long');
const STREAM = Buffer.concat([
  frame(0x81, 'Grüße 😀'),
  frame(0x02, 'one '), // The first of three parts,
  frame(0x89, 'ping'), // between which others may come.
  frame(0x00, 'two '),
  frame(0x80, 'three'),
  frame(0x82, ''),
  frame(0x82, LONG.subarray(0, 126)),
  frame(0x82, LONG),
  frame(0x8a, 'pong nobody asked for'),
  frame(0x88, Buffer.from([0x03, 0xe8])),
]);
const MESSAGES = ['Grüße 😀', Buffer.from('one two three'), Buffer.alloc(0), LONG.subarray(0, 126), LONG];

test('messages come through, however their bytes are cut', limit, async (t) => {
  const cuts = [STREAM.length, 1, 2, 3, 7, 4096];
  for (const size of cuts) {
    // Single bytes for what is before the long message, or it takes for ever.
    const pieces = [];
    for (let at = 0; at < STREAM.length;) {
      const next = at < 400 ? at + size : Math.max(at + size, at + 10_000);
      pieces.push(STREAM.subarray(at, next));
      at = next;
    }
    const heard = await hear(t, pieces);
    assert.equal(await heard.end, undefined);
    assert.deepEqual(heard.messages, MESSAGES, `cut by ${size}`);
  }
});

test('a ping is answered, and a goodbye', limit, async (t) => {
  const answered = new Promise<Buffer>((resolve) => {
    void hear(t, [frame(0x89, 'are you there'), frame(0x88, Buffer.from([0x03, 0xe9]))], (socket) => {
      const pieces: Buffer[] = [];
      socket.on('data', (bytes) => pieces.push(bytes));
      socket.on('end', () => {
        resolve(Buffer.concat(pieces));
      });
    });
  });
  const expected = [encodeFrame(10, Buffer.from('are you there')), encodeFrame(8, Buffer.from([3, 0xe9]))];
  assert.deepEqual(unmasked(await answered), unmasked(Buffer.concat(expected)));
});

/** Frames without their masks, which are random. */
function unmasked(bytes: Buffer): string[] {
  const frames = [];
  for (let at = 0; at < bytes.length;) {
    const length = bytes.readUInt8(at + 1) & 0x7f;
    const mask = bytes.subarray(at + 2, at + 6);
    const payload = bytes
      .subarray(at + 6, at + 6 + length)
      .map((byte, index) => byte ^ (mask[index & 3] ?? 0));
    frames.push(`${bytes.readUInt8(at)} ${Buffer.from(payload).toString('latin1')}`);
    at += 6 + length;
  }
  return frames;
}

test('what the protocol forbids ends the connection with an error', limit, async (t) => {
  const forbidden: [string, Buffer][] = [
    ['masked', Buffer.from([0x81, 0x80, 0, 0, 0, 0])],
    ['an extension', frame(0xc1, 'x')],
    ['an unknown kind', frame(0x83, 'x')],
    ['a part of nothing', frame(0x80, 'x')],
    ['a message in a message', Buffer.concat([frame(0x01, 'x'), frame(0x81, 'y')])],
    ['a ping in parts', frame(0x09, 'x')],
    ['a long ping', frame(0x89, Buffer.alloc(126))],
    ['no UTF-8', frame(0x81, Buffer.from([0xff]))],
    ['a message too long', Buffer.from([0x82, 127, 0, 0, 0, 0, 0x40, 0, 0, 1])],
    ['a length beyond all numbers', Buffer.from([0x82, 127, 255, 255, 255, 255, 255, 255, 255, 255])],
  ];
  for (const [what, bytes] of forbidden) {
    const { end } = await hear(t, [bytes]);
    assert.ok((await end) instanceof BadAnswerError, what);
  }
});

test('a server that goes without a goodbye, or with a bad one, is lost', limit, async (t) => {
  const gone = await hear(t, [frame(0x81, 'x')], (socket) => {
    setTimeout(() => socket.end(), 30);
  });
  assert.ok((await gone.end) instanceof ConnectionLostError);
  assert.deepEqual(gone.messages, ['x']);
  const bad = await hear(t, [frame(0x88, Buffer.concat([Buffer.from([0x03, 0xf3]), Buffer.from('broken')]))]);
  assert.match((await bad.end)?.message ?? '', /1011 broken/);
});

test('a server that does not answer our goodbye is left after a second', limit, async (t) => {
  const { socket, end } = await hear(t, []);
  socket.close();
  socket.close();
  await socket.sendText('is not sent');
  assert.equal(await end, undefined);
});

test('a handshake that another server answers is refused', limit, async (t) => {
  const socketPath = path.join(temporary(t), 's');
  const server = createServer((socket) => {
    socket.on('error', () => undefined);
    socket.once('data', () => {
      socket.write(
        'HTTP/1.1 101 X\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: x\r\n\r\n',
      );
    });
  });
  await new Promise<void>((resolve) => server.listen(socketPath, resolve));
  t.after(() => server.close());
  const handler = { onText: unexpected, onBinary: unexpected, onEnd: unexpected };
  await assert.rejects(WebSocket.connect(new Transport(socketPath, 0), '/x', handler), BadAnswerError);
});

test('messages of every size are written as another implementation reads them', limit, async (t) => {
  const socketPath = path.join(temporary(t), 's');
  const server = http.createServer().listen(socketPath);
  const sockets = new WebSocketServer({ server });
  const sizes = [0, 1, 125, 126, 65_535, 65_536, 65_537, 200_000];
  const read: Buffer[] = [];
  const done = new Promise<void>((resolve) => {
    sockets.on('connection', (socket) => {
      socket.on('message', (message: Buffer) => {
        read.push(message);
      });
      socket.on('close', resolve);
    });
  });
  t.after(() => server.close());
  const handler = { onText: unexpected, onBinary: unexpected, onEnd: () => undefined };
  const socket = await WebSocket.connect(new Transport(socketPath, 0), '/x', handler);
  for (const size of sizes) await socket.sendBinary(Buffer.alloc(size, 'payload'));
  await socket.sendText('Grüße 😀');
  socket.close();
  await done;
  const expected = [...sizes.map((size) => Buffer.alloc(size, 'payload')), Buffer.from('Grüße 😀')];
  assert.deepEqual(
    read.map((message) => message.length),
    expected.map((message) => message.length),
  );
  assert.ok(Buffer.concat(read).equals(Buffer.concat(expected)));
});

test('a frame reader keeps nothing of what it gave', () => {
  const reader = new FrameReader();
  const bytes = frame(0x82, 'x');
  for (let count = 0; count < 1000; count += 1) {
    reader.push(bytes);
    assert.equal(reader.next()?.payload.toString(), 'x');
    assert.equal(reader.next(), undefined);
  }
});
